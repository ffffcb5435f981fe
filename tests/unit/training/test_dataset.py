import json
import mmap
import multiprocessing
import os
import signal
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nightshift.booster import content_hashes, row_order
from nightshift.errors import NightshiftError
from nightshift.io.lake import workspace
from nightshift.training.dataset import read_dataset, read_rows
from nightshift.use_cases.spend import SPEND

NAMES = ("a", "b")
OLD, NEW = date(2025, 1, 1), date(2025, 2, 1)
ROWS: list[dict[str, Any]] = [
    {"customer_id": "x", "snapshot": NEW, "label": 1, "a": 1.5, "b": 1},
    {"customer_id": "x", "snapshot": OLD, "label": 0, "a": None, "b": 2},
    {"customer_id": "y", "snapshot": NEW, "label": 0, "a": 2.5, "b": None},
    {"customer_id": "z", "snapshot": OLD, "label": 1, "a": -0.5, "b": 4},
]
SCHEMA = pa.schema(
    {
        "customer_id": pa.string(),
        "snapshot": pa.date32(),
        "label": pa.int32(),
        "a": pa.float64(),
        "b": pa.int64(),
    }
)


def write(folder: Path, *parts: Sequence[dict[str, Any]], schema: pa.Schema = SCHEMA) -> Path:
    folder.mkdir()
    for number, rows in enumerate(parts):
        table = pa.Table.from_pylist(list(rows), schema)
        pq.write_table(table, folder / f"part-{number:05}.parquet", write_page_checksum=True)
    (folder / "manifest.json").write_text(json.dumps({"rows": sum(map(len, parts))}))
    return folder


def test_rows_come_by_snapshot_as_float32_with_nan_for_null(tmp_path: Path) -> None:
    found = read_rows(write(tmp_path / "rows", ROWS), "binary", ("customer_id",), NAMES)
    assert found.matrix.dtype == np.float32
    assert found.labels.dtype == np.int32
    assert found.items is None
    assert found.snapshots.tolist() == [OLD, OLD, NEW, NEW]
    by_key = {
        (key, day): (label, *map(str, row))
        for key, day, label, row in zip(
            found.keys, found.snapshots.tolist(), found.labels, found.matrix, strict=True
        )
    }
    assert by_key == {
        ("x", OLD): (0, "nan", "2.0"),
        ("z", OLD): (1, "-0.5", "4.0"),
        ("x", NEW): (1, "1.5", "1.0"),
        ("y", NEW): (0, "2.5", "nan"),
    }


def test_neither_keys_nor_parts_move_a_row(tmp_path: Path) -> None:
    other = {"x": "m", "y": "b", "z": "a"}
    renamed = [{**row, "customer_id": other[row["customer_id"]]} for row in ROWS]
    once = read_rows(write(tmp_path / "once", ROWS), "binary", ("customer_id",), NAMES)
    again = read_rows(
        write(tmp_path / "again", renamed[3:], renamed[:3]), "binary", ("customer_id",), NAMES
    )
    assert once.matrix.tobytes() == again.matrix.tobytes()
    assert [other[key] for key in once.keys] == again.keys.tolist()
    assert once.labels.tolist() == again.labels.tolist()


def test_equal_rows_are_in_the_order_of_their_keys() -> None:
    matrix, labels = np.float32([[1, 2]] * 3), np.zeros(3)
    days = np.full(3, OLD, dtype="datetime64[D]")
    order = row_order(days, content_hashes(matrix, labels), np.array([2, 0, 1]))
    assert order.tolist() == [1, 2, 0]


def test_a_hash_tells_columns_and_labels_apart_but_not_one_nan_from_another() -> None:
    other_nan = np.array([0x7FC00001], dtype=np.uint32).view(np.float32)[0]
    matrix = np.array([[1, 2], [2, 1], [1, np.nan], [1, other_nan], [1, 2]], dtype=np.float32)
    hashes = content_hashes(matrix, np.array([0.0, 0, 0, 0, 1]))
    assert hashes[2] == hashes[3]
    assert len(set(hashes.tolist())) == 4


