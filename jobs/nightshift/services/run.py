"""Start, stop and describe the services that the user has not replaced by his own."""

import base64
import fcntl
import json
import logging
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psycopg2

from nightshift.errors import NightshiftError, SettingError
from nightshift.io import warehouse
from nightshift.services import airflow
from nightshift.services.postgres import EmbeddedPostgres, free_port, log_tail
from nightshift.services.processes import ServiceProcess, stop_all
from nightshift.settings import PROJECT_ROOT, Settings

logger = logging.getLogger(__name__)

WRITER, READER = "nightshift_writer", "nightshift_reader"
AUDITOR = "nightshift_auditor"
"""A role without a login: who has it may ask for receipts."""
AIRFLOW_SECONDS = 180


@dataclass(frozen=True)
class ServiceStatus:
    """One service, for ``make status``."""

    name: str
    is_running: bool
    is_embedded: bool
    address: str
    detail: str = ""


def _read(settings: Settings) -> dict[str, Any]:
    try:
        services: dict[str, Any] = json.loads(settings.services_file.read_text())
    except FileNotFoundError:
        return {}
    except json.JSONDecodeError as error:
        raise NightshiftError(
            f"{settings.services_file} is not JSON: {error}", "restore it, or run `make reset`"
        ) from error
    return services


