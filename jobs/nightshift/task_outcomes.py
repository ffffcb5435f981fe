"""What the end of a task leads to: a note on it in Airflow, and whether it is tried again.

Imported by DAG files, so it loads in milliseconds.
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from airflow.sdk import RetryDecision, RetryPolicy
from airflow.sdk.exceptions import AirflowFailException

from nightshift import task_notes
from nightshift.errors import NightshiftError
from nightshift.settings import settings

log = logging.getLogger(__name__)

RETRIES = 2
RETRY_SECONDS = 20
BACK_OFF = 4
_NOTE, _RESULT = "nightshift_note", "nightshift_result"


def may_pass(error: BaseException | None) -> bool:
    """Whether an error, or what it was raised from, is one that may be gone in a minute.

    A server that is lost, restarts or is out of connections; a deadlock. Not a refusal, not a
    crash of our own, and not a full disk: the same follows.
    """
    from urllib.error import URLError

    import psycopg2
    from botocore.exceptions import ConnectionError as S3ConnectionError
    from botocore.exceptions import HTTPClientError
    from py4j.protocol import Py4JNetworkError
    from sqlalchemy.exc import InterfaceError, OperationalError

    passing = (
        psycopg2.OperationalError, psycopg2.InterfaceError, OperationalError, InterfaceError,
        S3ConnectionError, HTTPClientError, Py4JNetworkError, URLError, ConnectionError,
        TimeoutError,
    )  # fmt: skip
    while error is not None:
        if isinstance(error, psycopg2.errors.DiskFull):
            return False
        if isinstance(error, passing):
            return True
        error = error.__cause__
    return False


class RetryWhatMayPass(RetryPolicy):
    """Tries a task again, later each time, after an error that may pass; fails it after any other.

    Airflow does not ask about a task whose process was killed: it is tried again.
    """

    def evaluate(
        self, exception: BaseException, try_number: int, max_tries: int, context: Any = None
    ) -> RetryDecision:
        """Called in the task's process, after each try."""
        if not may_pass(exception):
            return RetryDecision.fail("the same would follow")
        delay = timedelta(seconds=RETRY_SECONDS * BACK_OFF ** (try_number - 1))
        return RetryDecision.retry(delay, "it may have passed by then")


@contextmanager
def refusals_fail_at_once() -> Iterator[None]:
    """A refusal fails the task in plain words, unless what it was raised from may pass."""
    try:
        yield
    except NightshiftError as error:
        if may_pass(error):
            raise
        raise AirflowFailException(str(error)) from error


def keep(context: Any, note: str, result: Any = None) -> None:
    """Keep what the running task's note is to say once it has ended, and what its links lead to."""
    context[_NOTE] = note
    context[_RESULT] = result


def model_version(context: Mapping[str, Any]) -> str | None:
    """The version that the task's result is of; None where it has none, or has failed."""
    result = context.get(_RESULT)
    names = ("model_version", "version", "candidate_version")
    return next((getattr(result, name) for name in names if hasattr(result, name)), None)


def note_success(context: Mapping[str, Any]) -> None:
    """``on_success_callback`` of a task: Airflow has told the next ones already."""
    ti = context["ti"]
    note = context.get(_NOTE)
    if note is not None:
        seconds = (ti.end_date - ti.start_date).total_seconds()
        write_note(ti, task_notes.finished(note, seconds))


def note_failure(context: Mapping[str, Any]) -> None:
    """``on_failure_callback`` of a task: what failed, and what to do."""
    _note_error(context, "Failed")


def note_retry(context: Mapping[str, Any]) -> None:
    """``on_retry_callback`` of a task."""
    _note_error(context, f"Try {context['ti'].try_number} failed, another follows")


def _note_error(context: Mapping[str, Any], outcome: str) -> None:
    from nightshift.alerts.failure import of_error
    from nightshift.alerts.message import as_note
    from nightshift.alerts.run import tellable

    diagnosis = of_error(context.get("exception"))
    causes = tellable(diagnosis.causes)
    note = as_note(outcome, causes, diagnosis, settings().runbooks_url)
    write_note(context["ti"], task_notes.shortened(note))


def write_note(ti: Any, note: str) -> None:
    """Put a note on a task instance, over REST; a note that cannot be written is a warning.

    Airflow 3.3 gives a task no other way to its own note.
    """
    from nightshift.services import airflow
    from nightshift.services.run import tasks_login

    try:
        url, username, password = tasks_login(settings())
        if password is None:
            log.info("no note: NIGHTSHIFT_AIRFLOW_PASSWORD is not set")
            return
        token = airflow.log_in(url, username, password)
        status = airflow.set_note(url, token or "", ti.dag_id, ti.run_id, ti.task_id, note)
    except (OSError, ValueError, NightshiftError) as error:
        log.warning("no note: %s", error)
        return
    if status != 200:
        log.warning("no note: Airflow at %s answers %d to %s", url, status, username)
