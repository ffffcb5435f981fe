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

from nightshift.errors import NightshiftError, RefusedAsOf, SettingError, joined
from nightshift.features import extract as plan
from nightshift.features import job, vectors
from nightshift.features import parity as vector_parity
from nightshift.features import prove as prover
from nightshift.features.extract_run import events_dir, lake_locks, mended, unfinished
from nightshift.features.snapshots import mature_snapshots
from nightshift.features.vectors import LABEL, SNAPSHOT
from nightshift.io import code, lake, model_store
from nightshift.io.held_sources import free
from nightshift.io.spark import spark_session
from nightshift.io.warehouse import connect, holding, recorded_run
from nightshift.settings import Settings
from nightshift.spec import Candidates, EveryEvent, Source, Through, UseCase

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

    A use case to whose population nobody belongs holds none of the others: it has no dataset
    afterwards, and is not in the result. One that reads a source which is held is left out.

    Args:
        use_cases: those that are due; without any there is nothing to do.

    Raises:
        RefusedAsOf: when nobody belongs to any of the populations at ``as_of``.
        NightshiftError: what sources were refused for, where no use case is left.
    """
    if not use_cases:
        return {}
    use_cases = free(settings, use_cases, as_of)
    found = _build_nights(settings, {as_of: use_cases}, is_all_or_none=False)
    return found.get(as_of, {})


def build_features_of_nights(
    settings: Settings, nights: Mapping[date, Sequence[UseCase]]
) -> dict[date, dict[str, DatasetResult]]:
    """The feature vectors of many nights, each as that night alone computes it, in one Spark job.

    Rows are read and tiled once for all of them. What is there already is not computed again.

    Args:
        nights: ``as_of`` → the use cases that are scored.

    Returns:
        ``as_of`` → use case → its dataset.

    Raises:
        RefusedAsOf: when nobody belongs to a population at one of the dates.
    """
    return _build_nights(settings, nights, is_all_or_none=True)


def _build_nights(
    settings: Settings, nights: Mapping[date, Sequence[UseCase]], *, is_all_or_none: bool
) -> dict[date, dict[str, DatasetResult]]:
    asked = [
        _Asked(use_case, as_of, (as_of,)) for as_of in sorted(nights) for use_case in nights[as_of]
    ]
    with recorded_run(settings, "features", max(nights)) as run:
        refused: list[RefusedAsOf] | None = None if is_all_or_none else []
        built = _build(settings, "features", asked, refused)
        results: dict[date, dict[str, DatasetResult]] = {}
        for each, result in zip(asked, built, strict=True):
            if result is not None:
                results.setdefault(each.as_of, {})[each.use_case.name] = result
        for as_of, of_night in results.items():
            for use_case in nights[as_of]:
                if use_case.alerts is not None and use_case.name in of_night:
                    _write_outcomes(settings, use_case, as_of)
        run.result["datasets"] = [
            {"as_of": as_of, "use_case": name, "rows": r.rows, "is_reused": r.is_reused}
            for as_of, of_night in results.items()
            for name, r in of_night.items()
        ]
        if refused:
            run.result["refused"] = [refusal.what for refusal in refused]
            if not results:
                raise joined(refused)
        return results


def _write_outcomes(settings: Settings, use_case: UseCase, as_of: date) -> None:
    """Which events of the newest nights whose labels are known were reported, in ``lake/outcomes``.

    Read off the lake's copy of the events alone, for it is what a threshold is chosen by each
    night.
    """
    assert use_case.alerts is not None  # asked of those that have them
    newest = as_of - timedelta(days=use_case.label.maturity_days)
    nights = [newest - timedelta(days=ago) for ago in reversed(range(use_case.alerts.nights))]
    source = use_case.source
    landed = {f"{night - timedelta(days=1):%Y-%m}" for night in nights}
    wanted = vectors.event_columns(use_case)
    with holding(
        settings,
        exclusive=[f"outcomes:{use_case.name}:{as_of}"],
        shared=lake_locks(use_case),
    ):
        parts = [
            plan.read(month.file, bucket, source, wanted)
            for month in _months_there(settings, source, use_case.key)
            if month.name[:7] in landed
            for bucket in range(settings.lake_buckets)
        ]
        empty = plan.schema(source).empty_table().select(wanted)
        table = pa.concat_tables([empty, *parts]).unify_dictionaries().combine_chunks()
        reader = vectors.InMemory(use_case, {source.name: table}, as_of)
        (batch,) = vectors.batches(reader, nights)
        assert batch.reported is not None  # its label is read off the event
        found = batch.take(np.flatnonzero(batch.reported))
        rows = pa.table(
            {
                "as_of": pa.array(found.as_of.astype(np.int32)).cast(pa.date32()),
                **{name: found.columns[name].cast(pa.string()) for name in use_case.row_key},
            }
        )
        folder = lake.dataset_dir(settings.lake_dir, "outcomes", use_case.name, as_of)
        lake.remove_leftovers(folder)
        with lake.replacing(folder) as target:
            part = target / "part-00000.parquet"
            pq.write_table(rows, part)
            lake.write_manifest(
                target,
                {
                    "use_case": use_case.name,
                    "as_of": as_of,
                    "rows": rows.num_rows,
                    "nights": [night.isoformat() for night in nights],
                    "sha256": lake.parts_sha256([part]),
                },
            )


def build_training_set(settings: Settings, use_case: UseCase, as_of: date) -> DatasetResult:
    """Every mature snapshot as of ``as_of``, with its label, in ``lake/training``.

    Raises:
        RefusedAsOf: when history is too short, or holds nobody of the population.
    """
    with recorded_run(settings, "training_set", as_of, use_case.name) as run:
        snapshots = tuple(mature_snapshots(use_case, as_of, _first_landing(settings, use_case)))
        result = _build_one(settings, "training", _Asked(use_case, as_of, snapshots, as_of))
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
        dataset = _dataset(settings, folder, _Asked(use_case, as_of, snapshots, known))
        with spark_session(settings, f"nightshift reproduce {as_of}", DAEMON) as spark:
            done = run_tasks(spark, _works(settings, [dataset], [folder]))
        shutil.rmtree(folder / job.RELATED, ignore_errors=True)
        _describe(dataset, folder, done)
        now = lake.read_manifest(folder) or {}
        yield folder, now, vector_parity.differences(then, now)


def build_labels(settings: Settings, use_case: UseCase, as_of: date) -> DatasetResult:
    """The vectors and the now mature labels of the single snapshot ``as_of``, in ``lake/matured``.

    Labels are taken from what landed before ``as_of + label.maturity_days``.
    """
    known = date.fromordinal(as_of.toordinal() + use_case.label.maturity_days)
    with recorded_run(settings, "labels", as_of, use_case.name) as run:
        result = _build_one(settings, "matured", _Asked(use_case, as_of, (as_of,), known))
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
                group=group,
                type=each.type,
                null=each.null,
                description=each.description,
                null_share=null_shares.get(each.name),
                importance=None if gains is None else gains.get(each.name, 0.0),
            )
            for group, each in use_case.catalogue
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
    """All rows of some entities, of each source: by the use case's own key where that reads it; of
    the others, those of the entities that these rows name."""
    streams = dict[str, tuple[Source, str]]()
    for source, key in use_case.streams:  # its own key comes first
        streams.setdefault(source.name, (source, key))
    for bucket in range(settings.lake_buckets):
        tables = {}
        for name, (source, key) in streams.items():
            if key != use_case.key:
                continue
            wanted = list(source.columns)
            files = [month.file for month in _months_there(settings, source, key)]
            parts = [plan.read(file, bucket, source, wanted) for file in files]
            tables[name] = pa.concat_tables(parts).unify_dictionaries().combine_chunks()
        if not tables[use_case.source.name].num_rows:
            continue
        own = dict(tables)
        for name, (source, key) in streams.items():
            if key != use_case.key:
                named = [_text(table, key) for table in own.values() if key in table.column_names]
                among = pc.drop_null(
                    pc.unique(pa.chunked_array([c for n in named for c in n.chunks]))
                )
                rows = _rows_among(settings, source, key, among)
                tables[name] = rows.unify_dictionaries().combine_chunks()
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
        dataset = _dataset(settings, folder, _Asked(use_case, as_of, (as_of,)))
        now, hindsight = root / "now", root / "hindsight"
        now.mkdir()
        hindsight.mkdir()
        works = _works(settings, [dataset], [now])
        works += _works(settings, [dataset], [hindsight], date.max)
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
        for source, key in use_case.streams
        if key == use_case.key
    }
    if not any(rows.num_rows for _, rows in own.values()):
        raise NightshiftError(
            f"no row with this {use_case.key} had happened and landed before {as_of}",
            "check the id, which is given as it lands, and the date",
        )
    reader = vectors.InMemory(use_case, tables)
    reader.only = entity
    found = []
    for batch in vectors.batches(reader, [as_of]):
        is_it = pc.equal(_text(batch.columns, use_case.key), entity)
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
    """The rows of each source that the entity's vectors are made of: its own, and those of the
    other entities that they touch, each row once."""
    anywhere = {
        measure.column
        for group in use_case.feature_groups
        for measure in group.measures
        if isinstance(measure, Through)
    }
    tables: dict[str, pa.Table] = {}
    taken: dict[str, list[tuple[str, pa.Array | None]]] = {}
    if isinstance(use_case.population, Candidates):  # which items are popular, all rows tell
        anywhere.add(use_case.population.key[1])
    for source, key in use_case.streams:  # its own key comes first
        if key in anywhere:
            among = None
        elif key == use_case.key:
            among = pa.array([entity])
        else:
            scored = tables[use_case.source.name]
            own = scored.filter(pc.equal(_text(scored, use_case.key), entity))
            among = pc.drop_null(pc.unique(_text(own, key)))
        rows = _rows_among(settings, source, key, among)
        for other, others in taken.get(source.name, ()):
            held = _text(rows, other)
            is_taken = pc.is_valid(held) if others is None else pc.is_in(held, value_set=others)
            rows = rows.filter(pc.invert(is_taken))
        if source.name in tables:
            rows = pa.concat_tables([tables[source.name], rows])
        tables[source.name] = rows.unify_dictionaries().combine_chunks()
        taken.setdefault(source.name, []).append((key, among))
    return tables


def _rows_among(settings: Settings, source: Source, key: str, among: pa.Array | None) -> pa.Table:
    """All rows of some entities; None for those of every one."""
    buckets = set(range(settings.lake_buckets))
    if among is not None:
        buckets = {plan.bucket_of(name, settings.lake_buckets) for name in among.to_pylist()}
    parts = [
        plan.read(month.file, bucket, source, list(source.columns))
        for month in _months_there(settings, source, key)
        for bucket in sorted(buckets)
    ]
    table = pa.concat_tables([plan.schema(source).empty_table(), *parts])
    return table if among is None else table.filter(pc.is_in(_text(table, key), value_set=among))


def _text(table: pa.Table | Mapping[str, pa.Array], column: str) -> pa.Array | pa.ChunkedArray:
    return table[column].cast(pa.string())


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
        if snapshot is not None and use_case.mode == "candidate" and new:
            # a training set leaves out the lists that have nothing to teach
            owners = pa.concat_tables(new)[use_case.key].unique().combine_chunks()
            old = [part.filter(pc.is_in(part[use_case.key], value_set=owners)) for part in old]
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


@dataclass(frozen=True)
class _Asked:
    """A dataset that is asked for.

    Attributes:
        known: when its labels are; None for no labels.
    """

    use_case: UseCase
    as_of: date
    snapshots: tuple[date, ...]
    known: date | None = None


def _build_one(settings: Settings, kind: str, asked: _Asked) -> DatasetResult:
    (result,) = _build(settings, kind, [asked])
    assert result is not None  # what is refused has been raised
    return result


def _build(
    settings: Settings, kind: str, asked: Sequence[_Asked], refused: list[RefusedAsOf] | None = None
) -> list[DatasetResult | None]:
    """Build what is missing: one writer a dataset, and no extract changes what a job reads.

    Where a month's file turns out to be damaged, it is extracted anew, and the build goes on.

    Args:
        refused: is given each refusal of a use case, whose result is None; without it the first
            is raised, and nothing built.
    """
    use_cases = list({each.use_case.name: each.use_case for each in asked}.values())

    def build() -> list[DatasetResult | None]:
        with holding(
            settings,
            exclusive={f"{kind}:{each.use_case.name}:{each.as_of}" for each in asked},
            shared=lake_locks(*use_cases),
        ):
            return _build_locked(settings, kind, asked, refused)

    try:
        return build()
    except plan.DamagedMonth:
        if not mended(settings, use_cases):
            raise
    return build()


def _build_locked(
    settings: Settings, kind: str, asked: Sequence[_Asked], refused: list[RefusedAsOf] | None
) -> list[DatasetResult | None]:
    extracted: dict[str, _Extracted] = {}
    results: dict[Path, DatasetResult | None] = {}
    missing: dict[str, list[_Dataset]] = {}
    for each in asked:
        name = each.use_case.name
        if name not in extracted:
            extracted[name] = _extracted(settings, each.use_case)
        folder = lake.dataset_dir(settings.lake_dir, kind, name, each.as_of)
        dataset = _dataset(settings, folder, each, extracted[name])
        manifest = lake.read_manifest(folder)
        results[folder] = None
        if manifest is not None and manifest["key"] == dataset.key:
            log.info("%s of %s for %s: unchanged, reused", kind, name, each.as_of)
            lake.remove_leftovers(folder)
            results[folder] = DatasetResult(folder, manifest["rows"], each.snapshots, True)
        else:
            missing.setdefault(name, []).append(dataset)
    if missing:
        title = f"nightshift {kind} {max(each.as_of for each in asked)}"
        with ExitStack() as stack:
            targets = {
                dataset.folder: stack.enter_context(lake.replacing(dataset.folder))
                for of_use_case in missing.values()
                for dataset in of_use_case
            }
            works = [
                work
                for of_use_case in missing.values()
                for work in _works(settings, of_use_case, [targets[d.folder] for d in of_use_case])
            ]
            with spark_session(settings, title, DAEMON) as spark:
                done = run_tasks(spark, works)
                for of_use_case in missing.values():
                    for dataset in of_use_case:
                        _factorise(spark, settings, dataset, targets[dataset.folder])
            for name, of_use_case in missing.items():
                of_it = [each for each in done if each.use_case == name]
                for dataset in of_use_case:
                    target = targets[dataset.folder]
                    shutil.rmtree(target / job.RELATED, ignore_errors=True)
                    try:
                        rows = _describe(dataset, target, of_it, len(of_use_case))
                    except RefusedAsOf as refusal:
                        if refused is None:
                            raise
                        log.error("%s", refusal)
                        refused.append(refusal)
                        continue
                    results[dataset.folder] = DatasetResult(
                        dataset.folder, rows, dataset.snapshots, False
                    )
        for folder, result in results.items():
            if result is None:
                shutil.rmtree(folder)
        _forget(_state_dir(settings), done)
    return list(results.values())


@dataclass(frozen=True)
class _Extracted:
    """What the lake holds of what a use case reads.

    Attributes:
        months: (source, key) → its months, ascending.
        landed_days: source → landed day → a short name of the build that wrote its rows.
    """

    months: dict[tuple[str, str], tuple[job.Month, ...]]
    landed_days: dict[str, dict[str, str]]


def _extracted(settings: Settings, use_case: UseCase) -> _Extracted:
    return _Extracted(
        {
            (source.name, key): _months_there(settings, source, key)
            for source, key in use_case.streams
        },
        _landed_days_there(settings, use_case, date.max),
    )


@dataclass(frozen=True)
class _Dataset:
    """A dataset that is to be built."""

    folder: Path
    use_case: UseCase
    as_of: date
    months: dict[tuple[str, str], tuple[job.Month, ...]]
    snapshots: tuple[date, ...]
    known: date | None
    key: dict[str, Any]
    landed_days: dict[str, dict[str, str]]


def _dataset(
    settings: Settings, folder: Path, asked: _Asked, extracted: _Extracted | None = None
) -> _Dataset:
    use_case, snapshots, known = asked.use_case, asked.snapshots, asked.known
    there = extracted or _extracted(settings, use_case)
    key = _dataset_key(use_case, there.months, snapshots, known)
    key["buckets"] = settings.lake_buckets
    before = (known or max(snapshots)).isoformat()
    landed = {
        source: {day: build for day, build in days.items() if day < before}
        for source, days in there.landed_days.items()
    }
    return _Dataset(folder, use_case, asked.as_of, there.months, snapshots, known, key, landed)


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
    settings: Settings,
    datasets: Sequence[_Dataset],
    targets: Sequence[Path],
    hindsight: date | None = None,
) -> list[job.Work]:
    """The tasks of a use case's dataset, or of its datasets of many nights."""
    first = datasets[0]
    return [
        job.Work(
            use_case=first.use_case,
            key=key,
            months=first.months,
            snapshots=tuple(day for dataset in datasets for day in dataset.snapshots),
            label_known_as_of=first.known,
            state=_state_dir(settings),
            target=targets[0],
            code=first.key["code_sha256"],
            bucket=bucket,
            buckets=settings.lake_buckets,
            hindsight=hindsight,
            nights=tuple(targets) if len(targets) > 1 else (),
        )
        for key in dict.fromkeys(key for _, key in first.use_case.streams)
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


def rounds(works: Sequence[job.Work]) -> list[list[job.Work]]:
    """What can be done at once: first what others look up, then the vectors.

    Neighbours are of one bucket, not of one use case: a task is given some neighbours, and the
    heaviest use case would be left to one core.
    """
    ordered = sorted(works, key=lambda work: work.bucket)
    own, others = (
        [work for work in ordered if (work.key == work.use_case.key) is is_own]
        for is_own in (True, False)
    )
    return [some for some in (others, own) if some]


def run_tasks(spark: SparkSession, works: Sequence[job.Work]) -> list[job.Done]:
    """What the tasks did: first those of what others look up, then those of the vectors.

    Raises:
        NightshiftError: what the first task that could not do its work said.
    """
    done: list[job.Done] = []
    for some in rounds(works):
        tasks = len(some)
        if str(spark.sparkContext.master).startswith("local"):
            # A task of several buckets costs less than one each, and two a core even out; but of
            # what is looked up, what is bought together costs most, and each task, a process of
            # its own, reads all orders for it. Of a cluster it is not known yet how many cores will
            # come.
            a_core = 2 if some[0].key == some[0].use_case.key else 1
            tasks = min(tasks, a_core * spark.sparkContext.defaultParallelism)
        for found in spark.sparkContext.parallelize(some, tasks).map(job.run).collect():
            if isinstance(found, job.Refused):
                kind = plan.DamagedMonth if found.is_damage else NightshiftError
                raise kind(found.what, found.remedy)
            done.append(found)
    return done


def _factorise(spark: SparkSession, settings: Settings, dataset: _Dataset, target: Path) -> None:
    """The baseline of a labelled dataset's newest snapshots, where one is declared."""
    wanted, use_case = dataset.use_case.factorisation, dataset.use_case
    if wanted is None or dataset.known is None:
        return
    from nightshift.features.factors_run import write_factors  # Spark ML, which no night needs

    works = [work for work in _works(settings, [dataset], [target]) if work.key == use_case.key]
    write_factors(spark, works, wanted, dataset.snapshots[-use_case.snapshots.test :], target)


def _describe(dataset: _Dataset, target: Path, done: Sequence[job.Done], nights: int = 1) -> int:
    """Write the manifest; rows of the dataset.

    Args:
        nights: of how many datasets the time of the tasks is.
    """
    use_case = dataset.use_case
    parts = [part for each in done for part in each.parts if part.file.parent == target]
    rows = sum(part.rows for part in parts)
    if rows == 0:
        raise _nobody(use_case, dataset.snapshots)
    written = sorted(parts, key=lambda part: part.file.name)
    groups = {name for each in done for name in each.seconds}
    read = sorted({month for each in done for month in each.months_read})
    lake.write_manifest(
        target,
        {
            "use_case": use_case.name,
            "as_of": dataset.as_of,
            "key": dataset.key,
            "code_commit": code.commit(),
            "spec_sha256": dataset.key["spec_sha256"],
            "source_sha256": dataset.key["source_sha256"],
            "snapshots": dataset.key["snapshots"],
            "rows": rows,
            "columns": list(pq.read_schema(written[0].file).names),
            "sha256": lake.digest([part.sha256 for part in written]),
            "parts": {
                part.file.name: {"rows": part.rows, "sha256": part.sha256} for part in written
            },
            "months": _signatures(dataset.months),
            "months_read": read,
            "landed_days": dataset.landed_days,
            "null_share": {
                name: sum(part.nulls[name] for part in written) / rows
                for name in use_case.feature_names
            },
            "cpu_seconds": {
                name: round(sum(each.seconds.get(name, 0.0) for each in done) / nights, 3)
                for name in sorted(groups)
            },
        },
    )
    log.info(
        "%s for %s: %d vectors of %d features at %d snapshots; rows of %d of %d months read",
        use_case.name, dataset.as_of, rows, len(use_case.feature_names), len(dataset.snapshots),
        len(read), len(_signatures(dataset.months)),
    )  # fmt: skip
    return rows


def _nobody(use_case: UseCase, snapshots: Sequence[date]) -> RefusedAsOf:
    population, days = use_case.population, ", ".join(map(str, snapshots))
    if not isinstance(population, EveryEvent):
        what = f"nobody had an event in the {population.active_days} days before {days}"
    else:
        what = f"no event happened on the day before {days}"
    return RefusedAsOf(
        f"{use_case.name}: {what} in what had landed by then",
        "choose a later as_of, or land the missing days and run `nightshift ingest`",
    )


def _forget(folder: Path, done: Sequence[job.Done]) -> None:
    """Remove kept tiles that this job had no use for, though they are of the same declaration,
    and those of a declaration or code that nothing has used for some days."""
    used = {folder / name for each in done for name in each.state}
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
