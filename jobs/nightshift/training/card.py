"""The model card: what a person has to know of a trained model, on one self-contained page.

After Mitchell et al., Model Cards for Model Reporting (2019).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import partial
from importlib.resources import files
from typing import Any

import numpy as np
from jinja2 import Environment
from markupsafe import Markup

from nightshift.baselines import LINEAR
from nightshift.booster import Vector, gain_shares, predict
from nightshift.io.lake import digest
from nightshift.metrics import Estimate, Estimates, Measured, SliceFigures
from nightshift.model_card import NIGHTS, VERDICT, place
from nightshift.spec import (
    METRICS,
    GainShareAtMost,
    Metric,
    Slice,
    SliceAtLeast,
    Threshold,
    TopEntities,
    TopShare,
    UseCase,
    gate_name,
)
from nightshift.training import plots
from nightshift.training.calibration import Choice
from nightshift.training.curves import Decile, deciles, precision_recall, roc
from nightshift.training.dataset import Dataset
from nightshift.training.decisions import rule_figures
from nightshift.training.evaluation import MODEL, OverTime
from nightshift.training.explanation import Explanation, explain
from nightshift.training.fit import Fitted, Recipe
from nightshift.training.search import Searched
from nightshift.training.split import Split
from nightshift.training.studies import Ablation, LearningCurve, better, called, reading, text


@dataclass(frozen=True)
class Card:
    """What a model card is made of.

    Attributes:
        parts, trees, validation, test, over_time: of the evaluation model.
        rates: snapshot → its rows and their mean label.
        gains: feature → share of the total gain, largest first.
        deciles: of the scorers that give probabilities or amounts, on the test rows.
        scores: of the model on the test rows, (rows,).
        roc, precision_recall: scorer → the curve's points; empty unless there are two classes.
        rules: rule → what it finds among the test rows; empty without rules.
        curve, ablation: None where they are switched off.
        parameters: of the fit.
        calibration: how the probabilities were brought to come true; None of other scores.
        searched: None where the parameters are the defaults.
        manifest: ``data_manifest.json``.
        lineage: what was made of what: name → value.
    """

    use_case: UseCase
    as_of: date
    parts: Split
    trees: int
    validation: Measured
    test: Measured
    over_time: OverTime
    rates: Mapping[date, tuple[int, float]]
    gains: Mapping[str, float]
    deciles: Mapping[str, Sequence[Decile]]
    scores: Vector
    roc: Mapping[str, tuple[Vector, Vector]]
    precision_recall: Mapping[str, tuple[Vector, Vector]]
    explanation: Explanation
    rules: Mapping[str, Estimates]
    curve: LearningCurve | None
    ablation: Ablation | None
    parameters: Mapping[str, Any]
    calibration: Choice | None
    searched: Searched | None
    manifest: Mapping[str, Any]
    lineage: Mapping[str, str]


@dataclass(frozen=True)
class _Table:
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class _SliceView:
    declared: Slice
    forest: str
    tables: tuple[_Table, ...]
    notes: tuple[str, ...]
    parity: tuple[str, ...]


def collect(
    use_case: UseCase,
    as_of: date,
    dataset: Dataset,
    parts: Split,
    made: Recipe,
    evaluation: Fitted,
    searched: Searched | None,
    scores: dict[str, Vector],
    measured: dict[str, Measured],
    over_time: OverTime,
    curve: LearningCurve | None,
    ablated: Ablation | None,
    manifest: dict[str, Any],
    seed: int,
) -> Card:
    """The card of a training.

    Args:
        dataset: all that was trained on.
        scores: scorer → of every row, (rows,).
        measured: of ``validation`` and ``test``.
        manifest: ``data_manifest.json``.
        seed: of the resampling, and of which rows are explained.
    """
    rows = dataset.rows_of(parts.test)
    labels, keys = dataset.labels[rows].astype(np.float64), dataset.keys[rows]
    tested = {name: score[rows] for name, score in scores.items()}
    has_classes = use_case.objective == "binary"
    return Card(
        use_case=use_case,
        as_of=as_of,
        parts=parts,
        trees=evaluation.booster.num_boosted_rounds(),
        validation=measured["validation"],
        test=measured["test"],
        over_time=over_time,
        rates=dataset.rates,
        gains=gain_shares(evaluation.booster),
        deciles={
            name: deciles(labels, keys, tested[name], seed)
            for name in (MODEL, LINEAR)
            if name in tested
        },
        scores=tested[MODEL],
        roc={n: roc(labels, score) for n, score in tested.items() if has_classes},
        precision_recall={
            n: precision_recall(labels, score) for n, score in tested.items() if has_classes
        },
        explanation=explain(
            evaluation.booster, partial(predict, evaluation.booster), use_case.feature_names,
            dataset.vectors(rows), seed,
        ),
        rules=rule_figures(use_case, dataset, rows, seed),
        curve=curve,
        ablation=ablated,
        parameters=made.parameters | {"half_life_days": made.half_life_days},
        calibration=evaluation.calibration,
        searched=searched,
        manifest=manifest,
        lineage={
            "training set": str(manifest.get("sha256")),
            "made of rows": str(manifest.get("source_sha256")),
            "rows": f"{len(dataset.labels):,}",
            "label window": "{from} … before {before}, landed before {landed_before}".format(
                **manifest["label_window"]
            ),
            "spec": digest(manifest["spec"]),
            "code": manifest["code_commit"],
            "features' code": str(manifest.get("key", {}).get("code_sha256")),
            "seed": str(seed),
            "libraries": ", ".join(f"{n} {v}" for n, v in manifest["libraries"].items()),
        },
    )  # fmt: skip


def render(card: Card) -> str:
    """HTML, all values escaped, with places for the gates' verdict and for nights beside the
    champion."""
    # text of a spec, or of a feature, may be anybody's
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = files("nightshift.training").joinpath("card.html.j2").read_text(encoding="utf-8")
    use_case, metric = card.use_case, card.use_case.judged_metrics[0]
    entity = use_case.entity
    unit = use_case.reason_unit
    return environment.from_string(template).render(
        card=card,
        use_case=use_case,
        verdict=Markup(place(VERDICT, "<p class='open'>The gates have not judged it yet.</p>")),
        nights=Markup(place(NIGHTS, "")),
        sentences=sentences(card),
        text=text,
        parts=[(part, getattr(card.parts, part)) for part in ("train", "validation", "test")],
        figures=[(part, _figure_tables(measured)) for part, measured in _parts(card)],
        calibration=_calibration(card),
        lift=plots.lift(card.deciles[MODEL], card.test.base_rate.value)
        if use_case.objective == "binary"
        else "",
        roc=plots.curves(card.roc, "false positive rate", "true positive rate") if card.roc else "",
        precision_recall=plots.curves(
            card.precision_recall, "recall", "precision", card.test.base_rate.value
        )
        if card.precision_recall
        else "",
        unit=unit,
        beeswarm=plots.beeswarm(card.explanation, entity, unit),
        dependence=[
            plots.dependence(card.explanation, place, entity, unit)
            for place in range(min(4, len(card.explanation.importance)))
        ],
        partial=[
            plots.partial_dependence(each, entity, use_case.score_column)
            for each in card.explanation.partial
        ],
        importance=plots.importance(
            card.gains,
            entity,
            next((g.share for g in use_case.gates if isinstance(g, GainShareAtMost)), None),
        ),
        slices=[_slice_view(card, each, metric) for each in use_case.slices],
        base_rate=plots.base_rate(card.rates, card.parts, "mean label"),
        origins=_origins(card, metric),
        staleness=_staleness(card, metric),
        learning_curve=plots.learning_curve(card.curve) if card.curve else "",
        reading=reading(card.curve, entity) if card.curve else "",
        ablation=plots.ablation(card.ablation) if card.ablation else "",
        ablated=_ablated(card.ablation) if card.ablation else None,
        rules=_rules(card) if card.rules else None,
        trials=_trials(card.searched) if card.searched else None,
        gates=[gate_name(gate) for gate in use_case.gates],
    )


def summary(card: Card) -> str:
    """A short Markdown of the same, for MLflow's page of the run."""
    lines = [f"# {card.use_case.title}: trained as of {card.as_of}", "", card.use_case.description]
    lines += ["", *(f"- {sentence}" for sentence in sentences(card))]
    lines += ["", "The whole model card is `card.html` among the run's artifacts."]
    return "\n".join(lines) + "\n"


