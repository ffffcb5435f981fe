"""Nights and trainings through a real Airflow: over REST, a scripted bad day, a person's answer."""

import json
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from small_models import TOLD_BY, register
from typer.testing import CliRunner

from nightshift import doctor
from nightshift.cli import app
from nightshift.io import model_store
from nightshift.use_cases import CHURN, USE_CASES

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

NIGHT = "2025-12-31"
KILLED = "2025-12-18"
ROLLED_BACK = "2025-12-29"
BAD_DAY, NIGHT_AFTER_BAD_DAY = "2026-01-08", "2026-01-09"
RUN_SECONDS = 600
RUN_THAT_WAITS = "/dags/nightly/dagRuns/waits"


def outcome(stack: Any) -> list[Any]:
    """What the night left: what readers see, its publications and every move of their pointers."""
    seen = "select md5(string_agg(c::text, ',' order by customer_id)), count(*) from"
    return [
        stack.query(f"{seen} predictions.churn c where as_of = %s", NIGHT),
        stack.query("select publication_id, rows from ops.publications where as_of = %s", NIGHT),
        stack.query("select count(*) from ops.pointer_moves where as_of = %s", NIGHT),
    ]


@pytest.fixture
def bad_cards(stack: Any) -> Iterator[None]:
    """A file of payments, which neither of two use cases reads, that is refused."""
    path = stack.settings.landing_folder / "card_transactions" / "ds=2025-12-30" / "broken.csv"
    path.write_text("transaction_id,amount\n1,2.5\n")
    yield
    path.unlink()


def test_a_use_case_or_source_that_fails_holds_none_of_the_others_and_clearing_changes_nothing(
    stack: Any, running_sinks: Any, bad_cards: None
) -> None:
    running_sinks.mails.clear()
    running_sinks.posts.clear()
    status, answer = stack.trigger("two", "nightly_of_two", logical_date=f"{NIGHT}T00:00:00Z")
    assert status == 200, answer

    assert stack.wait("two", "nightly_of_two") == "failed"

    failed = {
        "sources.card_transactions": "failed",
        "untrained.score": "failed",
        "untrained.challenge": "upstream_failed",
    }
    tasks = stack.tasks("two", "nightly_of_two")
    assert {name: state for name, state in tasks.items() if state != "success"} == failed
    assert stack.published()[NIGHT] > 100
    notes = stack.notes("two", "nightly_of_two")
    # whose predictions have changed, for DAGs that are scheduled by them
    assert events(stack, "nightly_of_two", "two", "predictions/") == {"predictions/churn": 1}
    rows = f"**{stack.published()[NIGHT]:,} rows**"
    assert rows in notes["churn.score"]
    assert notes["publish.publish_predictions"].startswith(f"churn: {rows} of version ")
    assert "no champion yet for untrained" in notes["untrained.score"]
    assert "**What to do:**" in notes["untrained.score"]
    assert "card_transactions/ds=2025-12-30/broken.csv" in (notes["sources.card_transactions"])
    assert "card_transactions is held" in notes["ingest.load_raw"]
    subjects = sorted(mail["Subject"] for mail in wait_for(running_sinks.mails, 2))
    assert [subject.split(":")[0].rsplit(" ", 1)[1] for subject in subjects] == [
        "sources.card_transactions", "untrained.score",
    ]  # fmt: skip

    before = outcome(stack)
    body = {
        "dry_run": False, "dag_run_id": "two", "task_ids": ["features.extract_events"],
        "include_downstream": True, "only_failed": False,
    }  # fmt: skip
    status, answer = stack.call("POST", "/dags/nightly_of_two/clearTaskInstances", body)
    assert status == 200, answer
    assert stack.wait("two", "nightly_of_two") == "failed"

    assert stack.tasks("two", "nightly_of_two") == tasks
    _, task = stack.call(
        "GET", "/dags/nightly_of_two/dagRuns/two/taskInstances/publish.publish_predictions"
    )
    assert task["try_number"] == 2
    assert outcome(stack) == before
    assert "there already" in stack.notes("two", "nightly_of_two")["publish.publish_predictions"]


