"""Is everything there that a night needs? Each answer that is no comes with a remedy."""

import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import psycopg2

from nightshift.alerts.run import connections
from nightshift.contracts import SOURCES
from nightshift.errors import NightshiftError, SettingError
from nightshift.io.landing import landing_zone
from nightshift.services import airflow
from nightshift.services.java import LEAST, find_java
from nightshift.services.run import READER, WRITER, airflow_login, plain_url
from nightshift.settings import PROJECT_ROOT, Settings

LEAST_MEMORY_GIB = 4.0
LEAST_DISK_GIB = 5.0
_GIB = 2**30


@dataclass(frozen=True)
class Check:
    """One answer. ``remedy`` is what to do, empty when ``is_ok``."""

    name: str
    is_ok: bool
    detail: str
    remedy: str = ""


def _check(name: str, is_ok: bool, detail: str, remedy: str) -> Check:
    return Check(name, is_ok, detail, "" if is_ok else remedy)


def check(settings: Settings) -> list[Check]:
    """Every prerequisite, then every service. Reads only; starts and changes nothing."""
    questions: list[tuple[str, Callable[[Settings], Check]]] = [
        ("python", _python),
        ("uv", _uv),
        ("java", _java),
        ("memory", _memory),
        ("disk", _disk),
        ("landing zone", _landing),
        ("warehouse", _warehouse),
        ("reader", _reader),
        ("mlflow", _mlflow),
        ("airflow", _airflow),
        ("alerts", _alerts),
    ]
    answers = []
    for name, question in questions:
        try:
            answers.append(question(settings))
        except NightshiftError as error:
            answers.append(Check(name, False, error.what, error.remedy or "run `make up`"))
    return answers


def _python(settings: Settings) -> Check:
    found = ".".join(map(str, sys.version_info[:3]))
    return _check("python", sys.version_info[:2] == (3, 12), found, "run `make setup`")


def _uv(settings: Settings) -> Check:
    places = [shutil.which("uv"), PROJECT_ROOT / ".nightshift" / "tools" / "bin" / "uv"]
    found = next((str(place) for place in places if place and Path(place).exists()), None)
    return _check("uv", found is not None, found or "not found", "run `make setup`")


def _java(settings: Settings) -> Check:
    found = find_java()
    if found is None:
        return Check("java", False, "not found", f"run `make setup`, or install Java {LEAST}")
    java, major = found
    remedy = f"run `make setup`, or set JAVA_HOME to a Java {LEAST} or newer"
    return _check("java", major >= LEAST, f"Java {major} at {java}", remedy)


def _memory(settings: Settings) -> Check:
    gib = psutil.virtual_memory().total / _GIB
    remedy = f"{LEAST_MEMORY_GIB:.0f} GiB are needed for Airflow and Spark beside each other"
    return _check("memory", gib >= LEAST_MEMORY_GIB, f"{gib:.1f} GiB", remedy)


def _disk(settings: Settings) -> Check:
    folder = settings.state_dir
    while not folder.exists():
        folder = folder.parent
    gib = shutil.disk_usage(folder).free / _GIB
    remedy = f"free {LEAST_DISK_GIB:.0f} GiB, or set NIGHTSHIFT_STATE_DIR to a larger disk"
    return _check("disk", gib >= LEAST_DISK_GIB, f"{gib:.1f} GiB free at {folder}", remedy)


def _landing(settings: Settings) -> Check:
    zone = landing_zone(settings)
    try:
        days = sum(
            entry.is_folder and entry.name.startswith("ds=")
            for source in SOURCES
            for entry in zone.entries(source)
        )
    except SettingError as error:
        return Check("landing zone", False, error.what, error.remedy)
    remedy = (
        f"put files at {zone.url}/<source>/ds=YYYY-MM-DD/, run `nightshift demo-data`, or set"
        " NIGHTSHIFT_LANDING to where your files are"
    )
    return _check("landing zone", days > 0, f"{days} landed days in {zone.url}", remedy)


