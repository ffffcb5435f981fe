"""Keys that are the features' own, in their order, are known without a join."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nightshift.publishing.run import _are_same

KEYS = [["a", "b"], ["c"]]


def written(folder: Path, parts: Sequence[Sequence[str | None]]) -> list[Path]:
    folder.mkdir()
    files = [folder / f"part-{number:05}.parquet" for number in range(len(parts))]
    for file, keys in zip(files, parts, strict=True):
        pq.write_table(pa.table({"key": pa.array(keys, pa.string())}), file)
    return files


@pytest.mark.parametrize(
    ("scored", "known", "expected"),
    [
        (KEYS, KEYS, True),
        (KEYS, [["a", "x"], ["c"]], False),
        (KEYS, [["b", "a"], ["c"]], False),
        (KEYS, [["a", "b", "c"], []], False),
        (KEYS, [["a", "b"]], False),
        ([["a", None]], [["a", None]], False),  # nobody knows a row without a name
    ],
)
def test_only_the_same_keys_in_the_same_order_are_the_same(
    tmp_path: Path,
    scored: Sequence[Sequence[str | None]],
    known: Sequence[Sequence[str | None]],
    expected: bool,
) -> None:
    pair = (written(tmp_path / "scored", scored), written(tmp_path / "known", known))
    assert _are_same(["key"], *pair) is expected
