import numpy as np
import pytest

from nightshift.scoring.bands import assign
from nightshift.spec import Band

BANDS = (
    Band(name="low", from_score=0.0),
    Band(name="medium", from_score=0.4),
    Band(name="high", from_score=0.7),
)


@pytest.mark.parametrize(
    ("score", "band"),
    [
        (0.0, "low"),
        (np.nextafter(0.4, 0), "low"),
        (0.4, "medium"),
        (np.nextafter(0.7, 0), "medium"),
        (0.7, "high"),
        (1.0, "high"),
    ],
)
def test_a_band_begins_at_its_own_score(score: float, band: str) -> None:
    assert assign(np.array([score]), BANDS) == [[each.name for each in BANDS].index(band)]


def test_the_first_band_has_the_amounts_below_zero_too() -> None:
    assert list(assign(np.array([-5.0, 0.0, 0.4]), BANDS)) == [0, 0, 1]


def test_no_scores_have_no_bands() -> None:
    assert len(assign(np.array([]), BANDS)) == 0
