import numpy as np
import pytest

from nightshift.training.curves import POINTS, deciles, precision_recall, roc


def test_deciles_have_the_mean_label_and_the_lift() -> None:
    labels = np.array([0, 0, 0, 0, 0, 0, 0, 1, 1, 1] * 2, dtype=np.float64)
    scores = np.arange(20) % 10 / 10 + 0.05
    found = deciles(labels, np.arange(20), scores, 1)
    assert [each.rows for each in found] == [2] * 10
    assert [each.observed.value for each in found] == [0] * 7 + [1] * 3
    assert found[-1].lift.value == pytest.approx(1 / 0.3)
    assert found[-1].score == pytest.approx(0.95)
    assert found[-1].lift.low < found[-1].lift.value < found[-1].lift.high


def test_equal_scores_are_one_decile() -> None:
    (only,) = deciles(np.array([0.0, 1, 1, 1]), np.arange(4), np.full(4, 0.5), 1)
    assert (only.rows, only.observed.value, only.lift.value) == (4, 0.75, 1.0)


def test_long_curves_are_thinned_and_keep_their_ends() -> None:
    random = np.random.default_rng(1)
    labels, scores = random.integers(0, 2, 5_000).astype(float), random.random(5_000)
    x, y = roc(labels, scores)
    assert len(x) <= POINTS
    assert ((x[0], y[0]), (x[-1], y[-1])) == ((0, 0), (1, 1))
    recall, precision = precision_recall(labels, scores)
    assert recall[0] == 1
    assert precision[0] == pytest.approx(labels.mean())
    assert recall[-1] > 0  # sklearn's last point, (0, 1), is of no row
