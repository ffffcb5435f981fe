"""Publish scores of a night or of many: stage, audit, attach; then move all pointers at once."""

import logging
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import psycopg2
import pyarrow as pa
import pyarrow.parquet as pq
from psycopg2.errors import NotNullViolation, UndefinedTable, UniqueViolation
from psycopg2.extensions import connection as Connection
from psycopg2.extensions import cursor as Cursor
from psycopg2.extras import RealDictCursor, execute_values
from pydantic import ValidationError

from nightshift.columns import numbers
from nightshift.distribution import Distribution, Vector, count, distribution
from nightshift.errors import AuditError, Cause, NightshiftError, joined
from nightshift.io import lake
from nightshift.io.warehouse import connect, holding, lock, recorded_run
from nightshift.publication import ScoresManifest
from nightshift.publishing import audit, sql
from nightshift.publishing.load_run import copy_part_on_spark, copy_parts
from nightshift.settings import Settings
from nightshift.spec import UseCase

log = logging.getLogger(__name__)

COPIES_AT_ONCE = 4
"""Connections that load a publication, if there is a core for each and one more, which encodes and
answers readers: each makes jsonb of text on a core of the server, which is most of the work."""
READER_GRACE_SECONDS = 20.0
"""How long pointers wait for transactions that may hold a plan from before the attachment."""


@dataclass(frozen=True)
class Publication:
    """What readers see of one use case; ``is_new`` is False when they saw it already.

    Attributes:
        stability: audit that compares distributions → the index (PSI) that it found, newest.
    """

    use_case: str
    publication_id: str
    model_version: str
    rows: int
    is_new: bool
    stability: Mapping[str, float] = field(default_factory=dict)


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
    """Show the scores of ``as_of`` to readers, of every use case that passes its audit at once.

    A use case that does not pass holds none of the others. The same scores twice change nothing. A
    killed run leaves what readers saw before; the next run for the same ``as_of`` clears what it
    left.

    Raises:
        NightshiftError: when a use case has no scores for ``as_of``, or has other columns than
            were published; the others are published.
        AuditError: when scores break a rule; they stay in a table of their own for inspection,
            readers keep what they have of that use case, and the others are published.
    """
    if not use_cases:  # none is due
        return PublishResult(as_of, ())
    (result,) = _publish(settings, {as_of: use_cases}, is_all_or_none=False)
    return result


def publish_nights(
    settings: Settings, nights: Mapping[date, Sequence[UseCase]]
) -> tuple[PublishResult, ...]:
    """Show the scores of many dates to readers: all dates and use cases at once, or none.

    What has passed its audit is attached at once, which nobody sees; a killed run is therefore
    completed by the next without loading it again.

    Args:
        nights: ``as_of`` → the use cases that are published for it.

    Raises:
        NightshiftError: when scores are missing; readers keep what they have of every date.
        AuditError: when scores break a rule; the same.
    """
    return _publish(settings, nights, is_all_or_none=True)


def _publish(
    settings: Settings, nights: Mapping[date, Sequence[UseCase]], *, is_all_or_none: bool
) -> tuple[PublishResult, ...]:
    wanted = [
        (as_of, use_case)
        for as_of in sorted(nights)
        for use_case in sorted(nights[as_of], key=lambda u: u.name)
    ]
    names = {use_case.name for _, use_case in wanted}
    one = next(iter(names)) if len(names) == 1 else None
    with recorded_run(settings, "publish", max(nights), one) as run:
        refusals = _Refusals(is_all_or_none)
        scores = []
        for as_of, use_case in wanted:
            with refusals.collected():
                scores.append(_read_scores(settings, use_case, as_of))
        with holding(settings, exclusive=[f"publish:{u.name}:{d.isoformat()}" for d, u in wanted]):
            publications = _publish_locked(settings, scores, refusals)
        results = tuple(
            PublishResult(night, tuple(found for day, found in publications if day == night))
            for night in sorted(nights)
        )
        run.result["publications"] = [
            {"as_of": each.as_of, **asdict(found)}
            for each in results
            for found in each.publications
        ]
        if refusals.found:
            raise joined(refusals.found)
        return results


