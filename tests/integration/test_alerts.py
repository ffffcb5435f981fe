"""Incidents in the real warehouse; their messages through Airflow's notifiers to real servers."""

import json
import os
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import date
from typing import Any

import pytest
from airflow.sdk import DAG

from nightshift import orchestration
from nightshift.alerts import run
from nightshift.alerts.failure import Failure, of_error, of_run
from nightshift.alerts.run import (
    report_failed_run,
    report_failure,
    report_question,
    report_success,
    send_unsent,
)
from nightshift.errors import Cause, QualityError
from nightshift.io.warehouse import connect
from nightshift.services.postgres import free_port
from nightshift.settings import PROJECT_ROOT, Settings
from nightshift.use_cases import CHURN

pytestmark = pytest.mark.integration

NIGHT = date(2026, 1, 9)
NEXT_NIGHT = date(2026, 1, 10)
PRICES = Cause(
    "expect_column_median_to_be_between",
    "order_lines",
    date(2026, 1, 8),
    "price",
    "observed 295.0, expected at most 8.85",
    ("invoice 536365",),
)
REFUSAL = QualityError("1 of 9 expectations failed", "look at the file", (PRICES,))


def failed(*causes: Cause, as_of: date = NIGHT, **more: Any) -> Failure:
    """The night of ``as_of``, stopped at quality."""
    found = Failure(
        **vars(of_error(REFUSAL)),
        dag_id="nightly",
        run_id=f"scheduled__{as_of}",
        task_id="quality.check_landed",
        as_of=as_of,
        log_url="http://localhost:8080/dags/nightly",
    )
    return replace(found, **({"causes": causes} if causes else {}), **more)


