"""A contract's rules for one landed day, with limits computed from what was usual before it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from statistics import median
from typing import Any

from nightshift.contracts.quality import QualityContract, Rule

RECENT_FOLDERS = 20
SAME_WEEKDAYS = 8
MIN_SAME_WEEKDAYS = 3
MIN_RECENT_FOLDERS = 5
MIN_USUAL_ROWS = 50
"""Below this many rows a day, chance alone leaves what is usual."""
ALWAYS_ALLOWED_ROWS = 3
"""So few rows never break a share (``mostly``, ``quarantineBudget``), however small the batch."""


@dataclass(frozen=True)
class Folder:
    """What the ledger says of one landed folder; ``rows_in = rows + rows_quarantined``."""

    landed_date: date
    rows: int
    rows_in: int


@dataclass(frozen=True)
class Check:
    """A rule with its limits as numbers."""

    rule: Rule
    arguments: Mapping[str, Any]


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


def parameters(
    contract: QualityContract,
    folders: Sequence[Folder],
    statistics: Mapping[date, Mapping[str, Any]],
    batch: Folder,
) -> dict[str, Any]:
    """The value of each parameter that is known for the batch.

    Args:
        statistics: by landed date, the day's value of each ``recent_…`` parameter of the contract:
            a median, or a list of values.
    """
    broken = max(ALWAYS_ALLOWED_ROWS, int(contract.quarantine_budget * batch.rows_in))
    values: dict[str, Any] = {
        "landed_rows": batch.rows,
        "rows_within_budget": max(0, batch.rows_in - broken),
    }
    usual = usual_rows(folders, batch)
    if usual is not None:
        values["usual_rows"] = usual
    days = [
        statistics[f.landed_date] for f in recent(folders, batch) if f.landed_date in statistics
    ]
    for column in contract.columns_of("recent_values_"):
        name = f"recent_values_{column}"
        seen = {value for day in days for value in day[name] or () if value is not None}
        if seen:
            values[name] = sorted(seen)
    for column in contract.columns_of("recent_median_"):
        name = f"recent_median_{column}"
        medians = [float(day[name]) for day in days if day[name] is not None]
        if medians and median(medians) > 0 and batch.rows >= MIN_USUAL_ROWS:
            values[name] = median(medians)
    return values


def checks(contract: QualityContract, values: Mapping[str, Any], rows: int) -> tuple[Check, ...]:
    """The rules whose parameters are known, their limits evaluated.

    Args:
        values: the parameters that are known.
        rows: of the batch; a share never forbids a handful of them.
    """
    return tuple(
        Check(
            rule=rule,
            arguments={name: _limit(name, v, values, rows) for name, v in rule.arguments.items()},
        )
        for rule in contract.rules
        if rule.parameters <= values.keys()
    )


def _limit(name: str, written: Any, values: Mapping[str, Any], rows: int) -> Any:
    # Great Expectations takes seconds to import
    from great_expectations.core.suite_parameters import parse_suite_parameter

    if isinstance(written, Mapping) and "$PARAMETER" in written:
        value = parse_suite_parameter(written["$PARAMETER"], dict(values))
        return round(value, 4) if isinstance(value, float) else value
    if name == "mostly":
        return 1 - allowed(1 - written, rows)
    return written


def allowed(share: float, rows: int) -> float:
    """The share of ``rows`` that may break a rule: ``share``, but never under a handful of rows."""
    return round(min(1.0, max(share, ALWAYS_ALLOWED_ROWS / rows if rows else 1.0)), 6)
