"""Check what landed, and what features are made of, with a Great Expectations checkpoint each."""

import logging
import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import sqlalchemy
from psycopg2.extensions import connection as Connection
from psycopg2.extras import Json, RealDictCursor, execute_values

from nightshift.contracts import SOURCES, ArrivalCalendar, load_contract
from nightshift.contracts.quality import MARTS, QualityContract, load_mart
from nightshift.errors import NightshiftError, RefusedAsOf
from nightshift.io.held_sources import held_sources, hold
from nightshift.io.warehouse import Run, connect, recorded_run, require_server
from nightshift.quality.limits import RECENT_FOLDERS, Check, Folder, checks, parameters
from nightshift.quality.page import CheckedRun
from nightshift.quality.verdict import (
    MAX_SHOWN,
    Outcome,
    QualityResult,
    arrivals,
    failure,
    summary,
)
from nightshift.settings import Settings
from nightshift.use_cases import USE_CASES

logger = logging.getLogger(__name__)

FOLDERS_CHECKED = 5
REPORTS_KEPT = 20
ROW = "_row"
"""The column of a batch that names a row in reports: its file and position, or its key."""


@dataclass(frozen=True)
class _Batch:
    """One landed day of one table, with what it is held against."""

    contract: QualityContract
    landed_date: date
    checks: tuple[Check, ...]

    @property
    def name(self) -> str:
        return _batch_name(self.contract.name, self.landed_date)


def _batch_name(table: str, landed_date: date) -> str:
    """Names the suite, and so the folder of its pages in Data Docs."""
    return f"{table} landed {landed_date}"


def check_landed(settings: Settings, as_of: date) -> QualityResult:
    """Check, for each source, the last folders that landed before ``as_of`` by its contract.

    More than one: a folder that failed last night must not slip through tonight behind a good one.
    A source with a broken rule of severity error is held, and with it the use cases that read it.
    A day on which the contract expects a folder and none landed is a warning.

    Only the ledger and rows that landed before ``as_of`` are read, so a night that is run again
    gets the same verdict. Each outcome is a row of ``ops.quality_results``; the report, Great
    Expectations' Data Docs, is written to ``<state_dir>/data-docs``.

    Raises:
        RefusedAsOf: when nothing of a source landed before ``as_of``, and that leaves no use case.
        QualityError: naming each broken rule of severity error, its source, landed date and
            column, what was observed and expected, and rows that break it, when that leaves none.
    """
    contracts = {source: load_contract(source) for source in SOURCES}
    calendars = {source: contract.arrival for source, contract in contracts.items()}
    return _check(settings, as_of, "quality", [c.quality for c in contracts.values()], calendars)


def check_marts(settings: Settings, as_of: date) -> QualityResult:
    """Check the same landed days once more, as the rows of marts that features are made of.

    A mart of a source that the build has held is not as it landed, or is not there, and not
    checked.

    Raises:
        RefusedAsOf, QualityError: as of ``check_landed``.
    """
    held = held_sources(settings, as_of, ["transform"])
    marts = [contract for contract in map(load_mart, MARTS) if not set(contract.reads) & set(held)]
    return _check(settings, as_of, "quality_marts", marts, {})


def _check(
    settings: Settings,
    as_of: date,
    stage: str,
    contracts: Sequence[QualityContract],
    calendars: Mapping[str, ArrivalCalendar],
) -> QualityResult:
    _silence_great_expectations()
    needed = {source for use_case in USE_CASES for source in use_case.landings}
    with recorded_run(settings, stage, as_of) as run:
        batches: list[_Batch] = []
        outcomes: list[Outcome] = []
        landed_dates: dict[str, date] = {}
        held: dict[str, NightshiftError] = {}
        with connect(settings) as connection:
            for contract in contracts:
                folders = _folders(connection, contract.source, as_of)
                if not folders:
                    if contract.source in needed:
                        held[contract.source] = RefusedAsOf(
                            f"no file of {contract.source} that landed before as_of {as_of} is"
                            " loaded",
                            f"run `nightshift ingest --as-of {as_of}`, or choose a later as_of",
                        )
                    continue
                landed_dates[contract.name] = folders[0].landed_date
                found = _batches(connection, contract, folders)
                batches += found
                if contract.name in calendars:
                    days = [batch.landed_date for batch in found]
                    outcomes += arrivals(contract.source, calendars[contract.name], days, as_of)
        docs = _docs_folder(settings, run)
        report = (docs / "index.html").as_uri() if batches else "none, for nothing was checked"
        if batches:
            outcomes = _validate(settings, batches, as_of, docs) + outcomes
        with connect(settings) as connection:
            _keep(connection, run, as_of, outcomes)
        run.result.update(
            landed_dates=landed_dates,
            rules=len(outcomes),
            errors=_names(outcomes, "error"),
            warnings=_names(outcomes, "warning"),
            data_docs=report,
        )
        level = logging.INFO if all(o.success for o in outcomes) else logging.WARNING
        logger.log(level, "%s:\n%s\nData Docs: %s", stage, summary(outcomes), report)
        for source in dict.fromkeys(outcome.source for outcome in outcomes):
            error = failure([o for o in outcomes if o.source == source], report)
            if error is not None:
                held[source] = error
        hold(run, held)
        return QualityResult(landed_dates=landed_dates, outcomes=tuple(outcomes))


