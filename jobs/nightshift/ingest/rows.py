"""A landed file's bytes to typed rows and broken rows, in columns.

A file that breaks its contract as a whole raises ``ContractError``; a single broken row is set
apart with the column, the rule and the value, and harms no other.
"""

import csv
import gzip
import io
import zlib
from collections import Counter
from dataclasses import dataclass
from datetime import date, datetime, timedelta

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv as pa_csv

from nightshift.contracts import Column, SourceContract
from nightshift.errors import ContractError

# Blocks end between rows, so a row must fit into one.
BLOCK_BYTES = 8 << 20

Broken = tuple[int, str | None, str, str | None, str]

_RULES = {
    "integer": "a whole number",
    "number": "a decimal number",
    "timestamp": "a date and time YYYY-MM-DD HH:MM:SS",
}


@dataclass(frozen=True)
class CheckedRows:
    """The rows of one file.

    Attributes:
        good: the contract's columns, typed, and ``_row_number`` (int64, 1 = first data row).
        broken: ``_row_number``, ``column_name``, ``rule``, ``value``, ``row_as_landed``.
    """

    good: pa.Table
    broken: pa.Table

    @property
    def rows_in(self) -> int:
        """Data rows in the file."""
        return int(self.good.num_rows + self.broken.num_rows)


BROKEN_SCHEMA = pa.schema(
    {
        "_row_number": pa.int64(),
        "column_name": pa.string(),
        "rule": pa.string(),
        "value": pa.string(),
        "row_as_landed": pa.string(),
    }
)


def decode(path: str, landed: bytes) -> bytes:
    """The UTF-8 text of a landed ``.csv`` or ``.csv.gz``, without a byte-order mark.

    Raises:
        ContractError: when the gzip is damaged, the file is empty, or a byte is not UTF-8.
    """
    again = "have its sender land it again"
    if path.endswith(".gz") and landed:
        try:
            landed = gzip.decompress(landed)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ContractError(
                f"{path}: the gzip is truncated or damaged ({error})", again
            ) from None
    landed = landed.removeprefix(b"\xef\xbb\xbf")
    if not landed.strip():
        raise ContractError(f"{path}: the file is empty, without even a header", again)
    try:
        landed.decode("utf-8")
    except UnicodeDecodeError as error:
        line = landed.count(b"\n", 0, error.start) + 1
        raise ContractError(
            f"{path}: not UTF-8: byte 0x{landed[error.start]:02x} in line {line}",
            "have its sender export it as UTF-8",
        ) from None
    return landed


def check(contract: SourceContract, path: str, text: bytes, landed_date: date) -> CheckedRows:
    """Parse and check every row of a decoded file that landed on ``landed_date``.

    Raises:
        ContractError: when the header is not the contract's, or the CSV cannot be read as rows.
    """
    header = _header(contract, path, text)
    _require_closed_quotes(path, text)
    skipped: list[tuple[int, str, str]] = []

    def set_apart(row: pa_csv.InvalidRow) -> str:
        rule = f"{row.expected_columns} fields, found {row.actual_columns}"
        # The header is row 1 to Arrow.
        skipped.append((row.number - 1, rule, row.text))
        return "skip"

    try:
        landed = pa_csv.read_csv(
            # A header without a line end is no CSV to Arrow.
            io.BytesIO(text if text.endswith(b"\n") else text + b"\n"),
            # Only the serial reader numbers the rows that it could not split.
            read_options=pa_csv.ReadOptions(use_threads=False, block_size=BLOCK_BYTES),
            parse_options=pa_csv.ParseOptions(
                newlines_in_values=True, invalid_row_handler=set_apart
            ),
            convert_options=pa_csv.ConvertOptions(
                column_types={name: pa.string() for name in header}, strings_can_be_null=False
            ),
        )
    except pa.ArrowInvalid as error:
        raise ContractError(f"{path}: not readable as CSV: {error}", "land it again") from None
    landed = landed.combine_chunks()
    numbers = _row_numbers(landed.num_rows, [number for number, _, _ in skipped])
    typed, violations = _typed(contract, landed, landed_date)
    broken: list[Broken] = [(number, None, rule, None, row) for number, rule, row in skipped]
    if violations:
        broken += _described(landed, header, numbers, violations)
        whole = pa.array([i not in violations for i in range(landed.num_rows)], pa.bool_())
        typed, numbers = typed.filter(whole), numbers.filter(whole)
    broken.sort(key=lambda row: row[0])
    columns = zip(*broken, strict=True) if broken else [[]] * len(BROKEN_SCHEMA)
    return CheckedRows(
        good=typed.append_column("_row_number", numbers),
        broken=pa.table(
            [
                pa.array([_storable(v) for v in values], field.type)
                for values, field in zip(columns, BROKEN_SCHEMA, strict=True)
            ],
            schema=BROKEN_SCHEMA,
        ),
    )


