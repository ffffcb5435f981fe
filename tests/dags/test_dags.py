"""The DAG files as Airflow loads them, in one process without any service."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nightshift.settings import PROJECT_ROOT
from nightshift.sources import SOURCES
from nightshift.use_cases import USE_CASES

DAGS = PROJECT_ROOT / "dags"

# A fresh process, as in the dag-processor: what it imports, nothing else has imported before.
LOAD = """
import json, sys
from airflow.dag_processing.dagbag import DagBag

bag = DagBag(dag_folder=sys.argv[1], load_op_links=False)
dags = {
    dag.dag_id: {
        "schedule": getattr(dag.timetable, "expression", None),
        "timezone": str(getattr(dag.timetable, "timezone", None)),
        "start_date": dag.start_date and dag.start_date.isoformat(),
        "catchup": dag.catchup,
        "max_active_runs": dag.max_active_runs,
        "timeout_hours": dag.dagrun_timeout.total_seconds() / 3600,
        "tags": sorted(dag.tags),
        "doc": dag.doc_md,
        "on_failure": dag.on_failure_callback and dag.on_failure_callback.__name__,
        "on_success": dag.on_success_callback and dag.on_success_callback.__name__,
        "params": {
            name: {"value": param.value, "description": param.description, **param.schema}
            for name in dag.params
            for param in [dag.params.get_param(name)]
        },
        "tasks": {
            task.task_id: {
                "upstream": sorted(task.upstream_task_ids),
                "owner": task.owner,
                "retries": task.retries,
                "retry_policy": type(task.retry_policy).__name__,
                "timeout_hours": task.execution_timeout
                and task.execution_timeout.total_seconds() / 3600,
                "pool": task.pool,
                "on_failure": [call.__name__ for call in task.on_failure_callback],
                "on_retry": [call.__name__ for call in task.on_retry_callback],
                "on_success": [call.__name__ for call in task.on_success_callback],
                "inlets": [asset.name for asset in task.inlets],
                "outlets": [asset.name for asset in task.outlets],
                "links": {link.name: link.xcom_key for link in task.operator_extra_links},
                "trigger_rule": str(getattr(task.trigger_rule, "value", task.trigger_rule)),
            }
            for task in dag.tasks
        },
    }
    for dag in bag.dags.values()
}
print(json.dumps({
    "errors": bag.import_errors, "dags": dags, "modules": sorted(sys.modules)
}, default=lambda value: None), file=sys.__stdout__)
"""


def load_dags(folder: Path, home: Path, **more: str) -> dict[str, Any]:
    """Import errors, DAGs and imported modules of a fresh process that loads ``folder``."""
    environment = {
        **os.environ,
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home}/airflow.db",
        "PYTHONPATH": str(PROJECT_ROOT / "jobs"),
        "NIGHTSHIFT_TIMEZONE": "Europe/London",
        **more,
    }
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(folder)],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    loaded: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return loaded


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return load_dags(DAGS, tmp_path_factory.mktemp("airflow"))


def test_every_dag_file_loads(loaded: dict[str, Any]) -> None:
    assert loaded["errors"] == {}
    assert sorted(loaded["dags"]) == sorted(
        ["nightly", "backfill", "rollback", *(f"train__{u.name}" for u in USE_CASES)]
    )


def test_a_broken_dag_file_is_seen(tmp_path: Path) -> None:
    folder = tmp_path / "dags"
    folder.mkdir()
    (folder / "broken.py").write_text("from airflow.sdk import DAG, no_such_name\n")
    found = load_dags(folder, tmp_path)
    assert found["dags"] == {}
    assert "no_such_name" in next(iter(found["errors"].values()))


HEAVY = {
    "dbt", "duckdb", "great_expectations", "mlflow", "numpy", "pandas", "psycopg2", "pyarrow",
    "pyspark", "sklearn", "xgboost",
}  # fmt: skip
STAGES = {
    "alerts", "backfill", "features", "gates", "ingest", "monitoring", "publishing", "quality",
    "scoring", "training", "transform",
}  # fmt: skip


def imported_too_early(before: list[str], after: list[str]) -> set[str]:
    """Of the modules that loading the DAG files adds: stages, and what only stages need."""
    added = set(after) - set(before)
    return {name for name in added if name in HEAVY} | {
        name for name in added if name.startswith("nightshift.") and name.split(".")[1] in STAGES
    }


@pytest.fixture(scope="module")
def without_dags(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The same process on an empty folder: what Airflow imports for itself."""
    folder = tmp_path_factory.mktemp("empty")
    return load_dags(folder, folder)


