"""Totals that come true and intervals that hold what they promise, fitted to unseen entities."""

import math

import numpy as np

from nightshift.amounts import Interval, Vector


def total_factor(labels: Vector, amounts: Vector) -> float:
    """The labels' total over that of the amounts; 1 where that is not above 0.

    Args:
        labels: (rows,).
        amounts: (rows,) of models that did not learn from these rows' entities, or days.
    """
    total = float(amounts.sum())
    found = float(labels.sum()) / total if total > 0 else 1.0
    return found if found > 0 else 1.0


def conformalised(trees: bytes, share: float, truth: Vector, quantiles: Vector) -> Interval:
    """The interval whose two ends are moved until each is passed by few enough labels.

    Split conformal, each end for itself (Romano, Patterson and Candès, Conformalized Quantile
    Regression, 2019, theorem 2): of n exchangeable rows and another one, that one's label lies
    below with a probability of at most ``(1 - share) / 2``, and above likewise.

    Args:
        trees: of the two quantiles, as UBJSON.
        share: of the labels, that the interval shall hold.
        truth: (rows,) what the quantiles are of.
        quantiles: (rows, 2), by models that did not learn from these entities.
    """
    return Interval(
        share,
        trees,
        below=_conformal(quantiles[:, 0] - truth, share),
        above=_conformal(truth - quantiles[:, 1], share),
    )


def _conformal(excess: Vector, share: float) -> float:
    """The least move at which at most ``(1 - share) / 2`` of the rows lie outside, and one more."""
    rank = math.ceil((len(excess) + 1) * (1 + share) / 2)
    return float(np.sort(excess)[min(rank, len(excess)) - 1])
