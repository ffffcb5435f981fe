"""dbt builds the marts on the real warehouse, from literal landed rows."""

import json
import threading
from datetime import date, timedelta
from decimal import Decimal
from typing import Any
from urllib.parse import urlparse

import pytest

from nightshift.contracts import SOURCES, load_contract
from nightshift.errors import NightshiftError
from nightshift.io.held_sources import held_sources
from nightshift.io.warehouse import connect
from nightshift.quality.run import check_marts
from nightshift.services.postgres import EmbeddedPostgres
from nightshift.settings import Settings
from nightshift.transform.run import build, unit_test
from nightshift.use_cases import USE_CASES
from nightshift.use_cases.churn import CHURN
from nightshift.use_cases.fraud import FRAUD

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("registry_of_churn")]

AS_OF = date(2011, 1, 5)
Line = tuple[object, ...]

# invoice, stock code, description, quantity, invoice date, price, customer, country; landing
SOLD: Line = ("536365", "85123a", "HOLDER", 6, "2011-01-03 08:26", "2.55", "17850", "France",
              "2011-01-03", 1, 1)  # fmt: skip
SOLD_TWICE: Line = (*SOLD[:10], 2)
RETURNED: Line = ("C536379", "85123A", "HOLDER", -2, "2011-01-03 09:41", "2.55", "17850", "Spain",
                  "2011-01-03", 1, 3)  # fmt: skip
POSTAGE: Line = ("536370", "POST", "", 1, "2011-01-03 08:45", "18.00", None, "France",
                 "2011-01-03", 1, 4)  # fmt: skip
LATE_COPY: Line = (*SOLD[:8], "2011-01-04", 2, 1)
# transaction id, instant, customer, terminal, amount; landing
PAID: Line = (7, "2011-01-03 10:00", "596", "3156", "57.16", "2011-01-03", 11, 1)
REPORTED: Line = (7, "2011-01-03 12:00", "2011-01-03", 13, 1)


def land(settings: Settings, *lines: Line, source: str = "order_lines") -> None:
    """Put rows into raw as ingest does, with the note that their days have changed."""
    with connect(settings) as connection, connection.cursor() as cursor:
        for line in lines:
            cursor.execute(
                f"insert into raw.{source} values ({', '.join(['%s'] * len(line))})", line
            )
        note_changed(cursor, source, {line[-3] for line in lines})


def unland(settings: Settings, where: str, source: str = "order_lines") -> None:
    """Take rows out of raw, as a replaced or an erased file does."""
    with connect(settings) as connection, connection.cursor() as cursor:
        cursor.execute(f"delete from raw.{source} where {where} returning _landed_date")
        note_changed(cursor, source, {row[0] for row in cursor.fetchall()})


def note_changed(cursor: Any, source: str, days: set[Any]) -> None:
    for day in days:
        cursor.execute(
            "insert into ops.changed_days (source, landed_date, reason) values (%s, %s, 'test')",
            (source, day),
        )


def rows(settings: Settings, query: str) -> list[tuple[Any, ...]]:
    with connect(settings) as connection, connection.cursor() as cursor:
        cursor.execute(query)
        return cursor.fetchall()


@pytest.fixture
def warehouse(warehouse: Settings) -> Settings:
    """``warehouse`` with the raw tables that ingest makes."""
    with connect(warehouse) as connection, connection.cursor() as cursor:
        for source in SOURCES:
            cursor.execute(load_contract(source).ddl())
    return warehouse


