"""From a score to the band that the spec gives it."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from nightshift.spec import Band


def assign(scores: npt.NDArray[np.float64], bands: Sequence[Band]) -> list[str]:
    """The band of each score, (rows,): the last one whose ``from_score`` the score reaches."""
    starts = np.array([band.from_score for band in bands])
    names = [band.name for band in bands]
    return [names[i] for i in np.searchsorted(starts, scores, side="right") - 1]
