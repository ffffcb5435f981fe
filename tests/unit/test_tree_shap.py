"""Looked-up SHAP values against XGBoost's own, and their additivity."""

from typing import Any

import numpy as np
import pytest
import xgboost as xgb

from nightshift import tree_shap
from nightshift.booster import contributions, log_odds

FEATURES = 6


def rows(count: int) -> np.ndarray:
    """A tenth null; few different values, so that many lie on a threshold."""
    random = np.random.default_rng(1)
    matrix = random.integers(0, 20, (count, FEATURES)).astype(np.float32)
    matrix[random.random(matrix.shape) < 0.1] = np.nan
    return matrix


def trained(objective: str = "binary:logistic", depth: int = 3, **more: object) -> xgb.Booster:
    matrix = rows(2_000)
    filled = np.nan_to_num(matrix)
    truth = filled[:, 0] * filled[:, 1] - filled[:, 2] ** 2 + 9 * filled[:, 3]
    labels = (truth > np.median(truth)).astype(int) if "logistic" in objective else truth
    parameters = {"objective": objective, "max_depth": depth, "nthread": 1, "seed": 1, **more}
    return xgb.train(parameters, xgb.DMatrix(matrix, labels), 40)


def xgboosts_own(booster: xgb.Booster, matrix: np.ndarray) -> np.ndarray:
    return booster.predict(xgb.DMatrix(matrix), pred_contribs=True)


@pytest.mark.parametrize("objective", ["binary:logistic", "reg:squarederror"])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_looked_up_values_are_those_of_xgboost(objective: str, depth: int) -> None:
    booster, matrix = trained(objective, depth), rows(500)
    assert tree_shap.trees_of(booster) is not None

    found = contributions(booster, matrix)

    expected = xgboosts_own(booster, matrix)
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()
    margins = log_odds(booster, matrix)
    assert np.abs(found.sum(axis=1) - margins).max() < 1e-5 * np.abs(margins).max()


def test_a_row_gets_the_same_bits_in_any_company() -> None:
    booster, matrix = trained(), rows(500)
    together = contributions(booster, matrix)

    alone = np.vstack([contributions(booster, matrix[n : n + 1]) for n in range(20)])

    assert alone.tobytes() == together[:20].tobytes()


@pytest.mark.parametrize(
    "more",
    [
        {"depth": 5},
        {"depth": 0, "grow_policy": "lossguide", "max_leaves": 20},
        {"rate_drop": 0.5},
    ],
    ids=["deep", "many leaves", "weighted"],
)
def test_other_trees_are_left_to_xgboost(more: dict[str, Any]) -> None:
    booster, matrix = trained(**more), rows(9)
    assert tree_shap.trees_of(booster) is None
    found = contributions(booster, matrix)
    assert found.tobytes() == xgboosts_own(booster, matrix).astype(np.float64).tobytes()


def test_a_wrong_table_is_seen() -> None:
    """The comparison can fail: a threshold that is met or not is another case."""
    booster, matrix = trained(), rows(500)
    trees = tree_shap.trees_of(booster)
    assert trees is not None
    flipped = [
        tree_shap.Tree(t.features, t.below, ~t.null_is_below, t.used, t.values) for t in trees
    ]
    expected = xgboosts_own(booster, matrix)[:, :-1]
    assert np.abs(tree_shap.shap_values(flipped, matrix) - expected).max() > 0.01
