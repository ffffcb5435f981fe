"""Extracts marts to the lake: by landed month, in buckets of entities."""

import logging
import shutil
from collections import deque
from collections.abc import Collection, Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from datetime import date
from itertools import chain
from pathlib import Path

import adbc_driver_postgresql.dbapi as adbc
import pyarrow as pa
import pyarrow.compute as pc
from psycopg2.extensions import connection as Connection

from nightshift.errors import NightshiftError
from nightshift.features import extract as plan
from nightshift.features import packing
from nightshift.io import lake
from nightshift.io.held_sources import free
from nightshift.io.warehouse import connect, holding, recorded_run, require_server
from nightshift.settings import Settings
from nightshift.spec import Source, UseCase

log = logging.getLogger(__name__)

MOST_PARTS = 1024
"""That a landed day's rows are read in, where their text is very long."""
MONTHS_AHEAD = 2
"""Months that are read from the mart while one is arranged: the server is not to wait."""


@dataclass(frozen=True)
class ExtractResult:
    """What an extract did: landed days of the marts that were read, days in all, rows read."""

    days_changed: int
    days: int
    rows: int

    def __add__(self, other: "ExtractResult") -> "ExtractResult":
        return ExtractResult(
            self.days_changed + other.days_changed, self.days + other.days, self.rows + other.rows
        )


def events_dir(settings: Settings, source: Source, key: str) -> Path:
    """Where the lake keeps a source in buckets of ``key``, one folder a landed month."""
    return settings.lake_dir / "events" / source.name / key


def extract(settings: Settings, use_cases: Sequence[UseCase], as_of: date) -> ExtractResult:
    """Bring the lake's copies of every mart that the use cases read up to date.

    Only landed days whose rows have changed are read from the mart; the month's file that holds
    them is written anew. Whatever landed is copied: the cut at ``as_of`` is the feature job's.

    Use cases that read a source which is held for ``as_of`` are left out.

    Raises:
        NightshiftError: when a mart is missing, or has columns other than its source declares; or
            what the sources were refused for, where no use case is left.
    """
    with recorded_run(settings, "extract", as_of) as run:
        use_cases = free(settings, use_cases, as_of)
        total = ExtractResult(0, 0, 0)
        for source, keys in _streams(use_cases):
            with holding(settings, exclusive=[_lake_lock(source)]):
                try:
                    total += _extract_source(settings, source, keys)
                except plan.DamagedMonth:  # that is to get more days
                    if not _damaged_removed(settings, source, keys):
                        raise
                    total += _extract_source(settings, source, keys)
        run.result = asdict(total)
        log.info(
            "extract: %d of %d landed days have changed, %d rows read",
            total.days_changed, total.days, total.rows,
        )  # fmt: skip
        return total


def mended(settings: Settings, use_cases: Sequence[UseCase]) -> bool:
    """Whether there were damaged or missing files, which have been extracted anew."""
    found = False
    for source, keys in _streams(use_cases):
        with holding(settings, exclusive=[_lake_lock(source)]):
            if _damaged_removed(settings, source, keys) or unfinished(settings, source).exists():
                _extract_source(settings, source, keys)
                found = True
    return found


def _lake_lock(source: Source) -> str:
    return f"lake:{source.name}"


def lake_locks(*use_cases: UseCase) -> set[str]:
    """Held while a job reads what the use cases read, so that no extract changes it."""
    return {_lake_lock(source) for use_case in use_cases for source in use_case.sources}


def _streams(use_cases: Sequence[UseCase]) -> list[tuple[Source, list[str]]]:
    """Each source that the use cases read, with the keys by which they read it."""
    found: dict[str, tuple[Source, list[str]]] = {}
    for source, key in (stream for use_case in use_cases for stream in use_case.streams):
        _, keys = found.setdefault(source.name, (source, []))
        if key not in keys:
            keys.append(key)
    return list(found.values())


def _extract_source(settings: Settings, source: Source, keys: Sequence[str]) -> ExtractResult:
    declared = lake.digest([source.model_dump(mode="json"), settings.lake_buckets, plan.FORMAT])
    with connect(settings) as connection:
        columns, nullable = _columns(connection, source)
        days, rows_of_days = _landed_days(connection, source)
    work = _months_to_write(settings, source, keys, days, declared)
    asked = {month: sorted(set().union(*by_key.values())) for month, by_key in work.items()}
    if loose := plan.loose_decimals(source, columns):
        _refuse_unfit(settings, source, loose, list(chain.from_iterable(asked.values())))
    rows = 0
    mark = unfinished(settings, source)
    if work:
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()
    pieces = {
        month: plan.pieces({day: rows_of_days.get(day, 0) for day in asked_days})
        for month, asked_days in asked.items()
    }
    with (
        _little_returned_memory(),
        closing(_months(settings, source, pieces, nullable)) as months,
    ):
        for month, packed in months:
            table = packing.unpacked(packed, source)
            rows += table.num_rows
            of_month = {day: sign for day, sign in days.items() if day.startswith(month[:7])}
            for key, changed in work[month].items():
                folder = events_dir(settings, source, key) / f"month={month}"
                _write_month(settings, folder, source, key, table, changed, of_month, declared)
    mark.unlink(missing_ok=True)
    return ExtractResult(sum(map(len, asked.values())), len(days), rows)


