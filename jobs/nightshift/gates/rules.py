"""Each gate as a function of the evidence: what was observed, against what, and why it passed."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeGuard

from nightshift.metrics import Estimate, SliceFigures
from nightshift.spec import (
    METRICS,
    AtLeast,
    AtMost,
    BeatsBaseline,
    BeatsChampion,
    CalibrationWithin,
    GainShareAtMost,
    Gate,
    LoadsAndScores,
    Metric,
    ParityWithin,
    Reproducible,
    SliceAtLeast,
    gate_name,
)

NAN = float("nan")
# What two roundings of the same figure may differ by: equal to a threshold passes.
ROUNDING = 1e-9


@dataclass(frozen=True)
class Reign:
    """The reigning champion, measured on the candidate's test rows.

    ``difference`` is metric → the candidate's figure minus the champion's. ``is_obsolete``: the
    champion reads features that are no longer declared, so that it cannot score tonight.
    ``problem``: why the champion could not be measured at all.
    """

    version: str
    difference: Mapping[str, Estimate]
    is_obsolete: bool = False
    problem: str = ""


@dataclass(frozen=True)
class Sample:
    """What a fresh process did with the shipped model: its scores' digest, or why it failed."""

    expected_sha256: str
    found_sha256: str | None
    problem: str = ""


@dataclass(frozen=True)
class Rebuilt:
    """What a fresh process made of the dataset and the seed: the model's digest, or why none."""

    expected_sha256: str
    found_sha256: str | None
    problem: str = ""


@dataclass(frozen=True)
class Evidence:
    """``model``: metric → estimate on the test rows. ``differences``: baseline → metric → the
    model's figure minus the baseline's. ``slices``: slice → group → the model's figures.
    ``gains``: feature → share of the model's total gain. ``problem``: why those four are missing,
    if they are. ``champion`` is None when there is none yet. ``sample`` and ``rebuilt`` are None
    where no gate asks for them."""

    model: Mapping[str, Estimate]
    differences: Mapping[str, Mapping[str, Estimate]]
    slices: Mapping[str, Mapping[str, SliceFigures]]
    gains: Mapping[str, float]
    champion: Reign | None
    sample: Sample | None
    rebuilt: Rebuilt | None
    problem: str = ""


@dataclass(frozen=True)
class GateResult:
    """One gate's outcome; ``observed`` and ``threshold`` are None where there is no figure."""

    gate: str
    passed: bool
    observed: float | None
    threshold: float | None
    detail: str


def judge_gate(gate: Gate, evidence: Evidence) -> GateResult:
    """Judge one gate. A figure that is missing or not finite fails; one that equals the threshold
    passes."""
    match gate:
        case AtLeast() | AtMost():
            return _within(gate, evidence)
        case BeatsBaseline():
            return _beats_baseline(gate, evidence)
        case BeatsChampion():
            return _beats_champion(gate, evidence)
        case SliceAtLeast():
            return _slice_at_least(gate, evidence)
        case CalibrationWithin():
            return _calibration_within(gate, evidence)
        case ParityWithin():
            return _parity_within(gate, evidence)
        case GainShareAtMost():
            return _gain_share_at_most(gate, evidence)
        case Reproducible():
            return _reproducible(gate, evidence)
        case LoadsAndScores():
            return _loads_and_scores(gate, evidence)


def _within(gate: AtLeast | AtMost, evidence: Evidence) -> GateResult:
    found = evidence.model.get(gate.metric)
    if not _is_known(found):
        return _missing(gate, gate.value, evidence, f"the run has no {gate.metric}")
    if isinstance(gate, AtLeast):
        passed, asked = found.value >= gate.value - ROUNDING, "at least"
    else:
        passed, asked = found.value <= gate.value + ROUNDING, "at most"
    return GateResult(
        gate_name(gate), passed, found.value, gate.value,
        f"{gate.metric} {_text(found)}, {asked} {gate.value:g} is asked",
    )  # fmt: skip