def sentences(card: Card) -> list[str]:
    """What to know first, in plain words."""
    use_case, test = card.use_case, card.test
    metric = use_case.judged_metrics[0]
    first, last = card.parts.test[0], card.parts.test[-1]
    days = f"{first} … {last}" if first != last else f"{first}"
    found = [
        f"On {test.rows:,} rows of {days}, which it has not seen, the model has "
        f"{called(metric)} {text(test.scorers[MODEL][metric])}."
    ]
    found += [
        _against(name, metric, test.differences[name][metric])
        for name in test.differences
        if name != LINEAR and metric in test.differences[name]
    ]
    found.append(against_linear(use_case, test))
    bias = test.scorers[MODEL].get("calibration_error")
    if bias is not None:
        found.append(
            f"Its probabilities are off by {text(bias)} in the mean over tenths of the rows; "
            f"it expects {_mean(card.scores)} and {text(test.base_rate)} happened."
        )
    point, model = use_case.working_point, test.scorers[MODEL]
    if "total_bias" in model:
        total, happened = float(card.scores.sum()), test.base_rate.value * test.rows
        found.append(
            f"It foretells a total of {total:,.0f}{_unit(use_case)}, and {happened:,.0f} happened: "
            f"a bias of {text(model['total_bias'])}."
        )
    if use_case.interval is not None and "interval_coverage" in model:
        found.append(
            f"Its intervals, made to hold {use_case.interval.share:.0%} of what happens, held "
            f"{text(model['interval_coverage'])} of it; they are "
            f"{text(model['interval_width'], 0)}{_unit(use_case)} wide in the mean."
        )
    if isinstance(point, TopEntities):
        found.append(
            f"Of the {point.k} {use_case.entity}s that it ranks highest each night, "
            f"{text(model['entity_precision_at_k'])} have a label 1 that night, one that was found "
            "before left out."
        )
    if isinstance(point, Threshold | TopShare | TopEntities) and "precision" in model:
        how = f"at least as high as the {use_case.entity} in place {getattr(point, 'k', 0)}"
        if isinstance(point, Threshold):
            how = f"with a score of at least {point.score:g}"
        elif isinstance(point, TopShare):
            how = f"among the highest {point.share:.0%}"
        found.append(
            f"Whoever is selected {how} ({text(model['selection_rate'])} of all) has label 1 with "
            f"precision {text(model['precision'])}, and is {text(model['recall'])} of those who "
            "have it."
        )
    top = next(iter(card.gains.items()), None)
    if top is not None:
        found.append(f"{top[0]} has the largest share of gain, {top[1]:.0%}.")
    return found


