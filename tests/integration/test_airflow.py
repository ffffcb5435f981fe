"""Nights through a real Airflow: triggered and backfilled over REST, and a scripted bad day."""

import csv
import gzip
import io
import json
import os
import signal
import time
import urllib.error
import urllib.request
from contextlib import closing
from dataclasses import dataclass
from datetime import date
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

import numpy as np
import psycopg2
import pytest
import xgboost as xgb

from nightshift import doctor
from nightshift.demo_data.run import write_landing
from nightshift.io import model_store
from nightshift.services import airflow
from nightshift.services import run as services
from nightshift.settings import Settings
from nightshift.use_cases.churn import CHURN

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

NIGHT = "2025-12-31"
BACKFILLED = ["2025-12-18", "2025-12-19", "2025-12-20"]
BAD_DAY, NIGHT_AFTER_BAD_DAY = "2026-01-08", "2026-01-09"
RUN_SECONDS = 600


@dataclass(frozen=True)
class Stack:
    """A running stack with a landing zone and a champion; ``call`` is one REST call.

    ``right_file`` is what should have landed on the bad day.
    """

    settings: Settings
    url: str
    token: str
    right_file: bytes

    def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        status, answer = airflow.request(self.url, method, f"/api/v2{path}", body, self.token)
        return status, answer

    def page(self, url: str, token: str) -> tuple[int, str]:
        """A page of a plugin."""
        request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, ""

    def published(self) -> dict[str, int]:
        """Rows a date, as the reader's role sees them; {} before the first publication."""
        with (
            closing(psycopg2.connect(self.settings.reader_url)) as connection,
            connection.cursor() as cursor,
        ):
            cursor.execute("select to_regclass('predictions.churn')")
            if cursor.fetchone() == (None,):
                return {}
            cursor.execute("select as_of::text, count(*) from predictions.churn group by 1")
            return dict(cursor.fetchall())

    def tasks(self, run_id: str) -> dict[str, str]:
        _, answer = self.call("GET", f"/dags/nightly/dagRuns/{run_id}/taskInstances")
        return {task["task_id"]: task["state"] for task in answer["task_instances"]}

    def wait(self, run_id: str) -> str:
        """The state in which the run ended."""
        deadline = time.monotonic() + RUN_SECONDS
        while time.monotonic() < deadline:
            _, answer = self.call("GET", f"/dags/nightly/dagRuns/{run_id}")
            if answer["state"] in ("success", "failed"):
                return str(answer["state"])
            time.sleep(0.5)
        raise AssertionError(f"{run_id} has not ended: {self.tasks(run_id)}")


def register_champion(settings: Settings, root: Path) -> None:
    """Register and promote a small model: the longer ago the last purchase, the likelier churn."""
    names = list(CHURN.feature_names)
    generator = np.random.default_rng(1)
    matrix = generator.uniform(0, 200, (500, len(names))).astype(np.float32)
    labels = (matrix[:, names.index("customer_purchase_days_since_last_all")] > 90).astype(int)
    booster = xgb.train(
        {"objective": "binary:logistic", "max_depth": 2, "nthread": 1, "seed": 1},
        xgb.DMatrix(matrix, labels, feature_names=names),
        num_boost_round=20,
    )
    model_store.write_model(root, bytes(booster.save_raw("ubj")), {"features": names})
    mlflow = model_store.client(settings)
    run = mlflow.create_run(model_store.experiment_id(settings, "churn"))
    mlflow.log_artifacts(run.info.run_id, str(root), model_store.MODEL)
    version = model_store.register(settings, "churn", run.info.run_id, NIGHT)
    model_store.set_alias(settings, "churn", model_store.CHAMPION, version.version)


def spoil(folder: Path) -> bytes:
    """Land prices 100 times too high; the answer is the file as it should have been."""
    path = folder / "order_lines.csv.gz"
    right = path.read_bytes()
    rows = list(csv.DictReader(io.StringIO(gzip.decompress(right).decode())))
    assert len(rows) >= 50  # fewer, and chance alone moves the median
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({**row, "Price": times_100(row["Price"])} for row in rows)
    path.write_bytes(gzip.compress(out.getvalue().encode()))
    return right


def times_100(price: str) -> str:
    try:
        return str(Decimal(price) * 100)
    except InvalidOperation:
        return price  # one of the lines that are broken on purpose


@pytest.fixture(scope="module")
def stack(airflow_stack: Settings, tmp_path_factory: pytest.TempPathFactory) -> Stack:
    write_landing(
        airflow_stack.landing,
        customers=400,
        start=date(2025, 6, 1),
        end=date(2026, 3, 31),
        lines=18_000,
    )
    right = spoil(airflow_stack.landing_folder / "order_lines" / f"ds={BAD_DAY}")
    register_champion(airflow_stack, tmp_path_factory.mktemp("model"))
    url, username, password = services.airflow_login(airflow_stack)
    assert password is not None
    token = airflow.log_in(url, username, password)
    assert token is not None
    found = Stack(airflow_stack, url, token, right)
    deadline = time.monotonic() + 120
    while found.call("GET", "/dags/nightly")[0] != 200:
        assert time.monotonic() < deadline, "the DAG processor has not loaded nightly"
        time.sleep(0.5)
    return found