def test_marts_hold_each_distinct_line_once(warehouse: Settings) -> None:
    land(warehouse, SOLD, SOLD_TWICE, RETURNED, POSTAGE, LATE_COPY)
    land(warehouse, PAID, (*PAID[:5], "2011-01-04", 12, 1), source="card_transactions")
    land(warehouse, REPORTED, (7, "2011-01-02 00:00", "2011-01-04", 14, 1), source="chargebacks")

    result = build(warehouse, AS_OF)

    assert result.failed == ()
    assert result.nodes["fct_order_lines"] == "success"
    assert result.seconds.keys() == result.nodes.keys()
    assert rows(
        warehouse,
        "select order_line_id, product_id, is_cancellation, is_product, description, line_amount,"
        " customer_id = predictions.pseudonym('17850'), landed_date from marts.fct_order_lines"
        " order by order_line_id",
    ) == [
        ("1:1", "85123A", False, True, "HOLDER", Decimal("15.3000"), True, date(2011, 1, 3)),
        ("1:3", "85123A", True, True, "HOLDER", Decimal("-5.1000"), True, date(2011, 1, 3)),
        ("1:4", "POST", False, False, None, Decimal("18.0000"), None, date(2011, 1, 3)),
    ]
    customer = "select customer_id = predictions.pseudonym('17850'), country"
    assert rows(warehouse, f"{customer} from marts.dim_customers") == [(True, "Spain")]
    assert rows(
        warehouse, "select product_id, is_product from marts.dim_products order by product_id"
    ) == [("85123A", True), ("POST", False)]
    assert rows(
        warehouse, "select transaction_id, landed_date from marts.fct_card_transactions"
    ) == [(7, date(2011, 1, 3))]
    assert rows(warehouse, "select transaction_id, landed_date from marts.fct_chargebacks") == [
        (7, date(2011, 1, 3))
    ]
    assert rows(
        warehouse,
        "select source, landed_date, rows_landed, rows_kept, duplicates_removed"
        " from marts.fct_landed_days order by 1, 2",
    ) == [
        ("card_transactions", date(2011, 1, 3), 1, 1, 0),
        ("card_transactions", date(2011, 1, 4), 1, 0, 1),
        ("chargebacks", date(2011, 1, 3), 1, 1, 0),
        ("chargebacks", date(2011, 1, 4), 1, 0, 1),
        ("order_lines", date(2011, 1, 3), 4, 3, 1),
        ("order_lines", date(2011, 1, 4), 1, 0, 1),
        ("payments", date(2011, 1, 3), 1, 1, 0),
    ]
    assert rows(
        warehouse,
        "select order_line_id, match, purchase_line_id, landed_date from marts.fct_cancellations",
    ) == [("1:3", "part", "1:1", date(2011, 1, 3))]
    ((result_kept,),) = rows(warehouse, "select result from ops.runs where stage = 'transform'")
    assert result_kept["nodes"]["fct_order_lines"] == "success"
    assert result_kept["is_full_refresh"] is True
    docs = warehouse.state_dir / "dbt" / "target"
    assert "fct_cancellations" in (docs / "static_index.html").read_text()
    documented = json.loads((docs / "catalog.json").read_text())
    assert "model.nightshift.fct_cancellations" in documented["nodes"]
    lineage = json.loads((docs / "manifest.json").read_text())["parent_map"]
    for use_case in USE_CASES:
        name = use_case.name
        parents = lineage[f"exposure.nightshift.{name}"]
        assert f"source.nightshift.predictions.{name}" in parents
        marts = {f"model.nightshift.{each.relation.partition('.')[2]}" for each in use_case.sources}
        assert marts <= set(parents)

    assert rows(
        warehouse,
        "select attname, format_type(atttypid, atttypmod) from pg_attribute"
        " where attrelid = 'marts.fct_order_lines'::regclass and attnum > 0 order by attnum",
    ) == [
        ("order_line_id", "text"),
        ("invoice_id", "text"),
        ("is_cancellation", "boolean"),
        ("product_id", "text"),
        ("is_product", "boolean"),
        ("description", "text"),
        ("quantity", "integer"),
        ("unit_price", "numeric(14,4)"),
        ("line_amount", "numeric(18,4)"),
        ("invoiced_at", "timestamp without time zone"),
        ("invoiced_date", "date"),
        ("customer_id", "text"),
        ("country", "text"),
        ("landed_date", "date"),
    ]
    assert rows(
        warehouse, "select count(*) from pg_indexes where tablename = 'fct_order_lines'"
    ) == [(5,)]
    there = rows(
        warehouse,
        "select table_schema, table_name from information_schema.tables"
        " where table_schema in ('staging', 'intermediate', 'marts') order by 1, 2",
    )
    assert set(there) >= {
        ("intermediate", "int_changed_rows"),
        ("intermediate", "int_order_lines_classified"),
        ("marts", "dim_customers"),
        ("marts", "dim_customers_history"),
        ("marts", "dim_products"),
        ("marts", "dim_products_history"),
        ("marts", "fct_cancellations"),
        ("marts", "fct_card_transactions"),
        ("marts", "fct_chargebacks"),
        ("marts", "fct_landed_days"),
        ("marts", "fct_order_lines"),
        ("marts", "fct_payments"),
        ("staging", "stg_card_transactions"),
        ("staging", "stg_chargebacks"),
        ("staging", "stg_order_lines"),
    }


