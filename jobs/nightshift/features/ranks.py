"""The first of each of many lists, without ordering the rest. Pure."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from nightshift.features.windows import Bools, Floats, Ints


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
    starts, lengths = _runs(lists[rows])
    for key in (*reversed(ties), -scores):
        rows = rows[_ordered(key[rows], starts, lengths)]
    place = np.arange(len(rows)) - np.repeat(starts, lengths)
    first = place < limit
    return rows[first], place[first] + 1


def _runs(lists: Ints) -> tuple[Ints, Ints]:
    """Where each run of equal numbers starts, and how long it is."""
    starts = np.flatnonzero(np.diff(lists, prepend=-1))
    return starts, np.diff(starts, append=len(lists))


def _tables(lengths: Ints, more_than: int) -> Iterator[tuple[Ints, Bools]]:
    """Lists of about the same length, which one table holds: at most twice what is in them.

    Yields:
        Which lists, of those that are longer, and (lists, width) what of the table is filled.
    """
    classes = np.frexp(lengths - 1)[1]  # 2 ** (class - 1) < length <= 2 ** class
    for each in np.unique(classes[lengths > more_than]):
        some = np.flatnonzero((classes == each) & (lengths > more_than))
        yield some, np.arange(lengths[some].max()) < lengths[some][:, None]


def _laid(
    values: npt.NDArray[Any], starts: Ints, is_there: Bools, empty: float
) -> npt.NDArray[Any]:
    """The table of lists that start there."""
    at = starts[:, None] + np.arange(is_there.shape[1])
    table = values[np.minimum(at, len(values) - 1)]
    table[~is_there] = empty
    return table


def _no_worse(lists: Ints, scores: Floats, limit: int) -> Ints:
    """The rows whose score is at least the ``limit``-th of their list."""
    starts, lengths = _runs(lists)
    least = np.full(len(starts), -np.inf)
    for some, is_there in _tables(lengths, limit):
        table = _laid(scores, starts[some], is_there, -np.inf)
        width = table.shape[1]
        table.partition(width - limit, axis=1)
        least[some] = table[:, width - limit]
    return np.flatnonzero(scores >= np.repeat(least, lengths))


def _ordered(key: Ints | Floats, starts: Ints, lengths: Ints) -> Ints:
    """What orders each list by the key, ascending, and leaves equal keys in their order."""
    order = np.arange(len(key))
    is_ordered = key[1:] >= key[:-1]
    is_ordered[starts[1:] - 1] = True  # of two lists
    if is_ordered.all():
        return order
    # many short lists, each by itself, mostly take less time than all rows at once
    last = np.nan if key.dtype.kind == "f" else np.iinfo(np.int64).max
    for some, is_there in _tables(lengths, 1):
        table = _laid(key, starts[some], is_there, last)
        found = starts[some][:, None] + np.argsort(table, axis=1, kind="stable")
        at = starts[some][:, None] + np.arange(table.shape[1])
        order[at[is_there]] = found[is_there]
    return order
