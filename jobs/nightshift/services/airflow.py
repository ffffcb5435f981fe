"""Airflow's four processes: their environment, commands and health."""

import json
import os
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import quote

from nightshift.services.java import find_java
from nightshift.settings import PREFIX, PROJECT_ROOT, Settings

COMPONENTS = ("api-server", "scheduler", "dag-processor", "triggerer")
EXECUTABLE = Path(sys.executable).parent / "airflow"
SPARK_POOL = "spark"
REST_SECONDS = 20
TASKS_USER = "nightshift-tasks"
"""The login by which tasks write their notes: it may edit runs, and no setting of Airflow."""


def command(component: str) -> list[str]:
    """The command line of a component."""
    # logs are read from the shared folder: no log server, no port for it
    no_log_server = ["--skip-serve-logs"] if component in ("scheduler", "triggerer") else []
    return [str(EXECUTABLE), component, *no_log_server]


def environment(settings: Settings, services: dict[str, Any]) -> dict[str, str]:
    """The environment of every Airflow process: ours, with the settings and Airflow's own."""
    home = settings.state_dir / "airflow"
    port = services["airflow_port"]
    ours = {
        PREFIX + name.upper(): str(value)
        for name, value in settings.model_dump(mode="json").items()
        if value is not None
    }
    airflow = {
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
        "AIRFLOW__CORE__PARALLELISM": "8",
        "AIRFLOW__CORE__DAGS_FOLDER": str(PROJECT_ROOT / "dags"),
        "AIRFLOW__CORE__PLUGINS_FOLDER": str(PROJECT_ROOT / "plugins"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
        # a failed task's alert waits for a slow mail server: after this it is killed
        "AIRFLOW__CORE__TASK_SUCCESS_OVERTIME": "60",
        "AIRFLOW__CORE__DEFAULT_TIMEZONE": settings.timezone,
        "AIRFLOW__CORE__FERNET_KEY": services["airflow_fernet_key"],
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"http://127.0.0.1:{port}/execution/",
        "AIRFLOW__CORE__AUTH_MANAGER": (
            "airflow.api_fastapi.auth.managers.simple.simple_auth_manager.SimpleAuthManager"
        ),
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": (
            f"{services['airflow_username']}:admin,{TASKS_USER}:user"
        ),
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(home / "passwords.json"),
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": (
            settings.airflow_database_url or services["airflow_database_url"]
        ),
        "AIRFLOW__API__HOST": "127.0.0.1",
        "AIRFLOW__API__PORT": str(port),
        "AIRFLOW__API__BASE_URL": services["airflow_url"],
        "AIRFLOW__API__WORKERS": "1",
        "AIRFLOW__API__SECRET_KEY": services["airflow_secret_key"],
        "AIRFLOW__API_AUTH__JWT_SECRET": services["airflow_jwt_secret"],
        "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.2",
        "AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL": "1",
        "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "30",
        "PATH": f"{EXECUTABLE.parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "PYTHONPATH": str(PROJECT_ROOT / "jobs"),
        "PYTHONUNBUFFERED": "1",
    }
    java = find_java()
    if java is not None:
        airflow["JAVA_HOME"] = str(java[0].resolve().parents[1])
    return {**os.environ, **ours, **airflow}


def answers(url: str, seconds: float = 5) -> bool:
    """Whether a GET of ``url`` succeeds."""
    try:
        with urllib.request.urlopen(url, timeout=seconds):
            return True
    except OSError:
        return False


def health(url: str, seconds: float = 5) -> dict[str, str]:
    """Component → status (``healthy``, …); empty when the health endpoint does not answer."""
    try:
        with urllib.request.urlopen(f"{url}/api/v2/monitor/health", timeout=seconds) as response:
            report: dict[str, dict[str, str | None]] = json.load(response)
    except (OSError, ValueError):
        return {}
    return {name: str(part["status"]) for name, part in report.items()}


def request(
    url: str, method: str, path: str, body: dict[str, Any] | None = None, token: str = ""
) -> tuple[int, dict[str, Any]]:
    """One JSON call: (HTTP status, answer)."""
    call = urllib.request.Request(
        url + path,
        method=method,
        data=None if body is None else json.dumps(body).encode(),
        headers={"Content-Type": "application/json", "Authorization": f"Bearer {token}"},
    )
    try:
        with urllib.request.urlopen(call, timeout=REST_SECONDS) as response:
            return response.status, json.loads(response.read() or b"{}")
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read() or b"{}")


def log_in(url: str, username: str, password: str) -> str | None:
    """A bearer token for ``/api/v2``, or None when the login is refused."""
    status, answer = request(
        url, "POST", "/auth/token", {"username": username, "password": password}
    )
    return str(answer["access_token"]) if status in (200, 201) else None


def set_note(url: str, token: str, dag_id: str, run_id: str, task_id: str, note: str) -> int:
    """Replace the note of a task that is not mapped: the HTTP status."""
    path = f"/api/v2/dags/{dag_id}/dagRuns/{quote(run_id)}/taskInstances/{task_id}"
    status, _ = request(url, "PATCH", f"{path}?update_mask=note", {"note": note}, token)
    return status


def ensure_spark_pool(url: str, token: str) -> bool:
    """Make the one-slot pool: two Spark jobs at a time would not fit in one machine's memory."""
    body = {"name": SPARK_POOL, "slots": 1, "description": "one Spark job at a time"}
    status, _ = request(url, "POST", "/api/v2/pools", body, token)
    return status in (201, 409)
