"""What a person reads about a training run: a page of Markdown and three figures."""

import io
from collections.abc import Iterable, Iterator, Mapping
from datetime import date

import numpy as np
from matplotlib.figure import Figure
from sklearn.metrics import precision_recall_curve, roc_curve

from nightshift.booster import Vector
from nightshift.metrics import Estimate, Measured, SliceFigures
from nightshift.metrics.binary import calibration_bins
from nightshift.spec import (
    METRICS,
    AtLeast,
    AtMost,
    BeatsBaseline,
    BeatsChampion,
    Metric,
    Slice,
    UseCase,
)
from nightshift.training.evaluation import MODEL, OverTime
from nightshift.training.split import Split


def markdown(
    use_case: UseCase,
    as_of: date,
    parts: Split,
    trees: int,
    validation: Measured,
    test: Measured,
    over_time: OverTime,
    gains: Mapping[str, float],
) -> str:
    """The report of one run; every figure with its 95 % bootstrap interval."""
    lines = [
        f"# {use_case.title}: trained as of {as_of}",
        "",
        use_case.description,
        "",
        f"{trees} trees. The figures are those of the evaluation model, which saw no row of the "
        "test snapshots; the model that ships has the same number of trees, fitted to all of them.",
        "",
        "| part | snapshots | from | to |",
        "|---|---:|---|---|",
    ]
    for name in ("train", "validation", "test"):
        dates = getattr(parts, name)
        lines.append(f"| {name} | {len(dates)} | {dates[0]} | {dates[-1]} |")
    for name, measured in (("Test", test), ("Validation", validation)):
        lines += [
            "",
            f"## {name}: {measured.rows:,} rows, {measured.entities:,} entities, mean label "
            f"{_text(measured.base_rate)}",
            *_figures("scorer", measured.scorers),
            "",
            f"The figures of {MODEL} minus those of the others, on the same resamples:",
            *_figures(f"{MODEL} minus", measured.differences),
        ]
        if name == "Test":
            lines += _confusion(measured)
            lines += [line for each in use_case.slices for line in _slice(each, test)]
            lines += _origins(use_case, over_time)
            lines += _staleness(use_case, over_time)
    lines += ["", "## Features by gain", "", "| feature | share of gain |", "|---|---:|"]
    lines += [f"| {name} | {share:.3f} |" for name, share in list(gains.items())[:15]]
    return "\n".join(lines) + "\n"


def _figures(what: str, rows: Mapping[str, Mapping[str, Estimate]]) -> Iterator[str]:
    """A table of each kind of metric, of the rows that have such."""
    for reads in ("order", "scale", "working_point"):
        metrics = _metrics(rows.values(), reads)
        if not metrics:
            continue
        yield from (
            "",
            f"| {what} | " + " | ".join(metrics) + " |",
            "|---|" + "---|" * len(metrics),
        )
        for name, estimates in rows.items():
            if any(metric in estimates for metric in metrics):
                cells = [_text(estimates.get(metric)) for metric in metrics]
                yield f"| {name} | " + " | ".join(cells) + " |"


def _metrics(rows: Iterable[Mapping[str, Estimate]], reads: str) -> list[Metric]:
    found = {metric for estimates in rows for metric in estimates}
    return [name for name, rule in METRICS.items() if name in found and rule.reads == reads]


def _confusion(test: Measured) -> Iterator[str]:
    counts = test.confusion
    if counts is None:
        return
    yield from (
        "",
        f"Selected at the working point: scores of at least {counts.threshold:.4f}.",
        "",
        "| | label 1 | label 0 |",
        "|---|---:|---:|",
        f"| selected | {counts.true_positives:,} | {counts.false_positives:,} |",
        f"| not selected | {counts.false_negatives:,} | {counts.true_negatives:,} |",
    )


def _slice(each: Slice, test: Measured) -> Iterator[str]:
    groups = test.slices[each.name]
    yield from ("", f"### Slice {each.name}: {each.feature}")
    yield from _figures(
        "group", {_group(name, g): g.estimates for name, g in groups.items() if not g.note}
    )
    small = [
        f"- {_group(name, figures)}: {figures.note}"
        for name, figures in groups.items()
        if figures.note
    ]
    yield from ["", *small] if small else ()
    if each.protected:
        yield from _parity(groups)


def _group(name: str, figures: SliceFigures) -> str:
    rate = figures.estimates.get("base_rate")
    return f"{name} ({figures.rows:,} rows" + (f", mean label {_text(rate)})" if rate else ")")


