"""Nights of late, repeated, replaced and erased files leave the marts of a full refresh."""

import threading
from datetime import date
from random import Random
from typing import Any

import pytest

from nightshift.contracts import SOURCES, load_contract
from nightshift.errors import SettingError
from nightshift.io.warehouse import connect
from nightshift.settings import Settings
from nightshift.task_outcomes import may_pass
from nightshift.transform.run import build

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("registry_of_churn")]

AS_OF = date(2011, 1, 8)
CUT = "2011-01-05"
EVERYTHING = {
    mart: f"select to_jsonb(mart) - 'build_id' from marts.{mart} as mart order by 1"
    for mart in (
        "dim_customers",
        "dim_customers_history",
        "dim_products",
        "dim_products_history",
        "fct_cancellations",
        "fct_card_transactions",
        "fct_chargebacks",
        "fct_landed_days",
        "fct_order_lines",
        "fct_payments",
    )
}
LANDED = ("card_transactions", "chargebacks", "order_lines")
"""The sources of which rows are made here."""
ROWS_OF_DAYS = {
    source: f"select landed_date, build_id, array_agg(fact::text order by fact::text)"
    f" from marts.fct_{source} as fact inner join marts.fct_landed_days as days"
    f" using (landed_date) where source = '{source}' group by 1, 2"
    for source in (*LANDED, "payments")
}
KNOWN_BEFORE_THE_CUT = (
    {
        mart: f"select mart::text from marts.{mart} as mart where landed_date < '{CUT}' order by 1"
        for mart in (
            "fct_cancellations",
            "fct_card_transactions",
            "fct_chargebacks",
            "fct_order_lines",
        )
    }
    | {
        "fct_payments": "select transaction_id, transaction_at, customer_id, terminal_id, amount,"
        f" landed_date, case when report_landed_date < '{CUT}' then report_landed_date end"
        f" from marts.fct_payments where landed_date < '{CUT}' order by 1"
    }
    | {
        mart: f"select {columns}, version, valid_from, landed_date, order_line_id,"
        f" case when valid_to_landed_date < '{CUT}' then valid_to end,"
        f" coalesce(valid_to_landed_date < '{CUT}', false)"
        f" from marts.{mart} where landed_date < '{CUT}' order by 1, 3"
        for mart, columns in (
            ("dim_customers_history", "customer_id, country"),
            ("dim_products_history", "product_id, description"),
        )
    }
)


class Landed:
    """What has landed so far. Few values are drawn from, so that duplicates are many."""

    def __init__(self, settings: Settings, random: Random) -> None:
        self._settings, self._random = settings, random
        self._files: dict[str, list[int]] = {source: [] for source in LANDED}
        self._last_file = 0

    def change(self, times: int) -> None:
        """Load, replace or erase files of any day, each in one transaction with its note."""
        for _ in range(times):
            source, action = self._random.choice(LANDED), self._random.random()
            files = self._files[source]
            with connect(self._settings) as connection, connection.cursor() as cursor:
                if action < 0.5 and files:
                    cursor.execute(
                        f"delete from raw.{source} where _file_id = %s returning _landed_date",
                        (files.pop(self._random.randrange(len(files))),),
                    )
                    self._note(cursor, source, *{row[0] for row in cursor.fetchall()})
                if action > 0.2:
                    self._load(cursor, source, f"2011-01-{self._random.randint(1, 7):02}")

    def _load(self, cursor: Any, source: str, day: str) -> None:
        self._last_file += 1
        self._files[source].append(self._last_file)
        for number in range(1, self._random.randint(4, 20)):
            row = (*self._row(source), day, self._last_file, number)
            cursor.execute(f"insert into raw.{source} values ({', '.join(['%s'] * len(row))})", row)
        self._note(cursor, source, day)

    def _note(self, cursor: Any, source: str, *days: object) -> None:
        for day in days:
            cursor.execute(
                "insert into ops.changed_days (source, landed_date, reason)"
                " values (%s, %s, 'test')",
                (source, day),
            )

    def _row(self, source: str) -> tuple[object, ...]:
        pick = self._random.choice
        at = f"2011-01-0{pick('1234567')} 1{pick('012')}:00"
        if source == "chargebacks":
            return self._random.randint(1, 12), at
        if source == "card_transactions":
            number = self._random.randint(1, 12)
            return number, "2011-01-01 09:00", f"c{number % 5}", f"t{number % 3}", number
        quantity = pick((1, 2, 3, -1, -2))
        invoice = ("C" if quantity < 0 else "") + pick("12")
        customer, country = pick(("x", "x", "y", None)), pick(("France", "Spain"))
        return invoice, pick("ab"), pick(("old", "new", "")), quantity, at, 1, customer, country


