"""Features at requests: windows over tiles, for snapshots, events and candidates alike.

A request is an entity at an instant, with what was known before a day. A window is a run of the
entity's tiles: two positions found by binary search, for any number of requests at once. Counts
and sums are differences of prefix sums (exact, as integers), extremes come from runs of doubling
length, distinct values are the pairs with an item whose newest occurrence lies in the window.

A request whose entity has rows that it must not know is answered from a copy of its tiles without
them; all others share the tiles as they are.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from functools import cached_property
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from nightshift.errors import NightshiftError
from nightshift.features.tiles import (
    DAY_US,
    DECIMAL_SCALE,
    EPOCH,
    Array,
    Grid,
    Items,
    Resolution,
    Tiles,
    column_name,
    from_ordered_bits,
    is_by_item,
    prefix_sums,
    segment_starts,
    sort_key,
    sorting,
    tile_name,
)
from nightshift.spec import AGGREGATIONS, Feature, FeatureGroup, Measure, Ratio, Through

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

_FOREVER = np.iinfo(np.int64).max // 4
_CHUNK = 1 << 20
"""Rows of windows that are laid side by side at once."""
_MOST_ROWS = 10**10
"""Rows that one feature may go through, window by window: minutes, not days."""


@dataclass(frozen=True)
class Requests:
    """Entities at instants, all arrays of length m, in any order.

    Attributes:
        entity: int64 codes; a code without rows is an entity without events.
        time_us: the instant; rows before it are seen, as far as windows reach.
        known_day: rows that became known before this day are seen, days since 1970-01-01.
    """

    entity: Ints
    time_us: Ints
    known_day: Ints

    @classmethod
    def snapshot(cls, entity: Ints, as_of: date, known_as_of: date | None = None) -> "Requests":
        """Entities at ``as_of`` 00:00, knowing what landed before ``known_as_of`` (as_of)."""
        day, known = ((d - EPOCH).days for d in (as_of, known_as_of or as_of))
        size = len(entity)
        return cls(entity, np.full(size, day * DAY_US), np.full(size, known))

    def take(self, rows: Array) -> "Requests":
        """The requests at these positions."""
        return Requests(self.entity[rows], self.time_us[rows], self.known_day[rows])

    def __len__(self) -> int:
        return len(self.entity)


@dataclass(frozen=True)
class _Asked:
    """One feature with what it is taken of."""

    feature: Feature
    measure: Measure
    kind: str
    values: Floats | None = None
    """Of a measure through another entity: the value of each code."""

    @property
    def scale(self) -> int:
        return DECIMAL_SCALE if self.kind == "decimal" else 1


class Windows:
    """The features of some groups over their tiles, ready to answer requests."""

    def __init__(self, groups: Sequence[FeatureGroup], tiles: Tiles) -> None:
        self._tiles = tiles
        self._names: list[str] = []
        self._through = [m for g in groups for m in g.measures if isinstance(m, Through)]
        self._quotients: list[Ratio] = []
        asked_of: dict[tuple[bool, str], list[_Asked]] = {}
        for group in groups:
            self._quotients += group.quotients
            self._names += group.feature_names
            for feature in group.features:
                measure = group.measure(feature.measure)
                by_item = is_by_item(group, feature)
                of = (by_item, tile_name(measure) if by_item else measure.known or "")
                asked_of.setdefault(of, []).append(_Asked(feature, measure, group.type_of(measure)))
        self._asked: list[tuple[_Answers, list[_Asked]]] = [
            (
                _ItemWindows(tiles.items[name], tiles.resolution)
                if by_item
                else _GridWindows(tiles.grids[name], tiles.resolution),
                asked,
            )
            for (by_item, name), asked in asked_of.items()
        ]

    def features(
        self, requests: Requests, related: Mapping[str, Floats] | None = None
    ) -> dict[str, Array]:
        """Each feature of the groups, in declared order.

        Args:
            requests: where to take them.
            related: for each measure through another entity, by name: the value of each code of
                its column as seen at the requests' instant, NaN for null. All requests then have
                the same instant and known day.

        Returns:
            Name → array as long as the requests: float64 with NaN for null, or of text int64 codes
            with −1 for null.

        Raises:
            NightshiftError: a measure through another entity has no values; or windows of too many
                events overlap, of a feature that goes through each.
            ValueError: an instant within a day is asked of tiles of days, or several instants at
                once of features through other entities.
        """
        if self._tiles.resolution == "day" and (requests.time_us % DAY_US).any():
            raise ValueError("tiles of days answer for midnights only; reduce rows to instants")
        if self._through and len(np.unique(requests.time_us)) > 1:
            raise ValueError("features through other entities are asked for one instant at a time")
        for through in self._through:
            if through.name not in (related or {}):
                raise NightshiftError(
                    f"measure {through.name!r} is of {through.feature} of {through.group.name}, "
                    "which was not computed before it",
                    "give its values at the requests' instant as `related`",
                )
        # Searches in the order of what is searched stay in the processor's caches.
        order = sorting(sort_key(requests.entity, requests.time_us))
        if order is None:
            return self._features(requests, related or {})
        found = self._features(requests.take(order), related or {})
        back = np.empty(len(order), np.int64)
        back[order] = np.arange(len(order))
        return {name: values[back] for name, values in found.items()}

    def _features(self, requests: Requests, related: Mapping[str, Floats]) -> dict[str, Array]:
        found: dict[str, Array] = {}
        for answers, wanted in self._asked:
            if related:
                wanted = [replace(a, values=related.get(a.measure.name)) for a in wanted]
            found |= answers.answer(requests, wanted)
        for ratio in self._quotients:
            found[ratio.name] = _divided(found[ratio.numerator], found[ratio.denominator])
        return {name: found[name] for name in self._names}


def features(
    groups: Sequence[FeatureGroup],
    tiles: Tiles,
    requests: Requests,
    related: Mapping[str, Floats] | None = None,
) -> dict[str, Array]:
    """Each feature of the groups at each request: see :meth:`Windows.features`."""
    return Windows(groups, tiles).features(requests, related)


def _divided(above: Array, below: Array) -> Floats:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(below == 0, np.nan, above / below)


class _Timeline:
    """Rows (tiles or items) by entity and time, and where windows begin and end in them."""

    def __init__(self, entity: Ints, time: Ints, known: Ints, resolution: Resolution) -> None:
        self.entity, self.time, self.known = entity, time, known
        self.unit = DAY_US if resolution == "day" else 1
        if len(entity):
            low, high = int(time.min()), int(time.max())
            self._entities = int(entity[-1]) + 1
            self._ranks: Ints | None = None
            self._low, self._span = low, high - low + 2
            if self._entities * self._span >= 2**62:
                self._ranks = np.unique(time)
                self._low, self._span = 0, len(self._ranks) + 1
                time = np.searchsorted(self._ranks, time)
            self._key = entity * self._span + (time - self._low)
            self._day = int(known.min())
            self._days = int(known.max()) - self._day + 1
            # Of an entity's rows up to here, the day on which the last became known.
            self._known_by = np.maximum.accumulate(entity * (self._days + 1) + (known - self._day))

    def positions(self, entity: Ints, time: Ints) -> Ints:
        """For each pair, where the entity's rows at ``time`` or later begin."""
        if not len(self.entity):
            return np.zeros(len(entity), np.int64)
        entity = np.minimum(entity, self._entities)  # those beyond have no rows
        if len(entity) * 8 > len(self.entity) and (time == time[0]).all():
            return self._positions_at(int(time[0]))[entity]
        rank = time if self._ranks is None else np.searchsorted(self._ranks, time)
        rank = np.clip(rank - self._low, 0, self._span - 1)
        return np.searchsorted(self._key, entity * self._span + rank)

    def _positions_at(self, time: int) -> Ints:
        """Of every entity, where its rows at ``time`` or later begin; then the number of rows."""
        first, present = self._first
        before = np.add.reduceat((self.time < time).view(np.int8), first[present], dtype=np.int64)
        position = first.copy()
        position[present] += before
        return position

    @cached_property
    def _first(self) -> tuple[Ints, Ints]:
        """Where each entity's rows begin, and at last their number; the entities that have any."""
        counts = np.bincount(self.entity, minlength=self._entities)
        return prefix_sums(counts), np.flatnonzero(counts)

    def has_unknown(self, requests: Requests, until: Ints) -> Bools:
        """Whether the entity has a row before ``until`` that became known on the day or later."""
        if not len(self.entity):
            return np.zeros(len(requests), bool)
        end = self.positions(requests.entity, until)
        day = np.clip(requests.known_day - self._day, 0, self._days)
        limit = requests.entity * (self._days + 1) + day
        return (end > 0) & (self._known_by[end - 1] >= limit)

    def bounds(self, requests: Requests, feature: Feature) -> tuple[Ints, Ints]:
        """The first row of each request's window, and the first after it."""
        since, until = self.edges(requests, feature)
        start = self.positions(requests.entity, since)
        return start, np.maximum(start, self.positions(requests.entity, until))

    def edges(self, requests: Requests, feature: Feature) -> tuple[Ints, Ints]:
        """The instants (in units of the resolution) between which a window lies."""
        per_day = DAY_US // self.unit
        until = requests.time_us // self.unit - feature.lag * per_day
        if feature.window is None:
            return np.full(len(requests), -_FOREVER), until
        return until - feature.window * per_day, until


