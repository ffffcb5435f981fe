"""Tiles: the rows of a source, reduced to what any window of any feature can be made of.

A tile holds the rows of one entity at one time (a day, or an instant) that became known on one day.
Its columns are counts, exact integer sums, extremes, first and last instants; the measures that
need each value (distinct, entropy, std, and whatever is taken of a double) keep
:class:`Items`, the different values of a tile with how often they occur.

Tiles are plain sorted arrays. They depend on no order of rows, and a landed period's tiles on no
other period: :func:`merge` of the tiles of the parts is the tiles of the whole, bit for bit.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from nightshift.errors import NightshiftError
from nightshift.spec import Feature, FeatureGroup, Measure, Through

DAY_US = 86_400_000_000
DECIMAL_SCALE = 10_000
EPOCH = date(1970, 1, 1)

Array = npt.NDArray[Any]
Resolution = Literal["day", "instant"]

_LEAST, _GREATEST = np.iinfo(np.int64).min, np.iinfo(np.int64).max
_SIGN = np.int64(_GREATEST)


@dataclass(frozen=True)
class Events:
    """The events of some entities, all arrays of length n, in any order.

    Attributes:
        entity: int64 codes, 0 … entities − 1.
        entities: how many entities there are.
        time_us: event time, microseconds since 1970-01-01 in the pipeline's time zone.
        landed_day: landing date, days since 1970-01-01.
        flags: condition → bool, one for each of the groups' ``conditions``; null is False.
        values: column or expression → int64, one for each of the groups' ``measured``: decimals in
            1/10,000, dates in days and times in microseconds since 1970-01-01, text as codes that
            sort as the text does; float64 of doubles. The event time need not be among them.
        valid: the same names → bool, False where the value is null.
    """

    entity: npt.NDArray[np.int64]
    entities: int
    time_us: npt.NDArray[np.int64]
    landed_day: npt.NDArray[np.int64]
    flags: Mapping[str, npt.NDArray[np.bool_]]
    values: Mapping[str, Array]
    valid: Mapping[str, npt.NDArray[np.bool_]]

    def __post_init__(self) -> None:
        # Arrow's dates and codes are narrower, and would wrap around in what is made of them.
        for name in ("entity", "time_us", "landed_day"):
            object.__setattr__(self, name, wide(getattr(self, name)))
        values = {name: wide(values) for name, values in self.values.items()}
        object.__setattr__(self, "values", values)

    def satisfying(self, where: str | None) -> npt.NDArray[np.bool_]:
        """True for the rows where the condition holds."""
        return np.ones(len(self.entity), bool) if where is None else self.flags[where]


@dataclass(frozen=True)
class Grid:
    """Tiles of the measures that become known by one date column, by (entity, time, known).

    Attributes:
        entity: int64 codes, ascending.
        time: days since 1970-01-01, or microseconds at the resolution of instants.
        known: the day on which the rows became known, days since 1970-01-01.
        columns: ``<what>: <measure>`` → array; what is one of count, sum, hits, min, max,
            earliest, latest, last. Without a row of the measure: 0, or an extreme's neutral value.
    """

    entity: npt.NDArray[np.int64]
    time: npt.NDArray[np.int64]
    known: npt.NDArray[np.int64]
    columns: Mapping[str, Array] = field(default_factory=dict)

    def take(self, rows: Array) -> "Grid":
        """The tiles at these positions."""
        columns = {name: column[rows] for name, column in self.columns.items()}
        return Grid(self.entity[rows], self.time[rows], self.known[rows], columns)


@dataclass(frozen=True)
class Items:
    """The different values of each tile of a measure, by (entity, item, time, known).

    Attributes:
        entity, time, known: as in :class:`Grid`.
        item: the value as int64; of a double, its bits in an order that sorts as the numbers do.
        count: how many rows of the tile have it.
    """

    entity: npt.NDArray[np.int64]
    item: npt.NDArray[np.int64]
    time: npt.NDArray[np.int64]
    known: npt.NDArray[np.int64]
    count: npt.NDArray[np.int64]

    def take(self, rows: Array) -> "Items":
        """The items at these positions."""
        return Items(*(getattr(self, name)[rows] for name in _ITEM_COLUMNS))


_ITEM_COLUMNS = ("entity", "item", "time", "known", "count")


@dataclass(frozen=True)
class Tiles:
    """What the rows of one source, by one key, are reduced to.

    Attributes:
        resolution: of the tiles' times.
        grids: date column by which rows become known ("" for the landed date) → tiles.
        items: measure → its items.
    """

    resolution: Resolution
    grids: Mapping[str, Grid]
    items: Mapping[str, Items]


def tile_name(measure: Measure) -> str:
    """What tiles call a measure; measures of the same rows and values share their tiles."""
    where = f" where {measure.where}" if measure.where else ""
    known = f" known {measure.known}" if measure.known else ""
    return f"{measure.value}{where}{known}"


_COLUMNS = {
    "count": ("count",),
    "sum": ("count", "sum"),
    "mean": ("count", "sum"),
    "rate": ("count", "sum"),
    "slope": ("count", "sum"),
    "share": ("count", "hits"),
    "min": ("count", "min"),
    "max": ("count", "max"),
    "last": ("count", "latest", "last"),
    "days_since_last": ("count", "latest"),
    "days_since_first": ("count", "earliest"),
    "gap_mean": ("count",),
    "gap_std": ("count",),
    "gap_last": ("count",),
}
_BY_ITEM = frozenset({"distinct", "entropy", "std"})
_SUMS_OF_DOUBLES = frozenset({"sum", "mean", "slope"})


def is_by_item(group: FeatureGroup, feature: Feature) -> bool:
    """Whether a feature is made of items, not of a tile's columns."""
    measure = group.measure(feature.measure)
    is_double = group.type_of(measure) == "double"
    # A sum of doubles depends on its order: it is taken over the window's values, sorted.
    if isinstance(measure, Through):  # the last needs no more than the name of its entity
        return feature.aggregation != "last"
    return feature.aggregation in _BY_ITEM or (
        is_double and feature.aggregation in _SUMS_OF_DOUBLES
    )


