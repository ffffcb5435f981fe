"""How much of a part is in memory while it is scored."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_models import TOLD_BY, small_booster

from nightshift.booster import Matrix, double, to_matrix
from nightshift.scoring import parts
from nightshift.use_cases import CHURN

ROWS = 4096


def write_part(part: Path, batches: int) -> None:
    """Random vectors, in batches as the features job writes them."""
    generator = np.random.default_rng(1)
    names = CHURN.feature_names
    schema = pa.schema([("customer_id", pa.string()), *((name, pa.float64()) for name in names)])
    with pq.ParquetWriter(part, schema, compression="lz4") as writer:
        for batch in range(batches):
            keys = pa.array([f"{batch}-{row}" for row in range(ROWS)])
            values = (pa.array(generator.uniform(0, 200, ROWS)) for _ in names)
            writer.write_table(pa.table([keys, *values], schema=schema))


def test_a_part_of_ten_times_the_rows_is_scored_in_the_same_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[int] = []

    def looked_at(*given: Any) -> Matrix:
        held.append(pa.total_allocated_bytes())
        return to_matrix(*given)

    monkeypatch.setattr(parts, "BATCH_ROWS", ROWS)
    monkeypatch.setattr(parts, "to_matrix", looked_at)
    booster = small_booster(CHURN, TOLD_BY["churn"])
    doubled, most = double(booster), {}
    for batches in (3, 30):
        part = tmp_path / f"part-{batches:05}.parquet"
        write_part(part, batches)
        (tmp_path / str(batches)).mkdir()
        before = pa.total_allocated_bytes()
        held.clear()
        scored = parts.score_part(CHURN, booster, doubled, part, tmp_path / str(batches))
        assert scored.rows == batches * ROWS
        most[batches] = max(held) - before

    of_a_batch = ROWS * 8 * len(CHURN.feature_names)
    assert most[3] >= of_a_batch
    assert most[30] < most[3] + of_a_batch, most
