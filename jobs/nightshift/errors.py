"""Errors that a person can act on: what was wrong, where, and what to do next."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import ClassVar


@dataclass(frozen=True)
class Cause:
    """One rule that was broken, as an alert names it.

    Attributes:
        source: the source whose data broke it; None where no source is at fault.
        landed_date: the landed day; None where the rule is not about one day.
        rule: the rule's name, the same every night that it is broken.
        column: the column it is about.
        observed: what was seen and what was expected, in one line without values of rows.
        examples: up to five keys of what broke it: file names, row or invoice numbers. Never a
            value of a column that the contract classifies as personal data.
    """

    rule: str
    source: str | None = None
    landed_date: date | None = None
    column: str | None = None
    observed: str = ""
    examples: tuple[str, ...] = ()


class NightshiftError(Exception):
    """A refusal, not a crash: the CLI and Airflow show it without a traceback.

    Args:
        what: what was wrong, with the value that was found and what was expected. Its first line
            goes into alerts, so it holds no personal data.
        remedy: what the reader should do next, as a sentence or a command.
        causes: each rule that was broken, where rules were.
    """

    runbook: ClassVar[str] = "task-failed"
    """The page of docs/runbooks that says what to do."""

    def __init__(self, what: str, remedy: str = "", causes: tuple[Cause, ...] = ()) -> None:
        self.what = what
        self.remedy = remedy
        self.causes = causes
        super().__init__(f"{what}\n  → {remedy}" if remedy else what)


class SettingError(NightshiftError):
    """A setting that is unknown, missing or malformed; the message names it."""

    runbook = "service-does-not-answer"


class RefusedAsOf(NightshiftError):
    """An ``as_of`` that cannot be run: in the future, before any data, or with no champion yet."""

    runbook = "as-of-refused"


class ContractError(NightshiftError):
    """A landed file or folder that breaks its source's contract as a whole."""

    runbook = "ingest-refused-a-file"


class QualityError(NightshiftError):
    """A failed expectation: the night stops before anything downstream changes."""

    runbook = "quality-failed"


class TransformError(NightshiftError):
    """A dbt model or test that failed."""

    runbook = "dbt-build-failed"


class AuditError(NightshiftError):
    """Scores that must not be published; the published ones stay as they are."""

    runbook = "audit-failed"


class GateError(NightshiftError):
    """A trained model that failed a gate; the champion stays as it is."""

    runbook = "gate-failed"


def joined(refusals: Sequence[NightshiftError]) -> NightshiftError:
    """One error of many that did not hold one another up; a single one as it is.

    It is of the kind of the first that names its causes.
    """
    if len(refusals) == 1:
        return refusals[0]
    kind = type(next((refusal for refusal in refusals if refusal.causes), refusals[0]))
    return kind(
        "; ".join(refusal.what for refusal in refusals),
        "; ".join(dict.fromkeys(refusal.remedy for refusal in refusals)),
        tuple(
            cause
            for refusal in refusals
            for cause in refusal.causes or (Cause(type(refusal).__name__, observed=refusal.what),)
        ),
    )
