"""Malformed files, landed beside good ones and ingested in one run.

Each by-hand entry says what must become of its file: how many rows are loaded and which rows are
set apart for which rule, or why the file is refused whole. Of the generated ones the invariants
are asserted: every row is either loaded or set apart, and no other file is harmed.
"""

import csv
import gzip
import io
import json
import os
import re
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as profile
from hypothesis import strategies as st

from nightshift.errors import ContractError
from nightshift.ingest.run import ingest
from nightshift.io.warehouse import connect
from nightshift.settings import Settings

DAY, AS_OF = "2024-01-05", date(2024, 1, 10)
COLUMNS = (
    "Invoice", "StockCode", "Description", "Quantity", "InvoiceDate", "Price", "Customer ID",
    "Country",
)  # fmt: skip
HEADER = ",".join(COLUMNS) + "\n"
ROW = dict(
    zip(
        COLUMNS,
        ("489434", "85048", "BALL", "12", "2024-01-05 07:45:00", "6.95", "13085", "EIRE"),
        strict=True,
    )
)
GOOD = ",".join(ROW.values()) + "\n"

Broken = tuple[int, str | None, str]


@dataclass(frozen=True)
class Entry:
    """A file, and what must become of it.

    Attributes:
        name: of the file.
        loaded: rows that are loaded; None when the file is refused.
        broken: row number, column and beginning of the rule, of each row that is set apart.
        refused: pattern of the reason.
        kept: a column of raw and the text of its value in each loaded row.
        rows: of a generated file: how many rows it holds, where that is known.
    """

    name: str
    content: bytes
    loaded: int | None = None
    broken: tuple[Broken, ...] = ()
    refused: str = ""
    kept: tuple[str, str | None] | None = None
    rows: int | None = None


def in_csv(**values: str) -> str:
    """``GOOD`` with other values, quoted where they must be."""
    line = io.StringIO()
    # A bare carriage return would be a line end.
    quoting = csv.QUOTE_ALL if "\r" in "".join(values.values()) else csv.QUOTE_MINIMAL
    writer = csv.writer(line, quoting=quoting, lineterminator="\n")
    writer.writerow({**ROW, **values}.values())
    return line.getvalue()


def in_json(**values: Any) -> str:
    return json.dumps({**ROW, **values}) + "\n"


def in_parquet(schema: dict[str, pa.Array] | None = None, **options: Any) -> bytes:
    """One good row, with other columns."""
    columns = {name: pa.array([value]) for name, value in ROW.items()} | (schema or {})
    rows = max(map(len, columns.values()))
    table = pa.table(
        {n: pa.concat_arrays([c] * rows) if len(c) < rows else c for n, c in columns.items()}
    )
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, **options)
    return bytes(sink.getvalue())


WHOLE, DECIMAL = "a whole number", "a decimal number"
INSTANT, LATER = "a date and time YYYY-MM-DD HH:MM:SS", "not after the day it landed, 2024-01-05"
REQUIRED, NUL = "a value (it is required)", "no NUL character"
INVOICE, CUSTOMER = "text like ^[A-Za-z]?[0-9]{1,18}$", "text like ^[0-9A-Za-z._-]{1,64}$"
SQL = "'; drop table raw.order_lines; --"
HTML = "<img src=x onerror=alert(1)>"
FORMULA = "=cmd|' /C calc'!A0"

BROKEN_VALUES: dict[tuple[str, str], tuple[str, ...]] = {
    ("Quantity", WHOLE): (
        "1,000", "1.000", "1 000", "1'000", "1_000", "1\u00a0000", "１２", "١٢", "½", "Ⅻ", "0x10",
        "1e5", "12.0", "+12", "--12", "-", " 12", "12 ", "12\n", "inf", "-inf", "nan", "NULL",
        "True", "twelve", "2147483648", "-2147483649", "9223372036854775808", SQL, HTML, FORMULA,
    ),
    ("Quantity", "at most 1000000"): ("999999999", "1000001"),
    ("Quantity", "at least -1000000"): ("-999999999",),
    ("Quantity", REQUIRED): ("", "   "),
    ("Price", DECIMAL): (
        "1,000.00", "6,95", "£6.95", "6.95 GBP", "1e5", "1E-2", "inf", "-Infinity", "NaN", "0x1p3",
        "６.９５", ".5", "5.", "6.9.5", "6.12345", "99999999999", "(6.95)", "6.95-", "−6.95",
        "1/2", "9223372036854775808", SQL, FORMULA,
    ),
    ("Price", "at most 1000000"): ("1000000.0001",),
    ("Price", "at least -1000000"): ("-1000000.0001",),
    ("Price", REQUIRED): ("",),
    ("InvoiceDate", INSTANT): (
        "05/01/2024 07:45:00", "1/5/2024 7:45", "2024-1-5 07:45:00", "2024-01-05",
        "2024-01-05T07:45:00", "2024-01-05 07:45:00Z", "2024-01-05 07:45:00+00:00",
        "2024-01-05 07:45", "2024-01-05 07:45:00.5", "20240105 074500", "5 Jan 2024 07:45:00",
        "1704440700", "45296.3229", "2024-02-30 07:45:00", "2023-02-29 07:45:00",
        "1900-02-29 00:00:00", "2024-13-01 07:45:00", "2024-00-10 07:45:00", "2024-01-00 07:45:00",
        "2024-01-05 24:00:00", "2024-01-05 23:60:00", "2024-01-05 23:59:60", "0000-01-01 00:00:00",
        "-2024-01-05 07:45:00", "12024-01-05 07:45:00", "２０２４-01-05 07:45:00",
        "0000-00-00 00:00:00", "now", "infinity", SQL,
    ),
    ("InvoiceDate", LATER): ("9999-12-31 23:59:59", "2024-01-06 00:00:00"),
    ("InvoiceDate", REQUIRED): ("", "\t"),
    ("Invoice", INVOICE): (
        "48 94", "489434.0", "C-489434", "CC489434", "1" * 19, "４８９", "489434\n", "é1", "-1",
        SQL, HTML, FORMULA,
    ),
    ("Invoice", REQUIRED): ("", "\u00a0"),
    ("Customer ID", CUSTOMER): (
        "Jane Doe", "13 085", "13085\n", "x" * 65, "../../etc/passwd", SQL, HTML, FORMULA,
    ),
    ("StockCode", "at most 64 characters"): ("8" * 65, "é" * 65),
    ("StockCode", REQUIRED): ("", " \t\n "),
    ("StockCode", NUL): ("85\x0048",),
    ("Description", "at most 1000 characters"): ("x" * 1001, "é" * 100_000, "y" * 1_000_000),
    ("Description", NUL): ("\0", "BALL\0"),
    ("Country", "at most 100 characters"): ("x" * 101,),
    ("Country", REQUIRED): ("",),
}  # fmt: skip

