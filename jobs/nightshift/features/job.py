"""What one Spark task does: a bucket of entities, from its rows to its feature vectors.

Where a use case asks for other entities (a payment's terminal, the products a customer bought), a
first round of tasks, by buckets of those, writes what the tasks of the vectors then look up.

A task reads its bucket from the file of every landed month itself, so that no row crosses the JVM.
Rows become tiles, which are kept as *state*: one file for each feature group, bucket and stretch of
months, named by a digest of all that it is made of. A night makes tiles of the newest month only.
"""

import hashlib
import socket
import time
import uuid
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, timedelta
from functools import cache, cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from nightshift.errors import NightshiftError
from nightshift.features import candidates, extract, kernel, rows, state, together, vectors
from nightshift.features.vectors import LABEL, MISSED, SNAPSHOT
from nightshift.features.windows import Floats, Ints
from nightshift.spec import (
    BoughtTogether,
    Candidates,
    EveryEvent,
    FeatureGroup,
    Source,
    Through,
    UseCase,
    Window,
)

RECENT_MONTHS = 2
"""Newest landed months whose tiles are kept apart; all older ones share a file."""
ENTITIES_AT_ONCE = 4_000
"""Whose candidates are in memory at once: some hundred thousand rows."""


@dataclass(frozen=True)
class Month:
    """A landed month's file of a source by a key, and the digest of its rows."""

    name: str
    file: Path
    signature: str


@dataclass(frozen=True)
class Work:
    """What a task is asked for: a bucket by one key.

    By the use case's own key it makes vectors. By another, what the tasks of the vectors will look
    up: the features of other entities, of the use case's ``related_groups``.

    Attributes:
        use_case: the declaration.
        key: by which the bucket is.
        months: (source, key) → of each stream of the use case, ascending.
        snapshots: the ``as_of`` dates, ascending.
        label_known_as_of: adds the column ``label`` when given.
        state: folder of the kept tiles, of all streams.
        target: folder that the part is written to.
        nights: where given, a folder for each snapshot, to which its part is written in place of
            ``target``: what the night alone would write.
        code: digest of the code that makes tiles.
        bucket: which of ``buckets``.
        buckets: that the lake's files have.
        hindsight: as of :class:`vectors.Reader`.
    """

    use_case: UseCase
    key: str
    months: Mapping[tuple[str, str], tuple[Month, ...]]
    snapshots: tuple[date, ...]
    label_known_as_of: date | None
    state: Path
    target: Path
    code: str
    bucket: int
    buckets: int
    hindsight: date | None = None
    nights: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Part:
    """A file of vectors that a task wrote.

    Attributes:
        file: where it is.
        rows: vectors in it.
        sha256: of the file's bytes.
        nulls: feature → vectors in which it is null.
    """

    file: Path
    rows: int
    sha256: str
    nulls: Mapping[str, int]


@dataclass(frozen=True)
class Done:
    """What a task did.

    Attributes:
        use_case: its name.
        parts: the written files; none of a folder in which the bucket has nobody.
        seconds: CPU by feature group, and under "rows" of reading rows.
        months_read: ``<source>/<key>/<month>`` whose rows were read; the tiles of others were kept.
        state: the kept files that were used, relative to the state's folder.
    """

    use_case: str
    parts: tuple[Part, ...]
    seconds: Mapping[str, float]
    months_read: tuple[str, ...]
    state: tuple[str, ...]


@dataclass(frozen=True)
class Refused:
    """Why a task did nothing, as a :class:`NightshiftError` says it.

    Attributes:
        is_damage: whether a month's file is at fault.
    """

    what: str
    remedy: str
    is_damage: bool = False


@cache
def code_sha256() -> str:
    """A digest of the code that makes features, as it is on this machine."""
    found = hashlib.sha256()
    for file in sorted(Path(__file__).parent.glob("*.py")):
        found.update(f"{file.name}\n".encode() + file.read_bytes())
    return found.hexdigest()


