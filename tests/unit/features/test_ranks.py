"""The first of each list, against ordering all of it."""

import numpy as np
import pytest

from nightshift.features import ranks

LISTS = np.array([0, 0, 0, 2, 5, 5, 5, 5, 5])
SCORES = np.array([1.0, 3.0, 3.0, -1.0, 2.0, 2.0, 2.0, 9.0, 2.0])
TIES = np.array([0, 2, 1, 0, 4, 3, 1, 2, 0])


@pytest.mark.parametrize(
    ("limit", "rows", "places"),
    [
        (1, [2, 3, 7], [1, 1, 1]),
        (2, [2, 1, 3, 7, 8], [1, 2, 1, 1, 2]),
        (3, [2, 1, 0, 3, 7, 8, 6], [1, 2, 3, 1, 1, 2, 3]),
        (9, [2, 1, 0, 3, 7, 8, 6, 5, 4], [1, 2, 3, 1, 1, 2, 3, 4, 5]),
    ],
)
def test_the_first_of_each_list(limit: int, rows: list[int], places: list[int]) -> None:
    found, place = ranks.best(LISTS, SCORES, limit, TIES)
    assert found.tolist() == rows
    assert place.tolist() == places


def test_nothing_has_no_first() -> None:
    none = np.zeros(0, np.int64)
    assert [len(found) for found in ranks.best(none, np.zeros(0), 3)] == [0, 0]


def test_lists_of_any_length_are_as_if_ordered_whole() -> None:
    random = np.random.default_rng(3)
    lists = np.repeat(np.arange(60), random.integers(0, 70, 60))
    scores = random.integers(0, 12, len(lists)).astype(np.float64)
    # of numbers and of fractions, with some missing
    days = np.where(random.random(len(lists)) < 0.3, np.nan, random.integers(0, 3, len(lists)) / 4)
    ties = (days, random.integers(0, 3, len(lists)), random.permutation(len(lists)))
    for limit in (1, 2, 7, 16, 64):
        order = np.lexsort((*reversed(ties), -scores, lists))
        place = np.concatenate([np.arange(length) for length in np.bincount(lists)]) + 1
        found = ranks.best(lists, scores, limit, *ties)
        assert found[0].tolist() == order[place <= limit].tolist()
        assert found[1].tolist() == place[place <= limit].tolist()
