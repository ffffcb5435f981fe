"""Ingest: every folder landed before ``as_of`` and not yet loaded, into ``raw`` and ``quarantine``.

Each file is one transaction together with its row in ``ops.landing_files``, so a kill leaves a
file loaded whole or not at all. Rerunning loads only what is not loaded yet.
"""

import hashlib
import logging
import re
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import date, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import adbc_driver_postgresql.dbapi as adbc
import pyarrow as pa

from nightshift.contracts import SOURCES, SourceContract, load_contract
from nightshift.errors import ContractError, RefusedAsOf, SettingError
from nightshift.ingest.rows import CheckedRows, check, decode
from nightshift.io.warehouse import recorded_run
from nightshift.settings import Settings
from nightshift.use_cases import USE_CASES

_log = logging.getLogger(__name__)
_FOLDER = re.compile(r"^ds=(\d{4}-\d{2}-\d{2})$")
_SUFFIXES = (".csv", ".csv.gz")
_PROGRESS_SECONDS = 2.0


@dataclass(frozen=True)
class IngestResult:
    """What one run of ingest did.

    Attributes:
        files_seen: files in folders dated before ``as_of``.
        files_loaded: of them, loaded by this run; the others were loaded before.
        rows_in: data rows in the files that this run loaded, ``rows_loaded + rows_quarantined``.
        warnings: what a person should know, though nothing was refused.
    """

    as_of: date
    files_seen: int
    files_loaded: int
    rows_in: int
    rows_loaded: int
    rows_quarantined: int
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class LandedFile:
    """A file in the landing zone; ``path`` is relative to it."""

    source: str
    landed_date: date
    path: str
    location: Path


@dataclass
class _Tally:
    files_seen: int = 0
    files_loaded: int = 0
    rows_loaded: int = 0
    rows_quarantined: int = 0
    warnings: list[str] = field(default_factory=list)
    refusals: list[ContractError] = field(default_factory=list)


def ingest(settings: Settings, as_of: date) -> IngestResult:
    """Load every file of every source that landed before ``as_of`` and is not loaded yet.

    Raises:
        RefusedAsOf: when ``as_of`` is in the future, or nothing landed before it.
        SettingError: when the landing zone or a source's folder is missing.
        ContractError: after the good files are loaded, listing each refused file or folder.
    """
    with recorded_run(settings, "ingest", as_of) as run:
        _require_past(settings, as_of)
        tally = _Tally()
        needed = {use_case.source.name for use_case in USE_CASES}
        for source in SOURCES:
            try:
                _ingest_source(settings, load_contract(source), as_of, tally)
            except (SettingError, RefusedAsOf):
                if source in needed:
                    raise
                _log.info("%s: nothing has landed, and no use case needs it", source)
        run.result |= {
            "files_seen": tally.files_seen,
            "files_loaded": tally.files_loaded,
            "files_refused": len(tally.refusals),
            "rows_in": tally.rows_loaded + tally.rows_quarantined,
            "rows_loaded": tally.rows_loaded,
            "rows_quarantined": tally.rows_quarantined,
            "warnings": tally.warnings,
        }
        if tally.refusals:
            raise ContractError(
                f"{len(tally.refusals)} of what landed before {as_of} is refused; the other files"
                " are loaded:\n" + "\n".join(f"  {refusal}" for refusal in tally.refusals),
                "correct what is listed and run again; nothing downstream has changed",
            )
    return IngestResult(
        as_of=as_of,
        files_seen=tally.files_seen,
        files_loaded=tally.files_loaded,
        rows_in=tally.rows_loaded + tally.rows_quarantined,
        rows_loaded=tally.rows_loaded,
        rows_quarantined=tally.rows_quarantined,
        warnings=tuple(tally.warnings),
    )


