import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import mean_absolute_error, r2_score, roc_auc_score, root_mean_squared_error

from nightshift.metrics.regression import gini, statistics


def test_every_metric_is_the_librarys_of_the_repeated_rows() -> None:
    random = np.random.default_rng(1)
    amounts = np.round(random.gamma(1.0, 5.0, 80))
    foretold = np.round(amounts + random.normal(0, 4, 80))
    weights = random.integers(0, 4, 80)
    repeated = np.repeat(np.arange(80), weights)
    y, s = amounts[repeated], foretold[repeated]
    expected = {
        "mae": mean_absolute_error(y, s),
        "rmse": root_mean_squared_error(y, s),
        "r2": r2_score(y, s),
        "total_bias": s.sum() / y.sum() - 1,
        "spearman": spearmanr(y, s).statistic,
    }
    found = statistics(amounts, foretold, is_scale=True)
    weighed = {name: found[name](weights[None, :].astype(float))[0] for name in expected}
    assert weighed == pytest.approx(expected)


def test_an_interval_holds_its_ends() -> None:
    labels = np.array([0.0, 10.0, 10.0, 30.0])
    interval = np.array([[0.0, 5.0], [10.0, 20.0], [11.0, 20.0], [0.0, 29.0]])
    found = statistics(labels, labels, is_scale=True, interval=interval)
    once = np.ones((1, 4))

    assert found["interval_coverage"](once) == [0.5]
    assert found["interval_width"](once) == [(5 + 10 + 9 + 29) / 4]
    assert "interval_coverage" not in statistics(labels, labels, is_scale=True)


def test_gini_of_two_classes_is_twice_the_auc_less_one() -> None:
    random = np.random.default_rng(2)
    labels, scores = (
        random.integers(0, 2, 90).astype(float),
        random.integers(0, 7, 90).astype(float),
    )
    weights = random.integers(0, 4, 90)
    repeated = np.repeat(np.arange(90), weights)
    found = gini(labels, scores)(weights[None, :].astype(float))[0]
    assert found == pytest.approx(2 * roc_auc_score(labels[repeated], scores[repeated]) - 1)


def test_gini_is_one_in_the_order_of_the_amounts_and_minus_one_in_reverse() -> None:
    amounts, once = np.array([0.0, 1, 5, 5, 20]), np.ones((1, 5))
    assert gini(amounts, amounts * 3)(once)[0] == pytest.approx(1.0)
    assert gini(amounts, -amounts)(once)[0] == pytest.approx(-1.0)
    assert gini(amounts, np.zeros(5))(once)[0] == 0.0


def test_equal_labels_have_neither_order_nor_spread() -> None:
    found = statistics(np.full(4, 2.0), np.arange(4.0), is_scale=True)
    for metric in ("spearman", "gini", "r2"):
        assert np.isnan(found[metric](np.ones((1, 4)))[0]), metric
