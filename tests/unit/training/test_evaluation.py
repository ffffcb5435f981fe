"""Figures under the names that MLflow holds."""

from datetime import date

from nightshift.metrics import Estimate
from nightshift.training.evaluation import study_metrics, trial_metrics
from nightshift.training.search import Searched, Trial
from nightshift.training.split import Split
from nightshift.training.studies import Ablated, Ablation, LearningCurve, LearningPoint


def estimate(value: float) -> Estimate:
    return Estimate(value, value - 1, value + 1)


def test_the_points_of_a_curve_and_the_parts_of_the_features_have_names() -> None:
    curve = LearningCurve(
        "auc",
        (
            LearningPoint(0.125, 10, 5, 9.0, estimate(7.0), estimate(1.0)),
            LearningPoint(1.0, 80, 40, 8.5, estimate(8.0), None),
        ),
    )
    ablated = Ablation(
        "auc",
        estimate(8.0),
        (
            Ablated("orders", "price", ("a", "b"), estimate(2.0), 3.5),
            Ablated("payments", "ratios and trends", ("c",), estimate(0.0), None),
        ),
    )

    assert study_metrics(curve, ablated) == {
        "learning_curve/0.125/rows": 10,
        "learning_curve/0.125/entities": 5,
        "learning_curve/0.125/train_auc": 9.0,
        "learning_curve/0.125/auc": 7.0,
        "learning_curve/0.125/auc_low": 6.0,
        "learning_curve/0.125/auc_high": 8.0,
        "learning_curve/0.125/auc_behind": 1.0,
        "learning_curve/0.125/auc_behind_low": 0.0,
        "learning_curve/0.125/auc_behind_high": 2.0,
        "learning_curve/1/rows": 80,
        "learning_curve/1/entities": 40,
        "learning_curve/1/train_auc": 8.5,
        "learning_curve/1/auc": 8.0,
        "learning_curve/1/auc_low": 7.0,
        "learning_curve/1/auc_high": 9.0,
        "ablation/complete/auc": 8.0,
        "ablation/complete/auc_low": 7.0,
        "ablation/complete/auc_high": 9.0,
        "ablation/orders/price/auc_worth": 2.0,
        "ablation/orders/price/auc_worth_low": 1.0,
        "ablation/orders/price/auc_worth_high": 3.0,
        "ablation/orders/cpu_seconds": 3.5,
        "ablation/payments/ratios and trends/auc_worth": 0.0,
        "ablation/payments/ratios and trends/auc_worth_low": -1.0,
        "ablation/payments/ratios and trends/auc_worth_high": 1.0,
    }
    assert study_metrics(None, None) == {}


def test_a_trial_that_was_given_up_has_parameters_and_no_value() -> None:
    splits = (Split((date(2011, 1, 1),), (date(2011, 4, 1),), ()),)
    trials = (Trial({"eta": 0.1}, 0.7, 2.0), Trial({"eta": 0.3}, None, 0.5))

    assert trial_metrics(Searched("s", "auc", splits, trials, (0,))) == (
        {"search/eta": 0.1, "search/seconds": 2.0, "search/value": 0.7},
        {"search/eta": 0.3, "search/seconds": 0.5},
    )
    assert trial_metrics(None) == ()
