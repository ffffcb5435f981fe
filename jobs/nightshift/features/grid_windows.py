"""Features from the columns of tiles: counts, sums, extremes, first and last, gaps, slopes.

Counts and sums are differences of prefix sums, exact as integers; extremes come from runs of
doubling length where windows overlap.
"""

from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise

import numpy as np

from nightshift.features.tiles import (
    DAY_US,
    Array,
    Grid,
    Resolution,
    column_name,
    prefix_sums,
    segment_starts,
    sort_key,
    tile_name,
)
from nightshift.features.windows import (
    Answers,
    Asked,
    Floats,
    Ints,
    Requests,
    Segments,
    Timeline,
    divided,
    joined,
    null_of,
    slopes,
)
from nightshift.spec import Measure


class GridWindows(Answers):
    """What is made of a grid's columns."""

    def __init__(self, grid: Grid, resolution: Resolution) -> None:
        super().__init__(grid, resolution)
        self.grid = grid
        self._sums: dict[str, _Sums] = {}
        self._runs: dict[str, _Run] = {}

    @cached_property
    def timeline(self) -> Timeline:
        """The tiles by entity and time."""
        return Timeline(self.grid.entity, self.grid.time, self.grid.known, self.resolution)

    def features(self, requests: Requests, wanted: Sequence[Asked]) -> dict[str, Array]:
        """The wanted features, from all tiles."""
        found: dict[tuple[int | None, int], Segments] = {}
        extremes: dict[str, list[tuple[Asked, Segments]]] = {}
        result: dict[str, Array] = {}
        for asked in wanted:
            feature = asked.feature
            window = (feature.window, feature.lag)
            if window not in found:
                found[window] = Segments(*self.timeline.bounds(requests, feature))
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

    def _feature(self, asked: Asked, requests: Requests, segments: Segments) -> Array:
        aggregation, measure = asked.feature.aggregation, asked.measure
        if aggregation == "slope":
            totals = self.grid.columns[column_name("sum", measure)]
            return slopes(asked, self.timeline, self.grid.time, requests, segments, totals)
        if aggregation in ("days_since_last", "days_since_first", "last") or (
            aggregation.startswith("gap_")
        ):
            return self._run(measure).feature(asked, requests, segments)
        if aggregation == "count":
            return self._total("count", measure, segments).astype(np.float64)
        total = self._total("hits" if aggregation == "share" else "sum", measure, segments)
        if aggregation == "sum":
            return total / asked.scale
        return divided(total / asked.scale, self._total("count", measure, segments))

    def _total(self, what: str, measure: Measure, segments: Segments) -> Array:
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
        return joined(high[end] - high[start], low[end] - low[start])


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
        tile = np.repeat(np.arange(len(self._same)), self._lengths)
        several = np.flatnonzero(self._lengths[tile] > 1)
        order = np.lexsort((values[several], known[several], latest[several], tile[several]))
        ends = np.cumsum(self._lengths[self._lengths > 1]) - 1
        values = values.copy()
        values[several] = np.repeat(values[several][order][ends], self._lengths[self._lengths > 1])
        return values

    def feature(self, asked: Asked, requests: Requests, segments: Segments) -> Array:
        """One feature over segments of the grid."""
        start, end = self._rank[segments.start], self._rank[segments.end]
        feature = asked.feature
        result = null_of(feature, len(requests))
        rows = np.flatnonzero(end > start)
        start, end, at = start[rows], end[rows], requests.time_us[rows]
        if feature.aggregation == "days_since_last":
            result[rows] = (at - self.latest[end - 1]) / DAY_US
        elif feature.aggregation == "days_since_first":
            result[rows] = (at - self.earliest[start]) / DAY_US
        elif feature.aggregation == "last":
            values = self.last[end - 1]
            if asked.values is not None:  # of the entity that the last row names
                values = asked.values[values]
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
            return divided(total, count)
        squares = self._squares[end] - self._squares[start + 1]
        spread = np.maximum(count, 2)
        deviation = np.sqrt((count * squares - total * total) / (spread * (spread - 1)))
        return np.where(count > 1, deviation, np.nan)


def _extremes(values: Array, windows: Sequence[Segments], ufunc: np.ufunc) -> list[Array]:
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
