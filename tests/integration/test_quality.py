"""Both quality boundaries on the real warehouse: good days, and planted bad ones."""

import asyncio
import csv
import gzip
import html
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import astuple, dataclass, replace
from datetime import date, timedelta
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import httpx
import psycopg2
import pytest
from fastapi import HTTPException
from psycopg2.extras import execute_values
from starlette.applications import Starlette
from starlette.routing import Mount

from nightshift.contracts import SOURCES, load_contract
from nightshift.errors import NightshiftError, QualityError, RefusedAsOf, SettingError
from nightshift.ingest.run import ingest
from nightshift.io.held_sources import free, hold, require_all_free, require_source
from nightshift.io.warehouse import connect, recorded_run
from nightshift.quality.run import REPORTS_KEPT, check_landed, check_marts, newest_report
from nightshift.settings import PROJECT_ROOT, Settings
from nightshift.task_outcomes import may_pass
from nightshift.use_cases import CHURN

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("registry_of_churn")]

REAL_LANDING = PROJECT_ROOT.parent / "shared" / "data" / "landing"
FIRST = date(2011, 5, 2)
DAYS = 35
LAST = FIRST + timedelta(days=DAYS)
AS_OF = LAST + timedelta(days=1)
LINES = 200


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


@contextmanager
def landing(settings: Settings) -> Iterator[Callable[..., None]]:
    """A function that lands a day of a source, in one transaction with all that it lands."""
    with connect(settings) as connection, connection.cursor() as cursor:
        for source in SOURCES:
            cursor.execute(load_contract(source).ddl())

        def land_rows(source: str, day: date, rows: Sequence[tuple[Any, ...]], broken: int) -> None:
            cursor.execute(
                "insert into ops.landing_files (source, landed_date, path, sha256, bytes, status,"
                " rows_in, rows_loaded, rows_quarantined)"
                " values (%s, %s, %s, '', 0, 'loaded', %s, %s, %s) returning file_id",
                (source, day, f"{source}/ds={day}/a.csv", len(rows) + broken, len(rows), broken),
            )
            (file_id,) = cursor.fetchone()
            execute_values(
                cursor,
                f"insert into raw.{source} values %s",
                [(*row, day, file_id, number) for number, row in enumerate(rows, start=1)],
                page_size=1000,
            )

        yield land_rows


def land(settings: Settings, days: dict[date, list[Row]], broken: int = 0) -> None:
    with landing(settings) as land_rows:
        for day, rows in days.items():
            lines = [
                (
                    r.invoice,
                    "85123A",
                    r.description,
                    r.quantity,
                    day,
                    r.price,
                    r.customer,
                    r.country,
                )
                for r in rows
            ]
            land_rows("order_lines", day, lines, broken)


def history(until: date = LAST) -> dict[date, list[Row]]:
    days = [FIRST + timedelta(days=n) for n in range((until - FIRST).days)]
    return {day: good_day(day) for day in days}


def query(settings: Settings, sql: str, *values: Any) -> list[tuple[Any, ...]]:
    with connect(settings) as connection, connection.cursor() as cursor:
        cursor.execute(sql, values)
        return cursor.fetchall()


def test_a_good_day_passes_each_outcome_is_kept_and_there_is_a_report(warehouse: Settings) -> None:
    land(warehouse, history() | {LAST: good_day(LAST)})

    result = check_landed(warehouse, AS_OF)

    assert result.landed_dates == {"order_lines": LAST}
    assert result.warnings == ()
    kept = query(
        warehouse,
        "select q.rule, q.severity, q.success, r.status from ops.quality_results q"
        " join ops.runs r using (run_id) where q.landed_date = %s",
        LAST,
    )
    declared = [(r.name, r.severity) for r in load_contract("order_lines").quality.rules]
    expected = [*declared, ("arrives_when_expected", "warning")]
    assert sorted(kept) == sorted((*rule, True, "succeeded") for rule in expected)
    ((report,),) = query(warehouse, "select result ->> 'data_docs' from ops.runs")
    assert newest_report(warehouse) == report
    page = Path(unquote(urlparse(report).path))
    assert page.is_relative_to(warehouse.state_dir / "data-docs")
    assert f"order_lines landed {LAST}" in page.read_text()