def test_a_night_reads_the_days_that_changed(warehouse: Settings) -> None:
    land(warehouse, SOLD, RETURNED)
    assert build(warehouse, AS_OF).is_full_refresh
    every_line = "select * from marts.fct_order_lines order by order_line_id"
    before = rows(warehouse, every_line)

    # a copy that lands later changes no earlier row, and an older as_of does not shrink the marts
    land(warehouse, LATE_COPY)
    assert not build(warehouse, date(2011, 1, 4)).is_full_refresh
    assert rows(warehouse, every_line) == before
    assert len(before) == 2

    # what nobody has noted as changed is not read: the night does not go through history
    with connect(warehouse) as connection, connection.cursor() as cursor:
        cursor.execute("update raw.order_lines set quantity = 60 where _file_id = 1")
    build(warehouse, AS_OF)
    assert rows(warehouse, every_line) == before

    # of a file that is taken back, the next copy is kept
    unland(warehouse, "_file_id = 1")
    build(warehouse, AS_OF)
    assert rows(warehouse, "select order_line_id, landed_date from marts.fct_order_lines") == [
        ("2:1", date(2011, 1, 4))
    ]


def land_history(settings: Settings, days: int, first: date) -> None:
    """A hundred lines a day of 900 customers and 300 products; a line in 50 is a cancellation."""
    with connect(settings) as connection, connection.cursor() as cursor:
        cursor.execute(
            "insert into raw.order_lines"
            " select case when n %% 50 = 0 then 'C' else '' end || n / 10, 'P' || n * 7 %% 300,"
            " 'HOLDER', case when n %% 50 = 0 then -1 else 1 + n %% 5 end,"
            " day + n %% 100 * interval '1 minute', 1 + n %% 9, 17000 + n * 11 %% 900, 'Spain',"
            " day, day - date '2000-01-01', n %% 100"
            " from generate_series(0, %(days)s * 100 - 1) as n"
            " cross join lateral (select %(first)s + n / 100) as landed (day)",
            {"days": days, "first": first},
        )
        note_changed(cursor, "order_lines", {first + timedelta(days=n) for n in range(days)})


def lines_read(settings: Settings, administrator: Any, as_of: date) -> int:
    """The rows of ``fct_order_lines`` that a build reads, once for each time that it does."""
    administrator.execute("select pg_stat_reset()")
    build(settings, as_of)
    administrator.execute(
        "select seq_tup_read + idx_tup_fetch from pg_stat_user_tables"
        " where relname = 'fct_order_lines'"
    )
    return int(administrator.fetchone()[0])


