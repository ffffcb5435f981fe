"""What a model must beat: one feature's rank, and a linear model."""

import numpy as np
import numpy.typing as npt
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from nightshift.booster import Matrix, Vector
from nightshift.spec import Heuristic

LINEAR = "linear"


def heuristic_scores(heuristic: Heuristic, column: npt.NDArray[np.float32]) -> Vector:
    """The feature as a score, (rows,) float64, higher is likelier to be 1.

    A null has no evidence either way and takes the median of the column (0 if all are null).
    """
    values = column.astype(np.float64)
    if heuristic.descending:
        values = -values
    known = values[~np.isnan(values)]
    return np.where(np.isnan(values), np.median(known) if len(known) else 0.0, values)


def signed_log(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """sign(x) · log(1 + |x|): amounts are heavy-tailed on both sides of 0."""
    return np.asarray(np.sign(values) * np.log1p(np.abs(values)))


def fit_linear(matrix: Matrix, labels: npt.NDArray[np.int32], seed: int) -> Pipeline:
    """Logistic regression on imputed, signed-log, standardised features with missing indicators."""
    pipeline = make_pipeline(
        SimpleImputer(strategy="median", add_indicator=True, keep_empty_features=True),
        FunctionTransformer(signed_log),
        StandardScaler(),
        LogisticRegression(C=1.0, solver="newton-cholesky", random_state=seed),
    )
    return pipeline.fit(matrix.astype(np.float64), labels)


def linear_scores(pipeline: Pipeline, matrix: Matrix) -> Vector:
    """Probabilities of class 1, (rows,) float64."""
    return np.asarray(pipeline.predict_proba(matrix.astype(np.float64))[:, 1], dtype=np.float64)
