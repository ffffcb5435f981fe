"""The outcome of each expectation, and how a failure reads."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

from nightshift.errors import Cause, QualityError
from nightshift.quality.suites import Check

MAX_SHOWN = 5


@dataclass(frozen=True)
class Outcome:
    """One expectation's result on one batch. ``observed`` holds what Great Expectations saw."""

    source: str
    landed_date: date
    check: Check
    success: bool
    observed: Mapping[str, Any]


@dataclass(frozen=True)
class QualityResult:
    """The batches that were checked, by source, and the outcome of each expectation."""

    landed_dates: Mapping[str, date]
    outcomes: tuple[Outcome, ...]


def failure(outcomes: Sequence[Outcome]) -> QualityError | None:
    """The error that names each failed expectation with what was seen and expected, or None."""
    failed = [outcome for outcome in outcomes if not outcome.success]
    if not failed:
        return None
    return QualityError(
        f"{len(failed)} of {len(outcomes)} expectations failed:\n"
        + "\n".join(f"  {_describe(outcome)}" for outcome in failed),
        "look at the file in the landing zone; if it is wrong, land the right one, and if the"
        " business has changed, change the limit in nightshift/quality/suites.py",
        causes=tuple(_cause(outcome) for outcome in failed),
    )


def _cause(outcome: Outcome) -> Cause:
    """What an alert may say: shares and statistics, no value of a row."""
    return Cause(
        rule=outcome.check.expectation,
        source=outcome.source,
        landed_date=outcome.landed_date,
        column=outcome.check.column,
        observed=f"observed {_observed(outcome.observed, with_values=False)},"
        f" expected {_expected(outcome.check.arguments)}",
    )


def _describe(outcome: Outcome) -> str:
    where = f"{outcome.source} landed {outcome.landed_date}"
    if outcome.check.column:
        where += f", column {outcome.check.column}"
    return (
        f"{where}: {outcome.check.expectation}: observed {_observed(outcome.observed)},"
        f" expected {_expected(outcome.check.arguments)}"
    )


def _observed(observed: Mapping[str, Any], with_values: bool = True) -> str:
    if "error" in observed:
        return str(observed["error"]) if with_values else "an error of the check itself"
    if "observed_value" in observed:
        return str(observed["observed_value"])
    share = (observed.get("unexpected_percent") or 0) / 100
    text = f"{share:.4f} of the rows breaking it"
    if not with_values:
        return text
    examples = list(dict.fromkeys(map(str, observed.get("partial_unexpected_list") or ())))
    return f"{text}, such as {', '.join(examples[:MAX_SHOWN])}" if examples else text


def _expected(arguments: Mapping[str, Any]) -> str:
    parts = []
    if "value_set" in arguments:
        values = [str(value) for value in arguments["value_set"]]
        more = f" and {len(values) - MAX_SHOWN} more" if len(values) > MAX_SHOWN else ""
        parts.append(f"the set {{{', '.join(values[:MAX_SHOWN])}{more}}}")
    low, high = arguments.get("min_value"), arguments.get("max_value")
    if low is not None:
        parts.append(f"at least {low}")
    if high is not None:
        parts.append(f"at most {high}")
    if "mostly" in arguments:
        parts.append(f"for at least {arguments['mostly']:.4g} of the rows")
    return ", ".join(parts)