def trigger(stack: Stack, run_id: str, **body: Any) -> tuple[int, Any]:
    status, answer = stack.call(
        "POST", "/dags/nightly/dagRuns", {"dag_run_id": run_id, "logical_date": None, **body}
    )
    return status, answer


def test_a_night_by_rest_ends_in_rows_that_the_reader_sees(stack: Stack) -> None:
    status, answer = trigger(stack, "by-rest", logical_date=f"{NIGHT}T00:00:00Z")
    assert status == 200, answer

    assert stack.wait("by-rest") == "success", stack.tasks("by-rest")

    assert set(stack.tasks("by-rest").values()) == {"success"}
    assert stack.published()[NIGHT] > 100
    with (
        closing(psycopg2.connect(stack.settings.reader_url)) as connection,
        connection.cursor() as cursor,
    ):
        cursor.execute(
            "select count(distinct customer_id) = count(*),"
            " bool_and(churn_probability between 0 and 1), count(distinct model_version)"
            " from predictions.churn where as_of = %s",
            (NIGHT,),
        )
        assert cursor.fetchone() == (True, True, 1)


def wait_for(arrived: list[Any], number: int) -> list[Any]:
    deadline = time.monotonic() + RUN_SECONDS
    while len(arrived) < number and time.monotonic() < deadline:
        time.sleep(0.2)
    return arrived


def test_a_bad_day_stops_the_night_alerts_once_and_recovers(
    stack: Stack, running_sinks: Any
) -> None:
    running_sinks.mails.clear()
    running_sinks.posts.clear()
    before = stack.published()
    stays = f"stays at {max(before)}" if before else "stays empty"
    # by the param, as in the form, where the logical date is prefilled with now
    status, answer = trigger(stack, "bad-day", conf={"as_of": NIGHT_AFTER_BAD_DAY})
    assert status == 200, answer

    assert stack.wait("bad-day") == "failed"

    assert stack.tasks("bad-day") == {
        "ingest.wait_for_landings": "success",
        "ingest.load_raw": "success",
        "quality.check_landed": "failed",
        "transform.build_marts": "upstream_failed",
        "transform.check_marts": "upstream_failed",
        "features.extract_events": "upstream_failed",
        "features.compute_features": "upstream_failed",
        "score.score_churn": "upstream_failed",
        "publish.publish_predictions": "upstream_failed",
    }
    assert stack.published() == before
    _, log = stack.call(
        "GET", "/dags/nightly/dagRuns/bad-day/taskInstances/quality.check_landed/logs/1"
    )
    assert "expect_column_median_to_be_between" in str(log)
    assert BAD_DAY in str(log)
    _, answer = stack.call(
        "GET", "/dags/nightly/dagRuns/bad-day/taskInstances/quality.check_landed/links"
    )
    for name, shown in (("Quality results", "price_is_usual"), ("Data Docs", BAD_DAY)):
        status, page = stack.page(answer["extra_links"][name], stack.token)
        assert (status, shown in page) == (200, True), name
        assert stack.page(answer["extra_links"][name], "")[0] == 401, name
    (mail,) = running_sinks.mails
    (post,) = running_sinks.posts
    for text in (mail.get_body(("html",)).get_content(), post["text"]):
        assert f"order_lines landed {BAD_DAY}, column price" in text
        assert f"predictions.churn {stays}" in text
        assert f"{stack.url}/dags/nightly/runs/bad-day/tasks/quality.check_landed" in text
        assert "quality-failed.md" in text
    assert f"nightly {NIGHT_AFTER_BAD_DAY} stopped at quality.check_landed" in mail["Subject"]

    folder = stack.settings.landing_folder / "order_lines" / f"ds={BAD_DAY}"
    (folder / "order_lines.csv.gz").write_bytes(stack.right_file)
    status, answer = stack.call(
        "POST", "/dags/nightly/dagRuns/bad-day/clear", {"dry_run": False, "only_failed": False}
    )
    assert status == 200, answer

    assert stack.wait("bad-day") == "success", stack.tasks("bad-day")

    assert stack.published()[NIGHT_AFTER_BAD_DAY] > 100
    # the run's own failure and the tasks downstream have had their time: they sent nothing
    first, recovery = wait_for(running_sinks.mails, 2)
    assert first is mail
    assert recovery["Subject"].startswith("[nightshift] recovered: nightly, quality.check_landed")
    assert recovery["Subject"].endswith(f"predictions.churn at {NIGHT_AFTER_BAD_DAY}")
    assert len(wait_for(running_sinks.posts, 2)) == 2


