"""The figures of several scorers on the same rows, compared, and slice by slice."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from nightshift.metrics import binary, ranking, regression
from nightshift.metrics.binary import Selected
from nightshift.metrics.bootstrap import (
    RESAMPLES,
    Array,
    Estimate,
    Estimates,
    Statistic,
    Vector,
    draw,
    estimate,
    mean_of,
)
from nightshift.spec import (
    Objective,
    Settled,
    Threshold,
    TopEntities,
    TopItems,
    TopShare,
    WorkingPoint,
)

BASE_RATE = "base_rate"


@dataclass(frozen=True)
class Confusion:
    """How many rows at and above ``threshold``, and below it, had label 1 and 0."""

    threshold: float
    true_positives: int
    false_positives: int
    false_negatives: int
    true_negatives: int


@dataclass(frozen=True)
class Groups:
    """A slice: ``codes`` (rows,) is each row's position in ``names``.

    A group of fewer than ``min_entities`` entities is not measured.
    """

    names: tuple[str, ...]
    codes: npt.NDArray[np.int64]
    min_entities: int


@dataclass(frozen=True)
class SliceFigures:
    """One group of a slice, by the first scorer; too small a group says so in ``note`` instead."""

    rows: int
    entities: int
    estimates: Estimates
    note: str = ""


@dataclass(frozen=True)
class Measured:
    """``base_rate`` is the mean label. ``scorers``: scorer → metric → estimate. ``differences``:
    baseline → metric → the first scorer's figure minus the baseline's, over the same resamples.
    ``confusion`` is the first scorer's. ``slices``: slice → group → figures."""

    rows: int
    entities: int
    base_rate: Estimate
    scorers: dict[str, Estimates]
    differences: dict[str, Estimates]
    confusion: Confusion | None = None
    slices: dict[str, dict[str, SliceFigures]] = field(default_factory=dict)