def run(work: Work) -> Done | Refused:
    """Compute one bucket, and write it as one Parquet file, or one a night (of other entities: one
    a group)."""
    if work.code != code_sha256():
        return Refused(
            f"{socket.gethostname()} would compute features by other code than was asked for",
            "install this version of nightshift on all Spark workers; where it was changed while"
            " a job ran, run again",
        )
    try:
        if work.key == work.use_case.key:
            return _VectorTask(work).done()
        return _RelatedTask(work).done()
    except NightshiftError as error:
        return Refused(error.what, error.remedy, isinstance(error, extract.DamagedMonth))
    except FileNotFoundError as error:
        return Refused(
            f"{socket.gethostname()} does not find a file of the lake: {error}",
            "run the extract stage; on a Spark cluster, the lake must be under the same path on"
            " every worker",
        )
    except OSError as error:
        return Refused(
            f"{work.use_case.name}, bucket {work.bucket}: {error}",
            "make room, or remove the damaged file; then run again",
        )


def bought(work: Work) -> pa.Table:
    """How often each of a bucket's entities bought which item in the active days before the first
    snapshot: for a factorisation."""
    wanted = work.use_case.population
    assert isinstance(wanted, Candidates)
    found = _VectorTask(work).everyone(wanted.pairs, work.snapshots[0])
    counts = found.numbers(f"pair_event_count_{Window(days=wanted.active_days).suffix}")
    some = pa.array(np.flatnonzero(counts > 0))
    entity, item = rows.key_parts(found.names.take(some), 2)
    numbers = pa.array(counts[some.to_numpy()])
    return pa.table([entity, item, numbers], names=[*wanted.key, "bought"])


