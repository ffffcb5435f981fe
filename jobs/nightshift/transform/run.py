"""Build staging, intermediate and marts with one ``dbt build``, by the landed days that changed."""

import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from psycopg2.extensions import parse_dsn

from nightshift.contracts import SOURCES
from nightshift.errors import NightshiftError
from nightshift.io.held_sources import hold
from nightshift.io.lake import digest
from nightshift.io.warehouse import connect, recorded_run, require_server
from nightshift.settings import PROJECT_ROOT, Settings
from nightshift.transform.result import NodeResult, TransformResult, failure, held_by, summarise

logger = logging.getLogger(__name__)

DBT_PROJECT = PROJECT_ROOT / "dbt_project"
_CHANGED_ROWS = "intermediate.int_changed_rows"
_BUILT = ("--exclude-resource-type", "unit_test", "--exclude-resource-type", "exposure")


@dataclass(frozen=True)
class _Changes:
    """What a build is about.

    Attributes:
        days: by source, the landed days whose raw rows changed since the last complete build.
        change_ids: by source, the last change among them.
        is_full: the marts are missing or were built by other code: all of history is built.
    """

    days: Mapping[str, list[date]]
    change_ids: Mapping[str, int]
    is_full: bool


def build(settings: Settings, as_of: date) -> TransformResult:
    """Bring the marts up to date with everything that has landed in ``raw``, and test them.

    A build reads the landed days that ``ops.changed_days`` names since the last complete build;
    when a mart is missing or the dbt project has changed, it reads all. Each mart changes in one
    transaction, and a source's changes count as built when all that is made of it is, so a build
    that was killed or failed is completed by the next. A source of which a node failed is held;
    what is made of others too is then built of these alone.

    dbt's docs are then in ``<state dir>/dbt/target``, as one file ``static_index.html``.

    The marts are not cut at ``as_of``, so that a backfill does not shrink them: readers cut by
    ``landed_date < as_of``.

    Raises:
        TransformError: naming each model or test that failed, and its compiled SQL, when that
            leaves no use case.
        NightshiftError: when dbt does not start.
    """
    with recorded_run(settings, "transform", as_of) as run, _only_build(settings):
        project = _project_sha256()
        changes = _changes(settings, project)
        days = {source: [str(day) for day in days] for source, days in changes.days.items()}
        logger.info("marts: %s", _scope(changes))
        variables = {"as_of": as_of.isoformat(), "changed_days": days}
        full = ["--full-refresh"] if changes.is_full else []
        nodes = _invoke(settings, "build", *_BUILT, *_vars(variables), *full, documented=True)
        held = held_by(nodes, SOURCES)
        shared = [
            node.name for node in nodes
            if node.kind == "model" and node.status == "skipped" and set(node.sources) - set(held)
        ]  # fmt: skip
        if shared:
            logger.info("built without %s: %s", ", ".join(held), ", ".join(shared))
            variables["held"] = sorted(held)
            again = _invoke(
                settings, "build", "--select", *shared, *_BUILT, *_vars(variables), *full
            )
            anew = {node.name for node in again}
            nodes = [node for node in nodes if node.name not in anew] + again
            held = held_by(nodes, SOURCES)
        result = summarise(nodes, is_full_refresh=changes.is_full)
        run.result.update(
            nodes=result.nodes,
            seconds=result.seconds,
            failed=result.failed,
            is_full_refresh=changes.is_full,
            changed_days={source: len(days) for source, days in changes.days.items()},
        )
        _mark_built(settings, project, changes, [s for s in SOURCES if s not in held])
        hold(run, held)
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


def _changes(settings: Settings, project: str) -> _Changes:
    with connect(settings) as connection, connection.cursor() as cursor:
        # A change_id is drawn before its transaction ends. Once none is open that has drawn one,
        # no smaller one can appear any more; whoever draws the next waits for us, not long.
        cursor.execute("lock table ops.changed_days in share mode")
        cursor.execute("select source, max(change_id) from ops.changed_days group by source")
        change_ids = dict(cursor.fetchall())
        cursor.execute("select source from ops.built_changes where project_sha256 = %s", (project,))
        built = {source for (source,) in cursor.fetchall()}
        cursor.execute(
            "select name from unnest(%s) as name where to_regclass(name) is null", (_tables(),)
        )
        missing = cursor.fetchall()
        if missing or not built.issuperset(SOURCES):
            # forgotten first: a full refresh that is killed half way begins anew
            cursor.execute("delete from ops.built_changes")
            return _Changes({}, change_ids, is_full=True)
        cursor.execute(
            "select source, array_agg(distinct landed_date) from ops.changed_days"
            " inner join ops.built_changes as built using (source)"
            " where changed_days.change_id > built.change_id group by source"
        )
        return _Changes(dict(cursor.fetchall()), change_ids, is_full=False)


def _mark_built(
    settings: Settings, project: str, changes: _Changes, sources: Sequence[str]
) -> None:
    with connect(settings) as connection, connection.cursor() as cursor:
        if len(sources) == len(SOURCES):
            cursor.execute(f"truncate {_CHANGED_ROWS}")
        else:
            cursor.execute(f"delete from {_CHANGED_ROWS} where source = any(%s)", (sources,))
        for source in sources:
            cursor.execute(
                "insert into ops.built_changes (source, change_id, project_sha256)"
                " values (%s, %s, %s) on conflict (source) do update"
                " set change_id = excluded.change_id, project_sha256 = excluded.project_sha256",
                (source, changes.change_ids.get(source, 0), project),
            )


