"""Which test rows belong to which group of a slice."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from nightshift.booster import Matrix
from nightshift.metrics import Groups
from nightshift.spec import Slice

NULL = "null"
Mask = npt.NDArray[np.bool_]


def slice_rows(
    slices: Sequence[Slice], feature_names: Sequence[str], matrix: Matrix, train: Mask, rows: Mask
) -> dict[str, Groups]:
    """Slice → the groups of ``rows``.

    Args:
        slices: as the spec declares them.
        feature_names: the columns of ``matrix``.
        matrix: (all rows, features).
        train: (all rows,) of which the edges of bands are taken: they are then the same for every
            part that is measured.
        rows: (all rows,) which to tell apart.
    """
    found = {}
    for each in slices:
        column = matrix[:, feature_names.index(each.feature)]
        found[each.name] = _groups(each, column[train], column[rows])
    return found


def _groups(each: Slice, train: Matrix, values: Matrix) -> Groups:
    if each.bands is None:
        edges = np.array(each.cuts, dtype=np.float32)
        texts = [f"{edge:g}" for edge in each.cuts]
        between = [f"{low} to {high}" for low, high in pairwise(texts)]
        names = [f"below {texts[0]}", *between, f"from {texts[-1]}"]
    else:
        known = train[~np.isnan(train)]
        shares = np.arange(1, each.bands) / each.bands
        edges = np.quantile(known, shares) if len(known) else known
        names = [f"band {number + 1}" for number in range(each.bands)]
    codes = np.searchsorted(edges, values, side="right").astype(np.int64)
    is_null = np.isnan(values)
    codes[is_null] = len(names)
    if is_null.any():
        names.append(NULL)
    return Groups(tuple(names), codes, each.min_entities)
