from dataclasses import replace
from datetime import date, timedelta

import numpy as np
import pytest

from nightshift.metrics import Estimate, Groups, Measured, measure
from nightshift.model_card import NIGHTS, VERDICT, with_place
from nightshift.spec import Slice, Threshold, UseCase
from nightshift.training.calibration import Choice
from nightshift.training.card import Card, against_linear, render, summary
from nightshift.training.curves import deciles, precision_recall, roc
from nightshift.training.evaluation import OverTime
from nightshift.training.explanation import Explanation, PartialDependence
from nightshift.training.search import Searched, Trial
from nightshift.training.split import Split
from nightshift.use_cases.churn import CHURN
from nightshift.use_cases.fraud import FRAUD

DAYS = [date(2011, 1, 1) + timedelta(days=91 * i) for i in range(3)]
PARTS = Split((DAYS[0],), (DAYS[1],), (DAYS[2],))
LABELS = np.array([1, 1, 0, 0, 1, 1, 0, 0])
SCORE = np.array([9, 8, 7, 1, 6, 2, 1, 0]) / 10


def card(use_case: UseCase) -> Card:
    groups = Groups(("a", "b", "<c>"), np.array([0] * 4 + [1] * 4), 2)
    test = measure(
        LABELS, np.arange(8), {"model": SCORE, "linear": SCORE[::-1]}, ["model", "linear"], 1, 20,
        working_point=Threshold(score=0.65), slices={"region": groups},
    )  # fmt: skip
    return Card(
        use_case=use_case,
        as_of=date(2011, 10, 1),
        parts=PARTS,
        trees=3,
        validation=test,
        test=test,
        over_time=OverTime(((PARTS, test),), None),
        rates=dict.fromkeys(DAYS, (8, 0.5)),
        gains={CHURN.feature_names[0]: 0.75, CHURN.feature_names[1]: 0.25},
        deciles={"model": deciles(LABELS, np.arange(8), SCORE, 1)},
        scores=SCORE,
        roc={"model": roc(LABELS, SCORE)},
        precision_recall={"model": precision_recall(LABELS, SCORE)},
        explanation=Explanation(
            {CHURN.feature_names[0]: 0.5},
            np.array([[1.0], [np.nan]], dtype=np.float32),
            np.array([[0.5], [-0.5]]),
            (
                PartialDependence(
                    CHURN.feature_names[0], np.array([1.0, 2]), *[np.array([0.1, 0.2])] * 3
                ),
            ),
        ),
        rules={},
        curve=None,
        ablation=None,
        parameters={"eta": 0.05},
        calibration=Choice("platt", {"none": 0.5, "platt": 0.4, "isotonic": 0.45}),
        searched=Searched(
            "churn abc",
            "auc",
            (Split(DAYS[:1], DAYS[1:2], ()),),
            (
                Trial({"max_depth": 4}, 0.7, 1.0),
                Trial({"max_depth": 9}, None, 0.1),
                Trial({"max_depth": 3}, 0.8, 1.0),
            ),
            (2, 0),
        ),
        manifest={"parts": {"part-00000.parquet": {"rows": 24, "sha256": "abc"}}},
        lineage={"code": "c0ffee"},
    )


SLICED = CHURN.model_copy(
    update={
        "gates": CHURN.gates[:2],
        "slices": (Slice(name="region", feature=CHURN.feature_names[0], bands=2, protected=True),),
    }
)


def test_a_card_shows_groups_notes_and_lineage_escaped() -> None:
    html = render(card(SLICED))
    for said in (
        "&lt;c&gt; (0 rows): 0 entities, too few to measure: 2 are asked",
        "selection rate: lowest b 0.000, highest a 0.750, a difference of 0.750",
        "<td>selected</td><td>2</td><td>1</td>",
        "<dt>code</dt><dd><code>c0ffee</code></dd>",
        "<td>part-00000.parquet</td><td>24</td>",
        "The gates have not judged it yet.",
    ):
        assert said in html, said
    assert "Rolling origins" not in html
    assert "Learning curve" not in html
    assert html.count("data:image/svg+xml;base64,") == 10


def test_a_card_tells_what_the_rules_found() -> None:
    found = {m: Estimate(v, 0.1, 0.9) for m, v in
             (("selection_rate", 0.25), ("precision", 0.5), ("recall", float("nan")))}  # fmt: skip
    (first, *_) = FRAUD.rules
    with_rules = SLICED.model_copy(update={"rules": FRAUD.rules})
    html = render(replace(card(with_rules), rules={first.name: found}))
    assert (
        f"<td>{first.name}</td><td>{first.description}</td><td>block</td>"
        "<td>0.250 [0.100, 0.900]</td><td>0.500 [0.100, 0.900]</td><td>undefined</td>"
    ) in html
    assert "The rules beside the model" not in render(card(SLICED))


def test_the_same_figures_give_the_same_card() -> None:
    assert render(card(SLICED)) == render(card(SLICED))


def test_a_verdict_takes_the_place_of_the_one_before() -> None:
    first = with_place(render(card(SLICED)), VERDICT, "<p>it is refused</p>")
    second = with_place(first, VERDICT, "<p>it is promoted</p>")
    assert ("it is refused" in first, "not judged" in first) == (True, False)
    assert ("it is refused" in second, "it is promoted" in second) == (False, True)
    with pytest.raises(ValueError, match="no place for the nights beside the champion"):
        with_place("<html></html>", NIGHTS, "")


def test_the_summary_is_in_words() -> None:
    text = summary(card(SLICED))
    assert text.startswith("# Customer churn: trained as of 2011-10-01")
    assert f"- {CHURN.feature_names[0]} has the largest share of gain, 75%." in text


@pytest.mark.parametrize(
    ("difference", "low", "is_better"),
    [(0.0049, 0.001, False), (0.005, 0.001, True), (0.02, 0.0, False), (-0.01, -0.02, False)],
)
def test_a_model_no_better_than_the_linear_one_is_said_to_be_so(
    difference: float, low: float, is_better: bool
) -> None:
    test = replace(
        measured(), differences={"linear": {"auc": Estimate(difference, low, difference + 0.01)}}
    )
    assert ("NOT better" in against_linear(CHURN, test)) is not is_better


def measured() -> Measured:
    return card(SLICED).test


def test_the_card_tells_how_it_was_calibrated_and_what_the_search_found() -> None:
    html = render(card(SLICED))
    assert "on Platt's line" in html
    assert "none 0.5000, platt 0.4000, isotonic 0.4500" in html
    assert "3 trials, 2 of them to the end, by auc on 1 earlier validations" in html
    assert html.index("0.80000") < html.index("0.70000")
