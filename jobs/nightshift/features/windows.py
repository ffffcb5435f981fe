"""Where windows lie in tiles, and what a request may know.

A request is an entity at an instant, with what was known before a day. A window is a run of the
entity's tiles: two positions found by search, for any number of requests at once.

A request whose entity has rows that it must not know is answered from a copy of its tiles without
them; all others share the tiles as they are.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import cached_property

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
    prefix_sums,
    segment_starts,
    wide,
)
from nightshift.spec import AGGREGATIONS, Feature, Measure

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

FOREVER = np.iinfo(np.int64).max // 4
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

    def __post_init__(self) -> None:
        for name in ("entity", "time_us", "known_day"):
            object.__setattr__(self, name, wide(getattr(self, name)))

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
class Asked:
    """One feature with what it is taken of."""

    feature: Feature
    measure: Measure
    kind: str
    values: Floats | None = None
    """Of a measure through another entity: the value of each code."""

    @property
    def scale(self) -> int:
        return DECIMAL_SCALE if self.kind == "decimal" else 1


def null_of(feature: Feature, size: int) -> Array:
    """A feature over no events, ``size`` times."""
    if feature.type == "string":
        return np.full(size, -1)
    return np.full(size, np.nan if AGGREGATIONS[feature.aggregation].empty is None else 0.0)


def divided(above: Array, below: Array) -> Floats:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(below == 0, np.nan, above / below)


@dataclass(frozen=True)
class Segments:
    """One window of every request, as rows ``[start, end)``, with the sums over it so far."""

    start: Ints
    end: Ints
    totals: dict[str, Array] = field(default_factory=dict)


class Timeline:
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
            return np.full(len(requests), -FOREVER), until
        return until - feature.window * per_day, until


class Answers(ABC):
    """Rows that answer requests; a request that must not know all of them asks a part of them."""

    def __init__(self, rows: Grid | Items, resolution: Resolution) -> None:
        self.rows = rows
        self.resolution: Resolution = resolution
        self.unit = DAY_US if resolution == "day" else 1

    @property
    @abstractmethod
    def timeline(self) -> Timeline:
        """The rows by entity and time."""

    @abstractmethod
    def features(self, requests: Requests, wanted: Sequence[Asked]) -> dict[str, Array]:
        """The wanted features, from all rows."""

    def answer(self, requests: Requests, wanted: Sequence[Asked]) -> dict[str, Array]:
        """The wanted features, each request seeing only what it may know."""
        unknown = self._has_unknown(requests, min(asked.feature.lag for asked in wanted))
        if not unknown.any():
            return self.features(requests, wanted)
        result = {asked.feature.name: null_of(asked.feature, len(requests)) for asked in wanted}

        def fill(answers: "Answers", rows: Ints, some: Sequence[Asked]) -> None:
            for name, values in answers.features(requests.take(rows), some).items():
                result[name][rows] = values

        fill(self, np.flatnonzero(~unknown), wanted)
        late = np.flatnonzero(unknown)
        late = late[np.argsort(requests.known_day[late], kind="stable")]
        # What looks back some days needs but those days of an entity with a long history.
        bounded = [asked for asked in wanted if asked.feature.window is not None]
        unbounded = [asked for asked in wanted if asked.feature.window is None]
        for rows in np.split(late, segment_starts(requests.known_day[late])[1:]):
            for some in (bounded, unbounded):
                if some:
                    fill(self._known_part(requests.take(rows), some), rows, some)
        return result

    def _known_part(self, requests: Requests, wanted: Sequence[Asked]) -> "Answers":
        """The rows that these requests, which know the same day, may know and look at."""
        rows, entities = self.rows, np.unique(requests.entity)
        first = np.searchsorted(rows.entity, entities, "left")
        last = np.searchsorted(rows.entity, entities, "right")
        seen = laid_out(first, last)
        is_seen = rows.known[seen] < requests.known_day[0]
        reach = max(_reach(asked.feature) for asked in wanted)
        lag = min(asked.feature.lag for asked in wanted)
        time = rows.time[seen]
        is_seen &= time >= (int(requests.time_us.min()) - reach * DAY_US) // self.unit
        is_seen &= time < (int(requests.time_us.max()) - lag * DAY_US) // self.unit
        return type(self)(rows.take(seen[is_seen]), self.resolution)

    def _has_unknown(self, requests: Requests, lag: int) -> Bools:
        """Whether the entity has a row before the window's end that is not known at the request."""
        rows, none = self.rows, np.zeros(len(requests), bool)
        if not len(requests) or not len(rows.known) or rows.known.max() < requests.known_day.min():
            return none
        until = requests.time_us // self.unit - lag * (DAY_US // self.unit)
        if (until == until[0]).all() and (requests.known_day == requests.known_day[0]).all():
            is_late = (rows.known >= requests.known_day[0]) & (rows.time < until[0])
            has_late = np.zeros(max(int(rows.entity[-1]), int(requests.entity.max())) + 1, bool)
            has_late[rows.entity[is_late]] = True
            return has_late[requests.entity]
        return self.timeline.has_unknown(requests, until)


def _reach(feature: Feature) -> int:
    """How many days before the instant a window begins."""
    return FOREVER // DAY_US if feature.window is None else feature.window + feature.lag


def laid_out(start: Ints, end: Ints) -> Ints:
    """The positions of all ``[start, end)``, one segment after the other."""
    length = end - start
    first = np.repeat(start - (np.cumsum(length) - length), length)
    return first + np.arange(len(first))


def chunks(asked: Asked, start: Ints, end: Ints) -> Iterator[tuple[slice, Ints, Ints, Ints]]:
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
        yield part, laid_out(start[part], end[part]), segment, segment_starts(segment)
        first = last


def joined(high: Ints, low: Ints) -> Floats:
    """The nearest double to ``high · 2^32 + low``."""
    return (high + (low >> 32)) * 2.0**32 + (low & 0xFFFFFFFF)


def slopes(
    asked: Asked,
    timeline: Timeline,
    time: Ints,
    requests: Requests,
    segments: Segments,
    totals: Array,
) -> Floats:
    """Least squares of daily totals on the day; days are counted from the window's start.

    With d = 0 … n − 1 the slope is Σ (d − (n − 1)/2) y / (n (n² − 1) / 12).
    """
    days = asked.feature.window
    assert days is not None  # held by FeatureGroup
    since, _ = timeline.edges(requests, asked.feature)
    result = np.zeros(len(requests))
    for part, rows, segment, starts in chunks(asked, segments.start, segments.end):
        if not len(rows):
            continue
        day = (time[rows] - since[part][segment]) // (DAY_US // timeline.unit)
        weight, values = 2 * day - (days - 1), totals[rows]
        if values.dtype == np.int64:
            sums = joined(
                np.add.reduceat(weight * (values >> 32), starts),
                np.add.reduceat(weight * (values & 0xFFFFFFFF), starts),
            )
        else:
            sums = np.add.reduceat(weight * values, starts)
        result[part][segment[starts]] = sums * 6 / (days * (days**2 - 1)) / asked.scale
    return result
