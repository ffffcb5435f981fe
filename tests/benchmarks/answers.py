"""Whether two engines gave the same answer: a benchmark of different answers is worth nothing."""

from collections.abc import Collection, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nightshift.errors import NightshiftError

TOLERANCE = 1e-9
"""Relative, of doubles: engines round a mean or a ratio at different places."""


def require_same_answers(
    ours: pa.Table, theirs: pa.Table, keys: Sequence[str], exact: Collection[str]
) -> int:
    """Compare all rows of two tables, in whatever order they lie.

    Args:
        ours, theirs: tables with the same columns; all but ``keys`` are numbers.
        keys: the columns that name a row.
        exact: columns that must be equal; the others may differ by ``TOLERANCE``.

    Returns:
        The number of rows.

    Raises:
        NightshiftError: names the column, the row and both values.
    """
    if sorted(ours.column_names) != sorted(theirs.column_names):
        differing = sorted(set(ours.column_names) ^ set(theirs.column_names))
        raise NightshiftError(f"columns of one side only: {differing}", "declare both alike")
    order = [(name, "ascending") for name in keys]
    ours, theirs = ours.sort_by(order), theirs.sort_by(order)
    if not all(ours[name].equals(theirs[name].cast(ours[name].type)) for name in keys):
        raise NightshiftError(
            f"rows of other {', '.join(keys)}: {len(ours)} of ours, {len(theirs)} of theirs",
            "compare the cut in time and the population",
        )
    for name in ours.column_names:
        if name in keys:
            continue
        a, b = (pc.cast(side[name], pa.float64(), safe=False) for side in (ours, theirs))
        is_null, is_null_there = np.asarray(a.is_null()), np.asarray(b.is_null())
        x, y = pc.fill_null(a, 0).to_numpy(), pc.fill_null(b, 0).to_numpy()
        allowed = 0 if name in exact else TOLERANCE * np.maximum(np.abs(x), np.abs(y))
        wrong = np.flatnonzero((is_null != is_null_there) | ~(np.abs(x - y) <= allowed))
        if len(wrong):
            row = int(wrong[0])
            key = {k: ours[k][row].as_py() for k in keys}
            raise NightshiftError(
                f"{name} differs in {len(wrong)} of {len(ours)} rows; at {key} ours is "
                f"{a[row].as_py()}, theirs {b[row].as_py()}",
                "one of them is wrong: recompute this row by hand",
            )
    return len(ours)