class _Refusals:
    """Refusals of single use cases: kept for the end, or raised at once where all hang together."""

    def __init__(self, is_all_or_none: bool) -> None:
        self.is_all_or_none = is_all_or_none
        self.found: list[NightshiftError] = []

    @contextmanager
    def collected(self) -> Iterator[None]:
        try:
            yield
        except NightshiftError as refusal:
            if self.is_all_or_none:
                raise
            self.found.append(refusal)


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


def _publish_locked(
    settings: Settings, scores: Sequence[_Scores], refusals: _Refusals
) -> list[tuple[date, Publication]]:
    sound = set()
    for name, use_case in {each.use_case.name: each.use_case for each in scores}.items():
        with refusals.collected(), connect(settings) as connection:
            _ensure_relations(connection, use_case)
            sound.add(name)
    scores = [each for each in scores if each.use_case.name in sound]
    with connect(settings) as connection:
        kept = {id(each): _rolled_back(connection, each) for each in scores}
        moving = [
            each
            for each in scores
            if kept[id(each)] is None and _pointer(connection, each) != each.manifest.publication_id
        ]
        arriving = [each for each in moving if not _is_attached(connection, each)]
    for each in scores:
        with connect(settings) as connection:
            _drop_left_behind(connection, each)
    with connect(settings) as connection:
        newest = _newest(connection, moving)
    refused = list(arriving)
    for number, each in enumerate(arriving, 1):
        with refusals.collected():
            found = _stage(settings, each, [one.manifest.publication_id for one in moving])
            with connect(settings) as connection:
                is_newest = each.manifest.as_of >= newest[each.use_case.name]
                _attach(connection, each, found, is_newest=is_newest)
            refused.remove(each)
            log.info(
                "%s: %s rows of %s staged, %d of %d",
                each.use_case.table, each.manifest.rows, each.manifest.as_of, number, len(arriving),
            )  # fmt: skip
    moving = [each for each in moving if each not in refused]
    if moving:
        # A reader that planned before an attachment and takes its snapshot after the pointers
        # moved would look for the new rows in a plan without their partition, and find none. What
        # a killed run has attached may be as new.
        _wait_for_readers(settings, moving)
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
    shown = [
        kept[id(each)]
        or Publication(
            each.use_case.name,
            each.manifest.publication_id,
            each.manifest.model_version,
            each.manifest.rows,
            each in moving,
        )
        for each in scores
        if each not in refused
    ]
    days = [each.manifest.as_of for each in scores if each not in refused]
    with connect(settings) as connection:
        stability = _stability(connection, [each.publication_id for each in shown])
    return [
        (day, replace(each, stability=stability.get(each.publication_id, {})))
        for day, each in zip(days, shown, strict=True)
    ]


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
    parts = lake.parts(folder)
    if not parts:
        raise AuditError(f"{folder} has a manifest, and no part-*.parquet", remedy)
    checksum = lake.parts_sha256(parts)
    if checksum != manifest.sha256:
        raise AuditError(
            f"{folder}: SHA-256 of the parts is {checksum}, the manifest says {manifest.sha256}",
            f"remove {folder} and score again",
        )
    for part in parts:
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


