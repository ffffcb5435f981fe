from datetime import date
from pathlib import Path

import pytest

from nightshift import errors
from nightshift.alerts.failure import (
    MAX_LINE,
    Diagnosis,
    first_line,
    of_error,
    of_run,
    without_personal_data,
)
from nightshift.errors import Cause, NightshiftError, QualityError, RefusedAsOf
from nightshift.settings import PROJECT_ROOT

DAY = date(2026, 1, 8)
CAUSE = Cause("expect_column_max_to_be_between", "order_lines", DAY, "price")


def raised(error: Exception, cause: Exception | None = None) -> Exception:
    """The error as it comes out of a task."""
    try:
        raise error from cause
    except Exception as caught:
        return caught


def test_a_refusal_speaks_through_the_exception_that_airflow_needs() -> None:
    refusal = QualityError("1 of 9 expectations failed", "look at the file", (CAUSE,))
    error = raised(RuntimeError(str(refusal)), refusal)
    assert of_error(error) == Diagnosis((CAUSE,), "look at the file", "quality-failed")


def test_a_refusal_without_causes_is_known_by_its_first_line_without_figures() -> None:
    first = of_error(RefusedAsOf("as_of 2026-01-09 is in the future\nmore", "choose another"))
    second = of_error(RefusedAsOf("as_of 2026-01-10 is in the future", "choose another"))

    assert first.causes[0].rule == "RefusedAsOf: as_of #-#-# is in the future"
    assert first.causes[0].observed == "as_of 2026-01-09 is in the future"
    assert second.causes[0].rule == first.causes[0].rule
    assert of_error(RefusedAsOf("no champion yet")).causes[0].rule != first.causes[0].rule


def test_of_a_crash_only_type_and_place_are_told() -> None:
    error = raised(ValueError("duplicate key (customer_id)=(17850)"))
    (cause,) = of_error(error).causes
    assert cause == Cause("crash: ValueError", observed="raised; its text is in the log")


def test_the_place_of_a_crash_is_our_innermost_line() -> None:
    with pytest.raises(AttributeError) as crash:
        of_error(RefusedAsOf(None))  # type: ignore[arg-type]
    (cause,) = of_error(crash.value).causes
    assert cause.observed.startswith("raised in nightshift/alerts/failure.py, line ")


def test_a_process_that_left_no_error_was_killed() -> None:
    (cause,) = of_error(None).causes
    assert "killed" in cause.observed
    assert of_run("task_failure") == of_error(None)


def test_a_run_that_failed_as_a_whole() -> None:
    assert of_run("timed_out").runbook == "run-timed-out"
    assert of_run("timed_out").causes[0].rule == "timed out"
    assert of_run("all_tasks_deadlocked").causes[0].rule == "all tasks deadlocked"


def test_of_a_personal_column_rows_are_named_and_no_values() -> None:
    row = "order_lines/ds=2026-01-08/a.csv.gz:17"
    of_price = Cause("r", "order_lines", DAY, "price", "", tuple("abcdefg"))
    of_customer = Cause("r", "order_lines", DAY, "customer_id", "", ("17850", row, "J. Smith:12"))
    kept = without_personal_data((of_price, of_customer), {("order_lines", "customer_id")})
    assert [cause.examples for cause in kept] == [("a", "b", "c", "d", "e"), (row,)]


@pytest.mark.parametrize(
    ("text", "line"),
    [("", ""), ("\n one\ntwo", "one"), ("x" * MAX_LINE, "x" * MAX_LINE)],
)
def test_first_line(text: str, line: str) -> None:
    assert first_line(text) == line
    assert len(first_line("x" * (MAX_LINE + 1))) == MAX_LINE


def runbooks_missing(folder: Path) -> set[str]:
    """Pages that an alert can name and the folder does not have."""
    named = {kind.runbook for kind in vars(errors).values() if isinstance(kind, type)
             and issubclass(kind, NightshiftError)}  # fmt: skip
    named |= {of_error(None).runbook, of_run("timed_out").runbook, of_run("other").runbook}
    return {name for name in named if not (folder / f"{name}.md").is_file()}


def test_every_runbook_that_an_alert_names_exists(tmp_path: Path) -> None:
    assert runbooks_missing(PROJECT_ROOT / "docs" / "runbooks") == set()
    assert {"quality-failed", "run-timed-out"} <= runbooks_missing(tmp_path)