def _parity(groups: Mapping[str, SliceFigures]) -> Iterator[str]:
    yield from ("", "| protected | lowest | highest | difference |", "|---|---|---|---:|")
    for metric in ("selection_rate", "recall"):
        found = {n: g.estimates[metric].value for n, g in groups.items() if metric in g.estimates}
        if len(found) > 1:
            least, most = min(found, key=found.__getitem__), max(found, key=found.__getitem__)
            yield (
                f"| {metric} | {least} {found[least]:.3f} | {most} {found[most]:.3f} | "
                f"{found[most] - found[least]:.3f} |"
            )


def _origins(use_case: UseCase, over_time: OverTime) -> Iterator[str]:
    if len(over_time.origins) < 2:
        return
    yield from ("", "## Rolling origins", "", "Models of several cut-offs, each on the days after.")
    for metric in _judged(use_case):
        scorers = [
            name for name, found in over_time.origins[0][1].scorers.items() if metric in found
        ]
        others = [name for name in scorers if name != MODEL]
        columns = [*scorers, *(f"{MODEL} minus {name}" for name in others)]
        yield from ("", f"| {metric} | " + " | ".join(columns) + " |")
        yield "|---|" + "---|" * len(columns)
        for parts, measured in over_time.origins:
            cells = [_text(measured.scorers[name][metric]) for name in scorers]
            cells += [_text(measured.differences[name][metric]) for name in others]
            test = f"{parts.test[0]} … {parts.test[-1]}"
            yield f"| {test}, of {len(parts.train)} snapshots | " + " | ".join(cells) + " |"


def _staleness(use_case: UseCase, over_time: OverTime) -> Iterator[str]:
    measured = over_time.staleness
    if measured is None:
        return
    yield from ("", "## Staleness", "", "Models of earlier trainings, on the newest test.")
    for metric in _judged(use_case):
        yield from ("", f"| age | {metric} | fresh minus |", "|---|---|---|")
        for age, estimates in measured.scorers.items():
            difference = measured.differences.get(age, {}).get(metric)
            than = _text(difference) if difference else ""
            yield f"| {age} | {_text(estimates[metric])} | {than} |"


def _judged(use_case: UseCase) -> list[Metric]:
    """The metrics of which a gate asks something of the whole."""
    kinds = (AtLeast, AtMost, BeatsBaseline, BeatsChampion)
    found = {gate.metric for gate in use_case.gates if isinstance(gate, kinds)}
    return [name for name in METRICS if name in found]


def gain_shares(gains: Mapping[str, float]) -> dict[str, float]:
    """Each used feature's share of the total gain, largest first."""
    total = sum(gains.values()) or 1.0
    ordered = sorted(gains.items(), key=lambda item: (-item[1], item[0]))
    return {name: gain / total for name, gain in ordered}


def roc_and_pr_png(labels: Vector, scores: Mapping[str, Vector]) -> bytes:
    """ROC and precision-recall curves of each scorer."""
    figure = Figure(figsize=(10, 4.5), layout="constrained")
    roc, pr = figure.subplots(1, 2)
    for name, score in scores.items():
        false_positive, true_positive, _ = roc_curve(labels, score)
        precision, recall, _ = precision_recall_curve(labels, score)
        roc.plot(false_positive, true_positive, label=name)
        pr.plot(recall, precision, label=name)
    roc.plot([0, 1], [0, 1], color="grey", linewidth=0.8, linestyle=":")
    roc.set(title="ROC", xlabel="false positive rate", ylabel="true positive rate")
    pr.set(title="Precision and recall", xlabel="recall", ylabel="precision")
    roc.legend()
    return _png(figure)


def calibration_png(labels: Vector, probabilities: Mapping[str, Vector]) -> bytes:
    """Observed rate against mean score, in equal-mass bins."""
    figure = Figure(figsize=(5, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, score in probabilities.items():
        bins = calibration_bins(score)
        counts = np.bincount(bins)
        used = counts > 0
        predicted = np.bincount(bins, weights=score)[used] / counts[used]
        observed = np.bincount(bins, weights=labels)[used] / counts[used]
        axes.plot(predicted, observed, marker="o", label=name)
    axes.plot([0, 1], [0, 1], color="grey", linewidth=0.8, linestyle=":")
    axes.set(title="Calibration", xlabel="mean score", ylabel="observed rate")
    axes.legend()
    return _png(figure)


def importance_png(gains: Mapping[str, float]) -> bytes:
    """The 20 features with the largest share of gain."""
    top = list(gains.items())[:20][::-1]
    figure = Figure(figsize=(8, 6), layout="constrained")
    axes = figure.subplots()
    axes.barh([name for name, _ in top], [share for _, share in top])
    axes.set(title="Share of gain")
    return _png(figure)


def _text(estimate: Estimate | None) -> str:
    if estimate is None:
        return "n/a"
    if not np.isfinite(estimate.value):
        return "undefined"
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
