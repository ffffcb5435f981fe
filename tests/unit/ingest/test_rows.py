"""Landed bytes to typed rows and broken rows: literal files, literal results."""

import gzip
import json
import re
import tempfile
from collections.abc import Iterable
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nightshift.contracts import load_contract
from nightshift.errors import ContractError
from nightshift.ingest import formats
from nightshift.ingest.rows import BROKEN_SCHEMA, CheckedRows, check, good_schema

HEADER = "Invoice,StockCode,Description,Quantity,InvoiceDate,Price,Customer ID,Country\n"
GOOD = "489434,85048,GLASS BALL,12,2009-12-01 07:45:00,6.95,13085,United Kingdom\n"
CONTRACT = load_contract("order_lines")
DAY = date(2009, 12, 1)


def checked(landed: str | bytes, path: str = "f.csv", contract: Any = CONTRACT) -> CheckedRows:
    """All rows of a file with this content."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "landed"
        file.write_bytes(landed.encode() if isinstance(landed, str) else landed)
        batches = [
            check(contract, batch, DAY) for batch in formats.read(contract, path, file, print)
        ]
    none = CheckedRows(good_schema(contract).empty_table(), BROKEN_SCHEMA.empty_table())
    return CheckedRows(
        good=pa.concat_tables([b.good for b in [none, *batches]]),
        broken=pa.concat_tables([b.broken for b in [none, *batches]]),
    )


def broken(rows: CheckedRows) -> list[tuple[int, str, str, str]]:
    return [
        (row["_row_number"], row["column_name"], row["rule"], row["value"])
        for row in rows.broken.to_pylist()
    ]


def test_a_row_is_typed() -> None:
    assert checked(HEADER + GOOD).good.to_pylist() == [
        {
            "invoice": "489434",
            "stock_code": "85048",
            "description": "GLASS BALL",
            "quantity": 12,
            "invoice_date": datetime(2009, 12, 1, 7, 45),  # noqa: DTZ001
            "price": Decimal("6.9500"),
            "customer_id": "13085",
            "country": "United Kingdom",
            "_row_number": 1,
        }
    ]


def test_empty_optional_values_are_null() -> None:
    (row,) = checked(HEADER + "C1,M,,-1,2009-12-01 00:00:00,-53594.36,,EIRE\n").good.to_pylist()

    assert (row["description"], row["customer_id"], row["quantity"]) == (None, None, -1)
    assert row["price"] == Decimal("-53594.3600")


def test_columns_are_found_by_name() -> None:
    text = (
        "Country,Invoice,StockCode,Description,Quantity,InvoiceDate,Price,Customer ID\n"
        "EIRE,1,A,,2,2009-12-01 00:00:00,3,4\n"
    )
    (row,) = checked(text).good.to_pylist()

    assert (row["country"], row["invoice"], row["customer_id"]) == ("EIRE", "1", "4")


@pytest.mark.parametrize(
    ("right", "wrong", "expected"),
    [
        ("12,", "a dozen,", ("Quantity", "a whole number", "a dozen")),
        ("12,", "1.5,", ("Quantity", "a whole number", "1.5")),
        ("12,", ",", ("Quantity", "a value (it is required)", "")),
        ("12,", "1000001,", ("Quantity", "at most 1000000", "1000001")),
        ("12,", "-1000001,", ("Quantity", "at least -1000000", "-1000001")),
        ("12,", "99999999999999999999,", ("Quantity", "a whole number", "99999999999999999999")),
        ("6.95", "free", ("Price", "a decimal number", "free")),
        ("6.95", "NaN", ("Price", "a decimal number", "NaN")),
        ("6.95", "1000000.01", ("Price", "at most 1000000", "1000000.01")),
        (
            "2009-12-01 07",
            "2009-02-30 07",
            ("InvoiceDate", "a date and time YYYY-MM-DD HH:MM:SS", "2009-02-30 07:45:00"),
        ),
        (
            "2009-12-01 07:45:00",
            "01/12/2009",
            ("InvoiceDate", "a date and time YYYY-MM-DD HH:MM:SS", "01/12/2009"),
        ),
        (
            "2009-12-01 07",
            "2009-12-01T07",
            ("InvoiceDate", "a date and time YYYY-MM-DD HH:MM:SS", "2009-12-01T07:45:00"),
        ),
        (
            "2009-12-01 07",
            "0000-12-01 07",
            ("InvoiceDate", "a date and time YYYY-MM-DD HH:MM:SS", "0000-12-01 07:45:00"),
        ),
        (
            "2009-12-01 07",
            "2009-12-02 00",
            ("InvoiceDate", "not after the day it landed, 2009-12-01", "2009-12-02 00:45:00"),
        ),
        ("489434", "48 94", ("Invoice", "text like ^[A-Za-z]?[0-9]{1,18}$", "48 94")),
        ("GLASS BALL", "GLASS\0BALL", ("Description", "no NUL character", "GLASS\\0BALL")),
        ("85048", "8" * 65, ("StockCode", "at most 64 characters", "8" * 65)),
    ],
)
def test_a_broken_value_sets_its_row_apart(
    right: str, wrong: str, expected: tuple[str, str, str]
) -> None:
    rows = checked(HEADER + GOOD + GOOD.replace(right, wrong, 1) + GOOD)

    assert broken(rows) == [(2, *expected)]
    assert rows.good["_row_number"].to_pylist() == [1, 3]
    assert rows.rows_in == 3


def test_the_edges_of_the_ranges_are_good() -> None:
    edges = GOOD.replace("12,", "1000000,", 1) + GOOD.replace("6.95", "-1000000.0000")

    last = GOOD.replace("07:45:00", "23:59:59")

    assert checked(HEADER + edges + last).broken.num_rows == 0


def test_row_numbers_count_rows_and_not_lines() -> None:
    text = (
        HEADER
        + GOOD.replace("GLASS BALL", '"GLASS\nBALL, ""BIG"""')
        + "\n"
        + "too,few\n"
        + GOOD
        + GOOD.rstrip("\n")
        + ",too many\n"
        + GOOD.replace("12,", "many,", 1)
        + GOOD
    )
    rows = checked(text)

    assert rows.good["_row_number"].to_pylist() == [1, 3, 6]
    assert rows.good["description"][0].as_py() == 'GLASS\nBALL, "BIG"'
    assert broken(rows) == [
        (2, None, "8 fields, found 2", None),
        (4, None, "8 fields, found 9", None),
        (5, "Quantity", "a whole number", "many"),
    ]
    # what cannot be split may hold a customer anywhere
    assert rows.broken["row_as_landed"].to_pylist() == [
        "••• (7 characters)",
        f"••• ({len(GOOD) + 8} characters)",
        GOOD.replace("12,", "many,", 1).replace("13085", "•••").rstrip("\n"),
    ]


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_line_endings_and_a_missing_last_one(ending: str) -> None:
    text = (HEADER + GOOD + GOOD).replace("\n", ending)

    assert checked(text).good.num_rows == 2
    assert checked(text.removesuffix(ending)).good.num_rows == 2


