"""Extracts marts to the lake, and computes features and training sets in one Spark job."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import adbc_driver_postgresql.dbapi as adbc
import pyarrow.parquet as pq
from pyspark.sql import DataFrame, SparkSession

from nightshift.errors import NightshiftError, RefusedAsOf
from nightshift.features import extract as plan
from nightshift.features import job
from nightshift.features.snapshots import mature_snapshots
from nightshift.io import lake
from nightshift.io.spark import spark_session
from nightshift.io.warehouse import connect, holding, recorded_run
from nightshift.settings import PROJECT_ROOT, Settings
from nightshift.spec import Source, UseCase

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExtractResult:
    """What an extract did: months of the mart rewritten, months in all, rows rewritten."""

    months_changed: int
    months: int
    rows: int


@dataclass(frozen=True)
class DatasetResult:
    """A dataset in the lake."""

    folder: Path
    rows: int
    snapshots: tuple[date, ...]
    is_reused: bool


def events_dir(settings: Settings, source: Source) -> Path:
    """Where a source's extract lies, one folder a landed month."""
    return settings.lake_dir / "events" / source.name


def extract(settings: Settings, use_cases: Sequence[UseCase], as_of: date) -> ExtractResult:
    """Bring the lake's copy of every mart that the use cases read up to date, month by month.

    A month is rewritten when its rows, or the code that made them, are others than when it was
    last written; whatever landed is copied, and the cut at ``as_of`` is the feature job's.
    """
    with recorded_run(settings, "extract", as_of) as run:
        changed = months = rows = 0
        for source in {u.source.name: u.source for u in use_cases}.values():
            with holding(settings, exclusive=[_lake_lock(source)]):
                done = _extract_source(settings, source)
            changed, months, rows = changed + done[0], months + done[1], rows + done[2]
        run.result = {"months_changed": changed, "months": months, "rows": rows}
        log.info("extract: %d of %d months changed, %d rows written", changed, months, rows)
        return ExtractResult(changed, months, rows)


def _extract_source(settings: Settings, source: Source) -> tuple[int, int, int]:
    code = _folder_sha256(PROJECT_ROOT / "dbt_project" / "models", "*.sql")
    declared = source.model_dump(mode="json")
    with connect(settings) as connection, connection.cursor() as cursor:
        cursor.execute(plan.fingerprint_query(source))
        signatures = {
            month.isoformat(): lake.digest([rows, checksum, code, declared])
            for month, rows, checksum in cursor.fetchall()
        }
    root = events_dir(settings, source)
    known = {
        month: manifest["signature"]
        for month in signatures
        if (manifest := lake.read_manifest(root / f"month={month}")) is not None
    }
    for stale in root.glob("month=*"):
        if stale.name.removeprefix("month=") not in signatures:
            raise NightshiftError(
                f"the lake has {stale}, but {source.relation} has no row of that month any more",
                f"if that is right, remove {stale} and run again",
            )
    rewritten = 0
    months = plan.changed(known, signatures)
    if months:
        with adbc.connect(settings.warehouse_url) as connection, connection.cursor() as cursor:
            for month in months:
                cursor.execute(plan.month_query(source, date.fromisoformat(month)))
                table = plan.typed(cursor.fetch_arrow_table(), source)
                with lake.replacing(root / f"month={month}") as folder:
                    pq.write_table(table, folder / "part-00000.parquet", compression="zstd")
                    lake.write_manifest(
                        folder, {"signature": signatures[month], "rows": table.num_rows}
                    )
                rewritten += table.num_rows
    return len(months), len(signatures), rewritten


def build_features(
    settings: Settings, use_cases: Sequence[UseCase], as_of: date
) -> dict[str, DatasetResult]:
    """The feature vectors of every use case's population at ``as_of``, in one Spark session.

    Raises:
        RefusedAsOf: when nobody belongs to the population at ``as_of``.
    """
    jobs = [(use_case, (as_of,), None) for use_case in use_cases]
    with recorded_run(settings, "features", as_of) as run:
        results = _build(settings, "features", as_of, jobs)
        run.result = {
            name: {"rows": r.rows, "is_reused": r.is_reused} for name, r in results.items()
        }
        return results


def build_training_set(settings: Settings, use_case: UseCase, as_of: date) -> DatasetResult:
    """Every mature snapshot as of ``as_of``, with its label, in ``lake/training``.

    Raises:
        RefusedAsOf: when history is too short, or holds nobody of the population.
    """
    with recorded_run(settings, "training_set", as_of, use_case.name) as run:
        snapshots = tuple(mature_snapshots(use_case, as_of, _first_landing(settings, use_case)))
        result = _build(settings, "training", as_of, [(use_case, snapshots, as_of)])[use_case.name]
        run.result = {"rows": result.rows, "snapshots": list(snapshots)}
        return result


def build_labels(settings: Settings, use_case: UseCase, as_of: date) -> DatasetResult:
    """The vectors and the now mature labels of the single snapshot ``as_of``, in ``lake/matured``.

    Labels are taken from what landed before ``as_of + label.maturity_days``.
    """
    known = date.fromordinal(as_of.toordinal() + use_case.label.maturity_days)
    with recorded_run(settings, "labels", as_of, use_case.name) as run:
        result = _build(settings, "matured", as_of, [(use_case, (as_of,), known)])[use_case.name]
        run.result = {"rows": result.rows}
        return result


