"""What one Spark task does: a bucket of entities, from its rows to its feature vectors.

A task reads its bucket from the file of every landed month itself, so that no row crosses the JVM.
Rows become tiles, which are kept as *state*: one file for each feature group, bucket and stretch of
months, named by a digest of all that it is made of. A night makes tiles of the newest month only.
"""

import hashlib
import re
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from nightshift.errors import NightshiftError
from nightshift.features import extract, kernel, state
from nightshift.spec import ColumnType, FeatureGroup, Source, UseCase

SNAPSHOT = "snapshot"
LABEL = "label"
RECENT_MONTHS = 2
"""Newest landed months whose tiles are kept apart; all older ones share a file."""


@dataclass(frozen=True)
class Month:
    """A landed month's file of a source by a key, and the digest of its rows."""

    name: str
    file: Path
    signature: str


@dataclass(frozen=True)
class Work:
    """What a task is asked for.

    Attributes:
        use_case: the declaration.
        months: of the use case's source by its key, ascending.
        snapshots: the ``as_of`` dates.
        label_known_as_of: adds the column ``label`` when given.
        state: folder of the kept tiles.
        target: folder that the part is written to.
        code: digest of the code that makes tiles.
        bucket: which of ``extract.BUCKETS``.
    """

    use_case: UseCase
    months: tuple[Month, ...]
    snapshots: tuple[date, ...]
    label_known_as_of: date | None
    state: Path
    target: Path
    code: str
    bucket: int


@dataclass(frozen=True)
class Done:
    """What a task did.

    Attributes:
        use_case: its name.
        part: the written file's name; "" where the bucket has nobody.
        rows: vectors in it.
        sha256: of the file's bytes.
        nulls: feature → vectors in which it is null.
        seconds: CPU by feature group, and under "rows" of reading rows.
        months_read: whose rows were read; the tiles of all others were kept.
        state: the kept files that were used, relative to the state's folder.
    """

    use_case: str
    part: str
    rows: int
    sha256: str
    nulls: Mapping[str, int]
    seconds: Mapping[str, float]
    months_read: tuple[str, ...]
    state: tuple[str, ...]


@dataclass(frozen=True)
class Refused:
    """Why a task did nothing, as a :class:`NightshiftError` says it."""

    what: str
    remedy: str


def run(work: Work) -> Done | Refused:
    """Compute the vectors of one bucket, and write them as one Parquet file."""
    try:
        return _Bucket(work).done()
    except NightshiftError as error:
        return Refused(error.what, error.remedy)
    except OSError as error:
        return Refused(
            f"{work.use_case.name}, bucket {work.bucket}: {error}",
            "make room, or remove the damaged file; then run again",
        )


