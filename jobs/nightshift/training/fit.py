"""XGBoost, fitted so that the same inputs give the same bytes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pandas as pd
import xgboost as xgb
from scipy.special import expit, logit

from nightshift import calibration
from nightshift.booster import Vector, log_odds
from nightshift.errors import NightshiftError
from nightshift.spec import CalibrationMethod, Loss, TopItems, UseCase
from nightshift.training.calibration import METHODS, Choice, choose, folds_of
from nightshift.training.dataset import Dataset
from nightshift.training.split import Split

Mask = npt.NDArray[np.bool_]

MAX_TREES = 1000
PATIENCE = 50
VALIDATION = "validation"
# How many times its first value an error may become before it is called exploding.
EXPLODED = 100.0
# Half-models, each calibrated on the other half's entities, cost one more fit in all.
CALIBRATION_FOLDS = 2

# The least hessian of a leaf is in the loss's own unit: of the logistic one a row has at most 1/4,
# of a squared or absolute error 1, of the others what its amounts make of it.
LOSSES: dict[Loss, dict[str, Any]] = {
    "logistic": {
        "objective": "binary:logistic",
        "eval_metric": "logloss",
        "min_child_weight": 20,
    },
    "squared_error": {
        "objective": "reg:squarederror",
        "eval_metric": "rmse",
        "min_child_weight": 20,
    },
    "absolute_error": {
        "objective": "reg:absoluteerror",
        "eval_metric": "mae",
        "min_child_weight": 20,
    },
    "tweedie": {
        "objective": "reg:tweedie",
        "tweedie_variance_power": 1.5,
        "eval_metric": "tweedie-nloglik@1.5",
        "min_child_weight": 1,
    },
    "ndcg": {"objective": "rank:ndcg", "ndcg_exp_gain": False, "min_child_weight": 0.1},
    "pairwise": {"objective": "rank:pairwise", "ndcg_exp_gain": False, "min_child_weight": 0.1},
}


@dataclass(frozen=True)
class Recipe:
    """All that a model is made by, beside its rows and the number of its trees.

    Attributes:
        parameters: XGBoost's, every one that is not its default.
        half_life_days: as ``nightshift.spec.Model`` has it.
    """

    parameters: dict[str, Any]
    half_life_days: int | None


@dataclass(frozen=True)
class Fitted:
    """The model of a split; ``calibration`` tells how its probabilities are, None of others."""

    booster: xgb.Booster
    calibration: Choice | None


def recipe(use_case: UseCase, seed: int, chosen: Mapping[str, Any] | None = None) -> Recipe:
    """Shallow, slow and subsampled, for short histories. The spec's parameters come before these,
    and those that a search has ``chosen`` before both.

    The number of threads is fixed because the order of floating-point sums depends on it.
    """
    parameters: dict[str, Any] = {
        "tree_method": "hist",
        "eta": 0.05,
        "max_depth": 4,
        "subsample": 0.8,
        "colsample_bytree": 0.6,
        "lambda": 5.0,
        "max_bin": 256,
        "seed": seed,
        "nthread": 2,
        **LOSSES[use_case.loss],
    }
    parameters |= {str(name): value for name, value in use_case.model.parameters.items()}
    parameters["max_depth"] = int(parameters["max_depth"])
    if isinstance(use_case.working_point, TopItems):
        parameters["eval_metric"] = f"ndcg@{use_case.working_point.k}"
    elif use_case.objective == "ranking":
        parameters["eval_metric"] = "ndcg"
    if use_case.model.monotone:
        parameters["monotone_constraints"] = dict(use_case.model.monotone)
    return Recipe({**parameters, **(chosen or {})}, use_case.model.half_life_days)


def fit_split(dataset: Dataset, parts: Split, made: Recipe) -> Fitted:
    """Boost the train snapshots until validation no longer improves; then calibrate on validation.

    Raises:
        NightshiftError: when the error on validation is not finite, or explodes.
    """
    booster = fit_early_stopped(dataset, parts, made)
    if not has_probabilities(made):
        return Fitted(booster, None)
    rows = dataset.rows_of(parts.validation)
    found, labels = log_odds(booster, dataset.matrix[rows]), dataset.labels[rows]
    choice = choose(found, labels, dataset.keys[rows])
    calibration.attach(booster, METHODS[choice.method](found, labels))
    return Fitted(booster, choice)


def fit_whole(
    dataset: Dataset,
    made: Recipe,
    trees: int,
    method: CalibrationMethod | None,
    calibrated_on: npt.NDArray[np.bool_],
) -> xgb.Booster:
    """Boost ``trees`` trees on every row, calibrated by ``method`` on the rows ``calibrated_on``.

    The curve may not be fitted to what the trees have learned by heart: it is fitted to the
    log-odds that models without a row's entity give it.
    """
    everything = np.ones(len(dataset.labels), dtype=np.bool_)
    booster = fit_trees(dataset, everything, made, trees)
    if method is not None:
        fold = folds_of(dataset.keys, CALIBRATION_FOLDS)
        unseen = np.empty(len(dataset.labels))
        for number in range(CALIBRATION_FOLDS):
            rows = calibrated_on & (fold == number)
            without = fit_trees(dataset, fold != number, made, trees)
            unseen[rows] = log_odds(without, dataset.matrix[rows])
        curve = METHODS[method](unseen[calibrated_on], dataset.labels[calibrated_on])
        calibration.attach(booster, curve)
    return booster


def fit_early_stopped(
    dataset: Dataset,
    parts: Split,
    made: Recipe,
    callbacks: Sequence[xgb.callback.TrainingCallback] = (),
) -> xgb.Booster:
    """Boost until the validation metric has not improved for ``PATIENCE`` trees; keep the best.

    Of two classes that metric is ``shifted_log_loss``.

    Raises:
        NightshiftError: when the metric is not finite, or explodes.
    """
    data = _quantised(dataset, dataset.rows_of(parts.train), made)
    held_out = _quantised(dataset, dataset.rows_of(parts.validation), made, ref=data)
    booster = xgb.train(
        made.parameters,
        data,
        MAX_TREES,
        evals=[(held_out, VALIDATION)],
        early_stopping_rounds=PATIENCE,
        custom_metric=shifted_log_loss if has_probabilities(made) else None,
        verbose_eval=False,
        callbacks=[_Stable(), *callbacks],
    )
    return booster[: booster.best_iteration + 1]


def shifted_log_loss(scores: npt.NDArray[np.float32], data: xgb.DMatrix) -> tuple[str, float]:
    """Log loss once all log-odds are shifted so that the mean comes true, as calibration will do.

    Trees that are stopped by plain log loss are too few, or too many, by what they have to make up
    for another base rate on validation.

    Args:
        scores: (rows,) probabilities.
        data: with the labels, (rows,) of both classes.
    """
    labels = data.get_label().astype(np.float64)
    z = logit(np.clip(scores.astype(np.float64), 1e-7, 1 - 1e-7))
    shift = 0.0
    for _ in range(5):  # Newton's steps
        p = expit(z + shift)
        shift -= float((p - labels).sum() / np.maximum((p * (1 - p)).sum(), 1e-9))
    shifted = z + shift
    return "shifted_log_loss", float((np.logaddexp(0, shifted) - labels * shifted).mean())


def fit_trees(dataset: Dataset, rows: Mask, made: Recipe, trees: int) -> xgb.Booster:
    """Boost exactly ``trees`` trees."""
    return xgb.train(made.parameters, _quantised(dataset, rows, made), trees)


def has_probabilities(made: Recipe) -> bool:
    """Whether what the model gives are probabilities, which can be calibrated."""
    return bool(made.parameters["objective"] == LOSSES["logistic"]["objective"])


def model_bytes(booster: xgb.Booster) -> bytes:
    """The booster as UBJSON; equal boosters give equal bytes."""
    return bytes(booster.save_raw("ubj"))


def require_distinct(scores: Vector, what: str) -> None:
    """Refuse scores that tell nobody from anybody.

    Raises:
        NightshiftError: when they are all the same.
    """
    if len(scores) > 1 and np.ptp(scores) == 0:
        raise NightshiftError(
            f"{what} gives all {len(scores):,} rows the same score, {scores[0]:g}: no split of any "
            "feature was worth a tree",
            "check the features, or train once more rows have landed; the champion stays",
        )


class _Stable(xgb.callback.TrainingCallback):
    """Stops a training whose validation metric is not finite, or has exploded."""

    def after_iteration(
        self, model: xgb.Booster, epoch: int, evals_log: xgb.callback.TrainingCallback.EvalsLog
    ) -> bool:
        for metric, values in evals_log[VALIDATION].items():
            series = cast(list[float], values)
            is_finite = np.isfinite(series[-1])
            if is_finite and abs(series[-1]) <= EXPLODED * max(abs(series[0]), 1.0):
                continue
            raise NightshiftError(
                f"training does not converge: {metric} on validation was {series[0]:g} after the "
                f"first tree and is {series[-1]:g} after {epoch + 1}",
                "look for extreme labels and feature values, or choose another loss in the spec",
            )
        return False


def _quantised(
    dataset: Dataset, rows: Mask, made: Recipe, ref: xgb.QuantileDMatrix | None = None
) -> xgb.QuantileDMatrix:
    """The rows in XGBoost's bins, weighted by age; those of a ranking query by query."""
    order = np.flatnonzero(rows)
    queries: npt.NDArray[np.int64] | None = None
    if made.parameters["objective"].startswith("rank:"):
        lists = pd.MultiIndex.from_arrays([dataset.keys[order], dataset.snapshots[order]])
        queries = np.asarray(lists.factorize()[0], dtype=np.int64)
        by_query = np.argsort(queries, kind="stable")
        order, queries = order[by_query], queries[by_query]
    weights: Vector | None = None
    if made.half_life_days is not None and ref is None:
        days = dataset.snapshots[order]
        if queries is not None:  # a ranking's weights are of lists
            days = days[np.flatnonzero(np.diff(queries, prepend=-1))]
        age = (dataset.snapshots[rows].max() - days) / np.timedelta64(1, "D")
        weights = 0.5 ** (age / made.half_life_days)
    return xgb.QuantileDMatrix(
        dataset.matrix[order],
        dataset.labels[order],
        weight=weights,
        qid=queries,
        feature_names=list(dataset.feature_names),
        max_bin=made.parameters["max_bin"],
        ref=ref,
    )
