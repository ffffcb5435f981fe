"""Feature vectors of a use case: what is scored and when, and what is asked of each feature group.

The same for a task that reads its bucket's files and for tables in memory; the two differ in where
a :class:`Reader` has tiles from.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from nightshift.features import candidates, kernel, rows, state, together
from nightshift.features.windows import Floats, Ints, divided, null_of
from nightshift.spec import (
    BoughtTogether,
    Candidates,
    EveryEvent,
    FeatureGroup,
    Measure,
    Reported,
    Source,
    Through,
    UseCase,
    key_columns,
)

LABEL = "label"
SNAPSHOT = "snapshot"
MISSED = "missed"
"""Beside a label: how many relevant items of the row's list are no candidates."""


@dataclass(frozen=True)
class Batch:
    """What is scored together, all arrays of length m.

    Attributes:
        as_of: the night of each, days since 1970-01-01.
        time_us: the instant of each: ``as_of`` 00:00, or the event's own.
        columns: name → text, of each column that names a row or an entity of one; of candidates as
            codes of a dictionary, the same one for all batches of a snapshot, in ascending order.
        reported: the label of each event, where it is read off the event.
        own: name → numbers, of the features that an event, or a candidate, has itself.
    """

    as_of: Ints
    time_us: Ints
    columns: Mapping[str, pa.Array]
    reported: npt.NDArray[np.int32] | None = None
    own: Mapping[str, pa.Array] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.as_of)

    def take(self, rows: Ints) -> "Batch":
        """The rows at these positions."""
        at = pa.array(rows)
        return Batch(
            as_of=self.as_of[rows],
            time_us=self.time_us[rows],
            columns={name: text.take(at) for name, text in self.columns.items()},
            reported=None if self.reported is None else self.reported[rows],
            own={name: values.take(at) for name, values in self.own.items()},
        )

    def is_same(self, other: "Batch") -> bool:
        """Whether it is of the same entities, asked at the same instants."""
        return (
            np.array_equal(self.as_of, other.as_of)
            and np.array_equal(self.time_us, other.time_us)
            and self.columns.keys() == other.columns.keys()
            and all(text.equals(other.columns[name]) for name, text in self.columns.items())
        )

    def at(self, as_of: date) -> "Batch":
        """The same entities, asked as of another midnight."""
        day = (as_of - kernel.EPOCH).days
        size = len(self)
        return replace(self, as_of=np.full(size, day), time_us=np.full(size, day * kernel.DAY_US))


