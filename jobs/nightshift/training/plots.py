"""The plots of a model card, as SVG in data URIs, so that a page with them needs no other file."""

import base64
import io
from collections.abc import Mapping, Sequence
from datetime import date
from itertools import pairwise
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from nightshift.booster import Vector
from nightshift.metrics import Estimate
from nightshift.metrics.bootstrap import Array
from nightshift.training.curves import Decile
from nightshift.training.explanation import Explanation, PartialDependence
from nightshift.training.split import Split
from nightshift.training.studies import Ablation, LearningCurve, called

HALF, WHOLE = 6.4, 13.2
"""Inches across: half the page, and all of it."""
BEESWARM_FEATURES = 15
COLOURS = ("#1f5fa8", "#d9742b", "#5b8a3c", "#8a5ba8", "#8a6d3b", "#3c8a87")
GREY, MODEL_COLOUR = "#8b949e", COLOURS[0]
_LOW_TO_HIGH = LinearSegmentedColormap.from_list("low to high", ("#2f7ed8", "#b6a1c9", "#e0245e"))
_STYLE: dict[Any, Any] = {
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.grid": True,
    "grid.color": "#e6e9ed",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "savefig.dpi": 130,  # of what is drawn in points: thousands of them
    "svg.hashsalt": "nightshift",  # the same figures give the same bytes
}


def calibration(deciles: Mapping[str, Sequence[Decile]], scores: Vector) -> str:
    """Observed rate against mean score of each tenth of the rows, over how scores are spread."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(HALF, 5.2), layout="constrained")
        axes, below = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=":", label="perfect")
        for (name, found), colour in zip(deciles.items(), COLOURS, strict=False):
            axes.errorbar(
                [each.score for each in found],
                [each.observed.value for each in found],
                yerr=_bars([each.observed for each in found]),
                color=colour, marker="o", markersize=5, capsize=2.5, linewidth=1.3, label=name,
            )  # fmt: skip
        axes.set(ylabel="observed rate", ylim=(-0.02, 1.02))
        axes.legend(loc="upper left")
        below.hist(scores, bins=40, range=(0, 1), color=MODEL_COLOUR, alpha=0.75)
        below.set(xlabel="mean score", ylabel="rows", xlim=(-0.02, 1.02))
        return _uri(figure)


def lift(deciles: Sequence[Decile], base_rate: float) -> str:
    """Observed rate of each tenth of the rows, highest scores first, with the lift above it."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(HALF, 5.2), layout="constrained")
        axes = figure.subplots()
        found = list(reversed(deciles))
        places = np.arange(1, len(found) + 1)
        axes.bar(
            places, [each.observed.value for each in found],
            yerr=_bars([each.observed for each in found]),
            color=MODEL_COLOUR, alpha=0.85, width=0.75, ecolor="#30363d", capsize=2.5,
        )  # fmt: skip
        for place, each in zip(places, found, strict=True):
            axes.annotate(
                f"{each.lift.value:.2f}×", (place, each.observed.high), (0, 4),
                textcoords="offset points", ha="center", fontsize=10,
            )  # fmt: skip
        axes.axhline(base_rate, color=COLOURS[1], linewidth=1.2, linestyle="--")
        axes.annotate(
            f"all: {base_rate:.3f}", (len(found) + 0.55, base_rate), (0, 4),
            textcoords="offset points", ha="right", color=COLOURS[1],
        )  # fmt: skip
        axes.grid(visible=False, axis="x")
        axes.set(xlabel="tenth of the rows, highest scores first", ylabel="mean label")
        axes.set_xticks(places)
        axes.set_ylim(0, max(each.observed.high for each in found) * 1.12)
        return _uri(figure)


