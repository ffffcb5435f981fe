"""Publish a night's scores: stage, audit, attach, and move the pointers in one transaction."""

import hashlib
import io
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import psycopg2
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
from psycopg2.errors import NotNullViolation, UndefinedTable, UniqueViolation
from psycopg2.extensions import connection as Connection
from psycopg2.extras import RealDictCursor
from pydantic import ValidationError

from nightshift.errors import AuditError, Cause, NightshiftError
from nightshift.io import lake
from nightshift.io.warehouse import connect, lock, recorded_run
from nightshift.publication import ScoresManifest
from nightshift.publishing import audit, sql
from nightshift.settings import Settings
from nightshift.spec import UseCase

log = logging.getLogger(__name__)

BATCH_ROWS = 65_536
READER_GRACE_SECONDS = 20.0
"""How long pointers wait for transactions that may hold a plan from before the attachment."""


@dataclass(frozen=True)
class Publication:
    """What readers see of one use case; ``is_new`` is False when they saw it already."""

    use_case: str
    publication_id: str
    model_version: str
    rows: int
    is_new: bool


@dataclass(frozen=True)
class PublishResult:
    """The publications of one night."""

    as_of: date
    publications: tuple[Publication, ...]


@dataclass(frozen=True)
class _Scores:
    use_case: UseCase
    folder: Path
    manifest: ScoresManifest


def publish(settings: Settings, use_cases: Sequence[UseCase], as_of: date) -> PublishResult:
    """Show the scores of ``as_of`` to readers, for all use cases at once or for none.

    The same scores twice change nothing. A killed run leaves what readers saw before; the next
    run for the same ``as_of`` clears what it left.

    Raises:
        NightshiftError: when a use case has no scores for ``as_of``.
        AuditError: when scores break a rule; they stay in a table of their own for inspection,
            and readers keep what they have.
    """
    one = use_cases[0].name if len(use_cases) == 1 else None
    with recorded_run(settings, "publish", as_of, one) as run:
        scores = [
            _read_scores(settings, use_case, as_of)
            for use_case in sorted(use_cases, key=lambda u: u.name)
        ]
        with connect(settings) as guard:
            with guard.cursor() as cursor:
                # it stays idle while the rows are copied through connections of their own
                cursor.execute("set local idle_in_transaction_session_timeout = 0")
            for each in scores:
                lock(guard, f"publish:{each.use_case.name}:{as_of.isoformat()}")
            publications = _publish_locked(settings, scores)
        run.result = {
            p.use_case: {"publication_id": p.publication_id, "rows": p.rows, "is_new": p.is_new}
            for p in publications
        }
        return PublishResult(as_of, publications)


def top_rows(settings: Settings, use_case: UseCase, limit: int = 10) -> list[dict[str, Any]]:
    """The ``limit`` highest scores of the newest published ``as_of``, as ``_latest`` shows them.

    Raises:
        NightshiftError: when the use case was never published.
    """
    with (
        connect(settings) as connection,
        connection.cursor(cursor_factory=RealDictCursor) as cursor,
    ):
        try:
            cursor.execute(sql.top(use_case), (limit,))
        except UndefinedTable as error:
            raise NightshiftError(
                f"{use_case.table} does not exist: nothing of {use_case.name} was ever published",
                "run `nightshift nightly --as-of <date>`",
            ) from error
        return [dict(row) for row in cursor.fetchall()]


def _publish_locked(settings: Settings, scores: Sequence[_Scores]) -> tuple[Publication, ...]:
    with connect(settings) as connection:
        seen = {each.use_case.name: _pointer(connection, each) for each in scores}
        attached = {each.use_case.name: _is_attached(connection, each) for each in scores}
    moving = [each for each in scores if seen[each.use_case.name] != each.manifest.publication_id]
    arriving = [each for each in moving if not attached[each.use_case.name]]
    for each in scores:
        with connect(settings) as connection:
            _ensure_relations(connection, each.use_case)
            _drop_left_behind(connection, each)
    for each in arriving:
        _stage(settings, each)
    if arriving:
        with connect(settings) as connection:
            _attach(connection, arriving)
        # A reader that planned before the attachment and takes its snapshot after the pointers
        # moved would look for the new rows in a plan without their partition, and find none.
        _wait_for_readers(settings, arriving)
    with connect(settings) as connection:
        _move_pointers(connection, moving)
    for each in moving:
        log.info(
            "%s: %s rows of %s published as %s",
            each.use_case.table,
            each.manifest.rows,
            each.manifest.as_of,
            each.manifest.publication_id,
        )
    return tuple(
        Publication(
            each.use_case.name,
            each.manifest.publication_id,
            each.manifest.model_version,
            each.manifest.rows,
            each in moving,
        )
        for each in scores
    )


