"""Extracts and the Spark job on a real mart: incremental, point in time, the same bits."""

import json
import os
import re
import resource
import shutil
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from datetime import date, datetime, timedelta
from typing import Any
from uuid import uuid4

import psycopg2
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from psycopg2.extras import execute_values
from typer.testing import CliRunner

from nightshift.cli import app
from nightshift.errors import NightshiftError, RefusedAsOf
from nightshift.feature_groups.order_lines import IS_PURCHASE, ORDER_LINES
from nightshift.features.extract_run import ExtractResult, events_dir, extract
from nightshift.features.parity import Moved
from nightshift.features.run import (
    DatasetResult,
    build_features,
    build_features_of_nights,
    build_labels,
    build_training_set,
    parity,
    prove,
)
from nightshift.io import lake
from nightshift.settings import Settings
from nightshift.spec import Aggregate, FeatureGroup, Measure, Through
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


def change(settings: Settings, statement: str, *values: object) -> None:
    """Change rows of the mart as a dbt run does: each landed day that they are of is marked."""
    with closing(psycopg2.connect(settings.warehouse_url)) as connection, connection:
        cursor = connection.cursor()
        days = "select landed_date, count(*), md5(array_agg(lines::text)::text) from"
        days += " marts.fct_order_lines as lines group by 1"
        cursor.execute(days)
        before = set(cursor.fetchall())
        cursor.execute(statement, values)
        cursor.execute(days)
        after = set(cursor.fetchall())
        for landed_date, *_ in before - after:
            cursor.execute(
                "delete from marts.fct_landed_days where landed_date = %s", (landed_date,)
            )
        execute_values(
            cursor,
            "insert into marts.fct_landed_days (source, landed_date, rows_kept, build_id)"
            " values %s",
            [("order_lines", day, rows, str(uuid4())) for day, rows, _ in after - before],
        )


def insert(settings: Settings, lines: Sequence[Sequence[Any]]) -> None:
    values = ", ".join(["%s"] * len(lines))
    change(settings, f"insert into marts.fct_order_lines ({COLUMNS}) values {values}", *lines)


@pytest.fixture
def mart(empty_mart: Settings) -> Settings:
    """A mart of a customer who buys every week and one who stopped in February 2011."""
    start = date(2010, 6, 1)
    weekly = [line(n, "weekly", str(start + timedelta(days=7 * n))) for n in range(65)]
    gone = [line(100 + n, "gone", str(start + timedelta(days=9 * n))) for n in range(28)]
    insert(empty_mart, [*weekly, *gone, line(200, None, "2011-01-05")])
    return empty_mart


def rows_of(result: DatasetResult) -> list[dict[str, Any]]:
    parts = sorted(result.folder.glob("part-*.parquet"))
    table = pa.concat_tables([pq.read_table(part, partitioning=None) for part in parts])
    by = [(name, "ascending") for name in ("snapshot", CHURN.key) if name in table.column_names]
    rows: list[dict[str, Any]] = table.sort_by(by).to_pylist()
    return rows


def lake_rows(settings: Settings) -> list[str]:
    """Every row of the lake's copy, as text."""
    files = sorted(events_dir(settings, CHURN.source, CHURN.key).glob("month=*/*.parquet"))
    tables = [pq.read_table(file, partitioning=None) for file in files]
    return sorted(str(row) for table in tables for row in table.to_pylist())


def mart_rows(settings: Settings) -> list[str]:
    """Every row of the mart that has a customer, in the lake's columns, as text."""
    columns = list(CHURN.source.columns)
    with closing(psycopg2.connect(settings.warehouse_url)) as connection:
        cursor = connection.cursor()
        cursor.execute(
            f"select {', '.join(columns)} from marts.fct_order_lines where customer_id is not null"
        )
        return sorted(str(dict(zip(columns, row, strict=True))) for row in cursor.fetchall())


def test_extract_reads_only_the_days_that_changed(mart: Settings) -> None:
    first = extract(mart, [CHURN], AS_OF)
    assert (first.days_changed, first.days, first.rows) == (90, 90, 94)
    assert lake_rows(mart) == mart_rows(mart)
    assert extract(mart, [CHURN], AS_OF) == ExtractResult(0, 90, 0)

    insert(mart, [line(300, "late", "2010-12-24", landed="2011-01-02")])
    assert extract(mart, [CHURN], AS_OF).rows == 1
    assert lake_rows(mart) == mart_rows(mart)

    change(mart, "delete from marts.fct_order_lines where landed_date < '2010-07-05'")
    change(mart, "update marts.fct_order_lines set quantity = 7 where invoice_id = 'I9'")
    assert extract(mart, [CHURN], AS_OF).rows == 2
    assert lake_rows(mart) == mart_rows(mart)


