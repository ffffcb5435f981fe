"""Feature tables in, scores and contributions out: the arithmetic of an XGBoost model.

Pure, and shared by training, gates and scoring, so that a row scored anywhere gets the same bits.
"""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from nightshift import amounts, calibration, tree_shap
from nightshift.columns import numbers
from nightshift.errors import NightshiftError
from nightshift.xgboost_core import xgb

Matrix = npt.NDArray[np.float32]
Vector = npt.NDArray[np.float64]

_ROWS_DOUBLED = 8_192


def to_matrix(table: pa.Table | pa.RecordBatch, feature_names: Sequence[str]) -> Matrix:
    """The named columns of ``table`` as (rows, features) float32, row-major; NaN where null.

    Raises:
        NightshiftError: naming the columns that the table lacks.
    """
    there = table.schema.names
    if missing := [name for name in feature_names if name not in there]:
        raise NightshiftError(
            f"the table lacks the feature columns {', '.join(missing)}; it has {', '.join(there)}",
            "build the features again with the present use case: `nightshift nightly`",
        )
    matrix = np.empty((table.num_rows, len(feature_names)), dtype=np.float32)
    for position, name in enumerate(feature_names):
        matrix[:, position] = numbers(table.column(name))
    return matrix


def content_hashes(matrix: Matrix, labels: Vector) -> npt.NDArray[np.uint64]:
    """What each labelled row holds as one number, (rows,); equal rows have equal ones.

    Of 40,000 different rows two share one by chance once in 20 thousand million times.
    """
    hashes = labels.view(np.uint64).copy()
    for column in matrix.T:
        # one NaN of many, so that null is null
        bits = np.where(np.isnan(column), np.float32(np.nan), column).view(np.uint32)
        hashes ^= bits
        hashes *= np.uint64(0x9E3779B97F4A7C15)
        hashes ^= hashes >> np.uint64(32)
    return hashes


def row_order(
    snapshots: npt.NDArray[np.datetime64],
    hashes: npt.NDArray[np.uint64],
    keys: npt.NDArray[Any],
) -> npt.NDArray[np.intp]:
    """The order in which models learn labelled rows: by snapshot, then by content.

    Keys come last, since pseudonyms are others in each warehouse: the same rows are then in the
    same order, and train the same model, under any key.

    Args:
        snapshots: (rows,) days.
        hashes: (rows,) of ``content_hashes``.
        keys: (rows,) whose order is that of the entities' keys.
    """
    return np.lexsort((keys, hashes, snapshots))


def predict(booster: xgb.Booster, matrix: Matrix, doubled: xgb.Booster | None = None) -> Vector:
    """Scores, (rows,) float64: probabilities of class 1, calibrated as the booster carries it; or
    amounts, times the factor that it carries; or what orders a list.

    Args:
        doubled: what :func:`double` has made of the booster: the same scores, in less time.

    Raises:
        NightshiftError: when the matrix is not as wide as the model, or a score is not finite.
    """
    _check_width(booster, matrix)
    if len(matrix) == 0:
        return np.empty(0, dtype=np.float64)
    curve, carried = calibration.of(booster), amounts.of(booster)
    is_margin = curve is not None
    if doubled is not None and np.isnan(matrix).any():
        scores = _of_doubled(doubled, matrix, is_margin)
    else:
        scores = _of_trees(booster, matrix, is_margin)
    if curve is not None:
        scores = curve.probabilities(scores)
    if carried is not None:
        scores = scores * carried.factor
        if carried.exposure is not None:
            scores = scores * carried.exposure.of(matrix)
        if carried.non_negative:
            scores = np.maximum(scores, 0)
    wrong = np.flatnonzero(~np.isfinite(scores))
    if len(wrong):
        raise NightshiftError(
            f"the model gives row {wrong[0]} the score {scores[wrong[0]]}, and {len(wrong) - 1} "
            f"more of {len(scores):,} rows one that is not finite",
            "look for extreme labels and feature values, and train again with `nightshift train`",
        )
    return scores


def intervals(booster: xgb.Booster, matrix: Matrix, scores: Vector | None = None) -> Vector | None:
    """Low and high beside each amount, (rows, 2) float64; None where the booster carries none.

    Args:
        scores: (rows,) of :func:`predict`, which the intervals are to hold, as published ones do;
            None for the intervals alone.

    Raises:
        NightshiftError: when the matrix is not as wide as the model.
    """
    carried = amounts.of(booster)
    if carried is None or carried.interval is None:
        return None
    _check_width(booster, matrix)
    ends = amounts.bounds(carried, matrix)
    return ends if ends is None or scores is None else amounts.holding(ends, scores)


