"""Features from the single values of tiles: distinct counts, entropy, deviations, sums of doubles.

At a cut, the distinct items of a window are those whose newest occurrence before the cut lies in
it. At instants they are those in the window that occur there for the first time.
"""

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt

from nightshift.features.tiles import (
    DAY_US,
    Array,
    Items,
    Resolution,
    from_ordered_bits,
    prefix_sums,
    segment_starts,
    sort_key,
    sorting,
)
from nightshift.features.windows import (
    FOREVER,
    Answers,
    Asked,
    Floats,
    Ints,
    Requests,
    Segments,
    Timeline,
    chunks,
    slopes,
)
from nightshift.spec import Through


class ItemWindows(Answers):
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
    def timeline(self) -> Timeline:
        """The same as ``by_time``."""
        items = self.by_time
        return Timeline(items.entity, items.time, items.known, self.resolution)

    def features(self, requests: Requests, wanted: Sequence[Asked]) -> dict[str, Array]:
        """The wanted features, from all items."""
        distinct = [asked for asked in wanted if asked.feature.aggregation == "distinct"]
        at_instants = self.resolution == "instant"
        result = self._distinct_at_cuts(requests, () if at_instants else distinct)
        for asked in wanted:
            feature = asked.feature
            if feature.aggregation == "distinct" and not at_instants:
                continue
            segments = Segments(*self.timeline.bounds(requests, feature))
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
                result[feature.name] = slopes(
                    asked, self.timeline, self.by_time.time, requests, segments, totals
                )
            else:
                result[feature.name] = self._moment(asked, start, end)
        return result

    def _distinct_at_cuts(self, requests: Requests, wanted: Sequence[Asked]) -> dict[str, Array]:
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
            lengths = sorted({FOREVER if f.window is None else f.window for f in features})
            longest = max((length for length in lengths if length < FOREVER), default=0)
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
                    length = FOREVER if feature.window is None else feature.window
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
        order = np.argsort(sort_key(items.entity, items.item), kind="stable")
        entity, item = items.entity[order], items.item[order]
        previous = np.zeros(len(order), np.int64)
        same = np.flatnonzero((entity[1:] == entity[:-1]) & (item[1:] == item[:-1]))
        previous[order[same + 1]] = order[same] + 1
        return previous

    def _numbers(self, asked: Asked) -> Floats:
        item = self.by_time.item
        return from_ordered_bits(item) if asked.kind == "double" else item / asked.scale

    def _moment(self, asked: Asked, start: Ints, end: Ints) -> Floats:
        """Sum, mean or standard deviation of each window's values, in their order."""
        aggregation = asked.feature.aggregation
        values, count = self._numbers(asked), self.by_time.count
        result = np.full(len(start), 0.0 if aggregation == "sum" else np.nan)
        for part, rows, segment, starts in chunks(asked, start, end):
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

    def _through(self, asked: Asked, start: Ints, end: Ints) -> Floats:
        """An aggregate of the values that other entities have."""
        assert asked.values is not None  # held by Windows.features
        aggregation = asked.feature.aggregation
        result = np.full(len(start), 0.0 if aggregation == "sum" else np.nan)
        for part, rows, segment, _ in chunks(asked, start, end):
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
        self, asked: Asked, rows: Ints, starts: Ints, weight: Ints, number: Ints
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

    def _entropy(self, asked: Asked, start: Ints, end: Ints) -> Floats:
        result = np.full(len(start), np.nan)
        for part, rows, segment, starts in chunks(asked, start, end):
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
