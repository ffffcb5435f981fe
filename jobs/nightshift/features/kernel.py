"""The columnar kernel: every feature of a set of entities at every snapshot, from sorted arrays.

Spark hands each partition (whole entities) to :func:`compute`. Rows are sorted once by entity and
time; a window then is a suffix of an entity's visible rows, so that counts and sums are
differences of prefix sums, and the exact distinct count is the number of (entity, item) pairs
whose newest visible occurrence lies in the window. Amounts are integers of 1/10,000, so that sums
are exact and do not depend on the order of rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date

import numpy as np
import numpy.typing as npt

from nightshift.spec import Feature, FeatureGroup, UseCase

DAY_US = 86_400_000_000
DECIMAL_SCALE = 10_000
EPOCH = date(1970, 1, 1)

Array = npt.NDArray[np.generic]


@dataclass(frozen=True)
class Events:
    """The events of some entities, all arrays of length n.

    Attributes:
        entity: int64 codes, 0 … entities − 1.
        entities: how many entities there are.
        time_us: event time, microseconds since 1970-01-01 in the pipeline's time zone.
        landed_day: landing date, days since 1970-01-01.
        flags: condition → bool, one for each ``where`` of the declarations.
        values: column → int64; decimals in 1/10,000, text as codes, times in microseconds.
        valid: column → bool, False where the value is null.
    """

    entity: npt.NDArray[np.int64]
    entities: int
    time_us: npt.NDArray[np.int64]
    landed_day: npt.NDArray[np.int64]
    flags: Mapping[str, npt.NDArray[np.bool_]]
    values: Mapping[str, npt.NDArray[np.int64]]
    valid: Mapping[str, npt.NDArray[np.bool_]]

    def sorted(self) -> "Events":
        """The same events, ordered by entity and time."""
        order = np.lexsort((self.time_us, self.entity))
        return Events(
            entity=self.entity[order],
            entities=self.entities,
            time_us=self.time_us[order],
            landed_day=self.landed_day[order],
            flags={name: flag[order] for name, flag in self.flags.items()},
            values={name: value[order] for name, value in self.values.items()},
            valid={name: valid[order] for name, valid in self.valid.items()},
        )

    def satisfying(self, where: str | None) -> npt.NDArray[np.bool_]:
        """True for the rows where the condition holds."""
        return np.ones(len(self.entity), bool) if where is None else self.flags[where]


def midnight_us(day: date) -> int:
    """Microseconds from 1970-01-01 to 00:00 of ``day``."""
    return (day - EPOCH).days * DAY_US


@dataclass(frozen=True)
class _Snapshot:
    """The rows visible at one snapshot, with each entity's segment ``[start, end)`` of them."""

    as_of: date
    rows: npt.NDArray[np.int64]
    time_us: npt.NDArray[np.int64]
    start: npt.NDArray[np.int64]
    end: npt.NDArray[np.int64]

    def window_start(self, window: int | None) -> npt.NDArray[np.int64]:
        """Each entity's first visible row within the last ``window`` days."""
        if window is None:
            return self.start
        inside = self.time_us >= midnight_us(self.as_of) - window * DAY_US
        counted = _prefix_sum(inside)
        # Sorted by time, an entity's rows inside the window are the last ones of its segment.
        return self.end - (counted[self.end] - counted[self.start])


def _prefix_sum(values: Array) -> npt.NDArray[np.int64]:
    sums = np.zeros(len(values) + 1, np.int64)
    np.cumsum(values, dtype=np.int64, out=sums[1:])
    return sums


def _visible(events: Events, as_of: date) -> _Snapshot:
    """What is known at ``as_of``: happened before its midnight, landed on an earlier date."""
    seen = (events.time_us < midnight_us(as_of)) & (events.landed_day < (as_of - EPOCH).days)
    rows = np.flatnonzero(seen)
    entity = events.entity[rows]
    codes = np.arange(events.entities)
    return _Snapshot(
        as_of=as_of,
        rows=rows,
        time_us=events.time_us[rows],
        start=np.searchsorted(entity, codes, "left"),
        end=np.searchsorted(entity, codes, "right"),
    )


def _segment_extreme(
    values: npt.NDArray[np.int64],
    start: npt.NDArray[np.int64],
    end: npt.NDArray[np.int64],
    largest: bool,
) -> npt.NDArray[np.int64]:
    """The extreme of ``values[start:end]`` of each segment; meaningless where it is empty."""
    padded = np.append(values, np.int64(0))
    bounds = np.empty(2 * len(start), np.int64)
    bounds[0::2], bounds[1::2] = start, end
    reduce = np.maximum if largest else np.minimum
    return reduce.reduceat(padded, bounds)[0::2] if len(start) else np.zeros(0, np.int64)