def double(booster: xgb.Booster) -> xgb.Booster | None:
    """The same trees, which read each feature from one of two columns: where it is missing, the
    first holds minus infinity, and the second infinity.

    A split reads the column that sends a missing value where it sends missing values, so no value
    is missing any more, and XGBoost's walk down the trees, which asks that at each node, takes a
    little over half the time. None where the trees split on categories, which have no order.
    """
    model = json.loads(booster.save_raw("json"))
    learner = model["learner"]
    features = booster.num_features()
    learner["learner_model_param"]["num_feature"] = str(2 * features)
    learner["feature_names"] = learner["feature_types"] = []
    learner["attributes"] = {}
    for tree in learner["gradient_booster"]["model"]["trees"]:
        if any(tree["split_type"]):
            return None
        tree["tree_param"]["num_feature"] = str(2 * features)
        tree["split_indices"] = [
            feature if is_left else feature + features
            for feature, is_left in zip(tree["split_indices"], tree["default_left"], strict=True)
        ]
    made = xgb.Booster({"nthread": 1})
    made.load_model(bytearray(json.dumps(model).encode()))
    return made


def log_odds(booster: xgb.Booster, matrix: Matrix) -> Vector:
    """What the trees add up to, (rows,) float64, before any calibration."""
    return _of_trees(booster, matrix, is_margin=True)


def _of_trees(booster: xgb.Booster, matrix: Matrix, is_margin: bool) -> Vector:
    kind = "margin" if is_margin else "value"
    return np.asarray(booster.inplace_predict(matrix, predict_type=kind), dtype=np.float64)


def _of_doubled(doubled: xgb.Booster, matrix: Matrix, is_margin: bool) -> Vector:
    """As of :func:`_of_trees`, by what :func:`double` has made.

    Some rows at a time, in the same memory: of new memory for each batch the kernel would clear
    every page first, which took as long as half the walk.
    """
    rows, features = matrix.shape
    scores = np.empty(rows, dtype=np.float64)
    twice = np.empty((min(rows, _ROWS_DOUBLED), 2 * features), dtype=np.float32)
    for first in range(0, rows, _ROWS_DOUBLED):
        some = matrix[first : first + _ROWS_DOUBLED]
        filled = twice[: len(some)]
        # of NaN and a number both give the number
        np.fmax(some, np.float32(-np.inf), out=filled[:, :features])
        np.fmin(some, np.float32(np.inf), out=filled[:, features:])
        scores[first : first + len(some)] = _of_trees(doubled, filled, is_margin)
    return scores


def contributions(booster: xgb.Booster, matrix: Matrix, is_exact: bool = True) -> Vector:
    """SHAP values, (rows, features + 1) float64; the last column is the bias.

    A row sums to what its trees add up to (Lundberg et al. 2018, TreeSHAP): of two classes the
    log-odds before calibration, which moves all rows along one rising curve and no reason; of
    amounts, before factor and exposure, their logarithm where the loss has one (Tweedie). Where
    they are not to be exact, each split on a row's path is given its change of the trees' mean
    (Saabas 2014).

    Raises:
        NightshiftError: when the matrix is not as wide as the model.
    """
    _check_width(booster, matrix)
    if len(matrix) == 0:
        return np.empty((0, matrix.shape[1] + 1), dtype=np.float64)
    trees = tree_shap.trees_of(booster) if is_exact else None
    # of tables, XGBoost is only asked for the bias, which is the same for every row
    asked = matrix if trees is None else matrix[:1]
    data = xgb.DMatrix(asked, feature_names=booster.feature_names)
    found = booster.predict(data, pred_contribs=True, approx_contribs=not is_exact)
    if trees is None:
        return np.asarray(found, dtype=np.float64)
    bias = np.full((len(matrix), 1), found[0, -1], dtype=np.float64)
    return np.hstack([tree_shap.shap_values(trees, matrix), bias])


def gain_shares(booster: xgb.Booster) -> dict[str, float]:
    """Each used feature's share of the total gain, largest first."""
    gains = {
        name: float(np.sum(gain))
        for name, gain in booster.get_score(importance_type="total_gain").items()
    }
    total = sum(gains.values()) or 1.0
    ordered = sorted(gains.items(), key=lambda item: (-item[1], item[0]))
    return {name: gain / total for name, gain in ordered}


def _check_width(booster: xgb.Booster, matrix: Matrix) -> None:
    if matrix.shape[1] != booster.num_features():
        raise NightshiftError(
            f"the model reads {booster.num_features()} features, the matrix has {matrix.shape[1]}",
            "train again with the present use case: `nightshift train`",
        )
