"""What a backfill will do, and how long it will take by earlier runs."""

from datetime import date, timedelta

import pytest

from nightshift.backfill.plan import Estimate, Exposure, Night, Plan, Published, estimates
from nightshift.io.model_store import ModelVersion
from nightshift.task_notes import finished, of_plan
from nightshift.use_cases import USE_CASES


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


def test_the_note_of_a_long_plan_tells_time_and_consumers() -> None:
    days = [date(2025, 6, 1) + timedelta(days=number) for number in range(30)]
    model = ModelVersion("any", "2", "run")
    nights = tuple(Night(day, use_case, model) for day in days for use_case in USE_CASES)
    plan = Plan(
        nights,
        (),
        {},
        {(n.as_of, n.use_case.name): Published("id", "1", 1000) for n in nights},
        {use_case.name: days[-1] for use_case in USE_CASES},
        {"features": Estimate(300), "score": Estimate(20), "publish": Estimate(10)},
        tuple(
            Exposure(
                u.title, "ml", "data-team@example.com", frozenset({u.name, f"{u.name}_latest"})
            )
            for u in USE_CASES
        ),
    )
    changes = "changes 30 dates from 2025-06-01 to 2025-06-30: 30,000 published rows of version 1"
    assert plan.text.count(changes) == len(USE_CASES)
    note = finished(of_plan(plan), 1.0)
    assert "time: about 330 s" in note
    assert all(f"predictions.{use_case.name}_latest\n" in note for use_case in USE_CASES)
