"""Which curve makes log-odds come true: Platt's line or an isotonic one, chosen out of sample."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.optimize import minimize
from scipy.special import expit, logit
from sklearn.isotonic import IsotonicRegression

from nightshift.calibration import Calibration, Vector
from nightshift.spec import CalibrationMethod

FOLDS = 5
# Where a model ranks the wrong way round, its order is kept all the same: gates shall see it.
LEAST_SLOPE = 0.05


@dataclass(frozen=True)
class Choice:
    """``losses``: log loss of rows whose entities the curve was not fitted to, by method, and of
    the booster's own probabilities as ``none``. ``method``: the one of the lowest."""

    method: CalibrationMethod
    losses: dict[str, float]


def folds_of(entities: npt.NDArray[np.str_], folds: int) -> npt.NDArray[np.int64]:
    """Each row's fold, (rows,) 0 … folds - 1: all rows of an entity in one.

    Entities are dealt in the order in which they appear, so that the folds do not depend on what
    they are called.
    """
    return np.asarray(pd.factorize(entities)[0] % folds, dtype=np.int64)


def choose(log_odds: Vector, labels: Vector, entities: npt.NDArray[np.str_]) -> Choice:
    """Compare the methods by cross-validation over entities; where they are equal, Platt's.

    Args:
        log_odds: (rows,) of a booster that did not learn from these rows.
        labels: (rows,) 0 or 1.
        entities: (rows,) the key that folds keep together.
    """
    fold = folds_of(entities, FOLDS)
    totals: dict[str, float] = {"none": float(_log_losses(expit(log_odds), labels).sum())}
    for method, fit in METHODS.items():
        totals[method] = 0.0
        for held_out in np.unique(fold):
            rows = fold == held_out
            found = fit(log_odds[~rows], labels[~rows]).probabilities(log_odds[rows])
            totals[method] += float(_log_losses(found, labels[rows]).sum())
    losses = {method: total / len(labels) for method, total in totals.items()}
    return Choice("isotonic" if losses["isotonic"] < losses["platt"] else "platt", losses)


def fit_platt(log_odds: Vector, labels: Vector) -> Calibration:
    """A line in log-odds, by maximum likelihood on Platt's (1999) smoothed targets."""
    ones = float(labels.sum())
    zeros = len(labels) - ones
    targets = np.where(labels > 0, (ones + 1) / (ones + 2), 1 / (zeros + 2))

    def loss(line: Vector) -> tuple[float, Vector]:
        z = line[0] * log_odds + line[1]
        residual = expit(z) - targets
        gradient = np.array([residual @ log_odds, residual.sum()])
        return float((np.logaddexp(0, z) - targets * z).sum() / len(z)), gradient / len(z)

    found = minimize(
        loss,
        np.array([1.0, 0.0]),
        jac=True,
        method="L-BFGS-B",
        bounds=[(LEAST_SLOPE, None), (None, None)],
        options={"gtol": 1e-9, "ftol": 1e-15},
    )
    slope, intercept = (float(value) for value in found.x)
    return Calibration("platt", (0.0,), (intercept,), slope)


def fit_isotonic(log_odds: Vector, labels: Vector) -> Calibration:
    """Pool adjacent violators; a knot at either end of each pooled block.

    A tenth of it is Platt's line. So a block still rises, where the usual one is level and would
    blur the order that the booster has found, and one of a single class is not certain.
    """
    rates = IsotonicRegression().fit_transform(log_odds, labels)
    order = np.argsort(log_odds, kind="stable")
    x, rate = log_odds[order], rates[order]
    is_end = np.ones(len(x), dtype=np.bool_)
    is_end[1:-1] = (rate[1:-1] != rate[:-2]) | (rate[1:-1] != rate[2:])
    knots, first = np.unique(x[is_end], return_index=True)
    mixed = 0.9 * rate[is_end][first] + 0.1 * fit_platt(log_odds, labels).probabilities(knots)
    return Calibration("isotonic", tuple(knots.tolist()), tuple(logit(mixed).tolist()), 1.0)


METHODS: Mapping[CalibrationMethod, Callable[[Vector, Vector], Calibration]] = {
    "platt": fit_platt,
    "isotonic": fit_isotonic,
}


def _log_losses(probabilities: Vector, labels: Vector) -> Vector:
    clipped = np.clip(probabilities, 1e-15, 1 - 1e-15)
    return -(labels * np.log(clipped) + (1 - labels) * np.log1p(-clipped))
