"""Erase a person from landing, warehouse, lake, MLflow and logs; the certificate is the record.

Each step looks for the person and removes what it finds, one file, table or dataset at a time, so
an erasure that was killed is completed by running it again: what is gone is gone.
"""

import logging
import mmap
import shutil
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from pathlib import Path
from typing import Any

import psycopg2
import pyarrow as pa
from psycopg2 import sql
from psycopg2.extras import Json

from nightshift.contracts import SOURCES, SourceContract, load_contract
from nightshift.erasure.landed import mentions, write_parquet_without, write_without
from nightshift.errors import NightshiftError
from nightshift.io import lake, model_store
from nightshift.io.landing import REPLACING, LandingZone, landing_zone
from nightshift.io.warehouse import connect, holding, migrate
from nightshift.settings import Settings
from nightshift.spec import UseCase

log = logging.getLogger(__name__)

_MASK = "x"
_TEST_PREDICTIONS = "evaluation/test_predictions.parquet"
_OWN_FOLDERS = frozenset({"postgres", "lake", "landing", "jdk", "zones", "mlflow-artifacts"})
"""Of the state folder: what other steps erase from, and what holds no text of ours."""
_AFTER_RAW = ("staging", "intermediate", "marts", "predictions", "monitoring")
"""Schemas of ours; the database may have others, of somebody else."""
_TEXTS = {
    "ops.runs": ("error", "result"),
    "ops.landing_files": ("reason",),
    "ops.quality_results": ("observed", "expected", "examples"),
    "ops.incidents": ("message", "examples"),
    "ops.alert_messages": ("subject", "body", "last_error"),
}
_NEVER_REACHED = (
    "backups and WAL archives of the warehouse: let them expire",
    "older versions of objects, in a bucket that keeps versions",
    "what readers of predictions have copied, and alerts that were sent",
    "logs that are kept elsewhere: of an Airflow or a Postgres of your own",
    "files that senders still write, under names that begin with . or _",
)


@dataclass
class Erasure:
    """An erasure that is under way. Its ``repr`` does not show whom it is about.

    Attributes:
        held: raw table, or schema after raw → the person's rows there at the beginning; most of
            them go when ingest and dbt follow the landed files.
        removed: place → rows removed there by this run.
        not_reached: what may still hold the person, and why.
    """

    erasure_id: int
    subject: str = field(repr=False)
    pseudonym: str = field(repr=False)
    held: dict[str, int] = field(default_factory=dict)
    removed: dict[str, int] = field(default_factory=dict)
    not_reached: list[str] = field(default_factory=list)

    @property
    def values(self) -> tuple[str, str]:
        """What stands for the person after raw: the pseudonym; and the id, from before there was
        one."""
        return self.pseudonym, self.subject


@dataclass(frozen=True)
class Certificate:
    """What an erasure did, as ``ops.erasures`` keeps it."""

    erasure_id: int
    requested_at: datetime
    completed_at: datetime
    removed: dict[str, int]
    not_reached: tuple[str, ...]
    models_to_retrain: tuple[str, ...]


def begin(settings: Settings, use_cases: Sequence[UseCase], subject: str) -> Erasure:
    """Open the certificate, and count what there is of the person in the warehouse.

    Raises:
        NightshiftError: when there is nothing in ``subject``.
    """
    subject = subject.strip()
    if not subject:
        raise NightshiftError("the subject is empty", "name the id of one person, as it lands")
    migrate(settings)
    with connect(settings) as connection, connection.cursor() as cursor:
        cursor.execute("insert into ops.erasures default values returning erasure_id")
        (erasure_id,) = cursor.fetchone()
        cursor.execute("select predictions.pseudonym(%s)", (subject,))
        (pseudonym,) = cursor.fetchone()
        erasure = Erasure(erasure_id, subject, pseudonym)
        for contract in _with_personal_data():
            cursor.execute("select to_regclass(%s)", (contract.raw_table,))
            if cursor.fetchone() != (None,):
                cursor.execute(
                    f"select count(*) from {contract.raw_table} where {_is_subject(contract)}",
                    {"id": subject},
                )
                (erasure.held[contract.raw_table],) = cursor.fetchone()
        for schema, table, columns in _tables_after_raw(cursor, _keys(use_cases)):
            cursor.execute(
                sql.SQL("select count(*) from {} where {}").format(
                    sql.Identifier(schema, table), _is_person(columns)
                ),
                {"values": list(erasure.values)},
            )
            (rows,) = cursor.fetchone()
            erasure.held[schema] = erasure.held.get(schema, 0) + rows
    return erasure


