"""What a person reads about a training run: a page of Markdown and three figures."""

import io
from collections.abc import Mapping
from datetime import date

import numpy as np
from matplotlib.figure import Figure
from sklearn.metrics import precision_recall_curve, roc_curve

from nightshift.booster import Vector
from nightshift.metrics import PROBABILITY, RANKING, Estimate, Measured, calibration_bins
from nightshift.spec import UseCase
from nightshift.training.split import Split


def markdown(
    use_case: UseCase,
    as_of: date,
    parts: Split,
    trees: int,
    validation: Measured,
    test: Measured,
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
            f"## {name}: {measured.rows:,} rows, {measured.entities:,} entities, base rate "
            f"{_text(measured.base_rate)}",
            "",
            "| scorer | " + " | ".join(RANKING + PROBABILITY) + " |",
            "|---|" + "---|" * len(RANKING + PROBABILITY),
        ]
        for scorer, estimates in measured.scorers.items():
            cells = [_text(estimates.get(metric)) for metric in RANKING + PROBABILITY]
            lines.append(f"| {scorer} | " + " | ".join(cells) + " |")
        lines += ["", "| model minus | auc | average_precision |", "|---|---|---|"]
        for baseline, estimates in measured.differences.items():
            lines.append(
                f"| {baseline} | " + " | ".join(_text(estimates[m]) for m in RANKING) + " |"
            )
    lines += ["", "## Features by gain", "", "| feature | share of gain |", "|---|---:|"]
    lines += [f"| {name} | {share:.3f} |" for name, share in list(gains.items())[:15]]
    return "\n".join(lines) + "\n"


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
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