def test_a_month_file_is_the_same_however_it_came_to_be(mart: Settings) -> None:
    extract(mart, [CHURN], AS_OF)
    insert(mart, [line(300, "late", "2010-12-24", landed="2011-01-02")])
    extract(mart, [CHURN], AS_OF)
    root = events_dir(mart, CHURN.source, CHURN.key)
    file = root / "month=2011-01-01" / "part-00000.parquet"
    by_days = file.read_bytes()
    shutil.rmtree(root)
    extract(mart, [CHURN], AS_OF)
    assert file.read_bytes() == by_days


@pytest.mark.parametrize("damage", ["truncated", "lost", "another form"])
def test_a_damaged_month_is_written_anew(mart: Settings, damage: str) -> None:
    extract(mart, [CHURN], AS_OF)
    folder = events_dir(mart, CHURN.source, CHURN.key) / "month=2011-01-01"
    if damage == "truncated":
        os.truncate(folder / "part-00000.parquet", 1_000)
        with pytest.raises(NightshiftError, match="is damaged"):
            prove(mart, CHURN)
    elif damage == "lost":
        shutil.rmtree(folder)
    else:
        manifest = json.loads((folder / "manifest.json").read_text())
        (folder / "manifest.json").write_text(json.dumps(manifest | {"declared": "older"}))
    assert extract(mart, [CHURN], AS_OF).rows == 9
    assert lake_rows(mart) == mart_rows(mart)