def _role(name: str, url: str, expected: str, must_write: bool) -> Check:
    setting = "NIGHTSHIFT_DATABASE_URL" if must_write else "NIGHTSHIFT_READER_DATABASE_URL"
    try:
        connection = psycopg2.connect(url, connect_timeout=5)
    except psycopg2.OperationalError as error:
        detail = " ".join(str(error).split())
        return Check(name, False, detail, f"run `make up`, or correct {setting}")
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute(
                "select current_user, has_database_privilege(current_database(), 'create'),"
                " rolsuper, current_setting('server_version')"
                " from pg_roles where rolname = current_user"
            )
            row = cursor.fetchone()
    finally:
        connection.close()
    assert row is not None
    user, may_create, is_super, version = row
    detail = f"PostgreSQL {version} as {user}"
    if must_write:
        remedy = f"grant create on the database to {user}, or use {expected} in {setting}"
        return _check(name, may_create, f"{detail}, may create schemas: {may_create}", remedy)
    remedy = f"a reader must not be able to write: use {expected} in {setting}"
    is_harmless = not may_create and not is_super
    return _check(name, is_harmless, f"{detail}, may write: {not is_harmless}", remedy)


def _warehouse(settings: Settings) -> Check:
    return _role("warehouse", settings.warehouse_url, WRITER, must_write=True)


def _reader(settings: Settings) -> Check:
    return _role("reader", settings.reader_url, READER, must_write=False)


def _mlflow(settings: Settings) -> Check:
    uri = settings.mlflow_uri
    remedy = "run `make up`, or correct NIGHTSHIFT_MLFLOW_TRACKING_URI"
    if uri.startswith(("http://", "https://")):
        is_ok = airflow.answers(f"{uri.rstrip('/')}/health")
        return _check("mlflow", is_ok, f"{uri} {'answers' if is_ok else 'is silent'}", remedy)
    if not uri.startswith("postgresql"):
        return Check("mlflow", True, f"{uri.split(':', 1)[0]} store, not checked")
    try:
        connection = psycopg2.connect(plain_url(uri), connect_timeout=5)
    except psycopg2.OperationalError as error:
        return Check("mlflow", False, " ".join(str(error).split()), remedy)
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute("select to_regclass('registered_models') is not null")
            row = cursor.fetchone()
    finally:
        connection.close()
    has_tables = bool(row and row[0])
    detail = "tracking store and registry answer" if has_tables else "the store has no tables"
    return _check("mlflow", has_tables, detail, remedy)


def _airflow(settings: Settings) -> Check:
    url, username, password = airflow_login(settings)
    parts = airflow.health(url)
    if not parts:
        remedy = "run `make up`, or correct NIGHTSHIFT_AIRFLOW_URL"
        return Check("airflow", False, f"{url} does not answer", remedy)
    ill = [f"{name} is {state}" for name, state in parts.items() if state != "healthy"]
    if ill:
        logs = settings.state_dir / "logs"
        return Check("airflow", False, ", ".join(ill), f"see {logs}, then `make down up`")
    if password is not None and airflow.log_in(url, username, password) is None:
        remedy = "correct NIGHTSHIFT_AIRFLOW_USERNAME and NIGHTSHIFT_AIRFLOW_PASSWORD"
        return Check("airflow", False, f"{url} refuses the login of {username}", remedy)
    return Check("airflow", True, f"{url}: {', '.join(parts)} healthy")


def _alerts(settings: Settings) -> Check:
    """Whether Airflow has the connections; that they work, only a message shows."""
    wanted = connections(settings)
    if not wanted:
        return Check("alerts", True, "off: NIGHTSHIFT_ALERT_EMAIL, NIGHTSHIFT_ALERT_WEBHOOK")
    missing = [name for name in wanted if f"AIRFLOW_CONN_{name.upper()}" not in os.environ]
    if missing:
        url, username, password = airflow_login(settings)
        token = airflow.log_in(url, username, password or "") if airflow.health(url) else None
        missing = [
            name
            for name in missing
            if token is None
            or airflow.request(url, "GET", f"/api/v2/connections/{name}", None, token)[0] != 200
        ]
    remedy = (
        f"add {' and '.join(missing)} to Airflow's connections:"
        " docs/runbooks/alerts-not-arriving.md"
    )
    found = f"no connection {', '.join(missing)}" if missing else f"by {', '.join(wanted)}"
    return _check("alerts", not missing, found, remedy)
