"""Features and training sets, of what the extract has brought to the lake, in one Spark job."""

import logging
import shutil
import time
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyspark.sql import SparkSession

from nightshift.errors import NightshiftError, RefusedAsOf, SettingError
from nightshift.features import extract as plan
from nightshift.features import job, vectors
from nightshift.features import parity as vector_parity
from nightshift.features import prove as prover
from nightshift.features.extract_run import events_dir, lake_locks, mended, unfinished
from nightshift.features.snapshots import mature_snapshots
from nightshift.features.vectors import LABEL, SNAPSHOT
from nightshift.io import lake, model_store
from nightshift.io.spark import spark_session
from nightshift.io.warehouse import connect, holding, recorded_run
from nightshift.settings import Settings
from nightshift.spec import Population, Source, UseCase

log = logging.getLogger(__name__)

DAEMON = "nightshift.features.daemon"
UNUSED_STATE_DAYS = 14


@dataclass(frozen=True)
class DatasetResult:
    """A dataset in the lake."""

    folder: Path
    rows: int
    snapshots: tuple[date, ...]
    is_reused: bool


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
        if not result.is_reused:
            _warn_of_other_vectors(settings, use_case, result)
        return result


@contextmanager
def training_set_again(
    settings: Settings, use_case: UseCase, then: Mapping[str, Any]
) -> Generator[tuple[Path, dict[str, Any], list[str]]]:
    """A training set made anew of the lake, as its manifest tells, in a folder of its own.

    Args:
        use_case: as it was declared then.
        then: the manifest.

    Yields:
        The folder, which is gone afterwards, its manifest, and what is not as it was then.

    Raises:
        NightshiftError: when the lake has no rows, or nobody is in the population any more.
    """
    as_of = date.fromisoformat(then["as_of"])
    snapshots = tuple(date.fromisoformat(day) for day in then["key"]["snapshots"])
    known = date.fromisoformat(then["key"]["label_known_as_of"])
    # beside the training set, where an erasure looks for what a killed process has left
    place = lake.dataset_dir(settings.lake_dir, "training", use_case.name, as_of)
    with (
        holding(
            settings,
            exclusive=[f"training:{use_case.name}:{as_of}"],
            shared=lake_locks(use_case),
        ),
        lake.scratch(place) as folder,
    ):
        dataset = _dataset(settings, folder, use_case, snapshots, known)
        with spark_session(settings, f"nightshift reproduce {as_of}", DAEMON) as spark:
            done = run_tasks(spark, _works(settings, dataset, folder))
        shutil.rmtree(folder / job.RELATED, ignore_errors=True)
        _describe(dataset, folder, as_of, done)
        now = lake.read_manifest(folder) or {}
        yield folder, now, vector_parity.differences(then, now)


def build_labels(settings: Settings, use_case: UseCase, as_of: date) -> DatasetResult:
    """The vectors and the now mature labels of the single snapshot ``as_of``, in ``lake/matured``.

    Labels are taken from what landed before ``as_of + label.maturity_days``.
    """
    known = date.fromordinal(as_of.toordinal() + use_case.label.maturity_days)
    with recorded_run(settings, "labels", as_of, use_case.name) as run:
        result = _build(settings, "matured", as_of, [(use_case, (as_of,), known)])[use_case.name]
        run.result = {"rows": result.rows}
        return result


@dataclass(frozen=True)
class Described:
    """A feature of the catalogue, with what is known of it.

    Attributes:
        name, group, type, null, description: as declared.
        null_share: share of the newest night's vectors in which it is null.
        importance: its share of the champion's total gain.
    """

    name: str
    group: str
    type: str
    null: str
    description: str
    null_share: float | None
    importance: float | None


@dataclass(frozen=True)
class Catalogue:
    """A use case's features.

    Attributes:
        as_of: of the newest night that computed them; None before the first.
        cpu_seconds: what it took, by feature group; "rows" is the reading of rows.
    """

    features: tuple[Described, ...]
    as_of: date | None
    cpu_seconds: Mapping[str, float]