_Job = tuple[UseCase, tuple[date, ...], date | None]


def _lake_lock(source: Source) -> str:
    return f"lake:{source.name}"


def _build(
    settings: Settings, kind: str, as_of: date, jobs: Sequence[_Job]
) -> dict[str, DatasetResult]:
    """Build what is missing: one writer a dataset, and no extract changes what a job reads."""
    with holding(
        settings,
        exclusive={f"{kind}:{use_case.name}:{as_of}" for use_case, _, _ in jobs},
        shared={_lake_lock(use_case.source) for use_case, _, _ in jobs},
    ):
        return _build_locked(settings, kind, as_of, jobs)


def _build_locked(
    settings: Settings, kind: str, as_of: date, jobs: Sequence[_Job]
) -> dict[str, DatasetResult]:
    keys = {
        use_case.name: _dataset_key(settings, use_case, snapshots, known)
        for use_case, snapshots, known in jobs
    }
    results, missing = {}, []
    for use_case, snapshots, known in jobs:
        folder = lake.dataset_dir(settings.lake_dir, kind, use_case.name, as_of)
        manifest = lake.read_manifest(folder)
        if manifest is not None and manifest["key"] == keys[use_case.name]:
            log.info("%s of %s for %s: unchanged, reused", kind, use_case.name, as_of)
            results[use_case.name] = DatasetResult(folder, manifest["rows"], snapshots, True)
        else:
            missing.append((folder, use_case, snapshots, known))
    if missing:
        with spark_session(settings, f"nightshift {kind} {as_of}") as spark:
            for folder, use_case, snapshots, known in missing:
                rows = _write_dataset(
                    settings, spark, folder, use_case, snapshots, known, as_of, keys[use_case.name]
                )
                results[use_case.name] = DatasetResult(folder, rows, snapshots, False)
    return results


def _dataset_key(
    settings: Settings, use_case: UseCase, snapshots: Sequence[date], known: date | None
) -> dict[str, Any]:
    months = {
        folder.name: manifest["signature"]
        for folder in sorted(events_dir(settings, use_case.source).glob("month=*"))
        if (manifest := lake.read_manifest(folder)) is not None
    }
    if not months:
        raise NightshiftError(
            f"the lake has no extract of {use_case.source.name}", "run the extract stage first"
        )
    return {
        "spec_sha256": lake.digest(use_case.model_dump(mode="json")),
        "source_sha256": lake.digest(months),
        "code_sha256": _folder_sha256(Path(__file__).parent, "*.py"),
        "snapshots": [d.isoformat() for d in snapshots],
        "label_known_as_of": known.isoformat() if known else None,
    }


def _write_dataset(
    settings: Settings,
    spark: SparkSession,
    folder: Path,
    use_case: UseCase,
    snapshots: tuple[date, ...],
    known: date | None,
    as_of: date,
    key: dict[str, Any],
) -> int:
    events = _read_events(settings, spark, use_case.source)
    partitions = 2 * spark.sparkContext.defaultParallelism
    vectors = job.vectors(events, use_case, snapshots, known, partitions)
    if known is None:
        vectors = vectors.drop(job.SNAPSHOT)
    with lake.replacing(folder) as temporary:
        vectors.write.mode("append").parquet(str(temporary))
        parts = sorted(temporary.glob("part-*.parquet"))
        rows = sum(pq.read_metadata(part).num_rows for part in parts)
        if rows == 0:
            raise RefusedAsOf(
                f"{use_case.name}: nobody had an event in the {use_case.population.active_days} "
                f"days before {', '.join(map(str, snapshots))} in what had landed by then",
                "choose a later as_of, or land the missing days and run `nightshift ingest`",
            )
        manifest = {
            "use_case": use_case.name,
            "as_of": as_of,
            "key": key,
            "spec_sha256": key["spec_sha256"],
            "source_sha256": key["source_sha256"],
            "snapshots": key["snapshots"],
            "rows": rows,
            "columns": list(pq.read_schema(parts[0]).names),
            "sha256": lake.rows_sha256(parts),
        }
        lake.write_manifest(temporary, manifest)
    log.info(
        "%s: %d vectors of %d features at %d snapshots",
        use_case.name, rows, len(use_case.feature_names), len(snapshots),
    )  # fmt: skip
    return rows


def _read_events(settings: Settings, spark: SparkSession, source: Source) -> DataFrame:
    folders = sorted(events_dir(settings, source).glob("month=*"))
    return spark.read.parquet(*(str(f / "part-00000.parquet") for f in folders))


def _first_landing(settings: Settings, use_case: UseCase) -> date:
    with connect(settings) as connection, connection.cursor() as cursor:
        cursor.execute(
            f"select min({plan.quote(use_case.source.landed_date)}) "
            f"from {plan.quote(use_case.source.relation)}"
        )
        found = cursor.fetchone()
    if found is None or found[0] is None:
        raise RefusedAsOf(
            f"{use_case.source.relation} has no rows", "run the ingest and transform stages first"
        )
    first: date = found[0]
    return first


def _folder_sha256(folder: Path, pattern: str) -> str:
    return lake.digest(
        {str(p.relative_to(folder)): lake.file_sha256(p) for p in folder.rglob(pattern)}
    )
