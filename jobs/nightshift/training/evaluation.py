"""Models of several cut-offs, and how good they are on days that they have not seen."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from nightshift.baselines import LINEAR, fit_linear, heuristic_scores, linear_rows, linear_scores
from nightshift.booster import Matrix, Vector, predict
from nightshift.metrics import Estimate, Measured, measure, settled_rows
from nightshift.spec import UseCase
from nightshift.training.dataset import Dataset, has_both_classes
from nightshift.training.fit import Fitted, Recipe, fit_split, fit_trees
from nightshift.training.search import Searched
from nightshift.training.slices import slice_rows
from nightshift.training.split import Split
from nightshift.training.studies import Ablation, LearningCurve

MODEL = "model"


@dataclass(frozen=True)
class OverTime:
    """``origins``: each cut-off's split and the figures of its test, newest first. ``staleness``:
    a fresh model and those of some weeks' age, all on the newest test."""

    origins: tuple[tuple[Split, Measured], ...]
    staleness: Measured | None


def fit_and_score(
    use_case: UseCase, dataset: Dataset, parts: Split, made: Recipe, seed: int
) -> tuple[Fitted, dict[str, Vector]]:
    """The model of a split, and each scorer's scores of every row of the dataset, (rows,)."""
    learn = linear_rows(dataset.rows_of(parts.train))
    matrix = dataset.matrix
    evaluation = fit_split(dataset, parts, made)
    linear = fit_linear(dataset.vectors(learn), dataset.labels[learn], use_case.objective, seed)
    scores = {MODEL: predict(evaluation.booster, matrix)}
    for heuristic in use_case.heuristics:
        scores[heuristic.name] = heuristic_scores(heuristic, matrix, use_case.feature_names)
    scores[LINEAR] = linear_scores(linear, matrix)
    if use_case.factorisation is not None and dataset.factorised is not None:
        scores[use_case.factorisation.name] = dataset.factorised
    return evaluation, scores


def refit(
    dataset: Dataset, parts: Split, made: Recipe, trees: int | None = None
) -> Callable[[Matrix], Vector]:
    """A model of the train snapshots as what it does: (rows, features) → (rows,) scores.

    Args:
        trees: how many; None to stop early on the validation snapshots.
    """
    if trees is None:
        return partial(predict, fit_split(dataset, parts, made).booster)
    return partial(predict, fit_trees(dataset, dataset.rows_of(parts.train), made, trees))


def measure_part(
    use_case: UseCase,
    dataset: Dataset,
    parts: Split,
    part: str,
    scores: dict[str, Vector],
    seed: int,
    ends: Vector | None = None,
) -> Measured:
    """Measure one part of a split; the test also slice by slice.

    Args:
        ends: (rows of the dataset, 2) low and high beside the model's amounts.
    """
    rows = dataset.rows_of(getattr(parts, part))
    # a factorisation is of the newest snapshots only
    scores = {n: score for n, score in scores.items() if not np.isnan(score[rows]).any()}
    slices = slice_rows(
        use_case.slices if part == "test" else (),
        use_case.feature_names,
        dataset.matrix,
        dataset.rows_of(parts.train),
        rows,
    )
    return measure(
        dataset.labels[rows],
        dataset.keys[rows],
        {name: score[rows] for name, score in scores.items()},
        [name for name in scores if name not in use_case.order_only],
        seed,
        objective=use_case.objective,
        working_point=use_case.working_point,
        snapshots=dataset.snapshots[rows],
        items=None if dataset.items is None else dataset.items[rows],
        missed=None if dataset.missed is None else dataset.missed[rows],
        popularity=popularity(use_case, dataset.vectors(rows)),
        intervals=None if ends is None else {MODEL: ends[rows]},
        slices=slices,
        settled=settled_rows(use_case.settled, use_case.feature_names, dataset.matrix, rows),
    )


def popularity(use_case: UseCase, matrix: Matrix) -> Vector | None:
    """Of each row's item, where the use case tells it."""
    if use_case.popularity is None:
        return None
    column = use_case.feature_names.index(use_case.popularity)
    return np.asarray(matrix[:, column], np.float64)


def measure_origins(
    use_case: UseCase,
    dataset: Dataset,
    origins: Sequence[Split],
    newest: Measured,
    made: Recipe,
    seed: int,
) -> tuple[tuple[Split, Measured], ...]:
    """Each origin's split with the figures of its test, newest first."""
    found = [(origins[0], newest)]
    for parts in origins[1:]:
        if not has_both_classes(dataset, parts):
            continue
        _, scores = fit_and_score(use_case, dataset, parts, made, seed)
        measured = measure_part(use_case, dataset, parts, "test", scores, seed)
        found.append((parts, replace(measured, slices={})))
    return tuple(found)


