"""Ingest: every folder landed before ``as_of`` and not yet loaded, into ``raw`` and ``quarantine``.

Each file is one transaction together with its row in ``ops.landing_files``, so a kill leaves a
file loaded whole or not at all. Rerunning loads only what is not loaded yet.
"""

import hashlib
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date, datetime
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any
from zoneinfo import ZoneInfo

import pyarrow as pa
import pyarrow.compute as pc
from psycopg2.extensions import connection as Connection

from nightshift.contracts import SOURCES, SourceContract, load_contract
from nightshift.errors import Cause, ContractError, NightshiftError, RefusedAsOf
from nightshift.ingest import formats
from nightshift.ingest.folders import LandedFile, NothingLanded, discover
from nightshift.ingest.rows import BROKEN_SCHEMA, CheckedRows, check, good_schema
from nightshift.io.copy import copy_batches
from nightshift.io.held_sources import hold
from nightshift.io.landing import LandingZone, landing_zone
from nightshift.io.warehouse import recorded_run, session
from nightshift.settings import Settings
from nightshift.use_cases import USE_CASES

_log = logging.getLogger(__name__)
_PROGRESS_SECONDS = 2.0
_STAMPS = pa.schema({"_landed_date": pa.date32(), "_file_id": pa.int64()})


@dataclass(frozen=True)
class IngestResult:
    """What one run of ingest did.

    Attributes:
        files_seen: files in folders dated before ``as_of``.
        files_loaded: of them, loaded by this run; the others were loaded before.
        rows_in: data rows in the files that this run loaded, ``rows_loaded + rows_quarantined``.
        warnings: what a person should know, though nothing was refused.
        held: the sources of which something was refused, and why.
    """

    as_of: date
    files_seen: int
    files_loaded: int
    rows_in: int
    rows_loaded: int
    rows_quarantined: int
    warnings: tuple[str, ...]
    held: Mapping[str, NightshiftError]


@dataclass
class _Tally:
    files_seen: int = 0
    files_loaded: int = 0
    rows_loaded: int = 0
    rows_quarantined: int = 0
    warnings: list[str] = field(default_factory=list)
    refusals: dict[str, list[ContractError]] = field(default_factory=dict)

    def warn(self, warning: str) -> None:
        self.warnings.append(warning)
        _log.warning("%s", warning)


def ingest(settings: Settings, as_of: date) -> IngestResult:
    """Load every file of every source that landed before ``as_of`` and is not loaded yet.

    A file whose content is loaded already under another name is not loaded again. A file whose
    content has changed since it was loaded replaces the rows of its earlier version. A source with
    a refused file is held, and with it the use cases that read it.

    Raises:
        RefusedAsOf: when ``as_of`` is in the future; or, as below, when nothing landed before it.
        SettingError: when the landing zone is missing; or, as below, the folder of a source.
        ContractError: after the good files of all sources are loaded, listing each refused file or
            folder, when that leaves no use case.
    """
    with recorded_run(settings, "ingest", as_of) as run:
        _require_past(settings, as_of)
        tally = _Tally()
        zone = landing_zone(settings)
        needed = {source for use_case in USE_CASES for source in use_case.landings}
        held: dict[str, NightshiftError] = {}
        for source in SOURCES:
            try:
                _ingest_source(settings, zone, load_contract(source), as_of, tally)
            except (NothingLanded, RefusedAsOf) as missing:
                if source in needed:
                    held[source] = _of_its_readers(source, missing)
                else:
                    _log.info("nothing landed, and no use case needs it: %s", missing.what)
            except ContractError as refusal:  # of the contract itself: its table cannot follow
                held[source] = refusal
        for source, refusals in tally.refusals.items():
            held[source] = ContractError(
                f"{len(refusals)} of what landed before {as_of} is refused; the other files"
                " are loaded:\n" + "\n".join(f"  {refusal}" for refusal in refusals),
                "correct what is listed and run again; nothing downstream has changed",
                causes=tuple(cause for refusal in refusals for cause in refusal.causes),
            )
        run.result |= {
            "files_seen": tally.files_seen,
            "files_loaded": tally.files_loaded,
            "files_refused": sum(map(len, tally.refusals.values())),
            "rows_in": tally.rows_loaded + tally.rows_quarantined,
            "rows_loaded": tally.rows_loaded,
            "rows_quarantined": tally.rows_quarantined,
            "warnings": tally.warnings,
        }
        hold(run, held)
    return IngestResult(
        as_of=as_of,
        files_seen=tally.files_seen,
        files_loaded=tally.files_loaded,
        rows_in=tally.rows_loaded + tally.rows_quarantined,
        rows_loaded=tally.rows_loaded,
        rows_quarantined=tally.rows_quarantined,
        warnings=tuple(tally.warnings),
        held=held,
    )


