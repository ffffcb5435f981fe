"""What the server packs and the extract unpacks: every value as it is."""

from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from typing import Any

import adbc_driver_postgresql.dbapi as adbc
import psycopg2
import pytest
from psycopg2.extras import execute_values

from nightshift.errors import NightshiftError
from nightshift.features import extract, packing
from nightshift.settings import Settings
from nightshift.spec import Source

VALUES = Source(
    name="values",
    relation="marts.fct_values",
    row_id="id",
    event_time="at",
    landed_date="landed_date",
    columns={
        "customer_id": "string", "is_gift": "boolean", "points": "integer", "price": "decimal",
        "weight": "double", "at": "timestamp", "landed_date": "date", "born": "date",
    },
)  # fmt: skip
ROWS: list[tuple[Any, ...]] = [
    ("Zoë", True, 3, "2.55", 0.5, "2011-05-02T12:00:00.000001", "2011-05-03", "1969-12-31"),
    ("", False, -(2**63), "-99999999999999.9999", -0.0, "0001-01-01", "2011-05-03", "0001-01-01"),
    ("張\n\t\\", None, 2**63 - 1, "0", 1e-300, "9999-12-31", "2011-05-03", "9999-12-31"),
    (None, None, None, None, None, "1970-01-01", "2011-05-03", None),
    ("a\x01\x02\x03b", False, 1, "1", 1.5, "2000-01-01", "2011-05-03", None),
    ("\x04", False, 1, "1", 1.5, "2000-01-01", "2011-05-04", None),
    ("x" * 10_000, True, 0, "0.0001", float("inf"), "2000-01-01", "2011-05-04", "2000-01-01"),
]


def load(warehouse: Settings, rows: Sequence[tuple[Any, ...]]) -> None:
    with closing(psycopg2.connect(warehouse.warehouse_url)) as connection, connection:
        cursor = connection.cursor()
        cursor.execute(
            "create schema marts; create table marts.fct_values (id serial, customer_id text,"
            " is_gift boolean, points bigint, price numeric(18, 4), weight float8,"
            " at timestamp not null, landed_date date not null, born date)"
        )
        columns = ", ".join(VALUES.columns)
        execute_values(cursor, f"insert into marts.fct_values ({columns}) values %s", rows)


def read(warehouse: Settings) -> list[dict[str, Any]]:
    """The rows as the extract reads them, piece by piece."""
    found: list[dict[str, Any]] = []
    nullable = set(VALUES.columns) - {"at", "landed_date"}
    days = Counter(row[6] for row in ROWS)
    with adbc.connect(warehouse.warehouse_url) as connection, connection.cursor() as cursor:
        for piece in extract.pieces(days):
            for separator in packing.SEPARATORS:
                cursor.execute(packing.rows_query(VALUES, piece, nullable, separator))
                batches = list(cursor.fetch_record_batch())
                if packing.ambiguous(batches, VALUES) is None:
                    break
            found += packing.unpacked(batches, VALUES).to_pylist()
    return found


@pytest.mark.parametrize("most_rows", [1, 2, 100])
def test_every_value_is_read_as_it_is(
    warehouse: Settings, monkeypatch: pytest.MonkeyPatch, most_rows: int
) -> None:
    load(warehouse, ROWS)
    monkeypatch.setattr(extract, "MOST_ROWS", most_rows)
    with closing(psycopg2.connect(warehouse.warehouse_url)) as connection:
        cursor = connection.cursor()
        cursor.execute(f"select {', '.join(VALUES.columns)} from marts.fct_values")
        there = [dict(zip(VALUES.columns, row, strict=True)) for row in cursor.fetchall()]

    found = read(warehouse)

    assert len(found) == len(ROWS)
    assert sorted(map(str, found)) == sorted(map(str, there))


@pytest.mark.parametrize(
    ("column", "value"), [("at", "infinity"), ("at", "294270-01-01"), ("born", "-infinity")]
)
def test_a_time_that_is_none_is_named(warehouse: Settings, column: str, value: str) -> None:
    row = dict(zip(VALUES.columns, ROWS[0], strict=True)) | {column: value}
    load(warehouse, [tuple(row.values())])
    with pytest.raises(NightshiftError, match=rf"fct_values\.{column} holds a .* that is infinite"):
        read(warehouse)