def catalogue(settings: Settings, use_case: UseCase) -> Catalogue:
    """Every feature, with the cost and the null shares of the newest night, and importances."""
    manifests = (
        (date.fromisoformat(folder.name.removeprefix("as_of=")), manifest)
        for folder in sorted((settings.lake_dir / "features" / use_case.name).glob("as_of=*"))
        if "null_share" in (manifest := lake.read_manifest(folder) or {})
    )
    as_of, newest = max(manifests, key=lambda found: found[0], default=(None, {}))
    null_shares = newest.get("null_share", {})
    gains = _importances(settings, use_case)
    return Catalogue(
        features=tuple(
            Described(
                name=each.name,
                group=group.name,
                type=each.type,
                null=each.null,
                description=each.description,
                null_share=null_shares.get(each.name),
                importance=None if gains is None else gains.get(each.name, 0.0),
            )
            for group in use_case.feature_groups
            for each in group.catalogue
        ),
        as_of=as_of,
        cpu_seconds=newest.get("cpu_seconds", {}),
    )


def _importances(settings: Settings, use_case: UseCase) -> dict[str, float] | None:
    try:
        with connect(settings):  # MLflow would try for minutes
            pass
    except SettingError as error:
        log.warning("no importances: %s", error)
        return None
    return model_store.importances(settings, use_case.name)


def prove(settings: Settings, use_case: UseCase, as_of: date | None = None) -> list[prover.Trial]:
    """Plant what no feature may see among the lake's rows, and look whether one moves.

    The rows are those of the first bucket of entities that has any.

    Args:
        as_of: the snapshot; None for the newest whose label is known.

    Raises:
        NightshiftError: when there is no extract, or no snapshot whose label is known.
    """
    with holding(settings, shared=lake_locks(use_case)):
        tables = _tables_of_some(settings, use_case)
    source = use_case.source
    table = tables[source.name]
    landed = pc.max(table[source.landed_date]).as_py()
    newest = landed + timedelta(days=1 - use_case.label.maturity_days)
    first = pc.min(table[source.landed_date]).as_py()
    as_of = as_of or newest
    if not first < as_of <= newest:
        raise NightshiftError(
            f"there is no snapshot of {use_case.name} at {as_of} to prove with: what has landed"
            f" allows dates after {first} up to {newest}, when the label is known",
            "choose such a date with --as-of, or land more days",
        )
    return list(prover.trials(use_case, tables, as_of))


def _tables_of_some(settings: Settings, use_case: UseCase) -> dict[str, pa.Table]:
    """All rows of some entities, of each source: by the use case's own key where that reads it."""
    streams = dict[str, tuple[Source, str]]()
    for source, key in use_case.streams:  # its own key comes first
        streams.setdefault(source.name, (source, key))
    for bucket in range(settings.lake_buckets):
        tables = {}
        for name, (source, key) in streams.items():
            wanted = list(source.columns)
            files = [month.file for month in _months_there(settings, source, key)]
            parts = [plan.read(file, bucket, source, wanted) for file in files]
            tables[name] = pa.concat_tables(parts).unify_dictionaries().combine_chunks()
        if tables[use_case.source.name].num_rows:
            return tables
    raise NightshiftError(
        f"the extract of {use_case.source.name} has no row with a {use_case.key}",
        "land files, and run the stages before",
    )


