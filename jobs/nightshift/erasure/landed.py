"""A landed file without the rows of one person; the bytes of the other rows stay as they are."""

import csv
import gzip
import io
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, cast

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

_CHUNK_BYTES = 1 << 20
# Each byte is one character: what is not UTF-8 stays as it was landed.
_ENCODING = "latin-1"
_BOM = "\ufeff".encode().decode(_ENCODING)
_SEPARATORS = re.compile(r"""[\s,;:|"'{}\[\]]+""", re.ASCII)
_SPACES = " \t\r\n"


def mentions(path: str, file: Path, subject: str) -> bool:
    """Whether the file's text, decompressed, holds ``subject`` at all; a Parquet file always may.

    Raises:
        OSError, EOFError, zlib.error: when it cannot be decompressed.
    """
    if path.endswith(".parquet"):
        return True
    needles = {
        form.encode() for form in (subject, subject.replace('"', '""'), json.dumps(subject)[1:-1])
    }
    overlap = max(map(len, needles)) - 1
    with _opened(path, file) as text:
        before = b""
        while chunk := text.read(_CHUNK_BYTES):
            window = before + chunk
            if any(needle in window for needle in needles):
                return True
            before = window[-overlap:] if overlap else b""
    return False


def write_without(
    path: str, file: Path, target: Path, columns: Sequence[str], subject: str
) -> tuple[int, int]:
    """Write ``file`` without the rows of ``subject`` to ``target``; rows removed and rows left.

    A row is the person's when one of ``columns`` holds the subject, spaces around it apart. Of a
    row that cannot be split into columns, it is enough that one of its pieces does.

    Args:
        path: as it landed; its suffix tells the format.
        columns: landed names of the columns with personal data.

    Raises:
        OSError, EOFError, zlib.error, pa.ArrowException: when the file is damaged.
    """
    if path.endswith(".parquet"):
        return write_parquet_without(file, target, columns, (subject,))
    is_json = path.removesuffix(".gz").endswith(".jsonl")
    wanted = subject.encode().decode(_ENCODING)
    removed = left = 0
    with ExitStack() as stack:
        source = stack.enter_context(_opened(path, file))
        raw = stack.enter_context(target.open("wb"))
        sink: IO[bytes] = raw
        if path.endswith(".gz"):
            # without a name and a time, so that the same rows are the same bytes
            sink = cast(
                IO[bytes],
                stack.enter_context(gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0)),
            )
        # line ends stay as they are
        lines = io.TextIOWrapper(source, _ENCODING, newline="")
        rows = _json_rows(lines, columns, subject) if is_json else _csv_rows(lines, columns, wanted)
        for text, is_the_persons, is_row in rows:
            if is_the_persons:
                removed += 1
            else:
                left += is_row
                sink.write(text.encode(_ENCODING))
    return removed, left


def write_parquet_without(
    file: Path, target: Path, columns: Sequence[str], values: Sequence[str]
) -> tuple[int, int]:
    """Write a Parquet file without the rows where one of ``columns`` is one of ``values``.

    Rows removed and rows left; nothing is written when nothing would be removed. Row groups stay
    what they are.

    Raises:
        OSError, pa.ArrowException: when the file is damaged.
    """
    with pq.ParquetFile(file) as parquet:
        schema = parquet.schema_arrow
        held = [name for name in columns if name in schema.names]
        groups = range(parquet.metadata.num_row_groups)
        rows = parquet.metadata.num_rows
        if not held or not rows:
            return 0, rows
        kept = {}
        for group in groups:
            keys = parquet.read_row_group(group, columns=held)
            is_the_persons = [_is_in(keys.column(name), values) for name in held]
            mask = is_the_persons[0]
            for other in is_the_persons[1:]:
                mask = pc.or_(mask, other)
            kept[group] = pc.invert(mask)
        left = sum(pc.sum(mask).as_py() or 0 for mask in kept.values())
        if left == rows:
            return 0, rows
        codec = parquet.metadata.row_group(0).column(0).compression.lower()
        compression = "none" if codec == "uncompressed" else codec
        plain = pa.schema([(f.name, _value_type(f.type)) for f in schema])
        with pq.ParquetWriter(target, schema, compression=compression) as writer:
            for group in groups:
                table = parquet.read_row_group(group).filter(kept[group])
                # made anew: a dictionary would keep what no row names any more
                table = table.cast(plain).cast(schema)
                writer.write_table(table, row_group_size=max(1, table.num_rows))
    return rows - left, left


def _value_type(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _is_in(column: pa.ChunkedArray, values: Sequence[str]) -> pa.ChunkedArray:
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    wanted = list(values)
    if pa.types.is_floating(column.type):  # a number with missing values, as pandas writes it
        wanted += [f"{value}.0" for value in values]
    text = pc.utf8_trim_whitespace(column.cast(pa.string()))
    return pc.fill_null(pc.is_in(text, pa.array(wanted, pa.string())), False)


def _opened(path: str, file: Path) -> IO[bytes]:
    return cast(IO[bytes], gzip.open(file, "rb") if path.endswith(".gz") else file.open("rb"))


_Row = tuple[str, bool, bool]
"""Text, whether it is the person's, whether it is a row at all and no header or blank."""


def _csv_rows(lines: Iterator[str], columns: Sequence[str], wanted: str) -> Iterator[_Row]:
    header: list[str] | None = None
    for text, fields in _records(lines):
        if header is None:
            header = [name.removeprefix(_BOM).strip() for name in fields or []]
            positions = [header.index(name) for name in columns if name in header]
            yield text, False, False
        elif fields is not None and len(fields) == len(header) and positions:
            yield text, any(fields[at].strip(_SPACES) == wanted for at in positions), True
        else:
            # a quote that is never closed swallows rows of others: each line by itself
            for line in io.StringIO(text, newline=""):
                alone = next(csv.reader([line]), [])
                if len(alone) == len(header) and positions:
                    yield line, any(alone[at].strip(_SPACES) == wanted for at in positions), True
                else:
                    yield line, _has_piece(line, wanted), bool(line.strip())


def _records(lines: Iterator[str]) -> Iterator[tuple[str, list[str] | None]]:
    """Each record's text, and its fields, or None where it cannot be split."""
    consumed: list[str] = []

    def feed() -> Iterator[str]:
        for line in lines:
            consumed.append(line)
            yield line

    # strict, so that a quote that is never closed is an error and no long field
    reader = csv.reader(feed(), strict=True)
    while True:
        fields: list[str] | None
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error:
            fields = None
        yield "".join(consumed), fields
        consumed.clear()


def _json_rows(lines: Iterator[str], columns: Sequence[str], subject: str) -> Iterator[_Row]:
    for line in lines:
        text = line.encode(_ENCODING)
        try:
            row = json.loads(text.removeprefix(_BOM.encode(_ENCODING)))
        except ValueError:
            row = None
        held = [row[name] for name in columns if name in row] if isinstance(row, dict) else []
        if held and all(isinstance(value, str | int | float | None) for value in held):
            yield line, any(_as_text(value) == subject for value in held), True
        else:
            is_the_persons = _has_piece(text.decode("utf-8", "replace"), subject)
            yield line, is_the_persons, bool(line.strip())


def _as_text(value: str | float | None) -> str:
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


def _has_piece(line: str, wanted: str) -> bool:
    return wanted in _SEPARATORS.split(line) or wanted in (
        piece.strip(_SPACES) for piece in line.split(",")
    )