def column_name(what: str, measure: Measure) -> str:
    """The name of a column of a grid."""
    category = f"{measure.category!r} in " if what == "hits" else ""
    return f"{what}: {category}{tile_name(measure)}"


def tiles(groups: Sequence[FeatureGroup], events: Events, resolution: Resolution) -> Tiles:
    """Reduce rows to tiles.

    Args:
        groups: feature groups over one source and one key.
        events: all rows of one or several landed days, in any order.
        resolution: days for cuts at midnight and windows of whole days, else instants.

    Raises:
        NightshiftError: a double is infinite, or a day's sum of one entity exceeds 2^63.
    """
    grids: dict[str, dict[str, tuple[FeatureGroup, Measure, str]]] = {"": {}}
    items: dict[str, tuple[FeatureGroup, Measure]] = {}
    for group in groups:
        for feature in group.features:
            measure = group.measure(feature.measure)
            if is_by_item(group, feature):
                items[tile_name(measure)] = (group, measure)
                continue
            columns = grids.setdefault(measure.known or "", {})
            for what in _COLUMNS[feature.aggregation]:
                # At the resolution of instants a tile's time is its only instant.
                if resolution == "day" or what not in ("earliest", "latest"):
                    columns[column_name(what, measure)] = (group, measure, what)
    rows = _Rows(events, resolution)
    return Tiles(
        resolution,
        {known: rows.grid(known, columns) for known, columns in grids.items()},
        {name: rows.items(group, measure) for name, (group, measure) in items.items()},
    )


