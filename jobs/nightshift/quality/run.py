"""Check what landed last before ``as_of`` with a Great Expectations checkpoint."""

import logging
import os
from collections.abc import Sequence
from datetime import date
from typing import Any

import sqlalchemy
from psycopg2.extensions import connection as Connection
from psycopg2.extras import Json, execute_values

from nightshift.errors import RefusedAsOf
from nightshift.io.warehouse import Run, connect, recorded_run
from nightshift.quality.suites import SUITES, Check, Folder, History, recent, usual_rows
from nightshift.quality.verdict import Outcome, QualityResult, failure
from nightshift.settings import Settings

logger = logging.getLogger(__name__)

FOLDERS_CHECKED = 5


def check_landed(settings: Settings, as_of: date) -> QualityResult:
    """Check, for each source, the last folders that landed before ``as_of``.

    More than one: a folder that failed last night must not slip through tonight behind a good one.

    Only the ledger and rows that landed before ``as_of`` are read, so a night that is run again
    gets the same verdict. Each outcome is a row of ``ops.quality_results``.

    Raises:
        RefusedAsOf: when nothing of a source landed before ``as_of``.
        QualityError: naming each failed expectation, its source, date and column, and what was
            observed and expected.
    """
    with recorded_run(settings, "quality", as_of) as run:
        outcomes: list[Outcome] = []
        landed_dates: dict[str, date] = {}
        for source in sorted(SUITES):
            with connect(settings) as connection:
                folders = _folders(connection, source, as_of)
                histories = [
                    _history(connection, source, folders[position:])
                    for position in range(min(FOLDERS_CHECKED, len(folders)))
                ]
            landed_dates[source] = folders[0].landed_date
            for batch, history in zip(folders, histories, strict=False):
                checks = SUITES[source](batch, history)
                outcomes += _validate(settings, source, batch, checks)
        failed = [outcome for outcome in outcomes if not outcome.success]
        run.result.update(
            landed_dates=landed_dates,
            expectations=len(outcomes),
            failed=[f"{o.source}: {o.check.expectation}: {o.check.column}" for o in failed],
        )
        _keep(settings, run, as_of, outcomes)
        error = failure(outcomes)
        if error is not None:
            raise error
        logger.info("quality: all %d expectations hold on %s", len(outcomes), landed_dates)
        return QualityResult(landed_dates=landed_dates, outcomes=tuple(outcomes))


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
        folders = [Folder(*row) for row in cursor.fetchall()]
    if not folders:
        raise RefusedAsOf(
            f"no file of {source} that landed before as_of {as_of} is loaded",
            f"run `nightshift ingest --as-of {as_of}`, or choose a later as_of",
        )
    return folders


def _history(connection: Connection, source: str, folders: Sequence[Folder]) -> History:
    batch = folders[0]
    before = recent(folders, batch)
    price, countries = None, ()
    if before:
        with connection.cursor() as cursor:
            cursor.execute(
                "select percentile_cont(0.5) within group (order by price),"
                " array_agg(distinct country)"
                f" from raw.{source} where _landed_date >= %s and _landed_date < %s",
                (before[-1].landed_date, batch.landed_date),
            )
            price, countries = cursor.fetchone()
    return History(
        rows=usual_rows(folders, batch),
        median_price=price if price and price > 0 else None,
        countries=tuple(countries or ()),
    )


def _batch_query(source: str, batch: Folder) -> str:
    """The batch's rows, with what takes the whole invoice, batch or ledger to know."""
    quarantined_share = (batch.rows_in - batch.rows) / max(batch.rows_in, 1)
    return f"""
    select * from (
        with lines as (
            select * from raw.{source} where _landed_date = date '{batch.landed_date}'
        ),
        invoices as (
            select invoice, count(*) as lines, count(customer_id) as lines_with_customer
            from lines
            group by invoice
        )
        select
            lines.*,
            invoices.lines_with_customer in (0, invoices.lines) as invoice_has_one_customer,
            (select avg((lines_with_customer = 0)::int)::double precision from invoices)
                as anonymous_invoice_share,
            {quarantined_share!r}::double precision as quarantined_share
        from lines
        inner join invoices using (invoice)
    ) as batch
    """


def _validate(
    settings: Settings, source: str, batch: Folder, checks: Sequence[Check]
) -> list[Outcome]:
    # Great Expectations reads it as it is imported, which takes seconds: so not at the top.
    os.environ["GX_ANALYTICS_ENABLED"] = "false"
    import great_expectations as gx
    from great_expectations.data_context.types.base import ProgressBarsConfig
    from great_expectations.expectations.expectation_configuration import ExpectationConfiguration

    # The second sets a level of its own when it is imported.
    for name in ("great_expectations", "great_expectations.data_context.types.base"):
        logging.getLogger(name).setLevel(logging.WARNING)
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    url = sqlalchemy.make_url(settings.warehouse_url).set(drivername="postgresql+psycopg2")
    datasource = context.data_sources.add_postgres(
        "warehouse", connection_string=url.render_as_string(hide_password=False)
    )
    try:
        asset = datasource.add_query_asset(source, query=_batch_query(source, batch))
        suite = context.suites.add(
            gx.ExpectationSuite(
                name=source,
                expectations=[
                    ExpectationConfiguration(
                        type=check.expectation, kwargs=dict(check.arguments), meta={"check": number}
                    )
                    for number, check in enumerate(checks)
                ],
            )
        )
        definition = context.validation_definitions.add(
            gx.ValidationDefinition(
                name=source, data=asset.add_batch_definition_whole_table(source), suite=suite
            )
        )
        checkpoint = context.checkpoints.add(
            gx.Checkpoint(name=source, validation_definitions=[definition], result_format="BASIC")
        )
        validation = next(iter(checkpoint.run().run_results.values()))
    finally:
        datasource.get_engine().dispose()
    return [
        Outcome(
            source=source,
            landed_date=batch.landed_date,
            check=checks[_number(result)],
            success=bool(result.success),
            observed=_observed(result),
        )
        for result in validation.results
    ]


def _number(result: Any) -> int:
    """Which check a result is of: Great Expectations returns them in an order of its own."""
    return int(result.expectation_config.meta["check"])


def _observed(result: Any) -> dict[str, Any]:
    observed: dict[str, Any] = result.to_json_dict()["result"]
    if result.success or observed:
        return observed
    errors = result.exception_info or {}
    messages = [e.get("exception_message") for e in errors.values() if isinstance(e, dict)]
    return {"error": "; ".join(filter(None, messages)) or str(errors.get("exception_message"))}


def _keep(settings: Settings, run: Run, as_of: date, outcomes: Sequence[Outcome]) -> None:
    with connect(settings) as connection, connection.cursor() as cursor:
        execute_values(
            cursor,
            "insert into ops.quality_results"
            " (run_id, as_of, source, expectation, column_name, success, observed) values %s",
            [
                (
                    run.run_id,
                    as_of,
                    outcome.source,
                    outcome.check.expectation,
                    outcome.check.column,
                    outcome.success,
                    Json(
                        {
                            "landed_date": outcome.landed_date.isoformat(),
                            "observed": outcome.observed,
                            "expected": dict(outcome.check.arguments),
                        }
                    ),
                )
                for outcome in outcomes
            ],
        )