def test_loading_imports_no_stage(loaded: dict[str, Any], without_dags: dict[str, Any]) -> None:
    assert imported_too_early(without_dags["modules"], loaded["modules"]) == set()


def test_an_import_at_parse_time_is_seen(tmp_path: Path, without_dags: dict[str, Any]) -> None:
    folder = tmp_path / "dags"
    folder.mkdir()
    (folder / "eager.py").write_text(
        "from airflow.sdk import DAG\nfrom nightshift.transform.run import build\nimport pyspark\n"
    )
    found = load_dags(folder, tmp_path)
    assert found["errors"] == {}
    early = imported_too_early(without_dags["modules"], found["modules"])
    assert {"pyspark", "nightshift.transform.run"} <= early


def test_the_night_goes_through_its_stages_in_order(loaded: dict[str, Any]) -> None:
    tasks = loaded["dags"]["nightly"]["tasks"]
    scores = [f"{use_case.name}.score" for use_case in USE_CASES]
    upstream = {name: task["upstream"] for name, task in tasks.items()}
    assert upstream == {
        "ingest.wait_for_landings": [],
        "ingest.load_raw": ["ingest.wait_for_landings"],
        "quality.check_landed": ["ingest.load_raw"],
        "transform.build_marts": ["quality.check_landed"],
        "transform.check_marts": ["transform.build_marts"],
        **{
            f"sources.{source}": ["transform.check_marts"]
            for source in SOURCES
            if any(source not in use_case.landings for use_case in USE_CASES)
        },
        "features.extract_events": ["transform.check_marts"],
        "features.compute_features": ["features.extract_events"],
        **{key: ["features.compute_features"] for key in scores},
        "publish.publish_predictions": sorted(scores),
        "publish.prune_publications": ["publish.publish_predictions"],
        "publish.is_published": ["publish.publish_predictions"],
        **{f"{u.name}.challenge": [f"{u.name}.score"] for u in USE_CASES},
    }


def test_a_use_case_that_fails_holds_none_of_the_others(loaded: dict[str, Any]) -> None:
    rules = {
        name: task["trigger_rule"]
        for dag in loaded["dags"].values()
        for name, task in dag["tasks"].items()
        if task["trigger_rule"] != "all_success"
    }
    assert rules == {
        "publish.publish_predictions": "all_done_min_one_success",
        "publish.prune_publications": "all_done",
    }
    # a run is what its last tasks are: those that always run must not turn a night green that has
    # not published
    tasks = loaded["dags"]["nightly"]["tasks"]
    last = set(tasks) - {name for task in tasks.values() for name in task["upstream"]}
    assert "publish.is_published" in last


def test_assets_lead_from_landing_to_predictions(loaded: dict[str, Any]) -> None:
    steps = [
        (set(task["inlets"]), set(task["outlets"]))
        for task in loaded["dags"]["nightly"]["tasks"].values()
        if task["outlets"]
    ]
    reached = {"landing/order_lines"}
    for _ in steps:
        for inlets, outlets in steps:
            reached |= outlets if inlets & reached else set()
    assert {f"predictions/{use_case.name}" for use_case in USE_CASES} <= reached


@pytest.mark.parametrize("use_case", USE_CASES, ids=lambda use_case: use_case.name)
def test_a_training_goes_through_its_stages_in_order(loaded: dict[str, Any], use_case: Any) -> None:
    tasks = loaded["dags"][f"train__{use_case.name}"]["tasks"]
    assert {name: task["upstream"] for name, task in tasks.items()} == {
        "load_raw": [],
        "check_landed": ["load_raw"],
        "build_marts": ["check_landed"],
        "check_marts": ["build_marts"],
        "extract_events": ["check_marts"],
        "build_training_set": ["extract_events"],
        "train_model": ["build_training_set"],
        "judge_gates": ["train_model"],
        "refused_champion_kept": ["judge_gates"],
    }