@contextmanager
def room_of(size: int) -> Iterator[None]:
    """No file may grow over ``size`` bytes: what a full disk looks like to who writes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_the_extract_as_it_was(mart: Settings) -> None:
    extract(mart, [CHURN], AS_OF)
    before = lake_rows(mart)
    insert(mart, [line(300, "late", "2010-12-24", landed="2011-01-02")])

    with room_of(4_000), pytest.raises(NightshiftError, match=r"was not written: .*too large"):
        extract(mart, [CHURN], AS_OF)
    with pytest.raises(NightshiftError, match="has not come to its end"):
        prove(mart, CHURN)

    assert lake_rows(mart) == before
    root = events_dir(mart, CHURN.source, CHURN.key)
    assert not list(root.glob(".*")), "nothing half-written is left"
    assert extract(mart, [CHURN], AS_OF).rows == 1
    assert lake_rows(mart) == mart_rows(mart)


def test_a_mart_that_is_not_as_declared_is_refused(mart: Settings) -> None:
    with closing(psycopg2.connect(mart.warehouse_url)) as connection, connection:
        connection.cursor().execute(
            "alter table marts.fct_order_lines alter quantity type text, drop column country"
        )
    with pytest.raises(NightshiftError) as error:
        extract(mart, [CHURN], AS_OF)
    assert "it has no column country; quantity is text, declared as integer" in error.value.what


@pytest.mark.parametrize("value", ["2.55005", "NaN", "-100000000000000", "1e20", "Infinity"])
def test_a_number_that_no_decimal_can_be_is_named(mart: Settings, value: str) -> None:
    with closing(psycopg2.connect(mart.warehouse_url)) as connection, connection:
        connection.cursor().execute(
            "alter table marts.fct_order_lines alter unit_price type numeric"
        )
    change(mart, "update marts.fct_order_lines set unit_price = 2.5500 where invoice_id = 'I8'")
    extract(mart, [CHURN], AS_OF)
    assert lake_rows(mart) == mart_rows(mart)

    change(mart, f"update marts.fct_order_lines set unit_price = '{value}' where invoice_id = 'I9'")
    with pytest.raises(NightshiftError) as error:
        extract(mart, [CHURN], AS_OF)
    assert "marts.fct_order_lines.unit_price holds " in error.value.what
    assert "in the row order_line_id = 1:9 that landed on 2010-08-03" in error.value.what
    assert "declare the column as double" in error.value.remedy


def test_text_may_hold_what_separates_texts(mart: Settings) -> None:
    change(mart, "update marts.fct_order_lines set country = e'\\x01\\x03' where invoice_id = 'I8'")
    change(mart, "update marts.fct_order_lines set country = e'\\x02\\x05' where invoice_id = 'I9'")
    change(mart, "update marts.fct_order_lines set country = null where invoice_id = 'I10'")
    extract(mart, [CHURN], AS_OF)
    assert lake_rows(mart) == mart_rows(mart)

    every = "".join(map(chr, range(1, 32)))
    change(mart, "update marts.fct_order_lines set country = %s where invoice_id = 'I9'", every)
    with pytest.raises(NightshiftError, match=r"country holds, among .* 2010-08, texts"):
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


def test_nights_that_are_built_together_are_those_that_are_built_alone(mart: Settings) -> None:
    dates = [AS_OF + timedelta(days=days) for days in (-40, 0, 1)]
    insert(mart, [line(400, "weekly", "2011-05-30", landed="2011-06-01")])
    extract(mart, [CHURN], AS_OF)
    alone = mart.model_copy(update={"lake": mart.lake_dir.with_name("alone")})
    extract(alone, [CHURN], AS_OF)
    kept = build_features(mart, [CHURN], AS_OF)["churn"]
    before = (kept.folder / "manifest.json").stat().st_mtime_ns

    together = build_features_of_nights(mart, dict.fromkeys(dates, (CHURN,)))

    assert list(together) == dates
    assert [results["churn"].is_reused for results in together.values()] == [False, True, False]
    assert (kept.folder / "manifest.json").stat().st_mtime_ns == before
    for as_of in (dates[0], dates[2]):
        night = build_features(alone, [CHURN], as_of)["churn"]
        files = sorted(file.name for file in night.folder.glob("part-*"))
        found = together[as_of]["churn"].folder
        assert sorted(file.name for file in found.iterdir()) == ["manifest.json", *files]
        assert [(found / f).read_bytes() for f in files] == [
            (night.folder / f).read_bytes() for f in files
        ]
        manifests = [json.loads((f / "manifest.json").read_text()) for f in (found, night.folder)]
        for manifest in manifests:  # what it took is another matter
            del manifest["cpu_seconds"], manifest["months_read"]
        assert manifests[0] == manifests[1]
    # the row that landed on the day before is known from then on
    counts = [
        row["customer_purchase_count_30d"]
        for results in together.values()
        for row in rows_of(results["churn"])
        if row["customer_id"] == "weekly"
    ]
    assert counts == [4.0, 5.0, 6.0]


def test_features_of_other_entities_are_built_with_the_others(mart: Settings) -> None:
    sold = FeatureGroup(
        name="products",
        source=ORDER_LINES,
        entity="product",
        key="product_id",
        measures=(Measure(name="sale", column="invoiced_at", where=IS_PURCHASE),),
        aggregates=(Aggregate(measure="sale", aggregations=("count",), windows=(30,)),),
    )
    bought = FeatureGroup(
        name="bought",
        source=ORDER_LINES,
        entity="customer",
        key="customer_id",
        measures=(
            Through(
                name="product_sales",
                column="product_id",
                where=IS_PURCHASE,
                group=sold,
                feature="product_sale_count_30d",
            ),
        ),
        aggregates=(Aggregate(measure="product_sales", aggregations=("max",), windows=(90,)),),
    )
    use_case = CHURN.model_copy(update={"feature_groups": (*CHURN.feature_groups, bought)})
    extract(mart, [use_case], AS_OF)
    built = build_features(mart, [use_case], AS_OF)["churn"]

    assert [row["customer_product_sales_max_90d"] for row in rows_of(built)] == [None, 2.0]
    manifest = json.loads((built.folder / "manifest.json").read_text())
    assert manifest["null_share"]["customer_product_sales_max_90d"] == 0.5
    assert build_training_set(mart, use_case, AS_OF + timedelta(days=90)).rows == (
        build_training_set(mart, CHURN, AS_OF + timedelta(days=90)).rows
    )


def test_another_number_of_buckets_makes_other_files_of_the_same_vectors(mart: Settings) -> None:
    extract(mart, [CHURN], AS_OF)
    build_features(mart, [CHURN], AS_OF)
    fewer = mart.model_copy(update={"lake_buckets": 3})
    with pytest.raises(NightshiftError, match="has 16 buckets, and the setting lake_buckets says"):
        prove(fewer, CHURN)

    again = extract(fewer, [CHURN], AS_OF)

    assert again.days_changed == again.days
    found = parity(fewer, CHURN).trained
    assert (found.vectors, found.is_same) == (2, True)


def test_a_late_row_is_told_and_is_no_fault(mart: Settings) -> None:
    extract(mart, [CHURN], AS_OF)
    build_features(mart, [CHURN], AS_OF)
    insert(mart, [line(400, "weekly", "2011-05-30", landed="2011-06-05")])
    insert(mart, [line(401, "gone", "2010-12-24", landed="2011-06-09")])
    extract(mart, [CHURN], AS_OF)

    report = parity(mart, CHURN)

    assert report.holds
    assert report.as_of == AS_OF
    assert (report.trained.vectors, report.trained.is_same) == (2, True)
    assert report.late == {"order_lines": {date(2011, 6, 5): 1, date(2011, 6, 9): 1}}
    assert report.causes() == []
    found = report.hindsight.moved or {}
    assert report.hindsight.differing == 2
    assert found["customer_purchase_count_30d"] == Moved(1, 1.0, ("weekly",), 5.0, 6.0)
    assert not list((mart.lake_dir / "parity" / "churn").iterdir())


@pytest.mark.usefixtures("logging_as_before")
def test_vectors_that_training_would_not_see_are_a_fault(
    mart: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    change(mart, "delete from marts.fct_order_lines where landed_date < '2011-01-01'")
    insert(mart, [line(401, "erased", "2011-05-04")])
    extract(mart, [CHURN], AS_OF)
    build_features(mart, [CHURN], AS_OF)
    # another version of a file that had landed before
    change(mart, "update marts.fct_order_lines set quantity = 7 where order_line_id = '1:50'")
    change(mart, "delete from marts.fct_order_lines where customer_id = 'erased'")
    extract(mart, [CHURN], AS_OF)

    build_training_set(mart, CHURN, AS_OF + timedelta(days=90))
    assert "of 3 vectors that were scored at 2011-06-01, 1 are trained on with other" in caplog.text

    shown = CliRunner().invoke(
        app,
        ["features", "parity", "churn", "--as-of", "2011-06-01"],
        env={
            "NIGHTSHIFT_STATE_DIR": str(mart.state_dir),
            "NIGHTSHIFT_LAKE": str(mart.lake_dir),
            "NIGHTSHIFT_DATABASE_URL": mart.warehouse_url,
        },
    )
    assert shown.exit_code == 1, shown.output
    lines = [re.sub(r"[ │]+", " ", line).strip() for line in shown.stdout.splitlines()]
    assert "FAILS scored → what training makes of that night now 2 1 1 0" in lines
    assert "same trained → had all that landed since been known 2 0 0 0" in lines
    assert "customer_purchase_quantity_sum_90d 1 weekly 26 31" in lines
    assert "customer_purchase_quantity_sum_365d 1 weekly 44 49" in lines
    assert lines[-1] == (
        "other than that night: rows of order_lines that landed on 2011-05-04, 2011-05-17"
    )


def test_parity_of_a_night_that_is_not_kept_is_refused(mart: Settings) -> None:
    with pytest.raises(NightshiftError, match="no vectors of churn are kept of 2011-06-01"):
        parity(mart, CHURN, AS_OF)


def test_a_night_without_population_is_refused_and_leaves_no_dataset(mart: Settings) -> None:
    extract(mart, [CHURN], AS_OF)
    with pytest.raises(RefusedAsOf, match="nobody had an event in the 365 days"):
        build_features(mart, [CHURN], date(2010, 6, 1))
    assert list((mart.lake_dir / "features" / "churn").iterdir()) == []


def test_a_use_case_without_population_holds_none_of_the_others(mart: Settings) -> None:
    huge = CHURN.population.model_copy(update={"where": "quantity > 1000000"})
    nobody = CHURN.model_copy(update={"name": "nobody", "population": huge})
    extract(mart, [CHURN, nobody], AS_OF)
    left = lake.dataset_dir(mart.lake_dir, "features", "nobody", AS_OF)
    left.mkdir(parents=True)
    (left / "manifest.json").write_text('{"key": "of another night", "rows": 5}')

    built = build_features(mart, [nobody, CHURN], AS_OF)

    assert (list(built), built["churn"].rows > 0) == (["churn"], True)
    assert not left.exists()  # nobody is scored by what is no longer so
    refused = "select result -> 'refused' ->> 0 from ops.runs where stage = 'features'"
    with closing(psycopg2.connect(mart.warehouse_url)) as connection:
        cursor = connection.cursor()
        cursor.execute(refused)
        assert cursor.fetchone()[0].startswith("nobody: nobody had an event in the 365 days")


def test_features_without_an_extract_are_refused(mart: Settings) -> None:
    with pytest.raises(NightshiftError, match="no row of order_lines by customer_id"):
        build_features(mart, [CHURN], AS_OF)


def test_a_mart_without_a_row(empty_mart: Settings) -> None:
    assert extract(empty_mart, [CHURN], AS_OF) == ExtractResult(0, 0, 0)
    with pytest.raises(NightshiftError) as error:
        build_features(empty_mart, [CHURN], AS_OF)
    assert error.value.what == "the lake has no row of order_lines by customer_id"
    assert "marts.fct_order_lines has no such row" in error.value.remedy


def test_a_damaged_month_is_extracted_anew_by_the_job_that_finds_it(mart: Settings) -> None:
    extract(mart, [CHURN], AS_OF)
    file = events_dir(mart, CHURN.source, CHURN.key) / "month=2011-01-01" / "part-00000.parquet"
    whole = file.read_bytes()
    # the pages of one bucket, of the same length: only their checksums tell
    file.write_bytes(bytes([*whole[:200], *(byte ^ 0xFF for byte in whole[200:400]), *whole[400:]]))

    assert build_features(mart, [CHURN], AS_OF)["churn"].rows == 2
    assert file.read_bytes() == whole

    insert(mart, [line(300, "late", "2010-12-24", landed="2011-01-02")])
    file.write_bytes(bytes([*whole[:200], *(byte ^ 0xFF for byte in whole[200:400]), *whole[400:]]))
    assert extract(mart, [CHURN], AS_OF).rows == 10, "to which a day is to be added"
    assert lake_rows(mart) == mart_rows(mart)


def test_of_two_runs_at_once_one_computes(mart: Settings) -> None:
    extract(mart, [CHURN], AS_OF)
    both = threading.Barrier(2)

    def night() -> DatasetResult:
        both.wait()
        return build_features(mart, [CHURN], AS_OF)["churn"]

    with ThreadPoolExecutor() as threads:
        first, second = (each.result() for each in [threads.submit(night), threads.submit(night)])

    assert sorted([first.is_reused, second.is_reused]) == [False, True]
    assert first.folder == second.folder
    assert len(rows_of(first)) == first.rows == second.rows == 2


def test_keys_of_any_text_and_prices_that_are_no_number(empty_mart: Settings) -> None:
    source = CHURN.source.model_copy(
        update={"columns": {**CHURN.source.columns, "unit_price": "double"}}
    )
    of = {"source": source}
    use_case = CHURN.model_copy(
        update={
            "population": CHURN.population.model_copy(update=of),
            "label": CHURN.label.model_copy(update=of),
            "feature_groups": tuple(g.model_copy(update=of) for g in CHURN.feature_groups),
        }
    )
    keys = ["", " ", "Zoë Ωmega 张 🛒", "a\nb\t'\"\\", "x" * 10_000, "X" * 10_000, "null", "NaN"]
    lines = [line(number, key, "2011-05-02") for number, key in enumerate([*keys, None])]
    priceless = [list(line(100 + n, key, "2011-05-03")) for n, key in enumerate(keys)]
    for each in priceless:
        each[6] = "NaN"
    insert(empty_mart, [*lines, *(tuple(each) for each in priceless)])

    with pytest.raises(NightshiftError) as error:
        extract(empty_mart, [CHURN], AS_OF)
    assert "marts.fct_order_lines.unit_price holds NaN" in error.value.what
    assert "landed on 2011-05-03" in error.value.what

    assert extract(empty_mart, [use_case], AS_OF).rows == 17
    found = rows_of(build_features(empty_mart, [use_case], AS_OF)["churn"])
    assert [row["customer_id"] for row in found] == sorted(keys, key=str.encode)
    assert {row["customer_purchase_count_30d"] for row in found} == {2.0}
    assert {row["customer_purchase_price_mean_365d"] for row in found} == {2.55}, "of one line"
