"""Personal data reach staging, marts and readers as pseudonyms only."""

import hashlib
import hmac
from datetime import date

import psycopg2
import pytest
from psycopg2.errors import InsufficientPrivilege

from nightshift.contracts import SOURCES, load_contract
from nightshift.io.warehouse import connect, migrate
from nightshift.settings import Settings
from nightshift.transform.run import build

pytestmark = pytest.mark.integration

AS_OF = date(2011, 1, 5)


def fetched(settings: Settings, query: str) -> list[tuple[object, ...]]:
    with connect(settings) as connection, connection.cursor() as cursor:
        cursor.execute(query)
        return cursor.fetchall()


def test_a_pseudonym_is_hmac_sha_256_under_the_only_key(warehouse: Settings) -> None:
    ((inner, outer),) = fetched(warehouse, "select inner_key, outer_key from ops.pseudonym_keys")
    key = bytes(byte ^ 0x36 for byte in bytes(inner))
    assert bytes(byte ^ 0x5C for byte in bytes(outer)) == key
    assert len(set(key[:32])) > 16

    expected = hmac.new(key, "Zoë 12690".encode(), hashlib.sha256).hexdigest()[:32]
    migrate(warehouse)  # keeps the key
    asked = "select predictions.pseudonym(' Zoë 12690 '), predictions.pseudonym(' ')"
    assert fetched(warehouse, asked) == [(expected, None)]


def test_staging_and_marts_hold_pseudonyms_that_join_across_sources(warehouse: Settings) -> None:
    with connect(warehouse) as connection, connection.cursor() as cursor:
        for source in SOURCES:
            cursor.execute(load_contract(source).ddl())
        cursor.execute(
            "insert into raw.order_lines values ('1', 'A', '', 1, '2011-01-03', 2, ' 596', 'X',"
            " '2011-01-03', 1, 1), ('2', 'A', '', 1, '2011-01-03', 2, null, 'X',"
            " '2011-01-03', 1, 2)"
        )
        cursor.execute(
            "insert into raw.card_transactions values"
            " (7, '2011-01-03', '596', '31', 5, '2011-01-03', 2, 1)"
        )

    build(warehouse, AS_OF)

    ((pseudonym,),) = fetched(warehouse, "select predictions.pseudonym('596')")
    assert fetched(warehouse, "select customer_id from marts.fct_order_lines order by 1") == [
        (pseudonym,),
        (None,),
    ]
    joined = "select customer_id from marts.dim_customers join marts.fct_card_transactions"
    assert fetched(warehouse, f"{joined} using (customer_id)") == [(pseudonym,)]
    # whatever a contract classifies, no view or table after raw holds it as it landed
    for source in SOURCES:
        for column in load_contract(source).pii:
            landed = f"select nullif(trim({column}), '') from raw.{source}"
            onward = f"select {column} from staging.stg_{source} where {column} is not null"
            assert not set(fetched(warehouse, onward)) & set(fetched(warehouse, landed))
            # the key is looked up once a query, and the planner knows the expression
            plan = "\n".join(
                str(line) for (line,) in fetched(warehouse, f"explain verbose {onward}")
            )
            assert "InitPlan" in plan
            assert "sha256" in plan
            assert "pseudonym(" not in plan


def test_a_reader_can_ask_for_a_pseudonym_but_not_for_the_key(warehouse: Settings) -> None:
    ((pseudonym,),) = fetched(warehouse, "select predictions.pseudonym('12690')")
    reader = psycopg2.connect(warehouse.reader_url)
    reader.autocommit = True
    try:
        with reader.cursor() as cursor:
            cursor.execute("select predictions.pseudonym('12690')")
            assert cursor.fetchall() == [(pseudonym,)]
            for forbidden in (
                "select * from ops.pseudonym_keys",
                "select * from raw.order_lines",
                "select ops.pseudonym('12690', '', '')",
            ):
                with pytest.raises(InsufficientPrivilege):
                    cursor.execute(forbidden)
    finally:
        reader.close()
    assert fetched(
        warehouse,
        "select unnest(proacl)::text from pg_proc"
        " where oid = 'predictions.pseudonym(text)'::regprocedure order by 1",
    ) == [(f"nightshift_{role}=X/nightshift_writer",) for role in ("auditor", "reader", "writer")]
