"""XGBoost, fitted so that the same inputs give the same bytes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pandas as pd
import xgboost as xgb
from scipy.special import expit, logit

from nightshift import amounts, calibration
from nightshift.booster import Vector, log_odds, predict
from nightshift.errors import NightshiftError
from nightshift.spec import CalibrationMethod, Loss, TopItems, UseCase
from nightshift.training.amounts import conformalised, total_factor
from nightshift.training.calibration import METHODS, Choice, choose, folds_of
from nightshift.training.dataset import Dataset, release
from nightshift.training.split import Split

Mask = npt.NDArray[np.bool_]

MAX_TREES = 1000
PATIENCE = 50
VALIDATION = "validation"
# How many times its first value an error may become before it is called exploding.
EXPLODED = 100.0
# Half-models, each calibrated on the other half's entities, cost one more fit in all.
CALIBRATION_FOLDS = 2
# Of the float32 matrix, of which XGBoost has a few in memory at once: smaller ones take longer.
BATCH_BYTES = 2**26

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


LOSS_PARAMETERS = frozenset(name for each in LOSSES.values() for name in each) | {
    "monotone_constraints"
}


@dataclass(frozen=True)
class Recipe:
    """All that a model is made by, beside its rows and the number of its trees.

    Attributes:
        parameters: XGBoost's, every one that is not its default.
        half_life_days, label_cap: as ``nightshift.spec.Model`` has them.
        exposure: what the labels are learned as multiples of; None for amounts as they are.
        non_negative: no amount is foretold below 0, for no label is.
    """

    parameters: dict[str, Any]
    half_life_days: int | None
    label_cap: float | None = None
    exposure: amounts.Exposure | None = None
    non_negative: bool = False


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
    fitted = use_case.model
    exposure = None
    if fitted.exposure is not None:
        exposure = amounts.Exposure(
            use_case.feature_names.index(fitted.exposure.feature),
            fitted.exposure.scale,
            fitted.exposure.floor,
        )
    return Recipe(
        {**parameters, **(chosen or {})},
        fitted.half_life_days,
        fitted.label_cap,
        exposure,
        use_case.is_non_negative,
    )


def fit_split(dataset: Dataset, parts: Split, made: Recipe) -> Fitted:
    """Boost the train snapshots until validation no longer improves; then calibrate on validation:
    a curve of probabilities, the factor of amounts.

    Raises:
        NightshiftError: when the error on validation is not finite, or explodes.
    """
    booster = fit_early_stopped(dataset, parts, made)
    rows = dataset.rows_of(parts.validation)
    if has_amounts(made):
        found = _foretold(booster, dataset.vectors(rows), made)
        factor = total_factor(dataset.labels[rows], found)
        amounts.attach(booster, _carried(made, factor))
    if not has_probabilities(made):
        return Fitted(booster, None)
    found, labels = log_odds(booster, dataset.vectors(rows)), dataset.labels[rows]
    choice = choose(found, labels, dataset.keys[rows])
    calibration.attach(booster, METHODS[choice.method](found, labels))
    return Fitted(booster, choice)


def fit_whole(
    dataset: Dataset,
    made: Recipe,
    trees: int,
    method: CalibrationMethod | None,
    calibrated_on: npt.NDArray[np.bool_],
    quantile_trees: tuple[float, int] | None = None,
) -> xgb.Booster:
    """Boost ``trees`` trees on every row, calibrated by ``method`` on the rows ``calibrated_on``.

    The curve may not be fitted to what the trees have learned by heart: it is fitted to the
    log-odds that models without a row's entity give it. So are the factor and the interval of
    amounts.

    Args:
        quantile_trees: the share that an interval holds, and how many trees its quantiles are.
    """
    everything = np.ones(len(dataset.labels), dtype=np.bool_)
    booster = fit_trees(dataset, everything, made, trees)
    if method is not None:
        fold = folds_of(dataset.keys, CALIBRATION_FOLDS)
        unseen = np.empty(len(dataset.labels))
        for number in range(CALIBRATION_FOLDS):
            rows = calibrated_on & (fold == number)
            without = fit_trees(dataset, fold != number, made, trees)
            unseen[rows] = log_odds(without, dataset.vectors(rows))
        curve = METHODS[method](unseen[calibrated_on], dataset.labels[calibrated_on])
        calibration.attach(booster, curve)
    if has_amounts(made):
        _attach_amounts(booster, dataset, made, trees, calibrated_on, quantile_trees)
    return booster


def _attach_amounts(
    booster: xgb.Booster,
    dataset: Dataset,
    made: Recipe,
    trees: int,
    calibrated_on: Mask,
    quantile_trees: tuple[float, int] | None,
) -> None:
    """Give a booster of every row its factor and its interval, by models of half the entities."""
    fold = folds_of(dataset.keys, CALIBRATION_FOLDS)
    foretold, ends = np.empty(len(dataset.labels)), np.empty((len(dataset.labels), 2))
    everything = np.ones(len(dataset.labels), dtype=np.bool_)
    for number in range(CALIBRATION_FOLDS):
        rows, others = calibrated_on & (fold == number), fold != number
        vectors = dataset.vectors(rows)
        foretold[rows] = _foretold(fit_trees(dataset, others, made, trees), vectors, made)
        if quantile_trees is not None:
            half = _fit_quantiles(dataset, others, made, *quantile_trees)
            ends[rows] = amounts.quantiles(half, vectors)
    labels = dataset.labels[calibrated_on]
    interval = None
    if quantile_trees is not None:
        share, _ = quantile_trees
        whole = model_bytes(_fit_quantiles(dataset, everything, made, *quantile_trees))
        truth = _logs(dataset, made).labels[calibrated_on]
        interval = conformalised(whole, share, truth, ends[calibrated_on])
    factor = total_factor(labels, foretold[calibrated_on])
    amounts.attach(booster, _carried(made, factor, interval))


def _carried(
    made: Recipe, factor: float, interval: amounts.Interval | None = None
) -> amounts.Amounts:
    return amounts.Amounts(factor, interval, made.exposure, made.non_negative)


def _foretold(booster: xgb.Booster, matrix: npt.NDArray[np.float32], made: Recipe) -> Vector:
    """The amounts of trees without a factor yet, (rows,)."""
    amounts.attach(booster, _carried(made, 1.0))
    return predict(booster, matrix)


def attach_interval(
    booster: xgb.Booster, dataset: Dataset, parts: Split, made: Recipe, share: float
) -> int:
    """Give the booster of a split an interval of its train snapshots, moved by its validation.

    Returns:
        How many trees its quantiles are.

    Raises:
        NightshiftError: when the rows are on Spark, or the quantiles do not converge.
    """
    if dataset.memory == "spark":
        raise NightshiftError(
            "intervals are boosted in memory or in files, and this training is on Spark",
            "set NIGHTSHIFT_TRAINING_MEMORY=external, or leave the interval out of the spec",
        )
    logs = _logs(dataset, made)
    trees = fit_early_stopped(logs, parts, _quantile_recipe(made, share))
    rows = dataset.rows_of(parts.validation)
    ends = amounts.quantiles(trees, dataset.vectors(rows))
    interval = conformalised(model_bytes(trees), share, logs.labels[rows], ends)
    carried = amounts.of(booster) or _carried(made, 1.0)
    amounts.attach(booster, replace(carried, interval=interval))
    return int(trees.num_boosted_rounds())


def _fit_quantiles(
    dataset: Dataset, rows: Mask, made: Recipe, share: float, trees: int
) -> xgb.Booster:
    return fit_trees(_logs(dataset, made), rows, _quantile_recipe(made, share), trees)


def _logs(dataset: Dataset, made: Recipe) -> Dataset:
    """The labels, or their multiples of the exposure, as their signed log."""
    labels = dataset.labels
    if made.exposure is not None:
        labels = labels / made.exposure.of(dataset.matrix)
    return replace(dataset, labels=amounts.signed_log(labels))


def _quantile_recipe(made: Recipe, share: float) -> Recipe:
    """The same trees for two quantiles of the labels' logarithm, in which none is too large."""
    other = {name: value for name, value in made.parameters.items() if name not in LOSS_PARAMETERS}
    tail = (1 - share) / 2
    quantiles = {
        "objective": "reg:quantileerror",
        "quantile_alpha": [tail, 1 - tail],
        "min_child_weight": 20,
    }
    return Recipe({**other, **quantiles}, made.half_life_days)


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
    learn, stop_by = dataset.rows_of(parts.train), dataset.rows_of(parts.validation)
    callbacks = [_Stable(), *callbacks]
    dataset = _learnable(dataset, learn, made)
    if dataset.memory == "spark":
        from nightshift.training import distributed

        booster = distributed.boost(
            dataset,
            made.parameters,
            MAX_TREES,
            learned(dataset, learn, made),
            learned(dataset, stop_by, made, is_weighted=False),
            PATIENCE,
            callbacks,
            VALIDATION,
        )
        return booster[: booster.best_iteration + 1]
    data = _quantised(dataset, learn, made)
    held_out = _quantised(dataset, stop_by, made, ref=data)
    booster = xgb.train(
        made.parameters,
        data,
        MAX_TREES,
        evals=[(held_out, VALIDATION)],
        early_stopping_rounds=PATIENCE,
        custom_metric=shifted_log_loss if has_probabilities(made) else None,
        verbose_eval=False,
        callbacks=callbacks,
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
    dataset = _learnable(dataset, rows, made)
    if dataset.memory == "spark":
        from nightshift.training import distributed

        return distributed.boost(dataset, made.parameters, trees, learned(dataset, rows, made))
    return xgb.train(made.parameters, _quantised(dataset, rows, made), trees)


def _learnable(dataset: Dataset, learn: Mask, made: Recipe) -> Dataset:
    """The labels as they are learned: multiples of the exposure, capped, and where the loss knows
    no amount below 0, 0.

    The factor that is fitted to the labels as they are makes up for what that takes away.
    """
    labels = dataset.labels
    if made.exposure is not None:
        labels = labels / made.exposure.of(dataset.matrix)
    if made.parameters["objective"] == LOSSES["tweedie"]["objective"]:
        labels = np.maximum(labels, 0)
    if made.label_cap is not None:
        labels = np.minimum(labels, np.quantile(labels[learn], made.label_cap))
    return replace(dataset, labels=labels)


def has_amounts(made: Recipe) -> bool:
    """Whether what the model gives are amounts, which have a total."""
    return str(made.parameters["objective"]).startswith("reg:")


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


class _Batches(xgb.DataIter):
    """Rows of a dataset as XGBoost asks for them, again and again.

    Args:
        order: positions of the rows, (rows,).
        weights: (rows,); of a ranking (lists,).
        queries: (rows,) each row's list, 0 … lists - 1, without a gap; None unless they are ranked.
        cache: where XGBoost keeps its bins; None in memory.
    """

    def __init__(
        self,
        dataset: Dataset,
        order: npt.NDArray[np.intp],
        weights: Vector | None,
        queries: npt.NDArray[np.int64] | None,
        cache: Path | None,
    ) -> None:
        super().__init__(cache_prefix=None if cache is None else str(cache), on_host=False)
        self.dataset, self.order, self.weights, self.queries = dataset, order, weights, queries
        self.is_slice = len(order) > 0 and order[-1] - order[0] == len(order) - 1
        self.is_slice &= bool((np.diff(order) == 1).all())
        fitting = BATCH_BYTES // (dataset.matrix.itemsize * dataset.matrix.shape[1])
        self.size = len(order) if self.is_slice and cache is None else max(fitting, 1)
        self.at = 0

    def reset(self) -> None:
        self.at = 0
        release(self.dataset.matrix)

    def next(self, input_data: Callable[..., None]) -> bool:
        start, stop = self.at, min(self.at + self.size, len(self.order))
        if start == stop:
            return False
        queries, weights = self.queries, self.weights
        if queries is not None:
            # XGBoost would make two lists of one that two batches share
            stop = int(np.searchsorted(queries, queries[stop - 1], side="right"))
            lists = slice(queries[start], queries[stop - 1] + 1)
            weights = None if weights is None else weights[lists]
        elif weights is not None:
            weights = weights[start:stop]
        rows = self.order[start:stop]
        # of a slice there is no copy
        chosen = slice(rows[0], rows[-1] + 1) if self.is_slice else rows
        release(self.dataset.matrix)
        input_data(
            data=np.asarray(self.dataset.matrix[chosen]),
            label=self.dataset.labels[chosen],
            weight=weights,
            qid=None if queries is None else queries[start:stop],
            feature_names=list(self.dataset.feature_names),
        )
        self.at = stop
        return True


def _quantised(
    dataset: Dataset, rows: Mask, made: Recipe, ref: xgb.DMatrix | None = None
) -> xgb.DMatrix:
    """The rows in XGBoost's bins, weighted by age; those of a ranking query by query.

    Bins, and so models, are the same bit by bit in memory and in files.
    """
    order, weights, queries = learned(dataset, rows, made, is_weighted=ref is None)
    max_bin = made.parameters["max_bin"]
    if dataset.workspace is None:
        batches = _Batches(dataset, order, weights, queries, None)
        return xgb.QuantileDMatrix(batches, max_bin=max_bin, ref=ref)
    batches = _Batches(dataset, order, weights, queries, dataset.workspace / "bins")
    return xgb.ExtMemQuantileDMatrix(batches, max_bin=max_bin, ref=ref)


def learned(
    dataset: Dataset, rows: Mask, made: Recipe, is_weighted: bool = True
) -> tuple[npt.NDArray[np.intp], Vector | None, npt.NDArray[np.int64] | None]:
    """What is learned from: the rows' positions, their weights and their lists.

    Of a ranking the rows of a list follow one another, and weights are of lists, (lists,).
    """
    order = np.flatnonzero(rows)
    queries: npt.NDArray[np.int64] | None = None
    if made.parameters["objective"].startswith("rank:"):
        lists = pd.MultiIndex.from_arrays([dataset.keys[order], dataset.snapshots[order]])
        queries = np.asarray(lists.factorize()[0], dtype=np.int64)
        by_query = np.argsort(queries, kind="stable")
        order, queries = order[by_query], queries[by_query]
    weights: Vector | None = None
    if made.half_life_days is not None and is_weighted:
        days = dataset.snapshots[order]
        if queries is not None:  # a ranking's weights are of lists
            days = days[np.flatnonzero(np.diff(queries, prepend=-1))]
        age = (dataset.snapshots[rows].max() - days) / np.timedelta64(1, "D")
        weights = 0.5 ** (age / made.half_life_days)
    if made.exposure is not None:
        size = np.sqrt(made.exposure.of(dataset.vectors(order)))
        weights = size if weights is None else weights * size
    return order, weights, queries
