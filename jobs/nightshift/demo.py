"""The demo: data, services, a training and a night through Airflow, and what came out of them."""

import logging
import time
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from nightshift import cli, pipeline
from nightshift.contracts import SOURCES
from nightshift.errors import NightshiftError, SettingError
from nightshift.gates.run import gate_results
from nightshift.io import lake
from nightshift.io.landing import LATELY_DAYS, landed_lately, landing_zone
from nightshift.monitoring import run as monitoring
from nightshift.services import airflow
from nightshift.services import run as services
from nightshift.settings import Settings
from nightshift.spec import UseCase
from nightshift.use_cases import USE_CASES

log = logging.getLogger(__name__)

RUN_SECONDS = 1800
CARD_HOLDERS = 600
NIGHTS_OF_RULES = 30


def run_demo(settings: Settings, landing: Path | None, as_of: date | None) -> None:
    """Run the whole product once, and print the predictions, the gates and the URLs.

    Args:
        settings: of the project; a landing zone of the user's own gets a state of its own, so
            that two shops never share a warehouse.
        landing: the user's files; None generates the demo's.
        as_of: the night; None only for generated data.

    Raises:
        NightshiftError: when a step fails, with the log to read.
    """
    started = time.monotonic()
    settings, as_of = _choose(settings, landing, as_of)
    found = services.up(settings)
    client = _Airflow(settings)
    shown = [use_case for use_case in USE_CASES if _has_landed(settings, use_case, as_of)]
    if not shown:
        raise NightshiftError(
            f"no use case has landings in the {LATELY_DAYS} days before {as_of}",
            "choose an AS_OF that your landing zone has files before",
        )
    for use_case in shown:
        client.run(f"train__{use_case.name}", as_of)
    left_out = [use_case.name for use_case in USE_CASES if use_case not in shown]
    if left_out:
        log.info("%s: nothing of their sources has landed, so they are left out", left_out)
        pipeline.nightly(settings, shown, as_of)
    else:
        client.run("nightly", as_of)
    measured = {}
    for use_case in shown:
        if _is_mature(settings, use_case, as_of):
            log.info("later folders have landed: measuring what was published of %s", use_case.name)
            measured[use_case.name] = pipeline.evaluate(settings, use_case, as_of)
    for use_case in shown:
        cli.show_top(settings, use_case.name)
        cli.show_gates(gate_results(settings, use_case, as_of))
        if use_case.name in measured:
            cli.show_quality(measured[use_case.name])
            if use_case.rules:
                cli.show_rules(
                    use_case,
                    monitoring.rule_figures(settings, use_case, NIGHTS_OF_RULES),
                    monitoring.thresholds(settings, use_case, 1),
                )
    cli.show_services(found)
    cli.console.print(
        f"Done in {time.monotonic() - started:.0f} s. Open {client.url}/dags/nightly and log in as "
        f"{client.username} with {client.password}", soft_wrap=True, highlight=False,
    )  # fmt: skip
    queries = "\n".join(
        f"  select * from {each.table}_latest order by"
        f" {f'{each.key}, rank' if each.list_columns else f'{each.score_column} desc'};"
        for each in shown
    )
    cli.console.print(
        f"Read them:\n{queries}\nwith: psql '{settings.reader_url}'",
        soft_wrap=True, highlight=False,
    )  # fmt: skip
    if landing is not None:
        state = settings.state_dir
        cli.console.print(
            f"This landing zone has a state of its own. To go on with it:\n"
            f"  export NIGHTSHIFT_LANDING={landing} NIGHTSHIFT_STATE_DIR={state}\n"
            "  make status", soft_wrap=True, highlight=False,
        )  # fmt: skip


def _choose(settings: Settings, landing: Path | None, as_of: date | None) -> tuple[Settings, date]:
    if landing is None:
        from nightshift.demo_data.run import MARKER, demo_as_of, is_written, write_landing

        folder = settings.landing_folder
        has_landings = any((folder / source).is_dir() for source in SOURCES)
        is_own = has_landings and not (folder / MARKER).exists()
        if not is_own and not is_written(folder):
            write_landing(folder, card_holders=CARD_HOLDERS)
        return settings, as_of or demo_as_of(folder)
    if not landing.is_dir():
        raise NightshiftError(
            f"there is no folder {landing}", "name the folder that holds <source>/ds=YYYY-MM-DD/"
        )
    if as_of is None:
        raise NightshiftError(
            f"which night shall be run on {landing}?", "add AS_OF=YYYY-MM-DD (--as-of)"
        )
    zone = f"{landing.name}-{lake.digest(str(landing))[:8]}"
    return settings.model_copy(
        update={"landing": landing, "state_dir": settings.state_dir / "zones" / zone}
    ), as_of


