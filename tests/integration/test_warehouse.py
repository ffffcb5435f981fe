"""The record of runs, and locks that a second run waits for."""

from concurrent.futures import ThreadPoolExecutor, TimeoutError
from contextlib import closing
from datetime import date
from typing import Any

import psycopg2
import pytest

from nightshift.errors import NightshiftError
from nightshift.identifiers import RESERVED
from nightshift.io.warehouse import connect, holding, migrate, recorded_run
from nightshift.services.postgres import EmbeddedPostgres
from nightshift.settings import Settings

AS_OF = date(2011, 6, 12)


def runs(settings: Settings) -> list[tuple[Any, ...]]:
    with closing(psycopg2.connect(settings.warehouse_url)) as connection:
        cursor = connection.cursor()
        cursor.execute(
            "select stage, use_case, as_of, status, result, error, ended_at is not null"
            " from ops.runs order by run_id"
        )
        return cursor.fetchall()


def test_a_run_that_ends_well_is_recorded_with_its_result(warehouse: Settings) -> None:
    with recorded_run(warehouse, "score", AS_OF, "churn") as run:
        assert [row[3] for row in runs(warehouse)] == ["running"]
        run.result = {"rows": 3, "on": AS_OF}
    assert runs(warehouse) == [
        ("score", "churn", AS_OF, "succeeded", {"rows": 3, "on": "2011-06-12"}, None, True)
    ]


def test_a_run_that_fails_is_recorded_with_the_reason(warehouse: Settings) -> None:
    with pytest.raises(NightshiftError), recorded_run(warehouse, "ingest", AS_OF):
        raise NightshiftError("the file is empty", "send it again")
    assert runs(warehouse) == [("ingest", None, AS_OF, "failed", {}, "the file is empty", True)]


def test_an_exclusive_lock_makes_the_second_wait_and_a_shared_one_does_not(
    warehouse: Settings,
) -> None:
    def take(exclusive: tuple[str, ...], shared: tuple[str, ...]) -> bool:
        with holding(warehouse, exclusive, shared):
            return True

    with ThreadPoolExecutor(2) as pool:
        with holding(warehouse, shared=["lake"]):
            assert pool.submit(take, (), ("lake",)).result(10)
            assert pool.submit(take, ("other",), ()).result(10)
            waiting = pool.submit(take, ("lake",), ())
            with pytest.raises(TimeoutError):
                waiting.result(0.5)
        assert waiting.result(10)


def test_migrating_again_changes_nothing(warehouse: Settings) -> None:
    migrate(warehouse)
    with connect(warehouse) as connection, connection.cursor() as cursor:
        cursor.execute("select count(*) from ops.runs")
        assert cursor.fetchone() == (0,)


def test_a_migration_that_is_done_waits_for_nobody(warehouse: Settings) -> None:
    with closing(psycopg2.connect(warehouse.warehouse_url)) as other:
        other.cursor().execute("lock table ops.runs in access exclusive mode")
        with ThreadPoolExecutor(1) as pool:
            pool.submit(migrate, warehouse).result(timeout=60)


def test_another_schema_is_applied(warehouse: Settings) -> None:
    with connect(warehouse) as connection, connection.cursor() as cursor:
        cursor.execute(
            "drop table ops.changed_days; alter table ops.publications drop column made_from;"
            " comment on schema ops is 'schema.sql of old'"
        )
    migrate(warehouse)
    with connect(warehouse) as connection, connection.cursor() as cursor:
        cursor.execute("select count(*) from ops.changed_days")
        assert cursor.fetchone() == (0,)
        cursor.execute("select count(made_from) from ops.publications")
        assert cursor.fetchone() == (0,)


def test_a_role_that_comes_later_gets_its_rights(
    warehouse: Settings, postgres_server: EmbeddedPostgres
) -> None:
    may = "select has_function_privilege('nightshift_auditor',"
    may += " 'predictions.receipt(text, text, date, text, jsonb)', 'execute')"
    with postgres_server.superuser(warehouse.warehouse_url.rsplit("/", 1)[1]) as connection:
        cursor = connection.cursor()
        cursor.execute("drop owned by nightshift_auditor")
        # as where the role was missing when the schema was applied
        cursor.execute(
            "select replace(obj_description('ops'::regnamespace), 'nightshift_auditor, ', '')"
        )
        cursor.execute("comment on schema ops is %s", cursor.fetchone())
        cursor.execute(may)
        assert cursor.fetchone() == (False,)
        migrate(warehouse)
        cursor.execute(may)
        assert cursor.fetchone() == (True,)


def test_the_reserved_words_are_those_of_the_server(warehouse: Settings) -> None:
    with connect(warehouse) as connection, connection.cursor() as cursor:
        # R: reserved; T: may only name types and functions
        cursor.execute("select word from pg_get_keywords() where catcode in ('R', 'T')")
        assert {word for (word,) in cursor.fetchall()} == RESERVED
