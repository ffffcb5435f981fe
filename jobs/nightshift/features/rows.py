"""Rows of a source as the kernel wants them: Arrow tables to plain arrays and codes. Pure."""

import re
from collections.abc import Sequence
from functools import cache
from typing import Any

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from nightshift.features import extract, kernel
from nightshift.spec import ColumnType, FeatureGroup, Key, Source, key_columns

_APART = "\0"
"""Between the parts of a key of several columns: text from Postgres never holds it."""


def columns_read(source: Source, groups: Sequence[FeatureGroup]) -> list[str]:
    """The columns of the source that the groups need."""
    return named_in(
        source,
        source.event_time,
        source.landed_date,
        *(sql for group in groups for sql in (*group.key_columns, *group.measured)),
        *(sql for group in groups for sql in group.conditions),
    )


def named_in(source: Source, *sql: str | None) -> list[str]:
    """The columns of the source that occur in SQL."""
    words = {word for text in sql for word in re.findall(r"\w+", text or "")}
    return [name for name in source.columns if name in words]


def entity_names(columns: Sequence[pa.Array]) -> pa.Array:
    """One text for each entity, of the columns of its key; null where one of them is."""
    if len(columns) == 1:
        (column,) = columns
        is_text = pa.types.is_dictionary(column.type) or pa.types.is_string(column.type)
        return column if is_text else column.cast(pa.string())
    return pc.binary_join_element_wise(*(c.cast(pa.string()) for c in columns), _APART)


def key_parts(names: pa.StringArray, count: int) -> list[pa.StringArray]:
    """The columns again, of what :func:`entity_names` gave."""
    if count == 1:
        return [names]
    parts = pc.split_pattern(names, _APART)
    return [pc.list_element(parts, position) for position in range(count)]


def kernel_events(
    table: pa.Table, source: Source, key: Key, groups: Sequence[FeatureGroup]
) -> tuple[kernel.Events, pa.StringArray, dict[str, pa.StringArray]]:
    """Rows of a source, in its columns, as the kernel's events.

    Args:
        table: text is dictionary-encoded; rows without a whole key are left out.
        source, key: of all the groups.
        groups: what they need is made.

    Returns:
        The events, the entities by code, and the values of each measured text by code.
    """
    names = entity_names([table[column].combine_chunks() for column in key_columns(key)])
    if names.null_count:
        table, names = table.filter(names.is_valid()), names.filter(names.is_valid())
    conditions = list(dict.fromkeys(sql for group in groups for sql in group.conditions))
    measured: dict[str, ColumnType] = {}
    for group in groups:
        measured |= group.measured
    expressions = [name for name in measured if name not in source.columns]
    found = evaluated(table, [*conditions, *expressions])
    values: dict[str, npt.NDArray[Any]] = {}
    valid: dict[str, npt.NDArray[np.bool_]] = {}
    texts: dict[str, pa.StringArray] = {}
    for name, kind in measured.items():
        column = found[name] if name in found else table[name].combine_chunks()
        valid[name] = np.asarray(column.is_valid())
        if kind == "string":
            values[name], texts[name] = codes(column)
        else:
            values[name] = as_numbers(column, kind)
    entity, entities = codes(names)
    return (
        kernel.Events(
            entity=entity,
            entities=len(entities),
            time_us=as_numbers(table[source.event_time].combine_chunks(), "timestamp"),
            landed_day=as_numbers(table[source.landed_date].combine_chunks(), "date"),
            flags={sql: np.asarray(pc.fill_null(found[sql], False)) for sql in conditions},
            values=values,
            valid=valid,
        ),
        entities,
        texts,
    )


def evaluated(table: pa.Table, expressions: Sequence[str]) -> dict[str, pa.Array]:
    """SQL over the table's columns, by DuckDB."""
    if not expressions:
        return {}
    listed = ", ".join(f"({sql}) as e{i}" for i, sql in enumerate(expressions))
    with _database().cursor() as database:  # a cursor sees no other's tables
        database.register("source", table)
        found = database.sql(f"select {listed} from source").to_arrow_table()
    return {sql: found.column(i).combine_chunks() for i, sql in enumerate(expressions)}


@cache
def _database() -> duckdb.DuckDBPyConnection:
    """One a process, for it takes longer to open than most questions to answer."""
    return duckdb.connect(config={"threads": 1})


def codes(column: pa.Array) -> tuple[npt.NDArray[np.int64], pa.StringArray]:
    """Codes that sort as the text does, 0 for null, and the text by code."""
    if not pa.types.is_dictionary(column.type):
        column = column.cast(pa.string()).dictionary_encode()
    order = pc.sort_indices(column.dictionary)
    rank = np.empty(len(order), np.int64)
    rank[order.to_numpy()] = np.arange(len(order))
    codes = pc.fill_null(column.indices, 0).to_numpy()
    ranked = rank[codes] if len(rank) else np.zeros(len(codes), np.int64)
    return ranked, column.dictionary.take(order).cast(pa.string())


def as_numbers(column: pa.Array, kind: ColumnType) -> npt.NDArray[Any]:
    """A column for the kernel, 0 for null: decimals in 1/10,000, times in microseconds."""
    if kind == "decimal":
        column = column.cast(extract.DECIMAL)
        # of 128 bits the lower 64: 18 digits have room in them
        places = np.frombuffer(column.buffers()[1] or b"", np.int64)[::2]
        numbers = places[column.offset : column.offset + len(column)]
        return np.where(np.asarray(column.is_valid()), numbers, 0)
    if kind == "timestamp":
        column = column.cast(pa.timestamp("us")).cast(pa.int64())
    elif kind == "date":
        column = column.cast(pa.date32()).cast(pa.int32()).cast(pa.int64())
    elif kind == "double":
        return np.asarray(pc.fill_null(column.cast(pa.float64()), 0.0))
    else:
        column = column.cast(pa.int64())
    return np.asarray(pc.fill_null(column, 0))
