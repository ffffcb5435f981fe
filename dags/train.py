"""
# train

**Purpose.** Train a use case on every snapshot whose label is known at `as_of`, judge the model by
the gates of its spec, and make it champion if all of them pass. Where the spec asks for manual
approval, a person has to answer `approve_promotion` first. With the param `promote` off it is a dry
run: the champion stays. `trials` and `minutes` search for parameters, instead of the spec's budget.

**Inputs.** The landing zone's folders dated before `as_of`.

**Outputs.** An MLflow run and a registered version; `ops.gate_results`; on success a row in
`ops.promotions` and the alias `champion`.

**Rerun.** Safe: the same data gives the same model bytes under a new version.

**When it fails.** The champion stays as it was. A red `refused_champion_kept` is an answer, not a
fault: its log names each gate that failed, with the figure and the threshold.
"""

from datetime import timedelta

from airflow.providers.standard.operators.hitl import HITLOperator
from airflow.sdk import DAG, CronTriggerTimetable, task

from nightshift import task_notes
from nightshift.orchestration import (
    APPROVE,
    AS_OF_PARAM,
    KEEP,
    MINUTES_PARAM,
    PROMOTE,
    PROMOTE_PARAM,
    REFUSED,
    RUN_ALERTS,
    TASK_DEFAULTS,
    TRIALS_PARAM,
    AskByAlerts,
    answered,
    assets,
    linked,
    may_promote,
    minutes,
    pool,
    run_stage,
    say_refusal,
    task_after,
    trials,
    with_card,
)
from nightshift.settings import settings
from nightshift.spec import UseCase
from nightshift.use_cases import USE_CASES, find_use_case


def build_dag(use_case: UseCase) -> DAG:
    """The weekly training of one use case."""
    name = use_case.name
    sources = sorted(source.name for source in use_case.sources)
    is_manual = use_case.approval == "manual"
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
        # A person has until the next Sunday's run to answer.
        dagrun_timeout=timedelta(days=6 if is_manual else 0, hours=8),
        default_args={
            **TASK_DEFAULTS,
            "owner": use_case.owner,
        },
        **RUN_ALERTS,
        params={
            "as_of": AS_OF_PARAM,
            "trials": TRIALS_PARAM,
            "minutes": MINUTES_PARAM,
            "promote": PROMOTE_PARAM,
        },
        tags=["nightshift", "train", name],
    ) as dag:

        @task
        def load_raw() -> None:
            from nightshift.ingest.run import ingest

            run_stage(lambda as_of: ingest(settings(), as_of), task_notes.of_ingest)

        @task
        def check_landed() -> None:
            from nightshift.quality.run import check_landed

            run_stage(lambda as_of: check_landed(settings(), as_of), task_notes.of_quality)

        @task
        def build_marts() -> None:
            from nightshift.transform.run import build

            run_stage(lambda as_of: build(settings(), as_of), task_notes.of_transform)

        @task
        def check_marts() -> None:
            from nightshift.quality.run import check_marts

            run_stage(lambda as_of: check_marts(settings(), as_of), task_notes.of_quality)

        @task
        def extract_events() -> None:
            from nightshift.features.extract_run import extract

            run_stage(
                lambda as_of: extract(settings(), [find_use_case(name)], as_of),
                task_notes.of_extract,
            )

        @task(pool="spark")
        def build_training_set() -> None:
            from nightshift.features.run import build_training_set

            run_stage(
                lambda as_of: build_training_set(settings(), find_use_case(name), as_of),
                task_notes.of_dataset,
            )

        @task(
            pool=pool(settings().training_memory == "spark"),
            inlets=assets("lake/events", sources),
        )
        def train_model() -> None:
            from nightshift.training.run import train

            run_stage(
                lambda as_of: train(
                    settings(), find_use_case(name), as_of, trials=trials(), minutes=minutes()
                ),
                task_notes.of_training,
            )

        @task.branch(outlets=assets("models", [name]))
        def judge_gates() -> str | None:
            from nightshift.gates.run import judge

            verdict = run_stage(
                lambda as_of: judge(
                    settings(), find_use_case(name), as_of, may_promote=may_promote()
                ),
                task_notes.of_verdict,
            )
            return task_after(verdict)

        @task(task_id=REFUSED, retries=0)  # a second judgement would be the same
        def refused_champion_kept() -> None:
            from nightshift.gates.run import require_passed

            say_refusal(lambda as_of: require_passed(settings(), find_use_case(name), as_of))

        @task
        def record_answer() -> None:
            from nightshift.gates.run import answer

            answered(lambda *given: answer(settings(), find_use_case(name), *given))

        judged = with_card(judge_gates(), name)
        (
            load_raw()
            >> linked(check_landed(), "quality")
            >> build_marts()
            >> linked(check_marts(), "quality_marts")
            >> extract_events()
            >> build_training_set()
            >> with_card(train_model(), name)
            >> judged
            >> refused_champion_kept()
        )
        if is_manual:
            asked = HITLOperator(
                task_id=APPROVE,
                subject=f"{use_case.title}: shall version {_of_judged('version')} score?",
                body=_of_judged("report"),
                options=[PROMOTE, KEEP],
                response_timeout=timedelta(days=6),
                notifiers=AskByAlerts(),
            )
            judged >> asked >> record_answer()
    return dag


def _of_judged(key: str) -> str:
    return f"{{{{ ti.xcom_pull(task_ids='judge_gates', key='{key}') }}}}"


for _use_case in USE_CASES:
    globals()[f"train__{_use_case.name}"] = build_dag(_use_case)
