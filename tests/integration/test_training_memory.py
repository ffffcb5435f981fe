"""Training sets that are not in memory: in files, and on Spark's workers."""

from collections.abc import Callable
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyspark.sql import SparkSession
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from nightshift.booster import predict
from nightshift.errors import NightshiftError
from nightshift.io.spark import spark_session
from nightshift.settings import load_settings
from nightshift.training.dataset import Dataset
from nightshift.training.fit import LOSSES, Recipe, fit_early_stopped, fit_trees, model_bytes
from nightshift.training.split import Split

DAYS = tuple(date(2025, 1, 1) + timedelta(days=30 * n) for n in range(3))
PARTS = Split(DAYS[:1], DAYS[1:2], DAYS[2:])


@pytest.fixture(scope="module")
def spark(tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = tmp_path_factory.mktemp("spark")
    settings = load_settings(_env_file=None, state_dir=root, lake=root, spark_master="local[2]")
    with spark_session(settings, "test-training") as session:
        yield session


def recipe(loss: Any, half_life_days: int | None = None) -> Recipe:
    parameters = {"tree_method": "hist", "max_depth": 3, "max_bin": 64, "seed": 1, "nthread": 2}
    return Recipe({**parameters, **LOSSES[loss]}, half_life_days)


def rows_of(workspace: Path, label: Callable[[Any], Any]) -> Dataset:
    """9,000 rows of three snapshots in lists of 10, on Spark; a tenth of the values is null."""
    random = np.random.default_rng(3)
    matrix = random.normal(size=(9_000, 4)).astype(np.float32)
    labels = label(matrix[:, 0] + random.normal(size=len(matrix)))
    matrix[random.random(matrix.shape) < 0.1] = np.nan
    keys = np.char.add("c", (np.arange(len(matrix)) // 10 % 300).astype(str))
    return Dataset(
        manifest={},
        feature_names=("a", "b", "c", "d"),
        keys=keys,
        snapshots=np.repeat(np.array(DAYS, dtype="datetime64[D]"), len(matrix) // 3),
        labels=labels,
        matrix=matrix,
        items=None,
        memory="spark",
        workspace=workspace,
    )


def quality(loss: str, scores: Any, labels: Any) -> float:
    if loss == "squared_error":
        return float(spearmanr(scores, labels)[0])
    return float(roc_auc_score(labels > 0, scores))


@pytest.mark.parametrize(
    ("loss", "half_life_days", "label"),
    [
        ("logistic", 60, lambda x: (x > 0).astype(np.int32)),
        ("squared_error", None, lambda x: np.maximum(x, 0)),
        ("ndcg", None, lambda x: (x > 1).astype(np.float64)),
    ],
)
def test_spark_trains_as_well_as_memory(
    spark: SparkSession, tmp_path: Path, loss: Any, half_life_days: int | None, label: Any
) -> None:
    on_spark, fitted_by = rows_of(tmp_path, label), recipe(loss, half_life_days)
    in_memory = replace(on_spark, memory="in_memory", workspace=None)
    test = on_spark.rows_of(PARTS.test)
    found = {}
    for rows in (on_spark, in_memory):
        booster = fit_early_stopped(rows, PARTS, fitted_by)
        assert booster.feature_names == list(rows.feature_names)
        scores = predict(booster, rows.matrix[test])
        found[rows.memory] = quality(loss, scores, rows.labels[test])
    assert found["spark"] == pytest.approx(found["in_memory"], abs=0.01)
    assert found["spark"] > 0.6
    assert list(tmp_path.iterdir()) == []


def test_spark_gives_the_same_bytes_again(spark: SparkSession, tmp_path: Path) -> None:
    rows = rows_of(tmp_path, lambda x: (x > 0).astype(np.int32))
    half = np.arange(len(rows.labels)) % 2 == 0
    once, twice = (model_bytes(fit_trees(rows, half, recipe("logistic"), 5)) for _ in range(2))
    assert once == twice


def test_spark_refuses_weighted_lists_and_errors_that_explode(
    spark: SparkSession, tmp_path: Path
) -> None:
    rows = rows_of(tmp_path, lambda x: (x > 1).astype(np.float64))
    with pytest.raises(NightshiftError, match="weighted by age cannot be trained on Spark"):
        fit_early_stopped(rows, PARTS, recipe("ndcg", 60))
    amounts = rows_of(tmp_path, lambda x: x)
    too_fast = recipe("squared_error")
    too_fast.parameters["eta"] = 30.0
    with pytest.raises(NightshiftError, match="training does not converge: rmse on validation"):
        fit_early_stopped(amounts, PARTS, too_fast)