class _Task(vectors.Reader):
    """A bucket by one key: its rows, and the tiles that were kept of them."""

    def __init__(self, work: Work) -> None:
        super().__init__(work.use_case, work.label_known_as_of, work.hindsight)
        self.work = work
        self.seconds: dict[str, float] = {}
        self.months_read: set[str] = set()
        self.kept: list[str] = []
        self._parts: dict[str, state.Part] = {}
        self._codes = state.CommonCodes()
        self._read: dict[Any, tuple[kernel.Events, pa.StringArray, dict[str, pa.StringArray]]] = {}

    @property
    @abstractmethod
    def groups(self) -> tuple[FeatureGroup, ...]:
        """The groups that are made of this bucket's rows."""

    def tell(self, parts: Sequence[Part]) -> Done:
        """What was done."""
        return Done(
            use_case=self.use_case.name,
            parts=tuple(parts),
            seconds=self.seconds,
            months_read=tuple(sorted(self.months_read)),
            state=tuple(self.kept),
        )

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Adds up the CPU seconds of a block."""
        started = time.process_time()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.process_time() - started

    def answered_by_code(self, group: FeatureGroup, *asked: Any) -> dict[str, pa.Array]:
        """See :meth:`vectors.Reader.answered_by_code`."""
        self.part(group)  # has its own time
        with self.timed(group.name):
            return super().answered_by_code(group, *asked)

    def part(self, group: FeatureGroup) -> state.Part:
        """The tiles of a group's rows, of all landed months."""
        if group.name not in self._parts:
            months = self.work.months[group.source.name, self.work.key]
            older, recent = months[:-RECENT_MONTHS], months[-RECENT_MONTHS:]
            parts = [self._older(group, older)] if older else []
            parts += [self._tiled(group, (month,)) for month in recent]
            with self.timed(group.name):
                self._parts[group.name] = state.joined(group, parts, self._codes)
        return self._parts[group.name]

    def _older(self, group: FeatureGroup, months: tuple[Month, ...]) -> state.Part:
        """The tiles of all older months; where a month has become old, made of what was kept."""
        file = self._file(group, months)
        if not file.exists() and len(months) > 1:
            before, latest = self._file(group, months[:-1]), self._file(group, months[-1:])
            if before.exists() and latest.exists():
                found = [state.load(before), state.load(latest)]
                if all(found):
                    with self.timed(group.name):
                        part = state.joined(group, [part for part in found if part], self._codes)
                        self._keep(file, part)
                    return part
        return self._tiled(group, months)

    def _tiled(self, group: FeatureGroup, months: tuple[Month, ...]) -> state.Part:
        file = self._file(group, months)
        with self.timed(group.name):
            part = state.load(file)
        if part is None:
            events, entities, texts = self._events(group, months)
            with self.timed(group.name):
                part = state.Part(
                    kernel.tiles([group], events, vectors.resolution(self.use_case)),
                    entities,
                    {name: texts[name] for name in group.measured if name in texts},
                )
                self._keep(file, part)
        else:
            self.kept.append(str(file.relative_to(self.work.state)))
        return part

    def _keep(self, file: Path, part: state.Part) -> None:
        state.save(file, part, self.work.target)
        self.kept.append(str(file.relative_to(self.work.state)))

    def _file(self, group: FeatureGroup, months: Sequence[Month]) -> Path:
        rows = _digest([(month.name, month.signature) for month in months])
        made = [group.model_dump_json(), vectors.resolution(self.use_case), self.work.code]
        folder = self.work.state / group.source.name / self.work.key
        return folder / f"{group.name}-{_digest(made)}" / f"{self.work.bucket:05}-{rows}.npz"

    def _events(
        self, group: FeatureGroup, months: tuple[Month, ...]
    ) -> tuple[kernel.Events, pa.StringArray, dict[str, pa.StringArray]]:
        alike = [g for g in self.groups if (g.source.name, g.key) == (group.source.name, group.key)]
        asked = (group.source.name, group.key, months)
        if asked not in self._read:
            names = rows.columns_read(group.source, alike)
            table = self._rows(group.source, months, names)
            with self.timed("rows"):
                self._read[asked] = rows.kernel_events(table, group.source, group.key, alike)
        return self._read[asked]

    def _rows(self, source: Source, months: Sequence[Month], names: Sequence[str]) -> pa.Table:
        """Columns of this bucket's rows of some months."""
        with self.timed("rows"):
            tables = [extract.read(m.file, self.work.bucket, source, names) for m in months]
            self.months_read.update(f"{source.name}/{self.work.key}/{m.name}" for m in months)
            return pa.concat_tables(tables).unify_dictionaries().combine_chunks()

    def near(self, wanted: Candidates, generator: BoughtTogether, as_of: date) -> pa.Table:
        """See :meth:`vectors.Reader.near`; looked up."""
        return self._all(_NEAR, as_of)

    def _all(self, name: str, as_of: date) -> pa.Table:
        """What the tasks of other entities found at a snapshot, of all buckets."""
        number = self.work.snapshots.index(as_of)
        found = []
        with self.timed("candidates"):
            for bucket in range(self.work.buckets):
                with pa.memory_map(str(_related_file(self.work, name, bucket))) as file:
                    found.append(pa.ipc.open_file(file).get_batch(number))
            return pa.Table.from_batches(found).combine_chunks()

    def event_rows(self, snapshots: Sequence[date]) -> pa.Table:
        """The rows of the months in which the days before the snapshots lie."""
        landed = {f"{as_of - timedelta(days=1):%Y-%m}" for as_of in snapshots}
        source = self.use_case.source
        months = self.work.months[source.name, self.work.key]
        # of no month the schema is still needed
        wanted = [month for month in months if month.name[:7] in landed] or months[:1]
        return self._rows(source, wanted, vectors.event_columns(self.use_case))


