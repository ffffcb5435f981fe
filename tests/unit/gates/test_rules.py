from dataclasses import replace

import pytest

from nightshift.gates.rules import Evidence, GateResult, Rebuilt, Reign, Sample, judge_gate
from nightshift.metrics import Estimate, SliceFigures
from nightshift.spec import (
    AtLeast,
    AtMost,
    BeatsBaseline,
    BeatsChampion,
    CalibrationWithin,
    GainShareAtMost,
    Gate,
    LoadsAndScores,
    ParityWithin,
    Reproducible,
    SliceAtLeast,
)

NAN = float("nan")
INFINITE = float("inf")
NOTHING = Evidence(
    model={}, differences={}, slices={}, gains={}, champion=None, sample=None, rebuilt=None
)


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
    ("difference", "low", "passed"),
    [
        (0.0, -0.0101, False),
        (0.0, -0.01, True),
        (-0.005, -0.0099, True),
        (0.2, 0.1, True),
        (-0.0101, -0.0101, False),
        (NAN, 0.0, False),
        (0.1, NAN, False),
    ],
)
def test_beats_champion(difference: float, low: float, passed: bool) -> None:
    """Never inferior beyond the tolerance: the interval says so, not the point figure."""
    gate = BeatsChampion(metric="auc", tolerance=0.01)
    reign = Reign("7", {"auc": estimate(difference, low)})
    result = judge_gate(gate, replace(NOTHING, champion=reign))
    assert (result.passed, result.threshold) == (passed, -0.01)


@pytest.mark.parametrize(("difference", "passed"), [(0.0099, False), (0.01, True), (0.02, True)])
def test_beats_champion_by_a_margin(difference: float, passed: bool) -> None:
    gate = BeatsChampion(metric="auc", by=0.01, tolerance=0.05)
    reign = Reign("7", {"auc": estimate(difference)})
    result = judge_gate(gate, replace(NOTHING, champion=reign))
    assert (result.passed, result.threshold) == (passed, 0.01)


def test_a_loss_is_better_when_it_is_lower() -> None:
    lower, higher = Estimate(-0.05, -0.07, -0.04), Estimate(0.05, 0.04, 0.07)
    beats = BeatsBaseline(metric="log_loss", baseline="linear", by=0.04)
    champion = BeatsChampion(metric="log_loss", tolerance=0.01)
    for difference, passed in ((lower, True), (higher, False)):
        evidence = replace(
            NOTHING,
            differences={"linear": {"log_loss": difference}},
            champion=Reign("7", {"log_loss": difference}),
        )
        found = judge_gate(beats, evidence), judge_gate(champion, evidence)
        assert [result.passed for result in found] == [passed, passed]
        assert found[0].observed == -difference.value


@pytest.mark.parametrize(
    ("auc", "passed"), [(0.9699, True), (0.97, True), (0.9701, False), (NAN, False)]
)
def test_at_most(auc: float, passed: bool) -> None:
    gate = AtMost(metric="auc", value=0.97)
    result = judge_gate(gate, replace(NOTHING, model={"auc": estimate(auc)}))
    assert (result.gate, result.passed, result.threshold) == ("at_most_auc", passed, 0.97)


def figures(**values: float) -> SliceFigures:
    return SliceFigures(500, 250, {metric: estimate(value) for metric, value in values.items()})


SMALL = SliceFigures(40, 20, {}, "20 entities, too few to measure: 100 are asked")


@pytest.mark.parametrize(
    ("worst", "passed"), [(0.5999, False), (0.6, True), (0.6001, True), (NAN, False)]
)
def test_slice_at_least(worst: float, passed: bool) -> None:
    groups = {"below 30": figures(auc=0.8), "from 30": figures(auc=worst), "null": SMALL}
    gate = SliceAtLeast(slice="tenure", metric="auc", value=0.6)
    result = judge_gate(gate, replace(NOTHING, slices={"tenure": groups}))
    assert (result.gate, result.passed) == ("slice_at_least_tenure_auc", passed)
    assert "'from 30'" in result.detail
    if worst == worst:
        assert "'null': 20 entities, too few to measure" in result.detail