def test_only_a_header_is_no_rows() -> None:
    assert checked(HEADER).rows_in == 0
    assert checked(HEADER.rstrip("\n")).rows_in == 0


def test_a_file_of_broken_rows_only() -> None:
    rows = checked(HEADER + "a\nb,c\n")

    assert (rows.good.num_rows, rows.broken.num_rows) == (0, 2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEADER.replace(",Price", "") + GOOD, "f.csv: the header.*missing 'Price'"),
        (HEADER.replace("\n", ",Colour\n") + GOOD, "f.csv: the header.*unexpected 'Colour'"),
        (HEADER.replace("StockCode", "Invoice") + GOOD, "twice 'Invoice'; missing 'StockCode'"),
        (HEADER.replace(",", ";") + GOOD, "missing 'Invoice', 'StockCode'"),
        (GOOD + GOOD, "missing 'Invoice'"),
        ("x" * 9000 + ",y" * 99, "unexpected 'x{60}…', 'y'$"),
        (",".join(map(str, range(99))), "'11' and 87 more$"),
        (HEADER + GOOD + GOOD.replace("GLASS", '"GLASS') + GOOD, "row at line 3 is never closed"),
    ],
)
def test_a_file_that_is_broken_as_a_whole_is_refused(text: str, message: str) -> None:
    with pytest.raises(ContractError) as refusal:
        checked(text)

    assert re.search(message, refusal.value.what)