def _scope(changes: _Changes) -> str:
    if changes.is_full:
        return "full refresh, for the marts are missing or were built by another dbt project"
    counted = [f"{len(days)} days of {source}" for source, days in changes.days.items()]
    return f"changed since the last build: {', '.join(counted) or 'nothing'}"


def _tables() -> list[str]:
    """The tables that an incremental build goes on from."""
    marts = sorted((DBT_PROJECT / "models" / "marts").glob("*.sql"))
    return [_CHANGED_ROWS, *(f"marts.{path.stem}" for path in marts)]


def _project_sha256() -> str:
    """Hash of all that decides what the marts hold: other code means a full refresh."""
    paths = [DBT_PROJECT / "dbt_project.yml"]
    for folder in ("models", "macros"):
        paths += [p for p in (DBT_PROJECT / folder).rglob("*") if p.suffix in (".sql", ".yml")]
    return digest({str(p.relative_to(DBT_PROJECT)): p.read_text() for p in paths})


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


def marts_of_sources(models: Path = DBT_PROJECT / "models") -> dict[str, str]:
    """Source → its mart, of each source with a contract that is staged and has a mart.

    A new source has its landed days counted (``fct_landed_days``) by the files that make it one.
    """
    return {
        source: mart
        for source in SOURCES
        for mart in (f"fct_{source}", f"dim_{source}")
        if (models / "staging" / source / f"stg_{source}.sql").is_file()
        and (models / "marts" / f"{mart}.sql").is_file()
    }


def _invoke(
    settings: Settings, command: str, *arguments: str, documented: bool = False
) -> list[NodeResult]:
    """Parse the project, as far as it has changed, and run ``command`` on what was parsed.

    In one step dbt would parse all anew each night, because the variables differ; none of them
    decides what is parsed. If ``documented``, dbt's docs are written too, unless a node failed.
    """
    from dbt.cli.main import dbtRunner  # 3 s, and only the build needs it

    variables = _connection_variables(settings.warehouse_url) | {
        "DBT_MARTS_OF_SOURCES": json.dumps(marts_of_sources())
    }
    with _environment(variables):
        with _log_file_closed():
            parsed = dbtRunner().invoke(["parse", *_options(settings)])
        _require_started(settings, "parse", parsed)
        runner = dbtRunner(manifest=parsed.result, callbacks=[_log])  # type: ignore[arg-type]
        with _log_file_closed():
            outcome = runner.invoke([command, *_options(settings), *arguments])
        _require_started(settings, command, outcome)
        if documented and outcome.success:
            with _log_file_closed():
                written = runner.invoke(
                    ["docs", "generate", "--no-compile", "--static", *_options(settings)]
                )
            _require_started(settings, "docs generate", written)
    manifest = parsed.result
    nodes = [
        _node_result(result, _sources_of(result.node, manifest))
        for result in outcome.result.results  # type: ignore[union-attr]
    ]
    for node in nodes:
        if node.is_broken:
            require_server(node.message)
    return nodes


def _vars(variables: Mapping[str, Any]) -> tuple[str, str]:
    return "--vars", json.dumps(variables)


def _sources_of(node: Any, manifest: Any) -> tuple[str, ...]:
    """The names of the sources to which dbt's graph leads back from a node."""
    found: set[str] = set()
    seen, ahead = set(node.depends_on.nodes), list(node.depends_on.nodes)
    while ahead:
        current = ahead.pop()
        if current in manifest.sources:
            found.add(manifest.sources[current].name)
            continue
        parent = manifest.nodes.get(current)  # none for a unit test's stand-in
        before = set(parent.depends_on.nodes) - seen if parent else set()
        seen |= before
        ahead += before
    return tuple(sorted(found))


def _options(settings: Settings) -> list[str]:
    state = settings.state_dir / "dbt"
    state.mkdir(parents=True, exist_ok=True)
    return [
        "--project-dir", str(DBT_PROJECT),
        "--profiles-dir", str(DBT_PROJECT),
        "--target-path", str(state / "target"),
        "--log-path", str(state / "logs"),
        "--log-level", "none", "--log-level-file", "info",
        "--no-use-colors",
        "--no-version-check",
    ]  # fmt: skip


def _require_started(settings: Settings, command: str, outcome: Any) -> None:
    if outcome.exception is not None:
        require_server(str(outcome.exception))
        raise NightshiftError(
            f"dbt {command} did not start: {' '.join(str(outcome.exception).split())}",
            f"correct the dbt project in {DBT_PROJECT}; dbt's log is in"
            f" {settings.state_dir / 'dbt' / 'logs'}",
        )


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


def _node_result(result: Any, sources: tuple[str, ...]) -> NodeResult:
    return NodeResult(
        name=result.node.name,
        kind=str(result.node.resource_type).replace("_", " "),
        status=str(result.status),
        seconds=result.execution_time,
        message=result.message or "",
        failures=result.failures,
        compiled_path=getattr(result.node, "compiled_path", None),
        sources=sources,
    )