KEPT_VALUES: dict[str, tuple[str, ...]] = {
    "StockCode": (SQL, HTML, FORMULA, "8" * 64, "../../etc/passwd", "%2e%2e%2f", "${jndi:x}"),
    "Description": (
        SQL, HTML, FORMULA, "+1", "-1+1", "@SUM(A1)", '"', "'", '""', ",", ";", "\n", "a\r\nb",
        "a\rb", "\\", "\\N", "NULL", "nan", "\x1b[31mred", "\x01", "\u2028", "\u202egnp.exe",
        "e\u0301", "🎱", "\U0010ffff", "\ufeff", "\ufffd", "é" * 1000, "{{7*7}}", "a\tb",
    ),
    "Country": (SQL, HTML, FORMULA, "Côte d'Ivoire", "日本", "x" * 100),
}  # fmt: skip


def values() -> Iterator[Entry]:
    """A value in the middle of three rows, in CSV and in JSON Lines."""
    for index, ((column, rule), found) in enumerate(BROKEN_VALUES.items()):
        for number, value in enumerate(found):
            name, broken = f"value-{index:02}-{number:02}", ((2, column, rule),)
            text = HEADER + GOOD + in_csv(**{column: value}) + GOOD
            yield Entry(f"{name}.csv", text.encode(), 2, broken)
            text = in_json() + in_json(**{column: value}) + in_json()
            yield Entry(f"{name}.jsonl", text.encode(), 2, broken)
    for column, texts in KEPT_VALUES.items():
        name = {"StockCode": "stock_code"}.get(column, column.lower())
        for number, value in enumerate(texts):
            file, kept = f"kept-{name}-{number:02}", (name, value)
            # Blank text is no text.
            kept = (name, value if value.strip() else None)
            text = HEADER + in_csv(**{column: value})
            yield Entry(f"{file}.csv", text.encode(), 1, kept=kept)
            yield Entry(f"{file}.jsonl", in_json(**{column: value}).encode(), 1, kept=kept)
    for column, value, name, kept_as in (
        ("Quantity", "-0", "quantity", "0"),
        ("Quantity", "000000012", "quantity", "12"),
        ("Quantity", "-1000000", "quantity", "-1000000"),
        ("Price", "-0", "price", "0.0000"),
        ("Price", "-0.0", "price", "0.0000"),
        ("Price", "0000000006.9500", "price", "6.9500"),
        ("Price", "-1000000.0000", "price", "-1000000.0000"),
        ("InvoiceDate", "0001-01-01 00:00:00", "invoice_date", "0001-01-01 00:00:00"),
        ("InvoiceDate", "1582-10-10 12:00:00", "invoice_date", "1582-10-10 12:00:00"),
        ("InvoiceDate", "2000-02-29 12:00:00", "invoice_date", "2000-02-29 12:00:00"),
        ("InvoiceDate", "2024-01-05 23:59:59", "invoice_date", "2024-01-05 23:59:59"),
        ("Customer ID", "", "customer_id", None),
        ("Customer ID", " ", "customer_id", None),
        ("Invoice", "C489434", "invoice", "C489434"),
    ):
        text = HEADER + in_csv(**{column: value})
        yield Entry(f"edge-{column}-{value}.csv", text.encode(), 1, kept=(name, kept_as))


def of_text(label: str, text: str | bytes, **expected: Any) -> Entry:
    return Entry(f"{label}.csv", text.encode() if isinstance(text, str) else text, **expected)


