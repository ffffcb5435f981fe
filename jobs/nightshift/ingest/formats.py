"""Landed files as batches of text, whatever their format: CSV, JSON Lines or Parquet.

Nothing here holds a whole file. A fault of the file raises ``ContractError``; a row that cannot be
split into the contract's columns is set apart, and harms no other.
"""

import codecs
import csv
import io
import json
import secrets
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import csv as pa_csv

from nightshift.contracts import SourceContract
from nightshift.errors import ContractError

SUFFIXES = (".csv", ".csv.gz", ".jsonl", ".jsonl.gz", ".parquet")
BLOCK_BYTES = 8 << 20
"""Bytes of text that are worked on at a time. A row must fit into one block."""
BATCH_ROWS = 65_536
MAX_EXPANSION = 200
"""Times its size that a file may expand to; text of orders compresses 5 to 30 times."""
FREE_EXPANSION_BYTES = 64 << 20
_READ_BYTES = 1 << 20
_AGAIN = "have its sender land it again"
_TEXT = pa.string()


@dataclass(frozen=True)
class UnreadRow:
    """A row that is not the contract's columns; ``column`` where one is to blame."""

    number: int
    column: str | None
    rule: str
    text: str


@dataclass(frozen=True)
class TextBatch:
    """Some rows of a file.

    Attributes:
        rows: the contract's columns by landed name, as text; null where a value is missing.
        numbers: position of each row in the file, int64, 1 = first data row.
        unread: rows of the same stretch that are not among ``rows``.
    """

    rows: pa.Table
    numbers: pa.Array
    unread: tuple[UnreadRow, ...] = ()


def read(
    contract: SourceContract, path: str, file: Path, warn: Callable[[str], None]
) -> Iterator[TextBatch]:
    """The batches of a landed file, in the file's order.

    Args:
        contract: of its source.
        path: as it landed, for messages; its suffix tells the format.
        file: a local copy.
        warn: is told what a person should know.

    Raises:
        ContractError: when the file as a whole cannot be used.
    """
    if path.endswith(".parquet"):
        yield from _read_parquet(contract, path, file, warn)
        return
    with file.open("rb") as landed:
        size = file.stat().st_size
        if path.removesuffix(".gz").endswith(".csv"):
            # A row that no file has, after the last: a quote that is never closed swallows it too.
            last_row = secrets.token_hex(16)
            text = _Text(path, landed, size, ending=f"{last_row}\n".encode())
            yield from _read_csv(contract, text, last_row, file, warn)
        else:
            yield from _read_json(contract, _Text(path, landed, size))


def _expansion_limit(size: int) -> int:
    return max(FREE_EXPANSION_BYTES, MAX_EXPANSION * size)


def _require_expansion(path: str, expanded: int, limit: int) -> None:
    if expanded > limit:
        raise ContractError(
            f"{path}: it expands to over {limit >> 20} MiB, more than {MAX_EXPANSION} times its"
            " size: taken for a decompression bomb",
            "land it in parts, or uncompressed",
        )