def _rolled_back(connection: Connection, scores: _Scores) -> Publication | None:
    """What readers see, where a person has rolled back from these very scores to it."""
    use_case, as_of = scores.use_case.name, scores.manifest.as_of
    with connection.cursor() as cursor:
        cursor.execute(
            "select m.from_publication_id, m.person, m.reason,"
            " o.publication_id, o.model_version, o.rows"
            " from ops.pointer_moves m"
            " join ops.publications o on o.publication_id = m.to_publication_id"
            " where m.use_case = %s and m.as_of = %s order by m.pointer_move_id desc limit 1",
            (use_case, as_of),
        )
        row = cursor.fetchone()
    if row is None or row[1] is None or row[0] != scores.manifest.publication_id:
        return None
    rolled_back, person, reason, seen, version, rows = row
    log.warning(
        "%s: %s of %s stays as it is: %s has rolled back from %s (%s); to show it again:"
        " `nightshift rollback %s --as-of %s --to %s`",
        scores.use_case.table, seen, as_of, person, rolled_back, reason, use_case, as_of,
        rolled_back,
    )  # fmt: skip
    return Publication(use_case, seen, version, rows, is_new=False)


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
        tables = (sql.data_table(use_case), sql.archive_table(use_case))
        found = {table: _columns(connection, table) for table in tables}
        declared = [(name, kind) for name, (kind, _) in sql.columns(use_case).items()]
        for table, there in found.items():
            if there and there != declared:
                raise NightshiftError(
                    f"{sql.SCHEMA}.{table} has the columns {there}; the spec of "
                    f"{use_case.name} declares {declared}",
                    "published columns are a contract: give the changed use case a new name",
                )
        if not all(found.values()):
            cursor.execute(sql.create_tables(use_case))
        for name, comment in sql.view_comments(use_case).items():
            cursor.execute(
                "select obj_description(to_regclass(%s), 'pg_class')",
                (f"{sql.SCHEMA}.{sql.quoted(name)}",),
            )
            if cursor.fetchone() != (comment,):
                cursor.execute(sql.create_view(use_case, name))
            _grant(connection, name)


def _columns(connection: Connection, table: str) -> list[tuple[str, str]]:
    """Names and types; [] where there is no such table."""
    with connection.cursor() as cursor:
        cursor.execute(
            "select a.attname, format_type(a.atttypid, a.atttypmod) from pg_attribute a"
            " join pg_class c on c.oid = a.attrelid where c.relnamespace = %s::regnamespace"
            " and c.relname = %s and a.attnum > 0 and not a.attisdropped order by a.attnum",
            (sql.SCHEMA, table),
        )
        return list(cursor.fetchall())


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
    """Drop tables that an earlier run for the same ``as_of`` staged and never attached, or detached
    and did not drop."""
    with connection.cursor() as cursor:
        cursor.execute(sql.loose_tables(scores.use_case))
        for name, as_of, *_ in cursor.fetchall():
            if as_of != scores.manifest.as_of:
                continue
            log.info("dropping %s.%s, which an earlier run left behind", sql.SCHEMA, name)
            cursor.execute(f"drop table {sql.SCHEMA}.{sql.quoted(name)}")


def _stage(settings: Settings, scores: _Scores, together: Sequence[str]) -> Distribution:
    """Load and audit one publication in a table of its own, which stays when the audit fails.

    Args:
        together: ids of the publications that this run shows to readers at once.

    Returns:
        The distribution of its scores.
    """
    use_case, manifest = scores.use_case, scores.manifest
    table = sql.partition(use_case, manifest.publication_id)
    name = f"{sql.SCHEMA}.{sql.quoted(table)}"
    # what a killed run leaves of it is found by its comment, and dropped by the next
    with connect(settings) as connection, connection.cursor() as cursor:
        cursor.execute(sql.create_staging(use_case, manifest))
    with ThreadPoolExecutor(1) as beside:
        found = beside.submit(_scores_of, scores)
        unknown = beside.submit(_keys_unknown, settings, scores)
        try:
            _load(settings, scores)
        except (psycopg2.DataError, pa.ArrowException) as error:
            with connect(settings) as connection:
                _drop_left_behind(connection, scores)
            raise AuditError(
                f"{use_case.name} at {manifest.as_of}: rule readable: {str(error).strip()}",
                f"score again: the rows of {scores.folder} do not fit {name}",
            ) from error
        second = beside.submit(_beside_the_key, settings, scores)
        with connect(settings) as connection, connection.cursor() as cursor:
            evidence = audit.Evidence(
                figures=_figures(connection, scores, second),
                keys_unknown=unknown.result(),
                previous=_previous(connection, scores, together, found.result()),
                training=_compared(manifest.training_scores, found.result()),
            )
            results = audit.judge(use_case, manifest, evidence)
            _keep_results(connection, manifest, results)
            cursor.execute(sql.analyze(use_case, manifest.publication_id))
    failed = [result for result in results if result.outcome == "failed"]
    if failed:
        raise AuditError(
            f"{use_case.name} at {manifest.as_of} is not published; "
            + "; ".join(str(result) for result in failed),
            f"the refused rows are in {name}; readers keep what they had",
            causes=tuple(
                Cause(f"{use_case.name}: {result.rule}", observed=result.detail)
                for result in failed
            ),
        )
    return distribution(found.result()[np.isfinite(found.result())])