def _write(settings: Settings, services: dict[str, Any]) -> None:
    temporary = settings.services_file.with_suffix(".new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(services, file, indent=1, sort_keys=True)
        file.flush()
        os.fsync(file.fileno())
    temporary.chmod(0o600)  # an older file keeps its mode when it is opened
    temporary.replace(settings.services_file)


@contextmanager
def _one_at_a_time(settings: Settings) -> Iterator[None]:
    settings.state_dir.mkdir(parents=True, exist_ok=True)
    with (settings.state_dir / "services.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _needs_postgres(settings: Settings) -> bool:
    has_airflow = settings.airflow_url or settings.airflow_database_url
    return not (settings.database_url and settings.mlflow_tracking_uri and has_airflow)


def _postgres(settings: Settings, services: dict[str, Any]) -> EmbeddedPostgres:
    return EmbeddedPostgres(
        settings.state_dir / "postgres", services["postgres_port"], services["postgres_password"]
    )


def _airflow_processes(settings: Settings) -> dict[str, ServiceProcess]:
    return {
        component: ServiceProcess(f"airflow-{component}", settings.state_dir)
        for component in airflow.COMPONENTS
    }


def _with_secrets(services: dict[str, Any]) -> dict[str, Any]:
    """What is missing of the generated secrets; those that exist stay."""
    fresh: dict[str, Any] = {
        "postgres_password": secrets.token_urlsafe(24),
        "writer_password": secrets.token_urlsafe(24),
        "reader_password": secrets.token_urlsafe(24),
        "services_password": secrets.token_urlsafe(24),
        "airflow_password": secrets.token_urlsafe(12),
        "airflow_tasks_password": secrets.token_urlsafe(24),
        "airflow_jwt_secret": secrets.token_urlsafe(48),
        "airflow_secret_key": secrets.token_urlsafe(32),
        "airflow_fernet_key": base64.urlsafe_b64encode(secrets.token_bytes(32)).decode(),
    }
    return fresh | services


def _start_postgres(settings: Settings, services: dict[str, Any]) -> None:
    data_dir = settings.state_dir / "postgres"
    if (data_dir / "PG_VERSION").exists() and "postgres_port" not in services:
        raise NightshiftError(
            f"{data_dir} exists, but its passwords do not: {settings.services_file} is gone",
            "restore that file, or run `make reset` to start anew",
        )
    services.setdefault("postgres_port", settings.postgres_port)
    server = _postgres(settings, services)
    if not server.is_running():
        services["postgres_port"] = free_port(services["postgres_port"])
        _write(settings, services)
        server = _postgres(settings, services)
        logger.info("starting PostgreSQL 18 on port %d", server.port)
        server.start()
    server.wait_until_ready()
    server.ensure_role(WRITER, services["writer_password"])
    server.ensure_role(READER, services["reader_password"])
    server.ensure_group(AUDITOR)
    for name in ("airflow", "mlflow"):
        server.ensure_role(name, services["services_password"])
        server.ensure_database(name, name)
    server.ensure_database("warehouse", WRITER, READER)
    services["warehouse_url"] = server.url("warehouse", WRITER, services["writer_password"])
    services["reader_url"] = server.url("warehouse", READER, services["reader_password"])
    password = services["services_password"]
    driver = "postgresql+psycopg2"
    services["airflow_database_url"] = server.url("airflow", "airflow", password, driver)
    services["mlflow_uri"] = server.url("mlflow", "mlflow", password, driver)
    services["mlflow_artifacts"] = str(settings.mlflow_artifacts_dir)
    _write(settings, services)


def airflow_environment(settings: Settings) -> dict[str, str]:
    """The environment for any ``airflow`` command on the embedded Airflow.

    Raises:
        SettingError: when ``up`` has never made it.
    """
    services = _read(settings)
    if "airflow_port" not in services:
        raise SettingError(
            f"no embedded Airflow in {settings.state_dir}",
            "run `make up` without NIGHTSHIFT_AIRFLOW_URL",
        )
    return airflow.environment(settings, services)


def plain_url(url: str) -> str:
    """A SQLAlchemy URL of Postgres as libpq reads it: without the driver."""
    return "postgresql://" + url.split("://", 1)[1]


def _revision(database_url: str) -> str | None:
    """The schema revision of Airflow's database, or None when it has none or is no Postgres."""
    if not database_url.startswith("postgresql"):
        return None
    try:
        with (
            closing(psycopg2.connect(plain_url(database_url))) as connection,
            connection.cursor() as cursor,
        ):
            cursor.execute("select version_num from alembic_version")
            row = cursor.fetchone()
    except psycopg2.errors.UndefinedTable:
        return None
    return None if row is None else str(row[0])


def _run_logged(settings: Settings, name: str, command: list[str], env: dict[str, str]) -> None:
    log_file = settings.state_dir / "logs" / f"{name}.log"
    log_file.parent.mkdir(parents=True, exist_ok=True)
    with log_file.open("wb") as log:
        completed = subprocess.run(
            command, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
        )
    if completed.returncode != 0:
        raise NightshiftError(f"{name} failed:\n{log_tail(log_file)}", f"see {log_file}")


def _prepare_airflow(settings: Settings, services: dict[str, Any]) -> None:
    environment = airflow.environment(settings, services)
    database_url = environment["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"]
    home = Path(environment["AIRFLOW_HOME"])
    home.mkdir(parents=True, exist_ok=True)
    passwords = Path(environment["AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE"])
    passwords.touch(mode=0o600)
    logins = {
        services["airflow_username"]: services["airflow_password"],
        airflow.TASKS_USER: services["airflow_tasks_password"],
    }
    passwords.write_text(json.dumps(logins))
    revision = _revision(database_url)
    state = [version("apache-airflow"), revision]
    if revision is None or services.get("airflow_migrated") != state:
        logger.info("preparing Airflow's database (once)")
        _run_logged(
            settings, "airflow-db-migrate", [str(airflow.EXECUTABLE), "db", "migrate"], environment
        )
        services["airflow_migrated"] = [version("apache-airflow"), _revision(database_url)]
        _write(settings, services)


def _prepare_mlflow(settings: Settings, services: dict[str, Any]) -> None:
    if services.get("mlflow_migrated") == version("mlflow"):
        return
    logger.info("preparing MLflow's database (once)")
    module = [sys.executable, "-m", "nightshift.services.mlflow_store", "prepare"]
    environment = {**os.environ, "MLFLOW_TRACKING_URI": services["mlflow_uri"]}
    _run_logged(
        settings, "mlflow-prepare", [*module, str(settings.mlflow_artifacts_dir)], environment
    )
    services["mlflow_migrated"] = version("mlflow")
    _write(settings, services)


def _start_airflow(settings: Settings, services: dict[str, Any]) -> None:
    processes = _airflow_processes(settings)
    services["airflow_username"] = settings.airflow_username
    if settings.airflow_password is not None:
        services["airflow_password"] = settings.airflow_password
    if not processes["api-server"].is_running():
        port = free_port(services.get("airflow_port", settings.airflow_port))
        services |= {"airflow_port": port, "airflow_url": f"http://localhost:{port}"}
        # the others hold the old port in their environment
        stop_all(list(processes.values()))
    _write(settings, services)
    _prepare_airflow(settings, services)
    environment = airflow.environment(settings, services)
    for component, process in processes.items():
        if not process.is_running():
            logger.info("starting airflow %s", component)
            process.start(airflow.command(component), environment, PROJECT_ROOT)
    _wait_for_airflow(processes, services["airflow_url"])
    # its first answer to a task takes seconds: no task is to wait for it
    airflow.answers(f"{services['airflow_url']}/execution/health", seconds=60)
    token = airflow.log_in(
        services["airflow_url"], services["airflow_username"], services["airflow_password"]
    )
    if token is None or not airflow.ensure_spark_pool(services["airflow_url"], token):
        log_file = processes["api-server"].log_file
        raise NightshiftError(
            f"Airflow runs at {services['airflow_url']}, but refuses the login or the pool "
            f"{airflow.SPARK_POOL!r}:\n{log_tail(log_file)}",
            f"see {log_file}; `make down up` starts it afresh",
        )


def _wait_for_airflow(processes: dict[str, ServiceProcess], url: str) -> None:
    deadline = time.monotonic() + AIRFLOW_SECONDS
    while True:
        statuses = airflow.health(url)
        waiting_for = [name for name, status in statuses.items() if status != "healthy"]
        if statuses and not waiting_for:
            return
        for component, process in processes.items():
            if not process.is_running():
                raise NightshiftError(
                    f"airflow {component} ended:\n{log_tail(process.log_file)}",
                    f"see {process.log_file}",
                )
        if time.monotonic() > deadline:
            name = (waiting_for or ["api-server"])[0].replace("_", "-")
            culprit = processes.get(name, processes["api-server"])
            raise NightshiftError(
                f"Airflow is not healthy after {AIRFLOW_SECONDS} s: "
                f"{statuses or f'{url} does not answer'}\n{log_tail(culprit.log_file)}",
                f"see {culprit.log_file}, then run `make up` again",
            )
        time.sleep(0.3)


def up(settings: Settings, with_airflow: bool = True) -> list[ServiceStatus]:
    """Start what is not running, prepare what is new, and return once everything answers.

    Args:
        settings: a URL in them replaces the embedded part, which is then not started.
        with_airflow: False leaves Airflow alone: enough for the command line.

    Raises:
        NightshiftError: with the tail and the path of the log of what did not start.
    """
    with _one_at_a_time(settings):
        services = _with_secrets(_read(settings))
        if _needs_postgres(settings):
            _start_postgres(settings, services)
        warehouse.migrate(settings)
        if settings.mlflow_tracking_uri is None:
            _prepare_mlflow(settings, services)
        if with_airflow and settings.airflow_url is None:
            _start_airflow(settings, services)
        _write(settings, services)
    return status(settings)


def airflow_login(settings: Settings) -> tuple[str, str, str | None]:
    """(base URL, username, password or None) of the Airflow in use, the user's or the embedded one.

    Raises:
        SettingError: when there is neither.
    """
    if settings.airflow_url:
        return settings.airflow_url, settings.airflow_username, settings.airflow_password
    services = _read(settings)
    if "airflow_url" not in services:
        raise SettingError(
            f"no Airflow: {settings.services_file} names none",
            "run `make up`, or set NIGHTSHIFT_AIRFLOW_URL",
        )
    return services["airflow_url"], services["airflow_username"], services["airflow_password"]


def tasks_login(settings: Settings) -> tuple[str, str, str | None]:
    """The same for what tasks write into Airflow; of the embedded one, with fewer rights.

    Raises:
        SettingError: when there is neither.
    """
    url, username, password = airflow_login(settings)
    if settings.airflow_url:
        return url, username, password
    return url, airflow.TASKS_USER, _read(settings).get("airflow_tasks_password")


def down(settings: Settings) -> list[str]:
    """Stop our own processes; data stays.

    Returns:
        The names of what was running.
    """
    with _one_at_a_time(settings):
        stopped = stop_all(list(_airflow_processes(settings).values()))
        services = _read(settings)
        if "postgres_port" in services:
            server = _postgres(settings, services)
            if server.is_running():
                server.stop()
                stopped.append("postgres")
    return stopped


_STATE = ("postgres", "airflow", "mlflow-artifacts", "logs", "run", "services.json", "lake")


def reset(settings: Settings, yes: bool = False) -> None:
    """Stop our services and delete all their data, the lake, and the generated landing zone.

    What the set-up installed (tools, Java) stays, and so does a landing zone, a lake or a database
    of the user's own.

    Raises:
        NightshiftError: unless ``yes``.
    """
    if not yes:
        raise NightshiftError(
            f"this deletes the databases, models and the lake in {settings.state_dir}",
            "run `make reset YES=1` or `nightshift reset --yes` if that is what you want",
        )
    down(settings)
    for name in (*_STATE, "landing"):
        path = settings.state_dir / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def status(settings: Settings) -> list[ServiceStatus]:
    """What runs where, with the login of Airflow."""
    services = _read(settings)
    found: list[ServiceStatus] = []
    if settings.database_url:
        found.append(ServiceStatus("warehouse", _answers(settings.database_url), False, "yours"))
    elif "warehouse_url" in services:
        for name, key in (("warehouse", "warehouse_url"), ("warehouse, to read", "reader_url")):
            url = services[key]
            found.append(ServiceStatus(name, _answers(url), True, url))
    else:
        found.append(ServiceStatus("warehouse", False, True, "", "never started: `make up`"))
    if settings.airflow_url or "airflow_url" in services:
        url = settings.airflow_url or services["airflow_url"]
        parts = airflow.health(url)
        is_healthy = bool(parts) and all(part == "healthy" for part in parts.values())
        detail = ", ".join(f"{name} {part}" for name, part in parts.items() if part != "healthy")
        if not settings.airflow_url:
            login = f"login {services['airflow_username']} / {services['airflow_password']}"
            detail = "; ".join(filter(None, [login, detail]))
        found.append(ServiceStatus("airflow", is_healthy, not settings.airflow_url, url, detail))
    else:
        found.append(ServiceStatus("airflow", False, True, "", "never started: `make up`"))
    if settings.mlflow_tracking_uri:
        found.append(ServiceStatus("mlflow", True, False, "yours"))
    else:
        is_there = "mlflow_migrated" in services and _answers(plain_url(services["mlflow_uri"]))
        artifacts = str(settings.mlflow_artifacts_dir)
        found.append(ServiceStatus("mlflow", is_there, True, artifacts, "web UI: `make mlflow`"))
    return found


def _answers(url: str) -> bool:
    try:
        psycopg2.connect(url, connect_timeout=3).close()
    except psycopg2.OperationalError:
        return False
    return True
