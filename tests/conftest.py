"""The real services that tests run on: a Postgres 18 of the session's own, a database a test."""

import email.policy
import json
import logging
import os
import shutil
import sys
import tempfile
import threading
import uuid
from collections.abc import Iterator
from email.message import EmailMessage
from email.parser import BytesParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult, LoginPassword
from xdist.scheduler import LoadScopeScheduling

from nightshift.io import warehouse as warehouse_io
from nightshift.services import airflow
from nightshift.services import run as services
from nightshift.services.postgres import EmbeddedPostgres, free_port
from nightshift.settings import PREFIX, PROJECT_ROOT, Settings, load_settings
from nightshift.use_cases import CHURN

WRITER, READER, PASSWORD = "nightshift_writer", "nightshift_reader", "only-for-tests"
MAIL_PASSWORD, WEBHOOK_SECRET = "canary-of-the-mail-server", "canary-of-the-webhook"
"""Looked for, by test_secrets.py, in all that a session of nights has left."""


LONGEST = (
    "test_nightly.py", "test_airflow.py", "test_browser.py", "test_services.py",
    "test_add_your_own.py", "test_training.py", "test_chaos.py",
)  # fmt: skip
"""Files that take minutes: begun first, so that no worker is left with one of them at the end."""
ON_AIRFLOW = ("test_airflow.py", "test_browser.py", "test_services.py", "test_secrets.py")
"""Files whose tests use the running Airflow, which takes half a minute to start."""

# A worker of xdist has no main module of its own, which PySpark, as Great Expectations imports it,
# takes for a run of its doctests, and exits.
if not hasattr(sys.modules["__main__"], "__file__"):
    sys.modules["__main__"].__file__ = __file__


def pytest_addoption(parser: pytest.Parser) -> None:
    """For ``make screenshots``."""
    parser.addoption("--screenshots", metavar="FOLDER", help="where the browser's pictures go")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """``-m "not integration"`` leaves out what lies in tests/integration."""
    for item in items:
        if "integration" in item.path.relative_to(Path(__file__).parent).parts:
            item.add_marker(pytest.mark.integration)
    items.sort(key=lambda item: item.path.name not in LONGEST)


class _ByFile(LoadScopeScheduling):
    """A file's tests stay in one worker, and so do all that use the running Airflow."""

    def _split_scope(self, nodeid: str) -> str:
        file = Path(nodeid.split("::")[0]).name
        return "airflow" if file in ON_AIRFLOW else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    """For ``make test``, which runs two workers."""
    return _ByFile(config, log)


def worker_port(port: int) -> int:
    """A free port from ``port`` on, in a range of the test worker's own."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")
    return free_port(port + 100 * int(worker))


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


@pytest.fixture(autouse=True)
def _temporary_files_of_the_system() -> Iterator[None]:
    """What a stage in this process has chosen for temporary files goes with its test."""
    before = os.environ.get("TMPDIR")
    yield
    tempfile.tempdir = None
    if before is None:
        os.environ.pop("TMPDIR", None)
    else:
        os.environ["TMPDIR"] = before


@pytest.fixture
def logging_as_before() -> Iterator[None]:
    """The command line takes over the root logger; give it back."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[EmbeddedPostgres]:
    """A running, empty server with the three roles; not durable; removed at the end."""
    # not under pytest's own folder: it is closed to the account that runs Postgres for root
    root = Path(tempfile.mkdtemp(prefix="nightshift-test-"))
    server = EmbeddedPostgres(root / "data", worker_port(15432), PASSWORD, durable=False)
    try:
        server.start()
        server.ensure_role(WRITER, PASSWORD)
        server.ensure_role(READER, PASSWORD)
        server.ensure_group("nightshift_auditor")
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


