"""Bootstrap intervals that resample whole entities.

Rows of one entity in several snapshots are not independent, so that a resample draws entities with
replacement and takes all rows of each. A resample is a row of weights: how often each row is in it.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Vector = npt.NDArray[np.float64]
Statistic = Callable[[Vector], Vector]
"""(resamples, rows) weights → (resamples,) figures, NaN where undefined."""

RESAMPLES = 200
_CELLS_AT_ONCE = 4_000_000


@dataclass(frozen=True)
class Estimate:
    """A figure and its 95 % bootstrap interval (percentiles)."""

    value: float
    low: float
    high: float


Estimates = dict[str, Estimate]


def draw[K](
    statistics: Mapping[K, Statistic], codes: Array, seed: int, resamples: int
) -> tuple[dict[K, float], dict[K, Vector]]:
    """Each statistic of the rows as they are, and of the same resamples of entities.

    Args:
        statistics: by any key.
        codes: (rows,) each row's entity, 0 … entities - 1; at least one row.
        seed: of the resampling.
        resamples: how many.
    """
    whole = np.ones((1, len(codes)))
    values = {key: float(statistic(whole)[0]) for key, statistic in statistics.items()}
    drawn: dict[K, list[Vector]] = {key: [] for key in statistics}
    for weights in _resampled_weights(codes, seed, resamples):
        for key, statistic in statistics.items():
            drawn[key].append(statistic(weights))
    return values, {key: np.concatenate(parts) for key, parts in drawn.items()}


def estimate(value: float, draws: Vector) -> Estimate:
    """``value`` with the middle 95 % of the draws that are defined."""
    finite = draws[np.isfinite(draws)]
    if not len(finite):
        return Estimate(value, float("nan"), float("nan"))
    low, high = np.percentile(finite, [2.5, 97.5])
    return Estimate(value, float(low), float(high))


def mean_of(values: Vector) -> Statistic:
    """The mean of a value a row."""
    return lambda weights: ratio(weights @ values, weights.sum(axis=1))


def ratio_of(numerators: Vector, denominators: Vector) -> Statistic:
    """The sum of one value a row over the sum of another."""
    return lambda weights: ratio(weights @ numerators, weights @ denominators)


def ratio(numerator: Vector, denominator: Vector) -> Vector:
    """The quotient, NaN where the denominator is not above 0."""
    undefined = np.full(np.shape(numerator), np.nan)
    return np.asarray(np.divide(numerator, denominator, out=undefined, where=denominator > 0))


def tied_groups(scores: Vector) -> tuple[Array, Array]:
    """The rows in ascending order of score, and where in it each run of equal scores starts."""
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
