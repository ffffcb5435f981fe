"""dbt builds the marts on the real warehouse, from literal landed rows."""

import threading
from datetime import date
from decimal import Decimal
from typing import Any

import pytest

from nightshift.contracts import load_contract
from nightshift.errors import NightshiftError
from nightshift.io.warehouse import connect
from nightshift.settings import Settings
from nightshift.transform.run import build, unit_test

pytestmark = pytest.mark.integration

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


def land(settings: Settings, *lines: Line) -> None:
    with connect(settings) as connection, connection.cursor() as cursor:
        cursor.execute(load_contract("order_lines").ddl())
        for line in lines:
            cursor.execute(
                f"insert into raw.order_lines values ({', '.join(['%s'] * len(line))})", line
            )


def rows(settings: Settings, query: str) -> list[tuple[Any, ...]]:
    with connect(settings) as connection, connection.cursor() as cursor:
        cursor.execute(query)
        return cursor.fetchall()


def test_marts_hold_each_distinct_line_once(warehouse: Settings) -> None:
    land(warehouse, SOLD, SOLD_TWICE, RETURNED, POSTAGE, LATE_COPY)

    result = build(warehouse, AS_OF)

    assert result.failed == ()
    assert result.nodes["fct_order_lines"] == "success"
    assert result.seconds.keys() == result.nodes.keys()
    assert rows(
        warehouse,
        "select order_line_id, product_id, is_cancellation, is_product, description, line_amount,"
        " customer_id, landed_date from marts.fct_order_lines order by order_line_id",
    ) == [
        ("1:1", "85123A", False, True, "HOLDER", Decimal("15.3000"), "17850", date(2011, 1, 3)),
        ("1:3", "85123A", True, True, "HOLDER", Decimal("-5.1000"), "17850", date(2011, 1, 3)),
        ("1:4", "POST", False, False, None, Decimal("18.0000"), None, date(2011, 1, 3)),
    ]
    assert rows(warehouse, "select customer_id, country from marts.dim_customers") == [
        ("17850", "Spain")
    ]
    assert rows(
        warehouse, "select product_id, is_product from marts.dim_products order by product_id"
    ) == [("85123A", True), ("POST", False)]
    ((result_kept,),) = rows(warehouse, "select result from ops.runs where stage = 'transform'")
    assert result_kept["nodes"]["fct_order_lines"] == "success"


def test_marts_have_the_columns_and_schemas_that_others_read(warehouse: Settings) -> None:
    land(warehouse, SOLD)

    build(warehouse, AS_OF)

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
    ) == [(1,)]
    assert rows(
        warehouse,
        "select table_schema, table_name from information_schema.tables"
        " where table_schema in ('staging', 'intermediate', 'marts') order by 1, 2",
    ) == [
        ("intermediate", "int_order_lines_classified"),
        ("intermediate", "int_order_lines_deduplicated"),
        ("marts", "dim_customers"),
        ("marts", "dim_products"),
        ("marts", "fct_order_lines"),
        ("staging", "stg_order_lines"),
    ]


def test_a_duplicate_that_lands_later_changes_no_earlier_row(warehouse: Settings) -> None:
    land(warehouse, SOLD, RETURNED)
    build(warehouse, AS_OF)
    before = rows(warehouse, "select * from marts.fct_order_lines order by order_line_id")

    land(warehouse, LATE_COPY)
    build(warehouse, AS_OF)

    after = rows(warehouse, "select * from marts.fct_order_lines order by order_line_id")
    assert after == before
    assert len(after) == 2


def test_an_older_as_of_does_not_shrink_the_marts(warehouse: Settings) -> None:
    land(warehouse, SOLD, (*POSTAGE[:8], "2011-01-04", 2, 1))

    build(warehouse, date(2011, 1, 4))

    assert rows(warehouse, "select count(*) from marts.fct_order_lines") == [(2,)]


def test_a_duplicate_key_fails_the_build_by_name(warehouse: Settings) -> None:
    same_row_of_the_file = (*RETURNED[:10], 1)
    land(warehouse, SOLD, same_row_of_the_file)

    with pytest.raises(NightshiftError) as failure:
        build(warehouse, AS_OF)

    assert "test unique_fct_order_lines_order_line_id failed (1 rows break it)" in str(
        failure.value
    )
    assert "unique_fct_order_lines_order_line_id.sql" in str(failure.value)
    assert rows(warehouse, "select status from ops.runs where stage = 'transform'") == [("failed",)]


def test_a_missing_value_fails_the_model_by_name_and_leaves_the_mart(warehouse: Settings) -> None:
    land(warehouse, SOLD)
    build(warehouse, AS_OF)
    with connect(warehouse) as connection, connection.cursor() as cursor:
        cursor.execute("alter table raw.order_lines alter column price drop not null")
    land(warehouse, (*RETURNED[:5], None, *RETURNED[6:]))

    with pytest.raises(NightshiftError, match=r"model fct_order_lines failed.*unit_price"):
        build(warehouse, AS_OF)

    assert rows(warehouse, "select order_line_id from marts.fct_order_lines") == [("1:1",)]


def test_a_source_that_has_long_not_landed_fails_the_build(warehouse: Settings) -> None:
    land(warehouse, SOLD)

    assert (
        build(warehouse, date(2011, 1, 24)).nodes[
            "source_order_lines_landed_within_5_days_of_as_of"
        ]
        == "warn"
    )
    with pytest.raises(NightshiftError, match="landed_within_21_days_of_as_of failed"):
        build(warehouse, date(2011, 1, 25))


def test_what_lands_after_as_of_makes_no_source_fresh(warehouse: Settings) -> None:
    land(warehouse, SOLD, (*POSTAGE[:8], "2011-01-25", 2, 1))

    with pytest.raises(NightshiftError, match="landed_within_21_days_of_as_of failed"):
        build(warehouse, date(2011, 1, 25))


def test_dbt_unit_tests_pass(warehouse: Settings) -> None:
    land(warehouse, SOLD)
    build(warehouse, AS_OF)

    result = unit_test(warehouse)

    assert set(result.nodes.values()) == {"pass"}
    assert len(result.nodes) >= 8


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
