"""What is expected of a landed batch, as data: Great Expectations' types and arguments.

A row's own form (types, patterns, required columns) is the contract's and is checked by ingest; the
marts' invariants are dbt's. Here is only what takes a whole batch, and often its history, to see.
The limits hold on every one of the 526 days of the real retailer, Christmas included; the figure
beside each is that retailer's worst day.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from statistics import median
from typing import Any

ROWS_BAND = (0.08, 4.0)
"""Rows, as a multiple of the usual of the weekday: 0.10 before Christmas, 2.3 after a holiday."""
PRICE_BAND = (0.3, 3.0)
"""Median price, as a multiple of the recent one: 0.50 to 1.65."""
MAX_QUARANTINED_SHARE = 0.05
MAX_ANONYMOUS_INVOICE_SHARE = 0.90
"""Invoices without a customer: 0.80."""
MAX_NULL_DESCRIPTION_SHARE = 0.15
"""Lines without a description: 0.05."""
MAX_SPLIT_INVOICE_SHARE = 0.02
"""Lines of an invoice that has a customer on some lines only: 0."""
PRICE_RANGE = (0, 1000)
MAX_OUT_OF_RANGE_PRICE_SHARE = 0.02
"""Lines priced outside PRICE_RANGE: 0.005."""
MAX_ZERO_QUANTITY_SHARE = 0.01
"""Lines with quantity 0: 0."""
MAX_NEW_COUNTRY_SHARE = 0.25
"""Lines from a country not seen in the recent folders: 0.08."""

RECENT_FOLDERS = 20
SAME_WEEKDAYS = 8
MIN_SAME_WEEKDAYS = 3
MIN_RECENT_FOLDERS = 5
MIN_USUAL_ROWS = 50
"""Below this many rows a day, chance alone leaves ROWS_BAND and PRICE_BAND."""
ALWAYS_ALLOWED_ROWS = 3
"""So few rows never break a limit on a share, however small the batch."""


@dataclass(frozen=True)
class Folder:
    """What the ledger says of one landed folder; ``rows_in = rows + rows_quarantined``."""

    landed_date: date
    rows: int
    rows_in: int


@dataclass(frozen=True)
class History:
    """What was usual before the batch; None where too little has landed to tell.

    Attributes:
        rows: median rows of the last folders of the batch's weekday.
        median_price: median price over the recent folders, in pounds.
        countries: countries seen in the recent folders; empty when too little has landed.
    """

    rows: float | None
    median_price: float | None
    countries: tuple[str, ...]


@dataclass(frozen=True)
class Check:
    """One expectation by its Great Expectations type, with its arguments."""

    expectation: str
    arguments: Mapping[str, Any]

    @property
    def column(self) -> str | None:
        """The column that is looked at; None for the table as a whole."""
        return self.arguments.get("column")


def recent(folders: Sequence[Folder], batch: Folder) -> tuple[Folder, ...]:
    """The last RECENT_FOLDERS folders before the batch, newest first; none if they are too few."""
    before = sorted(
        (f for f in folders if f.landed_date < batch.landed_date),
        key=lambda folder: folder.landed_date,
        reverse=True,
    )[:RECENT_FOLDERS]
    return tuple(before) if len(before) >= MIN_RECENT_FOLDERS else ()


def usual_rows(folders: Sequence[Folder], batch: Folder) -> float | None:
    """Median rows of the last SAME_WEEKDAYS folders of the batch's weekday.

    None with fewer than MIN_SAME_WEEKDAYS of them, or when a day has too few rows to tell.
    """
    same = sorted(
        (
            (f.landed_date, f.rows)
            for f in folders
            if f.landed_date < batch.landed_date
            and f.landed_date.weekday() == batch.landed_date.weekday()
        ),
        reverse=True,
    )[:SAME_WEEKDAYS]
    if len(same) < MIN_SAME_WEEKDAYS:
        return None
    usual = float(median(rows for _, rows in same))
    return usual if usual >= MIN_USUAL_ROWS else None


def order_lines(batch: Folder, history: History) -> tuple[Check, ...]:
    """The suite of ``raw.order_lines``; run.py adds the columns that are not landed ones."""
    low_rows, high_rows = 1, None
    if history.rows is not None:
        low_rows = max(1, round(ROWS_BAND[0] * history.rows))
        high_rows = round(ROWS_BAND[1] * history.rows)
    checks = [
        Check(
            "expect_table_row_count_to_be_between",
            {"min_value": low_rows, "max_value": high_rows},
        ),
        Check(
            "expect_column_max_to_be_between",
            {
                "column": "quarantined_share",
                "max_value": allowed(MAX_QUARANTINED_SHARE, batch.rows_in),
            },
        ),
        Check(
            "expect_column_max_to_be_between",
            {"column": "anonymous_invoice_share", "max_value": MAX_ANONYMOUS_INVOICE_SHARE},
        ),
        Check(
            "expect_column_values_to_be_in_set",
            {
                "column": "invoice_has_one_customer",
                "value_set": [True],
                "mostly": 1 - allowed(MAX_SPLIT_INVOICE_SHARE, batch.rows),
            },
        ),
        Check(
            "expect_column_values_to_not_be_null",
            {
                "column": "description",
                "mostly": 1 - allowed(MAX_NULL_DESCRIPTION_SHARE, batch.rows),
            },
        ),
        Check(
            "expect_column_values_to_be_between",
            {
                "column": "price",
                "min_value": PRICE_RANGE[0],
                "max_value": PRICE_RANGE[1],
                "mostly": 1 - allowed(MAX_OUT_OF_RANGE_PRICE_SHARE, batch.rows),
            },
        ),
        Check(
            "expect_column_values_to_not_be_in_set",
            {
                "column": "quantity",
                "value_set": [0],
                "mostly": 1 - allowed(MAX_ZERO_QUANTITY_SHARE, batch.rows),
            },
        ),
    ]
    if history.median_price is not None and batch.rows >= MIN_USUAL_ROWS:
        low, high = (round(factor * history.median_price, 4) for factor in PRICE_BAND)
        checks.append(
            Check(
                "expect_column_median_to_be_between",
                {"column": "price", "min_value": low, "max_value": high},
            )
        )
    if history.countries:
        checks.append(
            Check(
                "expect_column_values_to_be_in_set",
                {
                    "column": "country",
                    "value_set": list(history.countries),
                    "mostly": 1 - allowed(MAX_NEW_COUNTRY_SHARE, batch.rows),
                },
            )
        )
    return tuple(checks)


def allowed(share: float, rows: int) -> float:
    """The share of ``rows`` that may break a rule: ``share``, but never under a handful of rows."""
    return round(min(1.0, max(share, ALWAYS_ALLOWED_ROWS / rows if rows else 1.0)), 6)


SUITES: Mapping[str, Callable[[Folder, History], tuple[Check, ...]]] = {"order_lines": order_lines}
"""The suite of each source."""