@dataclass(frozen=True)
class ReplayedFile:
    """What a replay did with a file: rows that are loaded now, and rows that are broken still."""

    path: str
    rows_loaded: int
    rows_quarantined: int


def replay(settings: Settings, source: str, path: str | None = None) -> list[ReplayedFile]:
    """Check quarantined rows again, with the contract as it is now, and load what is valid.

    The rows are read from the landed files, since the quarantine masks personal data. A row is
    loaded once: it leaves the quarantine in the transaction in which it is loaded.

    Args:
        source: whose rows.
        path: of one file only, as in the ledger; None for every file with quarantined rows.

    Raises:
        NightshiftError: when a file is gone or has changed since it was loaded; the files before
            it are done.
    """
    contract = load_contract(source)
    zone = landing_zone(settings)
    with _locked(settings, contract) as connection:
        done = []
        for file, file_id, sha256 in _quarantined_files(connection, contract, path):
            done.append(_replay_file(connection, zone, contract, file, file_id, sha256))
            _log.info(
                "%s: %d rows loaded, %d are broken still",
                file.path, done[-1].rows_loaded, done[-1].rows_quarantined,
            )  # fmt: skip
        return done


def _quarantined_files(
    connection: Connection, contract: SourceContract, path: str | None
) -> list[tuple[LandedFile, int, str]]:
    with connection.cursor() as cursor:
        cursor.execute(
            "select landed_date, path, bytes, version, file_id, sha256 from ops.landing_files"
            " where source = %s and status = 'loaded' and rows_quarantined > 0"
            " and path = coalesce(%s, path) order by file_id",
            (contract.source, path),
        )
        rows = cursor.fetchall()
    connection.commit()
    if path is not None and not rows:
        raise ContractError(
            f"no loaded file {path} of {contract.source} has quarantined rows",
            f"`nightshift quarantine list --source {contract.source}` shows which files have",
        )
    return [(LandedFile(contract.source, *row[:4]), row[4], row[5]) for row in rows]


def _replay_file(
    connection: Connection,
    zone: LandingZone,
    contract: SourceContract,
    file: LandedFile,
    file_id: int,
    sha256: str,
) -> ReplayedFile:
    with connection.cursor() as cursor:
        where = f"from {contract.quarantine_table} where _landed_date = %s and _file_id = %s"
        cursor.execute(f"select _row_number {where}", (file.landed_date, file_id))
        wanted = pa.array([number for (number,) in cursor.fetchall()], pa.int64())
    try:
        with zone.fetched(file.path) as local:
            _require_unchanged(file, local, sha256)
            tables = []
            for batch in formats.read(contract, file.path, local, _log.warning):
                again = pc.is_in(batch.numbers, wanted)
                kept = formats.TextBatch(batch.rows.filter(again), batch.numbers.filter(again))
                tables.append(check(contract, kept, file.landed_date).good)
        good = pa.concat_tables([good_schema(contract).empty_table(), *tables])
        if good.num_rows:
            schema = pa.schema([*good.schema, *_STAMPS])
            batches = iter(_stamped(good, file, file_id).to_batches())
            copy_batches(connection, contract.raw_table, schema, batches)
            numbers = good["_row_number"].to_pylist()
            with connection.cursor() as cursor:
                cursor.execute(
                    f"delete {where} and _row_number = any(%s)",
                    (file.landed_date, file_id, numbers),
                )
                cursor.execute(
                    "update ops.landing_files set rows_loaded = rows_loaded + %s,"
                    " rows_quarantined = rows_quarantined - %s where file_id = %s",
                    (good.num_rows, good.num_rows, file_id),
                )
                cursor.execute(
                    "insert into ops.changed_days (source, landed_date, reason)"
                    " values (%s, %s, %s)",
                    (file.source, file.landed_date, f"replayed {file.path}"),
                )
        connection.commit()
    except BaseException:
        connection.rollback()
        raise
    return ReplayedFile(file.path, good.num_rows, len(wanted) - good.num_rows)