def test_what_a_night_reads_of_the_fact_does_not_grow_with_history(
    warehouse: Settings, postgres_server: EmbeddedPostgres
) -> None:
    days, first = 200, date(2011, 1, 1)
    night = first + timedelta(days=days)
    land_history(warehouse, days, first)
    build(warehouse, night)
    database = urlparse(warehouse.warehouse_url).path.removeprefix("/")
    with (
        postgres_server.superuser(database) as connection,
        connection.cursor() as administrator,
    ):
        # as autovacuum has done by the next night
        administrator.execute("vacuum analyze")
        land_history(warehouse, 1, night)
        # no scan of it, though statistics choose how many rows a lookup takes in
        read = lines_read(warehouse, administrator, night + timedelta(days=1))
        assert 100 < read < days * 100 / 2

        # without the indexes it does
        for scan in ("indexscan", "bitmapscan", "indexonlyscan"):
            administrator.execute(f"alter database {database} set enable_{scan} = off")
        land_history(warehouse, 1, night + timedelta(days=1))
        assert lines_read(warehouse, administrator, night + timedelta(days=2)) > days * 100


def test_other_code_or_a_missing_mart_means_a_full_refresh(warehouse: Settings) -> None:
    land(warehouse, SOLD)
    build(warehouse, AS_OF)
    with connect(warehouse) as connection, connection.cursor() as cursor:
        cursor.execute("drop table marts.dim_products")

    assert build(warehouse, AS_OF).is_full_refresh
    assert rows(warehouse, "select product_id from marts.dim_products") == [("85123A",)]

    with connect(warehouse) as connection, connection.cursor() as cursor:
        cursor.execute("update ops.built_changes set project_sha256 = 'of other code'")
    assert build(warehouse, AS_OF).is_full_refresh


ANOTHER_AMOUNT: Line = (*PAID[:4], "1.00", "2011-01-03", 11, 2)


def test_a_duplicate_key_fails_by_name_and_holds_its_source_alone(warehouse: Settings) -> None:
    land(warehouse, SOLD)
    land(warehouse, PAID, ANOTHER_AMOUNT, source="card_transactions")
    land(warehouse, REPORTED, source="chargebacks")

    assert "fct_card_transactions" in build(warehouse, AS_OF).failed

    held = held_sources(warehouse, AS_OF)
    assert list(held) == ["card_transactions"]
    assert "model fct_card_transactions failed" in held["card_transactions"].what
    assert "Key (transaction_id)=(7)" in held["card_transactions"].what
    assert rows(warehouse, "select order_line_id from marts.fct_order_lines") == [("1:1",)]
    complete = [("chargebacks",), ("order_lines",)]
    assert rows(warehouse, "select source from marts.fct_landed_days order by 1") == complete
    assert rows(warehouse, "select source from ops.built_changes order by 1") == complete


def test_a_duplicate_key_of_the_one_source_that_is_read_fails_the_build(
    warehouse: Settings,
) -> None:
    land(warehouse, SOLD, (*RETURNED[:10], 1))

    with pytest.raises(NightshiftError) as failure:
        build(warehouse, AS_OF)

    assert "model fct_order_lines failed" in str(failure.value)
    assert "Key (order_line_id)=(1:1)" in str(failure.value)
    assert rows(warehouse, "select status from ops.runs where stage = 'transform'") == [("failed",)]
    built = rows(warehouse, "select source from ops.built_changes")
    assert ("order_lines",) not in built


