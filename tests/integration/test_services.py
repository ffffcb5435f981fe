"""The embedded Postgres and the stack around it, for real."""

import json
import shutil
import socket
import stat
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psycopg2
import pytest

from nightshift import doctor
from nightshift.errors import NightshiftError
from nightshift.services import airflow
from nightshift.services import run as services
from nightshift.services.postgres import EmbeddedPostgres, free_port
from nightshift.services.processes import ServiceProcess, stop_all
from nightshift.settings import Settings, load_settings


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


@pytest.mark.parametrize("replicable", [False, True])
def test_what_is_loaded_into_an_emptied_table_is_logged_for_standbys_only(
    own_server: EmbeddedPostgres, replicable: bool
) -> None:
    own_server.replicable = replicable
    own_server.start()
    with own_server.superuser() as connection, connection.cursor() as cursor:
        cursor.execute("create table loaded (text text)")
        cursor.execute("select pg_current_wal_insert_lsn()")
        (before,) = cursor.fetchone()
        cursor.execute(
            "begin; truncate loaded;"
            "insert into loaded select repeat('x', 100) from generate_series(1, 50000); commit;"
            "select pg_wal_lsn_diff(pg_current_wal_insert_lsn(), %s)",
            (before,),
        )
        (logged,) = cursor.fetchone()
    assert (logged > 5_000_000) == replicable
    assert (logged < 500_000) == (not replicable)


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


def test_up_gives_a_stack_whose_every_check_passes(airflow_stack: Settings, tmp_path: Path) -> None:
    empty = airflow_stack.model_copy(update={"landing": tmp_path})
    failed = {check.name for check in doctor.check(empty) if not check.is_ok}
    assert failed == {"landing zone"}
    assert all(service.is_running for service in services.status(airflow_stack))


def test_up_again_changes_no_process_and_no_secret(airflow_stack: Settings) -> None:
    pid_files = sorted((airflow_stack.state_dir / "run").glob("*.pid"))
    before = [file.read_text() for file in [*pid_files, airflow_stack.services_file]]
    services.up(airflow_stack)
    assert [file.read_text() for file in [*pid_files, airflow_stack.services_file]] == before
    assert len(pid_files) == 4


def test_the_secrets_are_closed_to_others(airflow_stack: Settings) -> None:
    assert stat.S_IMODE(airflow_stack.services_file.stat().st_mode) == 0o600
    passwords = airflow_stack.state_dir / "airflow" / "passwords.json"
    assert stat.S_IMODE(passwords.stat().st_mode) == 0o600


def test_airflow_lets_in_only_who_has_the_password(airflow_stack: Settings) -> None:
    url, username, password = services.airflow_login(airflow_stack)
    token = airflow.log_in(url, username, str(password))
    assert airflow.log_in(url, username, "wrong") is None
    assert airflow.request(url, "GET", "/api/v2/pools/spark")[0] == 401
    status, pool = airflow.request(url, "GET", "/api/v2/pools/spark", token=str(token))
    assert (status, pool["slots"]) == (200, 1)


def test_the_embedded_roles_are_no_superusers(airflow_stack: Settings) -> None:
    for url in (airflow_stack.warehouse_url, airflow_stack.reader_url):
        with closing(psycopg2.connect(url)) as connection, connection.cursor() as cursor:
            cursor.execute("select rolsuper, rolcreaterole from pg_roles where rolname = user")
            assert cursor.fetchone() == (False, False)
            # each its own database, and what Postgres brings along is nobody's
            cursor.execute(
                "select rolname, datname from pg_roles, pg_database where not rolsuper"
                " and datallowconn and rolname !~ '^pg_'"
                " and has_database_privilege(rolname, datname, 'connect')"
                " order by 1"
            )
            assert cursor.fetchall() == [
                ("airflow", "airflow"),
                ("mlflow", "mlflow"),
                ("nightshift_reader", "warehouse"),
                ("nightshift_writer", "warehouse"),
            ]


def test_a_component_that_is_down_is_named_and_up_restarts_it(airflow_stack: Settings) -> None:
    triggerer = ServiceProcess("airflow-triggerer", airflow_stack.state_dir)
    stop_all([triggerer])
    assert not triggerer.is_running()
    services.up(airflow_stack)
    assert triggerer.is_running()


def test_a_stopped_postgres_is_reported_with_a_remedy_and_down_keeps_the_data() -> None:
    root = Path(tempfile.mkdtemp(prefix="nightshift-test-"))
    settings = load_settings(_env_file=None, state_dir=root / "state", postgres_port=15700)
    try:
        services.up(settings, with_airflow=False)
        checks = {check.name: check for check in doctor.check(settings)}
        assert checks["warehouse"].is_ok
        assert checks["reader"].is_ok
        assert checks["mlflow"].is_ok
        assert (checks["airflow"].is_ok, "make up" in checks["airflow"].remedy) == (False, True)
        secrets = json.loads(settings.services_file.read_text())

        assert services.down(settings) == ["postgres"]
        assert services.down(settings) == []
        checks = {check.name: check for check in doctor.check(settings)}
        assert not checks["warehouse"].is_ok
        assert "make up" in checks["warehouse"].remedy

        # another program takes the port meanwhile: the next one is used, the passwords stay
        with closing(socket.socket()) as squatter:
            squatter.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            squatter.bind(("127.0.0.1", secrets["postgres_port"]))
            squatter.listen()
            services.up(settings, with_airflow=False)
        again = json.loads(settings.services_file.read_text())
        assert again["postgres_port"] > secrets["postgres_port"]
        assert again["writer_password"] == secrets["writer_password"]

        with pytest.raises(NightshiftError, match="deletes"):
            services.reset(settings)
        assert services.status(settings)[0].is_running
        services.reset(settings, yes=True)
        assert not settings.services_file.exists()
        assert not (settings.state_dir / "postgres").exists()
    finally:
        services.down(settings)
        shutil.rmtree(root)


def test_a_lost_secrets_file_is_a_clear_refusal() -> None:
    root = Path(tempfile.mkdtemp(prefix="nightshift-test-"))
    settings = load_settings(_env_file=None, state_dir=root / "state", postgres_port=15750)
    (root / "state" / "postgres").mkdir(parents=True)
    (root / "state" / "postgres" / "PG_VERSION").write_text("18\n")
    with pytest.raises(NightshiftError, match=r"services\.json is gone.*\n.*make reset"):
        services.up(settings, with_airflow=False)
    shutil.rmtree(root)