def _has_landed(settings: Settings, use_case: UseCase, as_of: date) -> bool:
    """Whether each of its sources has landed lately; of files of one's own not all may."""
    zone = landing_zone(settings)
    return all(landed_lately(zone, source, as_of) for source in use_case.landings)


def _is_mature(settings: Settings, use_case: UseCase, as_of: date) -> bool:
    known_as_of = as_of + timedelta(days=use_case.label.maturity_days)
    last_day = (known_as_of - timedelta(days=1)).isoformat()
    zone = landing_zone(settings)
    return all(
        max((entry.name for entry in zone.entries(source)), default="") >= f"ds={last_day}"
        for source in use_case.landings
    )


class _Airflow:
    """Runs DAGs through the REST API, and shows how they come along."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.url, self.username, password = services.airflow_login(settings)
        if password is None:
            raise SettingError(
                f"no password for {self.username} at {self.url}", "set NIGHTSHIFT_AIRFLOW_PASSWORD"
            )
        self.password = password
        token = airflow.log_in(self.url, self.username, self.password)
        if token is None:
            raise NightshiftError(
                f"{self.url} refuses the login {self.username}",
                "set NIGHTSHIFT_AIRFLOW_USERNAME and NIGHTSHIFT_AIRFLOW_PASSWORD",
            )
        self.token = token

    def _call(
        self, method: str, path: str, body: dict[str, Any] | None = None
    ) -> tuple[int, dict[str, Any]]:
        return airflow.request(self.url, method, f"/api/v2{path}", body, self.token)

    def run(self, dag_id: str, as_of: date) -> None:
        """Run the DAG for ``as_of``, again if it has run for it before, and wait for its end."""
        self._wait_for_dag(dag_id)
        run_id = f"demo__{as_of.isoformat()}"
        midnight = datetime.combine(as_of, datetime.min.time(), ZoneInfo(self.settings.timezone))
        status, answer = self._call(
            "POST",
            f"/dags/{dag_id}/dagRuns",
            {"dag_run_id": run_id, "logical_date": midnight.isoformat()},
        )
        if status == 409:
            run_id = self._run_of(dag_id, midnight)
            status, answer = self._call(
                "POST",
                f"/dags/{dag_id}/dagRuns/{run_id}/clear",
                {"dry_run": False, "only_failed": False},
            )
        if status not in (200, 201):
            raise NightshiftError(f"Airflow refused to run {dag_id}: {answer}", f"see {self.url}")
        log.info("%s for %s: triggered", dag_id, as_of)
        self._follow(dag_id, run_id)

    def _run_of(self, dag_id: str, midnight: datetime) -> str:
        instant = midnight.astimezone(ZoneInfo("UTC")).strftime("%Y-%m-%dT%H:%M:%SZ")
        _, answer = self._call(
            "GET",
            f"/dags/{dag_id}/dagRuns?logical_date_gte={instant}&logical_date_lte={instant}",
        )
        return str(answer["dag_runs"][0]["dag_run_id"])

    def _wait_for_dag(self, dag_id: str) -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            status, _ = self._call("GET", f"/dags/{dag_id}")
            if status == 200:
                self._call("PATCH", f"/dags/{dag_id}", {"is_paused": False})
                return
            time.sleep(0.5)
        raise NightshiftError(
            f"Airflow does not show the DAG {dag_id} after two minutes",
            f"look for import errors at {self.url}/dags",
        )

    def _follow(self, dag_id: str, run_id: str) -> None:
        shown: dict[str, str] = {}
        deadline = time.monotonic() + RUN_SECONDS
        while time.monotonic() < deadline:
            _, answer = self._call("GET", f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances")
            for task in answer.get("task_instances", []):
                name, state = task["task_id"], task["state"] or ""
                if state in ("success", "failed") and shown.get(name) != state:
                    shown[name] = state
                    seconds = task.get("duration") or 0.0
                    log.info("%s.%s: %s in %.1f s", dag_id, name, state, seconds)
            _, run = self._call("GET", f"/dags/{dag_id}/dagRuns/{run_id}")
            if run.get("state") == "success":
                return
            if run.get("state") == "failed":
                failed = [name for name, state in shown.items() if state == "failed"]
                logs = self.settings.state_dir / "airflow" / "logs" / f"dag_id={dag_id}"
                raise NightshiftError(
                    f"{dag_id} failed at {', '.join(failed) or 'no task of its own'}",
                    f"read {self.url}/dags/{dag_id}/runs/{run_id}, or {logs}",
                )
            time.sleep(1.0)
        raise NightshiftError(f"{dag_id} has not ended after {RUN_SECONDS} s", f"see {self.url}")