def test_a_mart_that_a_held_source_never_got_is_not_checked(
    warehouse: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("quality.run", "io.held_sources"):
        monkeypatch.setattr(f"nightshift.{module}.USE_CASES", (CHURN, FRAUD))
    land(warehouse, SOLD, (*RETURNED[:10], 1))
    land(warehouse, PAID, source="card_transactions")
    land(warehouse, REPORTED, source="chargebacks")
    build(warehouse, AS_OF)
    assert list(held_sources(warehouse, AS_OF)) == ["order_lines"]
    assert rows(warehouse, "select to_regclass('marts.fct_order_lines')") == [(None,)]
    with connect(warehouse) as connection, connection.cursor() as cursor:
        cursor.execute(
            "insert into ops.landing_files (source, landed_date, path, sha256, bytes, status,"
            " rows_in, rows_loaded, rows_quarantined) values ('card_transactions', '2011-01-03',"
            " 'a.csv', '', 0, 'loaded', 1, 1, 0)"
        )

    found = check_marts(warehouse, AS_OF).outcomes

    assert {(each.table, each.success) for each in found} == {("fct_payments", True)}
    assert list(held_sources(warehouse, AS_OF)) == ["order_lines"]


def test_a_source_that_was_held_is_completed_by_the_next_build(warehouse: Settings) -> None:
    """Both the mart that failed and what it shares with the others, which went on without it."""
    land(warehouse, SOLD)
    land(warehouse, PAID, source="card_transactions")
    build(warehouse, AS_OF)
    land(warehouse, (*POSTAGE[:8], "2011-01-04", 2, 1))
    land(warehouse, (8, *PAID[1:5], "2011-01-04", 12, 1), source="card_transactions")
    land(warehouse, ANOTHER_AMOUNT, source="card_transactions")

    assert not build(warehouse, AS_OF).is_full_refresh

    days = "select source, landed_date::text from marts.fct_landed_days order by 1, 2"
    of_orders = [("order_lines", "2011-01-03"), ("order_lines", "2011-01-04")]
    assert rows(warehouse, days)[-3:] == [*of_orders, ("payments", "2011-01-03")]
    assert list(held_sources(warehouse, AS_OF)) == ["card_transactions"]
    assert rows(warehouse, "select transaction_id from marts.fct_card_transactions") == [(7,)]

    unland(warehouse, "_row_number = 2", source="card_transactions")
    assert not build(warehouse, AS_OF).is_full_refresh

    of_cards = [("card_transactions", "2011-01-03"), ("card_transactions", "2011-01-04")]
    joined = [("payments", "2011-01-03"), ("payments", "2011-01-04")]
    assert rows(warehouse, days) == [*of_cards, *of_orders, *joined]
    assert held_sources(warehouse, AS_OF) == {}
    assert rows(warehouse, "select count(*) from marts.fct_card_transactions") == [(2,)]
    assert rows(warehouse, "select * from intermediate.int_changed_rows") == []


def test_a_broken_test_fails_by_name_and_a_report_without_its_payment_warns(
    warehouse: Settings,
) -> None:
    build(warehouse, AS_OF)
    land(warehouse, SOLD, SOLD)
    land(warehouse, REPORTED, source="chargebacks")

    with pytest.raises(NightshiftError) as failure:
        build(warehouse, AS_OF)

    broken = "landed_row_is_unique_stg_order_lines_order_lines"
    assert f"test {broken} failed (1 rows break it)" in str(failure.value)
    assert f"{broken}.sql" in str(failure.value)
    ((kept,),) = rows(warehouse, "select result from ops.runs where status = 'failed'")
    warned = [name for name, status in kept["nodes"].items() if status == "warn"]
    assert len(warned) == 1
    assert warned[0].startswith("landed_in_fct_chargebacks_transaction_id")
    assert rows(warehouse, "select transaction_id from marts.fct_chargebacks") == [(7,)]


def test_a_missing_value_fails_the_model_by_name_and_leaves_the_mart(warehouse: Settings) -> None:
    land(warehouse, SOLD)
    build(warehouse, AS_OF)
    with connect(warehouse) as connection, connection.cursor() as cursor:
        cursor.execute("alter table raw.order_lines alter column price drop not null")
    land(warehouse, (*RETURNED[:5], None, *RETURNED[6:]))

    with pytest.raises(
        NightshiftError, match=r"model fct_order_lines failed.*unit_price"
    ) as failure:
        build(warehouse, AS_OF)

    assert rows(warehouse, "select order_line_id from marts.fct_order_lines") == [("1:1",)]
    assert "17850" not in str(failure.value)


def test_a_source_that_has_long_not_landed_fails_the_build(warehouse: Settings) -> None:
    """What lands at as_of makes no source fresh; what has never landed is not stale."""
    land(warehouse, SOLD, (*POSTAGE[:8], "2011-01-25", 2, 1))

    assert (
        build(warehouse, date(2011, 1, 24)).nodes[
            "source_order_lines_landed_within_5_days_of_as_of"
        ]
        == "warn"
    )
    with pytest.raises(NightshiftError, match="landed_within_21_days_of_as_of failed"):
        build(warehouse, date(2011, 1, 25))


def test_dbt_unit_tests_pass_and_models_are_described_and_keyed(warehouse: Settings) -> None:
    land(warehouse, SOLD)
    build(warehouse, AS_OF)

    result = unit_test(warehouse)

    assert set(result.nodes.values()) == {"pass"}
    assert len(result.nodes) >= 19
    manifest = json.loads((warehouse.state_dir / "dbt" / "target" / "manifest.json").read_text())
    nodes = manifest["nodes"].values()
    tested = {
        parent
        for node in nodes
        if node["resource_type"] == "test" and "landed_row_is_unique" in node["name"]
        for parent in node["depends_on"]["nodes"]
    }
    models = [node for node in nodes if node["resource_type"] == "model"]
    assert len(models) >= 14
    for model in models:
        assert model["description"], model["name"]
        assert model["columns"], model["name"]
        assert all(column["description"] for column in model["columns"].values()), model["name"]
        constraints = list(model["constraints"])
        for column in model["columns"].values():
            constraints += column["constraints"]
        is_keyed = "primary_key" in {constraint["type"] for constraint in constraints}
        if model["schema"] == "marts":
            assert model["contract"]["enforced"], model["name"]
            assert is_keyed, model["name"]
        elif model["name"] != "int_changed_rows":  # a note, in which a row may be repeated
            assert model["unique_id"] in tested, model["name"]


def test_a_second_build_waits_for_the_first(warehouse: Settings) -> None:
    land(warehouse, SOLD)
    ended = threading.Event()

    def second() -> None:
        build(warehouse, AS_OF)
        ended.set()

    with connect(warehouse) as connection, connection.cursor() as cursor:
        cursor.execute("select pg_advisory_lock(hashtextextended('nightshift.transform', 0))")
        connection.commit()
        thread = threading.Thread(target=second)
        thread.start()
        waiting: list[tuple[Any, ...]] = []
        while not waiting:
            cursor.execute("select 1 from pg_locks where locktype = 'advisory' and not granted")
            waiting = cursor.fetchall()
            connection.commit()
        assert not ended.is_set()
        assert rows(warehouse, "select to_regclass('marts.fct_order_lines')") == [(None,)]
    thread.join()

    assert ended.is_set()
    assert rows(warehouse, "select count(*) from marts.fct_order_lines") == [(1,)]


def test_a_build_waits_for_a_file_that_has_noted_its_day(warehouse: Settings) -> None:
    """Otherwise a later note, visible sooner, would move the watermark past it."""
    thread = threading.Thread(target=build, args=(warehouse, AS_OF))
    with connect(warehouse) as loading, loading.cursor() as cursor:
        note_changed(cursor, "order_lines", {"2011-01-03"})
        land(warehouse, LATE_COPY)
        thread.start()
        waiting: list[tuple[Any, ...]] = []
        while not waiting:
            cursor.execute(
                "select 1 from pg_locks where relation = 'ops.changed_days'::regclass"
                " and not granted"
            )
            waiting = cursor.fetchall()
        assert rows(warehouse, "select * from ops.built_changes") == []
    thread.join()

    noted = "select max(change_id) from ops.changed_days"
    assert rows(
        warehouse, "select change_id from ops.built_changes where source = 'order_lines'"
    ) == rows(warehouse, noted)
