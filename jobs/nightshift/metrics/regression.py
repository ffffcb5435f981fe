"""What foretold amounts are worth: how far off they are, and how well they are ordered."""

from collections.abc import Callable, Mapping

import numpy as np

from nightshift.metrics.bootstrap import Statistic, Vector, mean_of, ratio, tied_groups


def statistics(
    labels: Vector, scores: Vector, is_scale: bool, interval: Vector | None = None
) -> Mapping[str, Statistic]:
    """Each metric of a scorer.

    Args:
        labels: (rows,) amounts.
        scores: (rows,) higher is likelier to be more.
        is_scale: whether the scores are amounts themselves, in the labels' unit.
        interval: (rows, 2) low and high of each; None where the scorer gives none.
    """
    found = {"spearman": spearman(labels, scores), "gini": gini(labels, scores)}
    if is_scale:
        squared = mean_of((labels - scores) ** 2)
        found["mae"] = mean_of(np.abs(labels - scores))
        found["rmse"] = lambda weights: np.sqrt(squared(weights))
        found["r2"] = r2(labels, scores)
        found["total_bias"] = total_bias(labels, scores)
    if interval is not None:
        low, high = interval.T
        found["interval_coverage"] = mean_of(((low <= labels) & (labels <= high)).astype(float))
        found["interval_width"] = mean_of(high - low)
    return found


def r2(labels: Vector, scores: Vector) -> Statistic:
    """1 - squared error over that of the mean label; NaN where all labels are equal."""
    squared, centred = (labels - scores) ** 2, labels - labels.mean()

    def statistic(weights: Vector) -> Vector:
        count = weights.sum(axis=1)
        spread = weights @ centred**2 - ratio((weights @ centred) ** 2, count)
        return 1 - ratio(weights @ squared, spread)

    return statistic


def total_bias(labels: Vector, scores: Vector) -> Statistic:
    """The sum of the scores over that of the labels, minus 1; NaN where nothing is to be summed."""
    return lambda weights: ratio(weights @ scores, weights @ labels) - 1


def spearman(labels: Vector, scores: Vector) -> Statistic:
    """Correlation of the ranks, equal values sharing their mean rank."""
    rank_labels, rank_scores = _ranks(labels), _ranks(scores)

    def statistic(weights: Vector) -> Vector:
        x, y = rank_labels(weights), rank_scores(weights)
        count = weights.sum(axis=1, keepdims=True)
        x = x - (weights * x).sum(axis=1, keepdims=True) / count
        y = y - (weights * y).sum(axis=1, keepdims=True) / count
        together = (weights * x * y).sum(axis=1)
        return ratio(together, np.sqrt((weights * x**2).sum(axis=1) * (weights * y**2).sum(axis=1)))

    return statistic


def gini(labels: Vector, scores: Vector) -> Statistic:
    """The Gini coefficient of the labels in the order of the scores, over that in their own order.

    1 for a perfect order, 0 for a random one; 2 AUC - 1 for labels of 0 and 1. It is a covariance
    with the ranks (Lerman and Yitzhaki 1984), so that equal scores count as in random order.
    """
    by_scores, by_labels = _ranks(scores), _ranks(labels)

    def statistic(weights: Vector) -> Vector:
        count = weights.sum(axis=1, keepdims=True)
        mean = (weights @ labels)[:, None] / count
        centred = weights * (labels - mean)
        return ratio(
            (centred * by_scores(weights)).sum(axis=1), (centred * by_labels(weights)).sum(axis=1)
        )

    return statistic


def _ranks(values: Vector) -> Callable[[Vector], Vector]:
    """(resamples, rows) weights → (resamples, rows) mean ranks within each resample."""
    order, starts = tied_groups(values)
    sizes = np.diff(starts, append=len(values))
    place = np.argsort(order, kind="stable")

    def ranks(weights: Vector) -> Vector:
        mass = np.add.reduceat(weights[:, order], starts, axis=1)
        middle = np.cumsum(mass, axis=1) - mass / 2
        return np.repeat(middle, sizes, axis=1)[:, place]

    return ranks