class _VectorTask(_Task):
    """Makes the vectors of a bucket of the use case's entities."""

    at_once = ENTITIES_AT_ONCE

    @property
    def groups(self) -> tuple[FeatureGroup, ...]:
        use_case = self.use_case
        found = [group for group in use_case.feature_groups if use_case.key in group.key_columns]
        if not isinstance(use_case.population, EveryEvent):
            found += use_case.population.groups
        if use_case.outcome is not None and self.label_known_as_of is not None:
            found.append(use_case.outcome)
        return tuple(found)

    def done(self) -> Done:
        """Write the parts, and tell of them."""
        work = self.work
        if not work.nights:
            wanted = [(work.target, work.snapshots)]
        else:
            wanted = [
                (folder, (as_of,))
                for folder, as_of in zip(work.nights, work.snapshots, strict=True)
            ]
        written = [self._written(folder, snapshots) for folder, snapshots in wanted]
        return self.tell([part for part in written if part is not None])

    def _written(self, folder: Path, snapshots: tuple[date, ...]) -> Part | None:
        """The vectors at some snapshots as a file of their own; None where there is nobody."""
        work, use_case = self.work, self.use_case
        schema = output_schema(
            use_case,
            with_snapshot=work.label_known_as_of is not None or len(snapshots) > 1,
            with_label=work.label_known_as_of is not None,
        )
        nulls = dict.fromkeys(use_case.feature_names, 0)
        count = 0
        file = folder / f"part-{work.bucket:05}.parquet"
        with _appearing(file) as temporary:
            with pq.ParquetWriter(
                temporary, schema, compression="lz4", use_dictionary=[use_case.key],
                write_page_checksum=True,
            ) as writer:  # fmt: skip
                for batch, columns in vectors.vectors(self, snapshots):
                    snapshot = pa.array(batch.as_of.astype(np.int32)).cast(pa.date32())
                    found = columns | dict(batch.columns) | {SNAPSHOT: snapshot}
                    table = pa.table({f.name: found[f.name].cast(f.type) for f in schema}, schema)
                    for name in nulls:
                        nulls[name] += table[name].null_count
                    count += table.num_rows
                    writer.write_table(table)
            with temporary.open("rb") as written:
                sha256 = hashlib.file_digest(written, "sha256").hexdigest()
        if count == 0:
            file.unlink()
            return None
        return Part(file, count, sha256, nulls)

    def features(self, group: FeatureGroup, batch: vectors.Batch) -> dict[str, pa.Array]:
        """See :meth:`vectors.Reader.features`; those of other entities are looked up."""
        if self.use_case.key in group.key_columns:
            return super().features(group, batch)
        if self.use_case.mode == "event":
            ids = batch.columns[self.use_case.source.row_id]
            return self._looked_up(group, self.work.bucket, ids, group.feature_names)
        names = rows.entity_names([batch.columns[name] for name in group.key_columns])
        return self._looked_up(group, self._snapshot(batch), names, group.feature_names)

    def values_through(
        self, measure: Through, batch: vectors.Batch, names: pa.StringArray
    ) -> Floats:
        """See :meth:`vectors.Reader.values_through`; looked up."""
        if not len(batch):
            return np.full(len(names), np.nan)
        group, feature = measure.group, measure.feature
        found = self._looked_up(group, self._snapshot(batch), names, [feature])[feature]
        return np.asarray(pc.fill_null(found, np.nan))

    def everyone(self, group: FeatureGroup, as_of: date) -> candidates.Answers:
        """See :meth:`vectors.Reader.everyone`; what is not of these entities is looked up."""
        if self.use_case.key in group.key_columns:
            return super().everyone(group, as_of)
        table = self._all(group.name, as_of)
        columns = {n: table[n].combine_chunks() for n in table.column_names if n != _ID}
        return candidates.Answers(table[_ID].combine_chunks(), columns)

    def _snapshot(self, batch: vectors.Batch) -> int:
        """Which snapshot a batch is of."""
        if not len(batch):
            return 0
        return self.work.snapshots.index(kernel.EPOCH + timedelta(days=int(batch.as_of[0])))

    def _looked_up(
        self, group: FeatureGroup, number: int, ids: pa.Array, names: Sequence[str]
    ) -> dict[str, pa.Array]:
        """What the tasks of other entities found; of those whom they do not know, no events."""
        ids = ids.cast(pa.string())
        with self.timed(group.name):
            found = []
            for bucket in range(self.work.buckets):
                with pa.memory_map(str(_related_file(self.work, group.name, bucket))) as file:
                    batch = pa.ipc.open_file(file).get_batch(number).select([_ID, *names])
                if self.use_case.mode != "event":  # which has asked for these and no others
                    batch = batch.filter(pc.is_in(batch[_ID], value_set=ids))
                found.append(batch)
            table = pa.Table.from_batches(found).combine_chunks()
            at = pc.index_in(ids, value_set=table[_ID].combine_chunks())
            columns = {name: table[name].combine_chunks().take(at) for name in names}
            if at.null_count:
                unknown, empty = at.is_null(), vectors.without_events(group, len(ids))
                columns = {n: pc.if_else(unknown, empty[n], v) for n, v in columns.items()}
            return columns