class _Text(io.RawIOBase):
    """UTF-8 text of a landed file: decompressed, without a byte-order mark, checked on the way.

    Args:
        ending: a last line that is added to it.
    """

    def __init__(self, path: str, landed: BinaryIO, size: int, ending: bytes = b"") -> None:
        self.path = path
        self._landed = landed
        self._limit = _expansion_limit(size)
        self._gunzip = zlib.decompressobj(wbits=31) if path.endswith(".gz") else None
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._ready = b""
        self._expanded = 0
        self._lines = 1
        self._is_blank = True
        self._ends_in_newline = False
        self._ended = False
        self._ending = ending

    def readable(self) -> bool:
        return True

    def peek(self, size: int) -> bytes:
        """The first bytes, left to be read."""
        while len(self._ready) < size and not self._ended:
            self._ready += self._next()
        return self._ready[:size]

    def read(self, size: int = -1) -> bytes:
        """As many bytes as are asked for, unless the text ends: Arrow's blocks are what it gets."""
        parts, length = [self._ready], len(self._ready)
        while (size < 0 or length < size) and not self._ended:
            parts.append(self._next())
            length += len(parts[-1])
        found = b"".join(parts)
        self._ready = b"" if size < 0 else found[size:]
        return found if size < 0 else found[:size]

    def readinto(self, buffer: Any) -> int:
        found = self.read(len(buffer))
        buffer[: len(found)] = found
        return len(found)

    def _next(self) -> bytes:
        """The next bytes of the text, checked; b"" only at its end."""
        while True:
            chunk = self._expand()
            if chunk is None:
                self._ended = True
                self._decode(b"", final=True)
                if self._is_blank:
                    raise ContractError(
                        f"{self.path}: the file is empty, without even a header", _AGAIN
                    )
                # A header without a line end is no CSV to Arrow.
                return (b"" if self._ends_in_newline else b"\n") + self._ending
            if self._expanded == 0:
                chunk = chunk.removeprefix(codecs.BOM_UTF8)
            self._expanded += len(chunk)
            if self._gunzip is not None:
                _require_expansion(self.path, self._expanded, self._limit)
            if not chunk:
                continue
            self._decode(chunk, final=False)
            self._lines += chunk.count(b"\n")
            self._ends_in_newline = chunk.endswith(b"\n")
            self._is_blank = self._is_blank and not chunk.strip()
            return chunk

    def _expand(self) -> bytes | None:
        """Some bytes of the expanded file, perhaps none; None at its end."""
        if self._gunzip is None:
            return self._landed.read(_READ_BYTES) or None
        if self._gunzip.eof:  # gzip members may follow one another, with zeros between
            # Here unconsumed_tail may be a copy of unused_data.
            compressed = self._gunzip.unused_data.lstrip(b"\0")
            while not compressed and (more := self._landed.read(_READ_BYTES)):
                compressed = more.lstrip(b"\0")
            if not compressed:
                return None
            self._gunzip = zlib.decompressobj(wbits=31)
        else:
            compressed = self._gunzip.unconsumed_tail or self._landed.read(_READ_BYTES)
            if not compressed and self._landed.tell() == 0:
                return None
            if not compressed:
                raise ContractError(
                    f"{self.path}: the gzip is truncated or damaged (it ends too early)", _AGAIN
                )
        try:
            return self._gunzip.decompress(compressed, _READ_BYTES)
        except zlib.error as error:
            raise ContractError(
                f"{self.path}: the gzip is truncated or damaged ({error})", _AGAIN
            ) from None

    def _decode(self, chunk: bytes, *, final: bool) -> None:
        try:
            self._decoder.decode(chunk, final)
        except UnicodeDecodeError as error:
            # what the decoder had kept of the chunk before counts as its beginning
            line = self._lines + error.object.count(b"\n", 0, error.start)
            raise ContractError(
                f"{self.path}: not UTF-8: byte 0x{error.object[error.start]:02x} in line {line}",
                "have its sender export it as UTF-8",
            ) from None


def _read_csv(
    contract: SourceContract,
    text: _Text,
    last_row: str,
    file: Path,
    warn: Callable[[str], None],
) -> Iterator[TextBatch]:
    header = _header(contract, text, warn)
    unread: list[UnreadRow] = []
    is_whole = False

    def set_apart(row: pa_csv.InvalidRow) -> str:
        nonlocal is_whole
        if row.text == last_row:
            is_whole = True
            return "skip"
        rule = f"{row.expected_columns} fields, found {row.actual_columns}"
        # The header is row 1 to Arrow.
        unread.append(UnreadRow(row.number - 1, None, rule, row.text))
        return "skip"

    first = 1
    try:
        with pa_csv.open_csv(
            pa.PythonFile(text, "r"),
            # Only the serial reader numbers the rows that it could not split.
            read_options=pa_csv.ReadOptions(use_threads=False, block_size=BLOCK_BYTES),
            parse_options=pa_csv.ParseOptions(
                newlines_in_values=True, invalid_row_handler=set_apart
            ),
            convert_options=pa_csv.ConvertOptions(
                column_types=dict.fromkeys(header, _TEXT),
                include_columns=contract.landed_names,
                strings_can_be_null=False,
            ),
        ) as reader:
            for batch in reader:
                # The reader is a block ahead: it has split the next one already.
                last = first + batch.num_rows
                passed = []
                for row in unread:
                    if row.number >= last:
                        break
                    passed.append(row)
                    last += 1
                del unread[: len(passed)]
                numbers = _numbers(first, last, [row.number for row in passed])
                yield _without_swallowed(
                    TextBatch(pa.Table.from_batches([batch]), numbers, tuple(passed)),
                    commas=len(header) - 1,
                )
                first = last
    except pa.ArrowException as error:
        if "straddling object" in str(error):
            fault = f"a row is longer than {BLOCK_BYTES >> 20} MiB, or a quote is never closed"
        else:
            fault = f"not readable as CSV: {error}"
        raise ContractError(f"{text.path}: {fault}", _AGAIN) from None
    if not is_whole:
        line = _last_row_line(text.path, file)
        raise ContractError(
            f"{text.path}: the quote that opens in the row at line {line} is never closed",
            "have its sender correct the quoting",
        )
    if unread:
        none = pa.table({name: pa.array([], _TEXT) for name in contract.landed_names})
        yield TextBatch(none, pa.array([], pa.int64()), tuple(unread))