def texts() -> Iterator[Entry]:
    """CSV that is written in other ways, or that is none."""
    whole = HEADER + GOOD + in_csv(Description="two") + GOOD
    yield of_text("crlf", whole.replace("\n", "\r\n"), loaded=3)
    yield of_text("lone cr", whole.replace("\n", "\r"), loaded=3)
    yield of_text(
        "mixed line ends", HEADER + GOOD[:-1] + "\r" + GOOD[:-1] + "\r\n" + GOOD, loaded=3
    )
    yield of_text("no last line end", HEADER + GOOD + in_csv(Country="UK")[:-1], loaded=2)
    yield of_text("byte order mark", "\ufeff" + whole + GOOD, loaded=4)
    yield of_text("blank lines", "\n\n" + HEADER + "\n" + GOOD + "\n\n" + GOOD + "\n", loaded=2)
    yield of_text("quoted header", HEADER.replace("Price", '"Price"') + GOOD, loaded=1)
    yield of_text("quoted newline", HEADER + in_csv(Description="a\nb\n\nc") + GOOD, loaded=2)
    yield of_text("quoted quotes", HEADER + in_csv(Description='5" "BALL"') + GOOD, loaded=2)
    yield of_text("bare quote", HEADER + GOOD.replace("BALL", '5" BALL') + GOOD, loaded=2)
    yield of_text("other order", "\n".join(",".join(reversed(x.split(","))) for x in
                  (HEADER[:-1], GOOD[:-1])), loaded=1)  # fmt: skip
    yield of_text("header only", HEADER, loaded=0)
    yield of_text("header only, no line end", HEADER[:-1], loaded=0)

    for label, row, rule in (
        ("too few", "489434,85048\n", "8 fields, found 2"),
        ("one missing", GOOD.replace(",EIRE", ""), "8 fields, found 7"),
        ("one too many", GOOD.replace("\n", ",\n"), "8 fields, found 9"),
        ("bare comma", GOOD.replace("BALL", "BALL, RED"), "8 fields, found 9"),
        ("bare decimal comma", GOOD.replace("6.95", "6,95"), "8 fields, found 9"),
        ("semicolons", GOOD.replace(",", ";"), "8 fields, found 1"),
        ("tabs", GOOD.replace(",", "\t"), "8 fields, found 1"),
        ("blanks", "   \n", "8 fields, found 1"),
        ("100000 fields", "," * 99_999 + "\n", "8 fields, found 100000"),
        ("sql", f"{SQL}\n", "8 fields, found 1"),
        ("html", f"<p>{HTML}</p>\n", "8 fields, found 1"),
        ("comment", "# the end\n", "8 fields, found 1"),
        ("total", "TOTAL,,,12\n", "8 fields, found 4"),
    ):
        yield of_text(f"row of {label}", HEADER + GOOD + row + GOOD, loaded=2,
                      broken=((2, None, rule),))  # fmt: skip
    yield of_text("second header", HEADER + GOOD + HEADER + GOOD, loaded=2,
                  broken=((2, "Invoice", INVOICE),))  # fmt: skip
    yield of_text("commas only", HEADER + GOOD + ",,,,,,,\n", loaded=1,
                  broken=((2, "Invoice", REQUIRED),))  # fmt: skip
    stray = GOOD.replace("BALL", '"BALL')
    yield of_text("two stray quotes", HEADER + GOOD + stray + GOOD * 3 + stray + GOOD, loaded=2,
                  broken=((2, "Description", "no rows within a value"),))  # fmt: skip
    yield of_text("value of lines and commas", HEADER + in_csv(Description="a, b\nc, d"), loaded=1,
                  kept=("description", "a, b\nc, d"))  # fmt: skip
    for label, text, reason in (
        ("empty", "", "empty, without even a header"),
        ("line ends only", "\n\r\n\n", "empty, without even a header"),
        ("byte order mark only", "\ufeff", "empty, without even a header"),
        ("no header", GOOD + GOOD, "missing 'Invoice', 'StockCode'"),
        ("semicolon file", (HEADER + GOOD).replace(",", ";"), "missing 'Invoice', 'StockCode'"),
        ("tab file", (HEADER + GOOD).replace(",", "\t"), "missing 'Invoice', 'StockCode'"),
        ("pipe file", (HEADER + GOOD).replace(",", "|"), "missing 'Invoice', 'StockCode'"),
        ("column twice", HEADER.replace("StockCode", "Invoice") + GOOD,
         "twice 'Invoice'; missing 'StockCode'"),
        ("column missing", HEADER.replace(",Price", "") + GOOD, "missing 'Price'$"),
        ("column more", HEADER.replace("\n", ",Colour\n") + GOOD, "unexpected 'Colour'$"),
        ("column in sql", HEADER.replace("Price", SQL) + GOOD, "missing 'Price'; unexpected"),
        ("lower case", HEADER.lower() + GOOD, "missing 'Invoice'.*unexpected 'invoice'"),
        ("spaces in header", HEADER.replace(",", ", ") + GOOD, "unexpected ' StockCode'"),
        ("trailing comma", HEADER.replace("\n", ",\n") + GOOD, "unexpected ''"),
        ("two byte order marks", "\ufeff\ufeff" + whole, "missing 'Invoice'"),
        ("nul in header", HEADER.replace("Price", "Pri\0ce") + GOOD, "missing 'Price'"),
        ("10000 columns", ",".join(f"c{i}" for i in range(10_000)) + "\n", "and 9988 more$"),
        ("header of 1 MB", "x" * 1_000_000 + "\n" + GOOD, "unexpected 'x{60}…'$"),
        ("title line", "Orders of the day\n" + HEADER + GOOD, "unexpected 'Orders of the day'"),
        ("open quote in header", HEADER.replace("Country", '"Country') + GOOD, "CSV"),
        ("quoted line end in header", HEADER.replace("Country", '"Country') + 'x"\n' + GOOD,
         "not readable as CSV: Column 'Country'"),
        ("html page", f"<!DOCTYPE html>\n<body>{HTML}</body>\n", "header's columns"),
        ("json", in_json(), "header's columns"),
        ("utf-16 without mark", whole.encode("utf-16-le"), "header's columns"),
        ("utf-16 be without mark", whole.encode("utf-16-be"), "header's columns"),
        ("utf-16", whole.encode("utf-16"), "not UTF-8: byte 0xff in line 1"),
        ("utf-16 be", b"\xfe\xff" + whole.encode("utf-16-be"), "not UTF-8: byte 0xfe in line 1"),
        ("utf-32", whole.encode("utf-32"), "not UTF-8: byte 0xff in line 1"),
        ("ebcdic", whole.encode("cp500"), "not UTF-8: byte 0x[0-9a-f]{2} in line 1"),
        ("latin-1", (whole + in_csv(Description="café")).encode("latin-1"),
         "not UTF-8: byte 0xe9 in line 5"),
        ("windows-1252", (whole + in_csv(Description="€")).encode("cp1252"),
         "not UTF-8: byte 0x80 in line 5"),
        ("mixed encodings", (HEADER + in_csv(Description="é")).encode() + "é,\n".encode("latin-1"),
         "not UTF-8: byte 0xe9 in line 3"),
        ("overlong slash", whole.encode() + b"\xc0\xaf\n", "not UTF-8: byte 0xc0 in line 5"),
        ("surrogate", whole.encode() + b"\xed\xa0\x80\n", "not UTF-8: byte 0xed in line 5"),
        ("half a character", whole.encode() + b"\xe2\x82", "not UTF-8: byte 0xe2 in line 5"),
        ("beyond unicode", whole.encode() + b"\xf5\x80\x80\x80", "not UTF-8: byte 0xf5 in line 5"),
        ("gzip by name of csv", gzip.compress(whole.encode(), mtime=0),
         "not UTF-8: byte 0x8b in line 1"),
        ("parquet by name of csv", in_parquet(), "not UTF-8|header's columns"),
        ("workbook", a_zip(), "not UTF-8|header's columns"),
        ("open quote", HEADER + GOOD + stray + GOOD, "row at line 3 is never closed"),
        ("open quote after a bare one", HEADER + GOOD.replace("BALL", '5" BALL') + stray + GOOD,
         "row at line 3 is never closed"),
        ("open quote after a closed one", HEADER + GOOD.replace("BALL", '"5"" BALL" X') + stray,
         "row at line 3 is never closed"),
        ("open quote in the last value", HEADER + GOOD + GOOD.replace("EIRE", '"EIRE'),
         "row at line 3 is never closed"),
        ("open quote before many rows", HEADER + stray + GOOD * 5000,
         "row at line 2 is never closed"),
        ("row over a block", HEADER + GOOD + in_csv(Description="x" * (17 << 20)),
         "a row is longer than 8 MiB"),
    ):  # fmt: skip
        yield of_text(label, text, refused=reason)


