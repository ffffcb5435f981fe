"""From the scores of a list's rows to what of it is shown."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from nightshift.booster import Matrix, Vector
from nightshift.columns import texts_at
from nightshift.spec import Candidates, UseCase

Places = npt.NDArray[np.int64]


def shown(entities: pa.Array, scores: Vector, most: int) -> tuple[Places, Places]:
    """The rows that are shown, list by list, best first, and the place of each in its list, from 1.

    Of equal scores the row that comes first is before the other.

    Args:
        entities: (rows,) whose list a row is of; the rows of a list follow one another.
        scores: (rows,).
        most: rows of a list that are shown.
    """
    codes = np.from_dlpack(entities.dictionary_encode().indices)
    order = np.lexsort((-scores, codes))
    starts = np.flatnonzero(np.diff(codes[order], prepend=-1))
    place = np.arange(len(order)) - np.repeat(starts, np.diff(starts, append=len(order)))
    first = place < most
    return order[first], place[first] + 1


def generators(use_case: UseCase, features: Sequence[str], matrix: Matrix) -> pa.Array:
    """Which generators propose each row, by name, with commas between.

    Args:
        features: of the matrix, by name.
    """
    assert isinstance(use_case.population, Candidates)
    names = use_case.population.names
    columns = [features.index(f"candidate_{name}_rank") for name in names]
    proposed = ~np.isnan(matrix[:, columns])
    code = proposed @ (1 << np.arange(len(names)))
    codes, place = np.unique(code, return_inverse=True)
    patterns = (codes[:, None] >> np.arange(len(names))) & 1
    texts = [
        ",".join(name for name, is_one in zip(names, pattern, strict=True) if is_one)
        for pattern in patterns
    ]
    return texts_at(place.reshape(-1), texts)