def test_a_server_that_goes_away_breaks_no_rule(warehouse: Settings) -> None:
    land(warehouse, history() | {LAST: good_day(LAST)})
    ended: list[int] = []

    def end() -> None:
        with closing(psycopg2.connect(warehouse.warehouse_url)) as connection:
            connection.autocommit = True
            cursor = connection.cursor()
            deadline = time.monotonic() + 60
            while not ended and time.monotonic() < deadline:
                cursor.execute(
                    "select pg_terminate_backend(pid)::int from pg_stat_activity"
                    " where datname = current_database() and pid <> pg_backend_pid()"
                    " and query ~ 'SELECT.*checked_order_lines'"
                )
                ended.extend(row for (row,) in cursor.fetchall())

    thread = threading.Thread(target=end)
    thread.start()
    with pytest.raises(SettingError, match="the warehouse has ended the connection") as lost:
        check_landed(warehouse, AS_OF)
    thread.join()

    assert ended
    assert may_pass(lost.value)
    assert query(warehouse, "select count(*) from ops.quality_results") == [(0,)]
    assert check_landed(warehouse, AS_OF).warnings == ()


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


def no_rows(rows: list[Row]) -> list[Row]:
    return []


PLANTED = (
    {
        prices_in_pence: {"price_is_usual"},
        half_the_customers_lost: {"invoice_has_one_customer"},
        all_customers_lost: {"invoices_have_customers"},
        one_row_in_twenty: {"rows_are_usual"},
        no_descriptions: {"description_is_there"},
    },
    {
        negative_prices: {"price_in_range"},
        every_row_five_times: {"rows_are_usual"},
        no_quantities: {"quantity_is_not_zero"},
        country_codes: {"country_is_known"},
        no_rows: {"not_empty", "rows_are_usual"},
    },
)


@pytest.mark.parametrize("planted", PLANTED, ids=["first", "second"])
def test_each_of_five_planted_bad_days_fails_by_its_rule(
    warehouse: Settings, planted: dict[Callable[[list[Row]], list[Row]], set[str]]
) -> None:
    bad_days = {spoil: LAST - timedelta(days=n) for n, spoil in enumerate(reversed(planted.keys()))}
    land(
        warehouse,
        history(min(bad_days.values())) | {d: spoil(good_day(d)) for spoil, d in bad_days.items()},
    )

    with pytest.raises(QualityError) as failure:
        check_landed(warehouse, AS_OF)

    found = {(cause.landed_date, cause.rule) for cause in failure.value.causes}
    assert found == {(bad_days[spoil], rule) for spoil, rules in planted.items() for rule in rules}
    broken = "select landed_date, rule from ops.quality_results where not success and severity = %s"
    assert set(query(warehouse, broken, "error")) == found
    warned = {rule for _, rule in query(warehouse, broken, "warning")}
    assert warned == {
        "rows_are_near_usual",
        "customer_is_mostly_known" if all_customers_lost in planted else "country_is_mostly_known",
    }


def test_a_failure_names_rows_and_no_personal_data(warehouse: Settings) -> None:
    land(warehouse, history() | {LAST: half_the_customers_lost(negative_prices(good_day(LAST)))})

    with pytest.raises(QualityError) as failure:
        check_landed(warehouse, AS_OF)

    examples = {cause.rule: cause.examples for cause in failure.value.causes}
    file = f"order_lines/ds={LAST}/a.csv"
    assert examples["price_in_range"] == tuple(f"{file}:{n}" for n in (1, 21, 41, 61, 81))
    told = [str(failure.value), *map(str, failure.value.causes)]
    told += [
        page.read_text()
        for page in warehouse.state_dir.rglob("data-docs/run-*/validations/**/*.html")
    ]
    told += [str(row) for row in query(warehouse, "select q::text from ops.quality_results q")]
    assert len(told) > 5
    customers = {row.customer for row in good_day(LAST) if row.customer}
    assert not [c for c in customers for text in told if re.search(rf"\b{c}\b", text)]


def test_a_bad_day_still_fails_once_a_good_one_has_landed_after_it(warehouse: Settings) -> None:
    days = history() | {LAST: prices_in_pence(good_day(LAST)), AS_OF: good_day(AS_OF)}
    land(warehouse, days)

    with pytest.raises(QualityError, match=f"landed {LAST}"):
        check_landed(warehouse, AS_OF + timedelta(days=1))


