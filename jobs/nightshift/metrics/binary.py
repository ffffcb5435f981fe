"""What scores of two classes are worth: by order, as probabilities, and at a working point."""

import numpy as np
import numpy.typing as npt
import pandas as pd

from nightshift.metrics.bootstrap import (
    Array,
    Statistic,
    Vector,
    mean_of,
    ratio,
    ratio_of,
    tied_groups,
)
from nightshift.spec import Threshold, TopShare

BINS = 10
LIFTS = (10, 20, 30)

Selected = npt.NDArray[np.bool_]


def statistics(
    labels: Vector, scores: Vector, is_scale: bool, selected: Selected | None
) -> dict[str, Statistic]:
    """Each metric of a scorer.

    Args:
        labels: (rows,) 0 or 1.
        scores: (rows,) higher is likelier to be 1.
        is_scale: whether the scores are probabilities.
        selected: (rows,) which lie beyond the working point; None without one.
    """
    found: dict[str, Statistic] = {
        "auc": auc(labels, scores),
        "average_precision": average_precision(labels, scores),
    }
    for percent in LIFTS:
        found[f"lift_top_{percent}"] = lift(labels, scores, percent / 100)
    if is_scale:
        clipped = np.clip(scores, 1e-15, 1 - 1e-15)
        loss = -(labels * np.log(clipped) + (1 - labels) * np.log1p(-clipped))
        found["log_loss"] = mean_of(loss)
        found["brier"] = mean_of((scores - labels) ** 2)
        found["calibration_error"] = calibration_error(labels, scores)
    if selected is not None:
        found |= selection(labels, selected)
    return found


def selection(labels: Vector, selected: Selected) -> dict[str, Statistic]:
    """Each metric of what is selected, (rows,), by whatever."""
    hits, chosen = labels * selected, selected.astype(np.float64)
    return {
        "selection_rate": mean_of(chosen),
        "precision": ratio_of(hits, chosen),
        "recall": ratio_of(hits, labels),
        "f1": ratio_of(2 * hits, chosen + labels),
    }


def select(working_point: Threshold | TopShare, scores: Vector) -> tuple[float, Selected]:
    """The lowest score that is selected, and which of ``scores`` are; equal scores go together."""
    if isinstance(working_point, Threshold):
        threshold = working_point.score
    else:
        count = max(1, round(working_point.share * len(scores)))
        threshold = float(np.partition(scores, len(scores) - count)[len(scores) - count])
    return threshold, scores >= threshold


def select_entities(
    k: int, scores: Vector, entities: Array, snapshots: Array
) -> tuple[float, Selected]:
    """The lowest score that any night selects, and which rows its night does: those that score at
    least as high as the entity with the k-th highest best score of that night.

    Args:
        entities, snapshots: (rows,) whose a row is, and of which night.
    """
    selected = np.zeros(len(scores), dtype=np.bool_)
    lowest = np.inf
    for night in np.unique(snapshots):
        rows = np.flatnonzero(snapshots == night)
        best = np.sort(_best(scores[rows], pd.factorize(entities[rows])[0]))
        threshold = float(best[max(0, len(best) - k)])
        selected[rows] = scores[rows] >= threshold
        lowest = min(lowest, threshold)
    return float(lowest), selected


def entity_precision(
    k: int, labels: Vector, scores: Vector, entities: Array, snapshots: Array
) -> Statistic:
    """Card precision@k of the Fraud Detection Handbook (Le Borgne et al. 2022), for any entity.

    Each night the entities are ranked by their highest score, and the share of those with a label
    1 that night is taken among the first k (of fewer entities, among all); the figure is the mean
    over the nights. An entity that was found so is known, and left out of the nights after. Of
    equal scores those without come first.

    Args:
        entities: (rows,) codes; resamples keep their rows together.
        snapshots: (rows,) of which night a row is.
    """
    count = int(entities.max()) + 1
    first = np.zeros(count, dtype=np.intp)
    first[entities[::-1]] = np.arange(len(entities))[::-1]  # a row of each
    nights: list[tuple[Array, Vector]] = []
    for night in np.unique(snapshots):
        rows = np.flatnonzero(snapshots == night)
        there, codes = np.unique(entities[rows], return_inverse=True)
        best, found = _best(scores[rows], codes), _best(labels[rows], codes)
        order = np.lexsort((found, -best))
        nights.append((there[order], found[order]))

    def statistic(weights: Vector) -> Vector:
        times = weights[:, first]
        total = np.zeros(len(weights))
        for ranked, found in nights:
            there = times[:, ranked]
            before = np.cumsum(there, axis=1) - there
            shown = np.clip(k - before, 0, there)
            asked = np.minimum(k, there.sum(axis=1))
            total += np.nan_to_num(ratio((shown * found).sum(axis=1), asked))
            times[:, ranked] = np.where((shown > 0) & (found > 0), 0.0, there)
        return total / len(nights)

    return statistic


