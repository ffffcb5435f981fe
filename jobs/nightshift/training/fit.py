"""XGBoost, fitted so that the same inputs give the same bytes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import xgboost as xgb

from nightshift.booster import Matrix

Labels = npt.NDArray[np.int32]

MAX_TREES = 1000
PATIENCE = 50


def parameters(seed: int) -> dict[str, Any]:
    """XGBoost's parameters: shallow, slow and subsampled, for short histories.

    The number of threads is fixed because the order of floating-point sums depends on it.
    """
    return {
        "objective": "binary:logistic",
        "eval_metric": "logloss",
        "tree_method": "hist",
        "eta": 0.05,
        "max_depth": 4,
        "min_child_weight": 20,
        "subsample": 0.8,
        "colsample_bytree": 0.6,
        "lambda": 5.0,
        "max_bin": 256,
        "seed": seed,
        "nthread": 2,
    }


def fit_early_stopped(
    train: tuple[Matrix, Labels],
    validation: tuple[Matrix, Labels],
    feature_names: Sequence[str],
    seed: int,
) -> xgb.Booster:
    """Boost until validation log loss has not improved for ``PATIENCE`` trees; keep the best."""
    data = _quantised(*train, feature_names)
    held_out = xgb.QuantileDMatrix(
        validation[0], validation[1], feature_names=list(feature_names), ref=data
    )
    booster = xgb.train(
        parameters(seed),
        data,
        MAX_TREES,
        evals=[(held_out, "validation")],
        early_stopping_rounds=PATIENCE,
        verbose_eval=False,
    )
    return booster[: booster.best_iteration + 1]


def fit_trees(
    matrix: Matrix, labels: Labels, feature_names: Sequence[str], trees: int, seed: int
) -> xgb.Booster:
    """Boost exactly ``trees`` trees."""
    return xgb.train(parameters(seed), _quantised(matrix, labels, feature_names), trees)


def model_bytes(booster: xgb.Booster) -> bytes:
    """The booster as UBJSON; equal boosters give equal bytes."""
    return bytes(booster.save_raw("ubj"))


def _quantised(matrix: Matrix, labels: Labels, feature_names: Sequence[str]) -> xgb.QuantileDMatrix:
    return xgb.QuantileDMatrix(
        matrix, labels, feature_names=list(feature_names), max_bin=parameters(0)["max_bin"]
    )
