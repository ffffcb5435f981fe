import numpy as np
import pytest
from sklearn.metrics import (
    average_precision_score,
    brier_score_loss,
    f1_score,
    log_loss,
    precision_score,
    recall_score,
    roc_auc_score,
)

from nightshift.metrics.binary import (
    auc,
    calibration_bins,
    calibration_error,
    lift,
    select,
    statistics,
)
from nightshift.spec import Threshold, TopShare


def once(statistic, rows: int) -> float:  # type: ignore[no-untyped-def]
    return float(statistic(np.ones((1, rows)))[0])


@pytest.mark.parametrize(
    ("labels", "scores", "expected"),
    [
        ([0, 0, 1, 1], [0.1, 0.2, 0.3, 0.4], 1.0),
        ([1, 1, 0, 0], [0.1, 0.2, 0.3, 0.4], 0.0),
        ([0, 1, 0, 1], [0.5, 0.5, 0.5, 0.5], 0.5),
        ([0, 1, 0, 1], [0.1, 0.2, 0.2, 0.3], 0.875),
    ],
)
def test_auc_counts_ties_half(labels: list[int], scores: list[float], expected: float) -> None:
    statistic = auc(np.array(labels, float), np.array(scores))
    assert once(statistic, 4) == expected


def test_auc_of_one_class_is_undefined() -> None:
    assert np.isnan(once(auc(np.ones(3), np.array([0.1, 0.2, 0.3])), 3))


def test_calibration_error_over_equal_mass_bins() -> None:
    # Two bins of two rows: |0.5 - 0.2| and |1.0 - 0.6|, each with half the mass.
    labels, scores = np.array([0.0, 1, 1, 1]), np.array([0.1, 0.3, 0.5, 0.7])
    assert once(calibration_error(labels, scores, bins=2), 4) == pytest.approx(0.35)


def test_equal_scores_share_a_calibration_bin() -> None:
    assert calibration_bins(np.array([0.2, 0.2, 0.2, 0.9]), bins=2).tolist() == [0, 0, 0, 1]
    labels = np.array([0.0, 0, 0, 1])
    # A constant score equal to the base rate is calibrated.
    assert once(calibration_error(labels, np.full(4, 0.25), bins=2), 4) == 0.0


def test_every_metric_is_scikit_learns_of_the_repeated_rows() -> None:
    random = np.random.default_rng(4)
    labels = random.integers(0, 2, 60).astype(float)
    scores = random.integers(1, 10, 60) / 10
    weights = random.integers(0, 4, 60)
    repeated = np.repeat(np.arange(60), weights)
    threshold, selected = select(Threshold(score=0.6), scores)
    assert threshold == 0.6
    y, s, chosen = labels[repeated], scores[repeated], scores[repeated] >= 0.6
    expected = {
        "auc": roc_auc_score(y, s),
        "average_precision": average_precision_score(y, s),
        "log_loss": log_loss(y, s),
        "brier": brier_score_loss(y, s),
        "precision": precision_score(y, chosen),
        "recall": recall_score(y, chosen),
        "f1": f1_score(y, chosen),
        "selection_rate": chosen.mean(),
    }
    found = statistics(labels, scores, True, selected)
    weighed = {name: found[name](weights[None, :].astype(float))[0] for name in expected}
    assert weighed == pytest.approx(expected)


def test_lift_is_the_rate_at_the_top_over_the_rate_of_all() -> None:
    labels = np.array([1.0, 1, 0, 1, 0, 0, 0, 0, 0, 0])
    scores = np.arange(10, 0, -1.0)
    assert once(lift(labels, scores, 0.2), 10) == pytest.approx(1.0 / 0.3)
    assert once(lift(labels, scores, 0.3), 10) == pytest.approx((2 / 3) / 0.3)


def test_equal_scores_at_the_edge_of_the_top_count_by_the_room_there_is() -> None:
    labels, scores = np.array([1.0, 1, 0, 0, 0]), np.array([0.9, 0.5, 0.5, 0.5, 0.1])
    # Of 2 places one is left for the three rows of 0.5, one of which has label 1.
    assert once(lift(labels, scores, 0.4), 5) == pytest.approx(((1 + 1 / 3) / 2) / 0.4)
    assert once(lift(labels, np.zeros(5), 0.4), 5) == pytest.approx(1.0)


def test_a_top_share_selects_equal_scores_together() -> None:
    scores = np.array([0.1, 0.9, 0.5, 0.5, 0.2])
    threshold, selected = select(TopShare(share=0.4), scores)
    assert (threshold, selected.tolist()) == (0.5, [False, True, True, True, False])
    assert select(TopShare(share=0.2), scores)[1].tolist() == [False, True, False, False, False]