def curves(
    found: Mapping[str, tuple[Vector, Vector]], x: str, y: str, chance: float | None = None
) -> str:
    """Each scorer's curve; ``chance`` is the height of a random order's, None for the diagonal."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(HALF, 4.9), layout="constrained")
        axes = figure.subplots()
        heights = [0.0, 1.0] if chance is None else [chance, chance]
        axes.plot([0, 1], heights, color=GREY, linewidth=1, linestyle=":", label="random")
        for (name, points), colour in zip(found.items(), COLOURS, strict=False):
            is_first = colour == MODEL_COLOUR
            axes.plot(*points, color=colour, linewidth=2 if is_first else 1.3, label=name)
        lowest = 0 if chance is None else max(0.0, chance - 0.15)
        axes.set(xlabel=x, ylabel=y, xlim=(-0.01, 1.01), ylim=(lowest, 1.01))
        axes.legend(loc="lower right" if chance is None else "lower left")
        return _uri(figure)


def amounts(deciles: Sequence[Decile]) -> str:
    """Mean label against mean score of each tenth of the rows, of amounts."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(HALF, 4.9), layout="constrained")
        axes = figure.subplots()
        ends = [deciles[0].score, deciles[-1].score]
        axes.plot(ends, ends, color=GREY, linewidth=1, linestyle=":", label="perfect")
        axes.errorbar(
            [each.score for each in deciles], [each.observed.value for each in deciles],
            yerr=_bars([each.observed for each in deciles]),
            color=MODEL_COLOUR, marker="o", capsize=2.5, label="model",
        )  # fmt: skip
        axes.set(xlabel="mean score", ylabel="mean label")
        axes.legend()
        return _uri(figure)


def beeswarm(explained: Explanation, entity: str, unit: str) -> str:
    """A dot a row and feature: its contribution, coloured by the feature's value among the rows."""
    with mpl.rc_context(_STYLE):
        names = list(explained.importance)[:BEESWARM_FEATURES]
        figure = Figure(figsize=(WHOLE, 0.42 * len(names) + 1.1), layout="constrained")
        axes = figure.subplots()
        for place, _ in enumerate(names):
            x = explained.contributions[:, place]
            axes.scatter(
                x, len(names) - 1 - place + _spread(x), c=_ranks(explained.values[:, place]),
                cmap=_LOW_TO_HIGH, vmin=0, vmax=1, s=5, linewidths=0, rasterized=True,
                plotnonfinite=True,
            )  # fmt: skip
        axes.axvline(0, color=GREY, linewidth=1)
        axes.set_yticks(range(len(names)), [_short(name, entity) for name in reversed(names)])
        axes.set_ylim(-0.6, len(names) - 0.4)
        axes.set_xlabel(f"contribution to the score, in {unit}: right raises, left lowers")
        colours = mpl.cm.ScalarMappable(mpl.colors.Normalize(0, 1), _LOW_TO_HIGH)
        bar = figure.colorbar(colours, ax=axes, aspect=40, pad=0.01, ticks=[0, 1])
        bar.ax.set_yticklabels(["lowest\nvalue", "highest\nvalue"])
        bar.outline.set_visible(False)
        return _uri(figure)


def dependence(explained: Explanation, place: int, entity: str, unit: str) -> str:
    """One feature's contribution against its value, a dot a row."""
    with mpl.rc_context(_STYLE):
        name = list(explained.importance)[place]
        figure = Figure(figsize=(HALF, 3.6), layout="constrained")
        axes = figure.subplots()
        x, y = explained.values[:, place], explained.contributions[:, place]
        known = ~np.isnan(x)
        axes.scatter(
            x[known], y[known], s=6, color=MODEL_COLOUR, alpha=0.35, linewidths=0, rasterized=True
        )
        axes.axhline(0, color=GREY, linewidth=1)
        if known.any():
            _limit(axes, x[known])
        axes.set(xlabel=_short(name, entity), ylabel=unit)
        if not known.all():
            axes.set_title(
                f"null ({(~known).mean():.0%}): {y[~known].mean():+.2f} in the mean",
                fontsize=10, fontweight="normal", loc="right",
            )  # fmt: skip
        return _uri(figure)