def discover(
    landing: Path, source: str, as_of: date
) -> tuple[list[LandedFile], list[ContractError], list[str]]:
    """The files of ``source`` that landed before ``as_of``, in order; refusals; warnings.

    Raises:
        SettingError: when the landing zone or the source's folder is missing.
        RefusedAsOf: when the source has folders, but none is dated before ``as_of``.
    """
    root = landing / source
    if not root.is_dir():
        raise SettingError(
            f"the landing zone has no folder {root}",
            f"set NIGHTSHIFT_LANDING to the folder that holds {source}/ds=YYYY-MM-DD/,"
            " or write demo data with `nightshift demo-data`",
        )
    files: list[LandedFile] = []
    refusals: list[ContractError] = []
    warnings: list[str] = []
    dates: list[date] = []
    for folder in sorted(root.iterdir()):
        if folder.name.startswith((".", "_")):
            continue
        landed_date = _folder_date(folder)
        if landed_date is None:
            refusals.append(
                ContractError(
                    f"{source}/{folder.name}: not a landing folder named ds=YYYY-MM-DD with a date"
                    " of the calendar",
                    "rename or remove it",
                )
            )
            continue
        dates.append(landed_date)
        if landed_date >= as_of:
            continue
        found = 0
        for location in sorted(folder.iterdir()):
            if location.name.startswith((".", "_")):
                continue
            path = f"{source}/{folder.name}/{location.name}"
            if location.is_file() and location.name.endswith(_SUFFIXES):
                files.append(LandedFile(source, landed_date, path, location))
                found += 1
            else:
                refusals.append(
                    ContractError(
                        f"{path}: not a file that ends with .csv or .csv.gz", "rename or remove it"
                    )
                )
        if not found:
            warnings.append(f"{source}/{folder.name} holds no file")
    if not any(landed_date < as_of for landed_date in dates):
        if not dates and refusals:
            return files, refusals, warnings
        earliest = f"the earliest folder is ds={min(dates)}" if dates else "there is no folder"
        raise RefusedAsOf(
            f"no {source} landed before as_of {as_of}: {earliest} in {root}",
            "choose an as_of after that date" if dates else "land a folder ds=YYYY-MM-DD",
        )
    return files, refusals, warnings


def _folder_date(folder: Path) -> date | None:
    match = _FOLDER.match(folder.name)
    if match is None or not folder.is_dir():
        return None
    try:
        return date.fromisoformat(match[1])
    except ValueError:
        return None


def _require_past(settings: Settings, as_of: date) -> None:
    current = datetime.now(ZoneInfo(settings.timezone)).date()
    if as_of > current:
        raise RefusedAsOf(
            f"as_of {as_of} is in the future: it is {current} in {settings.timezone}",
            f"choose an as_of of {current} or earlier",
        )


def _ingest_source(
    settings: Settings, contract: SourceContract, as_of: date, tally: _Tally
) -> None:
    with _locked(settings, contract):
        pass
    files, refusals, warnings = discover(settings.landing, contract.source, as_of)
    for warning in warnings:
        _warn(tally, warning)
    tally.refusals += refusals
    tally.files_seen += len(files)
    shown = time.monotonic()
    with _locked(settings, contract) as connection:
        loaded, refused = _ledger(connection, contract.source)
        for number, file in enumerate(files, start=1):
            landed = file.location.read_bytes()
            sha256 = hashlib.sha256(landed).hexdigest()
            if loaded.get(file.path) == sha256:
                continue
            try:
                if file.path in loaded:
                    raise ContractError(
                        f"{file.path}: its content has changed since it was loaded (SHA-256 was"
                        f" {loaded[file.path][:12]}…, is {sha256[:12]}…)",
                        "put the loaded file back, and land the correction in a new folder",
                    )
                text = decode(file.path, landed)
                rows = check(contract, file.path, text, file.landed_date)
            except ContractError as refusal:
                tally.refusals.append(refusal)
                _log.error("%s", refusal)
                if (file.path, sha256, refusal.what) not in refused:
                    _record(connection, file, sha256, len(landed), refusal.what, None)
                    connection.commit()
                continue
            _load(connection, contract, file, sha256, len(landed), rows)
            tally.files_loaded += 1
            tally.rows_loaded += rows.good.num_rows
            tally.rows_quarantined += rows.broken.num_rows
            _describe(tally, file, rows)
            if time.monotonic() - shown > _PROGRESS_SECONDS:
                shown = time.monotonic()
                _log.info(
                    "ingested %d/%d files of %s, %s rows",
                    number,
                    len(files),
                    contract.source,
                    f"{tally.rows_loaded:,}",
                )
    _log.info(
        "%s: %d of %d files loaded, %s rows, %s quarantined",
        contract.source,
        tally.files_loaded,
        len(files),
        f"{tally.rows_loaded:,}",
        f"{tally.rows_quarantined:,}",
    )


