"""The curves that a person judges scores by: calibration, lift, ROC and precision over recall."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from sklearn.metrics import precision_recall_curve, roc_curve

from nightshift.booster import Vector
from nightshift.metrics import Estimate
from nightshift.metrics.binary import calibration_bins
from nightshift.metrics.bootstrap import RESAMPLES, Array, draw, estimate, mean_of, ratio_of

POINTS = 200


@dataclass(frozen=True)
class Decile:
    """Rows of one tenth by score. ``observed`` is their mean label, ``lift`` that over the mean
    label of all; ``score`` their mean score."""

    rows: int
    score: float
    observed: Estimate
    lift: Estimate


def deciles(labels: Vector, entities: Array, scores: Vector, seed: int) -> tuple[Decile, ...]:
    """The tenths of the rows, lowest scores first, with bootstrap intervals; equal scores together.

    Args:
        labels: (rows,).
        entities: (rows,) the key that resamples keep together.
        scores: (rows,).
        seed: of the resampling.
    """
    bins = calibration_bins(scores)
    used = [number for number in range(10) if (bins == number).any()]
    codes = pd.factorize(entities)[0]
    y = labels.astype(np.float64)
    inside = {number: (bins == number).astype(np.float64) for number in used}
    statistics = {number: ratio_of(y * rows, rows) for number, rows in inside.items()}
    values, draws = draw({-1: mean_of(y), **statistics}, codes, seed, RESAMPLES)
    with np.errstate(invalid="ignore", divide="ignore"):
        return tuple(
            Decile(
                int(inside[number].sum()),
                float(scores[bins == number].mean()),
                estimate(values[number], draws[number]),
                estimate(float(np.divide(values[number], values[-1])), draws[number] / draws[-1]),
            )
            for number in used
        )


def roc(labels: Vector, scores: Vector) -> tuple[Vector, Vector]:
    """False and true positive rates, at most ``POINTS`` of each."""
    false_positive, true_positive, _ = roc_curve(labels, scores)
    return _thinned(false_positive, true_positive)


def precision_recall(labels: Vector, scores: Vector) -> tuple[Vector, Vector]:
    """Recall and precision, at most ``POINTS`` of each, by falling recall."""
    precision, recall, _ = precision_recall_curve(labels, scores)
    return _thinned(recall[:-1], precision[:-1])  # the last is (0, 1) by convention, of no row


def _thinned(x: Vector, y: Vector) -> tuple[Vector, Vector]:
    some = np.unique(np.linspace(0, len(x) - 1, POINTS).round().astype(int))
    return x[some], y[some]