def partial_dependence(found: PartialDependence, entity: str, score: str) -> str:
    """The mean score by one feature's value, and where most single rows lie."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(HALF, 3.6), layout="constrained")
        axes = figure.subplots()
        axes.fill_between(
            found.grid, found.low, found.high, color=MODEL_COLOUR, alpha=0.15, linewidth=0,
            label="10 % to 90 % of the rows",
        )  # fmt: skip
        axes.plot(found.grid, found.mean, color=MODEL_COLOUR, linewidth=2, label="mean")
        axes.plot(
            found.grid, np.zeros(len(found.grid)), "|", color="#30363d", markersize=9,
            transform=axes.get_xaxis_transform(), clip_on=False,
        )  # fmt: skip
        axes.set(xlabel=_short(found.feature, entity), ylabel=score.replace("_", " "))
        axes.legend(loc="best", fontsize=10)
        return _uri(figure)


def importance(gains: Mapping[str, float], entity: str, most: float | None) -> str:
    """The features with the largest share of gain; ``most`` is what a gate allows."""
    with mpl.rc_context(_STYLE):
        top = list(gains.items())[:15][::-1]
        figure = Figure(figsize=(WHOLE, 0.32 * len(top) + 1.0), layout="constrained")
        axes = figure.subplots()
        bars = axes.barh(
            [_short(name, entity) for name, _ in top], [share for _, share in top],
            color=MODEL_COLOUR, alpha=0.85, height=0.7,
        )  # fmt: skip
        axes.bar_label(bars, [f"{share:.1%}" for _, share in top], padding=4, fontsize=10)
        if most is not None:
            axes.axvline(most, color=COLOURS[1], linestyle="--", linewidth=1.2)
            axes.set_title(f"at most {most:.0%} is allowed", color=COLOURS[1], loc="right")
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.grid(visible=False, axis="y")
        axes.set(xlabel="share of the total gain")
        axes.set_ylim(-0.6, len(top) - 0.4)
        axes.margins(x=0.08)
        return _uri(figure)


def forest(groups: Mapping[str, Estimate], whole: Estimate, floor: float | None, what: str) -> str:
    """A row a group with its interval, over the band of all rows; ``floor`` is what a gate asks."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(HALF, 0.42 * len(groups) + 1.3), layout="constrained")
        axes = figure.subplots()
        axes.axvspan(whole.low, whole.high, color=GREY, alpha=0.25, linewidth=0, label="all rows")
        places = np.arange(len(groups))[::-1]
        axes.errorbar(
            [each.value for each in groups.values()], places,
            xerr=_bars(list(groups.values())),
            fmt="o", color=MODEL_COLOUR, capsize=3, markersize=6,
        )  # fmt: skip
        if floor is not None:
            axes.axvline(floor, color=COLOURS[1], linestyle="--", linewidth=1.2, label="gate")
        axes.set_yticks(places, list(groups))
        axes.set_ylim(-0.6, len(groups) - 0.4)
        axes.set_xlabel(called(what))
        axes.grid(visible=False, axis="y")
        axes.legend(
            loc="lower left", bbox_to_anchor=(0, 1), ncols=2, fontsize=10, borderaxespad=0.1
        )
        return _uri(figure)


def base_rate(rates: Mapping[date, tuple[int, float]], parts: Split, whole: str) -> str:
    """The mean label of each snapshot, and which part of the evaluation it was in."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(WHOLE, 3.4), layout="constrained")
        axes, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        days = list(rates)
        axes.plot(days, [rate for _, rate in rates.values()], color=GREY, linewidth=1.2, zorder=1)
        left = [day for day in days if day not in {*parts.train, *parts.validation, *parts.test}]
        drawn = {"train": parts.train, "validation": parts.validation, "test": parts.test}
        for (name, some), colour in zip(drawn.items(), COLOURS, strict=False):
            axes.scatter(some, [rates[day][1] for day in some], color=colour, s=42, label=name)
        if left:
            axes.scatter(
                left, [rates[day][1] for day in left], s=42, facecolor="white", edgecolor=GREY,
                label="embargo",
            )  # fmt: skip
        axes.set_ylabel(whole)
        axes.margins(y=0.2)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=4, borderaxespad=0.1)
        width = min((b - a).days for a, b in pairwise(days)) * 0.7
        below.bar(days, [rows for rows, _ in rates.values()], width=width, color=GREY, alpha=0.6)
        below.set_ylabel("rows")
        _dates(below)
        return _uri(figure)


def over_time(figures: Mapping[str, Sequence[tuple[date, Estimate]]], what: str) -> str:
    """Each scorer's figure at several cut-offs."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(HALF, 4.0), layout="constrained")
        axes = figure.subplots()
        for number, (name, found) in enumerate(figures.items()):
            days = [mpl.dates.date2num(day) + 1.5 * number for day, _ in found]
            axes.errorbar(
                days, [each.value for _, each in found],
                yerr=_bars([each for _, each in found]),
                color=COLOURS[number % len(COLOURS)], marker="o", markersize=5, capsize=2.5,
                linewidth=2 if number == 0 else 1.2, label=name,
            )  # fmt: skip
        axes.set(ylabel=called(what), xlabel="first test snapshot")
        axes.legend(
            loc="lower left", bbox_to_anchor=(0, 1), ncols=4, fontsize=10, borderaxespad=0.1,
            columnspacing=1.2, handlelength=1.4,
        )  # fmt: skip
        axes.margins(x=0.08)
        _dates(axes)
        return _uri(figure)