def _laid_out(start: Ints, end: Ints) -> Ints:
    """The positions of all ``[start, end)``, one segment after the other."""
    length = end - start
    first = np.repeat(start - (np.cumsum(length) - length), length)
    return first + np.arange(len(first))


def _chunks(asked: _Asked, start: Ints, end: Ints) -> Iterator[tuple[slice, Ints, Ints, Ints]]:
    """Segments laid side by side, a million rows at a time: which segments (a slice), their
    rows, the segment of each row within the slice, where each segment that is not empty begins."""
    total = np.cumsum(end - start)
    if len(total) and total[-1] > _MOST_ROWS:
        raise NightshiftError(
            f"{asked.feature.name} would go through {int(total[-1]):,} rows: its windows hold up "
            f"to {int((end - start).max()):,} events of one entity, at each of many instants",
            "shorten the window, or take another aggregation: count, sum, mean, min, max, distinct "
            "and rates take no longer for long windows",
        )
    first = 0
    while first < len(start):
        before = int(total[first - 1]) if first else 0
        last = max(first + 1, int(np.searchsorted(total, before + _CHUNK, "right")))
        part = slice(first, last)
        length = end[part] - start[part]
        segment = np.repeat(np.arange(len(length)), length)
        yield part, _laid_out(start[part], end[part]), segment, segment_starts(segment)
        first = last


