"""Extracts and the Spark job on a real mart: incremental, point in time, the same bits."""

from collections.abc import Iterator, Sequence
from contextlib import closing
from datetime import date, datetime, timedelta
from typing import Any

import psycopg2
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from psycopg2.extras import execute_values

from nightshift.errors import NightshiftError, RefusedAsOf
from nightshift.features import extract as plan
from nightshift.features.run import (
    DatasetResult,
    build_features,
    build_labels,
    build_training_set,
    events_dir,
    extract,
)
from nightshift.settings import Settings
from nightshift.use_cases import CHURN

AS_OF = date(2011, 6, 1)
COLUMNS = (
    "order_line_id, invoice_id, is_cancellation, product_id, is_product, quantity, unit_price,"
    " line_amount, invoiced_at, invoiced_date, customer_id, country, landed_date"
)


def line(number: int, customer: str | None, day: str, landed: str | None = None) -> Sequence[Any]:
    """A purchase at 10:00 of two pieces for 2.55."""
    at = datetime.fromisoformat(f"{day}T10:00:00")
    return (
        f"1:{number}", f"I{number}", False, f"P{number % 3}", True, 2, "2.55", "5.10", at,
        at.date(), customer, "France", date.fromisoformat(landed or day),
    )  # fmt: skip


def insert(settings: Settings, lines: Sequence[Sequence[Any]]) -> None:
    with closing(psycopg2.connect(settings.warehouse_url)) as connection, connection:
        execute_values(
            connection.cursor(), f"insert into marts.fct_order_lines ({COLUMNS}) values %s", lines
        )


@pytest.fixture
def mart(warehouse: Settings) -> Iterator[Settings]:
    """A mart of a customer who buys every week and one who stopped in February 2011."""
    with closing(psycopg2.connect(warehouse.warehouse_url)) as connection, connection:
        connection.cursor().execute(
            "create schema marts; create table marts.fct_order_lines (order_line_id text primary"
            " key, invoice_id text, is_cancellation boolean, product_id text, is_product boolean,"
            " description text, quantity integer, unit_price numeric(14, 4), line_amount"
            " numeric(18, 4), invoiced_at timestamp, invoiced_date date, customer_id text,"
            " country text, landed_date date)"
        )
    start = date(2010, 6, 1)
    weekly = [line(n, "weekly", str(start + timedelta(days=7 * n))) for n in range(65)]
    gone = [line(100 + n, "gone", str(start + timedelta(days=9 * n))) for n in range(28)]
    insert(warehouse, [*weekly, *gone, line(200, None, "2011-01-05")])
    yield warehouse


def rows_of(result: DatasetResult) -> list[dict[str, Any]]:
    parts = sorted(result.folder.glob("part-*.parquet"))
    table = pa.concat_tables([pq.read_table(part, partitioning=None) for part in parts])
    by = [(name, "ascending") for name in ("snapshot", CHURN.key) if name in table.column_names]
    rows: list[dict[str, Any]] = table.sort_by(by).to_pylist()
    return rows


def test_extract_rewrites_only_the_months_that_changed(mart: Settings) -> None:
    first = extract(mart, [CHURN], AS_OF)
    assert (first.months_changed, first.months, first.rows) == (15, 15, 94)
    assert extract(mart, [CHURN], AS_OF).months_changed == 0
    insert(mart, [line(300, "late", "2010-12-24", landed="2011-01-02")])
    again = extract(mart, [CHURN], AS_OF)
    assert (again.months_changed, again.rows) == (1, 10)
    stored = pq.read_table(
        events_dir(mart, CHURN.source) / "month=2011-01-01" / "part-00000.parquet"
    )
    assert stored.schema.equals(plan.schema(CHURN.source))
    assert "late" in stored["customer_id"].to_pylist()


def test_a_month_that_left_the_mart_stops_the_extract(mart: Settings) -> None:
    extract(mart, [CHURN], AS_OF)
    with closing(psycopg2.connect(mart.warehouse_url)) as connection, connection:
        connection.cursor().execute(
            "delete from marts.fct_order_lines where landed_date < '2010-07-01'"
        )
    with pytest.raises(NightshiftError, match="month=2010-06-01"):
        extract(mart, [CHURN], AS_OF)


def test_the_vector_scored_tonight_is_the_vector_trained_on_later(mart: Settings) -> None:
    extract(mart, [CHURN], AS_OF)
    scored = rows_of(build_features(mart, [CHURN], AS_OF)["churn"])
    assert [row["customer_id"] for row in scored] == ["gone", "weekly"]
    assert build_features(mart, [CHURN], AS_OF)["churn"].is_reused

    # what happened before as_of, but landed after it, was not known that night
    insert(mart, [line(400, "weekly", "2011-05-30", landed="2011-06-02")])
    extract(mart, [CHURN], AS_OF)
    rebuilt = build_features(mart, [CHURN], AS_OF)["churn"]
    assert not rebuilt.is_reused
    assert rows_of(rebuilt) == scored

    trained = build_training_set(mart, CHURN, AS_OF + timedelta(days=90))
    assert trained.snapshots[-1] == AS_OF
    later = [row for row in rows_of(trained) if row.pop("snapshot") == AS_OF]
    assert {row["customer_id"]: row.pop("label") for row in later} == {"gone": 1, "weekly": 0}
    assert later == scored

    matured = rows_of(build_labels(mart, CHURN, AS_OF))
    assert {row["customer_id"]: row["label"] for row in matured} == {"gone": 1, "weekly": 0}


def test_a_night_without_population_is_refused_and_leaves_no_dataset(mart: Settings) -> None:
    extract(mart, [CHURN], AS_OF)
    with pytest.raises(RefusedAsOf, match="nobody had an event in the 365 days"):
        build_features(mart, [CHURN], date(2010, 6, 1))
    assert list((mart.lake_dir / "features" / "churn").iterdir()) == []


def test_features_without_an_extract_are_refused(mart: Settings) -> None:
    with pytest.raises(NightshiftError, match="no extract of order_lines"):
        build_features(mart, [CHURN], AS_OF)
