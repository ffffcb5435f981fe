"""Tiles as files: what a night keeps, so that the next one reads the newest rows only.

A file is an uncompressed ``.npz``: its zip container has a checksum for each array. Integers are
stored in the smallest type that holds them, and all of one type as one array, for opening an
array costs more than reading it.
"""

import json
import uuid
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from nightshift.features.tiles import Grid, Items, Tiles, merge, recoded
from nightshift.spec import FeatureGroup

_LAYOUT = "layout"
_GRID = ("entity", "time", "known")
_ITEMS = ("entity", "item", "time", "known", "count")


@dataclass(frozen=True)
class Part:
    """Tiles of some landed months, with what their codes stand for.

    Attributes:
        tiles: on codes of ``entities`` and ``texts``; integers that were kept are narrow, until
            they are joined.
        entities: keys, ascending; an entity's code is its position.
        texts: column or expression of text → its values, ascending.
    """

    tiles: Tiles
    entities: pa.StringArray
    texts: Mapping[str, pa.StringArray]


class CommonCodes:
    """Codes that several lists of texts have in common; asked for the same lists again, as by
    groups of one source, they are the same answer."""

    def __init__(self) -> None:
        self._found: list[tuple[Sequence[pa.StringArray], _Common]] = []

    def of(self, parts: Sequence[pa.StringArray]) -> "_Common":
        """All values, ascending, and for each part the codes of its own among them."""
        for asked, answer in self._found:
            if len(asked) == len(parts) and all(map(pa.StringArray.equals, asked, parts)):
                return answer
        every = pc.dictionary_encode(pa.concat_arrays(parts))
        order = pc.sort_indices(every.dictionary).to_numpy()
        rank = np.empty(len(order), np.int64)
        rank[order] = np.arange(len(order))
        codes = rank[every.indices]
        bounds = np.cumsum([len(part) for part in parts])[:-1]
        answer = every.dictionary.take(pa.array(order)), np.split(codes, bounds)
        self._found.append((parts, answer))
        return answer


_Common = tuple[pa.StringArray, list[npt.NDArray[np.int64]]]


def joined(group: FeatureGroup, parts: Sequence[Part], common: CommonCodes) -> Part:
    """The tiles of all parts as one, on common codes."""
    entities, entity_codes = common.of([part.entities for part in parts])
    texts = {name: common.of([part.texts[name] for part in parts]) for name in parts[0].texts}
    tiles = [
        recoded(
            [group],
            part.tiles,
            entity_codes[number],
            {name: codes[number] for name, (_, codes) in texts.items()},
        )
        for number, part in enumerate(parts)
    ]
    return Part(merge(tiles), entities, {name: values for name, (values, _) in texts.items()})


def save(file: Path, part: Part, beside: Path) -> None:
    """Write a part; a reader sees all of it or none.

    Args:
        beside: a folder of the same disk, where what a killed task leaves is removed.
    """
    arrays: dict[str, npt.NDArray[Any]] = {}
    tiles = part.tiles
    for name, text in (("entities", part.entities), *part.texts.items()):
        arrays |= {f"text {name} {i}": values for i, values in enumerate(_buffers(text))}
    for known, grid in tiles.grids.items():
        columns = {name: getattr(grid, name) for name in _GRID} | dict(grid.columns)
        arrays |= {f"grid {known} {name}": values for name, values in columns.items()}
    for measure, items in tiles.items.items():
        arrays |= {f"items {measure} {name}": getattr(items, name) for name in _ITEMS}
    arrays = {name: _narrow(values) for name, values in arrays.items()}
    layout = {
        "resolution": tiles.resolution,
        "texts": list(part.texts),
        "grids": {known: list(grid.columns) for known, grid in tiles.grids.items()},
        "items": list(tiles.items),
        "arrays": [(name, values.dtype.str, len(values)) for name, values in arrays.items()],
    }
    stored = {
        kind: np.concatenate([values for values in arrays.values() if values.dtype.str == kind])
        for kind in {values.dtype.str for values in arrays.values()}
    }
    stored[_LAYOUT] = np.frombuffer(json.dumps(layout).encode(), np.uint8)
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = beside / f".{file.name}.{uuid.uuid4().hex}.npz"
    try:
        np.savez(temporary, allow_pickle=False, **stored)
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


def load(file: Path) -> Part | None:
    """A part that was kept; None where there is none, or a damaged one."""
    try:
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as stored:
            layout = json.loads(stored[_LAYOUT].tobytes())
            arrays = _apart(stored, layout["arrays"])
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile):
        return None

    def text(name: str) -> pa.StringArray:
        offsets, data = arrays[f"text {name} 0"], arrays[f"text {name} 1"]
        return pa.StringArray.from_buffers(
            len(offsets) - 1,
            pa.py_buffer(offsets.astype(np.int32)),
            pa.py_buffer(data.astype(np.uint8)),
        )

    grids = {
        known: Grid(
            arrays[f"grid {known} entity"],
            arrays[f"grid {known} time"],
            arrays[f"grid {known} known"],
            {name: arrays[f"grid {known} {name}"] for name in columns},
        )
        for known, columns in layout["grids"].items()
    }
    items = {
        measure: Items(*(arrays[f"items {measure} {name}"] for name in _ITEMS))
        for measure in layout["items"]
    }
    return Part(
        Tiles(layout["resolution"], grids, items),
        text("entities"),
        {name: text(name) for name in layout["texts"]},
    )


def _apart(
    stored: Mapping[str, npt.NDArray[Any]], layout: Sequence[tuple[str, str, int]]
) -> dict[str, npt.NDArray[Any]]:
    """The arrays that ``save`` has laid end to end, those of a type together."""
    whole = {kind: stored[kind] for kind in {kind for _, kind, _ in layout}}
    begin = dict.fromkeys(whole, 0)
    arrays = {}
    for name, kind, length in layout:
        arrays[name] = whole[kind][begin[kind] : begin[kind] + length]
        begin[kind] += length
    return arrays


def _buffers(text: pa.StringArray) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Offsets and bytes, of an array without nulls."""
    whole = pa.concat_arrays([text, text[:0]])  # begins at its buffers' begin
    _, offsets, data = whole.buffers()
    return (
        np.frombuffer(offsets, np.int32, len(whole) + 1) if len(whole) else np.zeros(1, np.int32),
        np.frombuffer(data, np.uint8) if data is not None else np.zeros(0, np.uint8),
    )


def _narrow(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    if values.dtype != np.int64 or not len(values):
        return values
    least, greatest = values.min(), values.max()
    for kind in (np.int8, np.int16, np.int32):
        limits = np.iinfo(kind)
        if limits.min <= least and greatest <= limits.max:
            return values.astype(kind)
    return values