def _read_scores(settings: Settings, use_case: UseCase, as_of: date) -> _Scores:
    sql.check_name(use_case)
    folder = lake.dataset_dir(settings.lake_dir, "scores", use_case.name, as_of)
    remedy = f"run `nightshift score {use_case.name} --as-of {as_of.isoformat()}` first"
    found = lake.read_manifest(folder)
    if found is None:
        raise NightshiftError(
            f"{use_case.name} has no scores for {as_of}: {folder} is missing", remedy
        )
    try:
        manifest = ScoresManifest.model_validate(found)
    except ValidationError as error:
        raise AuditError(f"{folder / lake.MANIFEST}: {error}", remedy) from error
    if (manifest.use_case, manifest.as_of) != (use_case.name, as_of):
        raise AuditError(
            f"{folder / lake.MANIFEST} belongs to {manifest.use_case} at {manifest.as_of}", remedy
        )
    part = folder / "part-00000.parquet"
    try:
        with part.open("rb") as file:
            checksum = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError as error:
        raise AuditError(f"{part} is missing, but its manifest is there", remedy) from error
    if checksum != manifest.sha256:
        raise AuditError(
            f"{part}: SHA-256 is {checksum}, its manifest says {manifest.sha256}",
            f"remove {folder} and score again",
        )
    missing = set(sql.copied_columns(use_case)) - set(pq.read_schema(part).names)
    if missing:
        raise AuditError(f"{part} has no column {', '.join(sorted(missing))}", remedy)
    return _Scores(use_case, folder, manifest)


def _pointer(connection: Connection, scores: _Scores) -> str | None:
    with connection.cursor() as cursor:
        cursor.execute(
            "select publication_id from predictions.pointers where use_case = %s and as_of = %s",
            (scores.use_case.name, scores.manifest.as_of),
        )
        row = cursor.fetchone()
    return row[0] if row else None


def _is_attached(connection: Connection, scores: _Scores) -> bool:
    with connection.cursor() as cursor:
        cursor.execute(
            "select exists (select from pg_class c join pg_inherits i on i.inhrelid = c.oid"
            " where c.relnamespace = %s::regnamespace and c.relname = %s)",
            (sql.SCHEMA, sql.partition(scores.use_case, scores.manifest.publication_id)),
        )
        row = cursor.fetchone()
    return bool(row and row[0])


def _ensure_relations(connection: Connection, use_case: UseCase) -> None:
    """Create the data table and the views where they are missing; change a view only if it differs.

    Replacing a view takes a lock that readers wait for, so it must not happen every night.
    """
    lock(connection, f"publish:{use_case.name}")
    with connection.cursor() as cursor:
        cursor.execute(
            "select a.attname, format_type(a.atttypid, a.atttypmod) from pg_attribute a"
            " join pg_class c on c.oid = a.attrelid where c.relnamespace = %s::regnamespace"
            " and c.relname = %s and a.attnum > 0 and not a.attisdropped order by a.attnum",
            (sql.SCHEMA, sql.data_table(use_case)),
        )
        there = cursor.fetchall()
        declared = [(name, kind) for name, (kind, _) in sql.columns(use_case).items()]
        if not there:
            cursor.execute(sql.create_data_table(use_case))
        elif there != declared:
            raise NightshiftError(
                f"{sql.SCHEMA}.{sql.data_table(use_case)} has the columns {there}; the spec of "
                f"{use_case.name} declares {declared}",
                "published columns are a contract: give the changed use case a new name",
            )
        for name, comment in sql.view_comments(use_case).items():
            cursor.execute(
                "select obj_description(to_regclass(%s), 'pg_class')",
                (f"{sql.SCHEMA}.{sql.quoted(name)}",),
            )
            if cursor.fetchone() != (comment,):
                cursor.execute(sql.create_view(use_case, name))
            _grant(connection, name)


