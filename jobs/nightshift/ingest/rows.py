"""A batch of landed text to typed rows and broken rows, in columns."""

import csv
import io
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nightshift.contracts import Column, SourceContract
from nightshift.ingest.formats import TextBatch, may_hold

MASK = "•••"
"""What stands in the quarantine for a value that may be personal data."""
MAX_KEPT_CHARACTERS = 10_000
"""A broken value or row is kept up to here; the file and the row number lead to the rest."""

_RULES = {
    "integer": "a whole number",
    "number": "a decimal number",
    "timestamp": "a date and time YYYY-MM-DD HH:MM:SS",
}
_INTEGERS = {
    "integer": (r"^-?[0-9]{1,9}$", pa.int32()),
    "bigint": (r"^-?[0-9]{1,18}$", pa.int64()),
}
# There is no year 0, and Postgres would take it for 1 BC.
_INSTANT = (
    r"^([1-9][0-9]{3}|0[1-9][0-9]{2}|00[1-9][0-9]|000[1-9])"
    r"-[0-9]{2}-[0-9]{2} [0-9]{2}:[0-9]{2}:[0-9]{2}$"
)
_EARLIEST, _LATEST = (
    np.frombuffer(text, np.uint8) for text in (b"1000-00-00 00:00:00", b"9999-99-99 99:99:99")
)
BROKEN_SCHEMA = pa.schema(
    {
        "_row_number": pa.int64(),
        "column_name": pa.string(),
        "rule": pa.string(),
        "value": pa.string(),
        "row_as_landed": pa.string(),
    }
)
_Broken = tuple[int, str | None, str, str | None, str]
_Violations = dict[int, tuple[Column, str]]


@dataclass(frozen=True)
class CheckedRows:
    """The rows of a batch.

    Attributes:
        good: the contract's columns, typed, and ``_row_number`` (int64, 1 = first data row).
        broken: ``_row_number``, ``column_name``, ``rule``, ``value``, ``row_as_landed``; values of
            columns with personal data are masked.
    """

    good: pa.Table
    broken: pa.Table

    @property
    def rows_in(self) -> int:
        """Data rows in the batch."""
        return int(self.good.num_rows + self.broken.num_rows)


def good_schema(contract: SourceContract) -> pa.Schema:
    """The schema of ``CheckedRows.good``."""
    fields = [(column.name, _arrow_type(column)) for column in contract.columns]
    return pa.schema([*fields, ("_row_number", pa.int64())])


def check(contract: SourceContract, batch: TextBatch, landed_date: date) -> CheckedRows:
    """Check every row of a batch of a file that landed on ``landed_date``."""
    typed, violations = _typed(contract, batch.rows, landed_date)
    numbers = batch.numbers
    broken: list[_Broken] = [
        (row.number, row.column, row.rule, None, _masked_text(contract, row.text))
        for row in batch.unread
    ]
    if violations:
        broken += _described(contract, batch.rows, numbers, violations)
        is_good = pa.array([i not in violations for i in range(len(numbers))], pa.bool_())
        typed, numbers = typed.filter(is_good), numbers.filter(is_good)
    broken.sort(key=lambda row: row[0])
    return CheckedRows(good=typed.append_column("_row_number", numbers), broken=_table(broken))


def _table(broken: list[_Broken]) -> pa.Table:
    columns: Iterable[tuple[int | str | None, ...]] = (
        zip(*broken, strict=True) if broken else [()] * len(BROKEN_SCHEMA)
    )
    return pa.table(
        [
            pa.array([_storable(value) for value in values], field.type)
            for values, field in zip(columns, BROKEN_SCHEMA, strict=True)
        ],
        schema=BROKEN_SCHEMA,
    )


def _typed(
    contract: SourceContract, rows: pa.Table, landed_date: date
) -> tuple[pa.Table, _Violations]:
    """The typed table, and for each broken row its first broken column and the rule."""
    violations: _Violations = {}
    arrays = []
    for column in contract.columns:
        chunked = rows.column(column.landed_name)
        text = pa.concat_arrays(chunked.chunks) if chunked.num_chunks else pa.array([], pa.string())
        # No copy of a column is made that need not be: most have no gap and no fault.
        text = pc.fill_null(text, "")
        is_empty = pc.or_(pc.equal(text, ""), pc.utf8_is_space(text))
        filled = _null_where(is_empty, text)
        faults = [("a value (it is required)", is_empty)] if column.required else []
        if may_hold(chunked, b"\0"):
            faults.append(("no NUL character", pc.match_substring(text, "\0")))
        values = filled if column.kind == "string" else _cast(column, filled)
        if column.kind == "string":
            faults += _text_faults(column, filled)
        else:
            faults += _value_faults(column, filled, values)
            if column.name == contract.event_time:
                next_day = datetime.combine(landed_date, datetime.min.time()) + timedelta(days=1)
                later = pc.greater_equal(values, pa.scalar(next_day, pa.timestamp("us")))
                faults.append((f"not after the day it landed, {landed_date}", later))
        for rule, fault in faults:
            if pc.any(fault).as_py():
                for index in pc.indices_nonzero(pc.fill_null(fault, False)).to_pylist():
                    violations.setdefault(index, (column, rule))
        arrays.append(values)
    return pa.table(arrays, names=[c.name for c in contract.columns]), violations