def test_a_file_holds_the_same_rows_as_memory(tmp_path: Path) -> None:
    folder = write(tmp_path / "rows", ROWS[:1], ROWS[1:])
    in_memory = read_rows(folder, "binary", ("customer_id",), NAMES)
    with workspace(tmp_path / "fits") as place:
        on_disk = read_rows(folder, "binary", ("customer_id",), NAMES, "external", place)
        assert isinstance(on_disk.matrix.base, mmap.mmap)
        assert on_disk.matrix.tobytes() == in_memory.matrix.tobytes()
    assert not place.exists()


def test_a_ranking_has_items(tmp_path: Path) -> None:
    schema = SCHEMA.append(pa.field("item", pa.string()))
    rows = [{**row, "item": f"i{number}"} for number, row in enumerate(ROWS)]
    folder = write(tmp_path / "rows", rows, schema=schema)
    found = read_rows(folder, "ranking", ("customer_id", "item"), NAMES)
    assert found.items is not None
    assert dict(zip(found.items, found.keys, strict=True)) == {
        "i0": "x", "i1": "x", "i2": "y", "i3": "z",
    }  # fmt: skip
    assert found.labels.dtype == np.float64


def test_a_label_below_zero_is_refused_where_none_is_declared(tmp_path: Path) -> None:
    row = {"customer_id": "x", "snapshot": OLD} | dict.fromkeys(SPEND.feature_names, 1.0)
    kinds = {name: pa.float64() for name in ("label", *SPEND.feature_names)}
    schema = pa.schema({"customer_id": pa.string(), "snapshot": pa.date32()} | kinds)
    folder = write(tmp_path / "rows", [row | {"label": 3.0}, row | {"label": -2.5}], schema=schema)
    assert read_dataset(folder, SPEND, NEW.replace(year=2026)).labels.min() == -2.5
    label = SPEND.label.model_copy(update={"non_negative": True})
    declared = SPEND.model_copy(update={"label": label})
    with pytest.raises(NightshiftError, match=r"1 values of 2 that are not at least 0, .* -2\.5"):
        read_dataset(folder, declared, NEW.replace(year=2026))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{**ROWS[0], "label": None}, ROWS[1]], "column label of .* has 1 nulls"),
        ([{**ROWS[0], "label": 2}, ROWS[1]], "1 values of 2 that are not 0 or 1, such as 2"),
        ([], "has no rows"),
    ],
    ids=["null", "third class", "no rows"],
)
def test_labels_that_cannot_be_learned(
    tmp_path: Path, rows: list[dict[str, Any]], message: str
) -> None:
    with pytest.raises(NightshiftError, match=message) as error:
        read_rows(write(tmp_path / "rows", rows), "binary", ("customer_id",), NAMES)
    assert error.value.remedy


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda file: file.write_bytes(file.read_bytes()[:-9]), "cannot be read: "),
        (lambda file: _flip_first_page(file), "cannot be read: .*checksum"),
        (lambda file: pq.write_table(pa.table({"a": [1]}), file), "lacks b, customer_id, label"),
        (lambda file: pq.write_table(pq.read_table(file)[:3], file), "3 rows, its manifest says 4"),
        (lambda file: file.unlink(), r"has no part-\*"),
    ],
    ids=["cut off", "a flipped bit", "other columns", "fewer rows", "gone"],
)
def test_a_damaged_part_is_refused(tmp_path: Path, damage: Any, message: str) -> None:
    folder = write(tmp_path / "rows", ROWS)
    damage(folder / "part-00000.parquet")
    with pytest.raises(NightshiftError, match=message) as error:
        read_rows(folder, "binary", ("customer_id",), NAMES)
    assert error.value.remedy


def _flip_first_page(file: Path) -> None:
    content = bytearray(file.read_bytes())
    at = pq.read_metadata(file).row_group(0).column(3)
    content[(at.dictionary_page_offset or at.data_page_offset) + at.total_compressed_size - 1] ^= 1
    file.write_bytes(content)


def _work_until_killed(folder: Path, ready: Any) -> None:
    with workspace(folder) as place:
        (place / "matrix.float32").write_bytes(b"1")
        ready.send(place)
        signal.pause()


def test_a_killed_training_leaves_its_files_to_the_next_and_a_running_one_keeps_them(
    tmp_path: Path,
) -> None:
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(
        target=_work_until_killed, args=(tmp_path, theirs)
    )
    process.start()
    left: Path = ours.recv()
    with workspace(tmp_path):
        assert left.is_dir()
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert left.is_dir()
    with workspace(tmp_path):
        assert not left.exists()
