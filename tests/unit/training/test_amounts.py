import numpy as np
import pytest

from nightshift.amounts import signed_log
from nightshift.training.amounts import conformalised, total_factor


def test_the_factor_makes_the_total_come_true() -> None:
    labels = np.array([0.0, 30.0, -6.0])
    assert total_factor(labels, np.array([4.0, 4.0, 8.0])) == 1.5
    # nothing to be told by
    assert total_factor(labels, np.zeros(3)) == 1.0
    assert total_factor(-labels, np.ones(3)) == 1.0


@pytest.mark.parametrize(("rows", "rank"), [(99, 90), (9, 9), (4, 4)])
def test_each_end_is_moved_by_the_rank_that_the_theorem_asks_for(rows: int, rank: int) -> None:
    """Of 99 rows, and one more, 90 of 100 are to be inside: the 90th smallest excess."""
    labels = np.arange(1.0, rows + 1)
    quantiles = np.zeros((rows, 2))
    found = conformalised(b"", 0.8, signed_log(labels), quantiles)
    assert found.above == signed_log(labels)[rank - 1]
    assert found.below == -signed_log(labels)[rows - rank]


def test_most_labels_at_zero_need_no_room_below() -> None:
    labels = np.array([0.0] * 60 + [100.0] * 40)
    found = conformalised(b"", 0.8, signed_log(labels), np.tile([0.0, 5.0], (100, 1)))
    assert found.below == 0.0
    assert found.above == pytest.approx(np.log(101) - 5)
