"""
# rollback

**Purpose.** What was wrong goes back: predictions of dates to what readers saw before, all dates
and use cases at once, as after a backfill that should not have been; or a model to the champion
before.

**Inputs.** The publications that are kept (`nightshift publications list`), the decisions on
champions (`nightshift history <use case>`).

**Outputs.** The pointers of `predictions.<use_case>`, or the champion of the next night. Your name
and reason are kept for good, in `ops.pointer_moves` or `ops.promotions`. A night that is run again
with the same scores leaves it so.

**Rerun.** Safe: clearing the task changes nothing more. Trigger it anew to go back to where it was.

**When it fails.** Nothing has moved, of predictions; the note of the task says what was wrong and
what to do. Of several models those before it may have moved: clear the task then.
"""

from datetime import timedelta

from airflow.sdk import DAG, task

from nightshift.orchestration import (
    ROLLBACK_PARAMS,
    RUN_ALERTS,
    TASK_DEFAULTS,
    assets,
    changed,
    roll_back,
)
from nightshift.use_cases import USE_CASES

with DAG(
    dag_id="rollback",
    doc_md=__doc__,
    schedule=None,
    start_date=None,
    catchup=False,
    max_active_runs=1,
    dagrun_timeout=timedelta(hours=4),
    default_args={
        **TASK_DEFAULTS,
        "owner": "data-team",
        "execution_timeout": timedelta(hours=1),
    },
    **RUN_ALERTS,
    params=ROLLBACK_PARAMS,
    tags=["nightshift", "rollback"],
):

    @task(outlets=assets("predictions", [use_case.name for use_case in USE_CASES]))
    def show_what_was_before() -> None:
        result = roll_back()
        changed("predictions", {each.use_case for each in result.shown} if result else ())

    show_what_was_before()