def _beats_baseline(gate: BeatsBaseline, evidence: Evidence) -> GateResult:
    difference = evidence.differences.get(gate.baseline, {}).get(gate.metric)
    found = _improvement(gate.metric, difference)
    if not _is_known(found):
        why = f"the run has no {gate.metric} against {gate.baseline}"
        return _missing(gate, gate.by, evidence, why)
    passed = found.value >= gate.by - ROUNDING and found.low > 0
    return GateResult(
        gate_name(gate), passed, found.value, gate.by,
        f"{gate.metric} better than that of {gate.baseline} by {_text(found)}; at least "
        f"{gate.by:g} is asked, with an interval above 0",
    )  # fmt: skip


def _beats_champion(gate: BeatsChampion, evidence: Evidence) -> GateResult:
    reign, name = evidence.champion, gate_name(gate)
    threshold = gate.by if gate.by > 0 else -gate.tolerance
    if reign is None:
        return GateResult(name, True, None, threshold, "there is no champion yet")
    if reign.is_obsolete:
        return GateResult(
            name, True, None, threshold,
            f"champion version {reign.version} reads features that are no longer declared and "
            "cannot score; there is nothing to compare with",
        )  # fmt: skip
    found = _improvement(gate.metric, reign.difference.get(gate.metric))
    if not _is_known(found):
        why = reign.problem or f"no {gate.metric} against champion version {reign.version}"
        return GateResult(name, False, NAN, threshold, why)
    passed = found.value >= threshold - ROUNDING and found.low >= -gate.tolerance - ROUNDING
    return GateResult(
        name, passed, found.value, threshold,
        f"{gate.metric} better than that of champion version {reign.version} by {_text(found)}; at "
        f"least {threshold:g} is asked, with an interval from {-gate.tolerance:g} on",
    )  # fmt: skip


def _slice_at_least(gate: SliceAtLeast, evidence: Evidence) -> GateResult:
    large, small = _groups(evidence, gate.slice)
    if not large:
        return _missing(gate, gate.value, evidence, _no_groups(gate.slice, small, 1))
    for group, figures in large.items():
        if not _is_known(figures.estimates.get(gate.metric)):
            why = f"the run has no {gate.metric} of {gate.slice} {group!r}"
            return _missing(gate, gate.value, evidence, why)
    figure = {group: each.estimates[gate.metric] for group, each in large.items()}
    worst = min(figure, key=lambda group: figure[group].value)
    low = [group for group, each in figure.items() if each.value < gate.value - ROUNDING]
    return GateResult(
        gate_name(gate), not low, figure[worst].value, gate.value,
        f"{gate.metric} of {gate.slice} "
        + ", ".join(f"{group!r} {_text(figure[group])}" for group in low or [worst])
        + f"; at least {gate.value:g} is asked of each group" + _left_out(small),
    )  # fmt: skip


def _calibration_within(gate: CalibrationWithin, evidence: Evidence) -> GateResult:
    known = [m for m in ("calibration_error", "total_bias") if m in evidence.model]
    found = evidence.model[known[0]] if known else None
    if not _is_known(found):
        why = "the run has no calibration_error, nor a total_bias"
        return _missing(gate, gate.value, evidence, why)
    passed = abs(found.value) <= gate.value + ROUNDING
    return GateResult(
        gate_name(gate), passed, found.value, gate.value,
        f"{known[0]} {_text(found)}, at most {gate.value:g} is asked",
    )  # fmt: skip


