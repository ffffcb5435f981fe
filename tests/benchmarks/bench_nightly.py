"""``make bench-nightly``: one whole night through Airflow, on 10 million order lines of history.

A real stack (Postgres, MLflow's store, Airflow) on a demo shop: each use case as it is declared,
scored by a model of 200 shallow trees. The first night loads and computes all of history, and is
not timed. The nights after it, a day's lines each, are taken in turn by Airflow, triggered over
REST and timed from the trigger until the run has ended, and by ``nightshift nightly``, the same
stages in one process and timed from its start: ``over_cli`` is what Airflow costs. ``--use-cases``
names some of the use cases; without it the night is of all.

``of_90_seconds`` is the median of Airflow's nights over the aim. ``tasks`` are the seconds of each
task, ``between`` those of a night in which no task ran: scheduling, and the start of its processes.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import date, datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import small_models

from nightshift import pipeline
from nightshift.demo_data.run import write_landing
from nightshift.services import airflow, postgres
from nightshift.services import run as services
from nightshift.settings import PROJECT_ROOT, Settings, load_settings
from nightshift.use_cases import USE_CASES, find_use_case

AIM_SECONDS = 90
MOST_SECONDS = 1_800
TREES = 200
BY = ("airflow", "cli")
CARD_HOLDERS = 200
MODEL_ROWS = 20_000


def only(root: Path, names: Sequence[str]) -> None:
    """Let Airflow load no DAG but a nightly of these use cases."""
    root.mkdir()
    (root / "nightly.py").write_text(
        f'''"""The DAG nightly of Airflow, of some use cases."""
from nightshift import use_cases
from nightshift.settings import PROJECT_ROOT

use_cases.USE_CASES = tuple(use_cases.find_use_case(name) for name in {list(names)!r})
exec((PROJECT_ROOT / "dags" / "nightly.py").read_text())
'''
    )
    bundle = {
        "name": "dags-folder",
        "classpath": "airflow.dag_processing.bundles.local.LocalDagBundle",
        "kwargs": {"path": str(root)},
    }
    os.environ["AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST"] = json.dumps([bundle])


def by_airflow(settings: Settings, as_of: date) -> dict[str, Any]:
    """Seconds of a night's run in all (``night``), of its ``tasks``, and ``between`` them."""
    url, username, password = services.airflow_login(settings)
    token = airflow.log_in(url, username, str(password))
    assert token is not None
    runs = "/api/v2/dags/nightly/dagRuns"
    asked = {"dag_run_id": f"bench-{as_of}", "logical_date": f"{as_of}T00:00:00Z"}
    began = time.perf_counter()
    status, answer = airflow.request(url, "POST", runs, asked, token)
    if status != 200:
        raise SystemExit(f"Airflow refuses the night of {as_of}: {answer}")
    state = "queued"
    while state not in ("success", "failed"):
        if time.perf_counter() - began > MOST_SECONDS:
            raise SystemExit(f"the night of {as_of} has not ended in {MOST_SECONDS} s")
        time.sleep(0.2)
        state = airflow.request(url, "GET", f"{runs}/bench-{as_of}", token=token)[1]["state"]
    night = time.perf_counter() - began
    path = f"{runs}/bench-{as_of}/taskInstances"
    found = airflow.request(url, "GET", path, token=token)[1]["task_instances"]
    if state == "failed":
        broken = [each["task_id"] for each in found if each["state"] == "failed"]
        raise SystemExit(f"the night of {as_of} failed in {', '.join(broken)}")
    spans = sorted(
        (
            datetime.fromisoformat(each["start_date"]),
            datetime.fromisoformat(each["end_date"]),
            each["task_id"],
        )
        for each in found
        if each["start_date"]
    )
    busy, until = timedelta(), spans[0][0]
    for start, end, _ in spans:
        busy += max(end - max(start, until), timedelta())
        until = max(until, end)
    return {
        "night": night,
        "between": night - busy.total_seconds(),
        "tasks": {name: (end - start).total_seconds() for start, end, name in spans},
    }


