"""The factorisation of a labelled dataset, by Spark ML, in the session that has made its rows."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyspark.ml.recommendation import ALS
from pyspark.sql import DataFrame, SparkSession

from nightshift import factors
from nightshift.features import job
from nightshift.spec import Factorisation

BLOCKS = 4


def write_factors(
    spark: SparkSession,
    works: Sequence[job.Work],
    wanted: Factorisation,
    snapshots: Sequence[date],
    folder: Path,
) -> None:
    """Fit the factors of some snapshots, and write them into the dataset's folder.

    Args:
        works: of the vectors, by the use case's own key.
    """
    found: dict[tuple[date, str], factors.Factors] = {}
    for as_of in snapshots:
        tasks = [replace(work, snapshots=(as_of,)) for work in works]
        parts = spark.sparkContext.parallelize(tasks, len(tasks)).map(job.bought).collect()
        pairs = pa.concat_tables(parts).combine_chunks()
        coded = [pairs[name].combine_chunks().dictionary_encode() for name in _SIDES]
        frame = pa.table(
            [*(column.indices for column in coded), pairs["bought"]], names=[*_SIDES, "bought"]
        )
        file = folder / job.RELATED / f"bought-{as_of}.parquet"
        pq.write_table(frame, file)
        model = ALS(
            rank=wanted.rank, maxIter=wanted.iterations, regParam=wanted.regularisation,
            alpha=wanted.alpha, implicitPrefs=True, seed=0, numUserBlocks=BLOCKS,
            numItemBlocks=BLOCKS, userCol=factors.ENTITY, itemCol=factors.ITEM, ratingCol="bought",
        ).fit(spark.read.parquet(str(file)))  # fmt: skip
        for side, column, learned in zip(
            _SIDES, coded, (model.userFactors, model.itemFactors), strict=True
        ):
            found[as_of, side] = _read(learned, column.dictionary)
    factors.write(folder, found)


_SIDES = (factors.ENTITY, factors.ITEM)


def _read(learned: DataFrame, names: pa.Array) -> factors.Factors:
    rows = sorted((row["id"], row["features"]) for row in learned.collect())
    matrix = np.array([values for _, values in rows], np.float32)
    return [names[number].as_py() for number, _ in rows], matrix