def test_a_task_that_is_killed_is_reported_by_its_run(stack: Stack, running_sinks: Any) -> None:
    running_sinks.mails.clear()
    running_sinks.posts.clear()
    status, answer = trigger(stack, "killed", conf={"as_of": BACKFILLED[0]})
    assert status == 200, answer
    path = "/dags/nightly/dagRuns/killed/taskInstances/ingest.load_raw"
    killed: set[int] = set()
    deadline = time.monotonic() + RUN_SECONDS
    while len(killed) < 2 and time.monotonic() < deadline:  # the retry as well
        _, task = stack.call("GET", path)
        if task["state"] == "running" and task["pid"] and task["pid"] not in killed:
            os.kill(task["pid"], signal.SIGKILL)
            killed.add(task["pid"])
        time.sleep(0.1)

    assert stack.wait("killed") == "failed"

    (mail,) = wait_for(running_sinks.mails, 1)
    assert "ingest.load_raw: ended without an error" in mail["Subject"]
    assert "task-failed.md" in mail.get_body(("html",)).get_content()
    assert len(wait_for(running_sinks.posts, 1)) == 1
    with (
        closing(psycopg2.connect(stack.settings.warehouse_url)) as connection,
        connection,
        connection.cursor() as cursor,
    ):
        # by hand, as the runbook says, so that no other test's night sends the recovery
        cursor.execute("update ops.incidents set closed_at = now() where last_run_id = 'killed'")
        assert cursor.rowcount == 1


def test_a_refused_model_is_told_in_plain_words(stack: Stack, running_sinks: Any) -> None:
    running_sinks.mails.clear()
    running_sinks.posts.clear()
    gates = "insert into ops.gate_results (mlflow_run_id, model_version, use_case, as_of, gate,"
    gates += " passed, detail) values ('r', '7', 'churn', %s, 'at_least_auc', false, 'auc 0.5')"
    with (
        closing(psycopg2.connect(stack.settings.warehouse_url)) as connection,
        connection,
        connection.cursor() as cursor,
    ):
        cursor.execute(gates, (NIGHT,))
    body = {"dag_run_id": "refused", "logical_date": None, "conf": {"as_of": NIGHT}}
    status, answer = stack.call("POST", "/dags/train__churn/dagRuns", body)
    assert status == 200, answer
    run = "/dags/train__churn/dagRuns/refused"
    for task in (
        "load_raw", "check_landed", "build_marts", "check_marts", "extract_events",
        "build_training_set", "train_model", "judge_gates",
    ):  # fmt: skip
        status, answer = stack.call(
            "PATCH", f"{run}/taskInstances/{task}", {"new_state": "success"}
        )
        assert status == 200, answer

    (mail,) = wait_for(running_sinks.mails, 1)

    subject = f"train__churn {NIGHT} stopped at refused_champion_kept: at_least_auc"
    assert subject in mail["Subject"]
    assert "gate-failed.md" in mail.get_body(("html",)).get_content()
    _, log = stack.call("GET", f"{run}/taskInstances/refused_champion_kept/logs/1")
    assert "refused, champion kept: version 7 is refused" in str(log)
    assert "error_detail" not in str(log)  # where Airflow puts a stack trace
    assert len(wait_for(running_sinks.posts, 1)) == 1
    card = f"{stack.url}/model-cards/train__churn?as_of={NIGHT}"
    assert [stack.page(card, token)[0] for token in (stack.token, "")] == [404, 401]


def test_a_backfill_publishes_each_of_its_dates(stack: Stack) -> None:
    status, answer = stack.call(
        "POST",
        "/backfills",
        {
            "dag_id": "nightly",
            "from_date": f"{BACKFILLED[0]}T00:00:00Z",
            "to_date": f"{BACKFILLED[-1]}T00:00:00Z",
            "max_active_runs": 1,
        },
    )
    assert status == 200, answer

    for as_of in BACKFILLED:
        run_id = f"backfill__{as_of}T00:00:00+00:00"
        assert stack.wait(run_id) == "success", stack.tasks(run_id)

    published = stack.published()
    assert all(published[as_of] > 100 for as_of in BACKFILLED)
    neighbours = {"2025-12-17", "2025-12-21"}
    assert not neighbours & published.keys()


@pytest.mark.parametrize("value", ["2025-02-30", "31.12.2025", "tomorrow"])
def test_a_param_that_is_no_date_is_refused(stack: Stack, value: str) -> None:
    status, answer = trigger(stack, f"no-date-{value}", conf={"as_of": value})
    assert status == 400
    assert f"Invalid input for param as_of: '{value}'" in answer["detail"]


def test_the_doctor_misses_a_connection_that_alerts_need(
    stack: Stack, running_sinks: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def alerts() -> doctor.Check:
        return next(c for c in doctor.check(stack.settings) if c.name == "alerts")

    assert alerts() == doctor.Check("alerts", True, "by smtp_default, slack_default")

    fields = running_sinks.connections()["slack_default"]
    assert stack.call("DELETE", "/connections/slack_default")[0] == 204
    try:
        assert alerts().detail == "no connection slack_default"
        assert "alerts-not-arriving.md" in alerts().remedy
        monkeypatch.setenv("AIRFLOW_CONN_SLACK_DEFAULT", json.dumps(fields))
        assert alerts().is_ok
    finally:
        stack.call("POST", "/connections", {"connection_id": "slack_default", **fields})