def _without_swallowed(batch: TextBatch, commas: int) -> TextBatch:
    """Set apart each row with a value that holds whole rows: a stray quote, up to the next one."""
    unread = list(batch.unread)
    is_kept = np.ones(batch.rows.num_rows, bool)
    for name in batch.rows.column_names:
        column = batch.rows.column(name)
        if not may_hold(column, b"\n"):
            continue
        has_line_end = pc.match_substring(column, "\n")
        found = pc.count_substring(column, ",").to_numpy()
        holds_rows = has_line_end.to_numpy() & (found >= commas) & (found % commas == 0) & is_kept
        is_kept &= ~holds_rows
        for index in np.flatnonzero(holds_rows).tolist():
            row = [str(value) for value in batch.rows.slice(index, 1).to_pylist()[0].values()]
            rule = "no rows within a value: a quote that opens it may be a stray one"
            unread.append(UnreadRow(batch.numbers[index].as_py(), name, rule, ",".join(row)))
    if is_kept.all():
        return batch
    kept = pa.array(is_kept)
    return TextBatch(batch.rows.filter(kept), batch.numbers.filter(kept), tuple(unread))


def may_hold(text: pa.ChunkedArray, byte: bytes) -> bool:
    """False where no value holds the byte: one look at the memory of all, in place of each."""
    buffers = (chunk.buffers()[2] for chunk in text.chunks)
    return any(
        bool((np.frombuffer(buffer, np.uint8) == ord(byte)).any()) for buffer in buffers if buffer
    )


def _numbers(first: int, last: int, skipped: list[int]) -> pa.Array:
    """Row numbers from ``first`` up to ``last``, without it and without those skipped."""
    numbers = pa.array(np.arange(first, last, dtype=np.int64))
    if not skipped:
        return numbers
    return numbers.filter(pc.invert(pc.is_in(numbers, pa.array(skipped, pa.int64()))))


def _header(contract: SourceContract, text: _Text, warn: Callable[[str], None]) -> list[str]:
    lines = text.peek(65_536).lstrip(b"\r\n").splitlines()
    line = lines[0].decode("utf-8", errors="replace") if lines else ""
    header = next(csv.reader([line]), [])
    _require_columns(contract, text.path, header, warn)
    return header


def _require_columns(
    contract: SourceContract, path: str, found: list[str], warn: Callable[[str], None]
) -> None:
    expected = contract.landed_names
    twice = [name for name, times in Counter(found).items() if times > 1]
    missing = [name for name in expected if name not in found]
    extra = list(dict.fromkeys(name for name in found if name not in expected))
    if extra and contract.ignores_unknown_columns:
        warn(f"{path}: columns that the contract does not know: {_listed(extra)}")
        extra = []
    faults = [
        f"{what} {_listed(names)}"
        for what, names in (("twice", twice), ("missing", missing), ("unexpected", extra))
        if names
    ]
    if faults:
        raise ContractError(
            f"{path}: the header's columns are not the contract's: {'; '.join(faults)}",
            f"land it with the header {','.join(expected)},"
            f" or change contracts/{contract.source}.odcs.yaml",
        )


