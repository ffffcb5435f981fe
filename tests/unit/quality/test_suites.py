from datetime import date, timedelta
from typing import Any

import pytest

from nightshift.quality.suites import (
    Check,
    Folder,
    History,
    allowed,
    order_lines,
    recent,
    usual_rows,
)

SUNDAY = date(2011, 6, 12)
BATCH = Folder(SUNDAY, rows=1000, rows_in=1000)
NO_HISTORY = History(rows=None, median_price=None, countries=())


def check(checks: tuple[Check, ...], expectation: str, column: str | None) -> dict[str, Any]:
    (found,) = [c for c in checks if c.expectation == expectation and c.column == column]
    return dict(found.arguments)


def weeks_before(*rows: int) -> list[Folder]:
    return [Folder(SUNDAY - timedelta(weeks=n), r, r) for n, r in enumerate(rows, start=1)]


def test_usual_rows_is_the_median_of_the_weekday() -> None:
    monday = Folder(date(2011, 6, 6), 9999, 9999)

    assert usual_rows([*weeks_before(100, 300, 200), monday], BATCH) == 200


def test_usual_rows_looks_back_eight_weeks() -> None:
    assert usual_rows(weeks_before(*[100] * 8, *[900] * 20), BATCH) == 100


def test_usual_rows_leaves_out_the_batch_and_what_is_later() -> None:
    later = Folder(SUNDAY + timedelta(weeks=1), 9999, 9999)

    assert usual_rows([BATCH, later, *weeks_before(100, 100, 100)], BATCH) == 100


@pytest.mark.parametrize(
    ("rows", "usual"), [((50, 50), None), ((50, 50, 50), 50), ((49, 49, 49), None)]
)
def test_usual_rows_needs_three_weeks_of_fifty_rows(
    rows: tuple[int, ...], usual: float | None
) -> None:
    assert usual_rows(weeks_before(*rows), BATCH) == usual


def test_recent_needs_five_folders_and_takes_twenty() -> None:
    days = [Folder(SUNDAY - timedelta(days=n), 10, 10) for n in range(1, 31)]

    assert recent(days[:4], BATCH) == ()
    assert len(recent(days[:5], BATCH)) == 5
    assert [f.landed_date for f in recent(days, BATCH)] == [f.landed_date for f in days[:20]]


def test_a_first_night_expects_only_what_needs_no_history() -> None:
    checks = order_lines(BATCH, NO_HISTORY)

    assert check(checks, "expect_table_row_count_to_be_between", None) == {
        "min_value": 1,
        "max_value": None,
    }
    assert "expect_column_median_to_be_between" not in {c.expectation for c in checks}
    assert "country" not in {c.column for c in checks}


def test_history_sets_the_bands() -> None:
    checks = order_lines(BATCH, History(rows=1000, median_price=2.5, countries=("France",)))

    assert check(checks, "expect_table_row_count_to_be_between", None) == {
        "min_value": 80,
        "max_value": 4000,
    }
    assert check(checks, "expect_column_median_to_be_between", "price") == {
        "column": "price",
        "min_value": 0.75,
        "max_value": 7.5,
    }
    assert check(checks, "expect_column_values_to_be_in_set", "country") == {
        "column": "country",
        "value_set": ["France"],
        "mostly": 0.75,
    }


@pytest.mark.parametrize(
    ("rows", "share"), [(0, 1.0), (2, 1.0), (10, 0.3), (60, 0.05), (1000, 0.05)]
)
def test_a_handful_of_rows_never_breaks_a_share(rows: int, share: float) -> None:
    assert allowed(0.05, rows) == share
