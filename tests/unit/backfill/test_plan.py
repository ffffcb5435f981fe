"""What a backfill will do, and how long it will take by earlier runs."""

import pytest

from nightshift.backfill.plan import Estimate, Plan, estimates


def ran(nights: int, seconds: float) -> tuple[str, float, dict[str, object]]:
    return "features", seconds, {"datasets": [{"is_reused": False}] * nights}


@pytest.mark.parametrize(
    ("runs", "expected"),
    [
        pytest.param([], None, id="nothing-known"),
        pytest.param([ran(0, 9)], None, id="nothing-done"),
        pytest.param([ran(1, 9), ran(1, 11), ran(1, 10)], Estimate(300, True), id="one-size"),
        pytest.param([ran(1, 10), ran(11, 20)], Estimate(39), id="a-start-and-a-slope"),
        pytest.param([ran(1, 10), ran(60, 90), ran(60, 90)], Estimate(49.3), id="many-nights-told"),
        pytest.param([ran(10, 1), ran(30, 60)], Estimate(31.5), id="no-start-below-nothing"),
    ],
)
def test_the_time_of_thirty_nights(runs: list[tuple], expected: Estimate | None) -> None:
    found = estimates(runs, 30, None)
    assert found["score"] is None
    if expected is None:
        assert found["features"] is None
    else:
        assert found["features"] is not None
        assert found["features"].seconds == pytest.approx(expected.seconds, abs=1)
        assert found["features"].is_bound == expected.is_bound


def test_the_plan_tells_of_dates_that_are_not_due() -> None:
    why = "25 dates are not due: it is scored every 7 nights, next on 2025-07-07"
    plan = Plan((), (), {}, {}, {}, {}, (), not_due={"spend": why})
    assert f"spend: {why}" in plan.text.splitlines()