class _Answers(ABC):
    """Rows that answer requests; a request that must not know all of them asks a part of them."""

    def __init__(self, rows: Grid | Items, resolution: Resolution) -> None:
        self.rows = rows
        self.resolution: Resolution = resolution

    @property
    @abstractmethod
    def timeline(self) -> _Timeline:
        """The rows by entity and time."""

    @abstractmethod
    def features(self, requests: Requests, wanted: Sequence[_Asked]) -> dict[str, Array]:
        """The wanted features, from all rows."""

    def answer(self, requests: Requests, wanted: Sequence[_Asked]) -> dict[str, Array]:
        """The wanted features, each request seeing only what it may know."""
        unknown = self._has_unknown(requests, min(asked.feature.lag for asked in wanted))
        if not unknown.any():
            return self.features(requests, wanted)
        result = {asked.feature.name: _null(asked.feature, len(requests)) for asked in wanted}
        parts = [(self, np.flatnonzero(~unknown))]
        late = np.flatnonzero(unknown)
        late = late[np.argsort(requests.known_day[late], kind="stable")]
        for asking in np.split(late, segment_starts(requests.known_day[late])[1:]):
            day = int(requests.known_day[asking[0]])
            entities = np.unique(requests.entity[asking])
            first = np.searchsorted(self.rows.entity, entities, "left")
            last = np.searchsorted(self.rows.entity, entities, "right")
            seen = _laid_out(first, last)
            seen = seen[self.rows.known[seen] < day]
            parts.append((type(self)(self.rows.take(seen), self.resolution), asking))
        for answers, asking in parts:
            for name, values in answers.features(requests.take(asking), wanted).items():
                result[name][asking] = values
        return result

    def _has_unknown(self, requests: Requests, lag: int) -> Bools:
        """Whether the entity has a row before the window's end that is not known at the request."""
        rows, none = self.rows, np.zeros(len(requests), bool)
        if not len(requests) or not len(rows.known) or rows.known.max() < requests.known_day.min():
            return none
        unit = DAY_US if self.resolution == "day" else 1
        until = requests.time_us // unit - lag * (DAY_US // unit)
        if (until == until[0]).all() and (requests.known_day == requests.known_day[0]).all():
            is_late = (rows.known >= requests.known_day[0]) & (rows.time < until[0])
            has_late = np.zeros(max(int(rows.entity[-1]), int(requests.entity.max())) + 1, bool)
            has_late[rows.entity[is_late]] = True
            return has_late[requests.entity]
        return self.timeline.has_unknown(requests, until)