@contextmanager
def _little_returned_memory() -> Generator[None]:
    """Memory that the system allocates: Arrow's own pool gives a month's back, to ask for it again
    with the next, which takes a tenth of the time."""
    own = pa.default_memory_pool()
    pa.set_memory_pool(pa.system_memory_pool())
    try:
        yield
    finally:
        pa.set_memory_pool(own)


def unfinished(settings: Settings, source: Source) -> Path:
    """There while months are written, and after an extract that was killed: some may lack rows."""
    return settings.lake_dir / "events" / source.name / ".unfinished"


def _months(
    settings: Settings,
    source: Source,
    pieces: Mapping[str, Sequence[plan.Piece]],
    nullable: Collection[str],
) -> Generator[tuple[str, list[pa.RecordBatch]]]:
    """The rows of each month's days, packed; the server gives the next ones meanwhile."""
    if not pieces:
        return
    try:
        opened = adbc.connect(settings.warehouse_url)
    except adbc.Error as error:
        require_server(str(error))
        raise
    with (
        opened as connection,
        connection.cursor() as cursor,
        ThreadPoolExecutor(max_workers=1) as server,
    ):
        # of several workers' rows, each column would have an order of its own
        cursor.execute("set max_parallel_workers_per_gather = 0")
        cursor.execute("set client_encoding = 'UTF8'")

        def fetch(piece: plan.Piece, separator: int) -> list[pa.RecordBatch]:
            try:
                cursor.execute(packing.rows_query(source, piece, nullable, separator))
                with cursor.fetch_record_batch() as batches:
                    return list(batches)
            except (adbc.Error, OSError, pa.ArrowException) as error:
                if "maximum allowed length" in str(error) and piece.parts < MOST_PARTS:
                    connection.rollback()
                    return [rows for some in piece.split() for rows in fetch(some, separator)]
                require_server(str(error))
                # of a column that is tight enough a NaN
                _refuse_unfit(settings, source, plan.decimals(source), piece.days)
                raise

        def fetch_month(month: str) -> list[pa.RecordBatch]:
            for separator in packing.SEPARATORS:
                packed = [rows for piece in pieces[month] for rows in fetch(piece, separator)]
                column = packing.ambiguous(packed, source)
                if column is None:
                    return packed
            raise NightshiftError(
                f"{source.relation}.{column} holds, among what landed in {month[:7]}, texts with"
                " each of the control characters that could separate them",
                "correct the dbt model: take such characters out of the text",
            )

        coming = deque[tuple[str, Future[list[pa.RecordBatch]]]]()
        try:
            for month in pieces:
                coming.append((month, server.submit(fetch_month, month)))
                if len(coming) > MONTHS_AHEAD:
                    arrived, packed = coming.popleft()
                    yield arrived, packed.result()
            for arrived, packed in coming:
                yield arrived, packed.result()
        finally:
            server.shutdown(cancel_futures=True)  # after an error nobody waits for more months


def _refuse_unfit(
    settings: Settings, source: Source, columns: Sequence[str], days: Sequence[str]
) -> None:
    if not (columns and days):
        return
    with connect(settings) as connection, connection.cursor() as cursor:
        cursor.execute(plan.unfit_query(source, columns, days))
        found = cursor.fetchone()
    if found is not None:
        column, value, row, landed = found
        raise NightshiftError(
            f"{source.relation}.{column} holds {value}, which is no {plan.DECIMAL}, in the row"
            f" {source.row_id} = {row} that landed on {landed}",
            "correct the dbt model or land the file again; or declare the column as double",
        )