def test_a_quote_inside_a_value_is_a_quote() -> None:
    assert checked(HEADER + GOOD.replace("GLASS", '5" GLASS') + GOOD).good.num_rows == 2


def test_compressed_text_and_a_byte_order_mark() -> None:
    text = (HEADER + GOOD).encode()

    assert checked(gzip.compress(text), "f.csv.gz").good.num_rows == 1
    assert checked(b"\xef\xbb\xbf" + text).good.num_rows == 1
    two_members = gzip.compress(text[:50]) + gzip.compress(text[50:])
    assert checked(two_members, "f.csv.gz").good.num_rows == 1


@pytest.mark.parametrize(
    ("path", "landed", "message"),
    [
        ("f.csv.gz", gzip.compress(GOOD.encode() * 99)[:-20], "f.csv.gz: the gzip is truncated"),
        ("f.csv.gz", b"a,b\n", "f.csv.gz: the gzip is truncated or damaged"),
        ("f.csv.gz", b"", "f.csv.gz: the file is empty"),
        ("f.csv.gz", gzip.compress(b""), "f.csv.gz: the file is empty"),
        ("f.csv", b" \n", "f.csv: the file is empty"),
        (
            "f.csv",
            HEADER.encode() + b"x,caf\xe9\n",
            "f.csv: not UTF-8: byte 0xe9 in line 2",
        ),
        ("f.csv.gz", gzip.compress(HEADER.encode()) + b"more", "f.csv.gz: the gzip is truncated"),
        (
            "f.csv.gz",
            gzip.compress(HEADER.encode() + b"\n" * (65 << 20)),
            "taken for a decompression bomb",
        ),
        ("f.parquet", b"PAR1" + b"\0" * 40 + b"PAR1", "f.parquet: not readable as Parquet"),
        ("f.parquet", b"", "f.parquet: not readable as Parquet"),
        ("f.jsonl", b"", "f.jsonl: the file is empty"),
        ("f.jsonl", b"{" * (9 << 20), "f.jsonl: row 1 is longer than 8 MiB"),
    ],
    # a gzip holds the time at which it was made: no name for a test
    ids=lambda value: "landed" if isinstance(value, bytes) else None,
)
def test_bytes_that_cannot_be_read_are_refused(path: str, landed: bytes, message: str) -> None:
    with pytest.raises(ContractError, match=message):
        checked(landed, path)


def test_rows_and_numbers_across_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "BLOCK_BYTES", 1000)
    lines = [GOOD.replace("489434", str(number)) for number in range(1, 201)]
    for number in (1, 12, 13, 100, 199, 200):
        lines[number - 1] = "too,few\n"
    lines[49] = GOOD.replace("12,", "many,", 1)

    rows = checked(HEADER + "".join(lines))

    found = zip(rows.good["_row_number"].to_pylist(), rows.good["invoice"].to_pylist(), strict=True)
    assert all(str(number) == invoice for number, invoice in found)
    assert rows.broken["_row_number"].to_pylist() == [1, 12, 13, 50, 100, 199, 200]
    assert rows.rows_in == 200


ROW: dict[str, Any] = {
    "Invoice": "489434",
    "StockCode": "85048",
    "Description": None,
    "Quantity": 12,
    "InvoiceDate": "2009-12-01 07:45:00",
    "Price": 6.95,
    "Customer ID": 13085,
    "Country": "United Kingdom",
}