def _null(feature: Feature, size: int) -> Array:
    """A feature over no events, ``size`` times."""
    if feature.type == "string":
        return np.full(size, -1)
    return np.full(size, np.nan if AGGREGATIONS[feature.aggregation].empty is None else 0.0)


class _GridWindows(_Answers):
    """What is made of a grid's columns."""

    def __init__(self, grid: Grid, resolution: Resolution) -> None:
        super().__init__(grid, resolution)
        self.grid = grid
        self._sums: dict[str, _Sums] = {}
        self._runs: dict[str, _Run] = {}

    @cached_property
    def timeline(self) -> _Timeline:
        """The tiles by entity and time."""
        return _Timeline(self.grid.entity, self.grid.time, self.grid.known, self.resolution)

    def features(self, requests: Requests, wanted: Sequence[_Asked]) -> dict[str, Array]:
        """The wanted features, from all tiles."""
        found: dict[tuple[int | None, int], _Segments] = {}
        extremes: dict[str, list[tuple[_Asked, _Segments]]] = {}
        result: dict[str, Array] = {}
        for asked in wanted:
            feature = asked.feature
            window = (feature.window, feature.lag)
            if window not in found:
                found[window] = _Segments(*self.timeline.bounds(requests, feature))
            if feature.aggregation in ("min", "max"):
                column = column_name(feature.aggregation, asked.measure)
                extremes.setdefault(column, []).append((asked, found[window]))
            else:
                result[feature.name] = self._feature(asked, requests, found[window])
        for column, group in extremes.items():
            ufunc = np.minimum if column.startswith("min") else np.maximum
            values = _extremes(self.grid.columns[column], [s for _, s in group], ufunc)
            for (asked, segments), extreme in zip(group, values, strict=True):
                is_empty = self._total("count", asked.measure, segments) == 0
                result[asked.feature.name] = np.where(is_empty, np.nan, extreme / asked.scale)
        return result

    def _feature(self, asked: _Asked, requests: Requests, segments: "_Segments") -> Array:
        aggregation, measure = asked.feature.aggregation, asked.measure
        if aggregation == "slope":
            totals = self.grid.columns[column_name("sum", measure)]
            return _slopes(asked, self.timeline, self.grid.time, requests, segments, totals)
        if aggregation in ("days_since_last", "days_since_first", "last") or (
            aggregation.startswith("gap_")
        ):
            return self._run(measure).feature(asked, requests, segments)
        if aggregation == "count":
            return self._total("count", measure, segments).astype(np.float64)
        total = self._total("hits" if aggregation == "share" else "sum", measure, segments)
        if aggregation == "sum":
            return total / asked.scale
        return _divided(total / asked.scale, self._total("count", measure, segments))

    def _total(self, what: str, measure: Measure, segments: "_Segments") -> Array:
        """The exact sum of each segment: int64, or the nearest double where that overflows."""
        column = column_name(what, measure)
        if column not in segments.totals:
            start, end = segments.start, segments.end
            if column not in self._sums:
                self._sums[column] = _Sums(self.grid.columns[column])
            segments.totals[column] = self._sums[column].between(start, end)
        return segments.totals[column]

    def _run(self, measure: Measure) -> "_Run":
        name = tile_name(measure)
        if name not in self._runs:
            self._runs[name] = _Run(self.grid, measure, self.resolution)
        return self._runs[name]


@dataclass(frozen=True)
class _Segments:
    """One window of every request, as rows ``[start, end)``, with the sums over it so far."""

    start: Ints
    end: Ints
    totals: dict[str, Array] = field(default_factory=dict)


