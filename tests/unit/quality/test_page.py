from dataclasses import replace
from datetime import UTC, date, datetime

from nightshift.quality.page import CheckedRun, render
from nightshift.quality.verdict import Outcome

DAY = date(2011, 6, 10)
COUNTRY = Outcome(
    table="order_lines",
    source="order_lines",
    landed_date=DAY,
    rule="country_is_known",
    severity="error",
    success=False,
    expectation="expect_column_values_to_be_in_set",
    column="country",
    expected={"value_set": ["France"], "mostly": 0.75},
    observed={"unexpected_percent": 50, "partial_unexpected_list": ["<script>alert(1)</script>"]},
    examples=("order_lines/ds=2011-06-10/a.csv:7",),
)
WARNING = replace(COUNTRY, rule="a_warning", severity="warning", column=None)
PASSED = replace(COUNTRY, rule="a_rule_that_holds", success=True)
OLDER = replace(PASSED, landed_date=date(2011, 6, 9))


def run(*outcomes: Outcome) -> CheckedRun:
    page = {("order_lines", DAY): "run-7/validations/order_lines landed 2011-06-10/a.html"}
    return CheckedRun(7, "failed", datetime(2011, 6, 11, 2, tzinfo=UTC), outcomes, page)


def test_what_is_broken_comes_first_and_leads_to_rows_and_report() -> None:
    page = render("quality", date(2011, 6, 11), run(OLDER, PASSED, WARNING, COUNTRY), "/q/docs")

    order = ["landed 2011-06-10", "country_is_known", "a_warning", "a_rule_that_holds"]
    places = [page.index(text) for text in [*order, "landed 2011-06-09"]]
    assert places == sorted(places)
    assert 'errors: <span class="error">1<' in page
    assert 'warnings: <span class="warning">1<' in page
    assert "0.5000 of the rows breaking it" in page
    assert "order_lines/ds=2011-06-10/a.csv:7" in page
    assert 'href="/q/docs/run-7/validations/order_lines%20landed%202011-06-10/a.html"' in page


def test_a_landed_value_is_no_markup() -> None:
    page = render("quality", date(2011, 6, 11), run(COUNTRY), "/q/docs")

    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "<script" not in page


def test_before_the_first_run_the_page_says_so() -> None:
    page = render("quality_marts", date(2011, 6, 11), None, "/q/docs")

    assert "Quality of the marts, as_of 2011-06-11" in page
    assert "No check has run" in page


def test_the_first_page_is_of_the_worst_day_then_the_newest() -> None:
    days = [replace(PASSED, landed_date=date(2011, 6, day)) for day in (7, 8, 9)]
    pages = {("order_lines", day.landed_date): f"{day.landed_date}.html" for day in days}
    warned, failed = (
        replace(days[1], success=False, severity="warning"),
        replace(days[0], success=False),
    )

    def first(*outcomes: Outcome) -> str | None:
        return replace(run(*outcomes), pages=pages).first_page

    assert first(*days) == "2011-06-09.html"
    assert first(*days, warned) == "2011-06-08.html"
    assert first(*days, warned, failed) == "2011-06-07.html"
    assert first() is None
