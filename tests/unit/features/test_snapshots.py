from datetime import date, timedelta
from itertools import pairwise

import pytest

from nightshift.errors import RefusedAsOf
from nightshift.features.snapshots import mature_snapshots
from nightshift.use_cases import CHURN

FIRST = date(2010, 1, 1)


def test_the_newest_snapshot_has_just_matured() -> None:
    dates = mature_snapshots(CHURN, date(2012, 6, 1), FIRST)
    assert dates[-1] == date(2012, 6, 1) - timedelta(days=90)
    assert {b - a for a, b in pairwise(dates)} == {timedelta(days=14)}
    assert len(dates) == CHURN.snapshots.count


def test_none_stands_before_the_least_history() -> None:
    dates = mature_snapshots(CHURN, date(2010, 8, 1), FIRST)
    assert dates[0] >= FIRST + timedelta(days=90)
    assert dates[0] - timedelta(days=14) < FIRST + timedelta(days=90)


def test_too_short_a_history_is_refused_until_the_day_it_names() -> None:
    enough = FIRST + timedelta(days=90 + 90 + 28)
    assert len(mature_snapshots(CHURN, enough, FIRST)) == 3
    with pytest.raises(RefusedAsOf, match=f"choose an as_of from {enough} on"):
        mature_snapshots(CHURN, enough - timedelta(days=1), FIRST)