def events(stack: Any, dag: str, run: str, of: str) -> dict[str, int]:
    """Asset → how often Airflow was told that a run has changed it, of those named ``of``…"""
    query = f"/assets/events?source_dag_id={dag}&source_run_id={run}"
    status, answer = stack.call("GET", query)
    assert status == 200, answer
    names = [each["name"] for each in answer["asset_events"] if each["name"].startswith(of)]
    return dict(Counter(names))


def wait_for(arrived: list[Any], number: int) -> list[Any]:
    deadline = time.monotonic() + RUN_SECONDS
    while len(arrived) < number and time.monotonic() < deadline:
        time.sleep(0.2)
    return arrived


def test_a_bad_day_stops_the_night_alerts_once_and_recovers(stack: Any, running_sinks: Any) -> None:
    running_sinks.mails.clear()
    running_sinks.posts.clear()
    before = stack.published()
    stays = f"stays at {max(before)}" if before else "stays empty"
    # by the param, as in the form, where the logical date is prefilled with now
    status, answer = stack.trigger("bad-day", conf={"as_of": NIGHT_AFTER_BAD_DAY})
    assert status == 200, answer

    assert stack.wait("bad-day") == "failed"

    assert stack.tasks("bad-day") == {
        "ingest.wait_for_landings": "success",
        "ingest.load_raw": "success",
        "quality.check_landed": "failed",
        "transform.build_marts": "upstream_failed",
        "transform.check_marts": "upstream_failed",
        "sources.card_transactions": "upstream_failed",
        "sources.chargebacks": "upstream_failed",
        "sources.order_lines": "upstream_failed",
        "features.extract_events": "upstream_failed",
        "features.compute_features": "upstream_failed",
        **{f"{each.name}.score": "upstream_failed" for each in USE_CASES},
        **{f"{each.name}.challenge": "upstream_failed" for each in USE_CASES},
        "publish.publish_predictions": "upstream_failed",
        "publish.prune_publications": "success",
        "publish.is_published": "upstream_failed",
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

    for path, right in stack.right_files.items():
        if BAD_DAY in path:
            (stack.settings.landing_folder / path).write_bytes(right)
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
    first_of, *others = sorted(use_case.name for use_case in USE_CASES)
    tables = ", ".join([f"predictions.{first_of}", *others])
    assert recovery["Subject"].endswith(f"; {tables} at {NIGHT_AFTER_BAD_DAY}")
    assert len(wait_for(running_sinks.posts, 2)) == 2


def test_a_task_that_is_killed_is_reported_by_its_run(stack: Any, running_sinks: Any) -> None:
    running_sinks.mails.clear()
    running_sinks.posts.clear()
    status, answer = stack.trigger("killed", conf={"as_of": KILLED})
    assert status == 200, answer
    path = "/dags/nightly/dagRuns/killed/taskInstances/ingest.load_raw"
    killed: set[int] = set()
    deadline = time.monotonic() + RUN_SECONDS
    while len(killed) < 3 and time.monotonic() < deadline:  # the retries as well
        _, task = stack.call("GET", path)
        if task["state"] == "running" and task["pid"] and task["pid"] not in killed:
            os.kill(task["pid"], signal.SIGKILL)
            killed.add(task["pid"])
        time.sleep(0.1)

    assert stack.wait("killed") == "failed"

    (mail,) = wait_for(running_sinks.mails, 1)
    assert "ingest.load_raw: ended without an error" in mail["Subject"]
    assert "the process was killed" in stack.notes("killed")["ingest.load_raw"]
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


PREPARATION = (
    "load_raw", "check_landed", "build_marts", "check_marts", "extract_events",
    "build_training_set",
)  # fmt: skip


def trigger_training(stack: Any, run_id: str) -> str:
    """Start a training with a search, of at least one trial; the run's path below /api/v2."""
    conf = {"as_of": NIGHT, "minutes": 0.01}
    body = {"dag_run_id": run_id, "logical_date": None, "conf": conf}
    status, answer = stack.call("POST", "/dags/train__asked/dagRuns", body)
    assert status == 200, answer
    return f"/dags/train__asked/dagRuns/{run_id}"


def state_of(stack: Any, run: str, task_id: str, *awaited: str) -> str:
    """The state of a task once it is one of those awaited, or has ended."""
    deadline = time.monotonic() + RUN_SECONDS
    while time.monotonic() < deadline:
        _, task = stack.call("GET", f"{run}/taskInstances/{task_id}")
        if task["state"] in (*awaited, "failed", "upstream_failed", "skipped"):
            break
        time.sleep(0.5)
    return str(task["state"])


def approve(stack: Any, run: str) -> None:
    """Answer *Promote*, again if asked again.

    Airflow resumes the task at once. While the process that asked still ends, its end is taken for
    that of the resumed one, which fails and is retried: the question comes a second time.
    """
    path = f"{run}/taskInstances/approve_promotion/-1/hitlDetails"
    for _ in range(3):
        status, answer = stack.call(
            "PATCH", path, {"chosen_options": ["Promote"], "params_input": {}}
        )
        assert status == 200, answer
        if state_of(stack, run, "approve_promotion", "success", "awaiting_input") == "success":
            return
    raise AssertionError("three answers, and none was taken")


def test_a_person_approves_a_model_and_the_gates_refuse_the_next(
    stack: Any, running_sinks: Any
) -> None:
    running_sinks.mails.clear()
    running_sinks.posts.clear()
    run = trigger_training(stack, "to-approve")
    # not before the task waits: an answer to a question that is still being asked is lost
    assert state_of(stack, run, "approve_promotion", "awaiting_input") == "awaiting_input"
    assert model_store.aliases(stack.settings, "asked") == {model_store.CHALLENGER: "1"}
    (question,) = wait_for(running_sinks.mails, 1)
    assert "shall version 1 score?" in question["Subject"]

    approve(stack, run)
    assert stack.wait("to-approve", "train__asked") == "success"

    moves = "select action, actor, person, from_version, to_version, reason from ops.promotions"
    moves += " where use_case = 'asked'"
    by_a_person = (
        "promotion", "approval", stack.settings.airflow_username, None, "1",
        "'Promote' in Airflow, run to-approve",
    )  # fmt: skip
    assert stack.query(moves) == [by_a_person]
    assert model_store.aliases(stack.settings, "asked") == {model_store.CHAMPION: "1"}
    params = model_store.client(stack.settings).get_run(
        model_store.registered(stack.settings, "asked")["1"].run_id
    ).data.params  # fmt: skip
    assert int(params["search/trials"]) >= 1, "the param minutes has reached the training"

    running_sinks.mails.clear()
    running_sinks.posts.clear()
    run = trigger_training(stack, "to-refuse")
    for task in PREPARATION:  # has run for this date; the same model follows, no better than itself
        status, answer = stack.call(
            "PATCH", f"{run}/taskInstances/{task}", {"new_state": "success"}
        )
        assert status == 200, answer
    assert stack.wait("to-refuse", "train__asked") == "failed"

    tasks = stack.tasks("to-refuse", "train__asked")
    assert (tasks["judge_gates"], tasks["refused_champion_kept"]) == ("success", "failed")
    assert (tasks["approve_promotion"], tasks["record_answer"]) == ("skipped", "skipped")
    assert stack.query(
        "select gate, passed from ops.gate_results where use_case = 'asked' and model_version = '2'"
        " order by gate_result_id"
    ) == [("at_least_auc", True), ("beats_champion_auc", False), ("loads_and_scores", True)]
    assert stack.query(moves) == [by_a_person]
    assert model_store.aliases(stack.settings, "asked") == {model_store.CHAMPION: "1"}
    (mail,) = wait_for(running_sinks.mails, 1)
    subject = f"train__asked {NIGHT} stopped at refused_champion_kept: beats_champion_auc"
    assert subject in mail["Subject"]
    assert "gate-failed.md" in mail.get_body(("html",)).get_content()
    _, log = stack.call("GET", f"{run}/taskInstances/refused_champion_kept/logs/1")
    assert "refused, champion kept: version 2 is refused" in str(log)
    assert "error_detail" not in str(log)  # where Airflow puts a stack trace
    assert len(wait_for(running_sinks.posts, 1)) == 1
    card = f"{stack.url}/model-cards/train__churn?as_of={NIGHT}"
    assert [stack.page(card, token)[0] for token in (stack.token, "")] == [404, 401]


@pytest.fixture
def night_that_waits(stack: Any) -> Iterator[None]:
    """A night of the day after tomorrow, which waits for what lands until then."""
    as_of = datetime.now(UTC).date() + timedelta(days=2)
    assert stack.trigger("waits", conf={"as_of": as_of.isoformat()})[0] == 200
    assert state_of(stack, RUN_THAT_WAITS, "ingest.wait_for_landings", "deferred") == "deferred"
    yield
    assert stack.call("GET", RUN_THAT_WAITS)[1]["state"] == "running"
    assert stack.call("PATCH", RUN_THAT_WAITS, {"state": "success"})[0] == 200


@pytest.mark.usefixtures("logging_as_before", "night_that_waits")
def test_the_night_after_a_rollback_is_scored_by_the_champion_before(
    stack: Any, running_sinks: Any, tmp_path: Path
) -> None:
    def nightshift(*arguments: str) -> str:
        variables = {
            "COLUMNS": "200",
            "NIGHTSHIFT_STATE_DIR": str(stack.settings.state_dir),
            "NIGHTSHIFT_LANDING": str(stack.settings.landing),
        }
        done = CliRunner().invoke(app, arguments, env=variables)
        assert done.exit_code == 0, done.output
        return " ".join(done.stdout.split())

    def champion() -> str:
        return model_store.aliases(stack.settings, "churn")[model_store.CHAMPION]

    def roll_back(run: str, **conf: str) -> str:
        conf |= {"use_cases": ["churn"], "reason": " complaints"}
        assert stack.trigger(run, "rollback", conf=conf)[0] == 200
        assert stack.wait(run, "rollback") == "success"
        (note,) = stack.notes(run, "rollback").values()
        return str(note)

    def score_again() -> str:
        body = {
            "dry_run": False, "dag_run_id": "rolled-back", "task_ids": ["churn.score"],
            "include_downstream": True, "only_failed": False,
        }  # fmt: skip
        status, answer = stack.call("POST", "/dags/nightly/clearTaskInstances", body)
        assert status == 200, answer
        return str(stack.wait("rolled-back"))

    seen = "select distinct model_version from predictions.churn where as_of = %s"
    before, version = champion(), stack.register(tmp_path)
    by_hand = ("--version", version, "--despite-gates", "--by", "Ann", "--reason", "campaign")
    nightshift("promote", "churn", *by_hand)
    assert champion() == version
    note = roll_back("of-the-model", what="model")
    assert note.startswith(f"churn: **version {before}** is champion again, and scores the next")
    assert champion() == before
    status, answer = stack.trigger("rolled-back", conf={"as_of": ROLLED_BACK})
    assert status == 200, answer
    assert stack.wait("rolled-back") == "success", stack.tasks("rolled-back")
    assert stack.query(seen, ROLLED_BACK) == [(before,)]

    # a model that warns of everybody: its audit holds churn, and none of the others
    running_sinks.mails.clear()
    told_by = TOLD_BY["churn"]
    wary = register(stack.settings, CHURN, tmp_path / "wary", told_by, "2025-12-01", above=5)
    nightshift("promote", "churn", "--version", wary, *by_hand[2:])
    assert score_again() == "failed"
    states = stack.tasks("rolled-back")
    assert {name for name, state in states.items() if state != "success"} == {
        "publish.publish_predictions", "publish.is_published",
    }  # fmt: skip
    note = stack.notes("rolled-back")["publish.publish_predictions"]
    assert "band_share_high" in note and "What to do" in note
    (mail,) = wait_for(running_sinks.mails, 1)
    assert f"nightly {ROLLED_BACK} stopped at publish.publish_predictions" in mail["Subject"]
    assert stack.query(seen, ROLLED_BACK) == [(before,)]

    nightshift("promote", "churn", *by_hand)
    assert score_again() == "success"
    assert stack.query(seen, ROLLED_BACK) == [(version,)]
    dates = {"from": ROLLED_BACK, "to": ROLLED_BACK}
    note = roll_back("of-predictions", what="predictions", **dates)
    assert note.startswith(f"churn: **1 date, {ROLLED_BACK},** as before")
    assert stack.query(seen, ROLLED_BACK) == [(before,)]
    for run in ("of-predictions", "of-the-model"):  # each once, however often
        body = {"dry_run": False, "dag_run_id": run, "only_failed": False}
        assert stack.call("POST", "/dags/rollback/clearTaskInstances", body)[0] == 200
        assert stack.wait(run, "rollback") == "success"
    assert (stack.query(seen, ROLLED_BACK), champion()) == ([(before,)], version)
    assert events(stack, "rollback", "of-predictions", "") == {"predictions/churn": 2}
    assert events(stack, "rollback", "of-the-model", "") == {}
    nightshift("promote", "churn", "--version", before, *by_hand[2:])
    assert champion() == before

    who = stack.settings.airflow_username
    shown = nightshift("history", "churn")
    for words in (f"{before} → {version}", f"{version} → {before}", "campaign", f"{who} (person)"):
        assert words in shown
    decisions = "select person, reason from ops.promotions where action = 'rollback'"
    assert stack.query(decisions) == [(who, "complaints (Airflow, run of-the-model)")]
    moves = "select person, reason from ops.pointer_moves where person is not null"
    assert stack.query(moves) == [(who, " complaints (Airflow, run of-predictions)")]


def test_a_rollback_that_says_too_little_is_refused(stack: Any) -> None:
    form = {"use_cases": ["churn"], "reason": "complaints"}
    for left_out in ({"reason": " "}, {"use_cases": []}, {"what": "everything"}):
        status, answer = stack.trigger("vague", "rollback", conf=form | left_out)
        assert status == 400, answer
        assert next(iter(left_out)) in str(answer)
    assert stack.trigger("undated", "rollback", conf=form)[0] == 200
    assert stack.wait("undated", "rollback") == "failed"
    (note,) = stack.notes("undated", "rollback").values()
    assert "give `from` and `to`" in note


def test_the_plan_of_a_backfill_is_the_note_of_its_task(stack: Any) -> None:
    conf = {"from": "2025-11-01", "to": "2025-11-03", "plan_only": True}
    status, answer = stack.trigger("plan", "backfill", conf=conf)
    assert status == 200, answer

    assert stack.wait("plan", "backfill") == "success"

    tasks = stack.tasks("plan", "backfill")
    assert tasks.pop("plan") == "success"
    assert set(tasks.values()) == {"skipped"}
    note = stack.notes("plan", "backfill")["plan"]
    assert note.startswith("**churn: 3 dates from 2025-11-01 to 2025-11-03, ")
    assert "- 3 dates are published for the first time" in note
    assert "left out" not in note

    conf = {"from": "2025-08-01", "to": "2025-08-03", "plan_only": True}  # no cards have landed yet
    assert stack.trigger("too-early", "backfill", conf=conf)[0] == 200
    assert stack.wait("too-early", "backfill") == "success"
    note = stack.notes("too-early", "backfill")["plan"]
    why = "nothing of card_transactions landed in the 30 days before 2025-08-01"
    assert f"- left out: fraud, for {why}" in note


def test_a_backfill_of_the_form_shows_its_dates(stack: Any) -> None:
    dates = ("2025-11-01", "2025-11-02")
    conf = {"from": dates[0], "to": dates[1], "use_cases": ["churn"]}
    status, answer = stack.trigger("dates", "backfill", conf=conf)
    assert status == 200, answer

    assert stack.wait("dates", "backfill") == "success", stack.tasks("dates", "backfill")

    assert set(stack.tasks("dates", "backfill").values()) == {"success"}
    published = stack.published()
    assert all(published[day] for day in dates)
    assert events(stack, "backfill", "dates", "") == {"predictions/churn": 1}


@pytest.mark.parametrize("value", ["2025-02-30", "31.12.2025", "tomorrow"])
def test_a_param_that_is_no_date_is_refused(stack: Any, value: str) -> None:
    status, answer = stack.trigger(f"no-date-{value}", conf={"as_of": value})
    assert status == 400
    assert f"Invalid input for param as_of: '{value}'" in answer["detail"]


def test_the_doctor_misses_a_connection_that_alerts_need(
    stack: Any, running_sinks: Any, monkeypatch: pytest.MonkeyPatch
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