def staleness(ages: Mapping[str, Estimate], what: str) -> str:
    """The figure of models by age, all on the same rows."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(HALF, 4.0), layout="constrained")
        axes = figure.subplots()
        places = np.arange(len(ages))
        axes.errorbar(
            places, [each.value for each in ages.values()], yerr=_bars(list(ages.values())),
            color=MODEL_COLOUR, marker="o", capsize=3, linewidth=1.3,
        )  # fmt: skip
        axes.set_xticks(places, list(ages))
        axes.set(xlabel="age of the model", ylabel=called(what))
        axes.margins(x=0.08)
        return _uri(figure)


def learning_curve(curve: LearningCurve) -> str:
    """The figure on train and on validation rows by how many rows there were to learn from."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(HALF, 4.0), layout="constrained")
        axes = figure.subplots()
        rows = [point.rows for point in curve.points]
        axes.plot(
            rows, [point.train for point in curve.points], color=COLOURS[1], marker="o",
            label="on the rows it learned from",
        )  # fmt: skip
        found = [point.validation for point in curve.points]
        axes.errorbar(
            rows, [each.value for each in found], yerr=_bars(found), color=MODEL_COLOUR,
            marker="o", capsize=3, label="on validation",
        )  # fmt: skip
        axes.set_xscale("log", base=2)
        axes.set_xticks(rows, [f"{count:,}" for count in rows])
        axes.minorticks_off()
        axes.set(xlabel="rows to learn from", ylabel=called(curve.metric))
        axes.legend(
            loc="lower left", bbox_to_anchor=(0, 1), ncols=2, fontsize=10, borderaxespad=0.1
        )
        axes.margins(x=0.08)
        return _uri(figure)


def ablation(found: Ablation) -> str:
    """How much better the model is with each part of the features than without."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(HALF, 0.34 * len(found.parts) + 1.2), layout="constrained")
        axes = figure.subplots()
        groups = {each.group for each in found.parts}
        names = [
            each.part if len(groups) == 1 else f"{each.group}: {each.part}" for each in found.parts
        ]
        places = np.arange(len(names))[::-1]
        axes.axvline(0, color=GREY, linewidth=1)
        axes.errorbar(
            [each.worth.value for each in found.parts], places,
            xerr=_bars([each.worth for each in found.parts]),
            fmt="o", color=MODEL_COLOUR, capsize=3, markersize=6,
        )  # fmt: skip
        axes.set_yticks(places, names)
        axes.set_ylim(-0.6, len(names) - 0.4)
        axes.grid(visible=False, axis="y")
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlabel(f"{called(found.metric)} with it, better by")
        return _uri(figure)


def _bars(estimates: Sequence[Estimate]) -> Vector:
    """(2, figures): how far the interval reaches below and above; 0 where it is undefined."""
    below = [each.value - each.low for each in estimates]
    above = [each.high - each.value for each in estimates]
    return np.maximum(np.nan_to_num(np.array([below, above])), 0.0)


def _spread(x: Vector) -> Vector:
    """Heights, at most 0.4, that lay dots of about the same place beside one another."""
    if np.ptp(x) == 0:
        return np.linspace(-0.35, 0.35, len(x))
    bins = np.floor((x - x.min()) / np.ptp(x) * 120).astype(int)
    heights = np.zeros(len(x))
    fullest = np.bincount(bins).max()
    for number in np.unique(bins):
        inside = np.flatnonzero(bins == number)
        width = 0.4 * len(inside) / fullest
        heights[inside] = np.linspace(-width, width, len(inside)) if len(inside) > 1 else 0.0
    return heights


def _ranks(values: Array) -> Vector:
    """Where each value stands among the known ones, 0 … 1; the middle where it is null."""
    ranks = np.full(len(values), 0.5)
    known = ~np.isnan(values)
    ordered = np.sort(values[known])
    if len(ordered):
        low = np.searchsorted(ordered, values[known], side="left")
        high = np.searchsorted(ordered, values[known], side="right")
        ranks[known] = (low + high) / (2 * len(ordered))
    return ranks


def _limit(axes: Axes, x: Array) -> None:
    """Leave out the outermost values of a heavy tail, that the others may be seen."""
    low, high = np.quantile(x, (0.005, 0.99))
    if high > low:
        room = 0.04 * (high - low)
        axes.set_xlim(low - room, high + room)


def _dates(axes: Axes) -> None:
    locator = AutoDateLocator(maxticks=8)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))


def _short(feature: str, entity: str) -> str:
    return feature.removeprefix(f"{entity}_").replace("_", " ")


def _uri(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()
