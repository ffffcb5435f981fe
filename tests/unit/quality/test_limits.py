from datetime import date, timedelta
from typing import Any

import pytest

from nightshift.contracts import SOURCES, load_contract
from nightshift.contracts.quality import QualityContract
from nightshift.quality.limits import (
    Check,
    Folder,
    allowed,
    checks,
    parameters,
    recent,
    usual_rows,
)

SUNDAY = date(2011, 6, 12)
BATCH = Folder(SUNDAY, rows=1000, rows_in=1000)
ORDERS = load_contract("order_lines").quality


def arguments(found: tuple[Check, ...], rule: str) -> dict[str, Any]:
    (check,) = [check for check in found if check.rule.name == rule]
    return dict(check.arguments)


def weeks_before(*rows: int) -> list[Folder]:
    return [Folder(SUNDAY - timedelta(weeks=n), r, r) for n, r in enumerate(rows, start=1)]


def days_before(count: int) -> list[Folder]:
    return [Folder(SUNDAY - timedelta(days=n), 10, 10) for n in range(1, count + 1)]


def statistics(folders: list[Folder], **of_a_day: Any) -> dict[date, dict[str, Any]]:
    nothing = {"recent_median_price": None, "recent_values_country": []}
    return {folder.landed_date: nothing | of_a_day for folder in folders}


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
    days = days_before(30)

    assert recent(days[:4], BATCH) == ()
    assert len(recent(days[:5], BATCH)) == 5
    assert [f.landed_date for f in recent(days, BATCH)] == [f.landed_date for f in days[:20]]


def test_what_was_usual_is_taken_over_the_recent_days() -> None:
    days = days_before(5)
    seen = statistics(days, recent_median_price=2.0, recent_values_country=["France"])
    seen[days[0].landed_date] = {"recent_median_price": 9.0, "recent_values_country": ["Spain"]}

    assert parameters(ORDERS, days, seen, BATCH) == {
        "landed_rows": 1000,
        "rows_within_budget": 990,
        "recent_median_price": 2.0,
        "recent_values_country": ["France", "Spain"],
    }


@pytest.mark.parametrize("price", [None, 0, -1.0])
def test_a_median_that_tells_nothing_is_not_known(price: float | None) -> None:
    days = days_before(5)

    known = parameters(ORDERS, days, statistics(days, recent_median_price=price), BATCH)

    assert "recent_median_price" not in known


@pytest.mark.parametrize(("rows_in", "fewest"), [(2, 0), (4, 1), (300, 297), (1000, 990)])
def test_the_budget_never_forbids_three_rows(rows_in: int, fewest: int) -> None:
    known = parameters(ORDERS, [], {}, Folder(SUNDAY, rows_in, rows_in))

    assert known["rows_within_budget"] == fewest


def test_a_first_night_is_held_only_against_what_needs_no_history() -> None:
    found = checks(ORDERS, parameters(ORDERS, [], {}, BATCH), BATCH.rows)

    assert {"not_empty", "quarantine_within_budget", "price_in_range"} <= {
        check.rule.name for check in found
    }
    history = {"rows_are_usual", "price_is_usual", "country_is_known"}
    assert not history & {check.rule.name for check in found}


def test_limits_are_evaluated() -> None:
    known = {
        "usual_rows": 1000.0,
        "recent_median_price": 2.5,
        "recent_values_country": ["France"],
        "rows_within_budget": 990,
    }
    found = checks(ORDERS, known, BATCH.rows)

    assert arguments(found, "rows_are_usual") == {"min_value": 80, "max_value": 4000}
    assert arguments(found, "quarantine_within_budget") == {"min_value": 990}
    assert arguments(found, "price_is_usual") == {
        "column": "price",
        "min_value": 0.75,
        "max_value": 7.5,
    }
    assert arguments(found, "country_is_known") == {
        "column": "country",
        "value_set": ["France"],
        "mostly": 0.75,
    }


@pytest.mark.parametrize(
    ("rows", "share"), [(0, 1.0), (2, 1.0), (10, 0.3), (60, 0.05), (1000, 0.05)]
)
def test_a_handful_of_rows_never_breaks_a_share(rows: int, share: float) -> None:
    assert allowed(0.05, rows) == share


@pytest.mark.parametrize(
    "contract", [load_contract(source).quality for source in SOURCES], ids=lambda c: c.name
)
def test_every_rule_can_be_applied_once_enough_has_landed(contract: QualityContract) -> None:
    folders = [BATCH, *(Folder(SUNDAY - timedelta(days=n), 1000, 1000) for n in range(1, 60))]
    day = {f"recent_median_{c}": 5.0 for c in contract.columns_of("recent_median_")}
    day |= {f"recent_values_{c}": ["a"] for c in contract.columns_of("recent_values_")}
    known = parameters(contract, folders, {f.landed_date: day for f in folders}, BATCH)

    assert len(checks(contract, known, BATCH.rows)) == len(contract.rules)