def parity(
    settings: Settings, use_case: UseCase, as_of: date | None = None
) -> vector_parity.Report:
    """Compare what a night kept with what is computed for it now, as training does, and this with
    what it would be, had all that has landed since been known.

    Args:
        as_of: the night; None for the newest whose vectors are kept.

    Raises:
        NightshiftError: when no vectors are kept, or they cannot be read.
    """
    nights = _nights_kept(settings, use_case)
    if as_of is None and nights:
        as_of = nights[-1]
    if as_of is None or as_of not in nights:
        between = f"; there are {len(nights)}, from {nights[0]} to {nights[-1]}" if nights else ""
        raise NightshiftError(
            f"no vectors of {use_case.name} are kept of {as_of or 'any night'}{between}",
            "choose another date, or run `nightshift nightly --as-of` for this one",
        )
    folder = lake.dataset_dir(settings.lake_dir, "features", use_case.name, as_of)
    of_night = f"{use_case.name}:{as_of}"
    with (
        holding(
            settings,
            exclusive=[f"parity:{of_night}"],
            shared={f"features:{of_night}", *lake_locks(use_case)},
        ),
        lake.scratch(lake.dataset_dir(settings.lake_dir, "parity", use_case.name, as_of)) as root,
    ):
        kept = lake.read_manifest(folder) or {}
        dataset = _dataset(settings, folder, use_case, (as_of,))
        now, hindsight = root / "now", root / "hindsight"
        now.mkdir()
        hindsight.mkdir()
        works = _works(settings, dataset, now) + _works(settings, dataset, hindsight, date.max)
        with spark_session(settings, f"nightshift parity {as_of}", DAEMON) as spark:
            run_tasks(spark, works)
        return vector_parity.Report(
            as_of=as_of,
            trained=_compared(
                use_case, folder, now, kept["key"].get("buckets") == settings.lake_buckets
            ),
            hindsight=_compared(use_case, now, hindsight, True),
            late=_late_rows(settings, use_case, as_of),
            rebuilt={
                source: vector_parity.rebuilt(
                    kept.get("landed_days", {}).get(source, {}), days, as_of
                )
                for source, days in dataset.landed_days.items()
            },
            other_declaration=kept["spec_sha256"] != dataset.key["spec_sha256"],
            other_code=kept["key"]["code_sha256"] != dataset.key["code_sha256"],
            scored=_is_scored(settings, use_case, as_of, kept["sha256"]),
        )


@dataclass(frozen=True)
class Replayed:
    """What was known of one entity, and the vectors that this makes.

    Attributes:
        rows: source → its newest known rows, newest first.
        known: source → how many there are.
        vectors: a row each that is scored: the columns that name it, then the features.
        landed_until: the newest landed day that the lake holds before ``as_of``.
    """

    rows: Mapping[str, pa.Table]
    known: Mapping[str, int]
    vectors: pa.Table
    landed_until: date


def replay(
    settings: Settings, use_case: UseCase, entity: str, as_of: date, newest: int
) -> Replayed:
    """Read one entity's rows in the lake, and compute its features by the code that scores.

    Args:
        entity: its key, as in the marts.
        newest: how many rows of each source are shown at most.

    Raises:
        NightshiftError: when the lake has nothing that landed before ``as_of``, or no row of the
            entity that was known then.
    """
    with holding(settings, shared=lake_locks(use_case)):
        tables = _tables_around(settings, use_case, entity)
        landed = _landed_days_there(settings, use_case, as_of)
    days = sorted(landed.get(use_case.source.name, {}))
    if not days:
        raise NightshiftError(
            f"the lake holds nothing of {use_case.source.name} that landed before {as_of}",
            f"run `nightshift nightly --as-of {as_of}`, or choose a later date",
        )
    own = {
        source.name: (source, _known(tables[source.name], source, use_case.key, entity, as_of))
        for source in use_case.sources
        if use_case.key in source.columns
    }
    if not any(rows.num_rows for _, rows in own.values()):
        raise NightshiftError(
            f"no row with this {use_case.key} had happened and landed before {as_of}",
            "check the id, which is given as it lands, and the date",
        )
    reader = vectors.InMemory(use_case, tables)
    found = []
    for batch in vectors.batches(reader, [as_of]):
        is_it = pc.equal(batch.columns[use_case.key], entity)
        some = batch.take(np.flatnonzero(is_it.to_numpy(zero_copy_only=False)))
        if len(some):
            found.append(
                pa.table({**some.columns, **vectors.columns_of(reader, some)}).select(
                    [*use_case.vector_key, *use_case.feature_names]
                )
            )
    return Replayed(
        rows={
            name: rows.sort_by([(source.event_time, "descending")]).slice(0, newest)
            for name, (source, rows) in own.items()
        },
        known={name: rows.num_rows for name, (_, rows) in own.items()},
        vectors=pa.concat_tables(found) if found else pa.table({}),
        landed_until=date.fromisoformat(days[-1]),
    )


