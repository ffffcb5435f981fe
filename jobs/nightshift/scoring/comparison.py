"""Two models' scores of the same rows, compared."""

from dataclasses import dataclass
from datetime import date

import numpy as np
import numpy.typing as npt

from nightshift.booster import Vector


@dataclass(frozen=True)
class Comparison:
    """How a challenger's scores stand beside the champion's.

    Attributes:
        agreement: share of the rows to which both give the same band.
        rank_correlation: Spearman's; None where one of them gives every row the same score.
        mean_difference: of challenger minus champion, in the score's own unit.
        largest_difference: without its sign.
    """

    rows: int
    agreement: float
    rank_correlation: float | None
    mean_difference: float
    largest_difference: float


@dataclass(frozen=True)
class Challenge:
    """A challenger beside the champion on one night."""

    use_case: str
    as_of: date
    champion_version: str
    challenger_version: str
    comparison: Comparison


def compare(
    champion: Vector,
    challenger: Vector,
    champion_bands: npt.NDArray[np.intp],
    challenger_bands: npt.NDArray[np.intp],
) -> Comparison:
    """Compare scores and bands of the same rows, all (rows,), at least one."""
    is_constant = np.ptp(champion) == 0 or np.ptp(challenger) == 0
    difference = challenger - champion
    from scipy.stats import spearmanr  # a second, which a night without a challenger need not pay

    return Comparison(
        rows=len(champion),
        agreement=float((champion_bands == challenger_bands).mean()),
        rank_correlation=None if is_constant else float(spearmanr(champion, challenger).statistic),
        mean_difference=float(difference.mean()),
        largest_difference=float(np.abs(difference).max()),
    )