def _listed(names: list[str]) -> str:
    """Names for a message, which a damaged header shall not flood."""
    shown = [repr(name if len(name) <= 60 else f"{name[:60]}…") for name in names[:12]]
    return ", ".join(shown) + (f" and {len(names) - 12} more" if len(names) > 12 else "")


def _last_row_line(path: str, file: Path) -> int:
    """The line at which the last row of a CSV begins."""
    csv.field_size_limit(max(csv.field_size_limit(), BLOCK_BYTES))
    with file.open("rb") as landed:
        text = io.BufferedReader(_Text(path, landed, file.stat().st_size))
        reader = csv.reader(io.TextIOWrapper(text, encoding="utf-8", newline=""))
        line = begins = 1
        for row in reader:
            if row:
                begins = line
            line = reader.line_num + 1
    return begins


@dataclass
class _Columns:
    """Rows on their way into columns."""

    names: tuple[str, ...]
    values: list[tuple[str | None, ...]] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    unread: list[UnreadRow] = field(default_factory=list)

    def taken(self) -> TextBatch:
        """What there is as a batch; begins anew."""
        columns = zip(*self.values, strict=True) if self.values else [()] * len(self.names)
        rows = pa.table([pa.array(column, _TEXT) for column in columns], names=list(self.names))
        batch = TextBatch(rows, pa.array(self.numbers, pa.int64()), tuple(self.unread))
        self.values, self.numbers, self.unread = [], [], []
        return batch


def _read_json(contract: SourceContract, text: _Text) -> Iterator[TextBatch]:
    lines = io.BufferedReader(text, BLOCK_BYTES)
    names = contract.landed_names
    columns = _Columns(names)
    number = length = 0
    while line := lines.readline(BLOCK_BYTES + 1):
        if len(line) > BLOCK_BYTES:
            raise ContractError(
                f"{text.path}: row {number + 1} is longer than {BLOCK_BYTES >> 20} MiB", _AGAIN
            )
        if not line.strip():
            continue
        number += 1
        length += len(line)
        landed = line.decode("utf-8").strip()
        row, fault = _json_row(landed, contract)
        if fault is None:
            columns.values.append(row)
            columns.numbers.append(number)
        else:
            columns.unread.append(UnreadRow(number, *fault, landed))
        if length >= BLOCK_BYTES or len(columns.values) + len(columns.unread) >= BATCH_ROWS:
            yield columns.taken()
            length = 0
    yield columns.taken()


_Fault = tuple[str | None, str]


def _json_row(line: str, contract: SourceContract) -> tuple[tuple[str | None, ...], _Fault | None]:
    names = contract.landed_names
    try:
        # Numbers stay the text that they landed as.
        pairs = json.loads(
            line, parse_int=str, parse_float=str, parse_constant=_NoNumber, object_pairs_hook=_Pairs
        )
    except (ValueError, RecursionError) as error:
        kind = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        return (), (None, f"a JSON object ({kind})")
    if not isinstance(pairs, _Pairs):
        return (), (None, f"a JSON object, found {_json_kind(pairs)}")
    row = dict(pairs)
    if len(row) != len(pairs):
        twice = next(name for name, times in Counter(k for k, _ in pairs).items() if times > 1)
        return (), (None, f"each key once, found {_listed([twice])} twice")
    if not contract.ignores_unknown_columns:
        unknown = [name for name in row if name not in names]
        if unknown:
            return (), (None, f"no key {_listed(unknown[:1])}")
    for name in names:
        value = row.get(name)
        if not isinstance(value, str | None) or isinstance(value, _NoNumber):
            return (), (name, f"text or a number, found {_json_kind(value)}")
        # an escape may stand for half a character, which is none
        if value is not None and "\\u" in line and not _is_unicode(value):
            return (), (name, "text of whole characters, found half of a surrogate pair")
    return tuple(row.get(name) for name in names), None


class _Pairs(list[tuple[str, Any]]):
    """The keys and values of a JSON object, also those that occur twice."""


class _NoNumber(str):
    """NaN or an infinity, which JSON does not know."""


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _json_kind(value: object) -> str:
    if isinstance(value, _NoNumber):
        return str(value)
    if isinstance(value, _Pairs):
        return "an object"
    return {list: "a list", bool: "true or false"}.get(type(value), "a plain value")