def _tables_around(settings: Settings, use_case: UseCase, entity: str) -> dict[str, pa.Table]:
    """The entity's rows of each source; all rows of those in which others are looked up."""
    looked_up = {group.source.name for group in use_case.related_groups}
    streams = dict[str, tuple[Source, str]]()
    for source, key in use_case.streams:  # its own key comes first
        streams.setdefault(source.name, (source, key))
    tables = {}
    for name, (source, key) in streams.items():
        is_own = name not in looked_up and key == use_case.key
        own = [plan.bucket_of(entity, settings.lake_buckets)]
        parts = [
            plan.read(month.file, bucket, source, list(source.columns))
            for month in _months_there(settings, source, key)
            for bucket in (own if is_own else range(settings.lake_buckets))
        ]
        table = pa.concat_tables(parts).unify_dictionaries().combine_chunks()
        if is_own:
            table = table.filter(pc.equal(table[key].cast(pa.string()), entity))
        tables[name] = table
    return tables


def _known(table: pa.Table, source: Source, key: str, entity: str, as_of: date) -> pa.Table:
    happened = pc.cast(table[source.event_time], pa.date32())
    is_known = pc.and_(
        pc.less(happened, pa.scalar(as_of)), pc.less(table[source.landed_date], pa.scalar(as_of))
    )
    return table.filter(pc.and_(is_known, pc.equal(table[key].cast(pa.string()), entity)))


def _nights_kept(settings: Settings, use_case: UseCase) -> list[date]:
    folders = (settings.lake_dir / "features" / use_case.name).glob("as_of=*")
    return sorted(
        date.fromisoformat(folder.name.removeprefix("as_of="))
        for folder in folders
        if lake.read_manifest(folder) is not None
    )


def _compared(
    use_case: UseCase,
    before: Path,
    after: Path,
    same_buckets: bool,
    snapshot: date | None = None,
) -> vector_parity.Comparison:
    """Compare two folders of vectors, part by part where a part has the same entities in both.

    Args:
        snapshot: of which ``after`` holds several, with labels; None where it holds one.
    """
    names = sorted({part.name for folder in (before, after) for part in folder.glob("part-*")})
    total = vector_parity.Comparison()
    for some in ([name] for name in names) if same_buckets else [names]:
        old = [part for name in some if (part := _part(before / name)) is not None]
        new = [part for name in some if (part := _part(after / name, snapshot)) is not None]
        nobody = [[*new, *old][0].schema.empty_table()]
        total += vector_parity.compare(
            pa.concat_tables(old or nobody), pa.concat_tables(new or nobody), use_case.vector_key
        )
    return total


def _part(file: Path, snapshot: date | None = None) -> pa.Table | None:
    """The vectors of a part, where there is one; of one snapshot, without the labels."""
    if not file.exists():
        return None
    try:
        with pq.ParquetFile(file, page_checksum_verification=True) as parquet:
            if snapshot is None:
                return parquet.read()
            found = []
            for group in range(parquet.num_row_groups):
                of = parquet.read_row_group(group, columns=[SNAPSHOT])[SNAPSHOT]
                is_of = pc.equal(of, pa.scalar(snapshot))
                if pc.any(is_of).as_py():
                    found.append(parquet.read_row_group(group).filter(is_of))
            table = pa.concat_tables(found) if found else parquet.schema_arrow.empty_table()
            return table.drop_columns([SNAPSHOT, LABEL])
    except (OSError, pa.ArrowException) as error:
        raise NightshiftError(
            f"{file} cannot be read: {' '.join(str(error).split())}",
            f"remove {file.parent}, and run the stage that writes it",
        ) from error


def _late_rows(settings: Settings, use_case: UseCase, as_of: date) -> dict[str, dict[date, int]]:
    """Source → landed day → rows that had happened before ``as_of`` and were not known then."""
    found: dict[str, dict[date, int]] = {}
    for source, key in {source.name: (source, key) for source, key in use_case.streams}.values():
        rows = Counter[date]()
        for month in _months_there(settings, source, key):
            if month.name >= f"{as_of:%Y-%m}":
                for bucket in range(settings.lake_buckets):
                    columns = [source.event_time, source.landed_date]
                    table = plan.read(month.file, bucket, source, columns)
                    rows += vector_parity.late(table, source, as_of)
        found[source.name] = dict(sorted(rows.items()))
    return found