def _require_unchanged(file: LandedFile, local: Path, sha256: str) -> None:
    with local.open("rb") as landed:
        found = hashlib.file_digest(landed, "sha256").hexdigest()
    if found != sha256:
        raise ContractError(
            f"{file.path}: its content has changed since it was loaded",
            "run `nightshift ingest`: it loads the new version in place of the old",
        )


def _of_its_readers(source: str, missing: NightshiftError) -> NightshiftError:
    """The same, with what to do where there is no such source at all."""
    if not isinstance(missing, NothingLanded):
        return missing
    readers = ", ".join(each.name for each in USE_CASES if source in each.landings)
    return NothingLanded(
        missing.what,
        f"{missing.remedy}; where there are no {source}, take what reads them ({readers}) out of"
        " jobs/nightshift/use_cases/__init__.py",
    )


def _require_past(settings: Settings, as_of: date) -> None:
    current = datetime.now(ZoneInfo(settings.timezone)).date()
    if as_of > current:
        raise RefusedAsOf(
            f"as_of {as_of} is in the future: it is {current} in {settings.timezone}",
            f"choose an as_of of {current} or earlier",
        )


def _ingest_source(
    settings: Settings,
    zone: LandingZone,
    contract: SourceContract,
    as_of: date,
    tally: _Tally,
) -> None:
    with _locked(settings, contract) as connection:
        found = discover(zone, contract.source, as_of)
        for warning in found.warnings:
            tally.warn(warning)
        refusals: list[ContractError] = list(found.refusals)
        tally.files_seen += len(found.files)
        before = tally.rows_loaded, tally.rows_quarantined, tally.files_loaded
        ledger = _Ledger(connection, contract.source)
        shown = time.monotonic()
        for number, file in enumerate(found.files, start=1):
            if ledger.is_loaded(file):
                continue
            try:
                _ingest_file(connection, zone, contract, file, ledger, tally)
            except ContractError as refusal:
                named = ContractError(refusal.what, refusal.remedy, causes=(_cause(file, refusal),))
                refusals.append(named)
                _log.error("%s", refusal)
            if time.monotonic() - shown > _PROGRESS_SECONDS:
                shown = time.monotonic()
                _log.info(
                    "%s: %d of %d files, %s rows so far",
                    contract.source, number, len(found.files), f"{tally.rows_loaded - before[0]:,}",
                )  # fmt: skip
        if refusals:
            tally.refusals[contract.source] = refusals
    _log.info(
        "%s: %d of %d files loaded, %s rows, %s quarantined",
        contract.source,
        tally.files_loaded - before[2],
        len(found.files),
        f"{tally.rows_loaded - before[0]:,}",
        f"{tally.rows_quarantined - before[1]:,}",
    )


def _cause(file: LandedFile, refusal: ContractError) -> Cause:
    return Cause(
        source=file.source,
        landed_date=file.landed_date,
        rule=refusal.what.removeprefix(f"{file.path}: "),
        examples=(file.path,),
    )