class Reader(ABC):
    """What answers for a use case, from some of its entities' rows.

    Attributes:
        use_case: whose groups are asked.
        label_known_as_of: labels are taken, from what landed before it; None for no labels.
        hindsight: features know what landed before it, in place of ``as_of``, as no night can;
            None for what a night knows.
        at_once: entities whose candidates are in one batch; None for all.
        only: the one entity that is scored; None for all. Others still tell what is popular.
    """

    at_once: int | None = None
    only: str | None = None

    def __init__(
        self, use_case: UseCase, label_known_as_of: date | None, hindsight: date | None = None
    ) -> None:
        self.use_case = use_case
        self.label_known_as_of = label_known_as_of
        self.hindsight = hindsight
        self._windows: dict[str, kernel.Windows] = {}
        self._each: dict[str, tuple[Batch, dict[str, pa.Array]]] = {}
        self._pairs: dict[str, _Pairs] = {}

    @abstractmethod
    def part(self, group: FeatureGroup) -> state.Part:
        """The tiles of a group."""

    @abstractmethod
    def event_rows(self, snapshots: Sequence[date]) -> pa.Table:
        """Rows of the population's source, among them all that landed on the days before."""

    def features(self, group: FeatureGroup, batch: Batch) -> dict[str, pa.Array]:
        """Each feature of the group for each row of the batch."""
        related = {
            measure.name: self.values_through(measure, batch, self._text_of(group, measure))
            for measure in group.measures
            if isinstance(measure, Through)
        }
        codes = self._entities(group, batch)
        return self.answered_by_code(group, codes, batch.time_us, batch.as_of, related)

    def features_of_each(self, group: FeatureGroup, batch: Batch) -> dict[str, pa.Array]:
        """The same; of candidates an entity that occurs in many rows is asked for once."""
        name, *more = group.key_columns
        names = batch.columns[name]
        if more or not len(batch) or self.use_case.mode != "candidate":
            return self.features(group, batch)
        size = len(names.dictionary)
        each = Batch(
            as_of=np.full(size, batch.as_of[0]),
            time_us=np.full(size, batch.time_us[0]),
            columns={name: names.dictionary},
        )
        asked, found = self._each.get(group.name, (None, {}))
        if asked is None or not asked.is_same(each):
            found = self.features(group, each)
            self._each[group.name] = each, found
        return {feature: values.take(names.indices) for feature, values in found.items()}

    def _entities(self, group: FeatureGroup, batch: Batch) -> Ints:
        """The code of each row's entity among those of the group."""
        entities = self.part(group).entities
        columns = [batch.columns[name] for name in group.key_columns]
        if len(columns) != 2 or self.use_case.mode != "candidate":
            return _codes(rows.entity_names(columns), entities)
        one, other = columns
        if group.name not in self._pairs or not self._pairs[group.name].are_of(one, other):
            self._pairs[group.name] = _Pairs.of(entities, one.dictionary, other.dictionary)
        return self._pairs[group.name].codes(one, other)

    def everyone(self, group: FeatureGroup, as_of: date) -> candidates.Answers:
        """Every entity of the group, with its features at a snapshot."""
        names = self.part(group).entities
        day = np.full(len(names), (as_of - kernel.EPOCH).days)
        return candidates.Answers(names, self.answered(group, names, day * kernel.DAY_US, day))

    @abstractmethod
    def near(self, wanted: Candidates, generator: BoughtTogether, as_of: date) -> pa.Table:
        """The nearest items of each item at a snapshot: see :mod:`nightshift.features.together`."""

    def known_day(self, as_of: date) -> int:
        """What landed before it is known at a snapshot, days since 1970-01-01."""
        return ((self.hindsight or as_of) - kernel.EPOCH).days

    def values_through(self, measure: Through, batch: Batch, names: pa.StringArray) -> Floats:
        """The feature that a measure is of, for other entities by name, when the batch is asked."""
        if not len(batch):
            return np.full(len(names), np.nan)
        time, known = (np.full(len(names), column[0]) for column in (batch.time_us, batch.as_of))
        found = self.answered(measure.group, names, time, known)[measure.feature]
        return np.asarray(pc.fill_null(found, np.nan))

    def answered(
        self,
        group: FeatureGroup,
        names: pa.Array,
        time_us: Ints,
        known_day: Ints,
        related: Mapping[str, Floats] | None = None,
    ) -> dict[str, pa.Array]:
        """Each feature of the group, for entities by name."""
        codes = _codes(names, self.part(group).entities)
        return self.answered_by_code(group, codes, time_us, known_day, related)

    def answered_by_code(
        self,
        group: FeatureGroup,
        codes: Ints,
        time_us: Ints,
        known_day: Ints,
        related: Mapping[str, Floats] | None = None,
    ) -> dict[str, pa.Array]:
        """Each feature of the group, for entities by code; without rows, that after the last."""
        part = self.part(group)
        if group.name not in self._windows:
            self._windows[group.name] = kernel.Windows([group], part.tiles)
        if self.hindsight is not None:
            known_day = np.full(len(known_day), (self.hindsight - kernel.EPOCH).days)
        requests = kernel.Requests(codes, time_us, known_day)
        found = self._windows[group.name].features(requests, related)
        texts = {
            f.name: self._text_of(group, group.measure(f.measure))
            for f in group.features
            if f.is_text
        }
        return {
            name: pa.array(values, from_pandas=True)
            if name not in texts
            else texts[name].take(pa.array(values, mask=values < 0))
            for name, values in found.items()
        }

    def _text_of(self, group: FeatureGroup, measure: Measure) -> pa.StringArray:
        return self.part(group).texts[measure.value]

    def label(self, batch: Batch) -> npt.NDArray[Any]:
        """The label of each row: int32, of Sum float64."""
        group, label = self.use_case.outcome, self.use_case.label
        if group is None or isinstance(label, Reported):
            assert batch.reported is not None  # as the events were read
            return batch.reported
        assert self.label_known_as_of is not None
        known = np.full(len(batch), (self.label_known_as_of - kernel.EPOCH).days)
        codes = self._entities(group, batch)
        found = self.answered_by_code(group, codes, batch.time_us, known)
        return kernel.label_values(label, {n: np.asarray(v) for n, v in found.items()})