class _GroupKernel:
    """One feature group over one set of sorted events."""

    def __init__(self, group: FeatureGroup, events: Events) -> None:
        self.group = group
        self.events = events
        self.measures = {measure.name: measure for measure in group.measures}
        self.masks = {
            m.name: events.satisfying(m.where) & events.valid[m.column] for m in group.measures
        }
        # For the distinct counts: the measure's rows by entity, item and time, ordered once.
        self.by_item = {
            name: self._order_by_item(name)
            for name in {f.measure for f in group.features if f.aggregation == "distinct"}
        }

    def _order_by_item(self, measure: str) -> npt.NDArray[np.int64]:
        rows = np.flatnonzero(self.masks[measure])
        items = self.events.values[self.measures[measure].column][rows]
        keys = (self.events.time_us[rows], items, self.events.entity[rows])
        return rows[np.lexsort(keys)]

    def compute(self, snapshot: _Snapshot) -> dict[str, npt.NDArray[np.float64]]:
        """Each feature of the group as float64 of length ``entities``, NaN for null."""
        starts = {w: snapshot.window_start(w) for w in {f.window for f in self.group.features}}
        counted: dict[str, npt.NDArray[np.int64]] = {}
        summed: dict[str, npt.NDArray[np.int64]] = {}
        result: dict[str, npt.NDArray[np.float64]] = {}
        newest = {name: self._newest_of_pairs(name, snapshot) for name in self.by_item}
        for feature in self.group.features:
            mask = self.masks[feature.measure][snapshot.rows]
            start, end = starts[feature.window], snapshot.end
            if feature.measure not in counted:
                counted[feature.measure] = _prefix_sum(mask)
            count = counted[feature.measure][end] - counted[feature.measure][start]
            if feature.aggregation == "count":
                result[feature.name] = count.astype(np.float64)
            elif feature.aggregation == "distinct":
                entity, time_us = newest[feature.measure]
                if feature.window is not None:
                    since = midnight_us(snapshot.as_of) - feature.window * DAY_US
                    entity = entity[time_us >= since]
                result[feature.name] = np.bincount(entity, minlength=self.events.entities).astype(
                    np.float64
                )
            else:
                result[feature.name] = self._reduce(
                    feature, snapshot, mask, start, end, count, summed
                )
        with np.errstate(divide="ignore", invalid="ignore"):
            for ratio in self.group.ratios:
                below = result[ratio.denominator]
                result[ratio.name] = np.where(below == 0, np.nan, result[ratio.numerator] / below)
        return result

    def _newest_of_pairs(
        self, measure: str, snapshot: _Snapshot
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Entity and time of the newest visible occurrence of each (entity, item) pair."""
        visible = np.zeros(len(self.events.entity), bool)
        visible[snapshot.rows] = True
        rows = self.by_item[measure]
        rows = rows[visible[rows]]
        entity = self.events.entity[rows]
        item = self.events.values[self.measures[measure].column][rows]
        is_last = np.ones(len(rows), bool)
        is_last[:-1] = (entity[1:] != entity[:-1]) | (item[1:] != item[:-1])
        return entity[is_last], self.events.time_us[rows][is_last]

    def _reduce(
        self,
        feature: Feature,
        snapshot: _Snapshot,
        mask: npt.NDArray[np.bool_],
        start: npt.NDArray[np.int64],
        end: npt.NDArray[np.int64],
        count: npt.NDArray[np.int64],
        summed: dict[str, npt.NDArray[np.int64]],
    ) -> npt.NDArray[np.float64]:
        column = self.measures[feature.measure].column
        scale = DECIMAL_SCALE if self.group.source.columns[column] == "decimal" else 1
        if feature.aggregation in ("sum", "mean"):
            if feature.measure not in summed:
                values = self.events.values[column][snapshot.rows]
                summed[feature.measure] = _prefix_sum(np.where(mask, values, 0))
            total = summed[feature.measure][end] - summed[feature.measure][start]
            if feature.aggregation == "sum":
                return total / scale
            with np.errstate(divide="ignore", invalid="ignore"):
                return np.where(count == 0, np.nan, total / scale / count)
        largest = feature.aggregation in ("max", "days_since_last")
        in_days = feature.aggregation in ("days_since_last", "days_since_first")
        values = snapshot.time_us if in_days else self.events.values[column][snapshot.rows]
        limits = np.iinfo(np.int64)
        values = np.where(mask, values, limits.min if largest else limits.max)
        extreme = _segment_extreme(values, start, end, largest)
        if in_days:
            extreme = np.where(count == 0, 0, extreme)
            days = (midnight_us(snapshot.as_of) - extreme) / DAY_US
            return np.where(count == 0, np.nan, days)
        return np.where(count == 0, np.nan, extreme / scale)


def _has_event(
    events: Events, where: str | None, since_us: int, until_us: int, known_day: int
) -> npt.NDArray[np.bool_]:
    """For each entity: an event in ``[since, until)`` where the condition holds, landed before."""
    found = (
        events.satisfying(where)
        & (events.time_us >= since_us)
        & (events.time_us < until_us)
        & (events.landed_day < known_day)
    )
    return np.bincount(events.entity[found], minlength=events.entities) > 0


def compute(
    use_case: UseCase,
    events: Events,
    snapshots: Sequence[date],
    label_known_as_of: date | None = None,
) -> list[tuple[date, dict[str, Array]]]:
    """The feature vectors of every entity of the population, at every snapshot.

    Args:
        use_case: the declaration.
        events: all events of these entities, in any order.
        snapshots: the ``as_of`` dates.
        label_known_as_of: when given, a column ``label`` is added, from what landed before it.

    Returns:
        For each snapshot its columns: ``entity`` (int64 codes of the members of the population,
        ascending), one float64 column a feature (NaN for null), and ``label`` (int32).
    """
    events = events.sorted()
    kernels = [_GroupKernel(group, events) for group in use_case.feature_groups]
    population, label = use_case.population, use_case.label
    tables: list[tuple[date, dict[str, Array]]] = []
    for as_of in snapshots:
        today = midnight_us(as_of)
        members = _has_event(
            events,
            population.where,
            today - population.active_days * DAY_US,
            today,
            (as_of - EPOCH).days,
        )
        snapshot = _visible(events, as_of)
        columns: dict[str, Array] = {"entity": np.flatnonzero(members)}
        for kernel in kernels:
            for name, values in kernel.compute(snapshot).items():
                columns[name] = values[members]
        if label_known_as_of is not None:
            happened = _has_event(
                events,
                label.where,
                today,
                today + label.horizon_days * DAY_US,
                (label_known_as_of - EPOCH).days,
            )
            columns["label"] = (~happened[members]).astype(np.int32)
        tables.append((as_of, columns))
    return tables
