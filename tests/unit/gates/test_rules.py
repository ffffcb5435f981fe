from dataclasses import replace

import pytest

from nightshift.gates.rules import Evidence, GateResult, Reign, Sample, judge_gate
from nightshift.metrics import Estimate
from nightshift.spec import (
    AtLeast,
    BeatsBaseline,
    BeatsChampion,
    CalibrationWithin,
    LoadsAndScores,
)

NAN = float("nan")
NOTHING = Evidence(model={}, differences={}, champion=None, sample=Sample("aa", "aa"))


def estimate(value: float, low: float | None = None) -> Estimate:
    return Estimate(value, value - 0.02 if low is None else low, value + 0.02)


@pytest.mark.parametrize(
    ("auc", "passed"), [(0.6499, False), (0.65, True), (0.6501, True), (NAN, False)]
)
def test_at_least(auc: float, passed: bool) -> None:
    gate = AtLeast(metric="auc", value=0.65)
    result = judge_gate(gate, replace(NOTHING, model={"auc": estimate(auc)}))
    assert (result.gate, result.passed, result.threshold) == ("at_least_auc", passed, 0.65)


@pytest.mark.parametrize(
    ("difference", "low", "passed"),
    [
        (0.0099, 0.005, False),
        (0.01, 0.005, True),
        (0.0101, 0.005, True),
        (0.05, 0.0, False),
        (0.05, -0.001, False),
        (NAN, 0.005, False),
        (0.05, NAN, False),
    ],
)
def test_beats_baseline(difference: float, low: float, passed: bool) -> None:
    gate = BeatsBaseline(metric="auc", baseline="recency", by=0.01)
    found = {"recency": {"auc": estimate(difference, low)}}
    assert judge_gate(gate, replace(NOTHING, differences=found)).passed is passed


def test_another_baseline_is_no_evidence() -> None:
    gate = BeatsBaseline(metric="auc", baseline="recency", by=0.01)
    found = {"linear": {"auc": estimate(0.5)}, "recency": {"average_precision": estimate(0.5)}}
    result = judge_gate(gate, replace(NOTHING, differences=found))
    assert not result.passed
    assert result.detail == "the run has no auc against recency"


@pytest.mark.parametrize(
    ("difference", "passed"),
    [(-0.0101, False), (-0.01, True), (-0.0099, True), (0.2, True), (NAN, False)],
)
def test_beats_champion(difference: float, passed: bool) -> None:
    gate = BeatsChampion(metric="auc", tolerance=0.01)
    reign = Reign("7", {"auc": estimate(difference)})
    result = judge_gate(gate, replace(NOTHING, champion=reign))
    assert (result.passed, result.threshold) == (passed, -0.01)


def test_without_a_champion_the_gate_passes_and_says_so() -> None:
    result = judge_gate(BeatsChampion(metric="auc", tolerance=0.01), NOTHING)
    assert result == GateResult("beats_champion_auc", True, None, -0.01, "there is no champion yet")


def test_a_champion_of_features_that_are_gone_is_no_rival() -> None:
    reign = Reign("7", {}, is_obsolete=True)
    gate = BeatsChampion(metric="auc", tolerance=0.01)
    result = judge_gate(gate, replace(NOTHING, champion=reign))
    assert result.passed
    assert "champion version 7 reads features that are no longer declared" in result.detail


def test_a_champion_that_cannot_be_read_does_not_pass_silently() -> None:
    reign = Reign("7", {}, problem="model.ubj is damaged")
    gate = BeatsChampion(metric="auc", tolerance=0.01)
    result = judge_gate(gate, replace(NOTHING, champion=reign))
    assert (result.passed, result.detail) == (False, "model.ubj is damaged")


@pytest.mark.parametrize(
    ("error", "passed"), [(0.1499, True), (0.15, True), (0.1501, False), (NAN, False)]
)
def test_calibration_within(error: float, passed: bool) -> None:
    found = replace(NOTHING, model={"calibration_error": estimate(error)})
    assert judge_gate(CalibrationWithin(value=0.15), found).passed is passed


@pytest.mark.parametrize("gate", [AtLeast(metric="auc", value=0.0), CalibrationWithin(value=1.0)])
def test_a_metric_that_is_missing_fails(gate: AtLeast | CalibrationWithin) -> None:
    result = judge_gate(gate, NOTHING)
    assert not result.passed
    assert "the run has no" in result.detail


@pytest.mark.parametrize(
    ("sample", "passed", "detail"),
    [
        (Sample("aa", "aa"), True, "the same bytes"),
        (Sample("aa", "ab"), False, "scored the sample to ab…, training to aa…"),
        (Sample("aa", None, "no such file"), False, "a fresh process failed: no such file"),
    ],
)
def test_loads_and_scores(sample: Sample, passed: bool, detail: str) -> None:
    result = judge_gate(LoadsAndScores(), replace(NOTHING, sample=sample))
    assert result.passed is passed
    assert detail in result.detail