def by_cli(settings: Settings, as_of: date, names: Sequence[str]) -> dict[str, Any]:
    began = time.perf_counter()
    told = {
        f"NIGHTSHIFT_{name.upper()}": str(value)
        for name, value in settings.model_dump(mode="json").items()
        if value is not None
    }
    done = subprocess.run(
        [
            Path(sys.executable).with_name("nightshift"), "nightly", "--as-of", str(as_of),
            *(part for name in names for part in ("--use-case", name)),
        ],
        env=os.environ | told, cwd=PROJECT_ROOT, capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"the night of {as_of} failed: {done.stderr[-2000:]}")
    return {"night": time.perf_counter() - began}


def wait_for_the_dag(settings: Settings) -> None:
    url, username, password = services.airflow_login(settings)
    token = airflow.log_in(url, username, str(password)) or ""
    deadline = time.monotonic() + 120
    while airflow.request(url, "GET", "/api/v2/dags/nightly", token=token)[0] != 200:
        if time.monotonic() > deadline:
            raise SystemExit("Airflow has not loaded the DAG nightly in two minutes")
        time.sleep(0.5)


def main(customers: int, lines: int, runs: int, names: Sequence[str]) -> None:
    # not in a folder that only its owner may enter: Postgres runs as an account of its own
    root = Path(tempfile.mkdtemp(prefix="nightshift-bench-"))
    root.chmod(0o755)
    settings = load_settings(
        _env_file=None, state_dir=root / "state", landing=root / "landing",
        postgres_port=postgres.free_port(15720), airflow_port=postgres.free_port(18280),
    )  # fmt: skip
    try:
        shop = write_landing(
            settings.landing_folder, customers=customers, lines=lines, card_holders=CARD_HOLDERS
        )
        only(root / "dags", names)
        services.up(settings)
        wait_for_the_dag(settings)
        days = sorted(
            date.fromisoformat(folder.name.removeprefix("ds="))
            for folder in settings.landing_folder.glob("order_lines/ds=*")
        )
        nights = [day + timedelta(days=1) for day in days[-len(BY) * runs - 1 :]]
        use_cases = [find_use_case(name) for name in names]
        for use_case in use_cases:
            small_models.promote(settings, use_case, root / use_case.name, MODEL_ROWS, TREES)
        began = time.perf_counter()
        pipeline.nightly(settings, use_cases, nights[0])
        print(f"set-up: {time.perf_counter() - began:.1f} s", file=sys.stderr)
        taken: dict[str, list[dict[str, Any]]] = {name: [] for name in BY}
        for number, as_of in enumerate(nights[1:]):
            name = BY[number % len(BY)]
            taken[name].append(
                by_airflow(settings, as_of) if name == "airflow" else by_cli(settings, as_of, names)
            )
            print(f"{as_of} by {name}: {json.dumps(taken[name][-1])}", file=sys.stderr)
        print(json.dumps(summary(shop.rows, runs, taken, names)))
    finally:
        services.down(settings)
        shutil.rmtree(root)


def summary(
    rows: int, runs: int, taken: dict[str, list[dict[str, Any]]], names: Sequence[str]
) -> dict[str, object]:
    def middle(values: list[float]) -> float:
        return round(statistics.median(values), 2)

    by = {name: middle([night["night"] for night in nights]) for name, nights in taken.items()}
    nights = taken["airflow"]
    return {
        "name": "nightly",
        "rows": rows,
        "runs": runs,
        "use_cases": names,
        "ratios": {
            "of_90_seconds": round(by["airflow"] / AIM_SECONDS, 3),
            "over_cli": round(by["airflow"] / by["cli"], 2),
        },
        "aims": {"of_90_seconds": 1.0},
        "seconds": {
            **by,
            "between": middle([night["between"] for night in nights]),
            "tasks": {
                name: middle([night["tasks"][name] for night in nights])
                for name in nights[0]["tasks"]
            },
        },
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("apache-airflow", "dbt-core", "pyspark")},
        },
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--customers", type=int, default=200_000)
    parser.add_argument("--lines", type=int, default=10_000_000)
    parser.add_argument("--runs", type=int, default=3, help="nights of each kind")
    parser.add_argument("--use-cases", nargs="+", default=[each.name for each in USE_CASES])
    given = parser.parse_args()
    main(given.customers, given.lines, given.runs, given.use_cases)