@contextmanager
def _locked(settings: Settings, contract: SourceContract) -> Iterator[adbc.Connection]:
    """A connection that holds the source's lock until it closes, with the source's tables there."""
    with closing(adbc.connect(settings.warehouse_url)) as connection:
        name = f"nightshift.ingest.{contract.source}"
        with connection.cursor() as cursor:
            cursor.execute("select pg_try_advisory_lock(hashtextextended($1, 0))", (name,))
            if not cursor.fetchone()[0]:
                _log.info("another ingest of %s is running; waiting for it", contract.source)
                cursor.execute("select pg_advisory_lock(hashtextextended($1, 0))::text", (name,))
                cursor.fetchone()
            for statement in filter(str.strip, contract.ddl().split(";\n")):
                cursor.execute(statement)
        # The lock belongs to the session: it outlives this commit and each file's.
        connection.commit()
        yield connection


def _ledger(
    connection: adbc.Connection, source: str
) -> tuple[dict[str, str], set[tuple[str, str, str]]]:
    with connection.cursor() as cursor:
        cursor.execute(
            "select path, sha256, status, reason from ops.landing_files where source = $1",
            (source,),
        )
        rows = cursor.fetchall()
    connection.commit()
    loaded = {path: sha256 for path, sha256, status, _ in rows if status == "loaded"}
    refused = {(path, sha256, why) for path, sha256, status, why in rows if status == "refused"}
    return loaded, refused


def _load(
    connection: adbc.Connection,
    contract: SourceContract,
    file: LandedFile,
    sha256: str,
    size: int,
    rows: CheckedRows,
) -> None:
    try:
        file_id = _record(connection, file, sha256, size, None, rows)
        for table, landed in (
            (contract.raw_table, rows.good),
            (contract.quarantine_table, rows.broken),
        ):
            if landed.num_rows:
                schema, name = table.split(".")
                with connection.cursor() as cursor:
                    cursor.adbc_ingest(
                        name, _stamped(landed, file, file_id), mode="append", db_schema_name=schema
                    )
        connection.commit()
    except BaseException:
        connection.rollback()
        raise


def _stamped(rows: pa.Table, file: LandedFile, file_id: int) -> pa.Table:
    stamps: tuple[tuple[str, Any, pa.DataType], ...] = (
        ("_landed_date", file.landed_date, pa.date32()),
        ("_file_id", file_id, pa.int64()),
    )
    for name, value, type_ in stamps:
        rows = rows.append_column(name, pa.repeat(pa.scalar(value, type_), rows.num_rows))
    return rows


def _record(
    connection: adbc.Connection,
    file: LandedFile,
    sha256: str,
    size: int,
    reason: str | None,
    rows: CheckedRows | None,
) -> int:
    """Write the file's ledger row, in the open transaction."""
    with connection.cursor() as cursor:
        cursor.execute(
            "insert into ops.landing_files (source, landed_date, path, sha256, bytes, status,"
            " reason, rows_in, rows_loaded, rows_quarantined)"
            " values ($1, $2, $3, $4, $5, $6, nullif($7, ''), $8, $9, $10) returning file_id",
            (
                file.source,
                file.landed_date,
                file.path,
                sha256,
                size,
                "loaded" if rows else "refused",
                reason or "",
                rows.rows_in if rows else 0,
                rows.good.num_rows if rows else 0,
                rows.broken.num_rows if rows else 0,
            ),
        )
        return int(cursor.fetchone()[0])


def _describe(tally: _Tally, file: LandedFile, rows: CheckedRows) -> None:
    if not rows.rows_in:
        _warn(tally, f"{file.path} has a header but no rows")
    if rows.broken.num_rows:
        first = rows.broken.slice(0, 1).to_pylist()[0]
        _log.warning(
            "%s: %d of %d rows quarantined; the first is row %d, column %s, value %r: expected %s",
            file.path,
            rows.broken.num_rows,
            rows.rows_in,
            first["_row_number"],
            first["column_name"] or "(all)",
            first["value"],
            first["rule"],
        )


def _warn(tally: _Tally, warning: str) -> None:
    tally.warnings.append(warning)
    _log.warning("%s", warning)