def _columns(connection: Connection, source: Source) -> tuple[dict[str, str], set[str]]:
    """The mart's columns with their types in SQL, and those that may hold a null."""
    with connection.cursor() as cursor:
        cursor.execute(
            "select attname, format_type(atttypid, atttypmod), attnotnull from pg_attribute"
            " where attrelid = to_regclass(%s) and attnum > 0 and not attisdropped",
            (source.relation,),
        )
        found = cursor.fetchall()
    if not found:
        raise NightshiftError(
            f"there is no mart {source.relation}", "run the transform stage first"
        )
    columns = {name: kind for name, kind, _ in found}
    faults = plan.mistyped(source, columns)
    if faults:
        raise NightshiftError(
            f"{source.relation} is not as the source {source.name} declares it: "
            + "; ".join(faults),
            "correct the declaration in feature_groups, or the dbt model",
        )
    return columns, {name for name, _, is_never_null in found if not is_never_null}


def _landed_days(connection: Connection, source: Source) -> tuple[dict[str, str], dict[str, int]]:
    """Each landed day of the mart, ascending, with its signature, and with its number of rows."""
    with connection.cursor() as cursor:
        cursor.execute(plan.days_query(source))
        found = [(day.isoformat(), signature, rows) for day, signature, rows in cursor.fetchall()]
    return {day: sign for day, sign, _ in found}, {day: rows for day, _, rows in found}


def _months_to_write(
    settings: Settings,
    source: Source,
    keys: Sequence[str],
    days: Mapping[str, str],
    declared: str,
) -> dict[str, dict[str, list[str]]]:
    """Month → key → its days whose rows are to be read; months that are gone are removed."""
    months = sorted({f"{day[:7]}-01" for day in days})
    work: dict[str, dict[str, list[str]]] = {}
    for key in keys:
        root = events_dir(settings, source, key)
        for folder in root.glob("month=*"):
            if folder.name.removeprefix("month=") not in months:
                log.warning("%s: the mart has no row of that month any more; removed", folder)
                shutil.rmtree(folder)
        for month in months:
            lake.remove_leftovers(root / f"month={month}")
            current = {day: sign for day, sign in days.items() if day.startswith(month[:7])}
            known = _sound_month(root / f"month={month}", declared)
            if known != current:
                changed = {
                    d for d in known.keys() | current.keys() if known.get(d) != current.get(d)
                }
                work.setdefault(month, {})[key] = sorted(changed)
    return dict(sorted(work.items()))


def _sound_month(folder: Path, declared: str) -> dict[str, str]:
    """The days that a month's file holds; none where it is missing, damaged or of another form."""
    manifest = lake.read_manifest(folder)
    if manifest is None or manifest.get("declared") != declared:
        return {}
    file = folder / plan.FILE
    if not file.is_file() or file.stat().st_size != manifest["bytes"]:
        log.warning("%s is damaged; it is written anew", file)
        return {}
    days: dict[str, str] = manifest["days"]
    return days


def _damaged_removed(settings: Settings, source: Source, keys: Sequence[str]) -> bool:
    """Whether a month's file has other bytes than were written; such ones are removed."""
    found = False
    for key in keys:
        for folder in events_dir(settings, source, key).glob("month=*"):
            file, manifest = folder / plan.FILE, lake.read_manifest(folder) or {}
            if not file.is_file() or lake.file_sha256(file) != manifest.get("signature"):
                log.warning("%s is damaged, and is written anew from %s", file, source.relation)
                file.unlink(missing_ok=True)
                found = True
    return found


def _write_month(
    settings: Settings,
    folder: Path,
    source: Source,
    key: str,
    read: pa.Table,
    changed: Sequence[str],
    days: Mapping[str, str],
    declared: str,
) -> None:
    """Write a month's file: what it held of other days, and what was read of the changed ones."""
    renewed = pa.array([date.fromisoformat(day) for day in changed], pa.date32())
    is_renewed = pc.is_in(read[source.landed_date], renewed)
    table = read if pc.all(is_renewed).as_py() else read.filter(is_renewed)
    if set(days) - set(changed):
        held = pa.concat_tables(
            plan.read(folder / plan.FILE, bucket, source, read.schema.names)
            for bucket in range(settings.lake_buckets)
        )
        held = held.filter(pc.invert(pc.is_in(held[source.landed_date], renewed)))
        table = pa.concat_tables([held.cast(read.schema), table])
    with lake.replacing(folder) as temporary:
        rows = plan.write(temporary / plan.FILE, table, source, key, settings.lake_buckets)
        lake.write_manifest(
            temporary,
            {
                "declared": declared,
                "buckets": settings.lake_buckets,
                "days": dict(days),
                "rows": rows,
                "rows_without_key": table.num_rows - rows,
                "bytes": (temporary / plan.FILE).stat().st_size,
                # what features are made of: the rows, and not when they were copied
                "signature": lake.file_sha256(temporary / plan.FILE),
            },
        )