def _load(settings: Settings, scores: _Scores) -> None:
    """Copy the parts into the publication's table, by a connection, several or Spark's workers."""
    use_case, publication_id = scores.use_case, scores.manifest.publication_id
    left = lake.parts(scores.folder)
    at_once = min(COPIES_AT_ONCE, len(os.sched_getaffinity(0)) - 1, len(left))
    if at_once < 2 and settings.scoring != "spark":
        copy_parts(settings, use_case, publication_id, left, alone=True)
        return
    if settings.scoring == "spark":
        from nightshift.io.spark import spark_session

        with spark_session(settings, f"nightshift publish {use_case.name}") as spark:
            refusals = (
                spark.sparkContext.parallelize(left, len(left))
                .map(lambda part: copy_part_on_spark(settings, use_case, publication_id, part))
                .collect()
            )
        for refusal in filter(None, refusals):
            raise psycopg2.DataError(refusal)
        return

    def remaining() -> Iterator[Path]:
        while left:
            try:
                yield left.pop()
            except IndexError:  # another connection took the last one
                return

    def copy() -> None:
        try:
            copy_parts(settings, use_case, publication_id, remaining())
        except BaseException:
            left.clear()
            raise

    with ThreadPoolExecutor(at_once) as connections:
        for copied in [connections.submit(copy) for _ in range(at_once)]:
            copied.result()


def _scores_of(scores: _Scores) -> Vector:
    """The scores, (rows,) float64 with NaN for null."""
    column = scores.use_case.score_column
    parts = [
        pq.ParquetFile(part).read([column], use_threads=False) for part in lake.parts(scores.folder)
    ]
    return numbers(pa.concat_tables(parts).column(column))


def _compared(reference: Distribution | None, scores: Vector) -> audit.Compared | None:
    if reference is None:
        return None
    return audit.Compared(reference, count(scores, reference.edges))


def _keys_unknown(settings: Settings, scores: _Scores) -> int | None:
    """How many keys the features do not have that were scored; None where these are gone."""
    use_case, manifest = scores.use_case, scores.manifest
    folder = lake.dataset_dir(settings.lake_dir, "features", use_case.name, manifest.as_of)
    with holding(settings, shared=[f"features:{use_case.name}:{manifest.as_of}"]):
        features = lake.read_manifest(folder)
        if features is None or features.get("sha256") != manifest.features_sha256:
            return None
        scored, known = (lake.parts(each) for each in (scores.folder, folder))
        if _are_same(use_case.row_key, scored, known):
            return 0
        import duckdb  # 0.15 s, for rankings and for keys that are unknown only

        with (
            tempfile.TemporaryDirectory() as spill,
            duckdb.connect(config={"temp_directory": spill, "threads": 1}) as database,
        ):
            read = "(select {0} from read_parquet(?, hive_partitioning = false))"
            names = ", ".join(sql.quoted(name) for name in use_case.row_key)
            keys = read.format(names)
            row = database.execute(
                f"select count(*) from {keys} as scored anti join {keys} as known using ({names})",
                [[str(part) for part in parts] for parts in (scored, known)],
            ).fetchone()
    return int(row[0]) if row else None


