"""Notes on tasks, and which errors are worth another try."""

import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.error import URLError

import psycopg2
import pytest
from airflow.sdk import RetryAction
from airflow.sdk.exceptions import AirflowFailException
from botocore.exceptions import EndpointConnectionError
from psycopg2 import errors
from py4j.protocol import Py4JNetworkError

from nightshift import task_notes, task_outcomes
from nightshift.errors import (
    AuditError,
    Cause,
    ContractError,
    NightshiftError,
    QualityError,
    SettingError,
)
from nightshift.features.run import DatasetResult
from nightshift.ingest.run import IngestResult
from nightshift.publishing.history_run import Kept, RolledBack
from nightshift.publishing.run import Publication, PublishResult
from nightshift.scoring.run import ScoreResult
from nightshift.settings import Settings, load_settings
from nightshift.task_outcomes import (
    RetryWhatMayPass,
    keep,
    may_pass,
    note_failure,
    note_retry,
    note_success,
    refusals_fail_at_once,
)
from nightshift.training.run import TrainingResult

AS_OF = date(2025, 12, 28)
BEFORE = Kept(
    "ab12", "churn", date(2025, 12, 8), "1", 9, datetime(2025, 12, 8, tzinfo=UTC), True, True, 0, 0
)
NEXT_BEFORE, ONLY = (replace(BEFORE, as_of=date(2025, 12, day)) for day in (9, 10))
START = datetime(2025, 12, 28, tzinfo=UTC)


def raised_from(cause: BaseException) -> NightshiftError:
    refusal = SettingError("the warehouse does not answer", "run `make up`")
    refusal.__cause__ = cause
    return refusal


@pytest.mark.parametrize(
    "error",
    [
        psycopg2.OperationalError("server closed the connection unexpectedly"),
        psycopg2.InterfaceError("connection already closed"),
        errors.AdminShutdown(), errors.DeadlockDetected(), errors.TooManyConnections(),
        EndpointConnectionError(endpoint_url="https://s3.example"),
        Py4JNetworkError("Answer from Java side is empty"), ConnectionResetError(), TimeoutError(),
        raised_from(psycopg2.OperationalError("could not connect")),
        raised_from(URLError(ConnectionRefusedError())),  # an MLflow of one's own
    ],
    ids=repr,
)  # fmt: skip
def test_what_may_pass_is_tried_again_later_and_later(error: BaseException) -> None:
    policy = RetryWhatMayPass()
    decisions = [policy.evaluate(error, try_number, 2) for try_number in (1, 2)]
    assert {decision.action for decision in decisions} == {RetryAction.RETRY}
    assert [d.retry_delay for d in decisions] == [timedelta(seconds=20), timedelta(seconds=80)]


@pytest.mark.parametrize(
    "error",
    [
        QualityError("1 of 9 rules is broken"), AuditError("PSI"), raised_from(KeyError("x")),
        errors.DiskFull(), errors.UniqueViolation(), errors.UndefinedTable(), KeyError("x"),
        MemoryError(), FileNotFoundError(), SystemExit(1),
    ],
    ids=repr,
)  # fmt: skip
def test_what_would_follow_again_is_not_tried_again(error: BaseException) -> None:
    assert RetryWhatMayPass().evaluate(error, 1, 2).action is RetryAction.FAIL


def test_a_refusal_fails_at_once_unless_a_server_was_lost() -> None:
    with pytest.raises(AirflowFailException, match="PSI"), refusals_fail_at_once():
        raise AuditError("PSI")
    lost = raised_from(psycopg2.OperationalError("could not connect"))
    with pytest.raises(SettingError), refusals_fail_at_once():
        raise lost
    assert may_pass(lost)


@pytest.mark.parametrize(
    ("note", "expected"),
    [
        (
            task_notes.of_ingest(
                IngestResult(
                    AS_OF,
                    9,
                    2,
                    1503,
                    1500,
                    3,
                    ("a file is empty",),
                    {"cards": ContractError("1 file is refused:\n  of cards")},
                )
            ),
            "**1,500 rows** loaded, 3 quarantined; 2 of 9 files were new\n\n"
            "- cards is held: 1 file is refused:\n- a file is empty",
        ),
        (
            task_notes.of_datasets({"churn": DatasetResult(Path("x"), 1234, (AS_OF,), True)}),
            "churn: **1,234 rows**, there already",
        ),
        (
            task_notes.of_score(ScoreResult("churn", AS_OF, "7", "ab12", 1234, True)),
            "**1,234 rows** scored by version 7",
        ),
        (
            task_notes.of_publish(
                PublishResult(
                    AS_OF,
                    (
                        Publication(
                            "churn", "ab12", "7", 1234, True, {"stable_since_previous": 0.0123}
                        ),
                    ),
                )
            ),
            "churn: **1,234 rows** of version 7, PSI 0.012 (since previous)",
        ),
        (
            task_notes.of_training(
                TrainingResult("r", "7", 90, 5000, "sha", {"test_auc": 0.81234, "other": 1.0})
            ),
            "**version 7**: AUC 0.8123, 90 trees, of 5,000 rows",
        ),
        (task_notes.of_challenge(None), "no challenger"),
        (
            task_notes.of_rollback(RolledBack((BEFORE, NEXT_BEFORE), (ONLY,), (NEXT_BEFORE,))),
            "churn: **2 dates, 2025-12-08 to 2025-12-09,** as before; 1 date, 2025-12-09, of them"
            " had been rolled back, and go forward again; 1 date, 2025-12-10, as they are, for"
            " nothing before them is kept",
        ),
        (
            task_notes.of_rollback(RolledBack((BEFORE, replace(BEFORE, use_case="spend")), (), ())),
            "**2 publications** as before\n\n- churn: **1 date, 2025-12-08,** as before\n"
            "- spend: **1 date, 2025-12-08,** as before",
        ),
        (
            task_notes.of_models({"churn": "3"}),
            "churn: **version 3** is champion again, and scores the next night",
        ),
        (
            task_notes.of_missing([f"order_lines/ds=2025-12-0{day}" for day in range(1, 8)]),
            "not landed by the deadline\n\n"
            + "".join(f"- order_lines/ds=2025-12-0{day}\n" for day in range(1, 6))
            + "- and 2 more",
        ),
    ],
)
def test_a_note_carries_the_result(note: str, expected: str) -> None:
    assert note == expected