class _Sums:
    """Exact sums of any segments of a column."""

    def __init__(self, values: Ints) -> None:
        self._values = values
        self._largest = max(-int(values.min()), int(values.max())) if len(values) else 0
        self._sums = prefix_sums(values)

    def between(self, start: Ints, end: Ints) -> Array:
        """The sum of each ``values[start:end]``; doubles where int64 might not hold all."""
        if self._largest * int((end - start).max(initial=0)) < 2**63:
            return self._sums[end] - self._sums[start]
        high, low = prefix_sums(self._values >> 32), prefix_sums(self._values & 0xFFFFFFFF)
        return _joined(high[end] - high[start], low[end] - low[start])


def _joined(high: Ints, low: Ints) -> Floats:
    """The nearest double to ``high · 2^32 + low``."""
    return (high + (low >> 32)) * 2.0**32 + (low & 0xFFFFFFFF)


def _slopes(
    asked: _Asked,
    timeline: _Timeline,
    time: Ints,
    requests: Requests,
    segments: _Segments,
    totals: Array,
) -> Floats:
    """Least squares of daily totals on the day; days are counted from the window's start.

    With d = 0 … n − 1 the slope is Σ (d − (n − 1)/2) y / (n (n² − 1) / 12).
    """
    days = asked.feature.window
    assert days is not None  # held by FeatureGroup
    since, _ = timeline.edges(requests, asked.feature)
    result = np.zeros(len(requests))
    for part, rows, segment, starts in _chunks(asked, segments.start, segments.end):
        if not len(rows):
            continue
        day = (time[rows] - since[part][segment]) // (DAY_US // timeline.unit)
        weight, values = 2 * day - (days - 1), totals[rows]
        if values.dtype == np.int64:
            sums = _joined(
                np.add.reduceat(weight * (values >> 32), starts),
                np.add.reduceat(weight * (values & 0xFFFFFFFF), starts),
            )
        else:
            sums = np.add.reduceat(weight * values, starts)
        result[part][segment[starts]] = sums * 6 / (days * (days**2 - 1)) / asked.scale
    return result


class _Run:
    """The tiles with a row of one measure, in time: last and first, and the gaps between days."""

    def __init__(self, grid: Grid, measure: Measure, resolution: Resolution) -> None:
        has = grid.columns[column_name("count", measure)] > 0
        self._rank = prefix_sums(has)
        rows = np.flatnonzero(has)
        self.entity, self.time = grid.entity[rows], grid.time[rows]
        self.day = self.time if resolution == "day" else self.time // DAY_US
        # A day's tiles differ in when they became known, not in order of time.
        self._same = segment_starts(sort_key(self.entity, self.time))
        self._lengths = np.diff(np.append(self._same, len(rows)))
        columns = {
            what: grid.columns[column][rows]
            for what in ("earliest", "latest", "last")
            if (column := column_name(what, measure)) in grid.columns
        }
        self.latest = self._spread(columns.get("latest", self.time), np.maximum)
        self.earliest = self._spread(columns.get("earliest", self.time), np.minimum)
        if "last" in columns:
            self.last = self._last(
                columns["last"], columns.get("latest", self.time), grid.known[rows]
            )
        is_new = np.zeros(len(rows), bool)
        gap = np.zeros(len(rows), np.int64)
        if len(rows):
            same_entity = self.entity[1:] == self.entity[:-1]
            gap[1:] = np.where(same_entity, self.day[1:] - self.day[:-1], 0)
            is_new[1:] = gap[1:] > 0
        self._gap = gap
        self._gaps, self._squares = prefix_sums(is_new), prefix_sums(gap * gap)
        self._newest = np.maximum.accumulate(np.where(is_new, np.arange(len(rows)), -1))

    def _spread(self, values: Ints, ufunc: np.ufunc) -> Ints:
        if len(self._same) == len(values):
            return values
        return np.repeat(ufunc.reduceat(values, self._same), self._lengths)

    def _last(self, values: Array, latest: Ints, known: Ints) -> Array:
        """The value of the last instant of each time; of several the last known, the greatest."""
        if len(self._same) == len(values):
            return values
        order = np.lexsort(
            (values, known, latest, np.repeat(np.arange(len(self._same)), self._lengths))
        )
        return np.repeat(values[order][self._same + self._lengths - 1], self._lengths)

    def feature(self, asked: _Asked, requests: Requests, segments: _Segments) -> Array:
        """One feature over segments of the grid."""
        start, end = self._rank[segments.start], self._rank[segments.end]
        feature = asked.feature
        result = _null(feature, len(requests))
        rows = np.flatnonzero(end > start)
        start, end, at = start[rows], end[rows], requests.time_us[rows]
        if feature.aggregation == "days_since_last":
            result[rows] = (at - self.latest[end - 1]) / DAY_US
        elif feature.aggregation == "days_since_first":
            result[rows] = (at - self.earliest[start]) / DAY_US
        elif feature.aggregation == "last":
            values = self.last[end - 1]
            result[rows] = values if feature.type == "string" else values / asked.scale
        else:
            result[rows] = self._gap_feature(feature.aggregation, start, end)
        return result

    def _gap_feature(self, aggregation: str, start: Ints, end: Ints) -> Floats:
        count = self._gaps[end] - self._gaps[start + 1]
        if aggregation == "gap_last":
            newest = self._newest[end - 1]
            return np.where(count > 0, self._gap[newest], np.nan)
        total = self.day[end - 1] - self.day[start]
        if aggregation == "gap_mean":
            return _divided(total, count)
        squares = self._squares[end] - self._squares[start + 1]
        spread = np.maximum(count, 2)
        deviation = np.sqrt((count * squares - total * total) / (spread * (spread - 1)))
        return np.where(count > 1, deviation, np.nan)