def _are_same(names: Sequence[str], scored: Sequence[Path], known: Sequence[Path]) -> bool:
    """Whether the columns hold the same values in the same order, part by part, and no null."""
    if len(scored) != len(known):
        return False
    for pair in zip(scored, known, strict=True):
        ours, theirs = (pq.ParquetFile(part).read(list(names), use_threads=False) for part in pair)
        if not ours.equals(theirs) or any(column.null_count for column in ours.columns):
            return False
    return True


def _previous(
    connection: Connection, scores: _Scores, together: Sequence[str], found: Vector
) -> audit.Previous | None:
    """What readers see, or will see with this run, for this date or else for the one before it; of
    the same version, where there is any."""
    manifest = scores.manifest
    with connection.cursor() as cursor:
        cursor.execute(
            "select publication_id, as_of, model_version, score_edges, score_counts"
            " from ops.publications where use_case = %s and as_of <= %s and publication_id <> %s"
            " and (publication_id = any(%s) or publication_id in"
            "  (select publication_id from predictions.pointers where use_case = %s))"
            " order by model_version = %s desc, as_of desc limit 1",
            (
                manifest.use_case, manifest.as_of, manifest.publication_id, list(together),
                manifest.use_case, manifest.model_version,
            ),
        )  # fmt: skip
        row = cursor.fetchone()
    if row is None:
        return None
    publication_id, as_of, model_version, edges, counts = row
    kept = None if edges is None else Distribution(edges=edges, counts=counts)
    return audit.Previous(publication_id, as_of, model_version, _compared(kept, found))


def _beside_the_key(settings: Settings, scores: _Scores) -> tuple[int, int, int]:
    """The indexes of bands; then lists, full and broken ones, of a ranking."""
    use_case, publication_id = scores.use_case, scores.manifest.publication_id
    with connect(settings) as connection, connection.cursor() as cursor:
        cursor.execute(sql.SHARE_WORKERS)
        for statement in sql.add_band_indexes(use_case, publication_id):
            cursor.execute(statement)
        if not use_case.list_columns:
            return 0, 0, 0
        cursor.execute(sql.list_figures(use_case, publication_id))
        lists, full, broken = cursor.fetchone() or (0, 0, 0)
        return lists, full, broken


def _figures(
    connection: Connection, scores: _Scores, second: Future[tuple[int, int, int]]
) -> audit.Figures:
    """What the audit judges; and the primary key is made, if it can be.

    Args:
        second: of ``_beside_the_key``, by another connection, whose locks a primary key waits for.
    """
    use_case, publication_id = scores.use_case, scores.manifest.publication_id
    keys_missing = keys_repeated = 0
    with connection.cursor() as cursor:
        cursor.execute(sql.SHARE_WORKERS)
        is_key = _is_unique(cursor, sql.add_unique_index(use_case, publication_id))
        cursor.execute(sql.audit_figures(use_case, scores.manifest))
        by_band = {band: figures for band, *figures in cursor.fetchall()}
        lists = second.result()
        if not (is_key and _is_unique(cursor, sql.add_primary_key(use_case, publication_id))):
            cursor.execute(sql.key_figures(use_case, publication_id))
            keys_missing, keys_repeated = cursor.fetchone() or (0, 0)
    rows, outside, unknown, misplaced, without_reasons, other_versions, no_intervals = (
        sum(column) for column in zip([0] * 7, *by_band.values(), strict=True)
    )
    return audit.Figures(
        rows=rows,
        scores_out_of_range=outside,
        unknown_bands=unknown,
        misplaced_bands=misplaced,
        without_reasons=without_reasons,
        other_model_versions=other_versions,
        broken_intervals=no_intervals,
        keys_missing=keys_missing,
        keys_repeated=keys_repeated,
        band_rows={band: figures[0] for band, figures in by_band.items()},
        lists=lists[0],
        full_lists=lists[1],
        broken_lists=lists[2],
    )


