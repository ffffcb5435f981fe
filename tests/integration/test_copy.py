from collections.abc import Iterator
from datetime import date, datetime
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest
from psycopg2 import DataError

from nightshift.io.copy import MESSAGE_ROWS, copy_batches
from nightshift.io.warehouse import connect
from nightshift.settings import Settings

ROW = {
    "a text": 'Zoë, "x"\n\t\\N',
    "whole": -(2**31),
    "large": 2**63 - 1,
    "amount": Decimal("-1234567890.0009"),
    "instant": datetime.fromisoformat("0001-01-01 23:59:59"),
    "day": date(9999, 12, 31),
}
SCHEMA = pa.schema(
    {
        "a text": pa.string(),
        "whole": pa.int32(),
        "large": pa.int64(),
        "amount": pa.decimal128(14, 4),
        "instant": pa.timestamp("us"),
        "day": pa.date32(),
    }
)
CREATE = (
    'create table ops.copied ("a text" text, whole integer, large bigint, amount numeric(14, 4),'
    " instant timestamp, day date)"
)


def query(settings: Settings, sql: str) -> list[tuple[Any, ...]]:
    with connect(settings) as connection, connection.cursor() as cursor:
        cursor.execute(sql)
        return list(cursor.fetchall())


def batches(rows: int) -> Iterator[pa.RecordBatch]:
    good = pa.RecordBatch.from_pylist([ROW], SCHEMA)
    none = pa.RecordBatch.from_pylist([dict.fromkeys(ROW)], SCHEMA)
    yield good
    yield none
    yield from pa.Table.from_batches([good]).take([0] * rows).to_batches()


def test_every_type_and_null_arrive_as_they_were(warehouse: Settings) -> None:
    with connect(warehouse) as connection:
        connection.cursor().execute(CREATE)
        copy_batches(connection, "ops.copied", SCHEMA, batches(MESSAGE_ROWS + 1))

    rows = query(
        warehouse, "select *, count(*) from ops.copied group by 1, 2, 3, 4, 5, 6 order by 7"
    )
    assert rows == [(*[None] * 6, 1), (*ROW.values(), MESSAGE_ROWS + 2)]


def test_an_error_of_the_batches_is_the_error_and_nothing_is_appended(warehouse: Settings) -> None:
    def broken() -> Iterator[pa.RecordBatch]:
        yield from batches(300_000)
        raise ArithmeticError("in the middle")

    with connect(warehouse) as connection:
        connection.cursor().execute(CREATE)
    with pytest.raises(ArithmeticError, match="in the middle"), connect(warehouse) as connection:
        copy_batches(connection, "ops.copied", SCHEMA, broken())

    assert query(warehouse, "select count(*) from ops.copied") == [(0,)]


def test_an_error_of_the_server_is_raised_and_the_batches_are_let_go(warehouse: Settings) -> None:
    with connect(warehouse) as connection:
        connection.cursor().execute(
            CREATE + "; alter table ops.copied add check (whole is not null)"
        )
    with (
        pytest.raises(Exception, match="violates check constraint"),
        connect(warehouse) as connection,
    ):
        copy_batches(connection, "ops.copied", SCHEMA, batches(300_000))


def test_text_becomes_jsonb_and_what_is_none_is_refused(warehouse: Settings) -> None:
    schema = pa.schema({"told": pa.string()})

    def copy(*texts: str | None) -> None:
        with connect(warehouse) as connection:
            connection.cursor().execute("create table ops.told (told jsonb)")
            rows = iter([pa.RecordBatch.from_pydict({"told": texts}, schema)])
            copy_batches(connection, "ops.told", schema, rows, jsonb=["told"])

    copy('[{"a": 1.50}]', None)
    assert query(warehouse, "select told::text from ops.told order by 1") == [
        ('[{"a": 1.50}]',),
        (None,),
    ]
    with connect(warehouse) as connection:
        connection.cursor().execute("drop table ops.told")
    with pytest.raises(DataError, match="invalid input syntax for type json"):
        copy('["not json')