@pytest.fixture
def registry_of_churn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Churn alone is listed, so that what is wrong with order lines holds all that there is."""
    for module in ("ingest.run", "quality.run", "io.held_sources"):
        monkeypatch.setattr(f"nightshift.{module}.USE_CASES", (CHURN,))


@pytest.fixture
def empty_mart(warehouse: Settings) -> Settings:
    """``warehouse`` with the mart of order lines, and the days that landed in it, both empty."""
    from chaos.shop import MART

    with warehouse_io.connect(warehouse) as connection:
        connection.cursor().execute(MART)
    return warehouse


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


class AlertSinks:
    """A mail server and a chat's incoming webhook, and what has arrived at them.

    While ``is_refusing`` both answer with an error.
    """

    def __init__(self) -> None:
        self.mails: list[EmailMessage] = []
        self.posts: list[dict[str, Any]] = []
        self.is_refusing = False
        sinks = self

        class Webhook(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if not sinks.is_refusing:
                    sinks.posts.append(json.loads(body))
                self.send_response(500 if sinks.is_refusing else 200)
                self.end_headers()
                self.wfile.write(b"refused" if sinks.is_refusing else b"ok")

            def log_message(self, *args: object) -> None:
                """Not to stderr."""

        self.webhook = ThreadingHTTPServer(("127.0.0.1", 0), Webhook)
        self.smtp = Controller(
            self, hostname="127.0.0.1", port=worker_port(18025), auth_require_tls=False,
            authenticator=lambda *login: AuthResult(
                success=login[-1] == LoginPassword(b"nightshift", MAIL_PASSWORD.encode())
            ),
        )  # fmt: skip

    async def handle_DATA(self, server: object, session: object, envelope: Any) -> str:
        """Called by aiosmtpd with a whole mail."""
        if self.is_refusing:
            return "451 try again later"
        parser = BytesParser(policy=email.policy.default)
        self.mails.append(parser.parsebytes(envelope.content))
        return "250 OK"

    def connections(self) -> dict[str, dict[str, Any]]:
        """Airflow's connections to the two: fields by id."""
        smtp = {
            "conn_type": "smtp",
            "host": "127.0.0.1",
            "port": self.smtp.port,
            "login": "nightshift",
            "password": MAIL_PASSWORD,
            "extra": json.dumps(
                {
                    "from_email": "nightshift@example.com",
                    "disable_ssl": True,
                    "disable_tls": True,
                    "timeout": 10,
                }
            ),
        }
        url = f"http://127.0.0.1:{self.webhook.server_port}/services/{WEBHOOK_SECRET}"
        webhook = {"conn_type": "slackwebhook", "password": url}
        return {"smtp_default": smtp, "slack_default": webhook}


@pytest.fixture(scope="session")
def running_sinks() -> Iterator[AlertSinks]:
    """The two servers, for the session."""
    sinks = AlertSinks()
    thread = threading.Thread(target=sinks.webhook.serve_forever)
    thread.start()
    sinks.smtp.start()
    yield sinks
    sinks.smtp.stop()
    sinks.webhook.shutdown()
    thread.join()
    sinks.webhook.server_close()


@pytest.fixture
def alert_sinks(running_sinks: AlertSinks, monkeypatch: pytest.MonkeyPatch) -> AlertSinks:
    """The two, empty, and known to Airflow's connections in this process."""
    for name, fields in running_sinks.connections().items():
        monkeypatch.setenv(f"AIRFLOW_CONN_{name.upper()}", json.dumps(fields))
    running_sinks.mails.clear()
    running_sinks.posts.clear()
    running_sinks.is_refusing = False
    return running_sinks


BUNDLES = [
    {
        "name": name,
        "classpath": "airflow.dag_processing.bundles.local.LocalDagBundle",
        "kwargs": {"path": str(folder)},
    }
    for name, folder in (
        ("dags-folder", PROJECT_ROOT / "dags"),
        ("tests", Path(__file__).parent / "integration" / "dags"),
    )
]


@pytest.fixture(scope="session")
def airflow_stack(running_sinks: AlertSinks) -> Iterator[Settings]:
    """Settings of a full stack (Postgres, MLflow's store, Airflow) on a state folder of its own.

    Starting it takes half a minute, so the session shares one; its landing zone starts empty, its
    alerts go to the sinks, and it has the DAGs of tests/integration/dags too.
    """
    root = Path(tempfile.mkdtemp(prefix="nightshift-stack-"))
    (root / "landing").mkdir()
    stack = load_settings(
        _env_file=None,
        state_dir=root / "state",
        landing=root / "landing",
        lake_buckets=4,  # of some hundred customers
        postgres_port=worker_port(15900),
        airflow_port=worker_port(18080),
        alert_email="on-call@example.com",
        alert_webhook=True,
    )
    try:
        with pytest.MonkeyPatch.context() as patched:
            patched.setenv("AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST", json.dumps(BUNDLES))
            # at midnight a session would have a night, or a training, that no test has asked for
            patched.setenv("AIRFLOW__SCHEDULER__USE_JOB_SCHEDULE", "False")
            services.up(stack)
        url, username, password = services.airflow_login(stack)
        token = airflow.log_in(url, username, password or "")
        for name, fields in running_sinks.connections().items():
            body = {"connection_id": name, **fields}
            status, answer = airflow.request(url, "POST", "/api/v2/connections", body, token or "")
            assert status == 201, answer
        yield stack
    finally:
        services.down(stack)
        shutil.rmtree(root)