@pytest.mark.parametrize(
    ("other", "passed"), [(0.3, True), (0.3999, True), (0.4, True), (0.4001, False), (NAN, False)]
)
def test_parity_within(other: float, passed: bool) -> None:
    gate = ParityWithin(slice="region", metric="selection_rate", value=0.1)
    groups = {"a": figures(selection_rate=0.3), "b": figures(selection_rate=other), "c": SMALL}
    result = judge_gate(gate, replace(NOTHING, slices={"region": groups}))
    assert (result.gate, result.passed) == ("parity_within_region_selection_rate", passed)


def test_one_group_alone_shows_no_parity() -> None:
    gate = ParityWithin(slice="region", metric="recall", value=1.0)
    groups = {"a": figures(recall=0.3), "b": SMALL}
    result = judge_gate(gate, replace(NOTHING, slices={"region": groups}))
    assert not result.passed
    assert result.detail.startswith("the run has fewer than 2 measured groups of region; 'b': 20")


@pytest.mark.parametrize(
    ("rebuilt", "passed", "detail"),
    [
        (Rebuilt("aa", "aa"), True, "made the same bytes (aa"),
        (Rebuilt("aa", "ab"), False, "made model ab… of the same dataset and seed, training aa…"),
        (Rebuilt("aa", None, "no manifest"), False, "a fresh process failed: no manifest"),
        (None, False, "the model was not built again"),
    ],
)
def test_reproducible(rebuilt: Rebuilt | None, passed: bool, detail: str) -> None:
    result = judge_gate(Reproducible(), replace(NOTHING, rebuilt=rebuilt))
    assert result.passed is passed
    assert detail in result.detail


EVERY_GATE: list[Gate] = [
    AtLeast(metric="auc", value=0.0),
    AtMost(metric="auc", value=1.0),
    BeatsBaseline(metric="auc", baseline="recency", by=0.0),
    BeatsChampion(metric="auc", tolerance=1.0),
    SliceAtLeast(slice="tenure", metric="auc", value=0.0),
    CalibrationWithin(value=1.0),
    ParityWithin(slice="tenure", metric="selection_rate", value=1.0),
    GainShareAtMost(share=0.999),
    Reproducible(),
    LoadsAndScores(),
]


@pytest.mark.parametrize("gate", EVERY_GATE, ids=lambda gate: gate.kind)
def test_without_evidence_every_gate_fails(gate: Gate) -> None:
    assert not judge_gate(gate, replace(NOTHING, champion=Reign("7", {}))).passed


@pytest.mark.parametrize("gate", EVERY_GATE[:8], ids=lambda gate: gate.kind)
@pytest.mark.parametrize("figure", [NAN, INFINITE, -INFINITE])
def test_a_figure_that_is_none_fails_every_gate(gate: Gate, figure: float) -> None:
    found = {"auc": estimate(figure), "calibration_error": estimate(figure)}
    groups = {name: figures(auc=figure, selection_rate=figure) for name in ("a", "b")}
    evidence = Evidence(
        found, {"recency": found}, {"tenure": groups}, {"recency": figure}, Reign("7", found),
        None, None,
    )  # fmt: skip
    assert not judge_gate(gate, evidence).passed


def test_the_level_of_amounts_is_within_on_either_side() -> None:
    for bias, passed in ((-0.06, False), (-0.05, True), (0.05, True), (0.06, False)):
        found = replace(NOTHING, model={"total_bias": estimate(bias)})
        assert judge_gate(CalibrationWithin(value=0.05), found).passed is passed


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


@pytest.mark.parametrize(
    ("gains", "passed"),
    [
        ({"recency": 0.4, "leak": 0.5999}, True),
        ({"recency": 0.4, "leak": 0.6}, True),
        ({"recency": 0.3999, "leak": 0.6001}, False),
        ({"recency": 1.0}, False),
        ({"recency": NAN, "leak": 0.1}, False),
        ({}, False),
    ],
)
def test_no_feature_has_most_of_the_gain(gains: dict[str, float], passed: bool) -> None:
    result = judge_gate(GainShareAtMost(share=0.6), replace(NOTHING, gains=gains))
    assert (result.gate, result.passed, result.threshold) == ("gain_share_at_most", passed, 0.6)
    if "leak" in gains and gains["leak"] > 0.1:
        assert result.detail.startswith("leak has ")
