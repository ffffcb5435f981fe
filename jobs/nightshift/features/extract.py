"""What the lake keeps of a mart: its rows by landed month, in buckets of entities. Pure.

A month's file has one row group a bucket; the rows of a bucket are ordered by entity and event
time. A reader takes one bucket of every month, and holds whole entities.
"""

import zlib
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from nightshift.errors import NightshiftError
from nightshift.spec import Source

Array = npt.NDArray[np.int64]

FILE = "part-00000.parquet"
BUCKETS = 16
"""Parts that the entities of every source are hashed into: as many tasks can work at once."""
FORMAT = 1
"""To be raised with a change of what a month's file holds."""
DECIMAL = pa.decimal128(18, 4)
TIE = "__tie"
"""Column that orders the rows of an entity at one instant: a hash of the row's id."""
_TYPES: dict[str, pa.DataType] = {
    "string": pa.dictionary(pa.int32(), pa.string()),
    "boolean": pa.bool_(),
    "integer": pa.int64(),
    "decimal": DECIMAL,
    "double": pa.float64(),
    "timestamp": pa.timestamp("us"),
    "date": pa.date32(),
}
# Postgres' numeric reaches Arrow as text; a bigint would lose the places.
_CASTS = {
    "string": "text",
    "boolean": "boolean",
    "integer": "bigint",
    "decimal": "text",
    "double": "double precision",
    "timestamp": "timestamp",
    "date": "date",
}
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
    """One row a landed day: the day, and a text that is another when its rows are others.

    A mart that ``marts.fct_landed_days`` counts is not read for it; any other is read whole.
    """
    if source.landed_days is not None:
        return (
            "select landed_date, build_id from marts.fct_landed_days"
            f" where source = '{source.landed_days}' and rows_kept > 0 order by 1"
        )
    landed = quote(source.landed_date)
    columns = ", ".join(quote(name) for name in dict.fromkeys((source.row_id, *source.columns)))
    return (
        f"select {landed}, count(*) || ':' || bit_xor(hash_record_extended(row({columns}), 0))"
        f" from {quote(source.relation)} where {landed} is not null group by 1 order by 1"
    )


def rows_query(source: Source, days: Sequence[str]) -> str:
    """The rows that landed on ``days``, in the columns of :func:`schema`."""
    columns = ", ".join(
        f"{quote(name)}::{_CASTS[kind]} as {quote(name)}" for name, kind in source.columns.items()
    )
    listed = ", ".join(f"'{day}'" for day in days)
    return (
        f"select {columns}, hashtextextended({quote(source.row_id)}::text, 0) as {TIE}"
        f" from {quote(source.relation)}"
        f" where {quote(source.landed_date)} = any(array[{listed}]::date[])"
    )


def schema(source: Source) -> pa.Schema:
    """The columns of the lake's copy: those of the source, and the tie breaker."""
    fields = [(name, _TYPES[kind]) for name, kind in source.columns.items()]
    return pa.schema([*fields, (TIE, pa.int64())])


def typed(table: pa.Table, source: Source) -> pa.Table:
    """The rows that ``rows_query`` gave, in the types of :func:`schema`.

    Raises:
        NightshiftError: when a value does not fit its type, such as a NaN among decimals.
    """
    wanted = schema(source)
    columns = []
    for field in wanted:
        column = table[field.name]
        if pa.types.is_dictionary(field.type):
            column = pc.dictionary_encode(column)
        try:
            columns.append(column.cast(field.type))
        except pa.ArrowInvalid as error:
            raise _unfit(table, source, field) from error
    return pa.table(columns, schema=wanted).unify_dictionaries().combine_chunks()


def _unfit(table: pa.Table, source: Source, field: pa.Field) -> NightshiftError:
    """Which value of a column cannot be of the field's type, and when it landed."""
    for value in pc.unique(table[field.name]):
        try:
            value.cast(field.type)
        except pa.ArrowInvalid:
            row = pc.index(table[field.name], value).as_py()
            break
    landed = table[source.landed_date][row]
    return NightshiftError(
        f"{source.relation}.{field.name} holds {value}, which is no {field.type}, in a row that"
        f" landed on {landed}",
        f"select {source.row_id} from {source.relation} where {field.name} = '{value}': correct"
        " the dbt model or land the file again; or declare the column as double",
    )


def bucket_of(key: str, buckets: int) -> int:
    """The bucket of an entity: the same in every source, month and version."""
    return zlib.crc32(key.encode()) % buckets


def arranged(table: pa.Table, source: Source, key: str, buckets: int) -> list[pa.Table]:
    """The rows with a key and a time, bucket by bucket, ordered by key, event time and tie."""
    known = pc.and_(pc.is_valid(table[key]), pc.is_valid(table[source.event_time]))
    if not pc.all(known).as_py():
        table = table.filter(known)
    keys = pc.dictionary_encode(table[key].cast(pa.string())).combine_chunks()
    names = keys.dictionary.to_pylist()
    bucket = np.array([bucket_of(name, buckets) for name in names], np.int64)
    # the rank of each key among all, the buckets one after the other
    order = np.lexsort((np.array(names, object), bucket))
    rank = np.empty(len(names), np.int64)
    rank[order] = np.arange(len(names))
    ranks = rank[keys.indices.to_numpy()]
    times = table[source.event_time].cast(pa.timestamp("us")).cast(pa.int64()).to_numpy()
    rows = np.lexsort((table[TIE].to_numpy(), *_packed(times, ranks)))
    bounds = np.searchsorted(bucket[order][ranks[rows]], np.arange(buckets + 1))
    table = table.take(pa.array(rows))
    return [
        _with_own_dictionaries(table.slice(start, end - start)) for start, end in pairwise(bounds)
    ]


def _packed(minor: Array, major: Array) -> tuple[Array, ...]:
    """Sort keys of (major, minor), the minor first: one number where it has the room of both."""
    if not len(minor):
        return minor, major
    least = int(minor.min())
    bits = (int(minor.max()) - least).bit_length()
    if int(major.max()).bit_length() + bits > 63:
        return minor, major
    return ((major << bits) | (minor - least),)


def _with_own_dictionaries(table: pa.Table) -> pa.Table:
    """The same table; its dictionaries hold what occurs in it and nothing else, ascending."""
    for position, name in enumerate(table.column_names):
        column = table.column(position)
        if pa.types.is_dictionary(column.type):
            column = column.combine_chunks()
            used = pc.unique(column.indices).drop_null()
            values = column.dictionary.take(used)
            order = pc.sort_indices(values)
            column = pa.DictionaryArray.from_arrays(
                pc.index_in(column.indices, used.take(order)), values.take(order)
            )
            table = table.set_column(position, name, column)
    return table


def write(file: Path, buckets: Sequence[pa.Table]) -> None:
    """Write a month's file, durably; each bucket is one row group, and each page has a checksum."""
    strings = [f.name for f in buckets[0].schema if pa.types.is_dictionary(f.type)]
    with pq.ParquetWriter(
        file,
        buckets[0].schema,
        compression="lz4",
        use_dictionary=strings,
        write_statistics=False,
        write_page_checksum=True,
    ) as writer:
        for bucket in buckets:
            writer.write_table(bucket, row_group_size=max(1, bucket.num_rows))


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