class _RelatedTask(_Task):
    """Makes the features of a bucket of other entities: a file a group.

    Of snapshots a file has a batch for each, of all entities, by name. Of events it has one for
    each bucket of the use case's own key, by event.
    """

    @property
    def groups(self) -> tuple[FeatureGroup, ...]:
        related = self.use_case.related_groups
        return tuple(group for group in related if group.key_columns[0] == self.work.key)

    def done(self) -> Done:
        """Write the files, and tell of them."""
        for group in self.groups:
            file = _related_file(self.work, group.name, self.work.bucket)
            file.parent.mkdir(exist_ok=True)
            types = _feature_types([group])
            schema = pa.schema([pa.field(_ID, pa.string()), *types])
            asked = self._events_asked if self.use_case.mode == "event" else self._snapshots_asked
            with _appearing(file) as temporary, pa.ipc.new_file(temporary, schema) as writer:
                for ids, columns in asked(group):
                    arrays = [ids, *(columns[field.name] for field in types)]
                    writer.write_batch(pa.record_batch(arrays, schema))
        population = self.use_case.population
        if isinstance(population, Candidates) and population.key[1] == self.work.key:
            self._write_near(population)
        return self.tell([])

    def _write_near(self, wanted: Candidates) -> None:
        """What this bucket's items are bought together with, where asked: a batch a snapshot."""
        generator = wanted.together
        if generator is None:
            return
        file = _related_file(self.work, _NEAR, self.work.bucket)
        file.parent.mkdir(exist_ok=True)
        with self.timed("candidates"):
            months = self.work.months[wanted.source.name, self.work.key]
            oldest = kernel.EPOCH + timedelta(
                days=together.first_landing(generator, self.work.snapshots[0])
            )
            wanted_months = tuple(m for m in months if m.name[:7] >= f"{oldest:%Y-%m}")
            declared = wanted.model_dump_json()
            read = (wanted_months or months[:1], declared, self.work.buckets)
            own = _owners(*read) == self.work.bucket
            with (
                _appearing(file) as temporary,
                pa.ipc.new_file(temporary, together.SCHEMA) as writer,
            ):
                for as_of in self.work.snapshots:
                    orders = _orders(*read, as_of, self.known_day(as_of))
                    found = together.neighbours(orders, generator, own).combine_chunks()
                    batches = found.to_batches()
                    empty = pa.record_batch([pa.array([], f.type) for f in found.schema],
                                            found.schema)  # fmt: skip
                    writer.write_batch(batches[0] if batches else empty)

    def _snapshots_asked(
        self, group: FeatureGroup
    ) -> Iterator[tuple[pa.Array, dict[str, pa.Array]]]:
        entities = self.part(group).entities
        for as_of in self.work.snapshots:
            day = np.full(len(entities), (as_of - kernel.EPOCH).days)
            yield entities, self.answered(group, entities, day * kernel.DAY_US, day)

    def _events_asked(self, group: FeatureGroup) -> Iterator[tuple[pa.Array, dict[str, pa.Array]]]:
        batch = self._batch
        found = self.features(group, batch)
        ids = batch.columns[self.use_case.source.row_id].cast(pa.string())
        owners = batch.columns[self.use_case.key].dictionary_encode()
        buckets = np.array(
            [extract.bucket_of(str(name), self.work.buckets) for name in owners.dictionary],
            np.int64,
        )[owners.indices.to_numpy()]
        for bucket in range(self.work.buckets):
            at = pa.array(np.flatnonzero(buckets == bucket))
            yield ids.take(at), {name: values.take(at) for name, values in found.items()}

    @cached_property
    def _batch(self) -> vectors.Batch:
        (batch,) = vectors.batches(self, self.work.snapshots)
        return batch


