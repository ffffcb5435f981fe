"""Secrets are where they belong, and nowhere that a night, an alert or an error leaves."""

import json
import logging
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import psycopg2
import pytest
from psycopg2 import sql
from typer.testing import CliRunner

from nightshift.alerts.failure import Failure, of_error
from nightshift.alerts.run import report_failure
from nightshift.cli import app
from nightshift.io.warehouse import connect
from nightshift.services import airflow
from nightshift.services import run as services
from nightshift.services.run import plain_url
from nightshift.settings import PROJECT_ROOT, Settings

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

CANARY = "zq-canary-7"


def encoded(canary: str) -> list[bytes]:
    """How it may lie in a file or in a column of bytes."""
    return [canary.encode(), canary.encode().hex().encode(), canary.encode("utf-16-le")]


def in_files(root: Path, canary: str, allowed: set[Path]) -> list[str]:
    """Files below ``root`` that hold it."""
    found = []
    for file in root.rglob("*"):
        if file in allowed or not file.is_file():
            continue
        try:
            content = file.read_bytes()
        except FileNotFoundError:  # rotated away meanwhile
            continue
        found += [str(file)] * any(form in content for form in encoded(canary))
    return found


def in_database(url: str, canary: str) -> list[str]:
    """Tables that hold it, in any column."""
    found = []
    with closing(psycopg2.connect(url)) as connection, connection.cursor() as cursor:
        cursor.execute(
            "select n.nspname, c.relname from pg_class c join pg_namespace n on n.oid ="
            " c.relnamespace where c.relkind in ('r', 'm') and n.nspname !~ '^pg_'"
            " and n.nspname <> 'information_schema'"
        )
        for schema, table in cursor.fetchall():
            query = sql.SQL("select exists (select from {} as t where t::text like any(%s))")
            forms = [f"%{form.decode()}%" for form in encoded(canary)[:2]]
            cursor.execute(query.format(sql.Identifier(schema, table)), (forms,))
            if cursor.fetchone() == (True,):
                found.append(f"{url.rpartition('/')[2]}: {schema}.{table}")
    return found


def in_command_lines(canary: str) -> list[str]:
    """Processes that show it to every account of the machine."""
    return [
        " ".join(process.info["cmdline"])
        for process in psutil.process_iter(["cmdline"])
        if any(canary in word for word in process.info["cmdline"] or ())
    ]


def failed() -> Failure:
    return Failure(
        **vars(of_error(None)), dag_id="nightly", run_id="r", task_id="t", as_of=None, log_url=""
    )


@pytest.mark.parametrize(
    ("connection_id", "fields"),
    [
        # nobody listens; a space that was pasted with it; no port; a login that is refused
        ("slack_default", {"password": f"http://127.0.0.1:1/services/{CANARY}"}),
        ("slack_default", {"password": f"http://127.0.0.1:1/services/{CANARY} x"}),
        ("slack_default", {"password": f"https://hooks.slack.com:{CANARY}/services"}),
        ("smtp_default", {"password": CANARY}),
    ],
)
def test_an_alert_that_cannot_be_sent_tells_no_secret(
    warehouse: Settings,
    alert_sinks: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    connection_id: str,
    fields: dict[str, str],
) -> None:
    caplog.set_level(logging.INFO)
    broken = alert_sinks.connections()[connection_id] | fields
    if "extra" in broken:
        broken["extra"] = json.dumps(json.loads(broken["extra"]) | {"retry_limit": 0})
    monkeypatch.setenv(f"AIRFLOW_CONN_{connection_id.upper()}", json.dumps(broken))
    settings = warehouse.model_copy(
        update={"alert_email": "on-call@example.com", "alert_webhook": True}
    )

    report_failure(settings, failed())

    # Airflow sets up logging when it is first used
    told = caplog.text + "".join(capfd.readouterr())
    assert "the alert is not sent by" in told
    assert CANARY not in told
    assert in_database(settings.warehouse_url, CANARY) == []
    with connect(settings) as connection, connection.cursor() as cursor:
        cursor.execute("select count(last_error) from ops.alert_messages")
        assert cursor.fetchone() == (1,)