def _names(outcomes: Sequence[Outcome], severity: str) -> list[str]:
    return [
        f"{o.table}: {o.landed_date}: {o.rule}"
        for o in outcomes
        if not o.success and o.severity == severity
    ]


def _folders(connection: Connection, source: str, as_of: date) -> list[Folder]:
    """The landed folders of the months before ``as_of``, newest first."""
    with connection.cursor() as cursor:
        cursor.execute(
            "select landed_date, sum(rows_loaded)::bigint, sum(rows_in)::bigint"
            " from ops.landing_files"
            " where source = %s and status = 'loaded' and landed_date < %s"
            " group by landed_date order by landed_date desc limit 100",
            (source, as_of),
        )
        return [Folder(*row) for row in cursor.fetchall()]


def _batches(
    connection: Connection, contract: QualityContract, folders: Sequence[Folder]
) -> list[_Batch]:
    statistics = _statistics(connection, contract, folders)
    return [
        _Batch(
            contract,
            batch.landed_date,
            checks(
                contract,
                parameters(contract, folders, statistics, batch),
                batch.rows,
            ),
        )
        for batch in folders[:FOLDERS_CHECKED]
    ]


def _statistics(
    connection: Connection, contract: QualityContract, folders: Sequence[Folder]
) -> dict[date, dict[str, Any]]:
    """What the contract asks of the days before a batch, all in one scan."""
    asked = {
        f"recent_median_{column}": f"percentile_cont(0.5) within group (order by {column})"
        for column in contract.columns_of("recent_median_")
    } | {
        f"recent_values_{column}": f"array_agg(distinct {column})"
        for column in contract.columns_of("recent_values_")
    }
    days = [folder.landed_date for folder in folders[1 : FOLDERS_CHECKED + RECENT_FOLDERS]]
    if not asked or not days:
        return {}
    with connection.cursor() as cursor:
        cursor.execute(
            f"select {contract.day}, {', '.join(asked.values())} from {contract.table}"
            f" where {contract.day} between %s and %s group by {contract.day}",
            (min(days), max(days)),
        )
        return {row[0]: dict(zip(asked, row[1:], strict=True)) for row in cursor.fetchall()}


def _batch_table(contract: QualityContract, days: Sequence[date], as_of: date) -> tuple[str, str]:
    """The landed days with the columns that take more than a row to know, materialised once.

    Each rule then asks for one day of them.
    """
    names, joins = [f"{sql} as {name}" for name, sql in contract.batch_columns.items()], []
    if contract.row_id is None:
        names.append(f"file.path || ':' || _row_number as {ROW}")
        joins.append("left join ops.landing_files as file on file.file_id = landed._file_id")
    else:
        names.append(f"{contract.row_id} as {ROW}")
    for number, reference in enumerate(contract.references):
        known = f"known_{number}"
        names.append(f"{known}.value is not null as {reference.is_known}")
        cut = f"{reference.to_day} < date '{as_of}' and " if reference.to_day else ""
        joins.append(
            f"left join (select distinct {reference.to_column} as value"
            f" from {reference.to_table} where {cut}{reference.to_column} in"
            f" (select {reference.column} from landed)) as {known}"
            f" on {known}.value = landed.{reference.column}"
        )
    dates = ", ".join(f"date '{day}'" for day in days)
    return (
        f"create temporary table checked_{contract.name} as"
        f" with landed as (select * from {contract.table} where {contract.day} in ({dates}))"
        f" select {', '.join(['landed.*', *names])} from landed {' '.join(joins)}"
        f" order by {contract.day}",
        f"create index on checked_{contract.name} ({contract.day})",
    )


def _silence_great_expectations() -> None:
    """Great Expectations reads it as it is imported, which takes seconds: so not at the top."""
    os.environ["GX_ANALYTICS_ENABLED"] = "false"
    import great_expectations.data_context.types.base  # noqa: F401

    # The second sets a level of its own when it is imported.
    for name in ("great_expectations", "great_expectations.data_context.types.base"):
        logging.getLogger(name).setLevel(logging.WARNING)


