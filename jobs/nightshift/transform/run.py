"""Build staging, intermediate and marts with one ``dbt build``."""

import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import date
from typing import Any

from psycopg2.extensions import parse_dsn

from nightshift.errors import NightshiftError
from nightshift.io.warehouse import connect, recorded_run
from nightshift.settings import PROJECT_ROOT, Settings
from nightshift.transform.result import NodeResult, TransformResult, failure, summarise

logger = logging.getLogger(__name__)

DBT_PROJECT = PROJECT_ROOT / "dbt_project"


def build(settings: Settings, as_of: date) -> TransformResult:
    """Build the marts from everything that has landed in ``raw``, and test them.

    The marts are not cut at ``as_of``, so that a backfill does not shrink them: readers cut by
    ``landed_date < as_of``. Each table is replaced in one transaction.

    Raises:
        NightshiftError: naming each model or test that failed, and its compiled SQL.
    """
    with recorded_run(settings, "transform", as_of) as run, _only_build(settings):
        nodes = _invoke(
            settings,
            "build",
            "--exclude-resource-type", "unit_test",
            "--exclude-resource-type", "exposure",
            "--vars", json.dumps({"as_of": as_of.isoformat()}),
        )  # fmt: skip
        result = summarise(nodes)
        run.result.update(nodes=result.nodes, seconds=result.seconds, failed=result.failed)
        error = failure(nodes)
        if error is not None:
            raise error
        return result


def unit_test(settings: Settings) -> TransformResult:
    """Run the dbt project's unit tests, on a warehouse where ``build`` has run.

    Raises:
        NightshiftError: naming each test that failed, with the difference it saw.
    """
    with _only_build(settings):
        nodes = _invoke(settings, "test", "--select", "test_type:unit")
    error = failure(nodes)
    if error is not None:
        raise error
    return summarise(nodes)


@contextmanager
def _only_build(settings: Settings) -> Iterator[None]:
    """Hold the session lock that keeps two builds of one warehouse apart; a second one waits."""
    with connect(settings) as connection, connection.cursor() as cursor:
        key = ("select {}(hashtextextended('nightshift.transform', 0))").format
        cursor.execute(key("pg_try_advisory_lock"))
        if not cursor.fetchone()[0]:
            logger.info("another dbt build is running; waiting for its end")
            cursor.execute(key("pg_advisory_lock"))
        # The lock belongs to the session: no transaction stays open while dbt works.
        connection.commit()
        yield


def _invoke(settings: Settings, command: str, *arguments: str) -> list[NodeResult]:
    from dbt.cli.main import dbtRunner  # 3 s, and only the build needs it

    state = settings.state_dir / "dbt"
    state.mkdir(parents=True, exist_ok=True)
    with _environment(_connection_variables(settings.warehouse_url)), _log_file_closed():
        outcome = dbtRunner(callbacks=[_log]).invoke(
            [
                command,
                "--project-dir", str(DBT_PROJECT),
                "--profiles-dir", str(DBT_PROJECT),
                "--target-path", str(state / "target"),
                "--log-path", str(state / "logs"),
                "--log-level", "none", "--log-level-file", "info",
                "--no-use-colors",
                "--no-version-check",
                *arguments,
            ]
        )  # fmt: skip
    if outcome.exception is not None:
        raise NightshiftError(
            f"dbt {command} did not start: {' '.join(str(outcome.exception).split())}",
            f"correct the dbt project in {DBT_PROJECT}; dbt's log is in {state / 'logs'}",
        )
    return [_node_result(result) for result in outcome.result.results]  # type: ignore[union-attr]


def _connection_variables(url: str) -> dict[str, str]:
    dsn = parse_dsn(url)
    variables = {
        "DBT_WAREHOUSE_HOST": dsn.get("host", "127.0.0.1"),
        "DBT_WAREHOUSE_PORT": dsn.get("port", "5432"),
        "DBT_WAREHOUSE_USER": dsn.get("user", ""),
        "DBT_ENV_SECRET_WAREHOUSE_PASSWORD": dsn.get("password", ""),
        "DBT_WAREHOUSE_NAME": dsn.get("dbname", ""),
    }
    if "sslmode" in dsn:
        variables["DBT_WAREHOUSE_SSLMODE"] = dsn["sslmode"]
    return variables


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def _log_file_closed() -> Iterator[None]:
    """Close the log file that dbt, invoked in a process that lives on, leaves open."""
    try:
        yield
    finally:
        for handler in logging.getLogger("file_log").handlers:
            handler.close()


def _log(event: Any) -> None:
    """Pass on what ended and what failed, and drop the rest of dbt's chatter."""
    if event.info.name in {"LogModelResult", "LogTestResult", "LogUnitTestResult"}:
        status = getattr(event.data, "status", "")
        level = logging.INFO
        if event.info.level == "warn":
            level = logging.WARNING
        elif event.info.level == "error":
            level = logging.ERROR
        name = getattr(event.data, "description", "") or getattr(event.data, "name", "")
        logger.log(level, "dbt: %s: %s, %.1f s", name, status, event.data.execution_time)


def _node_result(result: Any) -> NodeResult:
    return NodeResult(
        name=result.node.name,
        kind=str(result.node.resource_type).replace("_", " "),
        status=str(result.status),
        seconds=result.execution_time,
        message=result.message or "",
        failures=result.failures,
        compiled_path=getattr(result.node, "compiled_path", None),
    )
