"""Proof that no feature sees what was not known: plant what must not count, and compare.

Each trial changes rows in a way of which it is known what it may change, and computes the vectors
again by the code that trains and scores. Vectors are compared bit for bit.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from nightshift.features import job, kernel
from nightshift.spec import Aggregate, Feature, FeatureGroup, UseCase, Window

MOST_PLANTED = 5_000
_SEED = 20111209
_LATER = timedelta(days=401)
_INT64 = np.iinfo(np.int64)

Columns = Mapping[str, npt.NDArray[Any]]
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


def trials(use_case: UseCase, table: pa.Table, as_of: date) -> Iterator[Trial]:
    """Each trial, on the rows of some entities.

    Args:
        use_case: whose features are on trial.
        table: all rows of these entities, in the source's columns; text is dictionary-encoded.
        as_of: a snapshot with rows before it, and after it up to the label's horizon.
    """
    prover = _Prover(use_case, table, as_of)
    yield prover.future()
    yield prover.late()
    yield prover.labels()
    yield from prover.edges()


class _Prover:
    def __init__(self, use_case: UseCase, table: pa.Table, as_of: date) -> None:
        self.use_case = _with_counts(use_case)
        source = use_case.source
        # in plain types, so that rows with other text can be added
        self.schema = pa.schema([(f.name, _plain(f.type)) for f in table.schema])
        self.table = table.cast(self.schema)
        self.as_of = as_of
        self.cut = _day(as_of) * kernel.DAY_US
        self.known = as_of + timedelta(days=use_case.label.maturity_days)
        self.random = np.random.default_rng(_SEED)
        self.time = job.as_numbers(self.table[source.event_time].combine_chunks(), "timestamp")
        self.landed = job.as_numbers(self.table[source.landed_date].combine_chunks(), "date")
        self.before = self._vectors(self.table, as_of)
        self.later = self._vectors(self.table, as_of + _LATER)

    def _vectors(self, table: pa.Table, as_of: date) -> dict[str, npt.NDArray[Any]]:
        """The vectors at ``as_of`` as columns, the keys among them, ascending."""
        use_case = self.use_case
        groups = (*use_case.feature_groups, use_case.population.group, kernel.outcome(use_case))
        events, entities, texts = job.kernel_events(table, use_case.source, use_case.key, groups)
        ((_, columns),) = kernel.compute(use_case, events, [as_of], self.known)
        columns["entity"] = np.asarray(entities.to_pylist(), dtype=object)[columns["entity"]]
        for group in use_case.feature_groups:
            for feature in group.features:
                if feature.type == "string":  # codes depend on what other text there is
                    text = [*texts[group.measure(feature.measure).value].to_pylist(), None]
                    columns[feature.name] = np.asarray(text, dtype=object)[columns[feature.name]]
        return columns

    def future(self) -> Trial:
        """Rows that happen at as_of or after it, some of them landed before."""
        planted = self._planted(self.cut, self.cut + 400 * kernel.DAY_US, first=self.cut)
        days = planted["time"] // kernel.DAY_US
        early = self.random.random(len(days)) < 0.5
        landed = np.where(early, _day(self.as_of) - 1, days)
        return self._added("rows that happen on as_of or after it", planted, landed)

    def late(self) -> Trial:
        """Rows that happened before as_of and landed on it or after it."""
        planted = self._planted(self.cut - 730 * kernel.DAY_US, self.cut, first=self.cut - 1)
        after = self.random.integers(0, 60, len(planted["time"]))
        after[0] = 0
        return self._added(
            "rows that happened before as_of and landed on it or after it",
            planted, _day(self.as_of) + after,
        )  # fmt: skip

    def labels(self) -> Trial:
        """No row from as_of on: other labels, the same features."""
        kept = self.time < self.cut
        after = self._vectors(self.table.filter(pa.array(kept)), self.as_of)
        return Trial(
            change="every row that happens on as_of or after it removed: other labels",
            rows=int(np.count_nonzero(~kept)),
            vectors=len(self.before["entity"]),
            moved=_moved(self.before, after),
            witnesses=int(np.count_nonzero(self.before[job.LABEL] != after[job.LABEL])),
        )

    def edges(self) -> Iterator[Trial]:
        """Each window without its oldest and its newest instant, and with rows at its edges."""
        windows = {
            (f.window, f.lag) for group in self.use_case.feature_groups for f in group.features
        }
        for days, lag in sorted(windows, key=lambda window: (window[0] or _INT64.max, window[1])):
            name = Window.model_construct(days=days, lag=lag).suffix
            since, until = self._bounds(days, lag)
            for which in ("oldest", "newest"):
                yield self._without_edge(name, since, until, which)
            inside, outside = [until - 1], [until]
            if days is not None:
                inside.append(since)
                outside.append(since - 1)
            yield self._with_rows_at(f"rows in the first and last microsecond of {name}", inside)
            if (days, lag) != (None, 0):  # which has nothing outside but the future
                yield self._with_rows_at(f"rows a microsecond before and after {name}", outside)

    def _without_edge(
        self, name: str, since: int, until: int, which: Literal["oldest", "newest"]
    ) -> Trial:
        entity, entities = job.codes(self.table[self.use_case.key].combine_chunks())
        seen = (self.landed < _day(self.as_of)) & (self.time >= since) & (self.time < until)
        edge = np.full(len(entities), _INT64.max if which == "oldest" else _INT64.min)
        extreme = np.minimum if which == "oldest" else np.maximum
        extreme.at(edge, entity[seen], self.time[seen])
        is_removed = seen & (self.time == edge[entity])
        kept, removed = (self.table.filter(pa.array(rows)) for rows in (~is_removed, is_removed))
        return self._changed(f"window {name} without its {which} instant", kept, removed, -1)

    def _with_rows_at(self, change: str, instants: list[int]) -> Trial:
        """A row of every entity, at each instant, that landed in time to be known."""
        entity, _ = job.codes(self.table[self.use_case.key].combine_chunks())
        _, first = np.unique(entity, return_index=True)
        rows = self.table.take(pa.array(np.tile(first, len(instants))))
        time = np.repeat(np.array(instants, np.int64), len(first))
        landed = np.minimum(time // kernel.DAY_US, _day(self.as_of) - 1)
        rows = self._moved_to(rows, time, landed)
        return self._changed(change, pa.concat_tables([self.table, rows]), rows, 1)

    def _changed(self, change: str, table: pa.Table, rows: pa.Table, sign: int) -> Trial:
        """What it does that ``rows``, all of which are known, are in the table now, or no more."""
        source, key = self.use_case.source, self.use_case.key
        after = self._vectors(table, self.as_of)
        # whoever is of the population with and without them
        is_there = np.isin(self.before["entity"], after["entity"])
        old = {name: values[is_there] for name, values in self.before.items()}
        is_there = np.isin(after["entity"], old["entity"])
        new = {name: values[is_there] for name, values in after.items()}
        time = job.as_numbers(rows[source.event_time].combine_chunks(), "timestamp")
        moved: list[str] = []
        witnesses = 0
        for group in self.use_case.feature_groups:
            counted = _counted(group, rows, key)
            may_change: dict[str, npt.NDArray[np.bool_]] = {}
            for feature in group.features:
                low, high = self._bounds(feature.window, feature.lag)
                inside = (time >= low) & (time < high)
                who = rows[key].filter(pa.array(inside)).to_pylist()
                may_change[feature.name] = np.isin(old["entity"], np.array(who, dtype=object))
                if feature.aggregation == "count":
                    expected = old[feature.name] + sign * counted(feature, inside, old["entity"])
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
        return Trial(change, rows.num_rows, len(old["entity"]), tuple(moved), witnesses)

    def _bounds(self, days: int | None, lag: int) -> tuple[int, int]:
        until = self.cut - lag * kernel.DAY_US
        return (int(_INT64.min) if days is None else until - days * kernel.DAY_US), until

    def _planted(self, since: int, until: int, first: int) -> dict[str, Any]:
        """Rows like those that there are, with other values, at instants in ``[since, until)``."""
        count = min(MOST_PLANTED, self.table.num_rows)
        chosen = self.random.choice(self.table.num_rows, count, replace=False)
        time = self.random.integers(since, until, count)
        time[0] = first
        return {"rows": self.table.take(pa.array(chosen)), "time": time}

    def _added(self, change: str, planted: Mapping[str, Any], landed: Ints) -> Trial:
        source = self.use_case.source
        rows = self._moved_to(planted["rows"], planted["time"], landed)
        arrays = {}
        for name, kind in source.columns.items():
            if name in (self.use_case.key, source.event_time, source.landed_date):
                continue
            column = rows[name].combine_chunks()
            if kind == "string":
                column = pc.binary_join_element_wise(column, "planted", "-")
            elif kind in ("integer", "double"):
                column = pc.add(pc.multiply(column, 3), 7)
            elif kind == "decimal":
                column = pc.negate(column)
            elif kind in ("date", "timestamp"):
                column = pa.array(planted["time"]).cast(pa.timestamp("us"))
            arrays[name] = column
        rows = self._with(rows, arrays)
        table = pa.concat_tables([self.table, rows])
        after = self._vectors(table, self.as_of)
        later = self._vectors(table, self.as_of + _LATER)
        return Trial(
            change=change,
            rows=rows.num_rows,
            vectors=len(self.before["entity"]),
            moved=_moved(self.before, after),
            witnesses=_differences(self.later, later),
        )

    def _moved_to(self, rows: pa.Table, time: Ints, landed: Ints) -> pa.Table:
        source = self.use_case.source
        return self._with(
            rows,
            {
                source.event_time: pa.array(time).cast(pa.timestamp("us")),
                source.landed_date: pa.array(landed.astype(np.int32)).cast(pa.date32()),
            },
        )

    def _with(self, rows: pa.Table, columns: Mapping[str, pa.Array]) -> pa.Table:
        for name, column in columns.items():
            at = rows.schema.get_field_index(name)
            rows = rows.set_column(at, name, column.cast(self.schema.field(name).type))
        return rows


def _with_counts(use_case: UseCase) -> UseCase:
    """The same, with a count of every measure over each of its windows: they tell what is seen."""
    groups = []
    for group in use_case.feature_groups:
        counted = {(f.measure, f.window, f.lag) for f in group.features if f.aggregation == "count"}
        wanted = dict.fromkeys((f.measure, f.window, f.lag) for f in group.features)
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


def _counted(
    group: FeatureGroup, rows: pa.Table, key: str
) -> Callable[[Feature, npt.NDArray[np.bool_], npt.NDArray[Any]], Ints]:
    """How many of some of the rows a feature's measure counts, for each key."""
    conditions = {
        measure.name: f"({measure.where or 'true'}) and ({measure.value}) is not null"
        for measure in group.measures
    }
    evaluated = job.evaluated(rows, list(conditions.values()))
    entity = np.asarray(rows[key].to_pylist(), dtype=str)

    def counted(feature: Feature, some: npt.NDArray[np.bool_], keys: npt.NDArray[Any]) -> Ints:
        is_counted = np.asarray(pc.fill_null(evaluated[conditions[feature.measure]], False)) & some
        who, how_many = np.unique(entity[is_counted], return_counts=True)
        by_key = dict(zip(who.tolist(), how_many.tolist(), strict=True))
        return np.array([by_key.get(name, 0) for name in keys], np.int64)

    return counted


def _moved(before: Columns, after: Columns) -> tuple[str, ...]:
    """The features that differ, bit for bit; the population itself, if that does."""
    if not np.array_equal(before["entity"], after["entity"]):
        return ("the population",)
    return tuple(
        name
        for name, values in before.items()
        if name not in ("entity", job.LABEL) and not _same(values, after[name]).all()
    )


def _differences(before: Columns, after: Columns) -> int:
    """Values that differ, of those whom both have."""
    old, new = (
        np.isin(before["entity"], after["entity"]),
        np.isin(after["entity"], before["entity"]),
    )
    return sum(
        int(np.count_nonzero(~_same(values[old], after[name][new])))
        for name, values in before.items()
        if name not in ("entity", job.LABEL)
    )


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


def _plain(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind
