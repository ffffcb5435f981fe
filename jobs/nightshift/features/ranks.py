"""The first of each of many lists, without ordering the rest. Pure."""

import numpy as np
import numpy.typing as npt

from nightshift.features.windows import Floats, Ints


def places(codes: npt.NDArray[np.int64]) -> Ints:
    """0, 1, … within each run of equal codes."""
    starts = np.flatnonzero(np.diff(codes, prepend=-1))
    return np.arange(len(codes)) - np.repeat(starts, np.diff(starts, append=len(codes)))


def best(lists: Ints, scores: Floats, limit: int, *ties: Ints | Floats) -> tuple[Ints, Ints]:
    """The first ``limit`` rows of each list: those of the greatest scores, best first.

    Args:
        lists: (rows,) of which list a row is, ascending.
        scores: (rows,).
        ties: (rows,) what orders rows of equal scores, ascending; the first before the second.

    Returns:
        The rows, list by list, and the place of each, from 1.
    """
    rows = _no_worse(lists, scores, limit)
    order = np.lexsort((*(tie[rows] for tie in reversed(ties)), -scores[rows], lists[rows]))
    rows = rows[order]
    place = places(lists[rows])
    first = place < limit
    return rows[first], place[first] + 1


def _no_worse(lists: Ints, scores: Floats, limit: int) -> Ints:
    """The rows whose score is at least the ``limit``-th of their list.

    Lists of about the same length are laid into one table, of which each row is parted once; it has
    at most twice the numbers that are there.
    """
    starts = np.flatnonzero(np.diff(lists, prepend=-1))
    lengths = np.diff(starts, append=len(lists))
    least = np.full(len(starts), -np.inf)
    classes = np.frexp(lengths - 1)[1]  # 2 ** (class - 1) < length <= 2 ** class
    for each in np.unique(classes[lengths > limit]):
        some = np.flatnonzero((classes == each) & (lengths > limit))
        wide = int(lengths[some].max())
        at = np.arange(wide)
        table = scores[np.minimum(starts[some][:, None] + at, len(scores) - 1)]
        table[at >= lengths[some][:, None]] = -np.inf
        table.partition(wide - limit, axis=1)
        least[some] = table[:, wide - limit]
    return np.flatnonzero(scores >= np.repeat(least, lengths))