def lines_of(rows: Iterable[dict[str, Any] | str]) -> str:
    return "".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows)


def test_json_lines() -> None:
    without = {key: value for key, value in ROW.items() if key != "Customer ID"}

    rows = checked(lines_of([ROW, "", without]), "f.jsonl").good.to_pylist()

    assert rows[0] == checked(HEADER + GOOD.replace("GLASS BALL", "")).good.to_pylist()[0]
    assert (rows[1]["_row_number"], rows[1]["customer_id"]) == (2, None)
    assert checked(gzip.compress(lines_of([ROW]).encode()), "f.jsonl.gz").good.num_rows == 1


@pytest.mark.parametrize(
    ("line", "column", "rule"),
    [
        ("{", None, "a JSON object (Expecting property name"),
        ("[]", None, "a JSON object, found a list"),
        ("3", None, "a JSON object, found a plain value"),
        ("[" * 100_000, None, "a JSON object (nested too deeply)"),
        ('{"a": ' * 100_000, None, "a JSON object (nested too deeply)"),
        (json.dumps(ROW)[:-1] + ', "Price": 1}', None, "each key once, found 'Price' twice"),
        (json.dumps({**ROW, "Colour": "red"}), None, "no key 'Colour'"),
        (
            json.dumps({**ROW, "Description": {"en": "BALL"}}),
            "Description",
            "text or a number, found an object",
        ),
        (json.dumps({**ROW, "Country": ["EIRE"]}), "Country", "text or a number, found a list"),
        (json.dumps({**ROW, "Quantity": True}), "Quantity", "text or a number, found true or"),
        (json.dumps({**ROW, "Quantity": 1e30}), "Quantity", "a whole number"),
        (json.dumps({**ROW, "Price": float("nan")}), "Price", "text or a number, found NaN"),
        (json.dumps({**ROW, "Country": float("inf")}), "Country", "text or a number, found Inf"),
        (json.dumps({**ROW, "Country": "\ud800"}), "Country", "text of whole characters"),
        ("\ufeff" + json.dumps(ROW), None, "a JSON object (Unexpected UTF-8 BOM"),
        (json.dumps({**ROW, "Price": None}), "Price", "a value (it is required)"),
        (json.dumps({**ROW, "Description": "\0"}), "Description", "no NUL character"),
    ],
)
def test_a_broken_json_line_is_set_apart(line: str, column: str | None, rule: str) -> None:
    rows = checked(lines_of([ROW, line, ROW]), "f.jsonl")

    (found,) = rows.broken.to_pylist()
    assert (found["_row_number"], found["column_name"]) == (2, column)
    assert found["rule"].startswith(rule)
    assert rows.good["_row_number"].to_pylist() == [1, 3]


def parquet(**columns: pa.Array) -> bytes:
    table = pa.table({name: columns.get(name, pa.array([ROW[name]])) for name in ROW})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return bytes(sink.getvalue())


def test_parquet() -> None:
    instant = datetime(2009, 12, 1, 7, 45)  # noqa: DTZ001
    expected = checked(HEADER + GOOD.replace("GLASS BALL", "")).good.to_pylist()

    for columns in (
        {},
        {"Price": pa.array([Decimal("6.95")])},
        {"InvoiceDate": pa.array([instant], pa.timestamp("ns"))},
        {"Country": pa.array(["United Kingdom"]).dictionary_encode()},
        {"Quantity": pa.array([12], pa.uint8()), "Description": pa.array([""])},
    ):
        assert checked(parquet(**columns), "f.parquet").good.to_pylist() == expected


