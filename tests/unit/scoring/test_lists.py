"""What of a list is shown, and that a list is one batch however its rows are laid in a part."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nightshift.scoring import lists, parts
from nightshift.use_cases.recommendations import RECOMMENDATIONS


def test_the_first_rows_of_each_list_are_shown_in_their_order() -> None:
    entities = pa.array(["b", "b", "b", "a", "c", "c"])
    rows, places = lists.shown(entities, np.array([1.0, 3.0, 2.0, 0.5, 7.0, 7.0]), 2)
    assert rows.tolist() == [1, 2, 3, 4, 5]
    assert places.tolist() == [1, 2, 1, 1, 2]


def test_generators_are_told_by_name() -> None:
    names = RECOMMENDATIONS.feature_names
    matrix = np.full((2, len(names)), np.nan, np.float32)
    matrix[0, names.index("candidate_bought_before_rank")] = 3
    matrix[:, names.index("candidate_new_items_rank")] = 1
    assert lists.generators(RECOMMENDATIONS, names, matrix).to_pylist() == [
        "bought_before,new_items", "new_items",
    ]  # fmt: skip


@pytest.mark.parametrize("at_once", [1, 2, 3, 4, 100])
def test_a_list_is_in_one_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    owners = ["a", "a", "a", "a", "b", "c", "c", "d", "d", "d"]
    part = tmp_path / "part-00000.parquet"
    pq.write_table(pa.table({"owner": owners, "n": range(10)}), part)
    monkeypatch.setattr(parts, "BATCH_ROWS", at_once)

    found = [batch.to_pydict() for batch in parts._batches(part, "owner")]

    assert [n for batch in found for n in batch["n"]] == list(range(10))
    seen = [owner for batch in found for owner in dict.fromkeys(batch["owner"])]
    assert seen == ["a", "b", "c", "d"]
