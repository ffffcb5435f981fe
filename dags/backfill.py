"""
# backfill

**Purpose.** Many dates at once: their features in one Spark job, their scores in one process, and
one move that shows all of it to readers. Trigger it with dates; `plan only` shows what it would do.

**Inputs.** The landing zone's folders dated before the last date; for each date, what had landed
before it. The champion of today, or of each date.

**Outputs.** `predictions.<use_case>` for every date; every run in `ops.runs`. The plan is the note
of the task `plan`.

**Rerun.** Safe at any time, whole or from any task: features, scores and staged publications that
are complete are not made again. Of which use cases it is, `plan` decides, once; clear it to decide
anew.

**When it fails.** Readers keep what they have, of every date. The note of the failed task and the
end of its log say what was wrong and what to do; clear the task when that is done.
"""

from datetime import timedelta

from airflow.sdk import DAG, task, task_group

from nightshift import task_notes
from nightshift.orchestration import (
    BACKFILL_PARAMS,
    RUN_ALERTS,
    TASK_DEFAULTS,
    assets,
    changed,
    linked,
    plan_backfill,
    pool,
    run_backfill,
    run_stage,
)
from nightshift.settings import settings
from nightshift.use_cases import USE_CASES

with DAG(
    dag_id="backfill",
    doc_md=__doc__,
    schedule=None,
    start_date=None,
    catchup=False,
    max_active_runs=1,
    dagrun_timeout=timedelta(hours=24),
    default_args={
        **TASK_DEFAULTS,
        "owner": "data-team",
        "execution_timeout": timedelta(hours=12),
    },
    **RUN_ALERTS,
    params=BACKFILL_PARAMS,
    tags=["nightshift", "backfill"],
):

    @task.short_circuit
    def plan() -> bool:
        return plan_backfill()

    @task_group
    def prepare() -> None:
        @task
        def load_raw() -> None:
            from nightshift.ingest.run import ingest

            run_stage(lambda as_of: ingest(settings(), as_of), task_notes.of_ingest)

        @task
        def check_landed() -> None:
            from nightshift.pipeline import check_landed_of_nights

            run_backfill(
                lambda request: check_landed_of_nights(settings(), request), task_notes.of_quality
            )

        @task
        def build_marts() -> None:
            from nightshift.transform.run import build

            run_stage(lambda as_of: build(settings(), as_of), task_notes.of_transform)

        @task
        def check_marts() -> None:
            from nightshift.pipeline import check_marts_of_nights

            run_backfill(
                lambda request: check_marts_of_nights(settings(), request), task_notes.of_quality
            )

        @task
        def extract_events() -> None:
            from nightshift.features.extract_run import extract

            run_stage(lambda as_of: extract(settings(), USE_CASES, as_of), task_notes.of_extract)

        (
            load_raw()
            >> linked(check_landed(), "quality")
            >> build_marts()
            >> linked(check_marts(), "quality_marts")
            >> extract_events()
        )

    @task(pool="spark")
    def features() -> None:
        from nightshift.pipeline import build_features_of_nights

        run_backfill(
            lambda request: build_features_of_nights(settings(), request),
            task_notes.of_datasets_of_nights,
        )

    @task(pool=pool(settings().scoring == "spark"))
    def score() -> None:
        from nightshift.pipeline import score_nights

        run_backfill(lambda request: score_nights(settings(), request), task_notes.of_score_nights)

    @task(
        pool=pool(settings().scoring == "spark"),
        outlets=assets("predictions", [use_case.name for use_case in USE_CASES]),
    )
    def publish() -> None:
        from nightshift.pipeline import publish_nights

        results = run_backfill(
            lambda request: publish_nights(settings(), request), task_notes.of_publish_nights
        )
        changed("predictions", {each.use_case for night in results for each in night.publications})

    @task
    def prune_publications() -> None:
        from nightshift.publishing.history_run import prune

        run_backfill(
            lambda request: prune(settings(), request.use_cases, request.last), task_notes.of_prune
        )

    plan() >> prepare() >> features() >> score() >> publish() >> prune_publications()
