"""The embedded Postgres and the stack around it, for real."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg2
import pytest

from nightshift.services.postgres import EmbeddedPostgres, free_port
from nightshift.settings import Settings


@pytest.fixture
def own_server() -> Iterator[EmbeddedPostgres]:
    """A server that a test may stop, not started yet."""
    root = Path(tempfile.mkdtemp(prefix="nightshift-test-"))
    server = EmbeddedPostgres(root / "data", free_port(15600), "right", durable=False)
    yield server
    server.stop()
    shutil.rmtree(root)


def test_start_stop_and_restart_keep_the_data(own_server: EmbeddedPostgres) -> None:
    assert not own_server.is_running()
    own_server.start()
    own_server.start()
    with own_server.superuser() as connection, connection.cursor() as cursor:
        cursor.execute("create table kept as select 42 as answer")
        cursor.execute("show server_version")
        assert cursor.fetchone()[0].startswith("18")
    own_server.stop()
    assert not own_server.is_running()
    own_server.start()
    with own_server.superuser() as connection, connection.cursor() as cursor:
        cursor.execute("select answer from kept")
        assert cursor.fetchone() == (42,)


def test_a_wrong_password_is_refused(own_server: EmbeddedPostgres) -> None:
    own_server.start()
    for password in ("wrong", ""):
        with pytest.raises(psycopg2.OperationalError, match="password"):
            psycopg2.connect(own_server.url("postgres", "postgres", password))


def test_each_test_has_a_fresh_migrated_warehouse(warehouse: Settings) -> None:
    with psycopg2.connect(warehouse.warehouse_url) as connection, connection.cursor() as cursor:
        cursor.execute("select count(*) from ops.runs")
        assert cursor.fetchone() == (0,)
        cursor.execute("select rolsuper, rolcreatedb from pg_roles where rolname = current_user")
        assert cursor.fetchone() == (False, False)


def test_the_reader_sees_no_table_of_the_writer(warehouse: Settings) -> None:
    with psycopg2.connect(warehouse.reader_url) as connection, connection.cursor() as cursor:
        with pytest.raises(psycopg2.errors.InsufficientPrivilege):
            cursor.execute("select * from ops.runs")
        connection.rollback()
        with pytest.raises(psycopg2.errors.InsufficientPrivilege):
            cursor.execute("create table public.mine (i int)")


def test_each_test_may_have_a_model_store_of_its_own(tracked_warehouse: Settings) -> None:
    from mlflow import MlflowClient

    assert MlflowClient(tracked_warehouse.mlflow_uri).search_registered_models() == []
