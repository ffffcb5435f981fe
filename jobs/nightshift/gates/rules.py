"""Each gate as a function of the evidence: what was observed, against what, and why it passed."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from nightshift.metrics import Estimate
from nightshift.spec import (
    AtLeast,
    BeatsBaseline,
    BeatsChampion,
    CalibrationWithin,
    Gate,
    LoadsAndScores,
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
class Evidence:
    """``model``: metric → estimate on the test rows. ``differences``: baseline → metric → the
    model's figure minus the baseline's. ``champion`` is None when there is none yet."""

    model: Mapping[str, Estimate]
    differences: Mapping[str, Mapping[str, Estimate]]
    champion: Reign | None
    sample: Sample


@dataclass(frozen=True)
class GateResult:
    """One gate's outcome; ``observed`` and ``threshold`` are None where there is no figure."""

    gate: str
    passed: bool
    observed: float | None
    threshold: float | None
    detail: str


def judge_gate(gate: Gate, evidence: Evidence) -> GateResult:
    """Judge one gate. A figure that is missing or NaN fails; one equal to the threshold passes."""
    match gate:
        case AtLeast():
            return _at_least(gate, evidence)
        case BeatsBaseline():
            return _beats_baseline(gate, evidence)
        case BeatsChampion():
            return _beats_champion(gate, evidence)
        case CalibrationWithin():
            return _calibration_within(gate, evidence)
        case LoadsAndScores():
            return _loads_and_scores(gate, evidence)


def _at_least(gate: AtLeast, evidence: Evidence) -> GateResult:
    found = evidence.model.get(gate.metric)
    if found is None or math.isnan(found.value):
        return _missing(gate, gate.value, f"the run has no {gate.metric}")
    passed = found.value >= gate.value - ROUNDING
    return GateResult(
        gate_name(gate), passed, found.value, gate.value,
        f"{gate.metric} {_text(found)}, at least {gate.value:g} is asked",
    )  # fmt: skip


def _beats_baseline(gate: BeatsBaseline, evidence: Evidence) -> GateResult:
    found = evidence.differences.get(gate.baseline, {}).get(gate.metric)
    if found is None or math.isnan(found.value) or math.isnan(found.low):
        return _missing(gate, gate.by, f"the run has no {gate.metric} against {gate.baseline}")
    passed = found.value >= gate.by - ROUNDING and found.low > 0
    return GateResult(
        gate_name(gate), passed, found.value, gate.by,
        f"{gate.metric} minus that of {gate.baseline}: {_text(found)}; at least {gate.by:g} is "
        "asked, with an interval above 0",
    )  # fmt: skip


def _beats_champion(gate: BeatsChampion, evidence: Evidence) -> GateResult:
    reign, name = evidence.champion, gate_name(gate)
    if reign is None:
        return GateResult(name, True, None, -gate.tolerance, "there is no champion yet")
    if reign.is_obsolete:
        return GateResult(
            name, True, None, -gate.tolerance,
            f"champion version {reign.version} reads features that are no longer declared and "
            "cannot score; there is nothing to compare with",
        )  # fmt: skip
    found = reign.difference.get(gate.metric)
    if found is None or math.isnan(found.value):
        why = reign.problem or f"no {gate.metric} against champion version {reign.version}"
        return _missing(gate, -gate.tolerance, why)
    passed = found.value >= -gate.tolerance - ROUNDING
    return GateResult(
        name, passed, found.value, -gate.tolerance,
        f"{gate.metric} minus that of champion version {reign.version}: {_text(found)}; at least "
        f"{-gate.tolerance:g} is asked",
    )  # fmt: skip


def _calibration_within(gate: CalibrationWithin, evidence: Evidence) -> GateResult:
    found = evidence.model.get("calibration_error")
    if found is None or math.isnan(found.value):
        return _missing(gate, gate.value, "the run has no calibration_error")
    passed = found.value <= gate.value + ROUNDING
    return GateResult(
        gate_name(gate), passed, found.value, gate.value,
        f"expected calibration error {_text(found)}, at most {gate.value:g} is asked",
    )  # fmt: skip


def _loads_and_scores(gate: LoadsAndScores, evidence: Evidence) -> GateResult:
    sample, name = evidence.sample, gate_name(gate)
    if sample.found_sha256 is None:
        return GateResult(name, False, None, None, f"a fresh process failed: {sample.problem}")
    if sample.found_sha256 != sample.expected_sha256:
        return GateResult(
            name, False, None, None,
            f"a fresh process scored the sample to {sample.found_sha256[:12]}…, training to "
            f"{sample.expected_sha256[:12]}…",
        )  # fmt: skip
    return GateResult(
        name, True, None, None,
        f"a fresh process scored the sample to the same bytes ({sample.found_sha256[:12]}…)",
    )  # fmt: skip


def _missing(gate: Gate, threshold: float, why: str) -> GateResult:
    return GateResult(gate_name(gate), False, NAN, threshold, why)


def _text(estimate: Estimate) -> str:
    return f"{estimate.value:.4f} [{estimate.low:.4f}, {estimate.high:.4f}]"