def measure(
    labels: Array,
    entities: Array,
    scores: Mapping[str, Vector],
    on_scale: Sequence[str],
    seed: int,
    resamples: int = RESAMPLES,
    *,
    objective: Objective = "binary",
    working_point: WorkingPoint | None = None,
    snapshots: Array | None = None,
    items: Array | None = None,
    missed: Array | None = None,
    popularity: Vector | None = None,
    intervals: Mapping[str, Vector] | None = None,
    slices: Mapping[str, Groups] | None = None,
    settled: npt.NDArray[np.bool_] | None = None,
) -> Measured:
    """Measure each scorer; the first one is compared with every other.

    Args:
        labels: (rows,) 0 or 1, amounts, or relevances; at least one row.
        entities: (rows,) the key that resamples keep together.
        scores: scorer → (rows,), higher is likelier to be 1, or to be more.
        on_scale: the scorers whose scores are probabilities, or amounts in the labels' unit; of
            the others only the order is measured.
        seed: of the resampling.
        resamples: how many.
        objective: whose metrics.
        working_point: what is selected, or shown; without one the metrics that need it are left
            out. A threshold is of the scorers ``on_scale`` only.
        snapshots: (rows,) an entity's rows of one snapshot are the list that a ranking orders.
        items: (rows,) what is listed; a ranking's.
        missed: (rows,) how many relevant items each row's list lacks; None for none.
        popularity: (rows,) of the items, for the novelty of what is shown.
        intervals: scorer → (rows, 2) low and high beside its amounts.
        slices: to measure the first scorer in.
        settled: (rows,) which rows are left out; one of them at least is not.
    """
    if settled is not None and settled.any():
        left = np.flatnonzero(~settled)
        return measure(
            labels[left],
            entities[left],
            {name: score[left] for name, score in scores.items()},
            on_scale,
            seed,
            resamples,
            objective=objective,
            working_point=working_point,
            snapshots=None if snapshots is None else snapshots[left],
            items=None if items is None else items[left],
            intervals={name: each[left] for name, each in (intervals or {}).items()},
            slices={
                name: replace(groups, codes=groups.codes[left])
                for name, groups in (slices or {}).items()
            },
        )
    y = np.asarray(labels, dtype=np.float64)
    codes = pd.factorize(np.asarray(entities))[0]  # by appearance, whatever the keys are called
    queries = codes
    if snapshots is not None:
        queries = pd.MultiIndex.from_arrays([codes, snapshots]).factorize()[0]
    selections: dict[str, tuple[float, Selected]] = {}
    if isinstance(working_point, Threshold | TopShare) and objective == "binary":
        selections = {
            name: binary.select(working_point, score)
            for name, score in scores.items()
            if name in on_scale or isinstance(working_point, TopShare)
        }
    nights = np.zeros(len(y)) if snapshots is None else snapshots
    if isinstance(working_point, TopEntities):
        selections = {
            name: binary.select_entities(working_point.k, score, codes, nights)
            for name, score in scores.items()
        }

    def statistics_of(name: str, rows: Array) -> Mapping[str, Statistic]:
        score, is_scale = scores[name][rows], name in on_scale
        if objective == "binary":
            selected = selections[name][1][rows] if name in selections else None
            found = binary.statistics(y[rows], score, is_scale, selected)
            if isinstance(working_point, TopEntities):
                inside = pd.factorize(codes[rows])[0]
                found["entity_precision_at_k"] = binary.entity_precision(
                    working_point.k, y[rows], score, inside, nights[rows]
                )
            return found
        if objective == "regression":
            interval = (intervals or {}).get(name)
            return regression.statistics(
                y[rows], score, is_scale, None if interval is None else interval[rows]
            )
        if not isinstance(working_point, TopItems) or items is None:
            return {}
        return ranking.statistics(
            y[rows], score, queries[rows], items[rows], working_point.k,
            None if missed is None else missed[rows],
            None if popularity is None else popularity[rows],
        )  # fmt: skip

    every = np.arange(len(y))
    statistics: dict[tuple[str, str], Statistic] = {("", BASE_RATE): mean_of(y)}
    for name in scores:
        for metric, statistic in statistics_of(name, every).items():
            statistics[name, metric] = statistic
    values, draws = draw(statistics, codes, seed, resamples)

    first, *others = scores
    found: dict[str, dict[str, SliceFigures]] = {}
    for name, groups in (slices or {}).items():
        found[name] = {}
        for position, group in enumerate(groups.names):
            rows = np.flatnonzero(groups.codes == position)
            inside = pd.factorize(codes[rows])[0]
            count = int(inside.max()) + 1 if len(rows) else 0
            if count < groups.min_entities:
                note = f"{count} entities, too few to measure: {groups.min_entities} are asked"
                found[name][group] = SliceFigures(len(rows), count, {}, note)
                continue
            of_group = {BASE_RATE: mean_of(y[rows]), **statistics_of(first, rows)}
            figures, drawn = draw(of_group, inside, seed, resamples)
            estimates = {metric: estimate(figures[metric], drawn[metric]) for metric in of_group}
            found[name][group] = SliceFigures(len(rows), count, estimates)
    return Measured(
        rows=len(y),
        entities=int(codes.max()) + 1 if len(codes) else 0,
        base_rate=estimate(values["", BASE_RATE], draws["", BASE_RATE]),
        scorers={
            name: {m: estimate(values[s, m], draws[s, m]) for s, m in statistics if s == name}
            for name in scores
        },
        differences={
            other: {
                m: estimate(values[first, m] - values[other, m], draws[first, m] - draws[other, m])
                for s, m in statistics
                if s == other and (first, m) in statistics
            }
            for other in others
        },
        confusion=_confusion(y, *selections[first]) if first in selections else None,
        slices=found,
    )


def settled_rows(
    rule: Settled | None,
    feature_names: Sequence[str],
    matrix: npt.NDArray[Any],
    rows: npt.NDArray[np.bool_] | slice = slice(None),
) -> npt.NDArray[np.bool_] | None:
    """Which of some rows of a matrix are settled; None where the use case has no such rule."""
    if rule is None:
        return None
    return np.asarray(matrix[rows, feature_names.index(rule.feature)] > rule.above)


def read_measured(found: Mapping[str, Any]) -> Measured:
    """What ``dataclasses.asdict`` made of a ``Measured``, as read from JSON.

    Raises:
        KeyError, TypeError: when it is something else.
    """
    return Measured(
        rows=found["rows"],
        entities=found["entities"],
        base_rate=Estimate(**found["base_rate"]),
        scorers={name: _estimates(each) for name, each in found["scorers"].items()},
        differences={name: _estimates(each) for name, each in found["differences"].items()},
        confusion=None if found["confusion"] is None else Confusion(**found["confusion"]),
        slices={
            name: {
                group: SliceFigures(**{**each, "estimates": _estimates(each["estimates"])})
                for group, each in groups.items()
            }
            for name, groups in found["slices"].items()
        },
    )


def _estimates(found: Mapping[str, Any]) -> Estimates:
    return {metric: Estimate(**figures) for metric, figures in found.items()}


def _confusion(labels: Vector, threshold: float, selected: Selected) -> Confusion:
    is_one = labels > 0
    return Confusion(
        threshold,
        true_positives=int((is_one & selected).sum()),
        false_positives=int((~is_one & selected).sum()),
        false_negatives=int((is_one & ~selected).sum()),
        true_negatives=int((~is_one & ~selected).sum()),
    )
