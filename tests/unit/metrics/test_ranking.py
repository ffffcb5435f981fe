import numpy as np
import pytest
from sklearn.metrics import average_precision_score, ndcg_score

from nightshift.metrics.ranking import statistics

QUERIES = np.repeat(np.arange(12), 9)


def once(labels: np.ndarray, scores: np.ndarray, k: int) -> dict[str, float]:
    items = np.tile(np.arange(9), 12)
    found = statistics(labels, scores, QUERIES, items, k)
    return {
        name: float(statistic(np.ones((1, len(labels))))[0]) for name, statistic in found.items()
    }


@pytest.mark.parametrize("grades", [2, 4])
@pytest.mark.parametrize("values", [5, 10_000])
@pytest.mark.parametrize("k", [3, 9])
def test_ndcg_is_scikit_learns_also_of_tied_scores(grades: int, values: int, k: int) -> None:
    random = np.random.default_rng(3)
    labels = random.integers(0, grades, 108).astype(float)
    scores = random.integers(0, values, 108).astype(float)
    by_query = labels.reshape(12, 9), scores.reshape(12, 9)
    assert once(labels, scores, k)["ndcg_at_k"] == pytest.approx(ndcg_score(*by_query, k=k))


def test_mean_average_precision_of_whole_lists_is_scikit_learns() -> None:
    random = np.random.default_rng(4)
    labels, scores = random.integers(0, 2, 108).astype(float), random.random(108)
    expected = [
        average_precision_score(y, s)
        for y, s in zip(labels.reshape(12, 9), scores.reshape(12, 9), strict=True)
        if y.any()
    ]
    assert once(labels, scores, 9)["map_at_k"] == pytest.approx(np.mean(expected))


def test_a_list_by_hand() -> None:
    labels, scores = np.array([0.0, 1, 1, 0, 1]), np.array([5.0, 4, 3, 2, 1])
    found = statistics(labels, scores, np.zeros(5), np.arange(5), 3)
    values = {name: float(statistic(np.ones((1, 5)))[0]) for name, statistic in found.items()}
    assert values["recall_at_k"] == pytest.approx(2 / 3)
    assert values["map_at_k"] == pytest.approx((1 / 2 + 2 / 3) / 3)
    assert values["coverage_at_k"] == pytest.approx(3 / 5)


def test_lists_count_by_their_entitys_weight_and_those_without_a_relevant_item_do_not() -> None:
    labels, scores = np.array([1.0, 0, 0, 1, 0, 0]), np.array([2.0, 1, 2, 1, 2, 1])
    found = statistics(labels, scores, np.array([0, 0, 1, 1, 2, 2]), np.array([0, 1] * 3), 1)
    weights = np.array([[1, 1, 1, 1, 1, 1], [3, 3, 1, 1, 0, 0], [0, 0, 0, 0, 1, 1]], dtype=float)
    assert found["recall_at_k"](weights).tolist()[:2] == [0.5, 0.75]
    assert np.isnan(found["recall_at_k"](weights)[2])
    assert found["coverage_at_k"](weights).tolist() == [0.5, 0.5, 0.5]


def test_what_a_list_lacks_is_missed_by_every_order_of_it() -> None:
    labels, scores = np.array([1.0, 0, 0, 0]), np.array([2.0, 1, 2, 1])
    queries, items = np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])
    found = statistics(labels, scores, queries, items, 2, missed=np.array([1, 1, 3, 3]))
    values = {name: float(statistic(np.ones((1, 4)))[0]) for name, statistic in found.items()}
    # the first list could have had both its places relevant, the second has none of three
    ideal = 1 + 1 / np.log2(3)
    assert values["ndcg_at_k"] == pytest.approx((1 / ideal + 0) / 2)
    assert values["recall_at_k"] == pytest.approx((1 / 2 + 0) / 2)
    assert values["map_at_k"] == pytest.approx((1 / 2 + 0) / 2)


def test_novelty_is_in_bits_below_the_most_popular_item() -> None:
    labels, scores = np.zeros(4), np.array([4.0, 3, 2, 1])
    popularity = np.array([16.0, 4, 1, 0])
    every = np.ones((1, 4))
    for k, expected in ((1, 0.0), (2, 1.0), (3, 2.0), (4, 2.5)):
        found = statistics(labels, scores, np.zeros(4), np.arange(4), k, popularity=popularity)
        assert float(found["novelty_at_k"](every)[0]) == pytest.approx(expected)