class _Rows:
    """Events on their way to tiles."""

    def __init__(self, events: Events, resolution: Resolution) -> None:
        self.events = events
        self.time = events.time_us // DAY_US if resolution == "day" else events.time_us
        self.resolution = resolution
        self._masks: dict[str, npt.NDArray[np.bool_]] = {}

    def mask(self, group: FeatureGroup, measure: Measure) -> npt.NDArray[np.bool_]:
        """The rows that count for a measure."""
        name = tile_name(measure)
        if name not in self._masks:
            events = self.events
            valid = events.satisfying(measure.where)
            if measure.value != group.source.event_time:  # which is never null
                valid = valid & events.valid[measure.value]
            if measure.known is not None:
                valid = valid & events.valid[measure.known]
            values = events.values.get(measure.value)
            if values is not None and values.dtype == np.float64:
                valid = valid & ~np.isnan(values)
                infinite = int(np.count_nonzero(np.isinf(values) & valid))
                if infinite:
                    raise NightshiftError(
                        f"feature group {group.name}: measure {measure.name!r}: "
                        f"{measure.value!r} of {group.source.relation} is infinite in "
                        f"{infinite} rows",
                        "make it null in the mart, or exclude it by the measure's `where`",
                    )
            self._masks[name] = valid
        return self._masks[name]

    def known(self, column: str) -> npt.NDArray[np.int64]:
        """The day on which each row became known: landed, and reported where that is asked."""
        if column == "":
            return self.events.landed_day
        return np.maximum(self.events.landed_day, self.events.values[column])

    def grid(self, known: str, columns: Mapping[str, tuple[FeatureGroup, Measure, str]]) -> Grid:
        events = self.events
        rows: Array | slice = slice(None)
        if known:
            masks = [self.mask(group, measure) for group, measure, _ in columns.values()]
            rows = np.flatnonzero(np.logical_or.reduce(masks))
        time_us = events.time_us[rows]

        def column(name: str) -> Array:
            group, measure, what = columns[name]
            mask = self.mask(group, measure)[rows]
            if what == "count":
                return mask.view(np.int8)
            if what == "hits":
                condition = measure.category_condition
                return (mask & events.satisfying(condition)[rows]).view(np.int8)
            if what in ("earliest", "latest"):
                return _filled(time_us, mask, _neutral(what, time_us))
            values = events.values[measure.value][rows]
            if values.dtype == np.float64:
                values = values + 0.0  # one zero: of −0 and 0 the least depends on their order
            return _filled(values, mask, _neutral(what, values))

        return _reduced(
            events.entity[rows], self.time[rows], self.known(known)[rows], columns, column
        )

    def items(self, group: FeatureGroup, measure: Measure) -> Items:
        rows = np.flatnonzero(self.mask(group, measure))
        is_time = measure.value == group.source.event_time
        values: Array = self.events.time_us if is_time else self.events.values[measure.value]
        values = values[rows]
        if values.dtype == np.float64:
            values = ordered_bits(values)
        entity, time = self.events.entity[rows], self.time[rows]
        known = self.known(measure.known or "")[rows]
        packed = _pack(entity, values, time, known)
        if packed is None:
            return _counted(Items(entity, values, time, known, np.ones(len(rows), np.int64)))
        key, unpack = packed
        key.sort()
        starts = segment_starts(key)
        entity, values, time, known = unpack(key[starts])
        return Items(entity, values, time, known, np.diff(np.append(starts, len(key))))


def wide(values: Array) -> Array:
    """The same numbers as int64 or float64."""
    return values.astype(np.float64 if values.dtype.kind == "f" else np.int64, copy=False)


