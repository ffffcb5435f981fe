import numpy as np
import pytest

from nightshift.scoring.comparison import compare

BANDS = np.array([0, 0, 1])


def test_the_same_scores_agree() -> None:
    found = compare(np.array([0.1, 0.2, 0.9]), np.array([0.1, 0.2, 0.9]), BANDS, BANDS)
    assert (found.rows, found.agreement, found.rank_correlation) == (3, 1.0, pytest.approx(1.0))
    assert (found.mean_difference, found.largest_difference) == (0.0, 0.0)


def test_other_scores_are_told_by_band_rank_and_size() -> None:
    found = compare(np.array([0.1, 0.2, 0.9]), np.array([0.9, 0.2, 0.1]), BANDS, BANDS[::-1])
    assert found.agreement == pytest.approx(1 / 3)
    assert found.rank_correlation == pytest.approx(-1)
    assert found.mean_difference == pytest.approx(0)
    assert found.largest_difference == pytest.approx(0.8)


def test_scores_that_are_all_the_same_have_no_rank_correlation() -> None:
    found = compare(np.array([0.1, 0.2]), np.array([0.5, 0.5]), BANDS[:2], BANDS[:2])
    assert found.rank_correlation is None
