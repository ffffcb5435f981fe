"""A mart's rows as the server packs them, a few large values for many rows, and back. Pure.

To take rows one by one costs the client ten times as much.
"""

from collections.abc import Collection, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from nightshift.errors import NightshiftError
from nightshift.features.extract import Piece, landed_on, quote, schema
from nightshift.spec import Source

SEPARATORS = range(1, 30, 2)
"""Bytes of ASCII that seldom are in a text, each with the next one, which stands for a null."""
# A number as the server packs it: bytes of one width, in the order of the network.
_SENT = {
    "integer": ("int8send({})", ">i8"),
    "decimal": ("int8send(({}::numeric * 10000)::bigint)", ">i8"),
    "double": ("float8send({}::double precision)", ">f8"),
    "timestamp": ("timestamp_send({})", ">i8"),
    "date": ("date_send({})", ">i4"),
}
_EPOCH_2000 = {"timestamp": 946_684_800_000_000, "date": 10_957}
"""From 1970 to 2000, where Postgres begins to count."""


def rows_query(
    source: Source, piece: Piece, nullable: Collection[str], separator: int = SEPARATORS[0]
) -> str:
    """The rows of a piece, packed by the server into one row a landed day: see :func:`unpacked`.

    Args:
        source: of the rows.
        piece: which of them.
        nullable: the columns that may hold a null.
        separator: of ``SEPARATORS``, for another text after one has proven to be in a value.
    """
    landed = quote(source.landed_date)
    packed = [landed, "count(*) as rows", f"{separator} as separator"]
    for name, kind in source.columns.items():
        if name == source.landed_date:
            continue
        column = quote(name)
        if kind == "boolean":
            value = f"case when {column} then '1' when not {column} then '0' else '2' end"
            packed.append(f"string_agg({value}, '') as {column}")
        elif kind == "string":
            # of a text, textsend would be half of the cost
            value = f"coalesce({column}::text, chr({separator + 1}))"
            packed.append(f"string_agg({value}, chr({separator})) as {column}")
            packed.append(f"count({column}) as {quote(name + ' known')}")
        else:
            send, number = _SENT[kind]
            value = send.format(column)
            if name in nullable:
                value = f"coalesce({value}, '\\x{'00' * np.dtype(number).itemsize}'::bytea)"
                is_null = f"string_agg(case when {column} is null then '1' else '0' end, '')"
                packed.append(f"{is_null} as {quote(name + ' null')}")
            packed.append(f"string_agg({value}, ''::bytea) as {column}")
    share = ""
    if piece.parts > 1:
        number = f"hashtextextended({quote(source.row_id)}::text, 0) & 9223372036854775807"
        share = f" and ({number}) % {piece.parts} = {piece.part}"
    return (
        f"select {', '.join(packed)} from {quote(source.relation)}"
        f" where {landed_on(source, piece.days)}{share} group by {landed}"
    )


def ambiguous(packed: Sequence[pa.RecordBatch], source: Source) -> str | None:
    """A column of which a text holds what is to separate the texts, or stands for a null."""
    for name, kind in source.columns.items():
        for batch, day in _days(packed) if kind == "string" else ():
            rows, known = batch["rows"][day].as_py(), batch[f"{name} known"][day].as_py()
            separator = batch["separator"][day].as_py()
            text = _bytes(batch, name, day)
            if np.count_nonzero(text == separator) != rows - 1:
                return name
            if np.count_nonzero(text == separator + 1) != rows - known:
                return name
    return None


def unpacked(packed: Sequence[pa.RecordBatch], source: Source) -> pa.Table:
    """The rows that ``rows_query`` gave in few, in the types of :func:`extract.schema`.

    Args:
        packed: with one separator, and not ``ambiguous``; at least one batch.
        source: of the rows.

    Raises:
        NightshiftError: a time or date is infinite, or out of the range of microseconds.
    """
    wanted = schema(source)
    packed = [batch for batch in packed if batch.num_rows]
    if not packed:
        return wanted.empty_table()
    return pa.table([_column(packed, field, source) for field in wanted], wanted)


def _column(packed: Sequence[pa.RecordBatch], field: pa.Field, source: Source) -> pa.Array:
    name, kind = field.name, source.columns[field.name]
    if name == source.landed_date:
        days = [batch[name].view(pa.int32())[day].as_py() for batch, day in _days(packed)]
        return pa.array(np.repeat(np.array(days, np.int32), _rows(packed))).view(field.type)
    if kind == "string":
        return _encoded(packed, name)
    sent = np.concatenate([_bytes(batch, name, day) for batch, day in _days(packed)])
    if kind == "boolean":
        return pa.array(sent == ord("1"), mask=sent == ord("2"))
    is_null = None
    if f"{name} null" in packed[0].schema.names:
        nulls = [_bytes(batch, f"{name} null", day) for batch, day in _days(packed)]
        is_null = np.concatenate(nulls) == ord("1")
    numbers = sent.view(_SENT[kind][1])
    values = numbers.astype(numbers.dtype.newbyteorder("="))
    if kind in _EPOCH_2000:
        since, limits = _EPOCH_2000[kind], np.iinfo(values.dtype)
        is_far = (values > limits.max - since) | (values == limits.min)
        if is_far.any():
            days = [batch[source.landed_date][day] for batch, day in _days(packed)]
            landed = days[np.searchsorted(np.cumsum(_rows(packed)), is_far.argmax(), "right")]
            raise NightshiftError(
                f"{source.relation}.{name} holds a {kind} that is infinite, or too far away,"
                f" in a row that landed on {landed}",
                "correct the dbt model, or land the file again",
            )
        values += since
    found = pa.array(values, mask=is_null)
    if kind == "decimal":  # from 1/10,000: the same digits with another point
        return found.cast(pa.decimal128(19, 0)).view(field.type)
    return found.view(field.type) if kind in _EPOCH_2000 else found


def _encoded(packed: Sequence[pa.RecordBatch], name: str) -> pa.DictionaryArray:
    """Texts, encoded with the separator after each, without it."""
    separator = packed[0]["separator"][0].as_py()
    after = np.array([separator], np.uint8)
    text = np.concatenate(
        [part for batch, day in _days(packed) for part in (_bytes(batch, name, day), after)]
    )
    ends = np.append(0, np.flatnonzero(text == separator) + 1)
    buffers = [None, pa.py_buffer(ends), pa.py_buffer(text)]
    found = pc.dictionary_encode(
        pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(ends) - 1, buffers)
    )
    dictionary = pc.binary_slice(found.dictionary, 0, -1)
    null = pc.index(dictionary, pa.scalar(bytes([separator + 1]), dictionary.type)).as_py()
    indices = found.indices
    if null >= 0:
        indices = pc.if_else(pc.equal(indices, null), pa.scalar(None, indices.type), indices)
    return pa.DictionaryArray.from_arrays(indices, dictionary.cast(pa.string()))


def _days(packed: Sequence[pa.RecordBatch]) -> Iterator[tuple[pa.RecordBatch, int]]:
    """Each row of the batches: one of a landed day, or of a share of it."""
    return ((batch, day) for batch in packed for day in range(batch.num_rows))


def _rows(packed: Sequence[pa.RecordBatch]) -> list[int]:
    """How many rows of the mart are packed in each."""
    return [batch["rows"][day].as_py() for batch, day in _days(packed)]


def _bytes(batch: pa.RecordBatch, name: str, day: int) -> npt.NDArray[np.uint8]:
    return np.frombuffer(batch[name][day].as_buffer(), np.uint8)