def test_a_broken_statistic_names_the_rows_that_pull_it_off(warehouse: Settings) -> None:
    land(warehouse, history() | {LAST: prices_in_pence(good_day(LAST))})

    with pytest.raises(QualityError) as failure:
        check_landed(warehouse, AS_OF)

    (cause,) = failure.value.causes
    assert cause.rule == "price_is_usual"
    numbers = [int(example.rpartition(":")[2]) for example in cause.examples]
    prices = [row.price for row in prices_in_pence(good_day(LAST))]
    assert [prices[number - 1] for number in numbers] == [max(prices)] * 5


def test_more_than_the_budget_in_quarantine_fails(warehouse: Settings) -> None:
    land(warehouse, {LAST: good_day(LAST)}, broken=4)

    with pytest.raises(QualityError, match=r"quarantine_within_budget: .* expected at least 201"):
        check_landed(warehouse, AS_OF)


def test_a_first_night_of_three_rows_passes_and_the_oldest_report_goes(
    warehouse: Settings,
) -> None:
    land(warehouse, {LAST: good_day(LAST)[9:12]}, broken=1)
    reports = warehouse.state_dir / "data-docs"
    for number in range(REPORTS_KEPT):
        (reports / f"run-old-{number}").mkdir(parents=True)

    assert check_landed(warehouse, AS_OF).warnings == ()
    assert len(list(reports.iterdir())) == REPORTS_KEPT


def test_a_missing_day_warns_and_a_broken_source_that_no_use_case_reads_is_held_alone(
    warehouse: Settings,
) -> None:
    day = LAST - timedelta(days=1)
    land(warehouse, {day: good_day(day)})
    with landing(warehouse) as land_rows:
        payments = [(n, day, f"c{n}", f"t{n}", 20.0 + n) for n in range(100)]
        land_rows("card_transactions", day, [*payments, payments[7]], 0)
        land_rows("chargebacks", day, [(n, day) for n in (1, 2, 901, 902, 903, 904)], 0)

    result = check_landed(warehouse, AS_OF)

    assert [
        (o.severity, o.landed_date, o.rule, o.examples)
        for o in result.outcomes
        if not o.success and o.source != "order_lines"
    ] == [
        (
            "error", day, "key_is_unique",
            tuple(f"card_transactions/ds={day}/a.csv:{n}" for n in (101, 8)),
        ),
        (
            "warning", day, "payment_is_known",
            tuple(f"chargebacks/ds={day}/a.csv:{n}" for n in (3, 4, 5, 6)),
        ),
        (
            "error", day, "payment_is_mostly_known",
            tuple(f"chargebacks/ds={day}/a.csv:{n}" for n in (3, 4, 5, 6)),
        ),
        ("warning", LAST, "arrives_when_expected", ()),
        ("warning", LAST, "arrives_when_expected", ()),
    ]  # fmt: skip
    require_source(warehouse, "order_lines", AS_OF)
    with pytest.raises(QualityError, match="key_is_unique") as refusal:
        require_source(warehouse, "card_transactions", AS_OF)
    (cause,) = refusal.value.causes
    assert (cause.source, cause.landed_date) == ("card_transactions", day)
    assert cause.examples == tuple(f"card_transactions/ds={day}/a.csv:{n}" for n in (101, 8))
    assert free(warehouse, [CHURN], AS_OF) == [CHURN]
    of_cards = CHURN.model_copy(update={"population": _of(CHURN.population, "card_transactions")})
    assert free(warehouse, [of_cards, CHURN], AS_OF) == [CHURN]
    with pytest.raises(QualityError, match="key_is_unique"):
        free(warehouse, [of_cards], AS_OF)
    with pytest.raises(QualityError, match="key_is_unique"):
        require_all_free(warehouse, [of_cards, CHURN], AS_OF)


def _of(population: Any, source: str) -> Any:
    """The same population, of a mart that is made of another source."""
    mart = population.source.model_copy(update={"name": "other", "landed_from": (source,)})
    return population.model_copy(update={"source": mart})