@dataclass
class _Bucket:
    work: Work
    seconds: dict[str, float] = field(default_factory=dict)
    months_read: set[str] = field(default_factory=set)
    kept: list[str] = field(default_factory=list)
    _read: dict[tuple[Month, ...], tuple[kernel.Events, pa.StringArray, dict[str, Any]]] = field(
        default_factory=dict
    )

    def done(self) -> Done:
        """Write the part, and tell of it."""
        work = self.work
        parts = {group.name: self._part(group) for group in self._groups}
        schema = output_schema(
            work.use_case,
            with_snapshot=work.label_known_as_of is not None or len(work.snapshots) > 1,
            with_label=work.label_known_as_of is not None,
        )
        nulls = dict.fromkeys(work.use_case.feature_names, 0)
        rows = 0
        file = work.target / f"part-{work.bucket:05}.parquet"
        # of a task that Spark runs twice, one file is kept whole
        temporary = file.with_name(f".{file.name}.{uuid.uuid4().hex}")
        with pq.ParquetWriter(
            temporary, schema, compression="lz4", use_dictionary=[work.use_case.key],
            write_page_checksum=True,
        ) as writer:  # fmt: skip
            for as_of, columns in self._vectors(parts):
                table = self._table(schema, as_of, columns, parts)
                for name in nulls:
                    nulls[name] += table[name].null_count
                rows += table.num_rows
                writer.write_table(table)
        if rows == 0:
            temporary.unlink()
            file = Path()
            sha256 = ""
        else:
            with temporary.open("rb") as written:
                sha256 = hashlib.file_digest(written, "sha256").hexdigest()
            temporary.replace(file)
        return Done(
            use_case=work.use_case.name,
            part=file.name,
            rows=rows,
            sha256=sha256,
            nulls=nulls,
            seconds=self.seconds,
            months_read=tuple(sorted(self.months_read)),
            state=tuple(self.kept),
        )

    @property
    def _groups(self) -> tuple[FeatureGroup, ...]:
        use_case = self.work.use_case
        outcomes = () if self.work.label_known_as_of is None else (kernel.outcome(use_case),)
        return (use_case.population.group, *use_case.feature_groups, *outcomes)

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        started = time.process_time()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.process_time() - started

    def _part(self, group: FeatureGroup) -> state.Part:
        older = self.work.months[:-RECENT_MONTHS]
        recent = self.work.months[-RECENT_MONTHS:]
        parts = [self._older(group, older)] if older else []
        parts += [self._tiled(group, (month,)) for month in recent]
        with self._timed(group.name):
            return state.joined(group, parts)

    def _older(self, group: FeatureGroup, months: tuple[Month, ...]) -> state.Part:
        """The tiles of all older months; where a month has become old, made of what was kept."""
        file = self._file(group, months)
        if not file.exists() and len(months) > 1:
            before, latest = self._file(group, months[:-1]), self._file(group, months[-1:])
            if before.exists() and latest.exists():
                found = [state.load(before), state.load(latest)]
                if all(found):
                    with self._timed(group.name):
                        part = state.joined(group, [part for part in found if part])
                        self._keep(file, part)
                    return part
        return self._tiled(group, months)

    def _tiled(self, group: FeatureGroup, months: tuple[Month, ...]) -> state.Part:
        file = self._file(group, months)
        with self._timed(group.name):
            part = state.load(file)
        if part is None:
            events, entities, texts = self._rows(months)
            with self._timed(group.name):
                part = state.Part(
                    kernel.tiles([group], events, "day"),
                    entities,
                    {name: texts[name] for name in group.measured if name in texts},
                )
                self._keep(file, part)
        else:
            self.kept.append(str(file.relative_to(self.work.state)))
        return part

    def _keep(self, file: Path, part: state.Part) -> None:
        state.save(file, part)
        self.kept.append(str(file.relative_to(self.work.state)))

    def _file(self, group: FeatureGroup, months: Sequence[Month]) -> Path:
        rows = _digest([(month.name, month.signature) for month in months])
        folder = (
            self.work.state / f"{group.name}-{_digest([group.model_dump_json(), self.work.code])}"
        )
        return folder / f"{self.work.bucket:05}-{rows}.npz"

    def _rows(
        self, months: tuple[Month, ...]
    ) -> tuple[kernel.Events, pa.StringArray, dict[str, pa.StringArray]]:
        if months not in self._read:
            with self._timed("rows"):
                self._read[months] = read_events(
                    [month.file for month in months],
                    self.work.bucket,
                    self.work.use_case.source,
                    self.work.use_case.key,
                    self._groups,
                )
            self.months_read.update(month.name for month in months)
        return self._read[months]

    def _vectors(
        self, parts: Mapping[str, state.Part]
    ) -> Iterator[tuple[date, dict[str, npt.NDArray[Any]]]]:
        """For each snapshot its columns; ``entity`` has the codes of the population's members."""
        use_case = self.work.use_case
        windows = {
            group.name: kernel.Windows([group], parts[group.name].tiles) for group in self._groups
        }

        def answer(group: FeatureGroup, requests: kernel.Requests) -> dict[str, npt.NDArray[Any]]:
            with self._timed(group.name):
                return windows[group.name].features(requests)

        return kernel.vectors(
            use_case,
            answer,
            len(parts[use_case.population.group.name].entities),
            self.work.snapshots,
            self.work.label_known_as_of,
        )

    def _table(
        self,
        schema: pa.Schema,
        as_of: date,
        columns: Mapping[str, npt.NDArray[Any]],
        parts: Mapping[str, state.Part],
    ) -> pa.Table:
        # all groups have read the same rows, and so have the same entities
        entities = parts[self.work.use_case.population.group.name].entities
        members = columns["entity"]
        arrays = {
            self.work.use_case.key: entities.take(pa.array(members)),
            SNAPSHOT: pa.array(np.full(len(members), np.datetime64(as_of, "D"))),
        }
        for group in self.work.use_case.feature_groups:
            for feature in group.features:
                if feature.type == "string":
                    codes = columns[feature.name]
                    text = parts[group.name].texts[group.measure(feature.measure).value]
                    arrays[feature.name] = text.take(pa.array(codes, mask=codes < 0))
        return pa.table(
            [
                arrays[f.name] if f.name in arrays else pa.array(columns[f.name], from_pandas=True)
                for f in schema
            ],
            schema=schema,
        )


def _digest(value: Any) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()[:20]


def output_schema(use_case: UseCase, with_snapshot: bool, with_label: bool) -> pa.Schema:
    """Key; the snapshot and the label where asked for; then the features, in order."""
    types = {
        feature.name: pa.string() if feature.type == "string" else pa.float64()
        for group in use_case.feature_groups
        for feature in group.features
    }
    fields = [pa.field(use_case.key, pa.string(), nullable=False)]
    if with_snapshot:
        fields.append(pa.field(SNAPSHOT, pa.date32(), nullable=False))
    if with_label:
        kind = pa.float64() if use_case.label.kind == "sum" else pa.int32()
        fields.append(pa.field(LABEL, kind, nullable=False))
    fields += [pa.field(name, types.get(name, pa.float64())) for name in use_case.feature_names]
    return pa.schema(fields)


