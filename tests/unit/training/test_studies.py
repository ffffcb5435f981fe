"""Real models on tiny data of which the answer is known."""

from datetime import date

import numpy as np
import pytest

from nightshift.metrics import Estimate
from nightshift.spec import Studies
from nightshift.training.dataset import Dataset
from nightshift.training.evaluation import refit
from nightshift.training.fit import recipe
from nightshift.training.split import Split
from nightshift.training.studies import (
    LearningCurve,
    LearningPoint,
    ablation,
    families,
    learning_curve,
    learning_rows,
    reading,
)
from nightshift.use_cases.churn import CHURN

PARTS = Split((date(2011, 1, 1),), (date(2011, 4, 1),), (date(2011, 7, 1),))
TOLD_BY = CHURN.feature_names.index("customer_purchase_price_mean_365d")


def dataset(entities: int = 300) -> Dataset:
    """One feature tells the label, the others are noise; the test's labels would break a metric."""
    random = np.random.default_rng(3)
    days = [PARTS.train[0], PARTS.validation[0], PARTS.test[0]]
    matrix = random.normal(size=(3 * entities, len(CHURN.feature_names))).astype(np.float32)
    labels = (matrix[:, TOLD_BY] + random.normal(size=3 * entities) > 0).astype(np.int32)
    labels[2 * entities :] = 0
    return Dataset(
        manifest={},
        feature_names=CHURN.feature_names,
        keys=np.array([f"c{i % entities}" for i in range(3 * entities)]),
        snapshots=np.repeat(np.array(days, dtype="datetime64[D]"), entities),
        labels=labels,
        matrix=matrix,
        items=None,
    )


def test_a_learning_curve_takes_whole_entities_and_rises() -> None:
    use_case = CHURN.model_copy(update={"studies": Studies(learning_curve=(0.1, 0.5))})
    curve = learning_curve(
        use_case,
        dataset(),
        PARTS,
        "auc",
        lambda learned: refit(learned, PARTS, recipe(use_case, 1)),
        1,
    )
    assert [(p.share, p.rows, p.entities) for p in curve.points] == [
        (0.1, 30, 30),
        (0.5, 150, 150),
        (1.0, 300, 300),
    ]
    first, _, last = curve.points
    assert first.behind is not None
    assert last.behind is None
    assert first.behind.value == pytest.approx(last.validation.value - first.validation.value)
    assert last.validation.value > 0.7


def test_what_tells_the_label_is_worth_most() -> None:
    found = ablation(
        CHURN, dataset(), PARTS, "auc", lambda learned: refit(learned, PARTS, recipe(CHURN, 1), 20),
        {"customer_orders": 2.5}, 1,
    )  # fmt: skip
    best, *others = found.parts
    assert (best.part, best.cpu_seconds) == ("purchase_price", 2.5)
    assert best.worth.low > 0.1
    assert all(each.worth.value < 0.05 for each in others)
    assert sum(len(each.features) for each in found.parts) == len(CHURN.feature_names)


def test_a_lower_error_counts_as_better() -> None:
    found = ablation(
        CHURN, dataset(), PARTS, "log_loss",
        lambda learned: refit(learned, PARTS, recipe(CHURN, 1), 20), {}, 1,
    )  # fmt: skip
    assert found.parts[0].part == "purchase_price"
    assert found.parts[0].worth.value > 0


def test_too_many_rows_leave_out_entities_and_not_rows_of_them() -> None:
    rows = learning_rows(dataset(), PARTS, 300, 1)
    assert 280 <= len(rows.labels) <= 300
    _, counts = np.unique(rows.keys, return_counts=True)
    assert set(counts.tolist()) == {2}
    assert len(learning_rows(dataset(), PARTS, 600, 1).labels) == 600


def test_each_feature_is_of_one_family() -> None:
    found = families(CHURN)
    names = [name for part in found.values() for name in part]
    assert sorted(names) == sorted(CHURN.feature_names)
    assert ("customer_orders", "all") not in found


def curve(gain: tuple[float, float], train: float) -> LearningCurve:
    value, low = gain
    half = LearningPoint(
        0.5, 50, 50, 0.9, Estimate(0.8 - value, 0.78, 0.82), Estimate(value, low, value + 0.01)
    )
    return LearningCurve(
        "auc", (half, LearningPoint(1.0, 100, 100, train, Estimate(0.8, 0.78, 0.82), None))
    )


@pytest.mark.parametrize(
    ("gain", "train", "said"),
    [
        ((0.01, 0.001), 0.9, "part of the error is variance"),
        ((0.01, -0.001), 0.9, "fits its own days better than later ones"),
        ((0.01, -0.001), 0.81, "bias, or cannot be known"),
    ],
)
def test_a_learning_curve_is_read_in_words(
    gain: tuple[float, float], train: float, said: str
) -> None:
    assert said in reading(curve(gain, train), "customer")