def _is_unique(cursor: Cursor, statement: str) -> bool:
    """Whether the statement could make the rows unique and named; else it is undone."""
    cursor.execute("savepoint before_key")
    try:
        cursor.execute(statement)
    except (UniqueViolation, NotNullViolation):
        cursor.execute("rollback to savepoint before_key")
        return False
    return True


def _keep_results(
    connection: Connection, manifest: ScoresManifest, results: Sequence[audit.AuditResult]
) -> None:
    with connection.cursor() as cursor:
        execute_values(
            cursor,
            "insert into ops.audit_results (publication_id, use_case, as_of, model_version, rule,"
            " outcome, observed, bound, detail) values %s",
            [
                (
                    manifest.publication_id, manifest.use_case, manifest.as_of,
                    manifest.model_version, each.rule, each.outcome, each.observed, each.bound,
                    each.detail,
                )
                for each in results
            ],
        )  # fmt: skip


def _stability(connection: Connection, publication_ids: list[str]) -> dict[str, dict[str, float]]:
    """Publication → audit → the newest stability index that was found."""
    found: dict[str, dict[str, float]] = {}
    with connection.cursor() as cursor:
        cursor.execute(
            "select publication_id, rule, observed from ops.audit_results"
            " where publication_id = any(%s) and rule like 'stable!_%%' escape '!'"
            " and observed is not null order by audit_result_id",
            (publication_ids,),
        )
        for publication_id, rule, observed in cursor.fetchall():
            found.setdefault(publication_id, {})[rule] = observed
    return found


def _newest(connection: Connection, moving: Sequence[_Scores]) -> dict[str, date]:
    """Use case → the newest date that readers see, or will see once the pointers have moved."""
    with connection.cursor() as cursor:
        cursor.execute("select use_case, max(as_of) from predictions.pointers group by use_case")
        newest: dict[str, date] = dict(cursor.fetchall())
    for each in moving:
        as_of = each.manifest.as_of
        newest[each.use_case.name] = max(as_of, newest.get(each.use_case.name, as_of))
    return newest


def _attach(
    connection: Connection, arriving: _Scores, found: Distribution, *, is_newest: bool
) -> None:
    manifest = arriving.manifest
    with connection.cursor() as cursor:
        cursor.execute(
            "insert into ops.publications (publication_id, use_case, as_of, model_version,"
            " mlflow_run_id, rows, features_sha256, scored_at, score_edges, score_counts,"
            " made_from) values (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)"
            " on conflict (publication_id) do update set published_at = now(), dropped_at = null,"
            " made_from = coalesce(excluded.made_from, publications.made_from)",
            (
                manifest.publication_id,
                manifest.use_case,
                manifest.as_of,
                manifest.model_version,
                manifest.mlflow_run_id,
                manifest.rows,
                manifest.features_sha256,
                manifest.scored_at,
                list(found.edges),
                list(found.counts),
                manifest.made_from and manifest.made_from.model_dump_json(),
            ),
        )
        if is_newest:
            cursor.execute(sql.attach(arriving.use_case, manifest.publication_id))
        else:
            cursor.execute(
                sql.attach_to_archive(arriving.use_case, manifest.publication_id, manifest.as_of)
            )


def _wait_for_readers(settings: Settings, moving: Sequence[_Scores]) -> None:
    """Wait for the transactions that hold a lock on the data tables, ``READER_GRACE_SECONDS`` long.

    Called once the attachments are committed: whoever takes a lock later learns of the partitions.
    """
    names = {
        name
        for each in moving
        for name in (sql.data_table(each.use_case), sql.archive_table(each.use_case))
    }
    tables = [f"{sql.SCHEMA}.{sql.quoted(name)}" for name in names]
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