def test_a_backfill_goes_through_its_stages_in_order(loaded: dict[str, Any]) -> None:
    dag = loaded["dags"]["backfill"]
    assert {name: task["upstream"] for name, task in dag["tasks"].items()} == {
        "plan": [],
        "prepare.load_raw": ["plan"],
        "prepare.check_landed": ["prepare.load_raw"],
        "prepare.build_marts": ["prepare.check_landed"],
        "prepare.check_marts": ["prepare.build_marts"],
        "prepare.extract_events": ["prepare.check_marts"],
        "features": ["prepare.extract_events"],
        "score": ["features"],
        "publish": ["score"],
        "prune_publications": ["publish"],
    }
    assert dag["schedule"] is None  # by hand only
    assert (dag["catchup"], dag["start_date"]) == (False, None)
    assert (dag["max_active_runs"], dag["timeout_hours"]) == (1, 24)


def test_the_form_of_a_backfill_explains_itself(loaded: dict[str, Any]) -> None:
    params = loaded["dags"]["backfill"]["params"]
    assert {name: param["value"] for name, param in params.items()} == {
        "from": None,
        "to": None,
        "use_cases": [use_case.name for use_case in USE_CASES],
        "model": "as-now",
        "skip_without_champion": False,
        "plan_only": False,
    }
    assert all(param["description"] and param["title"] for param in params.values())
    for name in ("from", "to"):
        assert (params[name]["type"], params[name]["format"]) == ("string", "date"), name
    assert params["model"]["enum"] == ["as-now", "as-then"]


def test_a_rollback_is_one_task_whose_form_has_no_choice_made(loaded: dict[str, Any]) -> None:
    dag = loaded["dags"]["rollback"]
    (task,) = dag["tasks"].values()
    assert task["outlets"] == [f"predictions/{use_case.name}" for use_case in USE_CASES]
    assert {name: param["value"] for name, param in dag["params"].items()} == {
        "what": "predictions", "use_cases": None, "from": None, "to": None, "reason": None,
    }  # fmt: skip
    assert all(param["description"] and param["title"] for param in dag["params"].values())
    assert (dag["max_active_runs"], dag["timeout_hours"]) == (1, 4)


def test_manual_approval_waits_for_a_person_until_the_next_training(tmp_path: Path) -> None:
    folder = tmp_path / "dags"
    folder.mkdir()
    (folder / "manual.py").write_text(
        "import runpy  # airflow, dag\n"
        "from nightshift.use_cases.churn import CHURN\n"
        f"built = runpy.run_path({str(DAGS / 'train.py')!r})['build_dag']\n"
        "dag = built(CHURN.model_copy(update={'name': 'asked', 'approval': 'manual'}))\n"
    )
    found = load_dags(folder, tmp_path)
    assert found["errors"] == {}
    dag = found["dags"]["train__asked"]
    after_gates = {
        name: task["upstream"]
        for name, task in dag["tasks"].items()
        if {"judge_gates", "approve_promotion"} & set(task["upstream"])
    }
    assert after_gates == {
        "refused_champion_kept": ["judge_gates"],
        "approve_promotion": ["judge_gates"],
        "record_answer": ["approve_promotion"],
    }
    assert dag["timeout_hours"] == 6 * 24 + 8


BY_FORM = {"backfill", "rollback"}
"""Which a person triggers, with params of their own."""


def test_schedules(loaded: dict[str, Any]) -> None:
    assert loaded["dags"]["nightly"]["schedule"] == "0 0 * * *"
    for name, dag in loaded["dags"].items():
        if name in BY_FORM:
            continue
        if name.startswith("train__"):
            assert dag["schedule"] == "0 0 * * 0", name
        assert dag["timezone"] == "Europe/London", name
        assert dag["catchup"] is False, name
        assert dag["start_date"] is None, name
        assert dag["max_active_runs"] == (2 if name == "nightly" else 1), name
        assert dag["timeout_hours"] == 8, name