def test_each_planted_bad_day_of_payments_and_reports_is_named(warehouse: Settings) -> None:
    def payments(day: date, **spoil: Any) -> list[tuple[Any, ...]]:
        row = {"customer": "c{n}", "terminal": "t{n}", "amount": 20.0, "rows": 120} | spoil
        return [
            (
                day.toordinal() * 1000 + n,
                day,
                row["customer"].format(n=n),
                row["terminal"].format(n=n),
                row["amount"] + n % 7 if row["amount"] else 0,
            )
            for n in range(row["rows"])
        ]

    planted: list[tuple[dict[str, Any], set[str]]] = [
        ({"amount": 2000.0}, {"amount_in_range", "amount_is_usual"}),
        ({"amount": 0.0}, {"amount_is_not_zero", "amount_is_usual"}),
        ({"terminal": "t"}, {"terminals_vary"}),
        ({"customer": "c"}, {"payments_of_a_customer"}),
        ({"rows": 50}, {"rows_are_usual", "rows_are_near_usual"}),
    ]
    bad = {LAST - timedelta(days=n): case for n, case in enumerate(reversed(planted))}
    land(warehouse, {LAST: good_day(LAST)})
    with landing(warehouse) as land_rows:
        for day in [*history(min(bad)), *bad]:
            rows = payments(day, **(bad[day][0] if day in bad else {}))
            land_rows("card_transactions", day, rows, 0)
            reported = [] if day == LAST else [(row[0], day) for row in rows[:50]]
            land_rows("chargebacks", day, reported, 0)

    found = {
        (o.source, o.landed_date, o.rule)
        for o in check_landed(warehouse, AS_OF).outcomes
        if not o.success and o.source != "order_lines"
    }

    assert found == {
        *(("card_transactions", day, rule) for day, (_, rules) in bad.items() for rule in rules),
        ("chargebacks", LAST, "not_empty"),
        ("chargebacks", LAST, "rows_are_usual"),
    }


def test_what_lands_at_as_of_or_later_changes_no_verdict(warehouse: Settings) -> None:
    land(warehouse, history() | {LAST: good_day(LAST)})
    first = check_landed(warehouse, AS_OF)

    land(warehouse, {AS_OF: prices_in_pence(good_day(AS_OF))})

    assert check_landed(warehouse, AS_OF) == first
    with pytest.raises(QualityError):
        check_landed(warehouse, AS_OF + timedelta(days=1))


def test_nothing_landed_is_refused(warehouse: Settings) -> None:
    land(warehouse, {LAST: good_day(LAST)})

    with pytest.raises(RefusedAsOf, match=f"before as_of {LAST}"):
        check_landed(warehouse, LAST)


@dataclass(frozen=True)
class MartRow:
    """A row of ``marts.fct_order_lines``, as far as its contract looks at it."""

    order_line_id: str
    customer_id: str | None
    product_id: str = "85123A"
    is_product: bool = True
    is_cancellation: bool = False
    line_amount: float = 12.0


def good_mart(day: date) -> list[MartRow]:
    return [MartRow(f"{day:%j}:{n}", None if n % 5 == 0 else "17000") for n in range(LINES)]


def build_mart(settings: Settings, days: dict[date, list[MartRow]]) -> None:
    with connect(settings) as connection, connection.cursor() as cursor:
        cursor.execute(
            "drop schema if exists marts cascade; create schema marts;"
            " create table marts.dim_products as select '85123A' as product_id;"
            " create table marts.fct_order_lines (order_line_id text, customer_id text,"
            " product_id text, is_product boolean, is_cancellation boolean,"
            " line_amount numeric(18, 4), landed_date date)"
        )
        rows = [(*astuple(row), day) for day, rows in days.items() for row in rows]
        execute_values(cursor, "insert into marts.fct_order_lines values %s", rows, page_size=1000)


def spoiled(rows: list[MartRow], **values: Any) -> list[MartRow]:
    return [replace(row, **values) for row in rows]


