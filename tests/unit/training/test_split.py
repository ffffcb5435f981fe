from datetime import date, timedelta

import pytest

from nightshift.errors import NightshiftError
from nightshift.spec import Snapshots
from nightshift.training.split import (
    Split,
    history_needed,
    rolling_origins,
    split,
    stale_splits,
)

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


def test_an_earlier_origin_tests_just_before_and_knows_nothing_later() -> None:
    plan = PLAN.model_copy(update={"origins": 3})
    days = [day(n) for n in range(0, 101, 10)]
    found = rolling_origins(days, plan, 30)
    assert found[0] == split(days, plan, 30)
    assert [parts.test for parts in found] == [(day(100),), (day(90),), (day(80),)]
    assert found[2] == split(days[:-2], plan, 30)
    for parts in found:
        assert parts.validation[-1] <= parts.test[0] - timedelta(days=30)
        assert parts.train[-1] <= parts.validation[0] - timedelta(days=30)


def test_there_are_as_many_origins_as_history_has_room_for() -> None:
    plan = PLAN.model_copy(update={"origins": 9})
    found = rolling_origins([day(n) for n in range(0, 81, 10)], plan, 30)
    assert [parts.test for parts in found] == [(day(80),), (day(70),), (day(60),)]
    with pytest.raises(NightshiftError, match="too few to split"):
        rolling_origins([day(0)], plan, 30)


def test_an_older_model_has_the_newest_test_and_what_was_known_then() -> None:
    plan = PLAN.model_copy(update={"staleness_weeks": (1, 2, 4, 30)})
    days = [day(n) for n in range(0, 101, 10)]
    found = stale_splits(days, plan, 30)
    # 63, 56 and 42 days are known; of 30 weeks there is no history.
    assert {weeks: parts.validation for weeks, parts in found.items()} == {
        1: (day(60),), 2: (day(50),), 4: (day(40),)
    }  # fmt: skip
    assert found[4] == Split((day(0), day(10)), (day(40),), (day(100),))
    assert split(days, plan, 30).validation == (day(70),)