def test_every_dag_states_its_owner_tags_and_param(loaded: dict[str, Any]) -> None:
    for name, dag in loaded["dags"].items():
        assert "nightshift" in dag["tags"], name
        if name not in BY_FORM:
            as_of = dag["params"]["as_of"]
            assert (as_of["value"], as_of["type"], as_of["format"]) == (
                None, ["null", "string"], "date",
            ), name  # fmt: skip
            is_training = name.startswith("train__")
            assert set(dag["params"]) == (
                {"as_of", "minutes", "promote", "trials"} if is_training else {"as_of"}
            ), name
        for task_id, task in dag["tasks"].items():
            assert task["owner"] == "data-team", (name, task_id)
            # a refusal stays one: it is told at once
            assert task["retries"] == 2 * (task_id != "refused_champion_kept"), (name, task_id)
            assert task["retry_policy"] == "RetryWhatMayPass", (name, task_id)


def test_what_hangs_is_ended(loaded: dict[str, Any]) -> None:
    hours = {
        name: {task["timeout_hours"] for task in dag["tasks"].values()}
        for name, dag in loaded["dags"].items()
    }
    # the wait for landings has its own deadline, a training the timeout of its run
    assert hours == {
        "nightly": {None, 4},
        "backfill": {12},
        "rollback": {1},
        **{f"train__{use_case.name}": {None} for use_case in USE_CASES},
    }
    waits = loaded["dags"]["nightly"]["tasks"]["ingest.wait_for_landings"]
    assert waits["timeout_hours"] is None


def test_every_task_is_noted_and_every_failure_alerts(loaded: dict[str, Any]) -> None:
    for name, dag in loaded["dags"].items():
        assert dag["on_failure"] == "alert_failed_run", name
        assert dag["on_success"] == "alert_succeeded_run", name
        for task_id, task in dag["tasks"].items():
            assert task["on_failure"] == ["note_failure", "alert_failed_task"], (name, task_id)
            assert task["on_retry"] == ["note_retry"], (name, task_id)
            # which does nothing, and without a callback starts no process
            noted = [] if task_id == "publish.is_published" else ["note_success"]
            assert task["on_success"] == noted, (name, task_id)


def test_tasks_link_to_results_and_models(loaded: dict[str, Any]) -> None:
    links = {"Quality results": "_link_results", "Data Docs": "_link_data-docs"}
    card = {"Model card": "_link_model_card", "MLflow": "_link_mlflow"}
    of_model = {"train_model", "judge_gates", *(f"{use_case.name}.score" for use_case in USE_CASES)}
    for name, dag in loaded["dags"].items():
        for task_id, task in dag["tasks"].items():
            is_check = task_id.split(".")[-1] in ("check_landed", "check_marts")
            expected = card if task_id in of_model else {}
            assert task["links"] == (links if is_check else expected), (name, task_id)


def test_spark_jobs_share_the_one_slot_pool(loaded: dict[str, Any], tmp_path: Path) -> None:
    def in_pool(found: dict[str, Any]) -> set[str]:
        return {
            f"{name}/{task_id}"
            for name, dag in found["dags"].items()
            for task_id, task in dag["tasks"].items()
            if task["pool"] == "spark"
        }

    always = {
        "nightly/features.compute_features",
        "backfill/features",
        *(f"train__{use_case.name}/build_training_set" for use_case in USE_CASES),
    }
    assert in_pool(loaded) == always
    where_set = load_dags(
        DAGS, tmp_path, NIGHTSHIFT_SCORING="spark", NIGHTSHIFT_TRAINING_MEMORY="spark"
    )
    assert in_pool(where_set) == always | {
        "nightly/publish.publish_predictions",
        *(f"nightly/{u.name}.{task}" for u in USE_CASES for task in ("score", "challenge")),
        "backfill/score",
        "backfill/publish",
        *(f"train__{use_case.name}/train_model" for use_case in USE_CASES),
    }


@pytest.mark.parametrize("part", ["Purpose", "Inputs", "Outputs", "Rerun", "When it fails"])
def test_the_doc_of_every_dag_has_its_parts(loaded: dict[str, Any], part: str) -> None:
    for name, dag in loaded["dags"].items():
        assert f"**{part}.**" in dag["doc"], name


def test_dag_files_are_thin() -> None:
    for path in sorted(DAGS.glob("*.py")):
        source = path.read_text()
        assert "import pandas" not in source and "select " not in source.lower(), path.name