@pytest.mark.parametrize(
    ("name", "values", "rule"),
    [
        ("Quantity", pa.array([12.5]), "a whole number"),
        ("Quantity", pa.array([2**63 - 1]), "a whole number"),
        ("Price", pa.array([float("inf")]), "a decimal number"),
        ("Price", pa.array([0.1 + 0.2]), "a decimal number"),
        ("Price", pa.array([None], pa.float64()), "a value (it is required)"),
        (
            "InvoiceDate",
            pa.array([datetime(2009, 12, 1, 7, 45, 0, 1)]),  # noqa: DTZ001
            "a date and time YYYY-MM-DD HH:MM:SS",
        ),
    ],
)
def test_a_broken_parquet_row_is_set_apart(name: str, values: pa.Array, rule: str) -> None:
    (found,) = checked(parquet(**{name: values}), "f.parquet").broken.to_pylist()

    assert (found["_row_number"], found["column_name"], found["rule"]) == (1, name, rule)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"Price": pa.array([[6.95]])}, "column 'Price' is of Parquet type list"),
        ({"Country": pa.array([b"EIRE"])}, "column 'Country' is of Parquet type binary"),
        (
            {"InvoiceDate": pa.array([0], pa.timestamp("us", "UTC"))},
            "column 'InvoiceDate' is of Parquet type timestamp",
        ),
    ],
)
def test_a_parquet_type_that_is_no_value_is_refused(
    columns: dict[str, pa.Array], message: str
) -> None:
    with pytest.raises(ContractError, match=message):
        checked(parquet(**columns), "f.parquet")


def test_a_parquet_file_without_a_column_is_refused() -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"Invoice": ["1"]}), sink)

    with pytest.raises(ContractError, match="missing 'StockCode'"):
        checked(bytes(sink.getvalue()), "f.parquet")


def test_unknown_columns_are_ignored_where_the_contract_says_so() -> None:
    lenient = CONTRACT.model_copy(update={"ignores_unknown_columns": True})
    wider = HEADER.replace("\n", ",Colour\n") + GOOD.replace("\n", ",red\n")

    assert (
        checked(wider, contract=lenient).good.to_pylist() == checked(HEADER + GOOD).good.to_pylist()
    )
    assert checked(lines_of([{**ROW, "Colour": "red"}]), "f.jsonl", lenient).good.num_rows == 1


def test_values_of_a_closed_set() -> None:
    columns = tuple(
        column.model_copy(update={"values": ("EIRE", "France")})
        if column.name == "country"
        else column
        for column in CONTRACT.columns
    )
    closed = CONTRACT.model_copy(update={"columns": columns})

    rows = checked(HEADER + GOOD + GOOD.replace("United Kingdom", "EIRE"), contract=closed)

    assert broken(rows) == [(1, "Country", "one of EIRE, France", "United Kingdom")]


@pytest.mark.parametrize("path", ["f.parquet", "f.jsonl"])
def test_a_batch_is_at_most_a_block_of_text(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.setattr(formats, "BLOCK_BYTES", 1000)
    texts = ["x" * (number % 7 * 100) for number in range(100)]
    rows = [{**ROW, "Description": text} for text in texts]
    landed = lines_of(rows).encode()
    if path == "f.parquet":
        columns = {name: pa.array([row[name] for row in rows]) for name in ROW}
        landed = parquet(**columns)
    seen = []

    with tempfile.NamedTemporaryFile() as file:
        Path(file.name).write_bytes(landed)
        for batch in formats.read(CONTRACT, path, Path(file.name), print):
            assert batch.rows.nbytes < 4000
            seen += zip(
                batch.numbers.to_pylist(), batch.rows["Description"].to_pylist(), strict=True
            )

    assert seen == list(enumerate(texts, start=1))


def test_swallowed_rows_are_set_apart_with_their_column() -> None:
    stray = GOOD.replace("GLASS", '"GLASS')

    rows = checked(HEADER + GOOD + stray + GOOD + stray + GOOD)

    (found,) = rows.broken.to_pylist()
    assert (found["_row_number"], found["column_name"]) == (2, "Description")
    assert found["rule"].startswith("no rows within a value")
    assert "13085" not in found["row_as_landed"]
    assert rows.good["_row_number"].to_pylist() == [1, 3]