def _parity_within(gate: ParityWithin, evidence: Evidence) -> GateResult:
    large, small = _groups(evidence, gate.slice)
    if len(large) < 2:
        return _missing(gate, gate.value, evidence, _no_groups(gate.slice, small, 2))
    for group, figures in large.items():
        if not _is_known(figures.estimates.get(gate.metric)):
            why = f"the run has no {gate.metric} of {gate.slice} {group!r}"
            return _missing(gate, gate.value, evidence, why)
    figure = {group: each.estimates[gate.metric] for group, each in large.items()}
    least = min(figure, key=lambda group: figure[group].value)
    most = max(figure, key=lambda group: figure[group].value)
    gap = figure[most].value - figure[least].value
    return GateResult(
        gate_name(gate), gap <= gate.value + ROUNDING, gap, gate.value,
        f"{gate.metric} of {gate.slice} {most!r} {_text(figure[most])}, of {least!r} "
        f"{_text(figure[least])}; a difference of at most {gate.value:g} is asked"
        + _left_out(small),
    )  # fmt: skip


def _gain_share_at_most(gate: GainShareAtMost, evidence: Evidence) -> GateResult:
    if not evidence.gains:
        return _missing(gate, gate.share, evidence, "the model has no split, so no share of gain")
    if not all(math.isfinite(share) for share in evidence.gains.values()):
        return _missing(gate, gate.share, evidence, "the model's gains are not finite")
    greatest = max(evidence.gains, key=lambda name: evidence.gains[name])
    share = evidence.gains[greatest]
    return GateResult(
        gate_name(gate), share <= gate.share + ROUNDING, share, gate.share,
        f"{greatest} has {share:.1%} of the gain, at most {gate.share:.1%} is asked of each",
    )  # fmt: skip


def _reproducible(gate: Reproducible, evidence: Evidence) -> GateResult:
    return _by_fresh_process(
        gate, evidence.rebuilt, "the model was not built again",
        different="made model {found}… of the same dataset and seed, training {expected}…",
        same="made the same bytes ({found}…)",
    )  # fmt: skip


def _loads_and_scores(gate: LoadsAndScores, evidence: Evidence) -> GateResult:
    return _by_fresh_process(
        gate, evidence.sample, "the model was not loaded",
        different="scored the sample to {found}…, training to {expected}…",
        same="scored the sample to the same bytes ({found}…)",
    )  # fmt: skip


def _by_fresh_process(
    gate: Gate, did: Rebuilt | Sample | None, why_not: str, different: str, same: str
) -> GateResult:
    name = gate_name(gate)
    if did is None or did.found_sha256 is None:
        why = did.problem if did else why_not
        return GateResult(name, False, None, None, f"a fresh process failed: {why}")
    is_same = did.found_sha256 == did.expected_sha256
    told = (same if is_same else different).format(
        found=did.found_sha256[:12], expected=did.expected_sha256[:12]
    )
    return GateResult(name, is_same, None, None, f"a fresh process {told}")


def _missing(gate: Gate, threshold: float, evidence: Evidence, why: str) -> GateResult:
    return GateResult(gate_name(gate), False, NAN, threshold, evidence.problem or why)


def _is_known(found: Estimate | None) -> TypeGuard[Estimate]:
    return found is not None and all(
        math.isfinite(figure) for figure in (found.value, found.low, found.high)
    )


def _improvement(metric: Metric, difference: Estimate | None) -> Estimate | None:
    """The difference, positive where the candidate is the better one."""
    if difference is None or METRICS[metric].better == "higher":
        return difference
    return Estimate(-difference.value, -difference.high, -difference.low)


def _groups(
    evidence: Evidence, slice_name: str
) -> tuple[dict[str, SliceFigures], dict[str, SliceFigures]]:
    """The groups of a slice that were measured, and those that were too small."""
    groups = evidence.slices.get(slice_name, {})
    small = {group: figures for group, figures in groups.items() if figures.note}
    return {group: each for group, each in groups.items() if group not in small}, small


def _no_groups(slice_name: str, small: Mapping[str, SliceFigures], asked: int) -> str:
    return f"the run has fewer than {asked} measured groups of {slice_name}" + _left_out(small)


def _left_out(small: Mapping[str, SliceFigures]) -> str:
    return "".join(f"; {group!r}: {figures.note}" for group, figures in small.items())


def _text(estimate: Estimate) -> str:
    return f"{estimate.value:.4f} [{estimate.low:.4f}, {estimate.high:.4f}]"