def _is_scored(
    settings: Settings, use_case: UseCase, as_of: date, features_sha256: str
) -> bool | None:
    folder = lake.dataset_dir(settings.lake_dir, "scores", use_case.name, as_of)
    scores = lake.read_manifest(folder)
    return None if scores is None else scores["features_sha256"] == features_sha256


def _warn_of_other_vectors(settings: Settings, use_case: UseCase, trained: DatasetResult) -> None:
    """Compare the newest snapshot whose night was kept, where it was made of other rows or code."""
    for as_of in reversed(trained.snapshots):
        folder = lake.dataset_dir(settings.lake_dir, "features", use_case.name, as_of)
        with holding(settings, shared=[f"features:{use_case.name}:{as_of}"]):
            kept, new = lake.read_manifest(folder), lake.read_manifest(trained.folder) or {}
            if kept is None or kept["spec_sha256"] != new["spec_sha256"]:
                continue
            is_rebuilt = any(
                vector_parity.rebuilt(days, new["landed_days"][source], as_of)
                for source, days in kept.get("landed_days", {}).items()
            )
            if not is_rebuilt and kept["key"]["code_sha256"] == new["key"]["code_sha256"]:
                continue
            same_buckets = kept["key"].get("buckets") == new["key"]["buckets"]
            found = _compared(use_case, folder, trained.folder, same_buckets, as_of)
        if not found.is_same:
            log.warning(
                "%s: of %d vectors that were scored at %s, %d are trained on with other values, and"
                " %d are no more: nightshift features parity %s --as-of %s says why",
                use_case.name, found.vectors + found.only_before, as_of, found.differing,
                found.only_before, use_case.name, as_of,
            )  # fmt: skip
        return


_Job = tuple[UseCase, tuple[date, ...], date | None]


def _build(
    settings: Settings, kind: str, as_of: date, jobs: Sequence[_Job]
) -> dict[str, DatasetResult]:
    """Build what is missing: one writer a dataset, and no extract changes what a job reads.

    Where a month's file turns out to be damaged, it is extracted anew, and the build goes on.
    """
    use_cases = [use_case for use_case, _, _ in jobs]

    def build() -> dict[str, DatasetResult]:
        with holding(
            settings,
            exclusive={f"{kind}:{use_case.name}:{as_of}" for use_case in use_cases},
            shared=lake_locks(*use_cases),
        ):
            return _build_locked(settings, kind, as_of, jobs)

    try:
        return build()
    except plan.DamagedMonth:
        if not mended(settings, use_cases):
            raise
    return build()


def _build_locked(
    settings: Settings, kind: str, as_of: date, jobs: Sequence[_Job]
) -> dict[str, DatasetResult]:
    results, missing = {}, []
    for use_case, snapshots, known in jobs:
        folder = lake.dataset_dir(settings.lake_dir, kind, use_case.name, as_of)
        dataset = _dataset(settings, folder, use_case, snapshots, known)
        manifest = lake.read_manifest(folder)
        if manifest is not None and manifest["key"] == dataset.key:
            log.info("%s of %s for %s: unchanged, reused", kind, use_case.name, as_of)
            results[use_case.name] = DatasetResult(folder, manifest["rows"], snapshots, True)
        else:
            missing.append(dataset)
    if missing:
        with ExitStack() as stack:
            targets = [stack.enter_context(lake.replacing(dataset.folder)) for dataset in missing]
            works = [
                work
                for dataset, target in zip(missing, targets, strict=True)
                for work in _works(settings, dataset, target)
            ]
            with spark_session(settings, f"nightshift {kind} {as_of}", DAEMON) as spark:
                done = run_tasks(spark, works)
            for target in targets:
                shutil.rmtree(target / job.RELATED, ignore_errors=True)
            for dataset, target in zip(missing, targets, strict=True):
                parts = [part for part in done if part.use_case == dataset.use_case.name]
                rows = _describe(dataset, target, as_of, parts)
                results[dataset.use_case.name] = DatasetResult(
                    dataset.folder, rows, dataset.snapshots, False
                )
        _forget(_state_dir(settings), done)
    return results


