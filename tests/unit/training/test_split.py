from datetime import date, timedelta

import pytest

from nightshift.errors import NightshiftError
from nightshift.spec import Snapshots
from nightshift.training.split import Split, history_needed, split

PLAN = Snapshots(stride_days=10, count=50, min_history_days=30, test=1, validation=1)


def day(number: int) -> date:
    return date(2011, 1, 1) + timedelta(days=number)


def test_a_snapshot_exactly_one_horizon_before_the_next_part_belongs_to_it() -> None:
    found = split([day(0), day(30), day(60)], PLAN, 30)
    assert found == Split((day(0),), (day(30),), (day(60),))


@pytest.mark.parametrize("snapshots", [[0, 30, 59], [1, 30, 60], [0, 31, 60]])
def test_one_day_less_is_within_the_embargo(snapshots: list[int]) -> None:
    with pytest.raises(NightshiftError, match="too few to split"):
        split([day(n) for n in snapshots], PLAN, 30)


def test_snapshots_within_an_embargo_belong_to_no_part() -> None:
    found = split([day(n) for n in range(0, 101, 10)], PLAN, 30)
    assert found == Split(
        train=(day(0), day(10), day(20), day(30), day(40)),
        validation=(day(70),),
        test=(day(100),),
    )


def test_several_snapshots_a_part_in_any_order_and_repeated() -> None:
    plan = PLAN.model_copy(update={"test": 2, "validation": 2})
    days = [90, 0, 50, 40, 80, 10, 10, 90]
    found = split([day(n) for n in days], plan, 30)
    assert found == Split((day(0), day(10)), (day(40), day(50)), (day(80), day(90)))


@pytest.mark.parametrize("snapshots", [[], [day(0)], [day(0), day(200)]])
def test_too_short_a_history_names_the_days_it_needs(snapshots: list[date]) -> None:
    with pytest.raises(NightshiftError, match="train once 120 days of history"):
        split(snapshots, PLAN, 30)


@pytest.mark.parametrize(
    ("stride", "test", "validation", "embargo", "days"),
    [
        (10, 1, 1, 30, 30 + 60 + 30),
        (14, 2, 2, 90, 30 + 16 * 14 + 90),
        (30, 1, 1, 90, 30 + 180 + 90),
        (28, 1, 1, 90, 30 + 8 * 28 + 90),
    ],
)
def test_history_needed(stride: int, test: int, validation: int, embargo: int, days: int) -> None:
    plan = Snapshots(
        stride_days=stride, count=50, min_history_days=30, test=test, validation=validation
    )
    assert history_needed(plan, embargo) == days
    # The oldest snapshots that such a history allows are just enough for a split.
    newest = day(days - embargo)
    snapshots = [
        newest - timedelta(days=stride * back)
        for back in range(50)
        if newest - timedelta(days=stride * back) >= day(30)
    ]
    assert len(split(snapshots, plan, embargo).train) == 1
    with pytest.raises(NightshiftError):
        split(snapshots[:-1], plan, embargo)
