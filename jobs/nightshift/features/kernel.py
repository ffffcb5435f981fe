"""The columnar kernel: every feature of a set of entities at every snapshot, from sorted arrays.

Rows are reduced to :mod:`tiles <nightshift.features.tiles>` once; every snapshot, event and label
is then a question about :mod:`windows <nightshift.features.windows>` over them.
"""

from collections.abc import Sequence
from datetime import date

import numpy as np
import numpy.typing as npt

from nightshift.features.tiles import (
    DAY_US,
    DECIMAL_SCALE,
    EPOCH,
    Array,
    Events,
    Grid,
    Items,
    Tiles,
    merge,
    recoded,
    tiles,
)
from nightshift.features.windows import Requests, Windows, features
from nightshift.spec import Label, Reported, UseCase

__all__ = [
    "DAY_US", "DECIMAL_SCALE", "EPOCH", "Events", "Grid", "Items", "Requests", "Tiles", "Windows",
    "compute", "features", "label_values", "merge", "recoded", "reported", "tiles",
]  # fmt: skip


def compute(
    use_case: UseCase,
    events: Events,
    snapshots: Sequence[date],
    label_known_as_of: date | None = None,
) -> list[tuple[date, dict[str, Array]]]:
    """The feature vectors of every entity of the population, at every snapshot.

    Args:
        use_case: the declaration, of a label over a window.
        events: all events of these entities, in any order.
        snapshots: the ``as_of`` dates.
        label_known_as_of: when given, a column ``label`` is added, from what landed before it.

    Returns:
        For each snapshot its columns: ``entity`` (int64 codes of the members of the population,
        ascending), one float64 column a feature (NaN for null), and ``label``
        (see :func:`label_values`).
    """
    population, label = use_case.population.group, use_case.label
    labels = [] if isinstance(label, Reported) else [label.group]
    found = tiles([*use_case.feature_groups, population, *labels], events, "day")
    members_of = Windows([population], found)
    vectors = Windows(use_case.feature_groups, found)
    outcomes = Windows(labels, found)
    everyone = np.arange(events.entities)
    tables: list[tuple[date, dict[str, Array]]] = []
    for as_of in snapshots:
        active = members_of.features(Requests.snapshot(everyone, as_of))
        members = np.flatnonzero(active[population.feature_names[0]] > 0)
        columns: dict[str, Array] = {"entity": members}
        columns |= vectors.features(Requests.snapshot(members, as_of))
        if label_known_as_of is not None:
            asked = Requests.snapshot(members, as_of, label_known_as_of)
            columns["label"] = label_values(label, outcomes.features(asked))
        tables.append((as_of, columns))
    return tables


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


def reported(label: Reported, events: Events, known_day: int) -> npt.NDArray[np.int32]:
    """The label of each event: 1 where it was reported, and the report known, before the day.

    Args:
        label: the declaration.
        events: with the flag ``label.where`` and the value ``label.known``.
        known_day: days since 1970-01-01.
    """
    known = np.maximum(events.values[label.known], events.landed_day)
    is_known = events.valid[label.known] & (known < known_day)
    return (events.satisfying(label.where) & is_known).astype(np.int32)
