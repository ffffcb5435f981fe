"""The outcome of each rule, how a failure reads, and the report."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

from nightshift.contracts import ArrivalCalendar
from nightshift.contracts.quality import Severity
from nightshift.errors import Cause, QualityError

MAX_SHOWN = 5
MAX_ARRIVAL_DAYS = 14
ARRIVAL = "arrives_when_expected"
"""The rule that a folder lands on each day of the contract's arrivalCalendar."""


@dataclass(frozen=True)
class Outcome:
    """One rule's result on one landed day.

    Attributes:
        table: what was checked: the source, or the mart.
        expectation: Great Expectations' type; None for what is no expectation of rows.
        expected: its arguments.
        observed: what Great Expectations saw.
        examples: up to five rows that break it, as ``file:row`` or by their key.
    """

    table: str
    source: str
    landed_date: date
    rule: str
    severity: Severity
    success: bool
    expectation: str | None = None
    column: str | None = None
    expected: Mapping[str, Any] | None = None
    observed: Mapping[str, Any] | None = None
    examples: tuple[str, ...] = ()


@dataclass(frozen=True)
class QualityResult:
    """The newest landed day of each table that was checked, and the outcome of each rule."""

    landed_dates: Mapping[str, date]
    outcomes: tuple[Outcome, ...]

    @property
    def warnings(self) -> tuple[Outcome, ...]:
        """What is broken and did not stop the night."""
        return tuple(o for o in self.outcomes if not o.success and o.severity == "warning")


def arrivals(
    source: str, calendar: ArrivalCalendar, landed: Sequence[date], as_of: date
) -> list[Outcome]:
    """Each day since the oldest of ``landed`` on which a folder was expected, come or not.

    Of a source that has stopped, the last days only: that it is stale is told by its freshness.
    """
    first = max(min(landed), as_of - timedelta(days=MAX_ARRIVAL_DAYS))
    days = [first + timedelta(days=n) for n in range((as_of - first).days)]
    return [
        Outcome(source, source, day, ARRIVAL, "warning", success=day in landed)
        for day in days
        if calendar.expects(day)
    ]


def failure(outcomes: Sequence[Outcome], report: str) -> QualityError | None:
    """The error that names each broken rule of severity error, what was seen and expected, or None.

    Args:
        report: where the whole report is.
    """
    failed = [o for o in outcomes if not o.success and o.severity == "error"]
    if not failed:
        return None
    return QualityError(
        f"{len(failed)} of {len(outcomes)} quality rules are broken:\n"
        + "\n".join(f"  {describe(outcome)}" for outcome in failed)
        + f"\n  the whole report: {report}",
        "look at the rows that are named; if the file is wrong, land the right one, and if the"
        " business has changed, change the limit in jobs/nightshift/contracts/",
        causes=tuple(_cause(outcome) for outcome in failed),
    )


def _cause(outcome: Outcome) -> Cause:
    """What an alert may say: shares and statistics, no value of a row."""
    return Cause(
        rule=outcome.rule,
        source=outcome.source,
        landed_date=outcome.landed_date,
        column=outcome.column,
        observed=compared(outcome, with_values=False),
        examples=outcome.examples,
    )


def describe(outcome: Outcome) -> str:
    """One line: where, which rule, what was observed and expected, which rows."""
    where = f"{outcome.table} landed {outcome.landed_date}"
    if outcome.column:
        where += f", column {outcome.column}"
    line = f"{where}: {outcome.rule}: {compared(outcome)}"
    return f"{line}; rows {', '.join(outcome.examples)}" if outcome.examples else line


def compared(outcome: Outcome, with_values: bool = True) -> str:
    """What was observed and what was expected; without values, what an alert may say."""
    if outcome.expectation is None:
        return "a folder was expected" + ("" if outcome.success else ", and none has landed")
    return (
        f"{outcome.expectation}: observed {_observed(outcome.observed or {}, with_values)},"
        f" expected {_expected(outcome.expected or {})}"
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
    found = (v for v in observed.get("partial_unexpected_list") or () if v is not None)
    examples = list(dict.fromkeys(map(str, found)))
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
    share = arguments.get("mostly", 1)
    if share < 1 or not parts:
        parts.append(f"that for at least {share:.4g} of the rows")
    return ", ".join(parts)


def summary(outcomes: Sequence[Outcome]) -> str:
    """A table for the log: a line for each landed day, then one for each broken rule."""
    tables: dict[tuple[str, date], list[Outcome]] = {}
    for outcome in outcomes:
        tables.setdefault((outcome.table, outcome.landed_date), []).append(outcome)
    width = max((len(table) for table, _ in tables), default=0)
    lines = [f"{'table':{width}}  landed      rules  warnings  errors"]
    for (table, day), found in sorted(tables.items()):
        broken = [o.severity for o in found if not o.success]
        lines.append(
            f"{table:{width}}  {day}  {len(found):5}  {broken.count('warning'):8}"
            f"  {broken.count('error'):6}"
        )
    lines += [f"{o.severity}: {describe(o)}" for o in outcomes if not o.success]
    return "\n".join(lines)
