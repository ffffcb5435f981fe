"""From a score to the band that the spec gives it."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from nightshift.spec import Band


def assign(
    scores: npt.NDArray[np.float64],
    bands: Sequence[Band],
    ranks: npt.NDArray[np.integer] | None = None,
) -> npt.NDArray[np.intp]:
    """The band of each score, (rows,) of positions in ``bands``.

    It is the last band whose ``from_score`` the score reaches; the first has all below it too.

    Args:
        ranks: of a ranking the place of each row in its list, from 1; bands are of these.
    """
    if ranks is not None:
        places = np.array([band.from_rank or 1 for band in bands[1:]])
        return np.searchsorted(places, ranks, side="right")
    starts = np.array([band.from_score for band in bands[1:]])
    return np.searchsorted(starts, scores, side="right")
