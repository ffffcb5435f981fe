import numpy as np
import pytest

from nightshift.scoring.threshold import Outcomes, choose
from nightshift.spec import AlertBudget, Alerts, TargetPrecision

BUDGET = Alerts(
    target=AlertBudget(entities=2), low=0.1, high=0.9, step=0.2, initial=0.5, min_nights=1
)
PRECISION = BUDGET.model_copy(update={"target": TargetPrecision(value=0.5)})


def outcomes(scores: list[float], found: list[int], nights: int = 2) -> Outcomes:
    return Outcomes(np.array(scores), np.array(found, dtype=bool), nights, "test nights")


TWO_NIGHTS = outcomes([0.8, 0.7, 0.7, 0.6, 0.4, 0.2], [1, 1, 0, 0, 0, 0])
"""A budget of two a night has room for four."""


def test_a_budget_is_met_by_the_lowest_threshold_that_keeps_it() -> None:
    found = choose(BUDGET, TWO_NIGHTS, None)
    assert found.threshold == 0.6
    assert found.reason == "test nights: 0.6000 alerts of 2.0 a night, 2 are asked"
    assert found.evidence == {
        "nights": 2, "wanted": 0.6, "alerts_a_night": 2.0, "precision": 0.5, "recall": 1.0,
    }  # fmt: skip
    assert choose(BUDGET, TWO_NIGHTS, 0.6) == found, "the same evidence gives the same threshold"


def test_equal_scores_are_alerted_of_together_or_not_at_all() -> None:
    one = BUDGET.model_copy(update={"target": AlertBudget(entities=1)})
    assert choose(one, TWO_NIGHTS, None).threshold == 0.8
    full = choose(one, outcomes([0.7] * 5, [0] * 5), None)
    assert (full.threshold, "more than 1 a night" in full.reason) == (0.9, True)


def test_a_precision_is_met_by_the_lowest_threshold_that_has_it() -> None:
    scores, found = [0.8] * 15 + [0.6] * 10 + [0.3] * 25, [1] * 15 + [0] * 10 + [1] * 5 + [0] * 20
    chosen = choose(PRECISION, outcomes(scores, found), None)
    assert (chosen.threshold, chosen.evidence["precision"]) == (0.6, 0.6)
    assert "has a precision of 0.600, 0.5 is asked" in chosen.reason


def test_few_alerts_tell_no_precision() -> None:
    chosen = choose(PRECISION, TWO_NIGHTS, 0.4)
    assert (chosen.threshold, "the one before is kept" in chosen.reason) == (0.4, True)
    hopeless = choose(PRECISION, outcomes([0.5] * 30, [0] * 30), 0.8)
    assert (hopeless.threshold, "no threshold" in hopeless.reason) == (0.9, True)


@pytest.mark.parametrize(
    ("previous", "threshold", "said"),
    [
        (0.2, 0.4, "; one step of 0.2 from 0.2000"),
        (0.9, 0.7, "; one step of 0.2 from 0.9000"),
        (0.8, 0.6, ""),
        (None, 0.6, ""),
    ],
)
def test_it_moves_a_step_a_night(previous: float | None, threshold: float, said: str) -> None:
    found = choose(BUDGET, TWO_NIGHTS, previous)
    assert found.threshold == pytest.approx(threshold)
    assert found.reason.endswith(f"2 are asked{said}")


def test_it_stays_within_the_guard_rails() -> None:
    low = choose(BUDGET, outcomes([0.05], [0]), None)
    high = choose(BUDGET, outcomes([0.99] * 4, [0] * 4), None)
    assert (low.threshold, high.threshold) == (0.1, 0.9)
    assert high.reason.endswith("; held at the guard rail 0.9")


def test_without_outcomes_the_one_before_is_kept_or_the_initial_one() -> None:
    assert choose(BUDGET, None, 0.3).threshold == 0.3
    first = choose(BUDGET, None, None)
    assert (first.threshold, first.reason) == (0.5, "no outcome is known yet: the initial one")
