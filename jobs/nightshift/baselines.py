"""What a model must beat: one feature's rank, and a linear model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from nightshift.amounts import signed_exp, signed_log
from nightshift.booster import Matrix, Vector
from nightshift.spec import Heuristic, Objective

LINEAR = "linear"
# A linear model of some hundred columns gains nothing from more, and holds them several times.
LINEAR_ROWS = 50_000
BATCH_ROWS = 2**14


def heuristic_scores(heuristic: Heuristic, matrix: Matrix, feature_names: Sequence[str]) -> Vector:
    """The feature as a score, (rows,) float64, higher is likelier to be 1; or as an amount, scaled.

    A null has no evidence either way and takes the median of the column (0 if all are null).
    """
    first, *ties = (
        _known(matrix[:, feature_names.index(name)].astype(np.float64))
        for name in heuristic.features
    )
    if heuristic.descending:
        first = -first
    if heuristic.scale is not None:
        first = first * heuristic.scale
    if not ties:
        return first
    pairs = np.column_stack([first, *ties])
    return np.unique(pairs, axis=0, return_inverse=True)[1].reshape(-1).astype(np.float64)


def _known(values: Vector) -> Vector:
    known = values[~np.isnan(values)]
    return np.where(np.isnan(values), np.median(known) if len(known) else 0.0, values)


@dataclass(frozen=True)
class Linear:
    """A fitted linear baseline; ``scale`` makes the sum of its amounts that of the labels."""

    pipeline: Pipeline
    objective: Objective
    scale: float = 1.0


def linear_rows(is_learned: npt.NDArray[np.bool_]) -> npt.NDArray[np.intp]:
    """Positions of the rows that a linear model learns from, evenly spaced if there are many."""
    rows = np.flatnonzero(is_learned)
    return rows[:: -(-len(rows) // LINEAR_ROWS) or 1]


def fit_linear(matrix: Matrix, labels: npt.NDArray[Any], objective: Objective, seed: int) -> Linear:
    """A regularised linear model on imputed, signed-log, standardised features with missing
    indicators.

    Of two classes logistic; of amounts ridge on their signed log, scaled so that the sum is that of
    the labels, for the mean of a log is below the log of the mean; of a ranking logistic, pair by
    pair, whether a pair is relevant.
    """
    model: Any = LogisticRegression(C=1.0, solver="newton-cholesky", random_state=seed)
    targets = labels if objective == "binary" else (labels > 0).astype(np.int32)
    if objective == "regression":
        model, targets = Ridge(alpha=1.0), signed_log(labels.astype(np.float64))
    pipeline = make_pipeline(
        SimpleImputer(strategy="median", add_indicator=True, keep_empty_features=True),
        FunctionTransformer(signed_log),
        StandardScaler(),
        model,
    )
    pipeline.fit(matrix.astype(np.float64), targets)
    if objective != "regression":
        return Linear(pipeline, objective)
    total = float(linear_scores(Linear(pipeline, objective), matrix).sum())
    ratio = float(labels.sum()) / total if total else 1.0
    return Linear(pipeline, objective, ratio if ratio > 0 else 1.0)


def linear_scores(linear: Linear, matrix: Matrix) -> Vector:
    """Probabilities of class 1, or of being relevant, or amounts: (rows,) float64."""
    scores = np.empty(len(matrix), dtype=np.float64)
    for start in range(0, len(matrix), BATCH_ROWS):
        some = slice(start, start + BATCH_ROWS)
        values = matrix[some].astype(np.float64)
        if linear.objective != "regression":
            scores[some] = linear.pipeline.predict_proba(values)[:, 1]
        else:
            logs = linear.pipeline.predict(values)
            scores[some] = linear.scale * signed_exp(logs)
    return scores