def _keys(use_cases: Sequence[UseCase]) -> list[str]:
    """Names of the columns that hold a person's id or pseudonym."""
    return sorted({u.key for u in use_cases} | {c for s in _with_personal_data() for c in s.pii})


def _is_subject(contract: SourceContract) -> str:
    return " or ".join(f"trim({column}::text) = %(id)s" for column in contract.pii)


def _is_person(columns: Sequence[str]) -> sql.Composed:
    return sql.SQL(" or ").join(
        sql.SQL("{} = any(%(values)s)").format(sql.Identifier(name)) for name in columns
    )


def _tables_after_raw(cursor: Any, keys: Sequence[str]) -> list[tuple[str, str, list[str]]]:
    """Schema, table, and which of ``keys`` it has; partitions each by itself."""
    cursor.execute(
        "select n.nspname, c.relname, array_agg(a.attname::text)"
        " from pg_class c join pg_namespace n on n.oid = c.relnamespace"
        " join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped"
        " where c.relkind = 'r' and a.attname = any(%s) and a.atttypid = 'text'::regtype"
        " and n.nspname = any(%s) group by 1, 2 order by 1, 2",
        (list(keys), list(_AFTER_RAW)),
    )
    return list(cursor.fetchall())


def last_as_of(settings: Settings) -> date | None:
    """The ``as_of`` of the newest build of the marts, to which an erasure brings them again."""
    with connect(settings) as connection, connection.cursor() as cursor:
        cursor.execute(
            "select as_of from ops.runs where stage = 'transform' and status = 'succeeded'"
            " order by run_id desc limit 1"
        )
        row = cursor.fetchone()
    return row[0] if row else None


def erase_landed(settings: Settings, erasure: Erasure) -> None:
    """Rewrite every landed file that holds the person, each at once, under its source's lock."""
    zone = landing_zone(settings)
    for contract in _with_personal_data():
        with holding(settings, exclusive=[contract.lock]):
            rows = files = 0
            for path in _landed(zone, contract.source):
                removed = _rewrite(zone, contract, path, erasure)
                rows, files = rows + removed, files + (removed > 0)
        _count(settings, erasure, f"landing {contract.source}", rows)
        log.info("erase: %d rows of %d files landed of %s", rows, files, contract.source)


def _with_personal_data() -> list[SourceContract]:
    return [contract for source in SOURCES if (contract := load_contract(source)).pii]


def _landed(zone: LandingZone, folder: str) -> Iterator[str]:
    """Every file below ``folder`` but those that senders still write."""
    for entry in zone.entries(folder):
        path = f"{folder}/{entry.name}"
        if entry.is_folder:
            yield from _landed(zone, path)
        elif entry.name.startswith(".") and entry.name.endswith(REPLACING):
            zone.remove(path)  # of an erasure that was killed
        elif not entry.is_hidden:
            yield path


def _rewrite(zone: LandingZone, contract: SourceContract, path: str, erasure: Erasure) -> int:
    columns = [column.landed_name for column in contract.columns if column.is_pii]
    try:
        with zone.fetched(path) as file, tempfile.TemporaryDirectory() as folder:
            if not mentions(path, file, erasure.subject):
                return 0
            target = Path(folder) / "rewritten"
            removed, left = write_without(path, file, target, columns, erasure.subject)
            if removed and (left or not path.removesuffix(".gz").endswith(".jsonl")):
                zone.replace(path, target)
            elif removed:  # an empty file is no JSON Lines
                zone.remove(path)
            return removed
    except (NightshiftError, pa.ArrowException, EOFError, zlib.error, OSError) as error:
        what = error.what if isinstance(error, NightshiftError) else type(error).__name__
        log.warning("%s cannot be searched: %s", path, what)
        erasure.not_reached.append(f"{path}, which is damaged: remove it")
        return 0


