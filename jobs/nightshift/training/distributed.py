"""XGBoost on a Spark cluster (``xgboost.spark``), for rows that no machine's memory holds.

The rows go there as Parquet beside the training dataset, one file a worker, and the session is the
active one. A file is one partition, read in its order, and a worker has one thread: the same rows
on as many workers give the same bytes.
"""

import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import xgboost as xgb
from pyspark.sql import SparkSession

from nightshift.errors import NightshiftError
from nightshift.training.dataset import Dataset, release
from nightshift.xgboost_core import with_wrappers

with_wrappers()
from xgboost.spark import SparkXGBClassifier, SparkXGBRanker, SparkXGBRegressor  # noqa: E402

BATCH_ROWS = 2**14
# More than any file has, so that none is split and no two are one partition.
ONE_FILE = str(2**40)
# Which the estimators give themselves, or take from the session.
OWN_PARAMETERS = frozenset({"nthread", "objective"})

Rows = tuple[npt.NDArray[np.intp], "npt.NDArray[np.float64] | None", "npt.NDArray[np.int64] | None"]
"""Positions in the dataset, weights and lists, as ``nightshift.training.fit`` has them."""


def boost(
    dataset: Dataset,
    parameters: dict[str, Any],
    trees: int,
    train: Rows,
    validation: Rows | None = None,
    patience: int | None = None,
    callbacks: Sequence[xgb.callback.TrainingCallback] = (),
    validation_name: str = "",
) -> xgb.Booster:
    """Boost trees on as many workers as ``parameters`` has threads.

    Args:
        callbacks: are told of validation's errors once the trees are there.

    Raises:
        NightshiftError: when rows of a ranking are weighted.
    """
    if train[1] is not None and train[2] is not None:
        raise NightshiftError(
            "a ranking whose lists are weighted by age cannot be trained on Spark: xgboost.spark "
            "has weights of rows only",
            "set NIGHTSHIFT_TRAINING_MEMORY=external, or leave half_life_days out of the spec",
        )
    assert dataset.workspace is not None
    folder = dataset.workspace / "rows"
    workers = int(parameters["nthread"])
    spark = SparkSession.active()
    _write(folder, dataset, workers, train, validation)
    try:
        with ExitStack() as stack:
            for name, value in {
                "spark.sql.files.maxPartitionBytes": ONE_FILE,
                "spark.sql.files.openCostInBytes": ONE_FILE,
                # XGBoost would make two lists of one that two batches share
                "spark.sql.execution.arrow.maxRecordsPerBatch": "0",
                "spark.sql.execution.arrow.maxBytesPerBatch": str(2**31 - 1),
            }.items():
                stack.callback(spark.conf.set, name, str(spark.conf.get(name)))
                spark.conf.set(name, value)
            estimator = _estimator(dataset, parameters, trees, workers, train, validation, patience)
            model = estimator.fit(spark.read.parquet(str(folder)))
    finally:
        shutil.rmtree(folder)
    booster: xgb.Booster = model.get_booster()
    if validation is not None:
        errors = model.training_summary.validation_objective_history
        for tree in range(booster.num_boosted_rounds()):
            so_far = {metric: series[: tree + 1] for metric, series in errors.items()}
            for callback in callbacks:
                callback.after_iteration(booster, tree, {validation_name: so_far})
    return booster


def _estimator(
    dataset: Dataset,
    parameters: dict[str, Any],
    trees: int,
    workers: int,
    train: Rows,
    validation: Rows | None,
    patience: int | None,
) -> Any:
    objective = str(parameters["objective"])
    told = {name: value for name, value in parameters.items() if name not in OWN_PARAMETERS}
    told |= {
        "features_col": list(dataset.feature_names),
        "label_col": "label",
        "num_workers": workers,
        "n_estimators": trees,
        "verbose": False,
    }
    if train[1] is not None:
        told["weight_col"] = "weight"
    if validation is not None:
        told |= {"validation_indicator_col": "is_validation", "early_stopping_rounds": patience}
    if objective == "binary:logistic":
        return SparkXGBClassifier(**told)
    if train[2] is not None:
        return SparkXGBRanker(objective=objective, qid_col="list", **told)
    return SparkXGBRegressor(objective=objective, **told)


def _write(
    folder: Path, dataset: Dataset, workers: int, train: Rows, validation: Rows | None
) -> None:
    """One file a worker, each with its share of the rows to learn from and to validate by."""
    folder.mkdir()
    for worker in range(workers):
        with ExitStack() as stack:
            writer: pq.ParquetWriter | None = None
            first_list = 0
            for rows in (train, validation):
                if rows is None:
                    continue
                order, weights, lists = rows
                start, stop = _share(len(order), lists, worker, workers)
                for at in range(start, stop, BATCH_ROWS):
                    chosen = slice(at, min(at + BATCH_ROWS, stop))
                    matrix = np.asarray(dataset.matrix[order[chosen]])
                    columns: dict[str, Any] = dict(
                        zip(dataset.feature_names, matrix.T, strict=True)
                    )
                    columns["label"] = dataset.labels[order[chosen]].astype(np.float64)
                    columns["is_validation"] = np.full(len(matrix), rows is validation)
                    columns["weight"] = np.ones(len(matrix)) if weights is None else weights[chosen]
                    if lists is not None:
                        columns["list"] = first_list + lists[chosen]
                    table = pa.table({name: np.ascontiguousarray(v) for name, v in columns.items()})
                    if writer is None:
                        file = folder / f"part-{worker:05}.parquet"
                        writer = stack.enter_context(
                            pq.ParquetWriter(file, table.schema, compression="lz4")
                        )
                    writer.write_table(table)
                    release(dataset.matrix)
                first_list += 0 if lists is None else int(lists[-1]) + 1


def _share(
    rows: int, lists: npt.NDArray[np.int64] | None, worker: int, workers: int
) -> tuple[int, int]:
    """The rows of a worker; a list's rows are one worker's."""
    edges = [rows * number // workers for number in (worker, worker + 1)]
    if lists is not None:
        edges = [int(np.searchsorted(lists, lists[e])) if 0 < e < rows else e for e in edges]
    return edges[0], edges[1]