@dataclass(frozen=True)
class _Dataset:
    """A dataset that is to be built."""

    folder: Path
    use_case: UseCase
    months: dict[tuple[str, str], tuple[job.Month, ...]]
    snapshots: tuple[date, ...]
    known: date | None
    key: dict[str, Any]
    landed_days: dict[str, dict[str, str]]


def _dataset(
    settings: Settings,
    folder: Path,
    use_case: UseCase,
    snapshots: tuple[date, ...],
    known: date | None = None,
) -> _Dataset:
    months = {
        (source.name, key): _months_there(settings, source, key) for source, key in use_case.streams
    }
    key = _dataset_key(use_case, months, snapshots, known)
    key["buckets"] = settings.lake_buckets
    landed = _landed_days_there(settings, use_case, known or max(snapshots))
    return _Dataset(folder, use_case, months, snapshots, known, key, landed)


def _landed_days_there(
    settings: Settings, use_case: UseCase, before: date
) -> dict[str, dict[str, str]]:
    """Source → landed day before a date → a short name of the build that wrote its rows."""
    found: dict[str, dict[str, str]] = {}
    for source, key in use_case.streams:
        for folder in events_dir(settings, source, key).glob("month=*"):
            days = (lake.read_manifest(folder) or {}).get("days", {})
            found.setdefault(source.name, {}).update(
                (day, lake.digest(build)[:8])
                for day, build in days.items()
                if day < before.isoformat()
            )
    return found


def _works(
    settings: Settings, dataset: _Dataset, target: Path, hindsight: date | None = None
) -> list[job.Work]:
    return [
        job.Work(
            use_case=dataset.use_case,
            key=key,
            months=dataset.months,
            snapshots=dataset.snapshots,
            label_known_as_of=dataset.known,
            state=_state_dir(settings),
            target=target,
            code=dataset.key["code_sha256"],
            bucket=bucket,
            buckets=settings.lake_buckets,
            hindsight=hindsight,
        )
        for key in dict.fromkeys(key for _, key in dataset.use_case.streams)
        for bucket in range(settings.lake_buckets)
    ]


def _state_dir(settings: Settings) -> Path:
    return settings.lake_dir / "state"


def _months_there(settings: Settings, source: Source, key: str) -> tuple[job.Month, ...]:
    if unfinished(settings, source).exists():
        raise plan.DamagedMonth(
            f"the last extract of {source.name} has not come to its end", "run the extract stage"
        )
    months = []
    for folder in sorted(events_dir(settings, source, key).glob("month=*")):
        file, manifest = folder / plan.FILE, lake.read_manifest(folder)
        if manifest is None or not file.is_file() or file.stat().st_size != manifest["bytes"]:
            raise plan.DamagedMonth(
                f"{file} is damaged", "run the extract stage: it writes it anew"
            )
        if manifest["buckets"] != settings.lake_buckets:
            raise NightshiftError(
                f"{file} has {manifest['buckets']} buckets, and the setting lake_buckets says"
                f" {settings.lake_buckets}",
                "run the extract stage: it writes it anew",
            )
        name = folder.name.removeprefix("month=")
        months.append(job.Month(name, file, manifest["signature"]))
    if not months:
        raise NightshiftError(
            f"the lake has no row of {source.name} by {key}",
            f"run the extract stage; if it has run, {source.relation} has no such row: land files",
        )
    return tuple(months)


def _dataset_key(
    use_case: UseCase,
    months: Mapping[tuple[str, str], Sequence[job.Month]],
    snapshots: Sequence[date],
    known: date | None,
) -> dict[str, Any]:
    return {
        "spec_sha256": lake.digest(use_case.model_dump(mode="json")),
        "source_sha256": lake.digest(_signatures(months)),
        "code_sha256": job.code_sha256(),
        "snapshots": [d.isoformat() for d in snapshots],
        "label_known_as_of": known.isoformat() if known else None,
    }


