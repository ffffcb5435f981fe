"""What a model makes of its features: single rows' contributions, and the score by each value."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import xgboost as xgb

from nightshift.booster import Matrix, Vector, contributions

EXPLAINED_ROWS = 2_000
PARTIAL_ROWS = 500
GRID = 25


@dataclass(frozen=True)
class PartialDependence:
    """The score when one feature is set to each value of ``grid``, all else left as it is.

    ``mean``, ``low`` and ``high``, (grid,), are over the rows: the mean, the 10th and the 90th
    percentile (Friedman 2001; Goldstein et al. 2015).
    """

    feature: str
    grid: Vector
    mean: Vector
    low: Vector
    high: Vector


@dataclass(frozen=True)
class Explanation:
    """Exact SHAP values of some rows, in the booster's own unit: log-odds of a probability.

    Attributes:
        importance: feature → mean of the absolute contribution, largest first.
        values: (rows, features) of the features in that order, NaN for null.
        contributions: of the same shape.
        partial: of the most important features.
    """

    importance: dict[str, float]
    values: Matrix
    contributions: Vector
    partial: tuple[PartialDependence, ...]


def explain(
    booster: xgb.Booster,
    scorer: Callable[[Matrix], Vector],
    feature_names: tuple[str, ...],
    matrix: Matrix,
    seed: int,
    partial: int = 4,
) -> Explanation:
    """Explain a model by some of the rows, which are chosen by ``seed``.

    Args:
        booster: the model.
        scorer: (rows, features) → (rows,) its scores, as they are published.
        feature_names: the columns of ``matrix``.
        matrix: (rows, features).
        seed: of the choice.
        partial: of how many features the partial dependence is told.
    """
    random = np.random.default_rng(seed)
    count = min(EXPLAINED_ROWS, len(matrix))
    rows = matrix[np.sort(random.choice(len(matrix), count, replace=False))]
    found = contributions(booster, rows)[:, : len(feature_names)]
    strength = np.abs(found).mean(axis=0)
    order = np.argsort(-strength, kind="stable")
    return Explanation(
        importance={feature_names[i]: float(strength[i]) for i in order},
        values=rows[:, order],
        contributions=found[:, order],
        partial=tuple(
            _partial(feature_names[i], i, rows[:PARTIAL_ROWS], scorer)
            for i in order[:partial]
            if strength[i] > 0 and not np.isnan(rows[:, i]).all()
        ),
    )


def _partial(
    feature: str, column: np.intp, rows: Matrix, scorer: Callable[[Matrix], Vector]
) -> PartialDependence:
    known = rows[:, column][~np.isnan(rows[:, column])]
    # without the outermost values, where there is hardly a row
    grid = np.unique(np.quantile(known, np.linspace(0.02, 0.98, GRID)).astype(np.float32))
    repeated = np.repeat(rows, len(grid), axis=0)
    repeated[:, column] = np.tile(grid, len(rows))
    scores: npt.NDArray[np.float64] = scorer(repeated).reshape(len(rows), len(grid))
    low, high = np.quantile(scores, (0.1, 0.9), axis=0)
    return PartialDependence(feature, grid.astype(np.float64), scores.mean(axis=0), low, high)
