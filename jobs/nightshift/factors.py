"""A factorisation's factors beside a labelled dataset: written by features, read by training."""

from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

Factors = tuple[Sequence[str], npt.NDArray[np.float32]]
"""Names, and (names, rank) factors."""


def file(folder: Path, key: str) -> Path:
    """The factors of what the column ``key`` names, in a dataset's folder."""
    return folder / f"factors-{key}.parquet"


def write(folder: Path, key: str, found: Mapping[date, Factors]) -> None:
    """Write the factors of what a column names, at some snapshots."""
    rows = [
        {"snapshot": day, key: name, "factors": row.tolist()}
        for day, (names, matrix) in found.items()
        for name, row in zip(names, matrix, strict=True)
    ]
    columns = [("snapshot", pa.date32()), (key, pa.string()), ("factors", pa.list_(pa.float32()))]
    pq.write_table(pa.Table.from_pylist(rows, schema=pa.schema(columns)), file(folder, key))


def scores(
    folder: Path, named: Mapping[str, npt.NDArray[Any]], snapshots: npt.NDArray[Any] | None
) -> npt.NDArray[np.float64] | None:
    """(rows,) the product of two factors, 0 where one is not known; NaN at a snapshot without
    factors. None where the dataset has none.

    Args:
        named: the two columns that name a row, (rows,) each.
        snapshots: (rows,) of each row; None where the dataset is of one.
    """
    if not all(file(folder, key).exists() for key in named):
        return None
    size = len(next(iter(named.values())))
    found = np.full(size, np.nan)
    tables = {key: pq.read_table(file(folder, key)).to_pandas() for key in named}
    for day in sorted(set.intersection(*(set(table["snapshot"]) for table in tables.values()))):
        some = np.ones(size, bool)
        if snapshots is not None:
            some = np.asarray(snapshots == np.datetime64(day, "D"))
        sides = []
        for key, names in named.items():
            table = tables[key]
            of_day = table[table["snapshot"] == day].set_index(key)["factors"]
            matrix = np.vstack([*of_day.to_numpy(), np.zeros_like(of_day.iloc[0])])
            at = of_day.index.get_indexer(names[some])  # −1, of one not known, is the row of zeros
            sides.append(matrix[at].astype(np.float64))
        found[some] = np.einsum("ij,ij->i", *sides)
    return found