def test_a_note_ends_its_first_line_with_the_seconds_and_fits() -> None:
    assert task_notes.finished("**9 rows**\n\n- one", 1.26) == "**9 rows** · 1.3 s\n\n- one"
    long = task_notes.finished("x" * 2000, 1)
    assert (len(long), long[-1]) == (1000, "…")


class Airflow:
    """What Airflow's REST API was asked; it answers ``status`` to a note."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, bytes]] = []
        self.status = 200
        airflow = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self._answer(201, b'{"access_token": "a-token"}')

            def do_PATCH(self) -> None:
                self._answer(airflow.status, b"{}")

            def _answer(self, status: int, body: bytes) -> None:
                sent = self.rfile.read(int(self.headers["Content-Length"]))
                airflow.asked.append((self.command, self.path, sent))
                self.send_response(status)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: object) -> None:
                """Not to stderr."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    @property
    def settings(self) -> Settings:
        url = f"http://127.0.0.1:{self.server.server_port}"
        return load_settings(_env_file=None, airflow_url=url, airflow_password="secret")


@pytest.fixture
def airflow(monkeypatch: pytest.MonkeyPatch) -> Iterator[Airflow]:
    """A user's own Airflow, as far as notes go: it keeps what it is asked."""
    found = Airflow()
    thread = threading.Thread(target=found.server.serve_forever)
    thread.start()
    monkeypatch.setattr(task_outcomes, "settings", lambda: found.settings)
    yield found
    found.server.shutdown()
    thread.join()
    found.server.server_close()


def context_of(error: BaseException | None = None) -> dict[str, Any]:
    ti = SimpleNamespace(
        dag_id="nightly", run_id="manual__2025-12-28T00:00:00+00:00", task_id="churn.score",
        try_number=1, start_date=START, end_date=START + timedelta(seconds=2),
    )  # fmt: skip
    return {"ti": ti, "exception": error}


PATH = (
    "/api/v2/dags/nightly/dagRuns/manual__2025-12-28T00%3A00%3A00%2B00%3A00/taskInstances/"
    "churn.score?update_mask=note"
)


def test_a_note_is_written_over_rest(airflow: Airflow) -> None:
    context = context_of()
    note_success(context)  # a task that kept none
    assert airflow.asked == []

    keep(context, "**9 rows**")
    note_success(context)

    _, (method, path, body) = airflow.asked
    assert (method, path) == ("PATCH", PATH)
    assert body == b'{"note": "**9 rows** \\u00b7 2.0 s"}'


def test_a_failure_says_what_was_wrong_and_what_to_do(airflow: Airflow) -> None:
    cause = Cause("price_is_usual", "order_lines", AS_OF, "price", "observed 299, expected 5")
    refusal = QualityError("1 of 9 rules is broken", "land the right file", (cause,))
    note_failure(context_of(refusal))
    assert airflow.asked[-1][2].decode() == (
        '{"note": "**Failed:** order_lines landed 2025-12-28, column price, price_is_usual:'
        " observed 299, expected 5\\n\\n**What to do:** land the right file; runbook:"
        ' docs/runbooks/quality-failed.md"}'
    )
    note_retry(context_of(psycopg2.OperationalError("terminating connection")))
    assert (
        b"**Try 1 failed, another follows:** crash: psycopg2.OperationalError"
        in airflow.asked[-1][2]
    )
    assert b"terminating" not in airflow.asked[-1][2]  # a crash's text may quote rows


@pytest.mark.parametrize("trouble", ["refused", "gone", "no password"])
def test_a_note_that_cannot_be_written_is_no_failure(
    airflow: Airflow,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    trouble: str,
) -> None:
    settings = airflow.settings
    if trouble == "refused":
        airflow.status = 403
    elif trouble == "gone":
        settings = settings.model_copy(update={"airflow_url": "http://127.0.0.1:9"})
    else:
        settings = settings.model_copy(update={"airflow_password": None})
    monkeypatch.setattr(task_outcomes, "settings", lambda: settings)
    caplog.set_level("INFO")

    note_failure(context_of(KeyError("x")))

    expected = {"refused": "answers 403 to admin", "gone": "refused", "no password": "is not set"}
    assert expected[trouble] in caplog.text
