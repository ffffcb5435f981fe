"""What more data, and what each part of the features, is worth: models fitted to find that out.

All of them are measured on the validation snapshots: whoever reads this decides what to change, and
the test is for what was decided before.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt
import pandas as pd

from nightshift.booster import Matrix, Vector
from nightshift.metrics import Estimate, Measured, measure, settled_rows
from nightshift.metrics.bootstrap import RESAMPLES
from nightshift.spec import METRICS, Metric, UseCase
from nightshift.training.dataset import Dataset
from nightshift.training.split import Split

Scorer = Callable[[Matrix], Vector]
"""(rows, features) → (rows,) scores."""
Fit = Callable[[Dataset], Scorer]
"""Fits a model to the train snapshots of a dataset."""


@dataclass(frozen=True)
class LearningPoint:
    """A model of a share of the entities.

    Attributes:
        rows, entities: that it learned from.
        train: its figure on these rows.
        validation: its figure on all validation rows.
        behind: how much better the model of all entities is there; None of that model itself.
    """

    share: float
    rows: int
    entities: int
    train: float
    validation: Estimate
    behind: Estimate | None


@dataclass(frozen=True)
class LearningCurve:
    """``points`` by rising share; the last is of all entities."""

    metric: Metric
    points: tuple[LearningPoint, ...]


@dataclass(frozen=True)
class Ablated:
    """A part of the features. ``worth``: how much better the model is with it than without, all
    other features given. ``cpu_seconds``: what its feature group took to compute, if that is known.
    """

    group: str
    part: str
    features: tuple[str, ...]
    worth: Estimate
    cpu_seconds: float | None


@dataclass(frozen=True)
class Ablation:
    """``parts``: the most valuable first; ``complete``: the model of all features."""

    metric: Metric
    complete: Estimate
    parts: tuple[Ablated, ...]


def study(
    use_case: UseCase,
    dataset: Dataset,
    parts: Split,
    fit: Callable[..., Scorer],
    trees: int,
    seed: int,
) -> tuple[LearningCurve | None, Ablation | None]:
    """What the spec wants to know beside the model; None of what it does not.

    Args:
        fit: takes a dataset, and ``trees`` where these are not to be found by stopping early.
        trees: of the model.
    """
    wanted, metric = use_case.studies, use_case.judged_metrics[0]
    if not (wanted.learning_curve or wanted.ablation):
        return None, None
    rows = learning_rows(dataset, parts, wanted.max_rows, seed)
    curve = ablated = None
    if wanted.learning_curve:
        curve = learning_curve(use_case, rows, parts, metric, fit, seed)
    if wanted.ablation:
        costs = dataset.manifest.get("cpu_seconds", {})
        ablated = ablation(use_case, rows, parts, metric, partial(fit, trees=trees), costs, seed)
    return curve, ablated


def learning_rows(dataset: Dataset, parts: Split, most_rows: int, seed: int) -> Dataset:
    """The train and validation rows; of that many entities that they are ``most_rows`` or fewer."""
    rows = dataset.rows_of(parts.train) | dataset.rows_of(parts.validation)
    if rows.sum() > most_rows:
        # by appearance: rows are in the order of their content, whatever the keys are called
        codes, entities = pd.factorize(dataset.keys[rows])
        place = np.random.default_rng(seed).permutation(len(entities))
        rows[np.flatnonzero(rows)] = place[codes] < len(entities) * most_rows / rows.sum()
    return dataset.only(rows)


def learning_curve(
    use_case: UseCase, dataset: Dataset, parts: Split, metric: Metric, fit: Fit, seed: int
) -> LearningCurve:
    """Models of rising shares of the entities, and of all; a share with one class is left out.

    Entities, and not the oldest snapshots first: a model of older snapshots is worse for two
    reasons, fewer rows and older ones, and the second is what staleness measures.

    Args:
        dataset: of which the train and the validation snapshots are read.
        fit: stops early on the validation snapshots.
    """
    learned, chosen = dataset.rows_of(parts.train), dataset.rows_of(parts.validation)
    codes, entities = pd.factorize(dataset.keys[learned])
    place = np.random.default_rng(seed).permutation(len(entities))
    validation: dict[str, Vector] = {}
    sizes: list[tuple[float, int, int, float]] = []
    for share in (1.0, *sorted(use_case.studies.learning_curve, reverse=True)):
        is_in = learned.copy()
        is_in[learned] = place[codes] < share * len(entities)
        if use_case.objective == "binary" and len(np.unique(dataset.labels[is_in])) < 2:
            continue
        scorer = fit(dataset.only(is_in | chosen))
        validation[f"{share:g}"] = scorer(dataset.vectors(chosen))
        on_train = _measured(
            use_case, dataset, is_in, {"train": scorer(dataset.vectors(is_in))}, seed, resamples=1
        )
        count = int((place < share * len(entities)).sum())
        sizes.append((share, int(is_in.sum()), count, on_train.scorers["train"][metric].value))
    measured = _measured(use_case, dataset, chosen, validation, seed)
    points = [
        LearningPoint(
            share,
            rows,
            count,
            train,
            measured.scorers[f"{share:g}"][metric],
            better(metric, measured.differences[f"{share:g}"][metric]) if share < 1 else None,
        )
        for share, rows, count, train in sizes
    ]
    return LearningCurve(metric, tuple(reversed(points)))


def reading(curve: LearningCurve, entity: str) -> str:
    """What a learning curve says of bias and variance, in words."""
    *_, less, most = curve.points
    sign = 1 if METRICS[curve.metric].better == "higher" else -1
    gap = sign * (most.train - most.validation.value)
    noise = (most.validation.high - most.validation.low) / 2
    assert less.behind is not None  # only the last has none
    gain, name = less.behind, called(curve.metric)
    said = (
        f"The model of all {most.entities:,} {entity}s is better than that of {less.entities:,} by "
        f"{text(gain, 4)} in {name}. On the rows it learned from it reaches {most.train:.3f}, on "
        f"the later ones of validation {most.validation.value:.3f}: a gap of {gap:.3f}. "
    )
    if gain.low > 0:
        return said + (
            f"More {entity}s would still help: part of the error is variance, which more data or "
            "stronger regularisation lowers."
        )
    if gap > noise:
        return said + (
            f"More {entity}s of the same kind bring nothing that can be told from noise, and a gap "
            "remains: what was learned fits its own days better than later ones. Regularisation, "
            f"or newer snapshots, rather than more {entity}s."
        )
    return said + (
        f"More {entity}s of the same kind bring nothing that can be told from noise, and new rows "
        "are foretold as well as known ones: the error that is left is bias, or cannot be known "
        "from these features. New features would help, more data of the same would not."
    )


def families(use_case: UseCase) -> dict[tuple[str, str], tuple[str, ...]]:
    """(group, part) → features: each measure of a feature group, and its ratios and trends.

    Of several groups, each as a whole too; its part is ``all``. So is what an event has itself, and
    the ratios across groups.
    """
    found: dict[tuple[str, str], tuple[str, ...]] = {}
    if use_case.own_features:
        found["own", "all"] = tuple(measure.name for measure in use_case.own_features)
    if use_case.ratios:
        found["ratios", "all"] = tuple(ratio.name for ratio in use_case.ratios)
    for group in use_case.feature_groups:
        if len(use_case.feature_groups) > 1:
            found[group.name, "all"] = group.feature_names
        for measure_ in group.measures:
            names = tuple(f.name for f in group.features if f.measure == measure_.name)
            found[group.name, measure_.name] = names
        if group.quotients:
            found[group.name, "ratios and trends"] = tuple(q.name for q in group.quotients)
    return found


def ablation(
    use_case: UseCase,
    dataset: Dataset,
    parts: Split,
    metric: Metric,
    fit: Fit,
    cpu_seconds: Mapping[str, float],
    seed: int,
) -> Ablation:
    """Models without one part of the features each, against the model of all.

    A part that others can stand in for is worth little by itself: leave out both to see.

    Args:
        dataset: of which the train and the validation snapshots are read.
        fit: of a number of trees that all of them have.
        cpu_seconds: by feature group.
    """
    chosen = dataset.rows_of(parts.validation)
    scores = {"complete": fit(dataset)(dataset.vectors(chosen))}
    parted = families(use_case)
    for (group, part), names in parted.items():
        columns = [use_case.feature_names.index(name) for name in names]
        matrix = dataset.matrix.copy()
        matrix[:, columns] = np.nan  # which no split can use
        scores[f"{group}/{part}"] = fit(replace(dataset, matrix=matrix))(matrix[chosen])
    measured = _measured(use_case, dataset, chosen, scores, seed)
    found = [
        Ablated(
            group,
            part,
            names,
            better(metric, measured.differences[f"{group}/{part}"][metric]),
            cpu_seconds.get(group),
        )
        for (group, part), names in parted.items()
    ]
    found.sort(key=lambda each: -each.worth.value)
    return Ablation(metric, measured.scorers["complete"][metric], tuple(found))


def better(metric: Metric, difference: Estimate) -> Estimate:
    """A difference, positive where the first of the two is the better one."""
    if METRICS[metric].better == "lower":
        return Estimate(-difference.value, -difference.high, -difference.low)
    return difference


def text(estimate: Estimate, digits: int = 3) -> str:
    """A figure with its interval."""
    if not np.isfinite(estimate.value):
        return "undefined"
    return f"{estimate.value:.{digits}f} [{estimate.low:.{digits}f}, {estimate.high:.{digits}f}]"


def called(metric: str) -> str:
    """A metric's name as people write it."""
    abbreviations = {"auc": "AUC", "f1": "F1", "mae": "MAE", "rmse": "RMSE", "r2": "R²"}
    return abbreviations.get(metric, metric.replace("_", " ").replace("ndcg", "NDCG"))


def _measured(
    use_case: UseCase,
    dataset: Dataset,
    rows: npt.NDArray[np.bool_],
    scores: Mapping[str, Vector],
    seed: int,
    resamples: int = RESAMPLES,
) -> Measured:
    return measure(
        dataset.labels[rows],
        dataset.keys[rows],
        scores,
        list(scores),
        seed,
        resamples,
        objective=use_case.objective,
        working_point=use_case.working_point,
        snapshots=dataset.snapshots[rows],
        items=None if dataset.items is None else dataset.items[rows],
        settled=settled_rows(use_case.settled, use_case.feature_names, dataset.matrix, rows),
    )
