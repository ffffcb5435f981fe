from dataclasses import replace
from datetime import date

from nightshift.contracts import ArrivalCalendar
from nightshift.errors import Cause
from nightshift.quality.verdict import Outcome, QualityResult, arrivals, failure, summary

DAY = date(2011, 6, 10)
ROWS = Outcome(
    table="order_lines",
    source="order_lines",
    landed_date=DAY,
    rule="rows_are_usual",
    severity="error",
    success=False,
    expectation="expect_table_row_count_to_be_between",
    expected={"min_value": 80, "max_value": 4000},
    observed={"observed_value": 53},
)
PRICES = replace(
    ROWS,
    rule="price_in_range",
    expectation="expect_column_values_to_be_between",
    column="price",
    expected={"column": "price", "min_value": 0, "max_value": 1000, "mostly": 0.98},
    observed={"unexpected_percent": 12.5, "partial_unexpected_list": [1295.0, 1295.0, 2500.0]},
    examples=("order_lines/ds=2011-06-10/a.csv:7", "order_lines/ds=2011-06-10/a.csv:9"),
)
WARNING = replace(ROWS, rule="rows_are_near_usual", severity="warning")
REPORT = "file:///data-docs/index.html"


def test_no_failure_when_all_hold_or_are_warnings() -> None:
    assert failure([replace(ROWS, success=True), WARNING], REPORT) is None


def test_failure_says_what_was_seen_and_expected_where_and_which_rows() -> None:
    error = failure([ROWS, PRICES, WARNING], REPORT)

    assert error is not None
    assert error.what == (
        "2 of 3 quality rules are broken:\n"
        "  order_lines landed 2011-06-10: rows_are_usual: expect_table_row_count_to_be_between:"
        " observed 53, expected at least 80, at most 4000\n"
        "  order_lines landed 2011-06-10, column price: price_in_range:"
        " expect_column_values_to_be_between: observed 0.1250 of the rows breaking it, such as"
        " 1295.0, 2500.0, expected at least 0, at most 1000, that for at least 0.98 of the rows;"
        " rows order_lines/ds=2011-06-10/a.csv:7, order_lines/ds=2011-06-10/a.csv:9\n"
        f"  the whole report: {REPORT}"
    )


def test_a_cause_names_rule_day_figures_and_rows_but_no_value_of_a_row() -> None:
    error = failure([replace(ROWS, success=True), PRICES], REPORT)

    assert error is not None
    assert error.causes == (
        Cause(
            rule="price_in_range",
            source="order_lines",
            landed_date=DAY,
            column="price",
            observed="expect_column_values_to_be_between: observed 0.1250 of the rows breaking it,"
            " expected at least 0, at most 1000, that for at least 0.98 of the rows",
            examples=PRICES.examples,
        ),
    )


def test_failure_repeats_an_error_of_the_check_itself() -> None:
    error = failure([replace(ROWS, observed={"error": "no such table"})], REPORT)

    assert error is not None
    assert "observed no such table" in error.what


def test_a_day_without_its_folder_is_a_warning() -> None:
    closed_on_saturdays = ArrivalCalendar(
        weekdays=("monday", "tuesday", "wednesday", "thursday", "friday", "sunday")
    )
    landed = [date(2011, 6, 9), date(2011, 6, 13)]

    found = arrivals("order_lines", closed_on_saturdays, landed, as_of=date(2011, 6, 14))

    # the 11th is a Saturday
    assert [(o.landed_date.day, o.success, o.severity) for o in found] == [
        (9, True, "warning"),
        (10, False, "warning"),
        (12, False, "warning"),
        (13, True, "warning"),
    ]
    assert QualityResult({}, tuple(found)).warnings == tuple(o for o in found if not o.success)


def test_of_a_source_that_stopped_only_the_last_days_are_told() -> None:
    assert len(arrivals("order_lines", ArrivalCalendar(), [DAY], date(2018, 1, 1))) == 14


def test_the_summary_counts_and_names_what_is_broken() -> None:
    fine = replace(ROWS, landed_date=date(2011, 6, 9), success=True)

    assert summary([fine, ROWS, WARNING]).splitlines() == [
        "table        landed      rules  warnings  errors",
        "order_lines  2011-06-09      1         0       0",
        "order_lines  2011-06-10      2         1       1",
        "error: order_lines landed 2011-06-10: rows_are_usual:"
        " expect_table_row_count_to_be_between: observed 53, expected at least 80, at most 4000",
        "warning: order_lines landed 2011-06-10: rows_are_near_usual:"
        " expect_table_row_count_to_be_between: observed 53, expected at least 80, at most 4000",
    ]