def against_linear(use_case: UseCase, test: Measured) -> str:
    """Whether the model is better than the linear one by the spec's margin, in words."""
    metric = use_case.judged_metrics[0]
    difference = test.differences.get(LINEAR, {}).get(metric)
    if difference is None:
        return f"There is no linear model to compare with in {called(metric)}."
    by, margin = better(metric, difference), use_case.linear_margin
    asked = f"the spec asks for {margin:g} with an interval above 0"
    if by.value >= margin and by.low > 0:
        return f"It is better than the linear model by {text(by)} in {called(metric)}: {asked}."
    return (
        f"It is NOT better than the linear model by the spec's margin: {text(by)} in "
        f"{called(metric)}, and {asked}. In {called(metric)} a linear model is about as good, "
        "and simpler."
    )


def _against(name: str, metric: Metric, difference: Estimate) -> str:
    by, what = better(metric, difference), called(metric)
    if by.low > 0:
        return f"It is better than {name} alone by {text(by)} in {what}."
    return f"It is NOT surely better than {name} alone: by {text(by)} in {what}."


def _unit(use_case: UseCase) -> str:
    return f" {use_case.unit}" if use_case.unit else ""


def _mean(scores: Vector) -> str:
    return f"{float(np.mean(scores)):.3f}"


def _parts(card: Card) -> list[tuple[str, Measured]]:
    return [("test", card.test), ("validation", card.validation)]


def _figure_tables(measured: Measured) -> list[_Table]:
    """The scorers' figures and the differences, a table for each kind of metric."""
    found = []
    compared = {f"{MODEL} minus {name}": each for name, each in measured.differences.items()}
    for reads in ("order", "scale", "working_point", "interval"):
        rows = {**measured.scorers, **compared}
        metrics = _metrics(rows.values(), reads)
        if metrics:
            found.append(
                _Table(
                    ("", *(called(metric) for metric in metrics)),
                    tuple(
                        (name, *(text(e[m]) if m in e else "" for m in metrics))
                        for name, e in rows.items()
                        if any(metric in e for metric in metrics)
                    ),
                )
            )
    return found


def _metrics(rows: Iterable[Mapping[str, Estimate]], reads: str) -> list[Metric]:
    found = {metric for estimates in rows for metric in estimates}
    return [name for name, rule in METRICS.items() if name in found and rule.reads == reads]