def ordered_bits(values: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Doubles as integers that sort as the doubles do; both zeros become one."""
    bits = (values + 0.0).view(np.int64)
    return bits ^ np.where(bits < 0, _SIGN, np.int64(0))


def from_ordered_bits(bits: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """The doubles that :func:`ordered_bits` was given."""
    return (bits ^ np.where(bits < 0, _SIGN, np.int64(0))).view(np.float64)


def merge(parts: Sequence[Tiles]) -> Tiles:
    """The tiles of all rows, from the tiles of the parts they were split into.

    The parts are of the same declarations and resolution, and on the same codes of entities and
    text (:func:`recoded`); their integers may be narrower than those of the answer.
    """
    first = parts[0]
    return Tiles(
        first.resolution,
        {known: _merged_grid([part.grids[known] for part in parts]) for known in first.grids},
        {name: _merged_items([part.items[name] for part in parts]) for name in first.items},
    )


def _merged_grid(parts: Sequence[Grid]) -> Grid:
    merging = _Merging([(grid.entity, grid.time, grid.known) for grid in parts])
    columns = {
        name: merging.column([grid.columns[name] for grid in parts]) for name in parts[0].columns
    }
    entity, time, known = merging.key
    if merging.is_unique:
        return Grid(entity, time, known, columns)
    return _reduced(entity, time, known, columns, columns.__getitem__)


def _merged_items(parts: Sequence[Items]) -> Items:
    merging = _Merging([(each.entity, each.item, each.time, each.known) for each in parts])
    entity, item, time, known = merging.key
    merged = Items(entity, item, time, known, merging.column([each.count for each in parts]))
    return merged if merging.is_unique else _counted(merged)


class _Merging:
    """Where the rows of sorted parts go when they are laid together in the order of their keys."""

    def __init__(self, keys: Sequence[Sequence[npt.NDArray[np.int64]]]) -> None:
        columns = [np.concatenate(column, dtype=np.int64) for column in zip(*keys, strict=True)]
        key = sort_key(*columns)
        self._order = sorting(key)
        bounds = np.cumsum([len(columns[0]) for columns in keys])
        if self._order is not None:
            key = key[self._order]
            columns = [column[self._order] for column in columns]
            places = np.empty(len(key), np.int64)
            places[self._order] = np.arange(len(key))
            self._places = np.split(places, bounds[:-1])
        self.key = columns
        self.is_unique = bool((key[1:] != key[:-1]).all())

    def column(self, parts: Sequence[Array]) -> Array:
        """A column of the parts, in the order of all."""
        dtype = np.float64 if parts[0].dtype.kind == "f" else np.int64
        if self._order is None:
            return np.concatenate(parts, dtype=dtype)
        merged = np.empty(len(self._order), dtype)
        for places, values in zip(self._places, parts, strict=True):
            merged[places] = values
        return merged


def recoded(
    groups: Sequence[FeatureGroup],
    tiles: Tiles,
    entity: npt.NDArray[np.int64],
    texts: Mapping[str, npt.NDArray[np.int64]],
) -> Tiles:
    """The same tiles on other codes, to be merged with tiles that have these.

    Args:
        groups: as given to :func:`tiles`.
        tiles: on the old codes.
        entity: old code → new code, ascending.
        texts: column or expression of text → (old code → new code), ascending.
    """
    grids = {known: dict(grid.columns) for known, grid in tiles.grids.items()}
    items = dict(tiles.items)
    for group in groups:
        for measure in group.measures:
            if measure.value not in texts:
                continue
            lookup, name = texts[measure.value], tile_name(measure)
            if name in items:
                items[name] = replace(tiles.items[name], item=lookup[tiles.items[name].item])
            for known, grid in tiles.grids.items():
                if (last := column_name("last", measure)) in grid.columns:
                    has = grid.columns[column_name("count", measure)] > 0
                    values = np.zeros(len(has), np.int64)
                    values[has] = lookup[grid.columns[last][has]]
                    grids[known][last] = values
    return Tiles(
        tiles.resolution,
        {
            known: replace(grid, entity=entity[grid.entity], columns=grids[known])
            for known, grid in tiles.grids.items()
        },
        {name: replace(item, entity=entity[item.entity]) for name, item in items.items()},
    )


def _pack(
    *columns: npt.NDArray[np.int64],
) -> tuple[npt.NDArray[np.int64], Callable[[Array], list[Array]]] | None:
    """One integer a row, in bits, which sorts as the columns do, and the way back; None where 63
    bits do not hold them. To sort values takes half the time of finding their order."""
    if not len(columns[0]):
        return None
    lows = [int(column.min()) for column in columns]
    bits = [
        (int(column.max()) - low).bit_length() for column, low in zip(columns, lows, strict=True)
    ]
    if sum(bits) > 63:
        return None
    key = np.zeros(len(columns[0]), np.int64)
    for column, low, width in zip(columns, lows, bits, strict=True):
        key <<= width
        key |= column - low

    def unpack(key: Array) -> list[Array]:
        found = []
        for low, width in zip(reversed(lows), reversed(bits), strict=True):
            found.append((key & ((1 << width) - 1)) + low)
            key = key >> width
        return found[::-1]

    return key, unpack


def sort_key(*columns: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """One integer a row, which sorts as the columns do, the first before the second."""
    key = np.zeros(len(columns[0]), np.int64)
    if not len(key):
        return key
    size = 1
    for given in columns:
        low, high = int(given.min()), int(given.max())
        column, span = given, high - low + 1
        if size * span > _GREATEST:  # ranks take less room than values
            ranked, column = np.unique(given, return_inverse=True)
            low, span = 0, len(ranked)
        if size * span > _GREATEST:
            ranked, key = np.unique(key, return_inverse=True)
            size = len(ranked)
        key = key * span + (column - low) if size > 1 else column - low
        size *= span
    return key


def prefix_sums(values: Array) -> npt.NDArray[np.int64]:
    """0, then the running sums; a wrap-around cancels in their differences."""
    sums = np.zeros(len(values) + 1, np.int64)
    np.cumsum(values, dtype=np.int64, out=sums[1:])
    return sums


def segment_starts(key: Array) -> npt.NDArray[np.int64]:
    """Where in a sorted key another value begins."""
    if not len(key):
        return np.zeros(0, np.int64)
    return np.concatenate([[0], np.flatnonzero(key[1:] != key[:-1]) + 1])


def sorting(key: npt.NDArray[np.int64]) -> npt.NDArray[np.int64] | None:
    """The order that sorts the key; None where it is sorted."""
    descents = int(np.count_nonzero(key[1:] < key[:-1]))
    if descents == 0:
        return None
    # Sorted runs are merged in linear time by the stable sort; chaos is quicker without it.
    return np.argsort(key, kind="stable" if descents * 64 < len(key) else "quicksort")


def _filled(values: Array, mask: npt.NDArray[np.bool_], neutral: Any) -> Array:
    return np.where(mask, values, values.dtype.type(neutral))


def _neutral(what: str, values: Array) -> Any:
    """What an extreme or a sum is over no rows."""
    if what in ("min", "earliest"):
        return np.inf if values.dtype == np.float64 else _GREATEST
    if what in ("max", "latest"):
        return -np.inf if values.dtype == np.float64 else _LEAST
    return 0


_REDUCTIONS: dict[str, np.ufunc] = {
    "count": np.add,
    "hits": np.add,
    "sum": np.add,
    "min": np.minimum,
    "max": np.maximum,
    "earliest": np.minimum,
    "latest": np.maximum,
}


def _reduced(
    entity: npt.NDArray[np.int64],
    time: npt.NDArray[np.int64],
    known: npt.NDArray[np.int64],
    names: Iterable[str],
    column: Callable[[str], Array],
) -> Grid:
    """Rows or tiles, combined where they agree in entity, time and known day."""
    key = sort_key(entity, time, known)
    # Runs of equal keys first, as they lie: few remain to be sorted where rows come in order.
    starts = segment_starts(key)
    lengths = np.diff(np.append(starts, len(key)))
    columns: dict[str, Array] = {}
    for name in names:
        what, _, measure = name.partition(": ")
        values = column(name)
        if what == "last":
            has = column(f"count: {measure}") > 0
            latest = f"latest: {measure}"
            # At the resolution of instants all rows of a tile are its last.
            at = column(latest) if latest in names else np.zeros(len(values), np.int64)
            columns[name] = _last(values, has, at, starts, lengths)
            continue
        if what == "sum":
            _refuse_overflow(name, values, starts, lengths)
        dtype = np.dtype(np.int64) if what in ("count", "hits") else values.dtype
        columns[name] = (
            _REDUCTIONS[what].reduceat(values, starts, dtype=dtype)
            if len(starts)
            else np.zeros(0, dtype)
        )
    grid = Grid(entity[starts], time[starts], known[starts], columns)
    order = sorting(key[starts])
    if order is None:
        return grid
    grid = grid.take(order)
    return _reduced(grid.entity, grid.time, grid.known, grid.columns, grid.columns.__getitem__)


def _last(values: Array, has: Array, latest: Array, starts: Array, lengths: Array) -> Array:
    """Each tile's value at its last instant, the greatest of several; 0 without rows."""
    if not len(starts):
        return values
    latest = np.where(has, latest, _LEAST)
    is_last = has & (latest == np.repeat(np.maximum.reduceat(latest, starts), lengths))
    least = -np.inf if values.dtype == np.float64 else _LEAST
    greatest = np.maximum.reduceat(np.where(is_last, values, least), starts)
    return np.where(np.logical_or.reduceat(is_last, starts), greatest, 0).astype(values.dtype)


def _refuse_overflow(name: str, values: Array, starts: Array, lengths: Array) -> None:
    if not len(values):
        return
    largest = max(abs(float(values.min())), abs(float(values.max())))
    if largest * int(lengths.max()) < 2.0**63:
        return
    if np.abs(np.add.reduceat(values.astype(np.float64), starts)).max() >= 2.0**63 * (1 - 1e-9):
        raise NightshiftError(
            f"{name}: the sum of one entity and day exceeds 2^63 (of 1/10,000, for a decimal)",
            "such values are hardly real: exclude them by the measure's `where`, or declare the "
            "column a double",
        )


def _counted(items: Items) -> Items:
    """Items, combined where they agree in all but count."""
    columns = (items.entity, items.item, items.time, items.known)
    # Equal neighbours first: lines of one order, days of one tile. It leaves less to sort.
    items = _without_repeats(items, columns)
    order = sorting(sort_key(items.entity, items.item, items.time, items.known))
    if order is None:
        return items
    items = items.take(order)
    return _without_repeats(items, (items.entity, items.item, items.time, items.known))


def _without_repeats(items: Items, columns: Sequence[Array]) -> Items:
    is_start = np.ones(len(items.entity), bool)
    is_start[1:] = False
    for column in columns:
        is_start[1:] |= column[1:] != column[:-1]
    starts = np.flatnonzero(is_start)
    if len(starts) == len(is_start):
        return items
    return replace(items.take(starts), count=np.add.reduceat(items.count, starts))