def erase_loaded(settings: Settings, erasure: Erasure) -> None:
    """Take out of raw and quarantine what ingest has not replaced: rows of files that are gone."""
    for contract in _with_personal_data():
        with (
            holding(settings, exclusive=[contract.lock]),
            connect(settings) as connection,
            connection.cursor() as cursor,
        ):
            loaded = _delete_loaded(cursor, contract.raw_table, _is_subject(contract), erasure)
            names_subject = (
                "%(id)s = any(regexp_split_to_array(row_as_landed, '[,;|\"\\s]+'))"
                " or %(id)s = any(regexp_split_to_array(row_as_landed, '\\s*[,;|\"]\\s*'))"
                " or trim(value) = %(id)s"
            )
            broken = _delete_loaded(cursor, contract.quarantine_table, names_subject, erasure)
            for file_id in loaded.keys() | broken.keys():
                good, bad = loaded.get(file_id, 0), broken.get(file_id, 0)
                cursor.execute(
                    "update ops.landing_files set rows_in = rows_in - %s - %s,"
                    " rows_loaded = rows_loaded - %s, rows_quarantined = rows_quarantined - %s"
                    " where file_id = %s returning source, landed_date",
                    (good, bad, good, bad, file_id),
                )
                for source, landed_date in cursor.fetchall():
                    cursor.execute(
                        "insert into ops.changed_days (source, landed_date, reason)"
                        " values (%s, %s, %s)",
                        (source, landed_date, f"erased, erasure {erasure.erasure_id}"),
                    )
        left = sum(loaded.values())
        _count(
            settings,
            erasure,
            contract.raw_table,
            max(left, erasure.held.get(contract.raw_table, 0)),
        )
        _count(settings, erasure, contract.quarantine_table, sum(broken.values()))


def _delete_loaded(cursor: Any, table: str, where: str, erasure: Erasure) -> dict[int, int]:
    """Rows deleted by file."""
    cursor.execute("select to_regclass(%s)", (table,))
    if cursor.fetchone() == (None,):
        return {}
    cursor.execute(
        f"with gone as (delete from {table} where {where} returning _file_id)"
        " select _file_id, count(*) from gone group by _file_id",
        {"id": erasure.subject},
    )
    return dict(cursor.fetchall())


def erase_derived(settings: Settings, use_cases: Sequence[UseCase], erasure: Erasure) -> None:
    """Take the person out of all that is made from raw: tables, lake, MLflow, texts.

    The marts are rebuilt before: what they sum up over persons is then without this one.
    """
    keys = _keys(use_cases)
    _erase_lake(settings, keys, erasure)
    _erase_tables(settings, use_cases, keys, erasure)
    _erase_mlflow(settings, use_cases, keys, erasure)
    _mask_texts(settings, erasure)
    _mask_files(settings, erasure)


def _erase_lake(settings: Settings, keys: Sequence[str], erasure: Erasure) -> None:
    # events first: whoever still reads them with the person holds the lock, and what he makes of
    # them is erased after
    # tiles that the feature job makes anew
    shutil.rmtree(settings.lake_dir / "state", ignore_errors=True)
    with lake.workspace(settings.lake_dir / lake.CHALLENGES):
        pass  # what a killed challenge has left there is gone
    for kind in ("events", "features", "training", "matured", "outcomes", "scores"):
        removed = 0
        root = settings.lake_dir / kind
        for folder in sorted({_dataset(found) for found in root.rglob("*=*") if found.is_dir()}):
            owner, dataset = folder.relative_to(root).parts[0], folder.name
            wanted = (
                f"lake:{owner}"
                if kind == "events"
                else f"{kind}:{owner}:{dataset.removeprefix('as_of=')}"
            )
            with holding(settings, exclusive=[wanted]):
                for left in folder.parent.glob(f".{dataset}.*"):
                    shutil.rmtree(left, ignore_errors=True)
                removed += _erase_dataset(folder, keys, erasure)
        _count(settings, erasure, f"lake {kind}", removed)
        log.info("erase: %d rows of the lake's %s", removed, kind)


def _dataset(folder: Path) -> Path:
    """The dataset's folder, also for what a killed run left under another name."""
    return folder.parent / folder.name.removeprefix(".").split(".")[0]