def _best(values: Vector, codes: Array) -> Vector:
    """The greatest value of each code, 0 … codes."""
    best = np.full(int(codes.max()) + 1, -np.inf)
    np.maximum.at(best, codes, values)
    return best


def auc(labels: Vector, scores: Vector) -> Statistic:
    """Area under the ROC curve, ties counted half (Mann-Whitney); NaN with one class only."""
    order, starts = tied_groups(scores)
    y = labels[order]

    def statistic(weights: Vector) -> Vector:
        sorted_weights = weights[:, order]
        positive = np.add.reduceat(sorted_weights * y, starts, axis=1)
        negative = np.add.reduceat(sorted_weights * (1 - y), starts, axis=1)
        below = np.cumsum(negative, axis=1) - negative
        pairs = positive.sum(axis=1) * negative.sum(axis=1)
        wins = (positive * (below + negative / 2)).sum(axis=1)
        return ratio(wins, pairs)

    return statistic


def average_precision(labels: Vector, scores: Vector) -> Statistic:
    """Precision summed over the steps of recall, as scikit-learn's average_precision_score."""
    order, starts = tied_groups(-scores)
    y = labels[order]

    def statistic(weights: Vector) -> Vector:
        sorted_weights = weights[:, order]
        positive = np.add.reduceat(sorted_weights * y, starts, axis=1)
        everything = np.cumsum(np.add.reduceat(sorted_weights, starts, axis=1), axis=1)
        precision = ratio(np.cumsum(positive, axis=1), everything)
        # A leading group of weight 0 has no precision and adds no recall.
        steps = np.where(positive > 0, positive * precision, 0.0)
        return ratio(steps.sum(axis=1), positive.sum(axis=1))

    return statistic


def lift(labels: Vector, scores: Vector, share: float) -> Statistic:
    """The rate of label 1 among the highest ``share`` of the scores, over the rate among all.

    Of equal scores at the edge each row counts for as much of itself as the share has room for:
    the expectation over their random order.
    """
    order, starts = tied_groups(-scores)
    sizes = np.diff(starts, append=len(scores))
    part = np.clip((share * len(scores) - starts) / sizes, 0, 1)
    within = np.empty(len(scores))
    within[order] = np.repeat(part, sizes)
    top, everyone = ratio_of(labels * within, within), mean_of(labels)
    return lambda weights: ratio(top(weights), everyone(weights))


def calibration_error(labels: Vector, scores: Vector, bins: int = BINS) -> Statistic:
    """Expected calibration error over equal-mass bins (Nixon et al. 2019).

    Equal scores share a bin. The mean over bins, weighted by mass, of |mean label - mean score|.
    """
    residuals = np.zeros((len(scores), bins))
    residuals[np.arange(len(scores)), calibration_bins(scores, bins)] = labels - scores

    def statistic(weights: Vector) -> Vector:
        return ratio(np.abs(weights @ residuals).sum(axis=1), weights.sum(axis=1))

    return statistic


def calibration_bins(scores: Vector, bins: int = BINS) -> npt.NDArray[np.int64]:
    """The equal-mass bin of each row, 0 … bins - 1."""
    ranks = np.searchsorted(np.sort(scores), scores, side="left")
    return np.asarray(ranks * bins // max(len(scores), 1), dtype=np.int64)