def _grant(connection: Connection, view: str) -> None:
    """Let the reader's role read the view; a warning where a user's own database lacks the role."""
    with connection.cursor() as cursor:
        cursor.execute("select 1 from pg_roles where rolname = %s", (sql.READER,))
        if cursor.fetchone() is None:
            log.warning(
                "%s.%s: there is no role %s to grant it to; create it, and publish again",
                sql.SCHEMA,
                view,
                sql.READER,
            )
            return
        qualified = f"{sql.SCHEMA}.{sql.quoted(view)}"
        cursor.execute(
            "select has_schema_privilege(%s, %s, 'usage'), has_table_privilege(%s, %s, 'select')",
            (sql.READER, sql.SCHEMA, sql.READER, qualified),
        )
        if cursor.fetchone() != (True, True):
            cursor.execute(f"grant usage on schema {sql.SCHEMA} to {sql.READER}")
            cursor.execute(f"grant select on {qualified} to {sql.READER}")
            cursor.execute(
                f"grant execute on function {sql.SCHEMA}.pseudonym(text) to {sql.READER}"
            )


def _drop_left_behind(connection: Connection, scores: _Scores) -> None:
    """Drop tables that an earlier run for the same ``as_of`` staged and never attached."""
    with connection.cursor() as cursor:
        cursor.execute(
            "select c.relname from pg_class c where c.relnamespace = %s::regnamespace"
            " and c.relkind = 'r' and obj_description(c.oid, 'pg_class') = %s"
            " and not exists (select from pg_inherits i where i.inhrelid = c.oid)",
            (sql.SCHEMA, sql.staging_comment(scores.use_case, scores.manifest.as_of)),
        )
        for (name,) in cursor.fetchall():
            log.info("dropping %s.%s, which an earlier run left behind", sql.SCHEMA, name)
            cursor.execute(f"drop table {sql.SCHEMA}.{sql.quoted(name)}")


class _CsvStream(io.RawIOBase):
    """Arrow batches as a CSV file that COPY reads, one batch in memory at a time."""

    def __init__(self, batches: Iterator[pa.RecordBatch]) -> None:
        self._batches = batches
        self._buffer = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, target: Any) -> int:
        while not self._buffer:
            batch = next(self._batches, None)
            if batch is None:
                return 0
            sink = io.BytesIO()
            pacsv.write_csv(batch, sink, pacsv.WriteOptions(include_header=False))
            self._buffer = sink.getbuffer()
        size = min(len(target), len(self._buffer))
        target[:size] = self._buffer[:size]
        self._buffer = self._buffer[size:]
        return size


def _stage(settings: Settings, scores: _Scores) -> None:
    """Load and audit one publication in a table of its own, which stays when the audit fails."""
    use_case, manifest = scores.use_case, scores.manifest
    name = f"{sql.SCHEMA}.{sql.quoted(sql.partition(use_case, manifest.publication_id))}"
    with connect(settings) as connection, connection.cursor() as cursor, ExitStack() as stack:
        cursor.execute(sql.create_staging(use_case, manifest))
        file = stack.enter_context(pq.ParquetFile(scores.folder / "part-00000.parquet"))
        batches = file.iter_batches(BATCH_ROWS, columns=sql.copied_columns(use_case))
        names = sql.copied_columns(use_case)
        ordered = (batch.select(names) for batch in batches)
        try:
            cursor.copy_expert(
                sql.copy_into(use_case, manifest.publication_id),
                io.BufferedReader(_CsvStream(ordered)),
            )
        except psycopg2.DataError as error:
            raise AuditError(
                f"{use_case.name} at {manifest.as_of}: rule readable: {str(error).strip()}",
                f"score again: the rows of {scores.folder} do not fit {name}",
            ) from error
        figures = _figures(connection, scores)
        cursor.execute(f"analyze {name}")
    findings = audit.judge(use_case, manifest, figures)
    if findings:
        raise AuditError(
            f"{use_case.name} at {manifest.as_of} is not published; "
            + "; ".join(str(finding) for finding in findings),
            f"the refused rows are in {name}; readers keep what they had",
            causes=tuple(
                Cause(f"{use_case.name}: {f.rule}", observed=f"{f.observed}, expected {f.expected}")
                for f in findings
            ),
        )


