"""
# nightly

**Purpose.** One night: what landed before `as_of` is loaded, checked and transformed; every use
case is scored with its champion; predictions are published for all of them at once. The note of
each task says what came of it.

**Inputs.** The landing zone's folders dated before `as_of`; the champion of each use case.

**Outputs.** `predictions.<use_case>` and `predictions.<use_case>_latest`; every run in `ops.runs`.
Where a version is challenger, its scores stand beside the champion's in `monitoring`, for nobody
else to read, and hold nothing up.

**Rerun.** Safe at any time, whole or from any task, also while tonight's run waits for what lands:
a rerun for an `as_of` replaces exactly what that `as_of` publishes. `as_of` is the logical date, or
the param of that name.

**When it fails.** Readers keep what they have. One message tells what was wrong and what to do, as
the note of the failed task and the end of its log do; clear the task when that is done. A use case
that fails, in the group of its name or in its audit, holds none of the others: they are published,
and the run is failed all the same. A source with a refused file or a broken rule holds only the use
cases that read it: where not all of them do, its task in the group `sources` is what is red. Old
publications are dropped all the same; `is_published` does nothing but fail the run then. A use
case that is not due (`nights`) is not scored; the note of its task says so, and when it is. A lost
server is waited for, a refusal is not tried again. A run that succeeds sends the recovery.
"""

from datetime import timedelta

from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG, CronTriggerTimetable, TaskGroup, task, task_group

from nightshift import task_notes
from nightshift.orchestration import (
    AS_OF_PARAM,
    RUN_ALERTS,
    TASK_DEFAULTS,
    WaitForLandings,
    assets,
    changed,
    due,
    linked,
    pool,
    run_due,
    run_stage,
    scored,
    with_card,
)
from nightshift.settings import settings
from nightshift.sources import SOURCES
from nightshift.use_cases import USE_CASES

READ = tuple(sorted({source for use_case in USE_CASES for source in use_case.landings}))
MARTS = sorted(
    {
        source.relation.removeprefix("marts.")
        for use_case in USE_CASES
        for source in use_case.sources
    }
)
NOT_READ_BY_ALL = [
    source for source in SOURCES if any(source not in each.landings for each in USE_CASES)
]
NAMES = [use_case.name for use_case in USE_CASES]
SCORING_POOL = pool(settings().scoring == "spark")

with DAG(
    dag_id="nightly",
    doc_md=__doc__,
    # Without a start date the first scheduled run is the next midnight, not the last one.
    schedule=CronTriggerTimetable(
        "0 0 * * *", timezone=settings().timezone, run_immediately=timedelta(0)
    ),
    start_date=None,
    catchup=False,
    # a night that waits for what lands until the deadline holds none that is started by hand
    max_active_runs=2,
    dagrun_timeout=timedelta(hours=8),
    default_args={
        **TASK_DEFAULTS,
        "owner": "data-team",
        "execution_timeout": timedelta(hours=4),
    },
    **RUN_ALERTS,
    params={"as_of": AS_OF_PARAM},
    tags=["nightshift", "nightly", *NAMES],
):

    @task_group
    def ingest() -> None:
        @task(inlets=assets("landing", READ), outlets=assets("raw", READ))
        def load_raw() -> None:
            from nightshift.ingest.run import ingest

            run_stage(lambda as_of: ingest(settings(), as_of), task_notes.of_ingest)

        # it has a deadline of its own
        wait = WaitForLandings(task_id="wait_for_landings", sources=READ, execution_timeout=None)
        wait >> load_raw()

    @task_group
    def quality() -> None:
        @task
        def check_landed() -> None:
            from nightshift.quality.run import check_landed

            run_stage(lambda as_of: check_landed(settings(), as_of), task_notes.of_quality)

        linked(check_landed(), "quality")

    @task_group
    def transform() -> None:
        @task(inlets=assets("raw", READ), outlets=assets("marts", MARTS))
        def build_marts() -> None:
            from nightshift.transform.run import build

            run_stage(lambda as_of: build(settings(), as_of), task_notes.of_transform)

        @task
        def check_marts() -> None:
            from nightshift.quality.run import check_marts

            run_stage(lambda as_of: check_marts(settings(), as_of), task_notes.of_quality)

        build_marts() >> linked(check_marts(), "quality_marts")

    @task_group
    def features() -> None:
        @task(inlets=assets("marts", MARTS), outlets=assets("lake/events", READ))
        def extract_events() -> None:
            from nightshift.features.extract_run import extract

            run_stage(lambda as_of: extract(settings(), USE_CASES, as_of), task_notes.of_extract)

        @task(
            pool="spark",
            inlets=assets("lake/events", READ),
            outlets=assets("lake/features", NAMES),
        )
        def compute_features() -> None:
            from nightshift.features.run import build_features

            built = run_stage(
                lambda as_of: build_features(settings(), due(USE_CASES, as_of), as_of),
                task_notes.of_datasets,
            )
            changed("lake/features", built)

        extract_events() >> compute_features()

    @task(pool=SCORING_POOL)
    def score(name: str) -> None:
        from nightshift.scoring.run import score

        run_due(
            name, lambda use_case, as_of: score(settings(), use_case, as_of), task_notes.of_score
        )

    @task(pool=SCORING_POOL)
    def challenge(name: str) -> None:
        from nightshift.scoring.run import challenge

        run_due(
            name,
            lambda use_case, as_of: challenge(settings(), use_case, as_of),
            task_notes.of_challenge,
        )

    @task_group
    def publish() -> None:
        # whoever was scored is published, also where another use case was not
        @task(
            pool=SCORING_POOL,
            trigger_rule="all_done_min_one_success",
            inlets=assets("lake/scores", NAMES),
            outlets=assets("predictions", NAMES),
        )
        def publish_predictions() -> None:
            from nightshift.publishing.run import publish

            result = run_stage(
                lambda as_of: publish(settings(), due(scored(USE_CASES), as_of), as_of),
                task_notes.of_publish,
            )
            changed("predictions", [each.use_case for each in result.publications])

        # a refused audit may last for nights, and what is old is to go meanwhile
        @task(trigger_rule="all_done")
        def prune_publications() -> None:
            from nightshift.publishing.history_run import prune

            run_stage(lambda as_of: prune(settings(), USE_CASES, as_of), task_notes.of_prune)

        # what fails a run that has not published: its last tasks decide, and pruning is always one
        is_published = EmptyOperator(task_id="is_published", on_success_callback=None)
        publish_predictions() >> [prune_publications(), is_published]

    @task
    def require_source(source: str) -> None:
        from nightshift.io.held_sources import require_source

        run_stage(lambda as_of: require_source(settings(), source, as_of), task_notes.of_source)

    # beside the features; failing, they are why a run is failed
    with TaskGroup("sources") as sources:
        for source in NOT_READ_BY_ALL:
            require_source.override(task_id=source)(source)

    scores = {}
    for name in NAMES:
        with TaskGroup(name):
            scores[name] = score.override(
                inlets=assets("lake/features", [name]) + assets("models", [name]),
                outlets=assets("lake/scores", [name]),
            )(name)
            # beside publish, which it does not hold up; failing, it is why a run is failed
            with_card(scores[name], name) >> challenge(name)

    prepared = ingest() >> quality() >> transform()
    prepared >> sources
    prepared >> features() >> list(scores.values()) >> publish()