def _signatures(months: Mapping[tuple[str, str], Sequence[job.Month]]) -> dict[str, str]:
    """``<source>/<key>/<month>`` → what its rows are known by."""
    return {
        f"{source}/{key}/{month.name}": month.signature
        for (source, key), found in months.items()
        for month in found
    }


def run_tasks(spark: SparkSession, works: Sequence[job.Work]) -> list[job.Done]:
    """What the tasks did: first those of what others look up, then those of the vectors.

    Raises:
        NightshiftError: what the first task that could not do its work said.
    """
    rounds = [
        [work for work in works if work.key != work.use_case.key],
        [work for work in works if work.key == work.use_case.key],
    ]
    done: list[job.Done] = []
    for some in filter(None, rounds):
        tasks = len(some)
        if str(spark.sparkContext.master).startswith("local"):
            # a task of several buckets costs less than one each, and two a core even out; of a
            # cluster it is not known yet how many cores will come
            tasks = min(tasks, 2 * spark.sparkContext.defaultParallelism)
        for found in spark.sparkContext.parallelize(some, tasks).map(job.run).collect():
            if isinstance(found, job.Refused):
                kind = plan.DamagedMonth if found.is_damage else NightshiftError
                raise kind(found.what, found.remedy)
            done.append(found)
    return done


def _describe(dataset: _Dataset, target: Path, as_of: date, parts: Sequence[job.Done]) -> int:
    """Write the manifest; rows of the dataset."""
    use_case, rows = dataset.use_case, sum(part.rows for part in parts)
    if rows == 0:
        raise _nobody(use_case, dataset.snapshots)
    written = sorted((part for part in parts if part.part), key=lambda part: part.part)
    groups = {name for part in parts for name in part.seconds}
    read = sorted({month for part in parts for month in part.months_read})
    lake.write_manifest(
        target,
        {
            "use_case": use_case.name,
            "as_of": as_of,
            "key": dataset.key,
            "spec_sha256": dataset.key["spec_sha256"],
            "source_sha256": dataset.key["source_sha256"],
            "snapshots": dataset.key["snapshots"],
            "rows": rows,
            "columns": list(pq.read_schema(target / written[0].part).names),
            "sha256": lake.digest([part.sha256 for part in written]),
            "parts": {part.part: {"rows": part.rows, "sha256": part.sha256} for part in written},
            "months": _signatures(dataset.months),
            "months_read": read,
            "landed_days": dataset.landed_days,
            "null_share": {
                name: sum(part.nulls[name] for part in written) / rows
                for name in use_case.feature_names
            },
            "cpu_seconds": {
                name: round(sum(part.seconds.get(name, 0.0) for part in parts), 3)
                for name in sorted(groups)
            },
        },
    )
    log.info(
        "%s: %d vectors of %d features at %d snapshots; rows of %d of %d months read",
        use_case.name, rows, len(use_case.feature_names), len(dataset.snapshots), len(read),
        len(_signatures(dataset.months)),
    )  # fmt: skip
    return rows


def _nobody(use_case: UseCase, snapshots: Sequence[date]) -> RefusedAsOf:
    population, days = use_case.population, ", ".join(map(str, snapshots))
    if isinstance(population, Population):
        what = f"nobody had an event in the {population.active_days} days before {days}"
    else:
        what = f"no event happened on the day before {days}"
    return RefusedAsOf(
        f"{use_case.name}: {what} in what had landed by then",
        "choose a later as_of, or land the missing days and run `nightshift ingest`",
    )


def _forget(folder: Path, parts: Sequence[job.Done]) -> None:
    """Remove kept tiles that this job had no use for, though they are of the same declaration,
    and those of a declaration or code that nothing has used for some days."""
    used = {folder / name for part in parts for name in part.state}
    for group in {file.parent for file in used}:
        group.touch()
        for file in set(group.glob("[!.]*.npz")) - used:
            file.unlink(missing_ok=True)
    for group in folder.glob("*/*/*"):
        if group.stat().st_mtime < time.time() - UNUSED_STATE_DAYS * 86_400:
            shutil.rmtree(group, ignore_errors=True)


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
