"""The real services that tests run on: a Postgres 18 of the session's own, a database a test."""

import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from nightshift.io import warehouse as warehouse_io
from nightshift.services import run as services
from nightshift.services.postgres import EmbeddedPostgres, free_port
from nightshift.settings import PREFIX, Settings, load_settings

WRITER, READER, PASSWORD = "nightshift_writer", "nightshift_reader", "only-for-tests"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """``-m "not integration"`` leaves out what lies in tests/integration."""
    for item in items:
        if "integration" in item.path.relative_to(Path(__file__).parent).parts:
            item.add_marker(pytest.mark.integration)


def settings_for(server: EmbeddedPostgres, database: str, root: Path, **more: object) -> Settings:
    """Settings of a warehouse on the test server, with every folder under ``root``."""
    return load_settings(
        _env_file=None,
        state_dir=root / "state",
        landing=root / "landing",
        lake=root / "lake",
        database_url=server.url(database, WRITER, PASSWORD),
        reader_database_url=server.url(database, READER, PASSWORD),
        **more,
    )


@pytest.fixture(scope="session", autouse=True)
def _no_settings_of_the_user() -> None:
    """What the developer has exported must not reach a test."""
    for name in [name for name in os.environ if name.startswith(PREFIX)]:
        del os.environ[name]


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[EmbeddedPostgres]:
    """A running, empty server with the two roles; not durable; removed at the end."""
    # not under pytest's own folder: it is closed to the account that runs Postgres for root
    root = Path(tempfile.mkdtemp(prefix="nightshift-test-"))
    server = EmbeddedPostgres(root / "data", free_port(15432), PASSWORD, durable=False)
    try:
        server.start()
        server.ensure_role(WRITER, PASSWORD)
        server.ensure_role(READER, PASSWORD)
        yield server
    finally:
        server.stop()
        shutil.rmtree(root)


@pytest.fixture(scope="session")
def migrated_template(
    postgres_server: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory
) -> str:
    """Name of a migrated database, of which each test's own is a copy."""
    postgres_server.ensure_database("migrated", WRITER)
    root = tmp_path_factory.mktemp("template")
    warehouse_io.migrate(settings_for(postgres_server, "migrated", root))
    return "migrated"


@pytest.fixture
def warehouse(
    postgres_server: EmbeddedPostgres, migrated_template: str, tmp_path: Path
) -> Iterator[Settings]:
    """Settings of a fresh, migrated warehouse; folders under the test's ``tmp_path``."""
    name = f"warehouse_{uuid.uuid4().hex[:12]}"
    postgres_server.ensure_database(name, WRITER, READER, template=migrated_template)
    (tmp_path / "landing").mkdir()
    yield settings_for(postgres_server, name, tmp_path)
    with postgres_server.superuser() as connection, connection.cursor() as cursor:
        cursor.execute(f"drop database {name} with (force)")


@pytest.fixture(scope="session")
def mlflow_template(postgres_server: EmbeddedPostgres) -> str:
    """Name of a database with MLflow's tables: making them takes seconds, copying them does not."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    postgres_server.ensure_database("mlflow_template", WRITER)
    uri = postgres_server.url("mlflow_template", WRITER, PASSWORD, "postgresql+psycopg2")
    store = SqlAlchemyStore(uri, "file:///nonexistent")
    store.engine.dispose()
    return "mlflow_template"


@pytest.fixture
def tracked_warehouse(
    warehouse: Settings, postgres_server: EmbeddedPostgres, mlflow_template: str
) -> Iterator[Settings]:
    """``warehouse`` with an MLflow store of its own, in Postgres."""
    name = f"mlflow_{uuid.uuid4().hex[:12]}"
    postgres_server.ensure_database(name, WRITER, template=mlflow_template)
    uri = postgres_server.url(name, WRITER, PASSWORD, "postgresql+psycopg2")
    yield warehouse.model_copy(update={"mlflow_tracking_uri": uri})
    with postgres_server.superuser() as connection, connection.cursor() as cursor:
        cursor.execute(f"drop database {name} with (force)")


@pytest.fixture(scope="session")
def airflow_stack() -> Iterator[Settings]:
    """Settings of a full stack (Postgres, MLflow's store, Airflow) on a state folder of its own.

    Starting it takes half a minute, so the session shares one; its landing zone starts empty.
    """
    root = Path(tempfile.mkdtemp(prefix="nightshift-stack-"))
    (root / "landing").mkdir()
    stack = load_settings(
        _env_file=None,
        state_dir=root / "state",
        landing=root / "landing",
        postgres_port=15900,
        airflow_port=18080,
    )
    try:
        services.up(stack)
        yield stack
    finally:
        services.down(stack)
        shutil.rmtree(root)