def _extremes(values: Array, windows: Sequence[_Segments], ufunc: np.ufunc) -> list[Array]:
    """The extreme of each segment of each window; meaningless where it is empty."""
    if all((w.end[:-1] <= w.start[1:]).all() for w in windows):
        return [_apart(values, w.start, w.end, ufunc) for w in windows]
    start, end = (np.concatenate([getattr(w, name) for w in windows]) for name in ("start", "end"))
    return np.split(_overlapping(values, start, end, ufunc), len(windows))


def _apart(values: Array, start: Ints, end: Ints, ufunc: np.ufunc) -> Array:
    result = np.zeros(len(start), values.dtype)
    filled = np.flatnonzero(end > start)
    bounds = np.stack([start[filled], end[filled]], axis=1).ravel()
    # The last segment may end with the rows, where no position is.
    bounds = bounds[:-1] if len(bounds) and bounds[-1] == len(values) else bounds
    if len(bounds):
        result[filled] = ufunc.reduceat(values, bounds)[::2]
    return result


def _overlapping(values: Array, start: Ints, end: Ints, ufunc: np.ufunc) -> Array:
    """Two runs of the greatest power of two within a segment cover it; the runs of each length
    are made of those of half the length."""
    result = np.zeros(len(start), values.dtype)
    level = np.frexp(end - start)[1] - 1
    order = np.argsort(level, kind="stable")
    edges = np.searchsorted(level[order], np.arange(level.max(initial=-1) + 2))
    for step, (first, last) in enumerate(pairwise(edges)):
        at = order[first:last]
        result[at] = ufunc(values[start[at]], values[end[at] - (1 << step)])
        values = ufunc(values[: -(1 << step)], values[1 << step :])
    return result


