"""The Great Expectations checkpoint on the real warehouse: a good day, and planted bad ones."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import date, timedelta
from typing import Any

import pytest
from psycopg2.extras import execute_values

from nightshift.contracts import load_contract
from nightshift.errors import QualityError, RefusedAsOf
from nightshift.io.warehouse import connect
from nightshift.quality.run import check_landed
from nightshift.settings import Settings

pytestmark = pytest.mark.integration

FIRST = date(2011, 5, 2)
DAYS = 35
LAST = FIRST + timedelta(days=DAYS)
AS_OF = LAST + timedelta(days=1)
LINES = 400


@dataclass(frozen=True)
class Row:
    """A line of an invoice; ten lines make an invoice, one invoice in five has no customer."""

    invoice: str
    price: float
    customer: str | None
    country: str
    quantity: int = 6
    description: str | None = "HOLDER"


def good_day(day: date) -> list[Row]:
    return [
        Row(
            invoice=f"{day:%j}{n // 10:03d}",
            price=1.0 + n % 8,
            customer=None if n // 10 % 5 == 0 else f"{17000 + n // 10}",
            country=("United Kingdom", "France")[n % 10 == 0],
        )
        for n in range(LINES)
    ]


def land(settings: Settings, day: date, rows: list[Row], quarantined: int = 0) -> None:
    with connect(settings) as connection, connection.cursor() as cursor:
        cursor.execute(load_contract("order_lines").ddl())
        cursor.execute(
            "insert into ops.landing_files (source, landed_date, path, sha256, bytes, status,"
            " rows_in, rows_loaded, rows_quarantined)"
            " values ('order_lines', %s, %s, '', 0, 'loaded', %s, %s, %s) returning file_id",
            (day, f"ds={day}", len(rows) + quarantined, len(rows), quarantined),
        )
        (file_id,) = cursor.fetchone()
        execute_values(
            cursor,
            "insert into raw.order_lines values %s",
            [
                (r.invoice, "85123A", r.description, r.quantity, day, r.price, r.customer,
                 r.country, day, file_id, number)
                for number, r in enumerate(rows, start=1)
            ],
        )  # fmt: skip


def land_history(settings: Settings) -> None:
    for n in range(DAYS):
        land(settings, FIRST + timedelta(days=n), good_day(FIRST + timedelta(days=n)))


def kept(settings: Settings) -> list[tuple[Any, ...]]:
    with connect(settings) as connection, connection.cursor() as cursor:
        cursor.execute(
            "select q.expectation, q.column_name, q.success, r.status from ops.quality_results q"
            " join ops.runs r using (run_id) where q.observed ->> 'landed_date' = %s"
            " order by 1, 2 nulls first",
            (LAST.isoformat(),),
        )
        return cursor.fetchall()


def test_a_good_day_passes_and_each_outcome_is_kept(warehouse: Settings) -> None:
    land_history(warehouse)
    land(warehouse, LAST, good_day(LAST))

    result = check_landed(warehouse, AS_OF)

    assert result.landed_dates == {"order_lines": LAST}
    assert kept(warehouse) == [
        ("expect_column_max_to_be_between", "anonymous_invoice_share", True, "succeeded"),
        ("expect_column_max_to_be_between", "quarantined_share", True, "succeeded"),
        ("expect_column_median_to_be_between", "price", True, "succeeded"),
        ("expect_column_values_to_be_between", "price", True, "succeeded"),
        ("expect_column_values_to_be_in_set", "country", True, "succeeded"),
        ("expect_column_values_to_be_in_set", "invoice_has_one_customer", True, "succeeded"),
        ("expect_column_values_to_not_be_in_set", "quantity", True, "succeeded"),
        ("expect_column_values_to_not_be_null", "description", True, "succeeded"),
        ("expect_table_row_count_to_be_between", None, True, "succeeded"),
    ]


def prices_in_pence(rows: list[Row]) -> list[Row]:
    return [replace(row, price=100 * row.price) for row in rows]


def half_the_customers_lost(rows: list[Row]) -> list[Row]:
    return [replace(row, customer=None) if n % 2 else row for n, row in enumerate(rows)]


def all_customers_lost(rows: list[Row]) -> list[Row]:
    return [replace(row, customer=None) for row in rows]


def one_row_in_twenty(rows: list[Row]) -> list[Row]:
    return rows[::20]


def every_row_five_times(rows: list[Row]) -> list[Row]:
    return rows * 5


def no_descriptions(rows: list[Row]) -> list[Row]:
    return [replace(row, description=None) for row in rows]


def no_quantities(rows: list[Row]) -> list[Row]:
    return [replace(row, quantity=0) for row in rows]


def country_codes(rows: list[Row]) -> list[Row]:
    return [replace(row, country=row.country[:2].upper()) for row in rows]


def negative_prices(rows: list[Row]) -> list[Row]:
    return [replace(row, price=-row.price) if n % 20 == 0 else row for n, row in enumerate(rows)]


@pytest.mark.parametrize(
    ("spoil", "expectation", "column"),
    [
        (prices_in_pence, "expect_column_median_to_be_between", "price"),
        (negative_prices, "expect_column_values_to_be_between", "price"),
        (half_the_customers_lost, "expect_column_values_to_be_in_set", "invoice_has_one_customer"),
        (all_customers_lost, "expect_column_max_to_be_between", "anonymous_invoice_share"),
        (one_row_in_twenty, "expect_table_row_count_to_be_between", None),
        (every_row_five_times, "expect_table_row_count_to_be_between", None),
        (no_descriptions, "expect_column_values_to_not_be_null", "description"),
        (no_quantities, "expect_column_values_to_not_be_in_set", "quantity"),
        (country_codes, "expect_column_values_to_be_in_set", "country"),
    ],
)
def test_a_planted_bad_day_fails_by_name(
    warehouse: Settings,
    spoil: Callable[[list[Row]], list[Row]],
    expectation: str,
    column: str | None,
) -> None:
    land_history(warehouse)
    land(warehouse, LAST, spoil(good_day(LAST)))

    with pytest.raises(QualityError) as failure:
        check_landed(warehouse, AS_OF)

    where = f"order_lines landed {LAST}" + (f", column {column}" if column else "")
    assert f"{where}: {expectation}: observed" in failure.value.what
    failed = [(e, c, status) for e, c, success, status in kept(warehouse) if not success]
    assert failed == [(expectation, column, "failed")]


def test_a_bad_day_still_fails_once_a_good_one_has_landed_after_it(warehouse: Settings) -> None:
    land_history(warehouse)
    land(warehouse, LAST, prices_in_pence(good_day(LAST)))
    land(warehouse, AS_OF, good_day(AS_OF))
    with pytest.raises(QualityError, match=f"landed {LAST}"):
        check_landed(warehouse, AS_OF + timedelta(days=1))


def test_a_tenth_in_quarantine_fails(warehouse: Settings) -> None:
    land(warehouse, LAST, good_day(LAST), quarantined=LINES // 9)

    with pytest.raises(QualityError, match="column quarantined_share"):
        check_landed(warehouse, AS_OF)


def test_a_folder_without_rows_fails(warehouse: Settings) -> None:
    land_history(warehouse)
    land(warehouse, LAST, [])

    with pytest.raises(QualityError, match="row_count_to_be_between: observed 0"):
        check_landed(warehouse, AS_OF)


def test_a_first_night_of_three_rows_passes(warehouse: Settings) -> None:
    land(warehouse, LAST, good_day(LAST)[9:12], quarantined=1)

    assert len(check_landed(warehouse, AS_OF).outcomes) == 7


def test_what_lands_at_as_of_or_later_changes_no_verdict(warehouse: Settings) -> None:
    land_history(warehouse)
    land(warehouse, LAST, good_day(LAST))
    first = check_landed(warehouse, AS_OF)

    land(warehouse, AS_OF, prices_in_pence(good_day(AS_OF)))

    assert check_landed(warehouse, AS_OF) == first
    with pytest.raises(QualityError):
        check_landed(warehouse, AS_OF + timedelta(days=1))


def test_nothing_landed_is_refused(warehouse: Settings) -> None:
    land(warehouse, LAST, good_day(LAST))

    with pytest.raises(RefusedAsOf, match=f"before as_of {LAST}"):
        check_landed(warehouse, LAST)
