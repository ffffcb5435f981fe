"""
# nightly

**Purpose.** One night: what landed before `as_of` is loaded, checked and transformed; every use
case is scored with its champion; predictions are published for all of them at once.

**Inputs.** The landing zone's folders dated before `as_of`; the champion of each use case.

**Outputs.** `predictions.<use_case>` and `predictions.<use_case>_latest`; every run in `ops.runs`.

**Rerun.** Safe at any time, whole or from any task: a rerun for an `as_of` replaces exactly what
that `as_of` publishes. `as_of` is the logical date, or the param of that name.

**When it fails.** Nothing is published, and readers keep what they have. One message tells what
was wrong and what to do, as the end of the failed task's log does; clear the task when that is
done. A run that succeeds sends the recovery.
"""

from datetime import timedelta

from airflow.sdk import DAG, CronTriggerTimetable, task, task_group

from nightshift.orchestration import (
    AS_OF_PARAM,
    RUN_ALERTS,
    TASK_ALERTS,
    WaitForLandings,
    linked,
    run_stage,
)
from nightshift.settings import settings
from nightshift.use_cases import USE_CASES, find_use_case

SOURCES = tuple(sorted({source.name for use_case in USE_CASES for source in use_case.sources}))

with DAG(
    dag_id="nightly",
    doc_md=__doc__,
    # Without a start date the first scheduled run is the next midnight, not the last one.
    schedule=CronTriggerTimetable(
        "0 0 * * *", timezone=settings().timezone, run_immediately=timedelta(0)
    ),
    start_date=None,
    catchup=False,
    max_active_runs=1,
    dagrun_timeout=timedelta(hours=8),
    default_args={
        "owner": "data-team",
        "retries": 1,
        "retry_delay": timedelta(seconds=10),
        **TASK_ALERTS,
    },
    **RUN_ALERTS,
    params={"as_of": AS_OF_PARAM},
    tags=["nightshift", "nightly"],
):

    @task_group
    def ingest() -> None:
        @task
        def load_raw() -> None:
            from nightshift.ingest.run import ingest

            run_stage(lambda as_of: ingest(settings(), as_of))

        WaitForLandings(task_id="wait_for_landings", sources=SOURCES) >> load_raw()

    @task_group
    def quality() -> None:
        @task
        def check_landed() -> None:
            from nightshift.quality.run import check_landed

            run_stage(lambda as_of: check_landed(settings(), as_of))

        linked(check_landed(), "quality")

    @task_group
    def transform() -> None:
        @task
        def build_marts() -> None:
            from nightshift.transform.run import build

            run_stage(lambda as_of: build(settings(), as_of))

        @task
        def check_marts() -> None:
            from nightshift.quality.run import check_marts

            run_stage(lambda as_of: check_marts(settings(), as_of))

        build_marts() >> linked(check_marts(), "quality_marts")

    @task_group
    def features() -> None:
        @task
        def extract_events() -> None:
            from nightshift.features.extract_run import extract

            run_stage(lambda as_of: extract(settings(), USE_CASES, as_of))

        @task(pool="spark")
        def compute_features() -> None:
            from nightshift.features.run import build_features

            run_stage(lambda as_of: build_features(settings(), USE_CASES, as_of))

        extract_events() >> compute_features()

    @task_group
    def score() -> None:
        @task
        def score_use_case(name: str) -> None:
            from nightshift.scoring.run import score

            run_stage(lambda as_of: score(settings(), find_use_case(name), as_of))

        for use_case in USE_CASES:
            score_use_case.override(task_id=f"score_{use_case.name}")(use_case.name)

    @task_group
    def publish() -> None:
        @task
        def publish_predictions() -> None:
            from nightshift.publishing.run import publish

            run_stage(lambda as_of: publish(settings(), USE_CASES, as_of))

        publish_predictions()

    ingest() >> quality() >> transform() >> features() >> score() >> publish()