def _trials(searched: Searched, most: int = 8) -> _Table:
    """The best trials, and the first one, which has the default parameters."""
    best = [number for number in searched.ranking if number > 0 or len(searched.trials) == 1]
    shown = sorted({0, *best[:most]}, key=searched.ranking.index)
    names = list(searched.chosen)
    return _Table(
        ("trial", searched.metric, *names),
        tuple(
            (
                str(number + 1),
                f"{trial.value:.5f}",
                *(f"{trial.parameters[name]:.3g}" for name in names),
            )
            for number, trial in ((number, searched.trials[number]) for number in shown)
        ),
    )


def _calibration(card: Card) -> str:
    if card.use_case.objective == "binary":
        return plots.calibration(card.deciles, card.scores)
    return plots.amounts(card.deciles[MODEL]) if card.use_case.objective == "regression" else ""


def _slice_view(card: Card, each: Slice, judged: Metric) -> _SliceView:
    groups = card.test.slices[each.name]
    large = {name: figures for name, figures in groups.items() if not figures.note}
    gates = [g for g in card.use_case.gates if isinstance(g, SliceAtLeast) and g.slice == each.name]
    metric = gates[0].metric if gates else judged
    shown = {n: g.estimates[metric] for n, g in large.items() if metric in g.estimates}
    return _SliceView(
        each,
        plots.forest(
            {f"{name} ({large[name].rows:,})": found for name, found in shown.items()},
            card.test.scorers[MODEL][metric],
            gates[0].value if gates else None,
            metric,
        )
        if shown
        else "",
        _group_tables(large),
        tuple(f"{n} ({g.rows:,} rows): {g.note}" for n, g in groups.items() if g.note),
        tuple(_parity(large)) if each.protected else (),
    )


def _group_tables(groups: Mapping[str, SliceFigures]) -> tuple[_Table, ...]:
    """The groups' figures, a table for each kind of metric."""
    found = []
    for reads in ("order", "scale", "working_point", "interval"):
        metrics = [
            m
            for m in _metrics((g.estimates for g in groups.values()), reads)
            if not m.startswith("lift")  # too many columns to read
        ]
        shown = [*(["base_rate"] if reads == "order" else []), *metrics]
        rows = tuple(
            (
                name,
                f"{g.rows:,}",
                f"{g.entities:,}",
                *(text(g.estimates[m]) if m in g.estimates else "" for m in shown),
            )
            for name, g in groups.items()
        )
        if shown and rows:
            found.append(_Table(("group", "rows", "entities", *map(_column, shown)), rows))
    return tuple(found)


def _column(metric: str) -> str:
    return "mean label" if metric == "base_rate" else called(metric)


def _parity(groups: Mapping[str, SliceFigures]) -> Iterable[str]:
    for metric in ("selection_rate", "recall"):
        found = {n: g.estimates[metric].value for n, g in groups.items() if metric in g.estimates}
        if len(found) > 1:
            least, most = min(found, key=found.__getitem__), max(found, key=found.__getitem__)
            yield (
                f"{called(metric)}: lowest {least} {found[least]:.3f}, highest {most} "
                f"{found[most]:.3f}, a difference of {found[most] - found[least]:.3f}"
            )


def _origins(card: Card, metric: Metric) -> str:
    found = card.over_time.origins
    if len(found) < 2:
        return ""
    newest = found[0][1].scorers
    return plots.over_time(
        {
            name: [(parts.test[0], m.scorers[name][metric]) for parts, m in reversed(found)]
            for name in newest
            if metric in newest[name]
        },
        metric,
    )


def _staleness(card: Card, metric: Metric) -> str:
    measured = card.over_time.staleness
    if measured is None:
        return ""
    return plots.staleness({age: each[metric] for age, each in measured.scorers.items()}, metric)


def _rules(card: Card) -> _Table:
    declared = {rule.name: rule for rule in card.use_case.rules}
    return _Table(
        ("rule", "hits where", "then", "share of rows", "precision", "recall"),
        tuple(
            (
                name,
                declared[name].description if name in declared else "",
                declared[name].action if name in declared else "",
                *(text(found[metric]) for metric in ("selection_rate", "precision", "recall")),
            )
            for name, found in card.rules.items()
        ),
    )


def _ablated(found: Ablation) -> _Table:
    return _Table(
        ("group", "part", "features", f"worth in {called(found.metric)}", "CPU of its group"),
        tuple(
            (
                each.group,
                each.part,
                str(len(each.features)),
                text(each.worth, 4),
                "" if each.cpu_seconds is None else f"{each.cpu_seconds:.1f} s",
            )
            for each in found.parts
        ),
    )