def _erase_dataset(folder: Path, keys: Sequence[str], erasure: Erasure) -> int:
    manifest = lake.read_manifest(folder)
    if manifest is None:  # incomplete, and so nobody's
        shutil.rmtree(folder, ignore_errors=True)
        return 0
    parts = lake.parts(folder)
    with tempfile.TemporaryDirectory() as scratch:
        rewritten: dict[str, Path] = {}
        removed = left = 0
        for other in lake.beside(folder):
            target = Path(scratch) / other.name
            if write_parquet_without(other, target, keys, erasure.values)[0]:
                rewritten[other.name] = target
        for part in parts:
            target = Path(scratch) / part.name
            gone, kept = write_parquet_without(part, target, keys, erasure.values)
            removed, left = removed + gone, left + kept
            if gone:
                rewritten[part.name] = target
        if not rewritten:
            return 0
        if not left:
            shutil.rmtree(folder)
            return removed
        with lake.replacing(folder) as new:
            for part in (*parts, *lake.beside(folder)):
                shutil.copyfile(rewritten.get(part.name, part), new / part.name)
            written = [new / part.name for part in parts]
            manifest["rows"] = left
            if "population_rows" in manifest:  # of scores
                manifest["population_rows"] -= removed
            if "sha256" in manifest:
                manifest["sha256"] = lake.parts_sha256(written)
            elif "signature" in manifest:  # of a month of events
                manifest["signature"] = lake.file_sha256(written[0])
                manifest["bytes"] = written[0].stat().st_size
            lake.write_manifest(new, manifest)
    return removed


def _erase_tables(
    settings: Settings, use_cases: Sequence[UseCase], keys: Sequence[str], erasure: Erasure
) -> None:
    """Delete from every table after raw that has a column of the person's, and vacuum it."""
    with connect(settings) as connection, connection.cursor() as cursor:
        cursor.execute("select use_case, as_of from ops.publications")
        publications = {(use_case, str(as_of)) for use_case, as_of in cursor.fetchall()}
        # and those that are on their way
        for folder in (settings.lake_dir / "scores").glob("*/as_of=*"):
            publications.add((folder.parent.name, folder.name.removeprefix("as_of=")))
        tables = _tables_after_raw(cursor, keys)
    removed: dict[str, int] = {}
    with holding(settings, exclusive=[f"publish:{name}:{as_of}" for name, as_of in publications]):
        for schema, table, columns in tables:
            with connect(settings) as connection, connection.cursor() as cursor:
                cursor.execute(
                    sql.SQL("delete from {} where {}").format(
                        sql.Identifier(schema, table), _is_person(columns)
                    ),
                    {"values": list(erasure.values)},
                )
                gone = cursor.rowcount
                removed[schema] = removed.get(schema, 0) + gone
                if gone and schema == "predictions":
                    cursor.execute(
                        "update ops.publications set rows = rows - %s where publication_id = %s",
                        (gone, table.rpartition("_p_")[2]),
                    )
    for schema, rows in removed.items():
        _count(settings, erasure, schema, max(rows, erasure.held.get(schema, 0)))
    _vacuum(settings, ["raw", "quarantine", *_AFTER_RAW, "ops"])


def _vacuum(settings: Settings, schemas: Sequence[str]) -> None:
    """Free the room of the deleted rows, so that the next rows are written over them."""
    connection = psycopg2.connect(settings.warehouse_url, application_name="nightshift")
    try:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(
                "select schemaname, relname from pg_stat_user_tables"
                " where schemaname = any(%s) and n_tup_del + n_tup_upd > 0",
                (list(schemas),),
            )
            for schema, table in cursor.fetchall():
                cursor.execute(sql.SQL("vacuum {}").format(sql.Identifier(schema, table)))
    finally:
        connection.close()


def _erase_mlflow(
    settings: Settings, use_cases: Sequence[UseCase], keys: Sequence[str], erasure: Erasure
) -> None:
    """Rewrite the test predictions of every training run, the one artifact with keys."""
    removed = 0
    for use_case in use_cases:
        for run_id in model_store.run_ids(settings, use_case.name):
            if not model_store.has_artifact(settings, run_id, _TEST_PREDICTIONS):
                continue
            file = model_store.fetch(settings, run_id, _TEST_PREDICTIONS)
            with tempfile.TemporaryDirectory() as scratch:
                target = Path(scratch) / file.name
                gone, _ = write_parquet_without(file, target, keys, erasure.values)
                if gone:
                    model_store.replace_artifact(settings, run_id, _TEST_PREDICTIONS, target)
            removed += gone
    _count(settings, erasure, "mlflow", removed)


