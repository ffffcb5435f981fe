from datetime import date

from nightshift.errors import Cause
from nightshift.quality.suites import Check
from nightshift.quality.verdict import Outcome, failure

DAY = date(2011, 6, 10)
ROWS = Check("expect_table_row_count_to_be_between", {"min_value": 80, "max_value": 4000})
PRICES = Check(
    "expect_column_values_to_be_between",
    {"column": "price", "min_value": 0, "max_value": 1000, "mostly": 0.98},
)


def test_no_failure_when_all_hold() -> None:
    assert failure([Outcome("order_lines", DAY, ROWS, True, {"observed_value": 1067})]) is None


def test_failure_says_what_was_seen_and_expected_where() -> None:
    error = failure(
        [
            Outcome("order_lines", DAY, ROWS, False, {"observed_value": 53}),
            Outcome(
                "order_lines",
                DAY,
                PRICES,
                False,
                {"unexpected_percent": 12.5, "partial_unexpected_list": [1295.0, 1295.0, 2500.0]},
            ),
        ]
    )

    assert error is not None
    assert error.what == (
        "2 of 2 expectations failed:\n"
        "  order_lines landed 2011-06-10: expect_table_row_count_to_be_between: observed 53,"
        " expected at least 80, at most 4000\n"
        "  order_lines landed 2011-06-10, column price: expect_column_values_to_be_between:"
        " observed 0.1250 of the rows breaking it, such as 1295.0, 2500.0, expected at least 0,"
        " at most 1000, for at least 0.98 of the rows"
    )


def test_a_cause_names_rule_day_and_figures_but_no_value_of_a_row() -> None:
    observed = {"unexpected_percent": 12.5, "partial_unexpected_list": [1295.0, 2500.0]}
    error = failure(
        [
            Outcome("order_lines", DAY, ROWS, True, {"observed_value": 1067}),
            Outcome("order_lines", DAY, PRICES, False, observed),
        ]
    )

    assert error is not None
    assert error.causes == (
        Cause(
            rule="expect_column_values_to_be_between",
            source="order_lines",
            landed_date=DAY,
            column="price",
            observed="observed 0.1250 of the rows breaking it, expected at least 0, at most 1000,"
            " for at least 0.98 of the rows",
        ),
    )


def test_failure_repeats_an_error_of_the_check_itself() -> None:
    error = failure([Outcome("order_lines", DAY, ROWS, False, {"error": "no such table"})])

    assert error is not None
    assert "observed no such table" in error.what
