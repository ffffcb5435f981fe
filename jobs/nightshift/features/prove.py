"""Proof that no feature sees what was not known: plant what must not count, and compare.

Each trial changes rows in a way of which it is known what it may change, and computes the vectors
again by the code that trains and scores. Vectors are compared bit for bit.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import date, timedelta
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from nightshift.errors import NightshiftError
from nightshift.features import kernel, rows, vectors
from nightshift.features.vectors import LABEL
from nightshift.spec import (
    Aggregate,
    Feature,
    FeatureGroup,
    Reported,
    Source,
    Through,
    UseCase,
    Window,
)

ROW = "row "
"""How the columns that name a vector begin; no feature is called so."""

MOST_PLANTED = 5_000
_SEED = 20111209
_LATER = timedelta(days=401)
_INT64 = np.iinfo(np.int64)

Columns = Mapping[str, npt.NDArray[Any]]
Tables = dict[str, pa.Table]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Trial:
    """One change of rows, and what it did.

    Attributes:
        change: in words.
        rows: added or removed.
        vectors: compared.
        moved: features that changed and must not have, or that did not as they must.
        witnesses: values that did change where they must: what shows that the trial has teeth.
    """

    change: str
    rows: int
    vectors: int
    moved: tuple[str, ...]
    witnesses: int

    @property
    def holds(self) -> bool:
        """Whether nothing moved that must not, and the trial could have shown it."""
        return not self.moved and self.witnesses > 0


def trials(use_case: UseCase, tables: Mapping[str, pa.Table], as_of: date) -> Iterator[Trial]:
    """Each trial, on the rows of some entities.

    Args:
        use_case: whose features are on trial.
        tables: source → all rows of these entities, in its columns; text is dictionary-encoded.
        as_of: a snapshot with rows before it, and after it up to the label's horizon.

    Raises:
        NightshiftError: when nothing is scored then.
    """
    prover = _Prover(use_case, tables, as_of)
    for source in prover.sources:
        yield prover.future(source)
        yield prover.late(source)
    yield prover.labels()
    for source in prover.sources:
        yield from prover.reports(source)
        yield from prover.edges(source)
    if use_case.mode == "event":
        yield from prover.instants()


class _Prover:
    def __init__(self, use_case: UseCase, tables: Mapping[str, pa.Table], as_of: date) -> None:
        self.use_case = _with_counts(use_case)
        # in plain types, so that rows with other text can be added
        self.tables = {name: _in_plain_types(table) for name, table in tables.items()}
        self.as_of = as_of
        self.cut = _day(as_of) * kernel.DAY_US
        self.known = as_of + timedelta(days=use_case.label.maturity_days)
        self.random = np.random.default_rng(_SEED)
        self.groups = (*use_case.feature_groups, *use_case.related_groups)
        read = {group.source.name: group.source for group in self.groups}
        self.sources = [source for name, source in read.items() if tables[name].num_rows]
        self.before = self._vectors(self.tables, as_of)
        # the same, asked long after; and asked as before, knowing what landed until long after
        self.later = self._vectors(self.tables, as_of, as_of + _LATER)
        self.told = self._told(self.tables)
        self.batch = self._batch(self.tables, as_of)
        if not len(self.batch):
            raise NightshiftError(
                f"{use_case.name} scores nothing at {as_of} among the entities that are looked at",
                "choose another date with --as-of",
            )
        # of events too at one midnight, which is the edge of all windows
        self.at_cut = self._columns(self.tables, self.batch.at(as_of))

    def _batch(self, tables: Tables, as_of: date) -> vectors.Batch:
        (batch,) = vectors.batches(self._reader(tables), [as_of])
        return batch

    def _reader(self, tables: Tables) -> vectors.InMemory:
        return vectors.InMemory(self.use_case, tables, self.known)

    def _vectors(self, tables: Tables, as_of: date, asked: date | None = None) -> Columns:
        """The vectors at ``as_of``, whoever is scored by these tables."""
        batch = self._batch(tables, as_of)
        return self._columns(tables, batch if asked is None else batch.at(asked))

    def _told(self, tables: Tables) -> Columns:
        """The vectors at ``as_of``, if all that landed later had been known."""
        batch = self._batch(tables, self.as_of)
        return self._columns(tables, replace(batch, as_of=batch.as_of + _LATER.days))

    def _columns(self, tables: Tables, batch: vectors.Batch) -> Columns:
        """Those of a batch: its names under the columns' names, and the features."""
        found = vectors.columns_of(self._reader(tables), batch)
        names = [batch.columns[name] for name in self.use_case.vector_key]
        columns = {ROW: _objects(rows.entity_names(names))}
        columns |= {f"{ROW}{name}": _objects(text) for name, text in batch.columns.items()}
        for name, values in found.items():
            is_text = pa.types.is_string(values.type)
            columns[name] = _objects(values) if is_text else values.to_numpy(zero_copy_only=False)
        return columns

    def _with_table(self, source: Source, table: pa.Table) -> Tables:
        return self.tables | {source.name: table}

    def _time(self, source: Source, table: pa.Table) -> Ints:
        return rows.as_numbers(table[source.event_time].combine_chunks(), "timestamp")

    def _landed(self, source: Source, table: pa.Table) -> Ints:
        return rows.as_numbers(table[source.landed_date].combine_chunks(), "date")

    def future(self, source: Source) -> Trial:
        """Rows that happen at as_of or after it, some of them landed before."""
        planted = self._planted(source, self.cut, self.cut + 400 * kernel.DAY_US, first=self.cut)
        days = planted["time"] // kernel.DAY_US
        early = self.random.random(len(days)) < 0.5
        landed = np.where(early, _day(self.as_of) - 1, days)
        tables = self._with_added(source, planted, landed)
        return Trial(
            change=f"rows of {source.name} that happen on as_of or after it",
            rows=len(days),
            vectors=len(self.before[ROW]),
            moved=_moved(self.before, self._vectors(tables, self.as_of)),
            witnesses=_differences(
                self.later, self._vectors(tables, self.as_of, self.as_of + _LATER)
            ),
        )

    def late(self, source: Source) -> Trial:
        """Rows that happened before as_of and landed on it or after it."""
        planted = self._planted(
            source, self.cut - 730 * kernel.DAY_US, self.cut, first=self.cut - 1
        )
        after = self.random.integers(0, 60, len(planted["time"]))
        after[0] = 0
        tables = self._with_added(source, planted, _day(self.as_of) + after)
        return Trial(
            change=f"rows of {source.name} that happened before as_of and landed on it or after it",
            rows=len(after),
            vectors=len(self.before[ROW]),
            moved=_moved(self.before, self._vectors(tables, self.as_of)),
            witnesses=_differences(self.told, self._told(tables)),
        )

    def labels(self) -> Trial:
        """Other labels, the same features."""
        label, source = self.use_case.label, self.use_case.label.source
        table = self.tables[source.name]
        if isinstance(label, Reported):
            column = table[label.known].combine_chunks()
            known = rows.as_numbers(column, "date")
            changed = ~np.asarray(column.is_valid()) | (known >= _day(self.as_of))
            renewed = self._reported_otherwise(label, table, changed)
            what = "what was reported on as_of or after it, or never, told otherwise: other labels"
        else:
            changed = self._time(source, table) >= self.cut
            renewed = table.filter(pa.array(~changed))
            what = "every row that happens on as_of or after it removed: other labels"
        after = self._vectors(self._with_table(source, renewed), self.as_of)
        same = np.array_equal(self.before[ROW], after[ROW])
        return Trial(
            change=what,
            rows=int(np.count_nonzero(changed)),
            vectors=len(self.before[ROW]),
            moved=_moved(self.before, after),
            witnesses=int(np.count_nonzero(self.before[LABEL] != after[LABEL])) if same else 0,
        )

    def _reported_otherwise(
        self, label: Reported, table: pa.Table, changed: npt.NDArray[np.bool_]
    ) -> pa.Table:
        """Some rows with the opposite of what the label's condition reads, reported at the last."""
        day = pa.scalar(self.known - timedelta(days=1), pa.date32())
        chosen = pa.array(changed)
        columns = {label.known: pc.if_else(chosen, day, table[label.known].combine_chunks())}
        for name in rows.named_in(label.source, label.where):
            column = table[name].combine_chunks()
            is_flag = pa.types.is_boolean(column.type)
            other = pc.invert(column) if is_flag else pa.nulls(len(column), column.type)
            columns[name] = pc.if_else(chosen, other, column)
        return _with(table, columns)

    def reports(self, source: Source) -> Iterator[Trial]:
        """Reports of old rows that come on as_of or after it."""
        table = self.tables[source.name]
        groups = [group for group in self.groups if group.source == source]
        for name in sorted({m.known for group in groups for m in group.measures if m.known}):
            column = table[name].combine_chunks()
            known = rows.as_numbers(column, "date")
            unknown = ~np.asarray(column.is_valid()) | (known >= _day(self.as_of))
            later = _day(self.as_of) + self.random.integers(0, 60, len(known))
            days = np.where(unknown, later, known).astype(np.int32)
            told, untold = (
                self._with_table(source, _with(table, {name: renewed.cast(pa.date32())}))
                for renewed in (pa.array(days), pa.array(days, mask=unknown))
            )
            trial = Trial(
                change=f"{name} of {source.name} set to as_of or after it, where it was not before",
                rows=int(np.count_nonzero(unknown)),
                vectors=len(self.before[ROW]),
                moved=_moved(self.before, self._vectors(told, self.as_of)),
                witnesses=_differences(self._told(untold), self._told(told)),
            )
            own = [group for group in groups if group in self.use_case.feature_groups]
            # what is reached through another entity need not depend on every report of it
            if trial.witnesses or any(m.known == name for g in own for m in g.measures):
                yield trial

    def instants(self) -> Iterator[Trial]:
        """Events see nothing of their own instant or after it."""
        source = self.use_case.source
        table = self.tables[source.name]
        time = self._time(source, table)
        middle = int(np.sort(self.batch.time_us)[len(self.batch) // 2])
        earlier = set(self.before[ROW][self.batch.time_us <= middle].tolist())
        gone = time > middle
        tables = self._with_table(source, table.filter(pa.array(~gone)))
        yield self._of_some(
            "every event after the middle one of the night removed", earlier, tables,
            int(np.count_nonzero(gone)), middle + kernel.DAY_US,
        )  # fmt: skip
        own = np.flatnonzero(np.isin(time, self.batch.time_us))
        twins = table.take(pa.array(own))
        is_number = pa.types.is_integer(table.schema.field(source.row_id).type)
        named = pa.array([-1 - n if is_number else f"twin {n}" for n in range(len(own))])
        twins = _with(twins, {source.row_id: named})
        tables = self._with_table(source, pa.concat_tables([table, twins]))
        # whoever comes later that night does see the twins of those before
        is_first = np.ones(len(self.batch), bool)
        for name in self.batch.columns.keys() - {source.row_id}:
            named = [  # nobody is alone
                f"nobody {number}" if who is None else who
                for number, who in enumerate(self.before[f"{ROW}{name}"])
            ]
            _, entity = np.unique(named, return_inverse=True)
            first = np.full(int(entity.max()) + 1, _INT64.max)
            np.minimum.at(first, entity, self.batch.time_us)
            is_first &= first[entity] == self.batch.time_us
        yield self._of_some(
            "a twin of every event at its own instant",
            set(self.before[ROW][is_first].tolist()), tables, len(own),
            int(self.batch.time_us.max()) + 1,
        )  # fmt: skip

    def _of_some(
        self, change: str, names: set[str], tables: Tables, changed: int, witness_at: int
    ) -> Trial:
        """Whether the vectors of some events are as they were; at a later instant they are not."""
        chosen = np.isin(self.before[ROW], np.array(sorted(names), dtype=object))
        batch = self.batch.take(np.flatnonzero(chosen))
        asked = replace(batch, time_us=np.full(len(batch), witness_at))
        return Trial(
            change=change,
            rows=changed,
            vectors=len(batch),
            moved=_moved(self._columns(self.tables, batch), self._columns(tables, batch)),
            witnesses=_differences(self._columns(self.tables, asked), self._columns(tables, asked)),
        )

    def edges(self, source: Source) -> Iterator[Trial]:
        """Each window without its oldest and its newest instant, and with rows at its edges."""
        windows = {
            (feature.window, feature.lag)
            for group in self.use_case.feature_groups
            for feature in group.features
            if group.source == source
        }
        for days, lag in sorted(windows, key=lambda window: (window[0] or _INT64.max, window[1])):
            name = f"{Window.model_construct(days=days, lag=lag).suffix} of {source.name}"
            since, until = self._bounds(days, lag)
            for which in ("oldest", "newest"):
                yield self._without_edge(source, name, since, until, which)
            inside, outside = [until - 1], [until]
            if days is not None:
                inside.append(since)
                outside.append(since - 1)
            what = f"rows in the first and last microsecond of {name}"
            yield self._with_rows_at(source, what, inside)
            if (days, lag) != (None, 0):  # which has nothing outside but the future
                what = f"rows a microsecond before and after {name}"
                yield self._with_rows_at(source, what, outside)

    def _without_edge(
        self, source: Source, name: str, since: int, until: int, which: Literal["oldest", "newest"]
    ) -> Trial:
        table = self.tables[source.name]
        time, landed = self._time(source, table), self._landed(source, table)
        entity, entities = rows.codes(table[self._entity(source)].combine_chunks())
        seen = (landed < _day(self.as_of)) & (time >= since) & (time < until)
        edge = np.full(len(entities), _INT64.max if which == "oldest" else _INT64.min)
        extreme = np.minimum if which == "oldest" else np.maximum
        extreme.at(edge, entity[seen], time[seen])
        is_removed = seen & (time == edge[entity])
        kept, removed = (table.filter(pa.array(some)) for some in (~is_removed, is_removed))
        return self._changed(
            source, f"window {name} without its {which} instant", kept, removed, -1
        )

    def _with_rows_at(self, source: Source, change: str, instants: list[int]) -> Trial:
        """A row of every entity, at each instant, that landed in time to be known."""
        table = self.tables[source.name]
        entity, _ = rows.codes(table[self._entity(source)].combine_chunks())
        _, first = np.unique(entity, return_index=True)
        added = table.take(pa.array(np.tile(first, len(instants))))
        time = np.repeat(np.array(instants, np.int64), len(first))
        landed = np.minimum(time // kernel.DAY_US, _day(self.as_of) - 1)
        added = self._moved_to(source, added, time, landed)
        return self._changed(source, change, pa.concat_tables([table, added]), added, 1)

    def _entity(self, source: Source) -> str:
        """A column that names an entity in the rows of a source."""
        groups = [group for group in self.groups if group.source == source]
        keys = [name for group in groups for name in group.key_columns]
        return self.use_case.key if self.use_case.key in keys else keys[0]

    def _changed(
        self, source: Source, change: str, table: pa.Table, changed: pa.Table, sign: int
    ) -> Trial:
        """What it does that some rows, all of which are known, are in the table now, or no more."""
        old = self.at_cut
        new = self._columns(self._with_table(source, table), self.batch.at(self.as_of))
        time = self._time(source, changed)
        moved: list[str] = []
        witnesses = 0
        for group in self.use_case.feature_groups:
            through = {m.name for m in group.measures if isinstance(m, Through)}
            counted = _Rows(group, changed, self.as_of) if group.source == source else None
            own = rows.entity_names([pa.array(old[f"{ROW}{key}"]) for key in group.key_columns])
            may_change: dict[str, npt.NDArray[np.bool_]] = {}
            for feature in group.features:
                low, high = self._bounds(feature.window, feature.lag)
                inside = (time >= low) & (time < high)
                if feature.measure in through:  # of whatever the others' rows may change
                    may_change[feature.name] = np.ones(len(own), bool)
                elif counted is None:
                    may_change[feature.name] = np.zeros(len(own), bool)
                else:
                    may_change[feature.name] = counted.touched(inside, own)
                    if feature.aggregation == "count":
                        expected = old[feature.name] + sign * counted.number(feature, inside, own)
                        if not np.array_equal(expected, new[feature.name]):
                            moved.append(feature.name)
            for ratio in group.quotients:
                parts = may_change[ratio.numerator], may_change[ratio.denominator]
                may_change[ratio.name] = parts[0] | parts[1]
            for name, may in may_change.items():
                differs = ~_same(old[name], new[name])
                witnesses += int(np.count_nonzero(differs))
                if (differs & ~may).any() and name not in moved:
                    moved.append(name)
        return Trial(change, changed.num_rows, len(old[ROW]), tuple(moved), witnesses)

    def _bounds(self, days: int | None, lag: int) -> tuple[int, int]:
        until = self.cut - lag * kernel.DAY_US
        return (int(_INT64.min) if days is None else until - days * kernel.DAY_US), until

    def _planted(self, source: Source, since: int, until: int, first: int) -> dict[str, Any]:
        """Rows like those that there are, with other values, at instants in ``[since, until)``."""
        table = self.tables[source.name]
        count = min(MOST_PLANTED, table.num_rows)
        chosen = self.random.choice(table.num_rows, count, replace=False)
        time = self.random.integers(since, until, count)
        time[0] = first
        return {"rows": table.take(pa.array(chosen)), "time": time}

    def _with_added(self, source: Source, planted: Mapping[str, Any], landed: Ints) -> Tables:
        added = self._moved_to(source, planted["rows"], planted["time"], landed)
        naming = {name for group in self.groups for name in group.key_columns}
        arrays = {}
        for name, kind in source.columns.items():
            if name in naming or name in (source.event_time, source.landed_date):
                continue
            column = added[name].combine_chunks()
            if kind == "string":
                column = pc.binary_join_element_wise(column, "planted", "-")
            elif kind in ("integer", "double"):
                column = pc.add(pc.multiply(column, 3), 7)
            elif kind == "decimal":
                column = pc.negate(column)
            elif kind in ("date", "timestamp"):
                column = pa.array(planted["time"]).cast(pa.timestamp("us"))
            arrays[name] = column
        every = [self.tables[source.name], _with(added, arrays)]
        return self._with_table(source, pa.concat_tables(every))

    def _moved_to(self, source: Source, some: pa.Table, time: Ints, landed: Ints) -> pa.Table:
        return _with(
            some,
            {
                source.event_time: pa.array(time).cast(pa.timestamp("us")),
                source.landed_date: pa.array(landed.astype(np.int32)).cast(pa.date32()),
            },
        )


def _with(table: pa.Table, columns: Mapping[str, pa.Array]) -> pa.Table:
    """The table with other columns, in the types that it has."""
    for name, column in columns.items():
        at = table.schema.get_field_index(name)
        table = table.set_column(at, name, column.cast(table.schema.field(name).type))
    return table


def _with_counts(use_case: UseCase) -> UseCase:
    """The same, with a count of every measure over each of its windows: they tell what is seen."""
    groups = []
    for group in use_case.feature_groups:
        counted = {(f.measure, f.window, f.lag) for f in group.features if f.aggregation == "count"}
        wanted = dict.fromkeys(
            (f.measure, f.window, f.lag)
            for f in group.features
            if not isinstance(group.measure(f.measure), Through)
        )
        missing = tuple(
            Aggregate.model_construct(
                measure=measure,
                aggregations=("count",),
                windows=(Window.model_construct(days=days, lag=lag),),
            )
            for measure, days, lag in wanted
            if (measure, days, lag) not in counted and group.measure(measure).category is None
        )
        groups.append(group.model_copy(update={"aggregates": group.aggregates + missing}))
    return use_case.model_copy(update={"feature_groups": tuple(groups)})


class _Rows:
    """What some rows of a group's source are to it, all of which had landed by ``as_of``."""

    def __init__(self, group: FeatureGroup, changed: pa.Table, as_of: date) -> None:
        self._conditions = {}
        for measure in group.measures:
            sql = f"({measure.where or 'true'}) and ({measure.value}) is not null"
            if measure.known is not None:
                sql += f" and {measure.known} < date '{as_of}'"
            self._conditions[measure.name] = sql
        self._holds = rows.evaluated(changed, list(self._conditions.values()))
        columns = [changed[name].combine_chunks() for name in group.key_columns]
        self._names = _objects(rows.entity_names(columns))

    def touched(self, some: npt.NDArray[np.bool_], names: pa.Array) -> npt.NDArray[np.bool_]:
        """Which entities, by name, some of the rows are of."""
        who = set(self._names[some].tolist())
        return np.array([name is not None and name in who for name in names.to_pylist()], bool)

    def number(self, feature: Feature, some: npt.NDArray[np.bool_], names: pa.Array) -> Ints:
        """How many of some of the rows the feature's measure counts, for each entity."""
        holds = self._holds[self._conditions[feature.measure]]
        counts = Counter(self._names[np.asarray(pc.fill_null(holds, False)) & some].tolist())
        counts[None] = 0  # nobody has no events
        return np.array([counts[name] for name in names.to_pylist()], np.int64)


def _moved(before: Columns, after: Columns) -> tuple[str, ...]:
    """The features that differ, bit for bit; what is scored itself, if that does."""
    if not np.array_equal(before[ROW], after[ROW]):
        return ("the population",)
    return tuple(name for name in _features(before) if not _same(before[name], after[name]).all())


def _differences(before: Columns, after: Columns) -> int:
    """Values that differ, of those whom both have."""
    old, new = np.isin(before[ROW], after[ROW]), np.isin(after[ROW], before[ROW])
    return sum(
        int(np.count_nonzero(~_same(before[name][old], after[name][new])))
        for name in _features(before)
    )


def _features(columns: Columns) -> list[str]:
    return [name for name in columns if not name.startswith(ROW) and name != LABEL]


def _same(old: npt.NDArray[Any], new: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Where two columns have the same bits, or are both null."""
    same: npt.NDArray[np.bool_]
    if old.dtype == object:
        same = old == new
    else:
        same = (old.view(np.int64) == new.view(np.int64)) | (np.isnan(old) & np.isnan(new))
    return same


def _day(day: date) -> int:
    return (day - kernel.EPOCH).days


def _in_plain_types(table: pa.Table) -> pa.Table:
    kinds = [(f.name, f.type) for f in table.schema]
    plain = [
        (name, kind.value_type if pa.types.is_dictionary(kind) else kind) for name, kind in kinds
    ]
    return table.cast(pa.schema(plain))


def _objects(text: pa.Array) -> npt.NDArray[Any]:
    return np.array(text.to_pylist(), dtype=object)
