"""What a month's file holds: the same bytes of the same rows, and what a decimal can be."""

import random
from collections.abc import Mapping, Sequence
from datetime import date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from nightshift.features import extract
from nightshift.spec import Source

BUCKETS = 16
SALES = Source(
    name="sales",
    relation="marts.fct_sales",
    row_id="sale_id",
    event_time="sold_at",
    landed_date="landed_date",
    columns={
        "customer_id": "string",
        "product_id": "string",
        "is_gift": "boolean",
        "points": "integer",
        "price": "decimal",
        "weight": "double",
        "sold_at": "timestamp",
        "landed_date": "date",
    },
)
NOON = datetime.fromisoformat("2011-05-02T12:00:00")
SALE: dict[str, Any] = {
    "customer_id": "Zoë", "product_id": "p1", "is_gift": True, "points": 3,
    "price": Decimal("2.5500"), "weight": 0.5, "sold_at": NOON, "landed_date": NOON.date(),
}  # fmt: skip
OTHERS = [
    SALE,  # and again: two sales of one instant may be alike
    *({**SALE, name: None} for name in ("product_id", "is_gift", "points", "price", "weight")),
    {**SALE, "customer_id": None},
    {**SALE, "sold_at": None},
    {**SALE, "product_id": "p0"},
    {**SALE, "is_gift": False},
    {**SALE, "points": -(2**63)},
    {**SALE, "points": 2**63 - 1},
    {**SALE, "price": Decimal("-99999999999999.9999")},
    {**SALE, "price": Decimal("99999999999999.9999")},
    {**SALE, "weight": -0.0},
    {**SALE, "weight": 0.0},
    {**SALE, "sold_at": NOON - timedelta(microseconds=1)},
    {**SALE, "sold_at": datetime.fromisoformat("0001-01-01")},
    {**SALE, "landed_date": date(2011, 5, 3)},
    {**SALE, "customer_id": ""},
    {**SALE, "customer_id": "張"},
]


def table(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """As it comes batch by batch, each with dictionaries of its own."""
    batches = [
        pa.table(
            [
                pa.array([row[field.name] for row in some]).cast(
                    pa.string() if pa.types.is_dictionary(field.type) else field.type
                ).cast(field.type)
                for field in extract.schema(SALES)
            ],
            schema=extract.schema(SALES),
        )
        for some in (rows[:5], rows[5:])
    ]  # fmt: skip
    return pa.concat_tables(batches)


def written(file: Path, rows: Sequence[Mapping[str, Any]]) -> bytes:
    extract.write(file, table(rows), SALES, "customer_id", BUCKETS)
    return file.read_bytes()


@pytest.mark.parametrize("seed", range(5))
def test_the_same_rows_in_any_order_are_the_same_bytes(tmp_path: Path, seed: int) -> None:
    rows = [SALE, *OTHERS]
    before = written(tmp_path / "before", rows)
    random.Random(seed).shuffle(rows)
    assert written(tmp_path / "after", rows) == before


@pytest.mark.parametrize("other", OTHERS[1:], ids=lambda row: str(row.items() - SALE.items()))
def test_other_rows_are_other_bytes(tmp_path: Path, other: Mapping[str, Any]) -> None:
    before = written(tmp_path / "before", [SALE, SALE])
    after = written(tmp_path / "after", [SALE, other])
    assert (after == before) == (other == SALE)


def test_rows_come_back_by_entity_and_time(tmp_path: Path) -> None:
    kept = extract.write(tmp_path / "rows", table([SALE, *OTHERS]), SALES, "customer_id", BUCKETS)
    found = [
        row
        for bucket in range(BUCKETS)
        for row in extract.read(
            tmp_path / "rows", bucket, SALES, list(SALES.columns)
        ).to_pylist()
    ]  # fmt: skip

    known = [row for row in (SALE, *OTHERS) if row["customer_id"] is not None and row["sold_at"]]
    assert sorted(map(str, found)) == sorted(map(str, known))
    assert kept == len(known)
    of_zoe = [row["sold_at"] for row in found if row["customer_id"] == "Zoë"]
    assert of_zoe == sorted(of_zoe)


def test_a_key_may_be_a_number(tmp_path: Path) -> None:
    extract.write(tmp_path / "rows", table([SALE, *OTHERS]), SALES, "points", BUCKETS)
    for bucket in range(BUCKETS):
        found = extract.read(tmp_path / "rows", bucket, SALES, ["points"])["points"].to_pylist()
        assert found == sorted(found)
        assert {extract.bucket_of(str(points), BUCKETS) for points in found} <= {bucket}


def test_landed_days_are_read_in_pieces_that_fit() -> None:
    million = extract.MOST_ROWS
    days = {"d1": million // 2, "d2": million // 2, "d3": 1, "d4": 0, "d5": 2 * million + 1}

    found = extract.pieces(days)

    assert found == [
        extract.Piece(("d1", "d2")),
        extract.Piece(("d3", "d4")),
        *(extract.Piece(("d5",), part, 3) for part in range(3)),
    ]
    assert extract.pieces({"gone": 0}) == []


@pytest.mark.parametrize("number", [0, 1, 2, 41, 1_000_003])
def test_a_piece_is_split_into_the_same_rows(number: int) -> None:
    whole = [extract.Piece(("d",), part, 3) for part in range(3)]
    pieces = [piece for some in whole for piece in some.split()]

    def holding(of: list[extract.Piece]) -> list[int]:
        return [n for n, piece in enumerate(of) if number % piece.parts == piece.part]

    assert [n // 4 for n in holding(pieces)] == holding(whole)
