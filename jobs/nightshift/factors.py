"""A factorisation's factors beside a labelled dataset: written by features, read by training."""

from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

FILE = "factors.parquet"
ENTITY, ITEM = "entity", "item"

Factors = tuple[Sequence[str], npt.NDArray[np.float32]]
"""Names, and (names, rank) factors."""


def write(folder: Path, found: Mapping[tuple[date, str], Factors]) -> None:
    """Write the factors of some snapshots, each of entities and of items."""
    rows = [
        {"snapshot": day, "side": side, "name": name, "factors": row.tolist()}
        for (day, side), (names, matrix) in found.items()
        for name, row in zip(names, matrix, strict=True)
    ]
    schema = pa.schema(
        [
            ("snapshot", pa.date32()), ("side", pa.string()), ("name", pa.string()),
            ("factors", pa.list_(pa.float32())),
        ]
    )  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), folder / FILE)


def scores(
    folder: Path,
    entities: npt.NDArray[Any],
    items: npt.NDArray[Any],
    snapshots: npt.NDArray[Any] | None,
) -> npt.NDArray[np.float64] | None:
    """(rows,) the product of an entity's and an item's factors, 0 where one has none; NaN at a
    snapshot without factors. None where the dataset has none.

    Args:
        snapshots: (rows,) of each row; None where the dataset is of one.
    """
    if not (folder / FILE).exists():
        return None
    table = pq.read_table(folder / FILE).to_pandas()
    found = np.full(len(entities), np.nan)
    for day, of_day in table.groupby("snapshot"):
        some = np.ones(len(entities), bool)
        if snapshots is not None:
            some = np.asarray(snapshots == np.datetime64(day, "D"))
        sides = []
        for side, names in ((ENTITY, entities[some]), (ITEM, items[some])):
            part = of_day[of_day["side"] == side].set_index("name")["factors"]
            matrix = np.vstack([*part.to_numpy(), np.zeros_like(part.iloc[0])])
            sides.append(matrix[part.index.get_indexer(names)])  # −1 is the row of zeros
        found[some] = np.einsum("ij,ij->i", *(side.astype(np.float64) for side in sides))
    return found