class _ItemWindows(_Answers):
    """What is made of the single values of a measure."""

    def __init__(self, items: Items, resolution: Resolution) -> None:
        super().__init__(items, resolution)
        self.items = items

    @cached_property
    def by_time(self) -> Items:
        """The items by entity and time."""
        items = self.items
        order = sorting(sort_key(items.entity, items.time, items.known, items.item))
        return items if order is None else items.take(order)

    @cached_property
    def timeline(self) -> _Timeline:
        """The same as ``by_time``."""
        items = self.by_time
        return _Timeline(items.entity, items.time, items.known, self.resolution)

    def features(self, requests: Requests, wanted: Sequence[_Asked]) -> dict[str, Array]:
        """The wanted features, from all items."""
        distinct = [asked for asked in wanted if asked.feature.aggregation == "distinct"]
        at_instants = self.resolution == "instant"
        result = self._distinct_at_cuts(requests, () if at_instants else distinct)
        for asked in wanted:
            feature = asked.feature
            if feature.aggregation == "distinct" and not at_instants:
                continue
            segments = _Segments(*self.timeline.bounds(requests, feature))
            start, end = segments.start, segments.end
            if isinstance(asked.measure, Through):
                result[feature.name] = self._through(asked, start, end)
            elif feature.aggregation == "distinct":
                # Of those in the window, the ones that occur there for the first time.
                first = _count_below(self._previous, start, end, start + 1)
                result[feature.name] = first.astype(np.float64)
            elif feature.aggregation == "entropy":
                result[feature.name] = self._entropy(asked, start, end)
            elif feature.aggregation == "slope":
                totals = self._numbers(asked) * self.by_time.count
                result[feature.name] = _slopes(
                    asked, self.timeline, self.by_time.time, requests, segments, totals
                )
            else:
                result[feature.name] = self._moment(asked, start, end)
        return result

    def _distinct_at_cuts(self, requests: Requests, wanted: Sequence[_Asked]) -> dict[str, Array]:
        """Distinct counts where many requests share a cut: one pass over the items a cut.

        A window up to the cut holds the pairs whose newest occurrence before the cut lies in it.
        """
        result: dict[str, Array] = {a.feature.name: np.zeros(len(requests)) for a in wanted}
        items = self.items
        if not len(items.entity):
            return result
        entities = int(items.entity[-1]) + 1
        known = requests.entity < entities
        for lag in {asked.feature.lag for asked in wanted}:
            features = [asked.feature for asked in wanted if asked.feature.lag == lag]
            lengths = sorted({_FOREVER if f.window is None else f.window for f in features})
            longest = max((length for length in lengths if length < _FOREVER), default=0)
            shortest = np.searchsorted(lengths, np.arange(longest + 2))
            untils = requests.time_us // DAY_US - lag
            for until in map(int, np.unique(untils)):
                newest = np.flatnonzero((self._time < until) & (self._next_time >= until))
                # The shortest window that holds each pair, and so all longer ones do.
                age = np.minimum(until - self._time[newest], len(shortest) - 1)
                code = items.entity[newest] * (len(lengths) + 1) + shortest[age]
                pairs = np.bincount(code, minlength=entities * (len(lengths) + 1))
                counts = pairs.reshape(entities, -1).cumsum(axis=1)
                at = np.flatnonzero(known & (untils == until))
                for feature in features:
                    length = _FOREVER if feature.window is None else feature.window
                    column = counts[:, lengths.index(length)]
                    result[feature.name][at] = column[requests.entity[at]]
        return result

    @cached_property
    def _time(self) -> npt.NDArray[np.int32]:
        """When each pair of entity and item occurs, in days: half the bytes to go through."""
        return self.items.time.astype(np.int32)

    @cached_property
    def _next_time(self) -> npt.NDArray[np.int32]:
        """When it occurs next."""
        items = self.items
        following = np.full(len(items.entity), np.iinfo(np.int32).max, np.int32)
        same = (items.entity[1:] == items.entity[:-1]) & (items.item[1:] == items.item[:-1])
        np.copyto(following[:-1], self._time[1:], where=same)
        return following

    @cached_property
    def _previous(self) -> Ints:
        """For each row by time: 1 + the row where its pair occurred before, or 0."""
        items = self.by_time
        order = np.lexsort((np.arange(len(items.entity)), items.item, items.entity))
        entity, item = items.entity[order], items.item[order]
        previous = np.zeros(len(order), np.int64)
        same = np.flatnonzero((entity[1:] == entity[:-1]) & (item[1:] == item[:-1]))
        previous[order[same + 1]] = order[same] + 1
        return previous

    def _numbers(self, asked: _Asked) -> Floats:
        item = self.by_time.item
        return from_ordered_bits(item) if asked.kind == "double" else item / asked.scale

    def _moment(self, asked: _Asked, start: Ints, end: Ints) -> Floats:
        """Sum, mean or standard deviation of each window's values, in their order."""
        aggregation = asked.feature.aggregation
        values, count = self._numbers(asked), self.by_time.count
        result = np.full(len(start), 0.0 if aggregation == "sum" else np.nan)
        for part, rows, segment, starts in _chunks(asked, start, end):
            if not len(rows):
                continue
            within = segment[starts]
            weight = count[rows]
            number = np.add.reduceat(weight, starts)
            if aggregation == "std":
                found = self._deviations(asked, rows, starts, weight, number)
            else:
                found = np.add.reduceat(values[rows] * weight, starts)
                found = found / number if aggregation == "mean" else found
            result[part][within] = found
        return result

    def _through(self, asked: _Asked, start: Ints, end: Ints) -> Floats:
        """An aggregate of the values that other entities have."""
        assert asked.values is not None  # held by Windows.features
        aggregation = asked.feature.aggregation
        result = np.full(len(start), 0.0 if aggregation == "sum" else np.nan)
        for part, rows, segment, _ in _chunks(asked, start, end):
            values = asked.values[self.by_time.item[rows]]
            has = ~np.isnan(values)
            # In the order of the values: codes, and so the items' order, differ between batches.
            order = np.lexsort((values[has], segment[has]))
            values, segment = values[has][order], segment[has][order]
            weight = self.by_time.count[rows][has][order]
            starts = segment_starts(segment)
            if not len(starts):
                continue
            if aggregation in ("min", "max"):
                ufunc = np.minimum if aggregation == "min" else np.maximum
                found = ufunc.reduceat(values, starts)
            else:
                found = np.add.reduceat(values * weight, starts)
                if aggregation == "mean":
                    found = found / np.add.reduceat(weight, starts)
            result[part][segment[starts]] = found
        return result

    def _deviations(
        self, asked: _Asked, rows: Ints, starts: Ints, weight: Ints, number: Ints
    ) -> Floats:
        """Sample standard deviations, in two passes: distances from the mean, then their squares.

        Distances are first taken from each window's first value, in integers where there are such,
        so that large values which hardly differ lose nothing.
        """
        lengths = np.diff(np.append(starts, len(rows)))
        item = self.by_time.item[rows]
        first = np.repeat(item[starts], lengths)
        if asked.kind == "double":
            distance = from_ordered_bits(item) - from_ordered_bits(first)
        else:
            difference = item - first
            is_wrapped = ((item ^ first) & (item ^ difference)) < 0
            distance = np.where(is_wrapped, item.astype(np.float64) - first, difference)
        mean = np.add.reduceat(weight * distance, starts) / number
        distance = distance - np.repeat(mean, lengths)
        squares = np.add.reduceat(weight * distance * distance, starts)
        return np.where(
            number > 1, np.sqrt(squares / np.maximum(number - 1, 1)) / asked.scale, np.nan
        )

    def _entropy(self, asked: _Asked, start: Ints, end: Ints) -> Floats:
        result = np.full(len(start), np.nan)
        for part, rows, segment, starts in _chunks(asked, start, end):
            if not len(rows):
                continue
            within = segment[starts]
            total = np.add.reduceat(self.by_time.count[rows], starts)
            key = sort_key(segment, self.by_time.item[rows])
            order = np.argsort(key)
            firsts = segment_starts(key[order])
            count = np.add.reduceat(self.by_time.count[rows][order], firsts)
            segment = segment[order][firsts]
            # Added up by size: codes of text, and so their order, differ from batch to batch.
            order = np.argsort(sort_key(segment, count))
            segment, count = segment[order], count[order]
            starts = segment_starts(segment)
            share = count / np.repeat(total, np.diff(np.append(starts, len(segment))))
            result[part][within] = np.add.reduceat(-share * np.log(share), starts)
        return result


def _count_below(values: Ints, start: Ints, end: Ints, limit: Ints) -> Ints:
    """How many of ``values[start:end]`` are below ``limit``, for each request.

    A wavelet matrix: values are split by one bit after the other, the highest first, and a window
    stays a run of rows on either side. Values and limits are at most 1 + the number of values.
    """
    count = np.zeros(len(start), np.int64)
    for bit in reversed(range((len(values) + 1).bit_length())):
        is_one = (values >> bit) & 1 == 1
        ones = prefix_sums(is_one)
        zeros = len(values) - int(ones[-1])
        above = (limit >> bit) & 1 == 1
        zero_start, zero_end = start - ones[start], end - ones[end]
        count += np.where(above, zero_end - zero_start, 0)
        start = np.where(above, zeros + ones[start], zero_start)
        end = np.where(above, zeros + ones[end], zero_end)
        values = np.concatenate([values[~is_one], values[is_one]])
    return count