def test_marts_made_of_good_days_pass_and_bad_ones_stop_the_night(warehouse: Settings) -> None:
    land(warehouse, history() | {LAST: good_day(LAST)})
    good = {day: good_mart(day) for day in [*history(), LAST]}
    build_mart(warehouse, good)
    assert check_marts(warehouse, AS_OF).warnings == ()
    days = [LAST - timedelta(days=n) for n in range(5)]
    bad = {
        days[0]: (good[days[0]] * 2, {"rows_are_those_that_landed"}),
        days[1]: (spoiled(good[days[1]], customer_id=None), {"customer_is_known"}),
        days[2]: (spoiled(good[days[2]], product_id="?"), {"product_is_known"}),
        days[3]: (spoiled(good[days[3]], line_amount=1200.0), {"amount_is_usual"}),
        days[4]: (
            spoiled(good[days[4]][:170], is_product=False, is_cancellation=True, line_amount=-1e5),
            {"lines_are_of_products", "lines_are_purchases", "amount_in_range", "amount_is_usual"},
        ),
    }
    build_mart(warehouse, good | {day: rows for day, (rows, _) in bad.items()})

    with pytest.raises(QualityError) as failure:
        check_marts(warehouse, AS_OF)

    found = {(cause.landed_date, cause.rule) for cause in failure.value.causes}
    assert found == {(day, rule) for day, (_, rules) in bad.items() for rule in rules}
    examples = {cause.rule: cause.examples for cause in failure.value.causes}
    assert query(
        warehouse,
        "select landed_date, rule from ops.quality_results"
        " where not success and severity = 'warning'",
    ) == [(days[4], "few_copies_are_removed")]
    assert len(examples["product_is_known"]) == 5
    assert set(examples["product_is_known"]) <= {row.order_line_id for row in good[days[2]]}


@dataclass(frozen=True)
class Payment:
    """A row of the mart of payments."""

    transaction_id: int
    amount: float = 20.0
    is_fraud: bool = False


def build_payments(settings: Settings, days: dict[date, list[Payment]]) -> None:
    with connect(settings) as connection, connection.cursor() as cursor:
        cursor.execute(
            "drop table if exists marts.fct_payments; create table marts.fct_payments"
            " (transaction_id bigint, amount numeric(14, 2), is_fraud boolean, landed_date date)"
        )
        rows = [(*astuple(row), day) for day, rows in days.items() for row in rows]
        execute_values(cursor, "insert into marts.fct_payments values %s", rows, page_size=1000)


def test_bad_days_of_payments_hold_their_source_unless_the_build_has_held_one_of_two(
    warehouse: Settings,
) -> None:
    land(warehouse, history() | {LAST: good_day(LAST)})
    build_mart(warehouse, {day: good_mart(day) for day in [*history(), LAST]})
    good = {
        day: [Payment(day.toordinal() * 1000 + n) for n in range(50)] for day in [*history(), LAST]
    }
    with landing(warehouse) as land_rows:
        for day, payments in good.items():
            landed = [(p.transaction_id, day, "596", "3156", p.amount) for p in payments]
            land_rows("card_transactions", day, landed, 0)
    build_payments(warehouse, good)
    assert all(outcome.success for outcome in check_marts(warehouse, AS_OF).outcomes)
    days = [LAST - timedelta(days=n) for n in range(3)]
    bad = {
        days[0]: (good[days[0]] * 2, "rows_are_those_that_landed"),
        days[1]: ([replace(p, amount=2000.0) for p in good[days[1]]], "amount_is_usual"),
        days[2]: (
            [replace(p, is_fraud=n < 15) for n, p in enumerate(good[days[2]])],
            "few_payments_are_reported",
        ),
    }
    build_payments(warehouse, good | {day: rows for day, (rows, _) in bad.items()})

    found = check_marts(warehouse, AS_OF).outcomes

    broken = {(each.landed_date, each.rule) for each in found if not each.success}
    assert broken == {(day, rule) for day, (_, rule) in bad.items()}
    with pytest.raises(QualityError, match="few_payments_are_reported"):
        require_source(warehouse, "card_transactions", AS_OF)

    with recorded_run(warehouse, "transform", AS_OF) as run:
        hold(run, {"chargebacks": NightshiftError("its mart failed", "mend it")})
    assert {each.table for each in check_marts(warehouse, AS_OF).outcomes} == {"fct_order_lines"}


