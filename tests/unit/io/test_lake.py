"""Datasets in the lake."""

from datetime import date
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from nightshift.io import lake


def write(folder: Path, name: str, rows: list[tuple[str, float | None]], **options: object) -> Path:
    table = pa.table(
        {
            "customer_id": pa.array([r[0] for r in rows], pa.string()),
            "snapshot": pa.array([date(2025, 12, 16)] * len(rows), pa.date32()),
            "recency_days": pa.array([r[1] for r in rows], pa.float64()),
        }
    )
    pq.write_table(table, folder / name, **options)
    return folder / name


def test_the_digest_is_of_the_rows_and_not_of_the_files(tmp_path: Path) -> None:
    rows = [("17850", 3.0), ("13047", None), ("12583", -0.5)]
    whole = [write(tmp_path, "whole.parquet", rows)]
    split = [
        write(tmp_path, "a.parquet", rows[2:] + rows[:1], compression="zstd"),
        write(tmp_path, "b.parquet", rows[1:2], use_dictionary=False),
        write(tmp_path, "c.parquet", []),
    ]

    assert lake.rows_sha256(split) == lake.rows_sha256(whole)


def test_the_digest_changes_with_any_value(tmp_path: Path) -> None:
    digests = {
        lake.rows_sha256([write(tmp_path, "part.parquet", rows)])
        for rows in (
            [("17850", 3.0), ("13047", 4.0)],
            [("17850", 4.0), ("13047", 3.0)],
            [("17850", 3.0), ("13047", None)],
            [("17850", 3.0)],
            [("17850", 3.0), ("17850", 3.0)],
        )
    }

    assert len(digests) == 5