def _figures(connection: Connection, scores: _Scores) -> audit.Figures:
    use_case, publication_id = scores.use_case, scores.manifest.publication_id
    keys_missing = keys_repeated = 0
    with connection.cursor() as cursor:
        cursor.execute("savepoint before_key")
        try:
            cursor.execute(sql.add_primary_key(use_case, publication_id))
        except (UniqueViolation, NotNullViolation):
            cursor.execute("rollback to savepoint before_key")
            cursor.execute(sql.key_figures(use_case, publication_id))
            keys_missing, keys_repeated = cursor.fetchone() or (0, 0)
        cursor.execute(sql.audit_figures(use_case, scores.manifest))
        figures = [*(cursor.fetchone() or ()), keys_missing, keys_repeated]
    return audit.Figures(*figures)


def _attach(connection: Connection, arriving: Sequence[_Scores]) -> None:
    with connection.cursor() as cursor:
        for each in arriving:
            manifest = each.manifest
            cursor.execute(
                "insert into ops.publications (publication_id, use_case, as_of, model_version,"
                " mlflow_run_id, rows, features_sha256, scored_at)"
                " values (%s, %s, %s, %s, %s, %s, %s, %s)",
                (
                    manifest.publication_id,
                    manifest.use_case,
                    manifest.as_of,
                    manifest.model_version,
                    manifest.mlflow_run_id,
                    manifest.rows,
                    manifest.features_sha256,
                    manifest.scored_at,
                ),
            )
            cursor.execute(sql.attach(each.use_case, manifest.publication_id))


def _wait_for_readers(settings: Settings, arriving: Sequence[_Scores]) -> None:
    """Wait for the transactions that hold a lock on the data tables, ``READER_GRACE_SECONDS`` long.

    Called once the attachment is committed: whoever takes a lock later learns of the partition.
    """
    tables = [f"{sql.SCHEMA}.{sql.quoted(sql.data_table(each.use_case))}" for each in arriving]
    deadline = time.monotonic() + READER_GRACE_SECONDS
    with connect(settings) as connection, connection.cursor() as cursor:
        cursor.execute(
            "select distinct virtualtransaction from pg_locks where locktype = 'relation'"
            " and database = (select oid from pg_database where datname = current_database())"
            " and relation = any(%s::regclass[]::oid[]) and pid <> pg_backend_pid()",
            (tables,),
        )
        transactions = [row[0] for row in cursor.fetchall()]
        while transactions:
            cursor.execute(
                "select l.virtualtransaction, l.pid, a.usename, a.application_name"
                " from pg_locks l left join pg_stat_activity a on a.pid = l.pid"
                " where l.locktype = 'virtualxid' and l.virtualtransaction = any(%s)",
                (transactions,),
            )
            left = cursor.fetchall()
            transactions = [row[0] for row in left]
            if transactions and time.monotonic() > deadline:
                log.warning(
                    "published while older transactions are still open (%s): a prepared statement"
                    " in one of them may find no rows of tonight until it commits",
                    ", ".join(f"pid {pid} {user} {app}".strip() for _, pid, user, app in left),
                )
                return
            if transactions:
                time.sleep(0.02)


def _move_pointers(connection: Connection, moving: Sequence[_Scores]) -> None:
    with connection.cursor() as cursor:
        for each in moving:
            cursor.execute(
                "insert into predictions.pointers (use_case, as_of, publication_id)"
                " values (%s, %s, %s) on conflict (use_case, as_of)"
                " do update set publication_id = excluded.publication_id, moved_at = now()",
                (each.use_case.name, each.manifest.as_of, each.manifest.publication_id),
            )
