import numpy as np
import pytest

from nightshift import baselines
from nightshift.baselines import (
    fit_linear,
    heuristic_scores,
    linear_rows,
    linear_scores,
)
from nightshift.spec import Heuristic

NAN = float("nan")


def test_a_heuristic_ranks_by_its_feature_and_nulls_take_the_median() -> None:
    column = np.array([[3], [NAN], [1], [10]], dtype=np.float32)
    rising = Heuristic(name="recency", feature="x")
    assert heuristic_scores(rising, column, ["x"]).tolist() == [3.0, 3.0, 1.0, 10.0]
    falling = Heuristic(name="frequency", feature="x", descending=True)
    assert heuristic_scores(falling, column, ["x"]).tolist() == [-3.0, -3.0, -1.0, -10.0]


def test_equal_values_are_ordered_by_another_feature() -> None:
    matrix = np.array([[2, 9], [5, 1], [2, 10], [5, 1], [0, 99]], dtype=np.float32)
    bought = Heuristic(name="most_bought", feature="x", ties="y")
    assert heuristic_scores(bought, matrix, ["x", "y"]).tolist() == [1.0, 3.0, 2.0, 3.0, 0.0]


def test_a_scaled_heuristic_foretells_an_amount() -> None:
    past_year = Heuristic(name="past_year", feature="x", scale=90 / 365)
    column = np.array([[365], [0], [-73]], dtype=np.float32)
    assert heuristic_scores(past_year, column, ["x"]).tolist() == pytest.approx([90, 0, -18])


def test_a_heuristic_without_any_value_ties_everyone() -> None:
    column = np.array([[NAN], [NAN]], dtype=np.float32)
    assert heuristic_scores(Heuristic(name="h", feature="x"), column, ["x"]).tolist() == [0.0, 0.0]


def test_the_linear_baseline_reads_values_and_missingness() -> None:
    random = np.random.default_rng(1)
    matrix = random.normal(size=(400, 3)).astype(np.float32)
    labels = (matrix[:, 0] > 0).astype(np.int32)
    # Feature 1 is absent exactly for class 1; feature 2 has no value at all.
    matrix[labels == 1, 1] = np.nan
    matrix[:, 2] = np.nan
    scores = linear_scores(fit_linear(matrix, labels, "binary", seed=3), matrix)
    assert scores[labels == 1].min() > 0.5 > scores[labels == 0].max()
    again = linear_scores(fit_linear(matrix, labels, "binary", seed=3), matrix)
    assert scores.tobytes() == again.tobytes()


def test_the_linear_baseline_of_amounts_is_in_their_unit() -> None:
    random = np.random.default_rng(1)
    matrix = random.normal(size=(400, 3)).astype(np.float32)
    labels = np.exp(2 + matrix[:, 0] + 0.5 * random.normal(size=400)) * (random.random(400) < 0.8)
    scores = linear_scores(fit_linear(matrix, labels, "regression", seed=3), matrix)
    assert np.isclose(scores.sum(), labels.sum())
    assert np.corrcoef(scores, labels)[0, 1] > 0.3


def test_the_linear_baseline_of_a_ranking_orders_by_relevance() -> None:
    random = np.random.default_rng(1)
    matrix = random.normal(size=(400, 3)).astype(np.float32)
    labels = np.where(matrix[:, 0] > 1, 3.0, 0.0)
    scores = linear_scores(fit_linear(matrix, labels, "ranking", seed=3), matrix)
    assert scores[labels > 0].min() > scores[labels == 0].max() - 0.5
    assert np.corrcoef(scores, matrix[:, 0])[0, 1] > 0.7


def test_many_rows_are_thinned_evenly_for_the_linear_model(monkeypatch: pytest.MonkeyPatch) -> None:
    learned = np.array([False, True, True, True, True, True, False])
    assert linear_rows(learned).tolist() == [1, 2, 3, 4, 5]
    monkeypatch.setattr(baselines, "LINEAR_ROWS", 2)
    assert linear_rows(learned).tolist() == [1, 4]
    assert linear_rows(~learned[1:6]).tolist() == []


def test_linear_scores_of_batches_are_those_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = np.random.default_rng(1).normal(size=(50, 3)).astype(np.float32)
    linear = fit_linear(matrix, (matrix[:, 0] > 0).astype(np.int32), "binary", seed=3)
    whole = linear_scores(linear, matrix)
    monkeypatch.setattr(baselines, "BATCH_ROWS", 7)
    assert linear_scores(linear, matrix) == pytest.approx(whole, rel=1e-12)