def read_events(
    files: Sequence[Path], bucket: int, source: Source, key: str, groups: Sequence[FeatureGroup]
) -> tuple[kernel.Events, pa.StringArray, dict[str, pa.StringArray]]:
    """One bucket's rows of some months, as the kernel wants them.

    Returns:
        The events, the entities by code, and the values of each measured text by code.
    """
    names = columns_read(source, key, groups)
    tables = [extract.read(file, bucket, source, names) for file in files]
    table = pa.concat_tables(tables).unify_dictionaries().combine_chunks()
    return kernel_events(table, source, key, groups)


def columns_read(source: Source, key: str, groups: Sequence[FeatureGroup]) -> list[str]:
    """The columns of the source that the groups need."""
    words = {key, source.event_time, source.landed_date}
    for group in groups:
        for sql in (*group.measured, *group.conditions):
            words |= set(re.findall(r"\w+", sql))
    return [name for name in source.columns if name in words]


def kernel_events(
    table: pa.Table, source: Source, key: str, groups: Sequence[FeatureGroup]
) -> tuple[kernel.Events, pa.StringArray, dict[str, pa.StringArray]]:
    """The same of a table of the source's columns; text is dictionary-encoded."""
    conditions = list(dict.fromkeys(sql for group in groups for sql in group.conditions))
    measured: dict[str, ColumnType] = {}
    for group in groups:
        measured |= group.measured
    expressions = [name for name in measured if name not in source.columns]
    found = evaluated(table, [*conditions, *expressions])
    values: dict[str, npt.NDArray[Any]] = {}
    valid: dict[str, npt.NDArray[np.bool_]] = {}
    texts: dict[str, pa.StringArray] = {}
    for name, kind in measured.items():
        column = found[name] if name in found else table[name].combine_chunks()
        valid[name] = np.asarray(column.is_valid())
        if kind == "string":
            values[name], texts[name] = codes(column)
        else:
            values[name] = as_numbers(column, kind)
    entity, entities = codes(table[key].combine_chunks())
    return (
        kernel.Events(
            entity=entity,
            entities=len(entities),
            time_us=as_numbers(table[source.event_time].combine_chunks(), "timestamp"),
            landed_day=as_numbers(table[source.landed_date].combine_chunks(), "date"),
            flags={sql: np.asarray(pc.fill_null(found[sql], False)) for sql in conditions},
            values=values,
            valid=valid,
        ),
        entities,
        texts,
    )


def evaluated(table: pa.Table, expressions: Sequence[str]) -> dict[str, pa.Array]:
    """SQL over the table's columns, by DuckDB."""
    if not expressions:
        return {}
    with duckdb.connect(config={"threads": 1}) as database:
        database.register("source", table)
        listed = ", ".join(f"({sql}) as e{i}" for i, sql in enumerate(expressions))
        found = database.sql(f"select {listed} from source").to_arrow_table()
    return {sql: found.column(i).combine_chunks() for i, sql in enumerate(expressions)}


def codes(column: pa.Array) -> tuple[npt.NDArray[np.int64], pa.StringArray]:
    """Codes that sort as the text does, 0 for null, and the text by code."""
    if not pa.types.is_dictionary(column.type):
        column = column.cast(pa.string()).dictionary_encode()
    order = pc.sort_indices(column.dictionary)
    rank = np.empty(len(order), np.int64)
    rank[order.to_numpy()] = np.arange(len(order))
    codes = pc.fill_null(column.indices, 0).to_numpy()
    ranked = rank[codes] if len(rank) else np.zeros(len(codes), np.int64)
    return ranked, column.dictionary.take(order).cast(pa.string())


def as_numbers(column: pa.Array, kind: ColumnType) -> npt.NDArray[Any]:
    """A column for the kernel, 0 for null: decimals in 1/10,000, times in microseconds."""
    if kind == "decimal":
        column = column.cast(extract.DECIMAL)
        # of 128 bits the lower 64: 18 digits have room in them
        places = np.frombuffer(column.buffers()[1] or b"", np.int64)[::2]
        numbers = places[column.offset : column.offset + len(column)]
        return np.where(np.asarray(column.is_valid()), numbers, 0)
    if kind == "timestamp":
        column = column.cast(pa.timestamp("us")).cast(pa.int64())
    elif kind == "date":
        column = column.cast(pa.date32()).cast(pa.int32()).cast(pa.int64())
    elif kind == "double":
        return np.asarray(pc.fill_null(column.cast(pa.float64()), 0.0))
    else:
        column = column.cast(pa.int64())
    return np.asarray(pc.fill_null(column, 0))
