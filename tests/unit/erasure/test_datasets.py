"""A dataset of the lake without a person, also where only what lies beside its parts names them."""

from datetime import date
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nightshift import factors
from nightshift.erasure.run import Erasure, _erase_dataset
from nightshift.io import lake

DAY = date(2011, 8, 12)


@pytest.mark.parametrize("listed", [["a", "b"], ["b"]])
def test_factors_beside_the_rows_lose_the_person(tmp_path: Path, listed: list[str]) -> None:
    folder = tmp_path / f"as_of={DAY}"
    with lake.replacing(folder) as new:
        pq.write_table(pa.table({"customer_id": listed}), new / "part-00000.parquet")
        both = np.array([[1], [2]], np.float32)
        factors.write(new, "customer_id", {DAY: (["a", "b"], both)})
        factors.write(new, "product_id", {DAY: (["x", "y"], both)})
        lake.write_manifest(new, {"rows": len(listed), "sha256": "d"})

    removed = _erase_dataset(folder, ["customer_id"], Erasure(1, "12345", "a"))

    assert removed == len(listed) - 1
    assert pq.read_table(folder / "part-00000.parquet")["customer_id"].to_pylist() == ["b"]
    left = pq.read_table(factors.file(folder, "customer_id"))["customer_id"].to_pylist()
    assert left == ["b"]
    assert pq.read_table(factors.file(folder, "product_id")).num_rows == 2
    assert (lake.read_manifest(folder) or {})["rows"] == 1