def measure_staleness(
    use_case: UseCase,
    dataset: Dataset,
    fresh: Split,
    stale: Mapping[int, Split],
    scores: dict[str, Vector],
    made: Recipe,
    seed: int,
) -> Measured | None:
    """The fresh model against those that are weeks older, all on the newest test."""
    stale = {weeks: parts for weeks, parts in stale.items() if has_both_classes(dataset, parts)}
    if not stale:
        return None
    fitted = {fresh: scores[MODEL]}
    for parts in stale.values():
        if parts not in fitted:
            fitted[parts] = predict(fit_split(dataset, parts, made).booster, dataset.matrix)
    ages = {
        f"{weeks} week" + ("s" if weeks > 1 else ""): fitted[parts]
        for weeks, parts in stale.items()
    }
    without_slices = use_case.model_copy(update={"slices": ()})
    return measure_part(
        without_slices, dataset, fresh, "test", {"fresh": fitted[fresh], **ages}, seed
    )


def flat_metrics(measured: dict[str, Measured]) -> dict[str, float]:
    """The figures of validation and test under the names that MLflow holds."""
    flat: dict[str, float] = {}
    for part, figures in measured.items():
        flat |= _flat(f"{part}_base_rate", figures.base_rate)
        for scorer, estimates in figures.scorers.items():
            for metric, estimate in estimates.items():
                name = f"{part}_{metric}" + ("" if scorer == MODEL else f"_{scorer}")
                flat |= _flat(name, estimate)
        for baseline, estimates in figures.differences.items():
            for metric, estimate in estimates.items():
                flat |= _flat(f"{part}_{metric}_minus_{baseline}", estimate)
    return flat


def slice_metrics(test: Measured) -> dict[str, float]:
    """The figures of the slices under the names that MLflow holds."""
    flat: dict[str, float] = {}
    for name, groups in test.slices.items():
        for group, figures in groups.items():
            flat[f"slice/{name}/{group}/rows"] = figures.rows
            for metric, estimate in figures.estimates.items():
                flat |= _flat(f"slice/{name}/{group}/{metric}", estimate)
    return flat


def metrics_over_time(over_time: OverTime) -> dict[str, float]:
    """The figures of origins and staleness under the names that MLflow holds."""
    flat: dict[str, float] = {}
    for parts, measured in over_time.origins:
        for metric, estimate in measured.scorers[MODEL].items():
            flat |= _flat(f"origin/{parts.test[0]}/{metric}", estimate)
    if over_time.staleness is not None:
        for age, estimates in over_time.staleness.scorers.items():
            for metric, estimate in estimates.items():
                flat |= _flat(f"staleness/{age}/{metric}", estimate)
    return flat


def study_metrics(curve: LearningCurve | None, ablated: Ablation | None) -> dict[str, float]:
    """The figures of learning curve and ablation under the names that MLflow holds."""
    flat: dict[str, float] = {}
    if curve is not None:
        for point in curve.points:
            name = f"learning_curve/{point.share:g}"
            flat |= {f"{name}/rows": point.rows, f"{name}/entities": point.entities}
            flat[f"{name}/train_{curve.metric}"] = point.train
            flat |= _flat(f"{name}/{curve.metric}", point.validation)
            if point.behind is not None:
                flat |= _flat(f"{name}/{curve.metric}_behind", point.behind)
    if ablated is not None:
        flat |= _flat(f"ablation/complete/{ablated.metric}", ablated.complete)
        for each in ablated.parts:
            flat |= _flat(f"ablation/{each.group}/{each.part}/{ablated.metric}_worth", each.worth)
            if each.cpu_seconds is not None:
                flat[f"ablation/{each.group}/cpu_seconds"] = each.cpu_seconds
    return flat


def trial_metrics(searched: Searched | None) -> tuple[dict[str, float], ...]:
    """Each trial of a search under the names that MLflow holds, which are the same for all: a trial
    is a step. One that was given up has no ``search/value``."""
    return tuple(
        {f"search/{name}": value for name, value in trial.parameters.items()}
        | {"search/seconds": trial.seconds}
        | ({} if trial.value is None else {"search/value": trial.value})
        for trial in (() if searched is None else searched.trials)
    )


def _flat(name: str, estimate: Estimate) -> dict[str, float]:
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