def newest_run(settings: Settings, stage: str, as_of: date) -> CheckedRun | None:
    """The last run of a check (``quality``, ``quality_marts``) for ``as_of``; None before it."""
    with (
        connect(settings) as connection,
        connection.cursor(cursor_factory=RealDictCursor) as cursor,
    ):
        cursor.execute(
            "select run_id, status, started_at from ops.runs where stage = %s and as_of = %s"
            " order by run_id desc limit 1",
            (stage, as_of),
        )
        found = cursor.fetchone()
        if found is None:
            return None
        cursor.execute(
            'select checked as "table", source, landed_date, rule, severity, success, expectation,'
            ' column_name as "column", expected, observed, examples'
            " from ops.quality_results where run_id = %s",
            (found["run_id"],),
        )
        outcomes = tuple(
            Outcome(**row | {"examples": tuple(row["examples"])}) for row in cursor.fetchall()
        )
    docs = reports_folder(settings)
    pages = {
        (o.table, o.landed_date): page.relative_to(docs).as_posix()
        for o in outcomes
        for page in (
            docs / f"run-{found['run_id']}" / "validations" / _batch_name(o.table, o.landed_date)
        ).rglob("*.html")
    }
    return CheckedRun(**found, outcomes=outcomes, pages=pages)


def reports_folder(settings: Settings) -> Path:
    """Where each run has its Great Expectations Data Docs, as ``run-<run_id>``."""
    return settings.state_dir / "data-docs"


def newest_report(settings: Settings) -> str | None:
    """URL of the newest report's first page; None before the first check."""
    reports = [f for f in _reports(settings) if (f / "index.html").is_file()]
    return (reports[0] / "index.html").as_uri() if reports else None


def _reports(settings: Settings) -> list[Path]:
    """The folders of the reports that are kept, newest first."""
    return sorted(
        reports_folder(settings).glob("run-*"),
        key=lambda folder: folder.stat().st_mtime,
        reverse=True,
    )


def _docs_folder(settings: Settings, run: Run) -> Path:
    """A folder for the run's report; of the older ones, all but the last are removed."""
    for folder in _reports(settings)[REPORTS_KEPT - 1 :]:
        shutil.rmtree(folder, ignore_errors=True)
    return reports_folder(settings) / f"run-{run.run_id}"


def _validate(
    settings: Settings, batches: Sequence[_Batch], as_of: date, docs: Path
) -> list[Outcome]:
    import great_expectations as gx
    from great_expectations.core.run_identifier import RunIdentifier
    from great_expectations.data_context.types.base import (
        DataContextConfig,
        InMemoryStoreBackendDefaults,
        ProgressBarsConfig,
    )
    from great_expectations.expectations.expectation_configuration import ExpectationConfiguration
    from great_expectations.expectations.metadata_types import FailureSeverity

    severities = {"error": FailureSeverity.CRITICAL, "warning": FailureSeverity.WARNING}
    report = {
        "class_name": "SiteBuilder",
        "store_backend": {
            "class_name": "TupleFilesystemStoreBackend",
            "base_directory": str(docs),
        },
        "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
    }
    # by default a context has a site of its own besides, written to a folder that stays in /tmp
    config = DataContextConfig(
        data_docs_sites={"report": report},
        progress_bars=ProgressBarsConfig(globally=False),
        store_backend_defaults=InMemoryStoreBackendDefaults(),
    )
    context = gx.get_context(mode="ephemeral", project_config=config)
    url = sqlalchemy.make_url(settings.warehouse_url).set(drivername="postgresql+psycopg2")
    datasource = context.data_sources.add_postgres(  # type: ignore[call-arg]
        "warehouse",
        connection_string=url.render_as_string(hide_password=False),
        # one session: the temporary tables are there for every query
        kwargs={"pool_size": 1, "max_overflow": 0},
    )
    engine = datasource.get_execution_engine().engine
    try:
        with engine.begin() as connection:
            for contract in {batch.contract.name: batch.contract for batch in batches}.values():
                days = [b.landed_date for b in batches if b.contract is contract]
                for statement in _batch_table(contract, days, as_of):
                    connection.execute(sqlalchemy.text(statement))
        definitions = []
        for batch in batches:
            contract = batch.contract
            asset = datasource.add_query_asset(
                batch.name,
                query=f"select * from checked_{contract.name}"
                f" where {contract.day} = date '{batch.landed_date}'",
            )
            suite = context.suites.add(
                gx.ExpectationSuite(
                    name=batch.name,
                    expectations=[
                        ExpectationConfiguration(
                            type=check.rule.expectation,
                            kwargs=dict(check.arguments),
                            meta={"check": number},
                            notes=f"{check.rule.name}: {check.rule.description}",
                            severity=severities[check.rule.severity],
                        )
                        for number, check in enumerate(batch.checks)
                    ],
                )
            )
            definitions.append(
                context.validation_definitions.add(
                    gx.ValidationDefinition(
                        name=batch.name,
                        data=asset.add_batch_definition_whole_table(batch.name),
                        suite=suite,
                    )
                )
            )
        checkpoint = context.checkpoints.add(
            gx.Checkpoint(
                name=f"as_of {as_of}",
                validation_definitions=definitions,
                result_format={
                    "result_format": "SUMMARY",
                    "partial_unexpected_count": MAX_SHOWN,
                    "unexpected_index_column_names": [ROW],
                },
            )
        )
        run_results = checkpoint.run(run_id=RunIdentifier(run_name=f"as_of {as_of}")).run_results
        _require_answers(
            each for found in run_results.values() for each in found.results if not each.success
        )
        context.build_data_docs(resource_identifiers=list(run_results))
        results = {result.suite_name: result.results for result in run_results.values()}
        outcomes = [
            (batch, _outcome(batch, result))
            for batch in batches
            for result in sorted(results[batch.name], key=_number)
        ]
        with engine.connect() as connection:
            return [_with_farthest_rows(connection, *found) for found in outcomes]
    finally:
        engine.dispose()
        datasource.get_engine().dispose()


