"""Bytes to typed rows and broken rows: literal files, literal results."""

import gzip
from datetime import date, datetime
from decimal import Decimal

import pytest

from nightshift.contracts import load_contract
from nightshift.errors import ContractError
from nightshift.ingest.rows import CheckedRows, check, decode

HEADER = "Invoice,StockCode,Description,Quantity,InvoiceDate,Price,Customer ID,Country\n"
GOOD = "489434,85048,GLASS BALL,12,2009-12-01 07:45:00,6.95,13085,United Kingdom\n"
CONTRACT = load_contract("order_lines")
DAY = date(2009, 12, 1)


def checked(text: str) -> CheckedRows:
    return check(CONTRACT, "f.csv", text.encode(), DAY)


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
    assert rows.broken["row_as_landed"].to_pylist() == [
        "too,few",
        GOOD.rstrip("\n") + ",too many",
        GOOD.replace("12,", "many,", 1).rstrip("\n"),
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
        (HEADER + GOOD + GOOD.replace("GLASS", '"GLASS') + GOOD, "row at line 3 is never closed"),
    ],
)
def test_a_file_that_is_broken_as_a_whole_is_refused(text: str, message: str) -> None:
    with pytest.raises(ContractError, match=message):
        checked(text)


def test_a_quote_inside_a_value_is_a_quote() -> None:
    assert checked(HEADER + GOOD.replace("GLASS", '5" GLASS') + GOOD).good.num_rows == 2


def test_decode() -> None:
    assert decode("f.csv.gz", gzip.compress(b"a,b\n")) == b"a,b\n"
    assert decode("f.csv", b"\xef\xbb\xbfa,b\n") == b"a,b\n"


@pytest.mark.parametrize(
    ("path", "landed", "message"),
    [
        ("f.csv.gz", gzip.compress(GOOD.encode() * 99)[:-20], "f.csv.gz: the gzip is truncated"),
        ("f.csv.gz", b"a,b\n", "f.csv.gz: the gzip is truncated or damaged"),
        ("f.csv.gz", b"", "f.csv.gz: the file is empty"),
        ("f.csv.gz", gzip.compress(b""), "f.csv.gz: the file is empty"),
        ("f.csv", b" \n", "f.csv: the file is empty"),
        ("f.csv", b"a,b\nx,caf\xe9\n", "f.csv: not UTF-8: byte 0xe9 in line 2"),
    ],
)
def test_bytes_that_cannot_be_read_are_refused(path: str, landed: bytes, message: str) -> None:
    with pytest.raises(ContractError, match=message):
        decode(path, landed)