def test_a_session_of_nights_has_left_no_secret(
    airflow_stack: Settings, running_sinks: Any
) -> None:
    """After all other tests of the stack: nights, a bad day, trainings, alerts, a backfill."""
    settings = airflow_stack
    told = json.loads(settings.services_file.read_text())
    secrets = {
        name: value
        for name, value in told.items()
        if name.endswith(("_password", "_secret", "_secret_key", "_fernet_key"))
    }
    assert len(secrets) == 9, "a new secret: is it looked for?"
    for name, fields in running_sinks.connections().items():
        secrets[name] = fields["password"].rpartition("/")[2]
    url, username, password = services.airflow_login(settings)
    token = airflow.log_in(url, username, str(password)) or ""
    run = {"dag_run_id": "of-secrets", "logical_date": None, "conf": {"as_of": "2001-01-01"}}
    status, answer = airflow.request(url, "POST", "/api/v2/dags/nightly/dagRuns", run, token)
    assert status == 200, answer
    deadline = time.monotonic() + 300
    while airflow.request(url, "GET", "/api/v2/dags/nightly/dagRuns/of-secrets", None, token)[1][
        "state"
    ] not in ("failed", "success"):
        assert time.monotonic() < deadline
        time.sleep(0.5)

    allowed = {settings.services_file, settings.state_dir / "airflow" / "passwords.json"}
    databases = [
        plain_url(told[name]) for name in ("warehouse_url", "airflow_database_url", "mlflow_uri")
    ]
    roots = [settings.state_dir, settings.landing_folder, PROJECT_ROOT / "dags"]
    for name, secret in secrets.items():
        found = [place for root in roots for place in in_files(root, secret, allowed)]
        found += [place for url in databases for place in in_database(url, secret)]
        assert found + in_command_lines(secret) == [], name


def test_the_search_finds_what_is_planted(warehouse: Settings) -> None:
    log = warehouse.state_dir / "logs" / "task.log"
    log.parent.mkdir(parents=True)
    log.write_text(f"connecting with {CANARY}\n")
    assert in_files(warehouse.state_dir, CANARY, set()) == [str(log)]
    assert in_files(warehouse.state_dir, CANARY, {log}) == []
    assert in_database(warehouse.warehouse_url, CANARY) == []
    with connect(warehouse) as connection, connection.cursor() as cursor:
        cursor.execute(
            "insert into ops.runs (stage, as_of, status, result) values"
            " ('score', '2011-01-01', 'failed', jsonb_build_object('url', %s))", (CANARY,),
        )  # fmt: skip
        cursor.execute(
            "create table monitoring.pickled as select %s::bytea as b", (CANARY.encode(),)
        )
    (*found,) = in_database(warehouse.warehouse_url, CANARY)
    assert [place.rpartition(": ")[2] for place in sorted(found)] == [
        "monitoring.pickled", "ops.runs",
    ]  # fmt: skip
    with subprocess.Popen(
        [sys.executable, "-c", "input()", CANARY], stdin=subprocess.PIPE
    ) as shown:
        assert len(in_command_lines(CANARY)) == 1
        shown.communicate(b"\n")
    assert in_command_lines(CANARY) == []


WRONG = f"postgresql://nightshift_writer:{CANARY}@127.0.0.1"


@pytest.mark.parametrize(
    ("url", "words"),
    [
        (f"{WRONG}:1/warehouse", "Connection refused"),
        ("{server}", "password authentication failed"),
        # what libpq and urllib would take for the host, the port or an escape, and quote
        (f"postgresql://writer:a@{CANARY}@127.0.0.1:1/warehouse", "must be percent-encoded"),
        (f"postgresql://writer:a/{CANARY}@127.0.0.1:1/warehouse", "must be percent-encoded"),
        (f"postgresql://writer:a%{CANARY}@127.0.0.1:1/warehouse", "must be percent-encoded"),
        (f"postgresql://writer:%ca{CANARY}@127.0.0.1:1/warehouse", "must be percent-encoded"),
        (f"mysql://writer:a@{CANARY}@127.0.0.1/warehouse", "expected postgresql://"),
    ],
)
@pytest.mark.usefixtures("logging_as_before")
def test_no_refusal_of_a_connection_tells_the_password(
    warehouse: Settings, url: str, words: str
) -> None:
    server = warehouse.warehouse_url.rpartition("@")[2]
    url = url.replace("{server}", f"postgresql://nightshift_writer:{CANARY}@{server}")
    variables = {
        "NIGHTSHIFT_STATE_DIR": str(warehouse.state_dir),
        "NIGHTSHIFT_DATABASE_URL": url,
        "NIGHTSHIFT_READER_DATABASE_URL": url,
        "NIGHTSHIFT_MLFLOW_TRACKING_URI": url,
        "NIGHTSHIFT_AIRFLOW_URL": "http://127.0.0.1:1",
    }
    for command in (("ingest", "--as-of", "2011-06-12"), ("history", "churn"), ("doctor",)):
        done = CliRunner().invoke(app, command, env={"COLUMNS": "500"} | variables)
        assert done.exit_code == 1
        # of the doctor's table, lines are wrapped
        assert words in done.output or command == ("doctor",), done.output
        assert CANARY not in done.output + repr(done.exception)
        assert isinstance(done.exception, SystemExit)
