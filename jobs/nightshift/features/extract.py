"""What the lake keeps of a mart: its rows by landed month, in buckets of entities. Pure.

A month's file has one row group a bucket; the rows of a bucket are ordered by entity, event time,
and then by all else that they hold, so that equal rows make equal files. A reader takes one bucket
of every month, and holds whole entities.
"""

import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from nightshift.errors import NightshiftError
from nightshift.spec import Source

Array = npt.NDArray[np.int64]

FILE = "part-00000.parquet"
FORMAT = 2
"""To be raised with a change of what a month's file holds."""
DECIMAL = pa.decimal128(18, 4)
_TYPES: dict[str, pa.DataType] = {
    "string": pa.dictionary(pa.int32(), pa.string()),
    "boolean": pa.bool_(),
    "integer": pa.int64(),
    "decimal": DECIMAL,
    "double": pa.float64(),
    "timestamp": pa.timestamp("us"),
    "date": pa.date32(),
}
_DELTA_ENCODED = ("integer", "decimal", "timestamp", "date")
MOST_ROWS = 1_000_000
"""That are packed at once: what a statement may hold in the server's memory."""
_SQL_TYPES: dict[str, tuple[str, ...]] = {
    "string": ("text", "character varying", "character"),
    "boolean": ("boolean",),
    "integer": ("bigint", "integer", "smallint"),
    "decimal": ("numeric", "bigint", "integer", "smallint"),
    "double": ("double precision", "real", "numeric", "bigint", "integer", "smallint"),
    "timestamp": ("timestamp without time zone",),
    "date": ("date",),
}


class DamagedMonth(NightshiftError):
    """A month's file that cannot be read as it was written."""


def quote(identifier: str) -> str:
    """A quoted SQL identifier; a dotted name is quoted part by part."""
    return ".".join('"' + part.replace('"', '""') + '"' for part in identifier.split("."))


def days_query(source: Source) -> str:
    """One row a landed day: the day, a text that is another when its rows are others, their number.

    A mart that ``marts.fct_landed_days`` counts is not read for it; any other is read whole.
    """
    if source.landed_days is not None:
        return (
            "select landed_date, build_id, rows_kept from marts.fct_landed_days"
            f" where source = '{source.landed_days}' and rows_kept > 0 order by 1"
        )
    landed = quote(source.landed_date)
    columns = ", ".join(quote(name) for name in dict.fromkeys((source.row_id, *source.columns)))
    return (
        f"select {landed}, count(*) || ':' || bit_xor(hash_record_extended(row({columns}), 0)),"
        f" count(*) from {quote(source.relation)} where {landed} is not null group by 1 order by 1"
    )


@dataclass(frozen=True)
class Piece:
    """Some of a mart's rows: those of landed days, or of one large day a share by their ids."""

    days: tuple[str, ...]
    part: int = 0
    parts: int = 1

    def split(self) -> list["Piece"]:
        """The same rows in four."""
        parts = 4 * self.parts
        return [Piece(self.days, self.part + self.parts * i, parts) for i in range(4)]