@pytest.fixture
def settings(warehouse: Settings, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Both channels switched on; there is churn only, and it was published once."""
    monkeypatch.setattr(run, "USE_CASES", (CHURN,))
    with connect(warehouse) as connection, connection.cursor() as cursor:
        cursor.execute(
            "insert into ops.publications (publication_id, use_case, as_of, model_version,"
            " mlflow_run_id, rows, features_sha256, scored_at)"
            " values ('p', 'churn', '2026-01-08', '1', 'r', 1, '', now())"
        )
        cursor.execute(
            "insert into predictions.pointers (use_case, as_of, publication_id)"
            " values ('churn', '2026-01-08', 'p')"
        )
    on = {"alert_email": "on-call@example.com, lead@example.com", "alert_webhook": True}
    return warehouse.model_copy(update=on)


def rows(settings: Settings, query: str) -> list[tuple[Any, ...]]:
    with connect(settings) as connection, connection.cursor() as cursor:
        cursor.execute(query)
        return cursor.fetchall()


def incidents(settings: Settings) -> list[tuple[Any, ...]]:
    return rows(
        settings,
        "select rule, times_seen, last_as_of, notified_at is not null, closed_at is not null,"
        " recovery_notified_at is not null from ops.incidents order by incident_id",
    )


def subjects(sinks: Any) -> list[str]:
    return [str(mail["Subject"]) for mail in sinks.mails]


def test_a_failure_sends_one_mail_and_one_post(settings: Settings, alert_sinks: Any) -> None:
    report_failure(settings, failed())

    (mail,) = alert_sinks.mails
    assert mail["To"] == "on-call@example.com, lead@example.com"
    assert mail["Subject"] == (
        "[nightshift] nightly 2026-01-09 stopped at quality.check_landed: order_lines landed"
        " 2026-01-08, column price, expect_column_median_to_be_between;"
        " predictions.churn stays at 2026-01-08"
    )
    body = mail.get_body(("html",)).get_content()
    (post,) = alert_sinks.posts
    for text in (body, post["text"]):
        assert "observed 295.0, expected at most 8.85; for example invoice 536365" in text
        assert "predictions.churn stays at 2026-01-08: 2026-01-09 is not published" in text
        assert "docs/runbooks/quality-failed.md" in text
        assert "http://localhost:8080/dags/nightly" in text
    assert incidents(settings) == [(PRICES.rule, 1, NIGHT, True, False, False)]


def test_a_question_is_sent_again_when_it_could_not_be_sent(
    settings: Settings, alert_sinks: Any
) -> None:
    question = "Customer churn: shall version 2 score?"
    page = "http://localhost:8080/dags/train__churn/runs/r/tasks/approve_promotion/required_actions"
    alert_sinks.is_refusing = True
    report_question(settings, question, ["passed `at_least_auc`: auc 0.8"], page)
    assert (alert_sinks.mails, alert_sinks.posts) == ([], [])

    alert_sinks.is_refusing = False
    report_success(settings, "nightly", NIGHT)

    (mail,), (post,) = alert_sinks.mails, alert_sinks.posts
    assert mail["Subject"] == f"[nightshift] {question}"
    for text in (mail.get_body(("html",)).get_content(), post["text"]):
        assert "passed `at_least_auc`: auc 0.8" in text
        assert page in text
        assert "docs/runbooks/roll-back-a-model.md" in text
    assert incidents(settings) == []


def test_what_is_open_is_counted_and_not_told_again(settings: Settings, alert_sinks: Any) -> None:
    report_failure(settings, failed())
    report_failure(settings, failed(as_of=NEXT_NIGHT))
    assert (len(alert_sinks.mails), len(alert_sinks.posts)) == (1, 1)
    assert incidents(settings) == [(PRICES.rule, 2, NEXT_NIGHT, True, False, False)]

    new = replace(PRICES, landed_date=date(2026, 1, 9))
    report_failure(settings, failed(PRICES, new, as_of=NEXT_NIGHT))

    assert (len(alert_sinks.mails), len(alert_sinks.posts)) == (2, 2)
    assert "(told before, failed 3 times)" in alert_sinks.posts[1]["text"]
    assert len(incidents(settings)) == 2


def test_a_success_closes_what_it_repairs_with_one_message(
    settings: Settings, alert_sinks: Any
) -> None:
    report_failure(settings, failed(PRICES, replace(PRICES, column="quantity")))
    report_success(settings, "nightly", NIGHT.replace(day=8))  # an older night, in a backfill
    report_success(settings, "train__churn", NIGHT)
    assert len(alert_sinks.mails) == 1

    report_success(settings, "nightly", NIGHT)
    report_success(settings, "nightly", NEXT_NIGHT)

    assert len(alert_sinks.mails) == 2
    assert subjects(alert_sinks)[1] == (
        "[nightshift] recovered: nightly, quality.check_landed, after 0 min;"
        " predictions.churn at 2026-01-08"
    )
    assert len(alert_sinks.posts) == 2
    assert [row[3:] for row in incidents(settings)] == [(True, True, True)] * 2

    report_failure(settings, failed(as_of=NEXT_NIGHT))  # the same again is a new incident
    assert len(alert_sinks.mails) == 3
    assert len(incidents(settings)) == 3


def test_a_run_reports_only_what_its_task_did_not(settings: Settings, alert_sinks: Any) -> None:
    report_failure(settings, failed())
    run = failed(*of_run("task_failure").causes)
    report_failed_run(settings, run)
    assert len(alert_sinks.mails) == 1

    killed = replace(run, task_id="features.compute_features")
    report_failed_run(settings, killed)
    assert "features.compute_features: ended without an error" in subjects(alert_sinks)[1]

    whole = failed(*of_run("timed_out").causes, task_id=None, as_of=None)
    report_failed_run(settings, whole)
    assert "nightly stopped at the DAG run: timed out" in subjects(alert_sinks)[2]


def test_of_two_nights_at_once_that_meet_the_same_each_has_reported_it(
    settings: Settings, alert_sinks: Any
) -> None:
    both = failed(), failed(as_of=NEXT_NIGHT)
    for night in (*both, *both):
        report_failure(settings, night)
    for night in both:
        assert report_failed_run(settings, replace(night, causes=of_run("task_failure").causes))
    assert len(alert_sinks.mails) == 1
    assert rows(settings, "select run_ids from ops.incidents") == [
        ([night.run_id for night in both],)
    ]


def test_what_was_not_sent_is_sent_the_next_time(
    settings: Settings, alert_sinks: Any, caplog: pytest.LogCaptureFixture
) -> None:
    alert_sinks.is_refusing = True
    report_failure(settings, failed())
    assert incidents(settings) == [(PRICES.rule, 1, NIGHT, False, False, False)]
    assert "the alert is not sent by email" in caplog.text
    assert "correct Airflow's connection slack_default" in caplog.text
    kept = rows(settings, "select attempts, last_error from ops.alert_messages")
    assert [attempts for attempts, _ in kept] == [1, 1]
    assert "451" in kept[0][1] and "500" in kept[1][1]

    alert_sinks.is_refusing = False
    report_success(settings, "nightly", NIGHT)

    assert len(alert_sinks.mails) == len(alert_sinks.posts) == 2
    assert "stopped at" in subjects(alert_sinks)[0]
    assert "recovered" in subjects(alert_sinks)[1]
    send_unsent(settings)
    assert len(alert_sinks.mails) == 2


def test_one_channel_that_is_down_does_not_hold_up_the_other(
    settings: Settings, alert_sinks: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AIRFLOW_CONN_SMTP_DEFAULT")
    report_failure(settings, failed())
    assert (len(alert_sinks.mails), len(alert_sinks.posts)) == (0, 1)
    assert incidents(settings)[0][3] is True

    smtp = json.dumps(alert_sinks.connections()["smtp_default"])
    monkeypatch.setenv("AIRFLOW_CONN_SMTP_DEFAULT", smtp)
    send_unsent(settings)
    assert (len(alert_sinks.mails), len(alert_sinks.posts)) == (1, 1)


KILLED = """
from datetime import date
from nightshift.alerts.failure import Failure, of_error
from nightshift.alerts.run import report_failure
from nightshift.settings import settings
found = vars(of_error(None))
report_failure(settings(), Failure(**found, dag_id="nightly", run_id="r", task_id="t",
               as_of=date(2026, 1, 9), log_url=""))
"""


def test_a_kill_between_incident_and_message_loses_neither(
    settings: Settings, alert_sinks: Any
) -> None:
    """The process dies while a mail server that has taken the connection keeps it waiting."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        smtp = {**alert_sinks.connections()["smtp_default"], "port": silent.getsockname()[1]}
        environment = {
            **os.environ,
            "AIRFLOW_CONN_SMTP_DEFAULT": json.dumps(smtp),
            "NIGHTSHIFT_DATABASE_URL": settings.warehouse_url,
            "NIGHTSHIFT_STATE_DIR": str(settings.state_dir),
            "NIGHTSHIFT_ALERT_EMAIL": "on-call@example.com",
            "PYTHONPATH": str(PROJECT_ROOT / "jobs"),
        }
        process = subprocess.Popen([sys.executable, "-c", KILLED], env=environment)
        try:
            silent.settimeout(60)
            connection, _ = silent.accept()
        finally:
            process.kill()
            process.wait()
        connection.close()
    assert [row[3] for row in incidents(settings)] == [False]

    deadline = time.monotonic() + 60
    while not alert_sinks.mails and time.monotonic() < deadline:
        send_unsent(settings)  # once the server has noticed that the dead one let go
    assert "t: ended without an error" in subjects(alert_sinks)[0]
    assert [row[3] for row in incidents(settings)] == [True]


def test_without_a_warehouse_the_message_goes_out_once_a_run_and_says_so(
    settings: Settings, alert_sinks: Any
) -> None:
    gone = f"postgresql://nobody@127.0.0.1:{free_port(15999)}/gone"
    down = settings.model_copy(update={"database_url": gone})
    report_failure(down, failed())
    report_failed_run(down, failed(*of_run("task_failure").causes))

    (post,) = alert_sinks.posts
    assert len(alert_sinks.mails) == 1
    assert "unknown: the warehouse does not answer; what was published stays" in post["text"]
    assert "*Not recorded in ops.incidents*" in post["text"]
    assert subjects(alert_sinks)[0].endswith("; the warehouse does not answer")
    report_failure(down, failed(as_of=NEXT_NIGHT))
    assert len(alert_sinks.posts) == 2

    report_failure(settings, failed(as_of=NEXT_NIGHT))  # it is back, and the incident is new to it
    assert len(alert_sinks.posts) == 3
    assert len(incidents(settings)) == 1


def test_values_of_personal_columns_never_leave(settings: Settings, alert_sinks: Any) -> None:
    personal = replace(PRICES, column="customer_id", examples=("17850", "13047"))
    report_failure(settings, failed(personal, PRICES))
    assert "17850" not in alert_sinks.posts[0]["text"]
    assert "536365" in alert_sinks.posts[0]["text"]
    stored = rows(settings, "select examples from ops.incidents order by column_name")
    assert stored == [([],), (["invoice 536365"],)]


def test_where_a_contract_cannot_be_read_the_alert_goes_out_without_examples(
    settings: Settings, alert_sinks: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "SOURCES", ("no_such_source",))
    report_failure(settings, failed())
    assert PRICES.rule in alert_sinks.posts[0]["text"]
    assert "536365" not in alert_sinks.posts[0]["text"]


def test_switched_off_an_incident_is_recorded_and_nothing_sent(
    warehouse: Settings, alert_sinks: Any
) -> None:
    report_failure(warehouse, failed())
    assert alert_sinks.mails == [] and alert_sinks.posts == []
    assert incidents(warehouse) == [(PRICES.rule, 1, NIGHT, False, False, False)]
    assert rows(warehouse, "select count(*) from ops.alert_messages") == [(0,)]


def test_two_processes_that_meet_the_same_failure_tell_of_it_once(
    settings: Settings, alert_sinks: Any
) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: report_failure(settings, failed()), range(8)))
    assert (len(alert_sinks.mails), len(alert_sinks.posts)) == (1, 1)
    assert incidents(settings) == [(PRICES.rule, 8, NIGHT, True, False, False)]


def test_a_run_of_which_airflow_tells_no_task_is_reported_as_a_whole(
    settings: Settings, alert_sinks: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(orchestration, "settings", lambda: settings)
    dag = DAG("nightly", schedule=None)

    orchestration.alert_failed_run({"dag": dag, "run_id": "a run", "reason": "timed_out"})
    orchestration.alert_succeeded_run({"dag": dag, "run_id": "a run", "reason": "success"})

    assert "nightly stopped at the DAG run: timed out" in subjects(alert_sinks)[0]
    assert "/dags/nightly/runs/a%20run" in alert_sinks.posts[0]["text"]
    assert "run-timed-out.md" in alert_sinks.posts[0]["text"]
    assert "recovered: nightly, the DAG run" in subjects(alert_sinks)[1]