@lru_cache(maxsize=1)
def _lines(months: tuple[Month, ...], declared: str, buckets: int) -> together.Lines:
    """All lines of orders in some months: read once by a process, for the buckets of its tasks.

    Args:
        declared: the candidates, as JSON.
    """
    wanted = Candidates.model_validate_json(declared)
    assert wanted.together is not None
    names = together.columns_read(wanted, wanted.together)
    tables = (
        pa.concat_tables(
            extract.read(month.file, bucket, wanted.source, names) for bucket in range(buckets)
        )
        for month in months
    )
    return together.lines(tables, wanted, wanted.together)


@lru_cache(maxsize=1)
def _owners(months: tuple[Month, ...], declared: str, buckets: int) -> Ints:
    """The bucket of each item of the lines, found once by a process."""
    names = _lines(months, declared, buckets).items
    return np.array([extract.bucket_of(str(name), buckets) for name in names], np.int64)


@lru_cache(maxsize=16)
def _orders(
    months: tuple[Month, ...], declared: str, buckets: int, as_of: date, known_day: int
) -> together.Orders:
    """The orders of a snapshot, made once by a process."""
    generator = Candidates.model_validate_json(declared).together
    assert generator is not None
    return together.orders(_lines(months, declared, buckets), generator, as_of, known_day)


_ID = "id"
_NEAR = "candidate_near"
RELATED = "related"
"""Folder, in that of the vectors, of what is looked up while they are made."""


def _related_file(work: Work, name: str, bucket: int) -> Path:
    return work.target / RELATED / f"{name}-{bucket:05}.arrow"


@contextmanager
def _appearing(file: Path) -> Iterator[Path]:
    """A name to write to; the file appears whole when the block ends well.

    Of a task that Spark runs twice, one file is kept.
    """
    temporary = file.with_name(f".{file.name}.{uuid.uuid4().hex}")
    try:
        yield temporary
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


def _digest(value: Any) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()[:20]


def output_schema(use_case: UseCase, with_snapshot: bool, with_label: bool) -> pa.Schema:
    """What names a row; the snapshot and the label where asked for; then the features, in order."""
    fields = [pa.field(name, pa.string(), nullable=False) for name in use_case.vector_key]
    if with_snapshot:
        fields.append(pa.field(SNAPSHOT, pa.date32(), nullable=False))
    if with_label:
        kind = pa.float64() if use_case.label.kind == "sum" else pa.int32()
        fields.append(pa.field(LABEL, kind, nullable=False))
        if use_case.mode == "candidate":
            fields.append(pa.field(MISSED, pa.int32(), nullable=False))
    population = use_case.population
    if isinstance(population, Candidates):
        fields += [pa.field(name, pa.float64()) for name in population.feature_names]
    own = [pa.field(measure.name, pa.float64()) for measure in use_case.own_features]
    ratios = [pa.field(ratio.name, pa.float64()) for ratio in use_case.ratios]
    return pa.schema([*fields, *own, *_feature_types(use_case.feature_groups), *ratios])


def _feature_types(groups: Sequence[FeatureGroup]) -> list[pa.Field]:
    is_text = {f.name for group in groups for f in group.features if f.is_text}
    return [
        pa.field(name, pa.string() if name in is_text else pa.float64())
        for group in groups
        for name in group.feature_names
    ]