def _mask_texts(settings: Settings, erasure: Erasure) -> None:
    """Mask what an error or an example of an earlier run may have quoted."""
    masked = 0
    with connect(settings) as connection, connection.cursor() as cursor:
        for table, columns in _TEXTS.items():
            for column in columns:
                cursor.execute(
                    "select format_type(atttypid, atttypmod) from pg_attribute"
                    " where attrelid = %s::regclass and attname = %s",
                    (table, column),
                )
                (kind,) = cursor.fetchone()
                for quoted in _quoted(erasure):
                    cursor.execute(
                        f"update {table} set {column} = replace({column}::text, %s, %s)::{kind}"
                        f" where position(%s in {column}::text) > 0",
                        (quoted, _masked(quoted), quoted),
                    )
                    masked += cursor.rowcount
    _count(settings, erasure, "ops", masked)


def _quoted(erasure: Erasure) -> tuple[str, ...]:
    """How a text may name the person. The bare id may be any number, and is left alone."""
    return erasure.pseudonym, f"'{erasure.subject}'", f'"{erasure.subject}"'


def _masked(quoted: str) -> str:
    """As long as what it stands for, and still quoted."""
    return "".join(c if c in "'\"" else _MASK for c in quoted)


def _mask_files(settings: Settings, erasure: Erasure) -> None:
    """Mask the same in logs, Data Docs and dbt's files, in place: whoever appends goes on."""
    masked = 0
    for folder in settings.state_dir.glob("*"):
        if folder.name in _OWN_FOLDERS or not folder.is_dir():
            continue
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            masked += _mask_file(file, erasure)
    _count(settings, erasure, "logs and reports", masked)


def _mask_file(file: Path, erasure: Erasure) -> int:
    masked = 0
    try:
        with file.open("r+b") as opened:
            if not file.stat().st_size:
                return 0
            with mmap.mmap(opened.fileno(), 0) as content:
                for quoted in _quoted(erasure):
                    needle, mask = quoted.encode(), _masked(quoted).encode()
                    at = content.find(needle)
                    while at >= 0:
                        # one byte stands for one byte, also where a character has more
                        content[at : at + len(needle)] = mask.ljust(len(needle), _MASK.encode())
                        masked += 1
                        at = content.find(needle, at)
    except FileNotFoundError:  # rotated away meanwhile
        return masked
    return masked


def complete(settings: Settings, use_cases: Sequence[UseCase], erasure: Erasure) -> Certificate:
    """Close the certificate.

    Every model version of a use case was trained on what was there before, and cannot forget: as
    soon as the person was found anywhere, all of them are named.
    """
    models = []
    if any(erasure.removed.values()):
        models = [
            f"{use_case.name} version {version}"
            for use_case in use_cases
            for version in model_store.registered(settings, use_case.name)
        ]
    with connect(settings) as connection, connection.cursor() as cursor:
        cursor.execute(
            "update ops.erasures set completed_at = clock_timestamp(), not_reached = %s,"
            " models_to_retrain = %s where erasure_id = %s returning requested_at, completed_at",
            ([*erasure.not_reached, *_NEVER_REACHED], models, erasure.erasure_id),
        )
        requested_at, completed_at = cursor.fetchone()
    return Certificate(
        erasure_id=erasure.erasure_id,
        requested_at=requested_at,
        completed_at=completed_at,
        removed=dict(erasure.removed),
        not_reached=(*erasure.not_reached, *_NEVER_REACHED),
        models_to_retrain=tuple(models),
    )


def _count(settings: Settings, erasure: Erasure, place: str, rows: int) -> None:
    """Keep what was removed at once: a kill must not lose it."""
    erasure.removed[place] = erasure.removed.get(place, 0) + rows
    with connect(settings) as connection, connection.cursor() as cursor:
        cursor.execute(
            "update ops.erasures set removed = %s where erasure_id = %s",
            (Json(erasure.removed), erasure.erasure_id),
        )