@pytest.mark.skipif(not REAL_LANDING.is_dir(), reason="the real retailer's files are not here")
def test_real_days_up_to_christmas_hold_and_their_prices_in_pence_do_not(
    warehouse: Settings,
) -> None:
    name = "order_lines.csv.gz"
    orders = warehouse.landing_folder / "order_lines"
    for n in range(30):
        folder = f"ds={date(2010, 12, 23) - timedelta(days=n)}"
        if (REAL_LANDING / "order_lines" / folder).is_dir():
            (orders / folder).mkdir(parents=True)
            shutil.copyfile(REAL_LANDING / "order_lines" / folder / name, orders / folder / name)
    ingest(warehouse, date(2010, 12, 24))

    result = check_landed(warehouse, date(2010, 12, 24))

    # the last has about a tenth of the usual rows
    assert {o.landed_date.day for o in result.outcomes} == {19, 20, 21, 22, 23}
    assert {o.severity for o in result.outcomes if not o.success} <= {"warning"}

    with (
        gzip.open(REAL_LANDING / "order_lines" / "ds=2010-12-23" / name, "rt") as real,
        gzip.open(orders / "ds=2010-12-23" / name, "wt", newline="") as bad,
    ):
        rows = csv.DictReader(real)
        writer = csv.DictWriter(bad, rows.fieldnames or ())
        writer.writeheader()
        writer.writerows({**row, "Price": 100 * float(row["Price"])} for row in rows)
    ingest(warehouse, date(2010, 12, 24))
    with pytest.raises(QualityError) as failure:
        check_landed(warehouse, date(2010, 12, 24))

    broken = {(cause.landed_date.day, cause.rule) for cause in failure.value.causes}
    assert (23, "price_is_usual") in broken
    assert {day for day, _ in broken} == {23}


def pages(settings: Settings, access: Callable[[], None], *urls: str) -> list[httpx.Response]:
    """GET each of the plugin's pages, from an app that is mounted as Airflow mounts it."""
    file = PROJECT_ROOT / "plugins" / "quality_pages.py"
    spec = spec_from_file_location("quality_pages", file)
    assert spec is not None and spec.loader is not None
    plugin = module_from_spec(spec)
    spec.loader.exec_module(plugin)
    (mounted,) = plugin.QualityPages.fastapi_apps
    app = Starlette(routes=[Mount(mounted["url_prefix"], plugin.build_app(settings, access))])

    async def get() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://airflow") as client:
            return [await client.get(url, follow_redirects=True) for url in urls]

    return asyncio.run(get())


def test_airflow_shows_the_rules_of_a_failed_check_and_its_report(warehouse: Settings) -> None:
    days = {LAST - timedelta(days=n): good_day(LAST - timedelta(days=n)) for n in range(1, 7)}
    script = "<script>alert(1)</script>"
    land(warehouse, days | {LAST: [replace(row, country=script) for row in good_day(LAST)]})
    with pytest.raises(QualityError, match="country_is_known"):
        check_landed(warehouse, AS_OF)
    (warehouse.state_dir / "services.json").write_text("passwords")
    check = f"stage=quality&as_of={AS_OF}"

    def everybody() -> None:
        """Passes."""

    results, report, unknown, outside = pages(
        warehouse,
        everybody,
        f"/quality/results?{check}",
        f"/quality/data-docs?{check}",
        f"/quality/data-docs?stage=quality_marts&as_of={AS_OF}",
        "/quality/data-docs/..%2Fservices.json",
    )

    assert "country_is_known" in results.text
    assert html.escape(script) in results.text
    assert "<script" not in results.text
    assert f"order_lines landed {LAST}" in report.text
    assert (unknown.status_code, outside.status_code) == (404, 404)
    (link,) = re.findall(rf'href="([^"]*{LAST}[^"]*)"', results.text)
    (day,) = pages(warehouse, everybody, link)
    assert day.status_code == 200
    assert "country" in day.text
    # its scripts do not act as the reader in Airflow
    assert day.headers["content-security-policy"] == "sandbox allow-scripts"


def test_no_page_is_shown_without_access(warehouse: Settings) -> None:
    land(warehouse, {LAST: good_day(LAST)})
    check_landed(warehouse, AS_OF)
    ((run_id,),) = query(warehouse, "select run_id from ops.runs")
    check = f"stage=quality&as_of={AS_OF}"
    urls = (
        f"/quality/results?{check}",
        f"/quality/data-docs?{check}",
        f"/quality/data-docs/run-{run_id}/index.html",
    )

    def nobody() -> None:
        raise HTTPException(401)

    assert [page.status_code for page in pages(warehouse, nobody, *urls)] == [401, 401, 401]
    assert [page.status_code for page in pages(warehouse, lambda: None, *urls)] == [200, 200, 200]


def test_a_page_says_that_the_warehouse_does_not_answer(warehouse: Settings) -> None:
    nowhere = warehouse.model_copy(
        update={"database_url": "postgresql://nobody:secret@127.0.0.1:1/nightshift"}
    )

    (page,) = pages(nowhere, lambda: None, f"/quality/results?stage=quality&as_of={AS_OF}")

    assert page.status_code == 503
    assert "the warehouse does not answer" in page.text
    assert "secret" not in page.text
