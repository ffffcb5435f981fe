"""
# train

**Purpose.** Train a use case on every snapshot whose label is known at `as_of`, judge the model by
the gates of its spec, and make it champion if all of them pass.

**Inputs.** The landing zone's folders dated before `as_of`.

**Outputs.** An MLflow run and a registered version; `ops.gate_results`; on success the alias
`champion` and a row in `ops.promotions`.

**Rerun.** Safe: the same data gives the same model bytes under a new version.

**When it fails.** The champion stays as it was. A failed `judge_gates` is an answer, not a fault:
its log names each gate that failed, with the figure and the threshold.
"""

from datetime import timedelta

from airflow.sdk import DAG, CronTriggerTimetable, task

from nightshift.orchestration import AS_OF_PARAM, RUN_ALERTS, TASK_ALERTS, linked, run_stage
from nightshift.settings import settings
from nightshift.spec import UseCase
from nightshift.use_cases import USE_CASES, find_use_case


def build_dag(use_case: UseCase) -> DAG:
    """The weekly training of one use case."""
    name = use_case.name
    with DAG(
        dag_id=f"train__{name}",
        doc_md=__doc__,
        # Without a start date the first scheduled run is the next Sunday, not the last one.
        schedule=CronTriggerTimetable(
            "0 0 * * 0", timezone=settings().timezone, run_immediately=timedelta(0)
        ),
        start_date=None,
        catchup=False,
        max_active_runs=1,
        dagrun_timeout=timedelta(hours=8),
        default_args={
            "owner": use_case.owner,
            "retries": 1,
            "retry_delay": timedelta(seconds=10),
            **TASK_ALERTS,
        },
        **RUN_ALERTS,
        params={"as_of": AS_OF_PARAM},
        tags=["nightshift", "train", name],
    ) as dag:

        @task
        def load_raw() -> None:
            from nightshift.ingest.run import ingest

            run_stage(lambda as_of: ingest(settings(), as_of))

        @task
        def check_landed() -> None:
            from nightshift.quality.run import check_landed

            run_stage(lambda as_of: check_landed(settings(), as_of))

        @task
        def build_marts() -> None:
            from nightshift.transform.run import build

            run_stage(lambda as_of: build(settings(), as_of))

        @task
        def check_marts() -> None:
            from nightshift.quality.run import check_marts

            run_stage(lambda as_of: check_marts(settings(), as_of))

        @task
        def extract_events() -> None:
            from nightshift.features.run import extract

            run_stage(lambda as_of: extract(settings(), [find_use_case(name)], as_of))

        @task(pool="spark")
        def build_training_set() -> None:
            from nightshift.features.run import build_training_set

            run_stage(lambda as_of: build_training_set(settings(), find_use_case(name), as_of))

        @task
        def train_model() -> None:
            from nightshift.training.run import train

            run_stage(lambda as_of: train(settings(), find_use_case(name), as_of))

        @task
        def judge_gates() -> None:
            from nightshift.gates.run import judge

            run_stage(lambda as_of: judge(settings(), find_use_case(name), as_of).require_passed())

        (
            load_raw()
            >> linked(check_landed(), "quality")
            >> build_marts()
            >> linked(check_marts(), "quality_marts")
            >> extract_events()
            >> build_training_set()
            >> train_model()
            >> judge_gates()
        )
    return dag


for _use_case in USE_CASES:
    globals()[f"train__{_use_case.name}"] = build_dag(_use_case)