def _ingest_file(
    connection: Connection,
    zone: LandingZone,
    contract: SourceContract,
    file: LandedFile,
    ledger: "_Ledger",
    tally: _Tally,
) -> None:
    sha256 = ""
    try:
        with zone.fetched(file.path) as local:
            before = local.stat()
            with local.open("rb") as landed:
                sha256 = hashlib.file_digest(landed, "sha256").hexdigest()
            if ledger.is_touched_only(file, sha256):
                return
            twin = ledger.twin_of(file, sha256)
            if twin is not None:
                ledger.record_twin(contract, file, sha256, twin)
                tally.warn(f"{file.path}: the same content as {twin}, which is loaded; left out")
                return
            done = _load(connection, contract, file, sha256, local, before, ledger, tally.warn)
    except ContractError as refusal:
        ledger.record_refusal(file, sha256, refusal.what)
        raise
    tally.files_loaded += 1
    tally.rows_loaded += done.rows_loaded
    tally.rows_quarantined += done.rows_quarantined
    if not done.rows_loaded + done.rows_quarantined:
        tally.warn(f"{file.path} has a header but no rows")


@dataclass(frozen=True)
class _Loaded:
    rows_loaded: int
    rows_quarantined: int


def _load(
    connection: Connection,
    contract: SourceContract,
    file: LandedFile,
    sha256: str,
    local: Path,
    before: os.stat_result,
    ledger: "_Ledger",
    warn: Callable[[str], None],
) -> _Loaded:
    """Load one file in one transaction: ledger, rows, broken rows, what it replaces."""
    try:
        ledger.replace_earlier(contract, file, sha256)
        file_id = ledger.open(file, sha256)
        loaded = 0
        with TemporaryFile() as spool:
            broken = _Spool(spool)

            def stamped() -> Iterator[pa.RecordBatch]:
                nonlocal loaded
                checked = (
                    check(contract, batch, file.landed_date)
                    for batch in formats.read(contract, file.path, local, warn)
                )
                for rows in checked:
                    loaded += rows.good.num_rows
                    broken.add(rows)
                    yield from _stamped(rows.good, file, file_id).to_batches()

            schema = pa.schema([*good_schema(contract), *_STAMPS])
            copy_batches(connection, contract.raw_table, schema, stamped())
            if broken.rows:
                schema = pa.schema([*BROKEN_SCHEMA, *_STAMPS])
                batches = (
                    batch
                    for table in broken.read()
                    for batch in _stamped(table, file, file_id).to_batches()
                )
                copy_batches(connection, contract.quarantine_table, schema, batches)
                broken.describe(file)
        now = local.stat()
        if (now.st_size, now.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
            raise ContractError(
                f"{file.path}: it was changed while it was read",
                "have its sender write under a name that begins with _ and rename; then run again",
            )
        ledger.close(file, file_id, loaded, broken.rows)
        connection.commit()
    except BaseException:
        connection.rollback()
        raise
    return _Loaded(loaded, broken.rows)


class _Spool:
    """Broken rows, kept on disk until the good ones are sent: one connection copies one table."""

    def __init__(self, file: IO[bytes]) -> None:
        self.rows = 0
        self._file = file
        self._writer: pa.ipc.RecordBatchStreamWriter | None = None
        self._first: dict[str, Any] = {}

    def add(self, checked: CheckedRows) -> None:
        """Keep the broken rows of a batch."""
        if not checked.broken.num_rows:
            return
        if self._writer is None:
            self._writer = pa.ipc.new_stream(self._file, BROKEN_SCHEMA)
            self._first = checked.broken.slice(0, 1).to_pylist()[0]
        self._writer.write_table(checked.broken)
        self.rows += checked.broken.num_rows

    def read(self) -> Iterator[pa.Table]:
        """All that was added."""
        if self._writer is None:
            return
        self._writer.close()
        self._file.seek(0)
        with pa.ipc.open_stream(self._file) as reader:
            for batch in reader:
                yield pa.Table.from_batches([batch])

    def describe(self, file: LandedFile) -> None:
        """Warn, and show the first."""
        _log.warning(
            "%s: %d rows quarantined; the first is row %d, column %s, value %r: expected %s",
            file.path,
            self.rows,
            self._first["_row_number"],
            self._first["column_name"] or "(all)",
            self._first["value"],
            self._first["rule"],
        )


def _stamped(rows: pa.Table, file: LandedFile, file_id: int) -> pa.Table:
    for name, value in (("_landed_date", file.landed_date), ("_file_id", file_id)):
        stamp = pa.scalar(value, _STAMPS.field(name).type)
        rows = rows.append_column(_STAMPS.field(name), pa.repeat(stamp, rows.num_rows))
    return rows


@contextmanager
def _locked(settings: Settings, contract: SourceContract) -> Iterator[Connection]:
    """A connection that holds the source's lock until it closes, with the source's tables there."""
    with session(settings) as connection:
        name = contract.lock
        with connection.cursor() as cursor:
            cursor.execute("select pg_try_advisory_lock(hashtextextended(%s, 0))", (name,))
            if not cursor.fetchone()[0]:
                _log.info("another ingest of %s is running; waiting for it", contract.source)
                cursor.execute("select pg_advisory_lock(hashtextextended(%s, 0))", (name,))
            cursor.execute(contract.ddl())
        _follow_contract(connection, contract)
        # The lock belongs to the session: it outlives this commit and each file's.
        connection.commit()
        yield connection


def _follow_contract(connection: Connection, contract: SourceContract) -> None:
    """Bring an older raw table to the contract, as far as that loses nothing.

    Raises:
        ContractError: naming a column that the table cannot take.
    """
    with connection.cursor() as cursor:
        cursor.execute(
            "select attname, format_type(atttypid, atttypmod), attnotnull from pg_attribute"
            " where attrelid = to_regclass(%s) and attnum > 0 and not attisdropped",
            (contract.raw_table,),
        )
        found = {name: (sql_type, required) for name, sql_type, required in cursor.fetchall()}
        for column in contract.columns:
            if column.name not in found:
                _log.info("%s: new column %s", contract.raw_table, column.name)
                if column.required:
                    cursor.execute(f"select exists (select from {contract.raw_table})")
                    if cursor.fetchone() == (True,):
                        raise ContractError(
                            f"{contract.raw_table} has rows, and no column {column.name}, which the"
                            " contract requires",
                            "make it optional in the contract, or land every file anew",
                        )
                not_null = " not null" if column.required else ""
                cursor.execute(
                    f"alter table {contract.raw_table}"
                    f" add column {column.name} {column.sql_type}{not_null}"
                )
                continue
            sql_type, is_not_null = found[column.name]
            if sql_type.removesuffix(" without time zone") != column.sql_type:
                raise ContractError(
                    f"{contract.raw_table}.{column.name} is {sql_type}; the contract says"
                    f" {column.sql_type}",
                    "alter the column as nightshift_writer, or keep its type in the contract",
                )
            if is_not_null and not column.required:
                cursor.execute(
                    f"alter table {contract.raw_table} alter column {column.name} drop not null"
                )
        stamps = {"_landed_date", "_file_id", "_row_number"}
        for name in found.keys() - {column.name for column in contract.columns} - stamps:
            if found[name][1]:
                cursor.execute(f"alter table {contract.raw_table} alter {name} drop not null")


@dataclass(frozen=True)
class _Known:
    """A loaded file, as the ledger has it."""

    file_id: int
    path: str
    landed_date: date
    sha256: str
    version: str


class _Ledger:
    """The source's rows of ``ops.landing_files``."""

    def __init__(self, connection: Connection, source: str) -> None:
        self._connection = connection
        self._source = source
        rows = self._execute(
            "select file_id, path, landed_date, sha256, version, status, reason, rows_in"
            " from ops.landing_files where source = %s and status <> 'replaced' order by file_id",
            source,
        )
        connection.commit()
        self._loaded: dict[str, _Known] = {}
        self._contents: dict[str, str] = {}
        self._left_out: set[tuple[str, str]] = set()
        self._refused: set[tuple[str, str, str]] = set()
        for file_id, path, landed_date, sha256, version, status, reason, rows_in in rows:
            if status == "loaded":
                known = _Known(file_id, path, landed_date, sha256, version)
                self._remember(known, rows_in)
            elif status == "duplicate":
                self._left_out.add((path, version))
            else:
                self._refused.add((path, sha256, reason))

    def _remember(self, known: _Known, rows_in: int) -> None:
        self._loaded[known.path] = known
        if rows_in:  # files without a row are all alike
            self._contents[known.sha256] = known.path

    def _execute(self, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
        with self._connection.cursor() as cursor:
            cursor.execute(statement, parameters)
            return list(cursor.fetchall()) if cursor.description else []

    def is_loaded(self, file: LandedFile) -> bool:
        """Whether the file is in the ledger as it is now, by what costs no reading."""
        known = self._loaded.get(file.path)
        if known is not None:
            return known.version == file.version
        return (file.path, file.version) in self._left_out

    def is_touched_only(self, file: LandedFile, sha256: str) -> bool:
        """Whether it is loaded with this very content, though its time has changed."""
        known = self._loaded.get(file.path)
        if known is None or known.sha256 != sha256:
            return False
        self._execute(
            "update ops.landing_files set version = %s where file_id = %s",
            file.version,
            known.file_id,
        )
        self._connection.commit()
        return True

    def twin_of(self, file: LandedFile, sha256: str) -> str | None:
        """The path under which the same content is loaded already."""
        twin = self._contents.get(sha256)
        return twin if twin != file.path else None

    def record_twin(
        self, contract: SourceContract, file: LandedFile, sha256: str, twin: str
    ) -> None:
        """Keep that the file was left out; rows of an earlier version of it go."""
        if file.path in self._loaded:
            self.replace_earlier(contract, file, sha256)
            self._mark_changed(file)
            earlier = self._loaded.pop(file.path)
            self._contents.pop(earlier.sha256, None)
        self._insert(file, sha256, "duplicate", f"the same content as {twin}")
        self._connection.commit()

    def record_refusal(self, file: LandedFile, sha256: str, reason: str) -> None:
        """Keep a refusal, once."""
        if (file.path, sha256, reason) not in self._refused:
            self._insert(file, sha256, "refused", reason)
            self._connection.commit()

    def replace_earlier(self, contract: SourceContract, file: LandedFile, sha256: str) -> None:
        """Delete the rows of the file's earlier version, in the open transaction."""
        known = self._loaded.get(file.path)
        if known is None:
            return
        _log.warning("%s: its content has changed; its rows are replaced", file.path)
        for table in (contract.raw_table, contract.quarantine_table):
            self._execute(
                f"delete from {table} where _landed_date = %s and _file_id = %s",
                known.landed_date,
                known.file_id,
            )
        self._execute(
            "update ops.landing_files set status = 'replaced', reason = %s where file_id = %s",
            f"its content has changed to SHA-256 {sha256[:12]}…",
            known.file_id,
        )

    def open(self, file: LandedFile, sha256: str) -> int:
        """The file's row, in the open transaction; its id."""
        self._opened = sha256
        return self._insert(file, sha256, "loaded", None)

    def close(self, file: LandedFile, file_id: int, loaded: int, quarantined: int) -> None:
        """Count the file's rows, and mark its day as changed, in the open transaction."""
        self._execute(
            "update ops.landing_files set rows_in = %s, rows_loaded = %s, rows_quarantined = %s"
            " where file_id = %s",
            loaded + quarantined,
            loaded,
            quarantined,
            file_id,
        )
        self._mark_changed(file)
        earlier = self._loaded.get(file.path)
        if earlier is not None:
            self._contents.pop(earlier.sha256, None)
        known = _Known(file_id, file.path, file.landed_date, self._opened, file.version)
        self._remember(known, loaded + quarantined)

    def _mark_changed(self, file: LandedFile) -> None:
        self._execute(
            "insert into ops.changed_days (source, landed_date, reason) values (%s, %s, %s)",
            self._source,
            file.landed_date,
            f"{'replaced' if file.path in self._loaded else 'loaded'} {file.path}",
        )

    def _insert(self, file: LandedFile, sha256: str, status: str, reason: str | None) -> int:
        ((file_id,),) = self._execute(
            "insert into ops.landing_files (source, landed_date, path, sha256, bytes, version,"
            " status, reason, rows_in, rows_loaded, rows_quarantined)"
            " values (%s, %s, %s, %s, %s, %s, %s, %s, 0, 0, 0) returning file_id",
            file.source,
            file.landed_date,
            file.path,
            sha256,
            file.size,
            file.version,
            status,
            reason,
        )
        return int(file_id)
