"""How scores are distributed, and how far one distribution has moved from another.

Pure: training keeps the distribution of the model's scores in its signature, publishing that of
each publication, and the audit compares.
"""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

BINS = 10
CHANCE = 0.001
"""How often the audit may refuse scores whose distribution has not moved at all."""
# as of any table: SciPy's import takes 0.3 s
CHI_SQUARED = (
    10.827566, 13.815511, 16.266236, 18.466827, 20.515006, 22.457744, 24.321886, 26.124482,
    27.877165,
)  # fmt: skip
"""What a chi-squared variable of 1, 2, … degrees of freedom exceeds with a chance of ``CHANCE``."""

Vector = npt.NDArray[np.float64]


class Distribution(BaseModel):
    """Rows by score: ``counts[i]`` of them lie in ``[edges[i - 1], edges[i])``; the first bin is
    open below, the last one above.

    Attributes:
        edges: (bins - 1,), rising: the deciles of the scores, each once.
        counts: (bins,) rows.
    """

    model_config = ConfigDict(frozen=True)

    edges: tuple[float, ...]
    counts: tuple[int, ...] = Field(min_length=1)

    @property
    def rows(self) -> int:
        """How many scores it is of."""
        return sum(self.counts)


def distribution(scores: Vector) -> Distribution:
    """The distribution of finite scores, (rows,), over its own deciles.

    Where many rows share a score deciles coincide, and there are fewer bins.
    """
    deciles = np.arange(1, BINS) / BINS
    edges = np.unique(np.quantile(scores, deciles, method="inverted_cdf")) if len(scores) else ()
    return Distribution(edges=tuple(map(float, edges)), counts=count(scores, tuple(edges)))


def count(scores: Vector, edges: Sequence[float]) -> tuple[int, ...]:
    """Scores, (rows,), by bin; see :class:`Distribution`."""
    bins = np.searchsorted(np.asarray(edges, dtype=np.float64), scores, side="right")
    return tuple(int(rows) for rows in np.bincount(bins, minlength=len(edges) + 1))


def stability_index(reference: Distribution, counts: Sequence[int]) -> float:
    """The population stability index of ``counts``, over the reference's bins; 0 is no change.

    ``sum((p - q) * log(p / q))`` over the bins' shares p and q, Jeffreys' divergence (Jeffreys
    1946), as credit scoring uses it over ten bins: below 0.1 little has changed, above 0.25 much
    has (Siddiqi, Credit Risk Scorecards, 2006). An empty bin counts as half a row. NaN where either
    has no row.
    """
    found = sum(counts)
    if not found or not reference.rows:
        return math.nan
    p = np.maximum(np.array(counts), 0.5) / found
    q = np.maximum(np.array(reference.counts), 0.5) / reference.rows
    return float(np.sum((p - q) * np.log(p / q)))


def by_chance(reference: Distribution, rows: int) -> float:
    """The index that ``rows`` scores of the reference's own distribution exceed once in a thousand.

    The index of two samples of m and n rows is about ``(1 / m + 1 / n)`` times a chi-squared
    variable of ``bins - 1`` degrees of freedom (Yurdakul and Naranjo, Statistical properties of the
    population stability index, Journal of Risk Model Validation 14, 2020).
    """
    degrees = len(reference.edges)
    if not degrees or not rows or not reference.rows:
        return 0.0
    return CHI_SQUARED[degrees - 1] * (1 / reference.rows + 1 / rows)
