"""How good scores are, with bootstrap intervals that resample whole entities.

Pure, and shared by training and gates. Rows of one entity in several snapshots are not
independent, so that a resample draws entities with replacement and takes all rows of each.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

Array = npt.NDArray[Any]
Vector = npt.NDArray[np.float64]
Statistic = Callable[[Vector], Vector]

RANKING = ("auc", "average_precision")
PROBABILITY = ("log_loss", "brier", "calibration_error")
LOWER_IS_BETTER = frozenset(PROBABILITY)
RESAMPLES = 200
BINS = 10
_CELLS_AT_ONCE = 4_000_000


@dataclass(frozen=True)
class Estimate:
    """A figure and its 95 % bootstrap interval (percentiles)."""

    value: float
    low: float
    high: float


Estimates = dict[str, Estimate]


@dataclass(frozen=True)
class Measured:
    """``scorers``: scorer → metric → estimate. ``differences``: baseline → metric → the first
    scorer's figure minus the baseline's, over the same resamples."""

    rows: int
    entities: int
    base_rate: Estimate
    scorers: dict[str, Estimates]
    differences: dict[str, Estimates]


def measure(
    labels: Array,
    entities: Array,
    scores: Mapping[str, Vector],
    probabilities: Sequence[str],
    seed: int,
    resamples: int = RESAMPLES,
) -> Measured:
    """Measure each scorer; the first one is compared with every other.

    Args:
        labels: (rows,) 0 or 1.
        entities: (rows,) the key that resamples keep together.
        scores: scorer → (rows,), higher is likelier to be 1.
        probabilities: the scorers whose scores are probabilities; the others are only ranked.
        seed: of the resampling.
        resamples: how many.
    """
    y = np.asarray(labels, dtype=np.float64)
    codes = pd.factorize(np.asarray(entities))[0]  # by appearance, whatever the keys are called
    statistics: dict[tuple[str, str], Statistic] = {("", "base_rate"): _mean_of(y)}
    for name, score in scores.items():
        statistics[name, "auc"] = auc_statistic(y, score)
        statistics[name, "average_precision"] = average_precision_statistic(y, score)
        if name in probabilities:
            clipped = np.clip(score, 1e-15, 1 - 1e-15)
            loss = -(y * np.log(clipped) + (1 - y) * np.log1p(-clipped))
            statistics[name, "log_loss"] = _mean_of(loss)
            statistics[name, "brier"] = _mean_of((score - y) ** 2)
            statistics[name, "calibration_error"] = calibration_statistic(y, score)
    whole = np.ones((1, len(y)))
    values = {key: float(f(whole)[0]) for key, f in statistics.items()}
    drawn: dict[tuple[str, str], list[Vector]] = {key: [] for key in statistics}
    for weights in _resampled_weights(codes, seed, resamples):
        for key, statistic in statistics.items():
            drawn[key].append(statistic(weights))
    draws = {key: np.concatenate(parts) for key, parts in drawn.items()}

    first, *others = scores
    return Measured(
        rows=len(y),
        entities=int(codes.max()) + 1 if len(codes) else 0,
        base_rate=_estimate(values["", "base_rate"], draws["", "base_rate"]),
        scorers={
            name: {m: _estimate(values[s, m], draws[s, m]) for s, m in statistics if s == name}
            for name in scores
        },
        differences={
            other: {
                m: _estimate(values[first, m] - values[other, m], draws[first, m] - draws[other, m])
                for s, m in statistics
                if s == other and (first, m) in statistics
            }
            for other in others
        },
    )


def auc_statistic(labels: Vector, scores: Vector) -> Statistic:
    """Area under the ROC curve, ties counted half (Mann-Whitney); NaN with one class only."""
    order, starts = _tied_groups(scores)
    y = labels[order]

    def statistic(weights: Vector) -> Vector:
        sorted_weights = weights[:, order]
        positive = np.add.reduceat(sorted_weights * y, starts, axis=1)
        negative = np.add.reduceat(sorted_weights * (1 - y), starts, axis=1)
        below = np.cumsum(negative, axis=1) - negative
        pairs = positive.sum(axis=1) * negative.sum(axis=1)
        wins = (positive * (below + negative / 2)).sum(axis=1)
        return _ratio(wins, pairs)

    return statistic


def average_precision_statistic(labels: Vector, scores: Vector) -> Statistic:
    """Precision summed over the steps of recall, as scikit-learn's average_precision_score."""
    order, starts = _tied_groups(-scores)
    y = labels[order]

    def statistic(weights: Vector) -> Vector:
        sorted_weights = weights[:, order]
        positive = np.add.reduceat(sorted_weights * y, starts, axis=1)
        everything = np.cumsum(np.add.reduceat(sorted_weights, starts, axis=1), axis=1)
        precision = _ratio(np.cumsum(positive, axis=1), everything)
        # A leading group of weight 0 has no precision and adds no recall.
        steps = np.where(positive > 0, positive * precision, 0.0)
        return _ratio(steps.sum(axis=1), positive.sum(axis=1))

    return statistic


def calibration_statistic(labels: Vector, scores: Vector, bins: int = BINS) -> Statistic:
    """Expected calibration error over equal-mass bins (Nixon et al. 2019).

    Equal scores share a bin. The mean over bins, weighted by mass, of |mean label - mean score|.
    """
    numbers = calibration_bins(scores, bins)
    order = np.argsort(numbers, kind="stable")
    starts = np.flatnonzero(np.diff(numbers[order], prepend=-1))
    residual = (labels - scores)[order]

    def statistic(weights: Vector) -> Vector:
        gaps = np.abs(np.add.reduceat(weights[:, order] * residual, starts, axis=1))
        return _ratio(gaps.sum(axis=1), weights.sum(axis=1))

    return statistic


def calibration_bins(scores: Vector, bins: int = BINS) -> npt.NDArray[np.int64]:
    """The equal-mass bin of each row, 0 … bins - 1."""
    ranks = np.searchsorted(np.sort(scores), scores, side="left")
    return np.asarray(ranks * bins // max(len(scores), 1), dtype=np.int64)


def _mean_of(losses: Vector) -> Statistic:
    return lambda weights: _ratio(weights @ losses, weights.sum(axis=1))


def _ratio(numerator: Vector, denominator: Vector) -> Vector:
    undefined = np.full(np.shape(numerator), np.nan)
    return np.asarray(np.divide(numerator, denominator, out=undefined, where=denominator > 0))


def _tied_groups(scores: Vector) -> tuple[Array, Array]:
    order = np.argsort(scores, kind="stable")
    ordered = scores[order]
    return order, np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1])))


def _resampled_weights(codes: Array, seed: int, resamples: int) -> Iterator[Vector]:
    generator = np.random.default_rng(seed)
    count = int(codes.max()) + 1
    at_once = max(1, _CELLS_AT_ONCE // len(codes))
    for start in range(0, resamples, at_once):
        rows = min(at_once, resamples - start)
        drawn = generator.integers(0, count, size=(rows, count))
        drawn += np.arange(rows)[:, None] * count
        times = np.bincount(drawn.ravel(), minlength=rows * count).reshape(rows, count)
        yield times[:, codes].astype(np.float64)


def _estimate(value: float, draws: Vector) -> Estimate:
    finite = draws[np.isfinite(draws)]
    if not len(finite):
        return Estimate(value, float("nan"), float("nan"))
    low, high = np.percentile(finite, [2.5, 97.5])
    return Estimate(value, float(low), float(high))
