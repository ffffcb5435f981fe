"""From a score to the band that the spec gives it."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from nightshift.spec import Band


def assign(scores: npt.NDArray[np.float64], bands: Sequence[Band]) -> npt.NDArray[np.intp]:
    """The band of each score, (rows,) of positions in ``bands``.

    It is the last band whose ``from_score`` the score reaches; the first has all below it too.
    """
    starts = np.array([band.from_score for band in bands[1:]])
    return np.searchsorted(starts, scores, side="right")
