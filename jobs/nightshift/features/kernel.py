"""The columnar kernel: features at snapshots, events and candidates, and labels, by one engine.

Rows are reduced to :mod:`tiles <nightshift.features.tiles>` once; every snapshot, event and label
is then a question about :mod:`windows <nightshift.features.windows>` over them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from nightshift.errors import NightshiftError
from nightshift.features.grid_windows import GridWindows
from nightshift.features.item_windows import ItemWindows
from nightshift.features.tiles import (
    DAY_US,
    DECIMAL_SCALE,
    EPOCH,
    Array,
    Events,
    Grid,
    Items,
    Resolution,
    Tiles,
    is_by_item,
    merge,
    recoded,
    sort_key,
    sorting,
    tile_name,
    tiles,
)
from nightshift.features.windows import Answers, Asked, Bools, Floats, Ints, Requests, divided
from nightshift.spec import FeatureGroup, Label, Ratio, Through

__all__ = [
    "DAY_US", "DECIMAL_SCALE", "EPOCH", "Events", "Grid", "Items", "Requests", "Resolution",
    "Tiles", "Windows", "features", "label_values", "merge", "recoded", "reported", "tiles",
]  # fmt: skip


class Windows:
    """The features of some groups over their tiles, ready to answer requests."""

    def __init__(self, groups: Sequence[FeatureGroup], tiles: Tiles) -> None:
        self._tiles = tiles
        self._names: list[str] = []
        self._through = [m for g in groups for m in g.measures if isinstance(m, Through)]
        self._quotients: list[Ratio] = []
        asked_of: dict[tuple[bool, str], list[Asked]] = {}
        for group in groups:
            self._quotients += group.quotients
            self._names += group.feature_names
            for feature in group.features:
                measure = group.measure(feature.measure)
                by_item = is_by_item(group, feature)
                of = (by_item, tile_name(measure) if by_item else measure.known or "")
                asked_of.setdefault(of, []).append(Asked(feature, measure, group.type_of(measure)))
        self._asked: list[tuple[Answers, list[Asked]]] = [
            (
                ItemWindows(tiles.items[name], tiles.resolution)
                if by_item
                else GridWindows(tiles.grids[name], tiles.resolution),
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
            found[ratio.name] = divided(found[ratio.numerator], found[ratio.denominator])
        return {name: found[name] for name in self._names}


def features(
    groups: Sequence[FeatureGroup],
    tiles: Tiles,
    requests: Requests,
    related: Mapping[str, Floats] | None = None,
) -> dict[str, Array]:
    """Each feature of the groups at each request: see :meth:`Windows.features`."""
    return Windows(groups, tiles).features(requests, related)


def label_values(label: Label, found: dict[str, Array]) -> Array:
    """The label of each request, from the features of ``label.group``: int32, of Sum float64.

    The requests know what was known when the label is read, not only what was at ``as_of``.
    """
    (value,) = found.values()
    if label.kind == "sum":
        return value
    if label.kind == "count":
        return value.astype(np.int32)
    return ((value > 0) == (label.kind == "any_event")).astype(np.int32)


def reported(
    is_reported: Bools, reported_day: Ints, has_day: Bools, landed_day: Ints, known_day: int
) -> npt.NDArray[np.int32]:
    """The label of each event: 1 where it was reported, and the report known, before the day.

    Args:
        is_reported: where the label's condition holds.
        reported_day: the report's date, days since 1970-01-01.
        has_day: False where there is no date.
        landed_day: of the event itself.
        known_day: days since 1970-01-01.
    """
    known = np.maximum(reported_day, landed_day)
    return (is_reported & has_day & (known < known_day)).astype(np.int32)