@dataclass(frozen=True)
class _Pairs:
    """The entities of a group that is of pairs, as pairs of codes.

    Attributes:
        one, other: what the codes stand for.
        pair, code: the pairs that occur, ascending, and the code of each as an entity.
        entities: how many there are.
    """

    one: pa.StringArray
    other: pa.StringArray
    pair: Ints
    code: Ints
    entities: int

    @classmethod
    def of(cls, entities: pa.StringArray, one: pa.StringArray, other: pa.StringArray) -> "_Pairs":
        parts = zip(rows.key_parts(entities, 2), (one, other), strict=True)
        first, second = (_codes(part, names) for part, names in parts)
        known = np.flatnonzero((first < len(one)) & (second < len(other)))
        pair = first[known] * len(other) + second[known]
        order = np.argsort(pair)
        return cls(one, other, pair[order], known[order], len(entities))

    def are_of(self, one: pa.DictionaryArray, other: pa.DictionaryArray) -> bool:
        return self.one.equals(one.dictionary) and self.other.equals(other.dictionary)

    def codes(self, one: pa.DictionaryArray, other: pa.DictionaryArray) -> Ints:
        """The code of each pair, or that after the last."""
        if not len(self.pair):
            return np.full(len(one), self.entities)
        first, second = (np.asarray(column.indices, np.int64) for column in (one, other))
        pair = first * len(self.other) + second
        at = np.minimum(np.searchsorted(self.pair, pair), len(self.pair) - 1)
        return np.where(self.pair[at] == pair, self.code[at], self.entities)


def _codes(names: pa.Array, entities: pa.StringArray) -> Ints:
    """The codes of entities by name; those without rows get the code after the last."""
    if pa.types.is_dictionary(names.type):
        own = _codes(names.dictionary, entities)
        indices = pc.fill_null(names.indices, len(own))
        return np.append(own, len(entities))[indices.to_numpy()]
    if names is entities:
        return np.arange(len(entities))
    found = pc.fill_null(pc.index_in(names, value_set=entities), len(entities))
    codes: Ints = found.cast(pa.int64()).to_numpy()
    return codes


def batches(reader: Reader, snapshots: Sequence[date]) -> Iterator[Batch]:
    """What is scored at each snapshot, among the reader's entities."""
    if reader.use_case.mode == "event":
        yield _events(reader, snapshots)
        return
    for as_of in snapshots:
        if isinstance(reader.use_case.population, Candidates):
            yield from _candidates(reader, reader.use_case.population, as_of)
        else:
            yield _members(reader, as_of)


def _candidates(reader: Reader, wanted: Candidates, as_of: date) -> Iterator[Batch]:
    """The candidates at a snapshot, in the order of their keys, some entities at a time."""
    generator = wanted.together
    items = candidates.Items(
        wanted,
        reader.everyone(wanted.items, as_of),
        {name: reader.everyone(group, as_of) for name, group in wanted.segments.items()},
        None if generator is None else reader.near(wanted, generator, as_of),
    )
    members = reader.everyone(wanted.members, as_of)
    own = candidates.Own(members.names, items, reader.everyone(wanted.pairs, as_of))
    count, *texts = members.columns
    active = np.flatnonzero(members.numbers(count) > 0)
    if reader.only is not None:
        active = active[np.asarray(pc.equal(members.names.take(pa.array(active)), reader.only))]
    at_once = reader.at_once or max(len(active), 1)
    entities = members.names.take(pa.array(active))
    day = (as_of - kernel.EPOCH).days
    for start in range(0, max(len(active), 1), at_once):
        some = active[start : start + at_once]
        last = {
            column: members.columns[name].take(pa.array(some))
            for column, name in zip(wanted.segment_columns, texts, strict=True)
        }
        found = items.proposals(some, own, last)
        size = len(found.entity)
        names = (
            pa.DictionaryArray.from_arrays(pa.array(start + found.entity), entities),
            pa.DictionaryArray.from_arrays(pa.array(found.item), items.names),
        )
        yield Batch(
            as_of=np.full(size, day),
            time_us=np.full(size, day * kernel.DAY_US),
            columns=dict(zip(wanted.key, names, strict=True)),
            own={
                name: pa.array(found.columns[name], from_pandas=True)
                for name in wanted.feature_names
            },
        )


