import numpy as np
import pytest
from sklearn.metrics import average_precision_score, log_loss, roc_auc_score

from nightshift.metrics import (
    auc_statistic,
    average_precision_statistic,
    calibration_bins,
    calibration_statistic,
    measure,
)


def once(statistic, rows: int) -> float:  # type: ignore[no-untyped-def]
    return float(statistic(np.ones((1, rows)))[0])


@pytest.mark.parametrize(
    ("labels", "scores", "auc"),
    [
        ([0, 0, 1, 1], [0.1, 0.2, 0.3, 0.4], 1.0),
        ([1, 1, 0, 0], [0.1, 0.2, 0.3, 0.4], 0.0),
        ([0, 1, 0, 1], [0.5, 0.5, 0.5, 0.5], 0.5),
        ([0, 1, 0, 1], [0.1, 0.2, 0.2, 0.3], 0.875),
    ],
)
def test_auc_counts_ties_half(labels: list[int], scores: list[float], auc: float) -> None:
    statistic = auc_statistic(np.array(labels, float), np.array(scores))
    assert once(statistic, 4) == auc


def test_auc_of_one_class_is_undefined() -> None:
    assert np.isnan(once(auc_statistic(np.ones(3), np.array([0.1, 0.2, 0.3])), 3))


def test_calibration_error_over_equal_mass_bins() -> None:
    # Two bins of two rows: |0.5 - 0.2| and |1.0 - 0.6|, each with half the mass.
    labels, scores = np.array([0.0, 1, 1, 1]), np.array([0.1, 0.3, 0.5, 0.7])
    assert once(calibration_statistic(labels, scores, bins=2), 4) == pytest.approx(0.35)


def test_equal_scores_share_a_calibration_bin() -> None:
    assert calibration_bins(np.array([0.2, 0.2, 0.2, 0.9]), bins=2).tolist() == [0, 0, 0, 1]
    labels = np.array([0.0, 0, 0, 1])
    # A constant score equal to the base rate is calibrated.
    assert once(calibration_statistic(labels, np.full(4, 0.25), bins=2), 4) == 0.0


def test_weights_are_repetitions_of_rows() -> None:
    random = np.random.default_rng(4)
    labels = random.integers(0, 2, 60).astype(float)
    scores = random.integers(0, 9, 60) / 10
    weights = random.integers(0, 4, 60)
    repeated = np.repeat(np.arange(60), weights)
    for statistic, oracle in (
        (auc_statistic, roc_auc_score),
        (average_precision_statistic, average_precision_score),
    ):
        found = statistic(labels, scores)(weights[None, :].astype(float))[0]
        assert found == pytest.approx(oracle(labels[repeated], scores[repeated]))


def test_measure_agrees_with_scikit_learn_and_pairs_the_differences() -> None:
    random = np.random.default_rng(5)
    labels = random.integers(0, 2, 800)
    good = np.clip(0.5 + 0.3 * (labels - 0.5) + random.normal(0, 0.2, 800), 0.01, 0.99)
    rank = good * 100 + random.normal(0, 40, 800)
    entities = np.array([f"c{i % 200}" for i in range(800)])
    found = measure(labels, entities, {"model": good, "rank": rank}, ["model"], seed=1)
    assert (found.rows, found.entities) == (800, 200)
    assert found.scorers["model"]["auc"].value == pytest.approx(roc_auc_score(labels, good))
    assert found.scorers["model"]["log_loss"].value == pytest.approx(log_loss(labels, good))
    assert set(found.scorers["rank"]) == {"auc", "average_precision"}
    difference = found.differences["rank"]["auc"]
    assert difference.value == pytest.approx(
        found.scorers["model"]["auc"].value - found.scorers["rank"]["auc"].value
    )
    assert 0 < difference.low < difference.value < difference.high
    assert found == measure(labels, entities, {"model": good, "rank": rank}, ["model"], seed=1)
    # A scorer against itself has no difference in any resample: the draws are paired.
    same = measure(labels, entities, {"a": good, "b": good.copy()}, [], seed=1)
    assert same.differences["b"]["auc"].low == same.differences["b"]["auc"].high == 0.0


def test_rows_of_one_entity_are_drawn_together() -> None:
    labels = np.tile([0, 1, 0, 1, 1], 20)
    scores = np.tile([0.1, 0.9, 0.6, 0.5, 0.7], 20)
    alone = measure(labels, np.arange(100), {"m": scores}, [], seed=2)
    five_entities = measure(labels, np.tile(np.arange(5), 20), {"m": scores}, [], seed=2)

    def width(found) -> float:  # type: ignore[no-untyped-def]
        return found.scorers["m"]["auc"].high - found.scorers["m"]["auc"].low

    # Repeating five entities twenty times adds rows, not evidence.
    assert width(five_entities) > 2 * width(alone)