def _read_parquet(
    contract: SourceContract, path: str, file: Path, warn: Callable[[str], None]
) -> Iterator[TextBatch]:
    names = list(contract.landed_names)
    limit = _expansion_limit(file.stat().st_size)
    expanded, number = 0, 1
    try:
        schema = pq.read_schema(file)
        _require_columns(contract, path, schema.names, warn)
        for name in names:
            _require_readable(path, schema.field(name))
        with pq.ParquetFile(
            file,
            # A text that is stored once may stand in every row: it is multiplied piece by piece.
            read_dictionary=[name for name in names if _is_text(schema.field(name).type)],
            buffer_size=_READ_BYTES,
            pre_buffer=False,  # which would hold all of the file
            page_checksum_verification=True,
            coerce_int96_timestamp_unit="us",  # nanoseconds would wrap around
        ) as parquet:
            said = parquet.metadata
            groups = (said.row_group(i).total_byte_size for i in range(said.num_row_groups))
            _require_expansion(path, max(sum(groups), said.num_rows * len(names)), limit)
            for batch in parquet.iter_batches(BATCH_ROWS, columns=names):
                batch.validate(full=True)
                sizes = np.sum([_text_sizes(batch.column(name)) for name in names], axis=0)
                if sizes.max() > BLOCK_BYTES:
                    raise ContractError(
                        f"{path}: row {number + int(sizes.argmax())} is longer than"
                        f" {BLOCK_BYTES >> 20} MiB",
                        _AGAIN,
                    )
                expanded += int(sizes.sum())
                _require_expansion(path, expanded, limit)
                for piece in _pieces(batch, sizes):
                    rows = pa.table([_as_text(piece.column(name)) for name in names], names=names)
                    yield TextBatch(rows, _numbers(number, number + piece.num_rows, []))
                    number += piece.num_rows
            if number - 1 != said.num_rows:
                raise ContractError(
                    f"{path}: it holds {number - 1} rows and says that it holds {said.num_rows}",
                    _AGAIN,
                )
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ContractError(f"{path}: not readable as Parquet: {error}", _AGAIN) from None


def _text_sizes(column: pa.Array) -> np.ndarray:
    """About how many bytes each value is as text, int64."""
    if pa.types.is_dictionary(column.type):
        lengths = np.append(_text_sizes(column.dictionary), 1)
        return lengths[pc.fill_null(column.indices, len(column.dictionary)).to_numpy()]
    if _is_text(column.type):
        return pc.fill_null(pc.binary_length(column), 0).to_numpy().astype(np.int64) + 1
    return np.full(len(column), 8, np.int64)


def _pieces(batch: pa.RecordBatch, sizes: np.ndarray) -> Iterator[pa.RecordBatch]:
    """The batch in parts of at most a block of text."""
    ends = sizes.cumsum()
    start = 0
    while start < batch.num_rows:
        before = ends[start - 1] if start else 0
        stop = int(np.searchsorted(ends, before + BLOCK_BYTES, side="right"))
        yield batch.slice(start, stop - start)
        start = stop


def _is_text(type_: pa.DataType) -> bool:
    return bool(
        pa.types.is_string(type_)
        or pa.types.is_large_string(type_)
        or pa.types.is_string_view(type_)
    )


def _require_readable(path: str, found: pa.Field) -> None:
    type_ = found.type
    if pa.types.is_dictionary(type_):
        type_ = type_.value_type
    is_read = (
        _is_text(type_)
        or pa.types.is_integer(type_)
        or pa.types.is_floating(type_)
        or pa.types.is_decimal(type_)
        or pa.types.is_null(type_)
        or (pa.types.is_timestamp(type_) and type_.tz is None)
    )
    if not is_read:
        raise ContractError(
            f"{path}: column {found.name!r} is of Parquet type {type_}",
            "land it as text, a number, or a timestamp without a time zone",
        )


def _as_text(column: pa.Array) -> pa.Array:
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    text = pc.cast(column, _TEXT)
    if pa.types.is_timestamp(column.type):
        # whole seconds are the contract's form; a fraction stays, and breaks it
        text = pc.replace_substring_regex(text, r"\.0+$", "")
    return text