def marts(settings: Settings, queries: dict[str, str]) -> dict[str, list[tuple[Any, ...]]]:
    with connect(settings) as connection, connection.cursor() as cursor:
        found = {}
        for mart, query in queries.items():
            cursor.execute(query)
            found[mart] = cursor.fetchall()
        return found


def days_with_changed_rows(
    before: dict[str, list[tuple[Any, ...]]], after: dict[str, list[tuple[Any, ...]]]
) -> int:
    """How many, after a look that each of them has a build_id of its own."""
    found = 0
    for source, days in after.items():
        known = {day: (build_id, rows) for day, build_id, rows in before[source]}
        for day, build_id, rows in days:
            if day in known and known[day][1] != rows:
                assert known[day][0] != build_id, (source, day)
                found += 1
    return found


def build_killed_at(settings: Settings, mart: str) -> None:
    """A build whose sessions die while it waits to change ``mart``."""
    failures: list[Exception] = []

    def night() -> None:
        try:
            build(settings, AS_OF)
        except Exception as failure:
            failures.append(failure)

    with connect(settings) as connection, connection.cursor() as cursor:
        cursor.execute(f"lock table marts.{mart} in access exclusive mode")
        thread = threading.Thread(target=night)
        thread.start()
        waiting: list[tuple[Any, ...]] = []
        while not waiting and thread.is_alive():
            cursor.execute("select pid from pg_locks where locktype = 'relation' and not granted")
            waiting = cursor.fetchall()
        cursor.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where datname = current_database() and application_name = 'dbt'"
        )
    thread.join()
    assert waiting
    (failure,) = failures
    assert isinstance(failure, SettingError), failure
    assert may_pass(failure)


def test_nights_leave_the_marts_of_a_full_refresh(warehouse: Settings) -> None:
    with connect(warehouse) as connection, connection.cursor() as cursor:
        for source in SOURCES:
            cursor.execute(load_contract(source).ddl())
    landed = Landed(warehouse, Random(20111209))
    landed.change(12)
    build(warehouse, AS_OF)
    for killed_at in ("fct_order_lines", "dim_customers_history"):
        before = marts(warehouse, ROWS_OF_DAYS)
        landed.change(5)
        build_killed_at(warehouse, killed_at)
        landed.change(2)
        assert not build(warehouse, AS_OF).is_full_refresh
        assert days_with_changed_rows(before, marts(warehouse, ROWS_OF_DAYS))

    after_the_nights = marts(warehouse, EVERYTHING)
    known = marts(warehouse, KNOWN_BEFORE_THE_CUT)
    with connect(warehouse) as connection, connection.cursor() as cursor:
        cursor.execute("delete from ops.built_changes")
    assert build(warehouse, AS_OF).is_full_refresh
    assert marts(warehouse, EVERYTHING) == after_the_nights
    assert all(after_the_nights.values()), "a mart without a row shows nothing"

    # and no row of what was known before the cut depends on what landed from then on
    with connect(warehouse) as connection, connection.cursor() as cursor:
        for source in LANDED:
            cursor.execute(
                f"with gone as (delete from raw.{source} where _landed_date >= %s"
                " returning _landed_date) insert into ops.changed_days"
                " (source, landed_date, reason) select distinct %s, _landed_date, 'test' from gone",
                (CUT, source),
            )
    build(warehouse, AS_OF)
    assert marts(warehouse, KNOWN_BEFORE_THE_CUT) == known
    assert marts(warehouse, EVERYTHING) != after_the_nights
