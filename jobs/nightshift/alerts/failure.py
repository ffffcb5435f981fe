"""What failed, from the error that ended a task or the reason that ended a DAG run."""

import re
import traceback
from collections.abc import Container
from dataclasses import dataclass, replace
from datetime import date

from nightshift.errors import Cause, NightshiftError

MAX_EXAMPLES = 5
MAX_LINE = 400
_ROW_OF_FILE = re.compile(r"\S+/ds=\d{4}-\d\d-\d\d/.+:\d+")


@dataclass(frozen=True)
class Diagnosis:
    """The part of a failure that the error tells.

    Attributes:
        causes: at least one.
        remedy: what to do, in the error's own words; "" where there was no error.
        runbook: a page of docs/runbooks, without its suffix.
    """

    causes: tuple[Cause, ...]
    remedy: str
    runbook: str


@dataclass(frozen=True)
class Failure(Diagnosis):
    """A task that failed for good, or a DAG run that ended without naming one.

    Attributes:
        task_id: None when the run failed as a whole.
        as_of: None when the run has none: its param is refused, or Airflow does not tell.
        log_url: the task's log in Airflow, or the run's page.
    """

    dag_id: str
    run_id: str
    task_id: str | None
    as_of: date | None
    log_url: str

    @property
    def place(self) -> str:
        """Where it stopped, as a reader of Airflow's grid finds it."""
        return self.task_id or "the DAG run"


def of_error(error: BaseException | None) -> Diagnosis:
    """What an error says of its causes; None is a process that ended without one.

    A refusal, or the refusal that Airflow's exception was raised from, speaks for itself: by its
    causes, otherwise by its first line. Of any other error only the type and the place are told:
    its text may quote rows of the data, and stays in the log.
    """
    if error is None:
        return Diagnosis((Cause("ended without an error", observed=_KILLED),), "", "task-failed")
    refusal = _refusal(error)
    if refusal is not None:
        what = first_line(refusal.what)
        rule = f"{type(refusal).__name__}: {masked(what)}"
        causes = refusal.causes or (Cause(rule, observed=what),)
        return Diagnosis(causes, refusal.remedy, refusal.runbook)
    name = f"{type(error).__module__}.{type(error).__qualname__}".removeprefix("builtins.")
    cause = Cause(f"crash: {name}", observed=f"raised{_raised_at(error)}; its text is in the log")
    return Diagnosis((cause,), "", "task-failed")


_KILLED = "the process was killed, ran out of memory, or lost touch with Airflow"


def of_run(reason: str) -> Diagnosis:
    """What Airflow's reason for a failed DAG run says: ``timed_out``, ``task_failure``, …"""
    if reason == "timed_out":
        cause = Cause("timed out", observed="the run did not end within its dagrun_timeout")
        return Diagnosis((cause,), "", "run-timed-out")
    if reason == "task_failure":
        return of_error(None)
    return Diagnosis((Cause(reason.replace("_", " ")),), "", "task-failed")


def without_personal_data(
    causes: tuple[Cause, ...], personal: Container[tuple[str | None, str | None]]
) -> tuple[Cause, ...]:
    """The causes with at most MAX_EXAMPLES examples each.

    Of a rule about a personal column only ``file:row`` is kept: anything else may be its value.

    Args:
        causes: as an error carried them.
        personal: (source, column) of each column that its contract classifies as personal data.
    """
    kept = []
    for cause in causes:
        examples = [first_line(example) for example in cause.examples]
        if (cause.source, cause.column) in personal:
            examples = [example for example in examples if _ROW_OF_FILE.fullmatch(example)]
        kept.append(replace(cause, examples=tuple(examples[:MAX_EXAMPLES])))
    return tuple(kept)


def masked(text: str) -> str:
    """The text without its figures, which differ from night to night of one incident."""
    return re.sub("[0-9]+", "#", text)


def first_line(text: str) -> str:
    """The first line of a text, at most MAX_LINE characters of it."""
    line = next(iter(text.strip().splitlines()), "")
    return line if len(line) <= MAX_LINE else line[: MAX_LINE - 1] + "…"


def _refusal(error: BaseException) -> NightshiftError | None:
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, NightshiftError):
            return found
        found = found.__cause__
    return None


def _raised_at(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "/nightshift/" in frame.filename]
    if not ours:
        return ""
    file = ours[-1].filename.rpartition("/nightshift/")[2]
    return f" in nightshift/{file}, line {ours[-1].lineno}, in {ours[-1].name}"