def a_zip() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("xl/workbook.xml", HEADER + GOOD * 100)
    return file.getvalue()


def archives() -> Iterator[Entry]:
    """Gzip, whole and not."""
    text = (HEADER + "".join(in_csv(Description=f"in gzip {i}") for i in range(100))).encode()
    whole = gzip.compress(text, mtime=0)
    first, second = gzip.compress(text[:500], mtime=0), gzip.compress(text[500:], mtime=0)

    def of_gzip(label: str, content: bytes, **expected: Any) -> Entry:
        return Entry(f"{label}.csv.gz", content, **expected)

    yield of_gzip("two members", first + second, loaded=100)
    yield of_gzip("zeros at the end", whole + bytes(512), loaded=100)
    yield of_gzip("empty members", gzip.compress(b"") + whole + gzip.compress(b""), loaded=100)
    yield of_gzip(
        "over 1 MiB of zeros between members", first + bytes(3 << 20) + second, loaded=100
    )
    again = gzip.compress((HEADER + GOOD).encode())
    yield of_gzip("two files in one", again + again, loaded=2, broken=((2, "Invoice", INVOICE),))
    large = (HEADER + in_csv(Country="XX") * 40_000).encode()
    members = gzip.compress(large) + gzip.compress(GOOD.encode() * 9)
    yield of_gzip("members of over 1 MiB", members, loaded=40_009)
    yield of_gzip("header", gzip.compress(HEADER.encode()), loaded=0)

    damaged = "gzip is truncated or damaged"
    empty = "empty, without even a header"
    for label, content, reason in (
        ("no bytes", b"", empty),
        ("of nothing", gzip.compress(b""), empty),
        ("of blanks", gzip.compress(b" \n \n"), empty),
        ("header of gzip only", whole[:10], damaged),
        ("three bytes", whole[:3], damaged),
        ("half", whole[: len(whole) // 2], damaged),
        ("without its check sum", whole[:-8], damaged),
        ("without its last byte", whole[:-1], damaged),
        ("wrong check sum", whole[:-8] + bytes([whole[-8] ^ 1]) + whole[-7:], damaged),
        ("wrong length", whole[:-1] + b"\x7f", damaged),
        ("half a second member", whole + second[:-20], damaged),
        ("text after it", whole + b"the end", damaged),
        ("line end after it", whole + b"\n", damaged),
        ("plain text", text, damaged),
        ("zip", a_zip(), damaged),
        ("zlib", b"\x78\x9c" + whole[10:], damaged),
        ("unknown method", whole[:2] + b"\x07" + whole[3:], damaged),
        ("gzip in gzip", gzip.compress(whole), "not UTF-8: byte 0x8b in line 1"),
        ("latin-1", gzip.compress(text + b"\xe9"), "not UTF-8: byte 0xe9 in line 102"),
        ("bomb of line ends", bomb(b"\n"), "taken for a decompression bomb"),
        ("bomb of rows", bomb(GOOD.encode()), "taken for a decompression bomb"),
        ("bomb in members", gzip.compress(HEADER.encode()) + gzip.compress(bytes(8 << 20)) * 9,
         "longer than 8 MiB|taken for a decompression bomb"),
    ):  # fmt: skip
        yield of_gzip(label, content, refused=reason)
    blank = b" " * (1 << 20) + b"\n"
    yield Entry("bomb.jsonl.gz", bomb(blank), refused="taken for a decompression bomb")


def bomb(line: bytes) -> bytes:
    """72 MiB in a few hundred KiB, below a header."""
    return gzip.compress(HEADER.encode()) + gzip.compress(line * ((72 << 20) // len(line)))


def json_lines() -> Iterator[Entry]:
    """JSON Lines, and JSON that is none."""

    def of_lines(label: str, text: str | bytes, **expected: Any) -> Entry:
        content = text.encode() if isinstance(text, str) else text
        return Entry(f"{label}.jsonl", content, **expected)

    row = json.dumps(ROW)
    for label, line, column, rule in (
        ("open brace", "{", None, "a JSON object (Expecting property name"),
        ("cut off", row[:-3], None, "a JSON object (Unterminated string"),
        ("list", json.dumps(list(ROW.values())), None, "a JSON object, found a list"),
        ("number", "1", None, "a JSON object, found a plain value"),
        ("text", f'"{SQL}"', None, "a JSON object, found a plain value"),
        ("null", "null", None, "a JSON object, found a plain value"),
        ("true", "true", None, "a JSON object, found true or false"),
        ("nan", "NaN", None, "a JSON object, found NaN"),
        ("two objects", row + row, None, "a JSON object (Extra data"),
        ("comma after", row + ",", None, "a JSON object (Extra data"),
        ("comma within", row[:-1] + ",}", None, "a JSON object (Expecting property name"),
        ("single quotes", str(ROW), None, "a JSON object (Expecting property name"),
        ("comment", f"// {row}", None, "a JSON object (Expecting value"),
        ("csv", GOOD[:-1], None, "a JSON object (Extra data"),
        ("mark", "\ufeff" + row, None, "a JSON object (Unexpected UTF-8 BOM"),
        ("bare nul", row.replace("BALL", "\0"), None, "a JSON object (Invalid control character"),
        ("bare tab", row.replace("BALL", "\t"), None, "a JSON object (Invalid control character"),
        ("bad escape", row.replace("BALL", "\\x41"), None, "a JSON object (Invalid \\escape"),
        ("short escape", row.replace("BALL", "\\u12"), None, "a JSON object (Invalid \\uXXXX"),
        ("deep list", "[" * 100_000, None, "a JSON object (nested too deeply)"),
        ("deep object", '{"a":' * 100_000, None, "a JSON object (nested too deeply)"),
        ("deep value", row.replace('"BALL"', "[" * 500 + "]" * 500), "Description",
         "text or a number, found a list"),
        ("key twice", row[:-1] + ', "Price": 1}', None, "each key once, found 'Price' twice"),
        ("key more", json.dumps({**ROW, "Colour": 1}), None, "no key 'Colour'"),
        ("key of html", json.dumps({**ROW, HTML: 1}), None, f"no key '{HTML}'"),
        ("key of 1 MB", json.dumps({"x" * 1_000_000: 1}), None, "no key 'xxxxxx"),
        ("10000 keys", json.dumps({str(i): i for i in range(10_000)}), None, "no key '0'"),
        ("lower case", row.lower(), None, "no key 'invoice'"),
        ("no keys", "{}", "Invoice", REQUIRED),
        ("key missing", json.dumps({k: v for k, v in ROW.items() if k != "Price"}), "Price",
         REQUIRED),
        ("null value", json.dumps({**ROW, "Country": None}), "Country", REQUIRED),
        ("object value", json.dumps({**ROW, "Country": {"a": 1}}), "Country",
         "text or a number, found an object"),
        ("list value", json.dumps({**ROW, "Country": ["EIRE"]}), "Country",
         "text or a number, found a list"),
        ("true value", json.dumps({**ROW, "Description": True}), "Description",
         "text or a number, found true or false"),
        ("nan value", json.dumps({**ROW, "Price": float("nan")}), "Price",
         "text or a number, found NaN"),
        ("nan text", json.dumps({**ROW, "Description": float("nan")}), "Description",
         "text or a number, found NaN"),
        ("infinite value", json.dumps({**ROW, "Quantity": float("-inf")}), "Quantity",
         "text or a number, found -Infinity"),
        ("large value", json.dumps({**ROW, "Quantity": 10**400}), "Quantity", WHOLE),
        ("2 to the 63", json.dumps({**ROW, "Quantity": 2**63}), "Quantity", WHOLE),
        ("whole float", json.dumps({**ROW, "Quantity": 12.0}), "Quantity", WHOLE),
        ("exponent", row.replace('"6.95"', "1e5"), "Price", DECIMAL),
        ("beyond double", row.replace('"6.95"', "1e400"), "Price", DECIMAL),
        ("half a pair", row.replace("BALL", "\\ud800"), "Description", "text of whole characters"),
        ("other half", row.replace("BALL", "x\\uDC00y"), "Description", "text of whole characters"),
        ("pair reversed", row.replace("BALL", "\\udc00\\ud800"), "Description",
         "text of whole characters"),
        ("half a pair as customer", row.replace("13085", "\\ud800"), "Customer ID",
         "text of whole characters"),
        ("half a pair in a key", json.dumps({**ROW, "\ud800": 1}), None, "no key '\\ud800'"),
    ):  # fmt: skip
        text = in_json() + line + "\n" + in_json()
        yield of_lines(f"line {label}", text, loaded=2, broken=((2, column, rule),))

    yield of_lines("whole pair", row.replace("BALL", "\\ud83c\\udfb1"), loaded=1,
                   kept=("description", "🎱"))  # fmt: skip
    yield of_lines("escaped escape", row.replace("BALL", "\\\\ud800"), loaded=1,
                   kept=("description", "\\ud800"))  # fmt: skip
    yield of_lines("plain numbers", json.dumps({**ROW, "Price": -0.0, "Quantity": -0}), loaded=1,
                   kept=("price", "0.0000"))  # fmt: skip
    yield of_lines("crlf", f"{row}\r\n\r\n{row}\r\n", loaded=2)
    yield of_lines("byte order mark", f"\ufeff{row}\n{row}\n{row}", loaded=3)
    yield of_lines("blank lines", f"\n \n{row}\n\n{row}\n{{\n", loaded=2,
                   broken=((3, None, "a JSON object (Expecting property"),))  # fmt: skip
    yield of_lines("lone cr", f"{row}\r{row}\r{row}", loaded=0,
                   broken=((1, None, "a JSON object (Extra data"),))  # fmt: skip
    yield of_lines("one array", f"[\n{row},\n{row}\n]\n", loaded=1, broken=(
        (1, None, "a JSON object (Expecting value"), (2, None, "a JSON object (Extra data"),
        (4, None, "a JSON object (Expecting value")))  # fmt: skip
    for label, text, reason in (
        ("empty", "", "empty, without even a header"),
        ("blank", " \n\n", "empty, without even a header"),
        ("utf-16", (row + "\n").encode("utf-16"), "not UTF-8: byte 0xff in line 1"),
        ("latin-1", (in_json() + '{"é": 1}').encode("latin-1"), "not UTF-8: byte 0xe9 in line 2"),
        ("line over a block", in_json() + "{" * (9 << 20), "row 2 is longer than 8 MiB"),
        ("gzip", gzip.compress(row.encode()), "not UTF-8: byte 0x8b in line 1"),
    ):
        yield of_lines(label, text, refused=reason)
    lines = ("utf-16 without mark", (row + "\n").encode("utf-16-be"))
    yield of_lines(*lines, loaded=0, broken=((1, None, "a JSON object (Expecting value"),))


def parquets() -> Iterator[Entry]:
    """Parquet of other types, and what is none."""
    instant = datetime(2024, 1, 5, 7, 45)  # noqa: DTZ001

    def of_parquet(label: str, content: bytes, **expected: Any) -> Entry:
        return Entry(f"{label}.parquet", content, **expected)

    dates = {"InvoiceDate": pa.array([instant], pa.timestamp("us"))}
    for label, columns, kept in (
        ("large string", {"Country": pa.array(["UK"], pa.large_string())}, ("country", "UK")),
        ("string view", {"Country": pa.array(["IT"], pa.string_view())}, ("country", "IT")),
        ("dictionary", {"Country": pa.array(["FR"]).dictionary_encode()}, ("country", "FR")),
        ("sql", {"Country": pa.array([SQL])}, ("country", SQL)),
        ("null column", {"Description": pa.nulls(1)}, ("description", None)),
        ("decimal", {"Price": pa.array([Decimal("-7.5")])}, ("price", "-7.5000")),
        ("decimal256", {"Price": pa.array([Decimal("6.5")], pa.decimal256(50, 2))},
         ("price", "6.5000")),
        ("negative zero", {"Price": pa.array([-0.0])}, ("price", "0.0000")),
        ("float32", {"Price": pa.array([0.1], pa.float32())}, ("price", "0.1000")),
        ("float16", {"Quantity": pa.array([3.0], pa.float16())}, ("quantity", "3")),
        ("whole float", {"Customer ID": pa.array([13086.0])}, ("customer_id", "13086")),
        ("uint8", {"Quantity": pa.array([255], pa.uint8())}, ("quantity", "255")),
        ("int64", {"Quantity": pa.array([-5], pa.int64())}, ("quantity", "-5")),
        ("nanoseconds", {"InvoiceDate": pa.array([instant], pa.timestamp("ns"))},
         ("invoice_date", "2024-01-05 07:45:00")),
        ("milliseconds", {"InvoiceDate": pa.array([instant], pa.timestamp("ms"))},
         ("invoice_date", "2024-01-05 07:45:00")),
    ):  # fmt: skip
        yield of_parquet(label, in_parquet(columns), loaded=1, kept=kept)
    int96 = in_parquet(dates, use_deprecated_int96_timestamps=True)
    yield of_parquet("int96", int96, loaded=1, kept=("invoice_date", "2024-01-05 07:45:00"))
    for label, options in (
        ("zstd", {"compression": "zstd", "data_page_version": "2.0"}),
        ("brotli", {"compression": "brotli", "write_page_checksum": True}),
        ("row groups", {"row_group_size": 1, "use_dictionary": False}),
    ):
        columns = {"Description": pa.array([label, "", None])}
        yield of_parquet(label, in_parquet(columns, **options), loaded=3)
    yield of_parquet("no rows", in_parquet({n: pa.array([], pa.string()) for n in COLUMNS}),
                     loaded=0)  # fmt: skip

    far = datetime(3000, 1, 1)  # noqa: DTZ001
    for label, column, array, rule in (
        ("uint64", "Quantity", pa.array([2**64 - 1], pa.uint64()), WHOLE),
        ("int64 largest", "Quantity", pa.array([2**63 - 1]), WHOLE),
        ("2 to the 31", "Quantity", pa.array([2**31]), WHOLE),
        ("half", "Quantity", pa.array([12.5]), WHOLE),
        ("large float", "Quantity", pa.array([1e300]), WHOLE),
        ("infinite", "Price", pa.array([float("inf")]), DECIMAL),
        ("nan", "Price", pa.array([float("nan")]), DECIMAL),
        ("inexact", "Price", pa.array([0.1 + 0.2]), DECIMAL),
        ("wide decimal", "Price", pa.array([Decimal("0.00001")]), DECIMAL),
        ("null value", "Price", pa.array([None], pa.float64()), REQUIRED),
        ("null column required", "Country", pa.nulls(1), REQUIRED),
        ("nul", "Description", pa.array(["\0"]), NUL),
        ("microseconds", "InvoiceDate", pa.array([instant + timedelta(microseconds=1)]), INSTANT),
        ("text date", "InvoiceDate", pa.array(["05.01.2024"]), INSTANT),
        ("numeric date", "InvoiceDate", pa.array([20240105]), INSTANT),
        ("year 0", "InvoiceDate", pa.array([-62167219200], pa.timestamp("s")), INSTANT),
        ("year 10000", "InvoiceDate", pa.array([253402300800], pa.timestamp("s")), INSTANT),
        ("last instant", "InvoiceDate", pa.array([2**63 - 1], pa.timestamp("us")), INSTANT),
        ("first instant", "InvoiceDate", pa.array([-(2**62)], pa.timestamp("us")), INSTANT),
        ("long text", "Description", pa.array(["x" * 1_000_000]), "at most 1000 characters"),
        ("formula as customer", "Customer ID", pa.array([FORMULA]), CUSTOMER),
    ):
        yield of_parquet(f"broken {label}", in_parquet({column: array}), loaded=0,
                         broken=((1, column, rule),))  # fmt: skip
    int96 = in_parquet({"InvoiceDate": pa.array([far])}, use_deprecated_int96_timestamps=True)
    yield of_parquet("int96 of the year 3000", int96, loaded=0, broken=((1, "InvoiceDate", LATER),))

    for label, column, array in (
        ("list", "Price", pa.array([[6.95]])),
        ("struct", "Price", pa.array([{"amount": 6.95}])),
        ("map", "Country", pa.array([[("a", "b")]], pa.map_(pa.string(), pa.string()))),
        ("binary", "Country", pa.array([b"EIRE"])),
        ("fixed binary", "Country", pa.array([b"EIRE"], pa.binary(4))),
        ("bool", "Country", pa.array([True])),
        ("date32", "InvoiceDate", pa.array([date(2024, 1, 5)])),
        ("date64", "InvoiceDate", pa.array([date(2024, 1, 5)], pa.date64())),
        ("time32", "InvoiceDate", pa.array([time(7, 45)], pa.time32("s"))),
        ("time64", "InvoiceDate", pa.array([time(7, 45)])),
        ("duration", "Quantity", pa.array([timedelta(1)])),
        ("zoned", "InvoiceDate", pa.array([0], pa.timestamp("us", "Europe/London"))),
        ("json", "Country", pa.array(["{}"], pa.json_())),
    ):
        yield of_parquet(f"type {label}", in_parquet({column: array}),
                         refused=f"column '{column}' is of Parquet type")  # fmt: skip

    whole = in_parquet({"Description": pa.array([f"in Parquet {i}" for i in range(100)])})
    unreadable = "not readable as Parquet"
    not_text = pa.array([b"\xff\xfe"], pa.binary()).view(pa.string())
    names = pa.table([pa.array(["1"])] * 9, names=[*COLUMNS, "Price"])
    sink = pa.BufferOutputStream()
    pq.write_table(names, sink)
    for label, content, reason in (
        ("no bytes", b"", unreadable),
        ("magic only", b"PAR1PAR1", unreadable),
        ("text", (HEADER + GOOD).encode(), unreadable),
        ("gzip", gzip.compress(whole), unreadable),
        ("half", whole[: len(whole) // 2], unreadable),
        ("without its last byte", whole[:-1], unreadable),
        ("footer only", whole[-1000:], unreadable),
        ("bytes after it", whole + b"\n", unreadable),
        ("footer of 2 GiB", whole[:-8] + b"\xff\xff\xff\x7fPAR1", unreadable),
        ("encrypted", whole[:-4] + b"PARE", unreadable),
        ("zeros within", whole[:200] + bytes(200) + whole[400:], unreadable),
        ("not UTF-8", in_parquet({"Country": not_text}), unreadable),
        ("column twice", bytes(sink.getvalue()), "twice 'Price'"),
        ("column more", in_parquet({"Colour": pa.array(["red"])}), "unexpected 'Colour'"),
        ("row over a block", in_parquet({"Country": pa.array(["x" * (9 << 20)])}),
         "row 1 is longer than 8 MiB"),
        ("bomb of a text", in_parquet({"Country": pa.array(["x" * (1 << 20)] * 100)}),
         "taken for a decompression bomb"),
        ("bomb of nulls", in_parquet({n: pa.nulls(10_000_000) for n in COLUMNS}),
         "taken for a decompression bomb"),
    ):  # fmt: skip
        yield of_parquet(label, content, refused=reason)
    wrong = bytearray(in_parquet({}, compression="none", write_page_checksum=True))
    wrong[wrong.index(b"EIRE")] ^= 1
    yield of_parquet("wrong page check sum", bytes(wrong), refused=unreadable)


def examples[T](strategy: st.SearchStrategy[T], count: int) -> list[T]:
    """The same examples in every run."""
    found: list[T] = []

    @profile(
        max_examples=count, derandomize=True, database=None, deadline=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(strategy)
    def collect(example: T) -> None:
        found.append(example)

    collect()
    return found


ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
SPECIAL = st.sampled_from([*ROW.values(), "", '"', "\n", "\r", ",", "\0", "\ufeff", "NaN", "-0"])
CELLS = st.one_of(SPECIAL, ANY_TEXT)
RECORDS = st.lists(st.lists(CELLS, min_size=1, max_size=10), min_size=1, max_size=8)
DIALECTS = st.sampled_from(
    [(csv.QUOTE_MINIMAL, "\r\n"), *((csv.QUOTE_ALL, end) for end in ("\n", "\r\n", "\r"))]
)
JSON_VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), SPECIAL, st.text(max_size=8)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(SPECIAL, inner)),
    max_leaves=6,
)
JSON_ROWS = st.one_of(
    JSON_VALUES,
    st.fixed_dictionaries({name: st.one_of(st.just(v), JSON_VALUES) for name, v in ROW.items()}),
)
DAMAGE = st.lists(
    st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 7)), min_size=1, max_size=3
)


def flipped(content: bytes, damage: list[tuple[float, int]]) -> bytes:
    """The content with some bits turned: where, as a share of its length, and which of the byte."""
    bytes_ = bytearray(content)
    for where, bit in damage:
        bytes_[int(where * len(bytes_))] ^= 1 << bit
    return bytes(bytes_)


def generated() -> Iterator[Entry]:
    """Files of which only the number of rows is known, where it is."""
    written = examples(st.tuples(RECORDS, DIALECTS), 50)
    for number, (records, (quoting, line_end)) in enumerate(written):
        text = io.StringIO(newline="")
        writer = csv.writer(text, quoting=quoting, lineterminator=line_end)
        writer.writerows([COLUMNS, *records, [f"csv {number}"]])
        content = text.getvalue().encode()
        yield Entry(f"any-{number:03}.csv", content, rows=len(records) + 1)
    for number, rows in enumerate(examples(st.lists(JSON_ROWS, min_size=1, max_size=8), 50)):
        text = "".join(json.dumps(row) + "\n" for row in [*rows, f"json {number}"])
        yield Entry(f"any-{number:03}.jsonl", text.encode(), rows=len(rows) + 1)
    text = (HEADER + "".join(in_csv(Description=f"flip {i}") for i in range(20))).encode()
    parquet = in_parquet({"Description": pa.array([f"flip {i}" for i in range(20)])})
    gz = gzip.compress(text, mtime=0)
    for number, damage in enumerate(examples(DAMAGE, 30)):
        yield Entry(f"flip-{number:03}.csv", flipped(text, damage))
        yield Entry(f"flip-{number:03}.csv.gz", flipped(gz, damage), rows=20)
        yield Entry(f"flip-{number:03}.parquet", flipped(parquet, damage), rows=20)
        cut = int(damage[0][0] * len(parquet))
        yield Entry(f"cut-{number:03}.parquet", parquet[:cut] + bytes([number]), refused="Parquet")
        cut = 20 + int(damage[0][0] * (len(gz) - 20))
        yield Entry(f"cut-{number:03}.csv.gz", gz[:cut], refused="truncated or damaged")


BY_HAND: tuple[Callable[[], Iterator[Entry]], ...] = (
    values, texts, archives, json_lines, parquets,
)  # fmt: skip
SOME_GOOD = {
    "order_lines": {
        f"ds=2024-01-07/{i}.csv": (HEADER + in_csv(Invoice=f"7{i}") * 9).encode() for i in range(3)
    }
    | {f"ds={DAY}/{i} good.csv": (HEADER + in_csv(Country=i)).encode() for i in "0hmtz"}
    | {"ds=2024-01-06/a.jsonl": in_json(Invoice="91").encode()}
    | {"ds=2024-01-06/b.parquet": in_parquet({"Invoice": pa.array(["92"])})},
    "chargebacks": {
        "ds=2024-01-05/good.csv": b"transaction_id,reported_at\n1,2024-01-05 00:00:00\n"
    },
}


def land(settings: Settings, source: str, path: str, content: bytes) -> None:
    file = settings.landing_folder / source / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)


def query(settings: Settings, sql: str) -> list[tuple[Any, ...]]:
    with connect(settings) as connection, connection.cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchall()


def rows_by_file(settings: Settings, sql: str) -> dict[int, list[tuple[Any, ...]]]:
    """The rows of a query, by the first of their columns."""
    found = defaultdict(list)
    for file_id, *row in query(settings, sql):
        found[file_id].append(tuple(row))
    return found


def test_malformed_files_lose_nothing_and_harm_no_other(warehouse: Settings) -> None:
    made = [entry for make in (*BY_HAND, generated) for entry in make()]
    # The same content twice would be left out as a duplicate.
    unique = {entry.content: entry for entry in reversed(made)}.values()
    entries = {f"{number:03} {entry.name}": entry for number, entry in enumerate(unique)}
    assert len(entries) >= 700
    for name, entry in entries.items():
        land(warehouse, "order_lines", f"ds={DAY}/{name}", entry.content)
    for source, files in SOME_GOOD.items():
        for path, content in files.items():
            land(warehouse, source, path, content)

    with pytest.raises(ContractError) as refusal:
        ingest(warehouse, AS_OF)

    ledger = {
        path.removeprefix(f"order_lines/ds={DAY}/"): row
        for path, *row in query(
            warehouse,
            "select path, file_id, status, reason, rows_in, rows_loaded, rows_quarantined"
            " from ops.landing_files",
        )
    }
    numbers = rows_by_file(warehouse, "select _file_id, _row_number from raw.order_lines")
    quarantined = rows_by_file(
        warehouse,
        "select _file_id, _row_number, column_name, rule from quarantine.order_lines order by 2",
    )
    raw = rows_by_file(
        warehouse,
        "select _file_id, jsonb_object_agg(key, value) from raw.order_lines as r,"
        " jsonb_each_text(to_jsonb(r) || jsonb_build_object('invoice_date', invoice_date::text))"
        " group by _file_id, _row_number",
    )
    wrong = {}
    for name, entry in entries.items():
        file_id, status, reason, rows_in, rows_loaded, rows_quarantined = ledger.pop(name)
        broken = quarantined.pop(file_id, [])
        loaded = [number for (number,) in numbers.pop(file_id, [])]
        if status == "refused":
            is_right = (
                (entry.loaded is None and re.search(entry.refused, reason) is not None)
                and not loaded
                and not broken
                and rows_in == 0
                and f"{DAY}/{name}: " in refusal.value.what
            )
        else:
            is_right = (
                status == "loaded"
                and not entry.refused
                and (len(loaded), len(broken)) == (rows_loaded, rows_quarantined)
                # each row is in one of the two, under its own number
                and sorted([*loaded, *(row[0] for row in broken)]) == list(range(1, rows_in + 1))
                and entry.rows in (None, rows_in)
            )
            if entry.loaded is not None:
                is_right = is_right and rows_loaded == entry.loaded
                is_right = is_right and len(broken) == len(entry.broken)
                for found, expected in zip(broken, entry.broken, strict=False):
                    is_right = is_right and found[:2] == expected[:2]
                    is_right = is_right and found[2].startswith(expected[2])
            if entry.kept is not None:
                column, value = entry.kept
                is_right = is_right and all(row[column] == value for (row,) in raw[file_id])
        if not is_right:
            wrong[name] = (status, reason, rows_in, rows_loaded, broken)
    assert not wrong, "\n".join(f"{name}: {found}" for name, found in wrong.items())

    # What is left is the good files, whole.
    assert {path: (row[1], row[4], row[5]) for path, row in ledger.items()} == {
        f"{source}/{path}".removeprefix(f"order_lines/ds={DAY}/"): (
            "loaded", 9 if "01-07" in path else 1, 0,
        )
        for source, files in SOME_GOOD.items()
        for path in files
    }  # fmt: skip
    assert quarantined == {}
    assert sum(map(len, numbers.values())) == 3 * 9 + 5 + 2
    assert query(warehouse, "select count(*) from raw.chargebacks") == [(1,)]


@pytest.mark.usefixtures("registry_of_churn")
def test_names_lead_nowhere(warehouse: Settings) -> None:
    folder = warehouse.landing_folder / "order_lines" / f"ds={DAY}"
    outside = warehouse.landing_folder.parent / "secret.csv"
    outside.write_text(HEADER + GOOD)
    good = (
        "%2e%2e%2fsecret.csv", "..%2f.csv".replace("..", "a.."), f"{SQL}.csv", f"{FORMULA[:4]}.csv",
        "<b>.csv", "Ünïcödé 日本.csv", "a.csv.gz.csv", "-rf.csv", "$(id).csv", "x" * 251 + ".csv",
    )  # fmt: skip
    for number, name in enumerate(good):
        land(warehouse, "order_lines", f"ds={DAY}/{name}", (HEADER + in_csv(Invoice=f"{number}"))
             .encode())  # fmt: skip
    odd = (
        "a\nb.csv", "a\x1b[2J.csv", "a\x7f.csv", "a\u202evsc.csv", "a\u2028.csv", "..\\secret.csv",
        "a.CSV", "a.csv.zip", "a.parquet.gz", "a.json", "a", "a.csv~",
    )  # fmt: skip
    for name in odd:
        land(warehouse, "order_lines", f"ds={DAY}/{name}", (HEADER + GOOD).encode())
    Path(os.fsdecode(os.fsencode(folder) + b"/\xff.csv")).write_text(HEADER + GOOD)
    (folder / "folder.csv").mkdir()
    os.mkfifo(folder / "pipe.csv")
    (folder / "out.csv").symlink_to(outside)
    (folder / "relative.csv").symlink_to("../../../secret.csv")
    (folder / "nowhere.csv").symlink_to("nothing")
    (folder / "itself.csv").symlink_to("itself.csv")
    (folder.parent / "ds=2024-01-06").symlink_to(outside.parent / "other")
    (outside.parent / "other").mkdir()
    (outside.parent / "other" / "x.csv").write_text(HEADER + GOOD)
    for name in ("hidden/.a.csv", "_part.csv", ".a.csv.gz"):
        land(warehouse, "order_lines", f"ds={DAY}/{'_' + name if '/' in name else name}", b"x")

    with pytest.raises(ContractError) as refusal:
        ingest(warehouse, AS_OF)

    refused = refusal.value.what
    assert query(warehouse, "select count(*) from raw.order_lines") == [(len(good),)]
    paths = "select path from ops.landing_files where status = 'loaded'"
    assert {Path(path).name for (path,) in query(warehouse, paths)} == set(good)
    for name in (*odd, "\udcff.csv", "folder.csv"):
        shown = name if name.isprintable() and "\\" not in name else ascii(name)
        assert f"{DAY}/{shown}: not a file that ends with" in refused
    for name in ("pipe.csv", "nowhere.csv", "itself.csv"):
        assert f"{DAY}/{name}: not a file that can be read" in refused
    for name in (f"{DAY}/out.csv", f"{DAY}/relative.csv", "2024-01-06/x.csv"):
        assert f"{name}: a link that leads out of the landing zone" in refused
    assert refused.startswith(f"{len(odd) + 2 + 3 + 3} of what landed")
    assert not set("\x1b\x7f\u202e\u2028\udcff") & set(refused)