def _header(contract: SourceContract, path: str, text: bytes) -> list[str]:
    line = text[:65536].lstrip(b"\r\n").splitlines()[0]
    header = next(csv.reader([line.decode("utf-8", errors="replace")]), [])
    expected = contract.landed_names
    twice = [name for name, times in Counter(header).items() if times > 1]
    missing = [name for name in expected if name not in header]
    extra = [name for name in header if name not in expected]
    faults = [
        f"{what} {', '.join(map(repr, names))}"
        for what, names in (("twice", twice), ("missing", missing), ("unexpected", extra))
        if names
    ]
    if faults:
        raise ContractError(
            f"{path}: the header's columns are not the contract's: {'; '.join(faults)}",
            f"land it with the header {','.join(expected)},"
            f" or change contracts/{contract.source}.odcs.yaml",
        )
    return header


def _require_closed_quotes(path: str, text: bytes) -> None:
    """An unclosed quote would swallow every row after it as one value."""
    if text.count(b'"') % 2 == 0:
        return
    reader = csv.reader(io.StringIO(text.decode("utf-8"), newline=""), strict=True)
    try:
        begins = 1
        for _ in reader:
            begins = reader.line_num + 1
    except csv.Error as error:
        if "unexpected end of data" in str(error):
            raise ContractError(
                f"{path}: the quote that opens in the row at line {begins} is never closed",
                "have its sender correct the quoting",
            ) from None


def _row_numbers(rows: int, skipped: list[int]) -> pa.Array:
    if not skipped:
        return pa.array(range(1, rows + 1), pa.int64())
    gone = set(skipped)
    return pa.array([n for n in range(1, rows + len(skipped) + 1) if n not in gone], pa.int64())


def _typed(
    contract: SourceContract, landed: pa.Table, landed_date: date
) -> tuple[pa.Table, dict[int, tuple[Column, str]]]:
    """The typed table, and for each broken row its first broken column and the rule."""
    violations: dict[int, tuple[Column, str]] = {}
    arrays = []
    for column in contract.columns:
        text = landed.column(column.landed_name).combine_chunks()
        if isinstance(text, pa.ChunkedArray):
            text = pa.concat_arrays(text.chunks) if text.num_chunks else pa.array([], pa.string())
        empty = pc.equal(text, "")
        filled = pc.if_else(empty, pa.scalar(None, pa.string()), text)
        faults = [("a value (it is required)", empty)] if column.required else []
        faults.append(("no NUL character", pc.match_substring(text, "\0")))
        if column.kind == "string":
            values = filled
            if column.pattern:
                matches = pc.match_substring_regex(filled, column.pattern)
                faults.append((f"text like {column.pattern}", pc.invert(matches)))
            if column.max_length:
                longer = pc.greater(pc.utf8_length(filled), column.max_length)
                faults.append((f"at most {column.max_length} characters", longer))
        else:
            values = _cast(column, filled)
            unread = pc.and_(pc.is_null(values), pc.is_valid(filled))
            faults.append((_RULES[column.kind], unread))
            if column.minimum is not None:
                below = pc.less(values, pa.scalar(column.minimum))
                faults.append((f"at least {column.minimum}", below))
            if column.maximum is not None:
                above = pc.greater(values, pa.scalar(column.maximum))
                faults.append((f"at most {column.maximum}", above))
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


def _cast(column: Column, text: pa.Array) -> pa.Array:
    """Typed values; null where the text is null or not of the type."""
    if column.kind == "integer":
        return _where(text, r"^-?[0-9]{1,9}$").cast(pa.int32())
    if column.kind == "number":
        precision, scale = column.precision_and_scale
        pattern = rf"^-?[0-9]{{1,{precision - scale}}}(\.[0-9]{{1,{scale}}})?$"
        return _where(text, pattern).cast(pa.decimal128(precision, scale))
    shaped = _where(text, r"^[0-9]{4}-[0-9]{2}-[0-9]{2} [0-9]{2}:[0-9]{2}:[0-9]{2}$")
    try:
        return shaped.cast(pa.timestamp("us"))
    except pa.ArrowInvalid:
        # Some date, such as a 30 February, is on no calendar; Arrow does not say which.
        real = {value: _is_instant(value) for value in pc.unique(shaped).to_pylist() if value}
        kept = pa.array([v if v and real[v] else None for v in shaped.to_pylist()], pa.string())
        return kept.cast(pa.timestamp("us"))


def _where(text: pa.Array, pattern: str) -> pa.Array:
    return pc.if_else(pc.match_substring_regex(text, pattern), text, pa.scalar(None, pa.string()))


def _is_instant(text: str) -> bool:
    try:
        pa.scalar(text).cast(pa.timestamp("us"))
    except pa.ArrowInvalid:
        return False
    return True


def _described(
    landed: pa.Table,
    header: list[str],
    numbers: pa.Array,
    violations: dict[int, tuple[Column, str]],
) -> list[Broken]:
    indices = sorted(violations)
    rows = landed.take(pa.array(indices, pa.int64())).to_pylist()
    described: list[Broken] = []
    for index, row in zip(indices, rows, strict=True):
        column, rule = violations[index]
        line = io.StringIO()
        csv.writer(line, lineterminator="").writerow([row[name] for name in header])
        described.append(
            (
                numbers[index].as_py(),
                column.landed_name,
                rule,
                row[column.landed_name],
                line.getvalue(),
            )
        )
    return described


def _storable(value: int | str | None) -> int | str | None:
    """Postgres has no NUL in text."""
    return value.replace("\0", "\\0") if isinstance(value, str) else value