def _members(reader: Reader, as_of: date) -> Batch:
    """The population at a snapshot, in the order of its keys."""
    population = reader.use_case.population
    assert not isinstance(population, Candidates | EveryEvent)  # which have batches of their own
    group, keys = population.group, key_columns(population.key)
    entities = reader.part(group).entities
    day = (as_of - kernel.EPOCH).days
    time = np.full(len(entities), day * kernel.DAY_US)
    (active,) = reader.answered(group, entities, time, np.full(len(entities), day)).values()
    names = entities.filter(pc.greater(active, 0))
    columns = dict(zip(keys, rows.key_parts(names, len(keys)), strict=True))
    return Batch(time_us=time[: len(names)], as_of=np.full(len(names), day), columns=columns)


def event_columns(use_case: UseCase) -> list[str]:
    """The columns of the population's source that :func:`batches` needs of events."""
    source, label = use_case.source, use_case.label
    wanted = [source.row_id, source.event_time, source.landed_date, use_case.key]
    wanted += [name for group in use_case.feature_groups for name in group.key_columns]
    wanted += [] if use_case.outcome is None else use_case.outcome.key_columns
    own = (measure.value for measure in use_case.own_features)
    wanted += rows.named_in(source, use_case.population.where, *own)
    if isinstance(label, Reported):
        wanted += rows.named_in(source, label.where, label.known)
    return list(dict.fromkeys(wanted))