def _text_faults(column: Column, text: pa.Array) -> list[tuple[str, pa.Array]]:
    faults = []
    if column.pattern:
        matches = pc.match_substring_regex(text, column.pattern)
        faults.append((f"text like {column.pattern}", pc.invert(matches)))
    if column.max_length and _longest(text) > column.max_length:
        longer = pc.greater(pc.utf8_length(text), column.max_length)
        faults.append((f"at most {column.max_length} characters", longer))
    if column.values:
        known = pc.is_in(text, pa.array(column.values))
        unknown = pc.and_(pc.invert(known), pc.is_valid(text))
        faults.append((f"one of {', '.join(column.values)}", unknown))
    return faults


def _value_faults(column: Column, text: pa.Array, values: pa.Array) -> list[tuple[str, pa.Array]]:
    faults = [(_RULES[column.kind], pc.and_(pc.is_null(values), pc.is_valid(text)))]
    if column.minimum is not None:
        faults.append((f"at least {column.minimum}", pc.less(values, pa.scalar(column.minimum))))
    if column.maximum is not None:
        faults.append((f"at most {column.maximum}", pc.greater(values, pa.scalar(column.maximum))))
    return faults


def _arrow_type(column: Column) -> pa.DataType:
    if column.kind == "integer":
        return _INTEGERS[column.sql_type][1]
    if column.kind == "number":
        return pa.decimal128(*column.precision_and_scale)
    return pa.timestamp("us") if column.kind == "timestamp" else pa.string()


def _cast(column: Column, text: pa.Array) -> pa.Array:
    """Typed values; null where the text is null or not of the type."""
    if column.kind == "integer":
        return _where(text, _INTEGERS[column.sql_type][0]).cast(_arrow_type(column))
    if column.kind == "number":
        precision, scale = column.precision_and_scale
        pattern = rf"^-?[0-9]{{1,{precision - scale}}}(\.[0-9]{{1,{scale}}})?$"
        return _where(text, pattern).cast(_arrow_type(column))
    shaped = text if _are_instants(text) else _where(text, _INSTANT)
    return pa.concat_arrays(_instants(shaped))


def _longest(text: pa.Array) -> int:
    """Bytes, so at least the characters, of the longest value."""
    return pc.max(pc.binary_length(text)).as_py() or 0


def _are_instants(text: pa.Array) -> bool:
    """Whether each value has the shape of ``_INSTANT``: a quick yes for what most columns hold."""
    length = len(_EARLIEST)
    if text.null_count or not pc.all(pc.equal(pc.binary_length(text), length)).as_py():
        return False
    _, offsets, data = text.buffers()
    first = int(np.frombuffer(offsets, np.int32)[text.offset])
    characters = np.frombuffer(data, np.uint8, length * len(text), first).reshape(-1, length)
    return bool(((characters >= _EARLIEST) & (characters <= _LATEST)).all())


def _instants(text: pa.Array) -> list[pa.Array]:
    """The timestamps, in pieces; null for a date that is on no calendar, such as a 30 February.

    Arrow refuses a whole array for one such value and does not say which: it is found by halving.
    """
    try:
        return [text.cast(pa.timestamp("us"))]
    except pa.ArrowInvalid:
        if len(text) == 1:
            return [pa.nulls(1, pa.timestamp("us"))]
        half = len(text) // 2
        return [*_instants(text[:half]), *_instants(text[half:])]


def _where(text: pa.Array, pattern: str) -> pa.Array:
    return _null_where(pc.invert(pc.match_substring_regex(text, pattern)), text)


def _null_where(is_null: pa.Array, text: pa.Array) -> pa.Array:
    if not pc.any(is_null).as_py():
        return text
    return pc.if_else(is_null, pa.scalar(None, pa.string()), text)


def _described(
    contract: SourceContract, rows: pa.Table, numbers: pa.Array, violations: _Violations
) -> list[_Broken]:
    indices = sorted(violations)
    landed = rows.take(pa.array(indices, pa.int64())).to_pylist()
    described: list[_Broken] = []
    for index, row in zip(indices, landed, strict=True):
        column, rule = violations[index]
        value = row[column.landed_name]
        line = io.StringIO()
        csv.writer(line, lineterminator="").writerow(
            MASK if c.is_pii and row[c.landed_name] else row[c.landed_name] or ""
            for c in contract.columns
        )
        described.append(
            (
                numbers[index].as_py(),
                column.landed_name,
                rule,
                MASK if column.is_pii and value else value or "",
                line.getvalue(),
            )
        )
    return described


def _masked_text(contract: SourceContract, text: str) -> str:
    """A row that could not be split: what of it may be personal data is not known."""
    if not contract.pii:
        return text
    return f"{MASK} ({len(text)} characters)"


def _storable(value: int | str | None) -> int | str | None:
    """Postgres has no NUL in text, and a quarantine is not the place for megabytes."""
    if not isinstance(value, str):
        return value
    return value[:MAX_KEPT_CHARACTERS].replace("\0", "\\0")
