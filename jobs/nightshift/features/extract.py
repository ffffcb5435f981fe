"""The extract's plan: which months of a mart changed, and the queries that read them. Pure."""

from collections.abc import Mapping
from datetime import date

import pyarrow as pa
import pyarrow.compute as pc

from nightshift.spec import Source

DECIMAL = pa.decimal128(18, 4)
_TYPES: dict[str, pa.DataType] = {
    "string": pa.string(),
    "boolean": pa.bool_(),
    "integer": pa.int64(),
    "decimal": DECIMAL,
    "timestamp": pa.timestamp("us"),
    "date": pa.date32(),
}
# Postgres' numeric reaches Arrow as text; a bigint would lose the places.
_CASTS = {
    "string": "text",
    "boolean": "boolean",
    "integer": "bigint",
    "decimal": "text",
    "timestamp": "timestamp",
    "date": "date",
}


def quote(identifier: str) -> str:
    """A quoted SQL identifier; a dotted name is quoted part by part."""
    return ".".join('"' + part.replace('"', '""') + '"' for part in identifier.split("."))


def fingerprint_query(source: Source) -> str:
    """One row a landed month: month, rows, and a checksum of what the lake keeps of them."""
    landed = quote(source.landed_date)
    columns = ", ".join(quote(name) for name in dict.fromkeys((source.row_id, *source.columns)))
    return (
        f"select date_trunc('month', {landed})::date, count(*), "
        f"bit_xor(hash_record_extended(row({columns}), 0)) "
        f"from {quote(source.relation)} group by 1 order by 1"
    )


def month_query(source: Source, month: date) -> str:
    """The rows that landed in ``month``, in the lake's columns."""
    columns = ", ".join(
        f"{quote(name)}::{_CASTS[kind]} as {quote(name)}" for name, kind in source.columns.items()
    )
    landed = quote(source.landed_date)
    return (
        f"select {columns} from {quote(source.relation)} where {landed} >= date '{month}' "
        f"and {landed} < date '{month}' + interval '1 month'"
    )


def schema(source: Source) -> pa.Schema:
    """The extract's Arrow schema."""
    return pa.schema([(name, _TYPES[kind]) for name, kind in source.columns.items()])


def typed(table: pa.Table, source: Source) -> pa.Table:
    """The table that a month's query gave, in the extract's types."""
    columns = [pc.cast(table[name], field.type) for name, field in _fields(source).items()]
    return pa.table(columns, schema=schema(source))


def _fields(source: Source) -> dict[str, pa.Field]:
    return {field.name: field for field in schema(source)}


def changed(known: Mapping[str, str], current: Mapping[str, str]) -> list[str]:
    """The months whose signature is new or another than before."""
    return [month for month, signature in current.items() if known.get(month) != signature]