def _events(reader: Reader, snapshots: Sequence[date]) -> Batch:
    """The events of the days before the snapshots, each at its own instant."""
    use_case, table = reader.use_case, reader.event_rows(snapshots)
    source, label = use_case.source, use_case.label
    time = _numbers(table, source, source.event_time)
    landed = _numbers(table, source, source.landed_date)
    days = np.array([(as_of - kernel.EPOCH).days - 1 for as_of in snapshots])
    is_scored = (time // kernel.DAY_US == landed) & np.isin(landed, days)
    for name in (use_case.key, source.row_id):
        is_scored &= np.asarray(table[name].is_valid())
    conditions = [use_case.population.where]
    conditions += [label.where] if isinstance(label, Reported) else []
    own = {measure.name: measure.value for measure in use_case.own_features}
    found = rows.evaluated(table, [sql for sql in (*conditions, *own.values()) if sql is not None])
    if use_case.population.where is not None:
        is_scored &= np.asarray(pc.fill_null(found[use_case.population.where], False))
    scored = np.flatnonzero(is_scored)
    reported = None
    if isinstance(label, Reported) and reader.label_known_as_of is not None:
        known = table[label.known].combine_chunks()
        reported = kernel.reported(
            is_reported=np.asarray(pc.fill_null(found[label.where], False))[scored],
            reported_day=rows.as_numbers(known, "date")[scored],
            has_day=np.asarray(known.is_valid())[scored],
            landed_day=landed[scored],
            known_day=(reader.label_known_as_of - kernel.EPOCH).days,
        )
    named = [name for name in event_columns(use_case) if name in _naming(use_case)]
    return Batch(
        as_of=landed[scored] + 1,
        time_us=time[scored],
        columns={
            name: rows.entity_names([table[name].combine_chunks().take(pa.array(scored))])
            for name in named
        },
        reported=reported,
        own={
            name: found[sql].take(pa.array(scored)).cast(pa.float64()) for name, sql in own.items()
        },
    )


def _naming(use_case: UseCase) -> set[str]:
    groups = (*use_case.feature_groups, *([use_case.outcome] if use_case.outcome else []))
    return {*use_case.vector_key, *(name for group in groups for name in group.key_columns)}


def _numbers(table: pa.Table, source: Source, name: str) -> Ints:
    column: Ints = rows.as_numbers(table[name].combine_chunks(), source.columns[name])
    return column


def vectors(
    reader: Reader, snapshots: Sequence[date]
) -> Iterator[tuple[Batch, dict[str, pa.Array]]]:
    """Batch by batch, the features of every row that is scored, and its label where asked for.

    Yields:
        The batch and its columns: one a feature, in order (float64 or text, null for null), and
        ``label`` (see :func:`kernel.label_values`).
    """
    for batch in batches(reader, snapshots):
        if reader.label_known_as_of is not None and reader.use_case.mode == "candidate":
            batch, missed = asked(reader, batch)
            yield batch, columns_of(reader, batch) | {MISSED: pa.array(missed)}
        else:
            yield batch, columns_of(reader, batch)


def columns_of(reader: Reader, batch: Batch) -> dict[str, pa.Array]:
    """The features, and the label where asked for, of one batch."""
    columns: dict[str, pa.Array] = dict(batch.own)
    for group in reader.use_case.feature_groups:
        columns |= reader.features_of_each(group, batch)
    for ratio in reader.use_case.ratios:
        parts = (_floats(columns[name]) for name in (ratio.numerator, ratio.denominator))
        columns[ratio.name] = pa.array(divided(*parts), from_pandas=True)
    if reader.label_known_as_of is not None:
        columns[LABEL] = pa.array(reader.label(batch))
    return columns


def asked(reader: Reader, batch: Batch) -> tuple[Batch, npt.NDArray[np.int32]]:
    """The candidates of entities that have a relevant item, proposed or not; and beside each how
    many relevant items of its entity are not proposed."""
    if not len(batch):
        return batch, np.zeros(0, np.int32)
    group = reader.use_case.outcome
    assert group is not None and reader.label_known_as_of is not None
    every = reader.part(group).entities
    known = (reader.label_known_as_of - kernel.EPOCH).days
    (relevant,) = reader.answered(
        group, every, np.full(len(every), batch.time_us[0]), np.full(len(every), known)
    ).values()
    owners = rows.key_parts(every.filter(pc.greater(relevant, 0)), 2)[0]
    entity, entities = rows.codes(batch.columns[reader.use_case.key])
    of_owner = pc.drop_null(pc.index_in(owners, value_set=entities)).to_numpy()
    wanted = np.bincount(of_owner, minlength=len(entities))
    proposed = np.bincount(entity, weights=reader.label(batch), minlength=len(entities))
    missed = (wanted - proposed).astype(np.int32)[entity]
    chosen = np.flatnonzero(wanted[entity] > 0)
    return batch.take(chosen), missed[chosen]


def _floats(column: pa.Array) -> Floats:
    return np.asarray(pc.fill_null(column.cast(pa.float64()), np.nan))


def without_events(group: FeatureGroup, size: int) -> dict[str, pa.Array]:
    """Each feature of the group for entities that have no events."""
    empty = {
        feature.name: pa.nulls(size, pa.string())
        if feature.is_text
        else pa.array(null_of(feature, size), from_pandas=True)
        for feature in group.features
    }
    return {n: empty.get(n, pa.nulls(size, pa.float64())) for n in group.feature_names}


class InMemory(Reader):
    """A reader of whole tables, one a source, in the source's columns."""

    def __init__(
        self,
        use_case: UseCase,
        tables: Mapping[str, pa.Table],
        label_known_as_of: date | None = None,
    ) -> None:
        super().__init__(use_case, label_known_as_of)
        self._tables = tables
        self._parts: dict[str, state.Part] = {}

    def part(self, group: FeatureGroup) -> state.Part:
        """The tiles of a group, of all rows."""
        if group.name not in self._parts:
            table = self._tables[group.source.name]
            events, entities, texts = rows.kernel_events(table, group.source, group.key, [group])
            tiles = kernel.tiles([group], events, resolution(self.use_case))
            self._parts[group.name] = state.Part(tiles, entities, texts)
        return self._parts[group.name]

    def event_rows(self, snapshots: Sequence[date]) -> pa.Table:
        """All rows."""
        return self._tables[self.use_case.source.name]

    def near(self, wanted: Candidates, generator: BoughtTogether, as_of: date) -> pa.Table:
        """Of all rows."""
        found = together.lines([self._tables[wanted.source.name]], wanted, generator)
        orders = together.orders(found, generator, as_of, self.known_day(as_of))
        return together.neighbours(orders, generator, np.ones(len(found.items), bool))


def resolution(use_case: UseCase) -> kernel.Resolution:
    """Of the tiles: events are asked at instants, all else at midnights."""
    return "instant" if use_case.mode == "event" else "day"