def _number(result: Any) -> int:
    """Which check a result is of: Great Expectations returns them in an order of its own."""
    return int(result.expectation_config.meta["check"])


def _outcome(batch: _Batch, result: Any) -> Outcome:
    check, observed = batch.checks[_number(result)], _observed(result)
    rows = observed.pop("partial_unexpected_index_list", None) or ()
    return Outcome(
        table=batch.contract.name,
        source=batch.contract.source,
        landed_date=batch.landed_date,
        rule=check.rule.name,
        severity=check.rule.severity,
        success=bool(result.success),
        expectation=check.rule.expectation,
        column=check.rule.column,
        expected=check.arguments,
        observed=observed,
        examples=tuple(sorted({str(row[ROW]) for row in rows})),
    )


def _with_farthest_rows(
    connection: sqlalchemy.Connection, batch: _Batch, outcome: Outcome
) -> Outcome:
    """Name the rows that pull a broken statistic of a column, such as its median, off its limit.

    Great Expectations names rows only for rules that a single row can break.
    """
    observed, expected = outcome.observed or {}, outcome.expected or {}
    value, low, high = (
        observed.get("observed_value"), expected.get("min_value"), expected.get("max_value")
    )  # fmt: skip
    if outcome.success or outcome.column is None or not isinstance(value, int | float):
        return outcome
    is_above = high is not None and value > high
    if not is_above and (low is None or value >= low):
        return outcome
    farthest = connection.execute(
        sqlalchemy.text(
            f"select {ROW} from checked_{batch.contract.name}"
            f" where {batch.contract.day} = :day and {outcome.column} is not null"
            f" order by {outcome.column} {'desc' if is_above else 'asc'}, {ROW} limit :most"
        ),
        {"day": batch.landed_date, "most": MAX_SHOWN},
    )
    return replace(outcome, examples=tuple(str(row) for (row,) in farthest))


_NO_BATCH = re.compile(r'relation "checked_\w+" does not exist')
"""What tells of a session that was lost between two queries, and with it its temporary tables."""


def _require_answers(broken: Iterable[Any]) -> None:
    """Refuse to tell a rule as broken where the server went away.

    Raises:
        SettingError: when it has ended a connection while rules were checked.
    """
    for result in broken:
        for message in _exceptions(result):
            require_server(_NO_BATCH.sub("connection already closed", message))


def _exceptions(result: Any) -> list[str]:
    """What was raised while a rule was checked."""
    errors = result.exception_info or {}
    several = [each for each in errors.values() if isinstance(each, dict)]
    messages = [each.get("exception_message") for each in several or [errors]]
    return [str(message) for message in messages if message]


def _observed(result: Any) -> dict[str, Any]:
    observed: dict[str, Any] = result.to_json_dict()["result"]
    for name in ("unexpected_index_query", "unexpected_index_column_names"):
        observed.pop(name, None)
    if result.success or observed:
        return observed
    return {"error": "; ".join(_exceptions(result)) or "None"}


def _keep(connection: Connection, run: Run, as_of: date, outcomes: Sequence[Outcome]) -> None:
    with connection.cursor() as cursor:
        execute_values(
            cursor,
            "insert into ops.quality_results (run_id, as_of, checked, source, landed_date, rule,"
            " severity, expectation, column_name, success, observed, expected, examples) values %s",
            [
                (
                    run.run_id,
                    as_of,
                    outcome.table,
                    outcome.source,
                    outcome.landed_date,
                    outcome.rule,
                    outcome.severity,
                    outcome.expectation,
                    outcome.column,
                    outcome.success,
                    Json(outcome.observed),
                    Json(outcome.expected),
                    list(outcome.examples),
                )
                for outcome in outcomes
            ],
        )
