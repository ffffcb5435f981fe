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
from nightshift.spec import Candidates, Factorisation

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
    population = works[0].use_case.population
    assert isinstance(population, Candidates)
    found: dict[str, dict[date, factors.Factors]] = {key: {} for key in population.key}
    for as_of in snapshots:
        tasks = [replace(work, snapshots=(as_of,)) for work in works]
        parts = spark.sparkContext.parallelize(tasks, len(tasks)).map(job.bought).collect()
        pairs = pa.concat_tables(parts).combine_chunks()
        coded = {key: pairs[key].combine_chunks().dictionary_encode() for key in population.key}
        frame = pa.table({key: column.indices for key, column in coded.items()})
        file = folder / job.RELATED / f"bought-{as_of}.parquet"
        pq.write_table(frame.append_column("bought", pairs["bought"]), file)
        owner, item = population.key
        model = ALS(
            rank=wanted.rank, maxIter=wanted.iterations, regParam=wanted.regularisation,
            alpha=wanted.alpha, implicitPrefs=True, seed=0, numUserBlocks=BLOCKS,
            numItemBlocks=BLOCKS, userCol=owner, itemCol=item, ratingCol="bought",
        ).fit(spark.read.parquet(str(file)))  # fmt: skip
        found[owner][as_of] = _read(model.userFactors, coded[owner].dictionary)
        found[item][as_of] = _read(model.itemFactors, coded[item].dictionary)
    for key, of_days in found.items():
        factors.write(folder, key, of_days)


def _read(learned: DataFrame, names: pa.Array) -> factors.Factors:
    rows = sorted((row["id"], row["features"]) for row in learned.collect())
    matrix = np.array([values for _, values in rows], np.float32)
    return [names[number].as_py() for number, _ in rows], matrix