def pieces(rows: Mapping[str, int]) -> list[Piece]:
    """Landed days, each with its number of rows, in pieces that are not too large."""
    found: list[list[str]] = []
    room = 0
    for day, count in rows.items():
        if not found or count > room:
            found.append([])
            room = MOST_ROWS
        found[-1].append(day)
        room -= count
    return [
        Piece(tuple(days), part, parts)
        for days in found
        for parts in [-(-sum(rows[day] for day in days) // MOST_ROWS)]
        for part in range(parts)
    ]


def unfit_query(source: Source, columns: Sequence[str], days: Sequence[str]) -> str:
    """A value of these columns that no decimal of the lake can be, on ``days``, if there is one.

    One row: the column, the value, the id of its row, the day on which that landed.
    """
    values = ", ".join(f"('{name}', {quote(name)}::numeric)" for name in columns)
    return (
        f"select name, value::text, {quote(source.row_id)}::text, {quote(source.landed_date)}"
        f" from {quote(source.relation)}"
        f" cross join lateral (values {values}) as found (name, value)"
        f" where {landed_on(source, days)}"
        # a NaN is greater than any number
        " and (abs(value) >= 1e14 or value <> round(value, 4)) limit 1"
    )


def landed_on(source: Source, days: Sequence[str]) -> str:
    listed = ", ".join(f"'{day}'" for day in days)
    return f"{quote(source.landed_date)} = any(array[{listed}]::date[])"


def decimals(source: Source) -> list[str]:
    """The columns that are declared as decimals."""
    return [name for name, kind in source.columns.items() if kind == "decimal"]


def loose_decimals(source: Source, found: Mapping[str, str]) -> list[str]:
    """The decimals whose type in the mart admits numbers of more digits or places."""
    return [name for name in decimals(source) if not _fits(found[name])]


def _fits(sql_type: str) -> bool:
    """Whether all numbers of the type are decimals of the lake; a NaN never is."""
    if sql_type in ("integer", "smallint"):
        return True
    declared = re.fullmatch(r"numeric\((\d+),(-?\d+)\)", sql_type)
    if declared is None:
        return False
    precision, scale = map(int, declared.groups())
    return scale <= DECIMAL.scale and precision - scale <= DECIMAL.precision - DECIMAL.scale


def schema(source: Source) -> pa.Schema:
    """The columns of the lake's copy."""
    return pa.schema([(name, _TYPES[kind]) for name, kind in source.columns.items()])


def bucket_of(key: str, buckets: int) -> int:
    """The bucket of an entity: the same in every source, month and version."""
    return zlib.crc32(key.encode()) % buckets


def arranged(table: pa.Table, source: Source, key: str, buckets: int) -> Iterator[pa.Table]:
    """The rows with a key and a time, bucket by bucket, ordered by key, event time and content.

    A bucket's dictionaries hold what occurs in it and nothing else, ascending.
    """
    table = table.unify_dictionaries().combine_chunks()
    keys, times = (table[name].combine_chunks() for name in (key, source.event_time))
    if not pa.types.is_dictionary(keys.type):
        keys = pc.dictionary_encode(keys.cast(pa.string()))
    # one row more, for a dictionary may be empty
    bucket = np.array([*(bucket_of(name, buckets) for name in keys.dictionary.to_pylist()), 0])
    rows = np.flatnonzero(pc.and_(keys.is_valid(), times.is_valid()))
    of_rows = bucket.astype(np.min_scalar_type(buckets))[pc.fill_null(keys.indices, 0)][rows]
    rows = rows[np.argsort(of_rows, kind="stable")]  # a radix sort, of such small numbers
    bounds = np.cumsum(np.bincount(of_rows, minlength=buckets))
    compared = dict.fromkeys([key, source.event_time, *table.column_names])
    for start, end in pairwise([0, *bounds]):
        part = _with_own_dictionaries(table.take(pa.array(rows[start:end])))
        columns = {name: _comparable(part[name].combine_chunks()) for name in compared}
        order = _in_order(np.arange(len(part)), list(chain.from_iterable(columns.values())))
        yield part.take(pa.array(order))


def _with_own_dictionaries(table: pa.Table) -> pa.Table:
    """The same table; its dictionaries hold what occurs in it and nothing else, ascending."""
    for position, field in enumerate(table.schema):
        if pa.types.is_dictionary(field.type):
            column = table.column(position).combine_chunks()
            is_used = np.zeros(len(column.dictionary), bool)
            is_used[column.indices.drop_null()] = True
            used = np.flatnonzero(is_used)
            used = used[pc.sort_indices(column.dictionary.take(pa.array(used)))]
            code = np.zeros(len(is_used), np.int32)
            code[used] = np.arange(len(used))
            column = pa.DictionaryArray.from_arrays(
                pa.array(code).take(column.indices), column.dictionary.take(pa.array(used))
            )
            table = table.set_column(position, field.name, column)
    return table


def _comparable(column: pa.Array) -> list[Array]:
    """A column as integers that sort alike; nulls apart, where there are any.

    Doubles, which sort by their bits, are the exception: an order all the same.
    """
    if pa.types.is_dictionary(column.type):
        numbers = column.indices
    elif pa.types.is_boolean(column.type):
        numbers = column.cast(pa.int8())
    elif pa.types.is_decimal(column.type):
        # of 128 bits the lower 64: 18 digits have room in them
        whole = pa.concat_arrays([column, column[:0]])  # begins at its buffer's begin
        words = np.frombuffer(whole.buffers()[1] or b"", np.int64)[::2]
        numbers = pa.array(words, mask=np.asarray(column.is_null()))
    else:
        numbers = column.view(pa.int32() if pa.types.is_date32(column.type) else pa.int64())
    values = pc.fill_null(numbers, 0).to_numpy()
    if pa.types.is_timestamp(column.type):
        seconds = values // 1_000_000
        if np.array_equal(seconds * 1_000_000, values):  # more columns fit beside them
            values = seconds
    return [*([np.asarray(column.is_null()).view(np.int8)] if column.null_count else []), values]


def _in_order(
    rows: Array, columns: Sequence[npt.NDArray[Any]], group: Array | None = None
) -> Array:
    """The rows in the order of their group, and in it of the columns, the first before the second.

    As many columns as fit are packed into one number a row. What agrees in it, and only that, is
    then ordered by the columns that are left.

    Args:
        rows: positions in the columns, of length n.
        columns: integers; a value a position.
        group: a number for each of the n rows.
    """
    if not len(rows):
        return rows
    key, room = np.zeros(len(rows), np.int64), 63
    if group is not None:
        key, room = group, 63 - int(group.max()).bit_length()
    packed = 0
    for column in columns:
        values = column[rows].astype(np.int64)
        if packed == 0 and _bits(values) > room:  # their ranks always fit
            values = np.unique(values, return_inverse=True)[1]
        if (bits := _bits(values)) > room:
            break
        key = (key << bits) | (values - values.min())
        room -= bits
        packed += 1
    order = np.argsort(key)
    rows = rows[order]
    if packed == len(columns):
        return rows
    differs = np.diff(key[order], prepend=-1) != 0
    is_tied = ~(differs & np.append(differs[1:], True))
    groups = np.cumsum(differs)[is_tied]
    rows[is_tied] = _in_order(rows[is_tied], columns[packed:], groups)
    return rows


def _bits(values: Array) -> int:
    """How many bits tell the values apart."""
    return (int(values.max()) - int(values.min())).bit_length()


def write(file: Path, table: pa.Table, source: Source, key: str, buckets: int) -> int:
    """Write a month's file, durably; each bucket is one row group, and each page has a checksum.

    Args:
        file: is written anew.
        table: the month's rows, in the columns of :func:`schema`.
        source: of the rows.
        key: what they are put into buckets by.
        buckets: how many.

    Returns:
        How many rows were written: those with a key and a time.
    """
    strings = [field.name for field in table.schema if pa.types.is_dictionary(field.type)]
    numbers = [name for name, kind in source.columns.items() if kind in _DELTA_ENCODED]
    rows = 0
    with pq.ParquetWriter(
        file,
        table.schema,
        compression="lz4",
        use_dictionary=strings,
        column_encoding=dict.fromkeys(numbers, "DELTA_BINARY_PACKED"),
        write_statistics=False,
        write_page_checksum=True,
        store_decimal_as_integer=True,
    ) as writer:
        for bucket in arranged(table, source, key, buckets):
            writer.write_table(bucket, row_group_size=max(1, bucket.num_rows))
            rows += bucket.num_rows
    return rows


def read(file: Path, bucket: int, source: Source, columns: Sequence[str]) -> pa.Table:
    """Columns of one bucket's rows of a month's file; text is dictionary-encoded.

    Raises:
        DamagedMonth: when the file is damaged; each page has a checksum.
    """
    strings = [name for name in columns if source.columns.get(name) == "string"]
    try:
        with pq.ParquetFile(
            file, read_dictionary=strings, page_checksum_verification=True
        ) as parquet:
            return parquet.read_row_group(bucket, columns=list(columns), use_threads=False)
    except FileNotFoundError:
        raise
    except (OSError, pa.ArrowException) as error:
        raise DamagedMonth(
            f"{file} is damaged: {' '.join(str(error).split())}",
            f"remove {file.parent}, and run the extract stage: it writes it anew",
        ) from error


def mistyped(source: Source, found: Mapping[str, str]) -> list[str]:
    """What of the mart is not as declared: columns it lacks, or of another type."""
    faults = []
    for name, kind in source.columns.items():
        if name not in found:
            faults.append(f"it has no column {name}")
        elif found[name].split("(")[0] not in _SQL_TYPES[kind]:
            faults.append(f"{name} is {found[name]}, declared as {kind}")
    return faults
