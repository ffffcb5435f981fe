"""What Airflow's tasks share: ``as_of``, the wait for landings, refusals as failures, alerts.

Imported by DAG files, so it loads in milliseconds: stages are imported inside the tasks.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import replace
from datetime import date, datetime, timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode
from zoneinfo import ZoneInfo

import attrs
from airflow.sdk import (
    Asset,
    BaseNotifier,
    BaseOperatorLink,
    BaseSensorOperator,
    Param,
    get_current_context,
)
from airflow.sdk.configuration import conf
from airflow.triggers.base import BaseTrigger, TriggerEvent

from nightshift.errors import GateError, NightshiftError, RefusedAsOf
from nightshift.settings import settings
from nightshift.spec import UseCase
from nightshift.task_notes import of_missing, of_models, of_plan, of_rollback
from nightshift.task_outcomes import (
    RETRIES,
    RETRY_SECONDS,
    RetryWhatMayPass,
    keep,
    model_version,
    note_failure,
    note_retry,
    note_success,
    refusals_fail_at_once,
)
from nightshift.use_cases import USE_CASES, find_use_case

if TYPE_CHECKING:
    from nightshift.backfill.run import Request
    from nightshift.gates.run import Verdict
    from nightshift.publishing.history_run import RolledBack

log = logging.getLogger(__name__)

POLL_SECONDS = 30.0
QUALITY_PAGES = "/quality"
"""Where the plugin ``quality_pages`` is mounted, below Airflow's own address."""
MODEL_CARDS = "/model-cards"
"""Where the plugin ``model_cards`` is mounted."""
MLFLOW_UI = "/mlflow"
"""Where the plugin ``mlflow_ui`` is mounted."""

AS_OF_PARAM = Param(
    None,
    type=["null", "string"],
    format="date",
    title="as_of",
    description=(
        "Run for this date instead of the run's logical date: everything that had happened and "
        "landed before it is known. Leave it empty in a backfill."
    ),
)


PROMOTE_PARAM = Param(
    True,
    type="boolean",
    title="promote",
    description="Off is a dry run: the model is trained and judged, and the champion stays.",
)
TRIALS_PARAM = Param(
    None,
    type=["null", "integer"],
    minimum=0,
    title="trials",
    description="Of the search for parameters, instead of the use case's own budget; 0 is none.",
)
MINUTES_PARAM = Param(
    None,
    type=["null", "number"],
    minimum=0.01,
    maximum=10_000,
    title="minutes",
    description=(
        "Of the search's trials, all together, instead of the use case's own budget. With trials "
        "as well, the search ends with whichever is spent first."
    ),
)


BACKFILL_PARAMS: dict[str, Param] = {
    "from": Param(
        type="string",
        format="date",
        title="from",
        description="The first as_of.",
    ),
    "to": Param(
        type="string",
        format="date",
        title="to",
        description="The last as_of, included.",
    ),
    "use_cases": Param(
        [use_case.name for use_case in USE_CASES],
        type="array",
        items={"type": "string", "enum": [use_case.name for use_case in USE_CASES]},
        examples=[use_case.name for use_case in USE_CASES],
        minItems=1,
        title="use cases",
        description=(
            "Which predictions are made anew. Of all of them, those that cannot be scored at the"
            " dates are left out, and the plan says why; of fewer, none is."
        ),
    ),
    "model": Param(
        "as-now",
        type="string",
        enum=["as-now", "as-then"],
        title="model",
        description=(
            "as-now: today's champion scores every date. as-then: each date is scored by the model"
            " that was champion as it began."
        ),
    ),
    "skip_without_champion": Param(
        False,
        type="boolean",
        title="skip dates without a champion",
        description="With as-then: leave out dates before the first champion. Off: refuse.",
    ),
    "plan_only": Param(
        False,
        type="boolean",
        title="plan only",
        description="Write the plan into the log of the task plan, and do nothing else.",
    ),
}


def as_of_of(
    param: str | None,
    logical_date: datetime | None,
    run_after: datetime,
    timezone: str,
    is_backfill: bool,
) -> date:
    """The date a DAG run is for: the param, else the logical date's, in the pipeline's time zone.

    ``run_after`` stands in where a manual run has no logical date.

    Raises:
        RefusedAsOf: when the param is filled in a backfill: every run would be the same date.
    """
    if param is not None:
        if is_backfill:
            raise RefusedAsOf(
                f"the param as_of={param} is set in a backfill, so that all its runs would be the "
                "same date",
                "leave the param empty: each run's logical date is its as_of",
            )
        return date.fromisoformat(param)
    return (logical_date or run_after).astimezone(ZoneInfo(timezone)).date()


ROLLBACK_PARAMS: dict[str, Param] = {
    "what": Param(
        "predictions",
        type="string",
        enum=["predictions", "model"],
        title="what",
        description=(
            "predictions: readers see what they saw before, of the dates, all at once. model: the"
            " champion before is champion again, and scores the next night."
        ),
    ),
    "use_cases": Param(
        type="array",
        items={"type": "string", "enum": [use_case.name for use_case in USE_CASES]},
        examples=[use_case.name for use_case in USE_CASES],
        minItems=1,
        title="use cases",
        description="Of which use cases.",
    ),
    "from": Param(
        None,
        type=["null", "string"],
        format="date",
        title="from",
        description="Of predictions: the first as_of. What is published once only stays.",
    ),
    "to": Param(
        None,
        type=["null", "string"],
        format="date",
        title="to",
        description="Of predictions: the last as_of, included.",
    ),
    "reason": Param(
        type="string",
        pattern=r"\S",
        title="reason",
        description="Why; kept for good, with your name.",
    ),
}


def run_as_of(context: Mapping[str, Any]) -> date:
    """The ``as_of`` of the DAG run that a task belongs to; of a run of ``backfill`` its last."""
    dag_run, params = context["dag_run"], context["params"]
    return as_of_of(
        params.get("as_of") or params.get("to"),
        context.get("logical_date"),
        dag_run.run_after,
        settings().timezone,
        is_backfill=str(getattr(dag_run.run_type, "value", dag_run.run_type)) == "backfill",
    )


def run_stage[T](function: Callable[[date], T], note_of: Callable[[T], str]) -> T:
    """Call a stage for the run's ``as_of``, and keep what the task's note is to say of its result.

    A refusal fails the task at once, without retries.
    """
    context = get_current_context()
    with refusals_fail_at_once():
        result = function(run_as_of(context))
    keep(context, note_of(result), result)
    return result


def run_due[T](
    name: str, function: Callable[[UseCase, date], T], note_of: Callable[[T], str]
) -> None:
    """The same of one use case, where it is due; else the note says that it is not.

    The task succeeds then, for Airflow would skip what follows a skipped one: the publication of
    the others.
    """
    context, use_case = get_current_context(), find_use_case(name)
    as_of = run_as_of(context)
    if use_case.is_due(as_of):
        run_stage(lambda as_of: function(use_case, as_of), note_of)
    else:
        keep(context, f"**{use_case.why_not_due(as_of)}**")


def due(use_cases: Iterable[UseCase], as_of: date) -> list[UseCase]:
    """Those that are scored for ``as_of``."""
    return [use_case for use_case in use_cases if use_case.is_due(as_of)]


PLAN, PLANNED = "plan", "use_cases"
"""The first task of a backfill, and under which key it tells the others whom the plan is of."""


def plan_backfill() -> bool:
    """Plan what the form of a run of ``backfill`` asks; whether it is to be carried out.

    Of all use cases, those that cannot be scored at the dates are left out: here alone, so that
    what becomes possible meanwhile does not change what the plan says.
    """
    from nightshift.backfill.run import of_able, plan

    context = get_current_context()
    with refusals_fail_at_once():
        request = _of_form(context["params"])
        if len(request.use_cases) == len(USE_CASES):
            request = of_able(settings(), request)
        planned = plan(settings(), request)
    context["ti"].xcom_push(PLANNED, [use_case.name for use_case in request.use_cases])
    log.info("%s", planned.text)
    keep(context, of_plan(planned))
    return not context["params"]["plan_only"]


def run_backfill[T](function: Callable[["Request"], T], note_of: Callable[[T], str]) -> T:
    """As :func:`run_stage`, of what the form asks and of the use cases that the plan names."""
    context = get_current_context()
    names = context["ti"].xcom_pull(task_ids=PLAN, key=PLANNED)
    with refusals_fail_at_once():
        if names is None:
            raise NightshiftError(
                "the plan of this run has not said which use cases it is of",
                f"clear the task {PLAN} with what follows it",
            )
        request = replace(_of_form(context["params"]), use_cases=tuple(map(find_use_case, names)))
        result = function(request)
    keep(context, note_of(result))
    return result


def _of_form(params: Mapping[str, Any]) -> "Request":
    from nightshift.backfill.run import Request

    return Request(
        date.fromisoformat(params["from"]),
        date.fromisoformat(params["to"]),
        tuple(find_use_case(name) for name in params["use_cases"]),
        params["model"],
        params["skip_without_champion"],
    )


def roll_back() -> "RolledBack | None":
    """Do what the form of a run of ``rollback`` asks, in the name of who has triggered it; once,
    however often the task runs. What readers see then; None of a model."""
    context = get_current_context()
    params, dag_run = context["params"], context["dag_run"]
    use_cases = [find_use_case(name) for name in params["use_cases"]]
    person = dag_run.triggering_user_name or "somebody"
    reason = f"{params['reason']} (Airflow, run {dag_run.run_id})"
    with refusals_fail_at_once():
        if params["what"] == "model":
            from nightshift.gates.run import rollback

            versions = {
                use_case.name: rollback(settings(), use_case, person, reason, is_once=True)
                for use_case in use_cases
            }
            keep(context, of_models(versions))
            return None
        if params["from"] is None or params["to"] is None:
            raise NightshiftError(
                "of which dates predictions are rolled back is not told", "give `from` and `to`"
            )
        from nightshift.publishing.history_run import roll_back_nights

        first, last = date.fromisoformat(params["from"]), date.fromisoformat(params["to"])
        result = roll_back_nights(settings(), use_cases, first, last, person, reason, is_once=True)
    keep(context, of_rollback(result))
    return result


def scored(use_cases: Iterable[UseCase]) -> list[UseCase]:
    """Those whose task ``score`` of this run has succeeded."""
    context = get_current_context()
    ti = context["ti"]
    wanted = {f"{use_case.name}.score": use_case for use_case in use_cases}
    states = ti.get_task_states(
        dag_id=ti.dag_id, task_ids=list(wanted), run_ids=[context["dag_run"].run_id]
    )[context["dag_run"].run_id]
    return [use_case for task_id, use_case in wanted.items() if states.get(task_id) == "success"]


def trials() -> int | None:
    """How many trials the run's param asks for; None leaves it to the use case."""
    found: int | None = get_current_context()["params"]["trials"]
    return found


def minutes() -> float | None:
    """How many minutes of trials the run's param asks for; None leaves it to the use case."""
    found: float | None = get_current_context()["params"]["minutes"]
    return found


def may_promote() -> bool:
    """Whether the run's param lets the champion move."""
    return bool(get_current_context()["params"]["promote"])


REFUSED, APPROVE = "refused_champion_kept", "approve_promotion"
"""Tasks of a training, after its gates: one fails, the other waits for a person."""
PROMOTE, KEEP = "Promote", "Keep the champion"


def task_after(verdict: "Verdict") -> str | None:
    """The task that a judgement leads to, which is handed the version and its gates; None: done."""
    log.info("version %s: %s", verdict.candidate_version, verdict.outcome)
    ti = get_current_context()["ti"]
    ti.xcom_push("version", verdict.candidate_version)
    ti.xcom_push("report", verdict.report)
    return {"refused": REFUSED, "proposed": APPROVE}.get(verdict.outcome)


def say_refusal(function: Callable[[date], None]) -> None:
    """Call a function for the run's ``as_of``; where a gate refused, fail in plain words.

    An exception would put a stack trace into the log. An exit does not, and still carries its
    cause to the alert.
    """
    try:
        function(run_as_of(get_current_context()))
    except GateError as refusal:
        log.error("refused, champion kept: %s", refusal)
        raise SystemExit(1) from refusal


def answered(function: Callable[[str, str, bool, str], bool]) -> None:
    """Call a function with what a person answered: version, their name, approved or not, why.

    The two tasks upstream have asked: see ``task_after`` and Airflow's ``HITLOperator``.
    """
    context = get_current_context()
    ti, dag_run = context["ti"], context["dag_run"]
    version = ti.xcom_pull(task_ids="judge_gates", key="version")
    response = ti.xcom_pull(task_ids=APPROVE)
    person = response["responded_by_user"]["name"]
    is_approved = response["chosen_options"] == [PROMOTE]
    reason = f"{response['chosen_options'][0]!r} in Airflow, run {dag_run.run_id}"
    with refusals_fail_at_once():
        function(version, person, is_approved, reason)
    log.info(
        "%s has %s version %s%s", person, "promoted" if is_approved else "rejected", version,
        "" if is_approved else ", champion kept",
    )  # fmt: skip


def _base_url() -> str:
    return str(conf.get("api", "base_url", fallback="")).rstrip("/")


def _as_of_or_none(context: Mapping[str, Any]) -> date | None:
    """None where Airflow tells too little of the run, or where its param is what was refused."""
    try:
        return run_as_of(context)
    except (KeyError, NightshiftError):
        return None


def alert_failed_task(context: Mapping[str, Any]) -> None:
    """``on_failure_callback`` of a task: its last try failed."""
    from nightshift.alerts.failure import Failure, of_error
    from nightshift.alerts.run import report_failure

    ti = context["ti"]
    failure = Failure(
        **vars(of_error(context.get("exception"))),
        dag_id=ti.dag_id,
        run_id=ti.run_id,
        task_id=ti.task_id,
        as_of=_as_of_or_none(context),
        log_url=ti.log_url,
    )
    report_failure(settings(), failure)


def alert_failed_run(context: Mapping[str, Any]) -> None:
    """``on_failure_callback`` of a DAG: for what no task could report of itself."""
    from nightshift.alerts.failure import Failure, of_run
    from nightshift.alerts.run import report_failed_run

    ti = context.get("ti")
    dag_id, run_id = context["dag"].dag_id, context["run_id"]
    failure = Failure(
        **vars(of_run(str(context.get("reason")))),
        dag_id=dag_id,
        run_id=run_id,
        task_id=ti and ti.task_id,
        as_of=_as_of_or_none(context),
        log_url=ti.log_url if ti else f"{_base_url()}/dags/{dag_id}/runs/{quote(run_id)}",
    )
    has_noted = report_failed_run(settings(), failure)
    if ti and not has_noted:
        note_failure(context)


def alert_succeeded_run(context: Mapping[str, Any]) -> None:
    """``on_success_callback`` of a DAG: what had failed works again."""
    from nightshift.alerts.run import report_success

    report_success(settings(), context["dag"].dag_id, _as_of_or_none(context))


TASK_DEFAULTS: dict[str, Any] = {
    "retries": RETRIES,
    "retry_delay": timedelta(seconds=RETRY_SECONDS),
    "retry_policy": RetryWhatMayPass(),
    "on_success_callback": note_success,
    "on_retry_callback": note_retry,
    # the note first: a mail server may take its time
    "on_failure_callback": [note_failure, alert_failed_task],
}
"""For a DAG's ``default_args``."""
RUN_ALERTS: dict[str, Any] = {
    "on_failure_callback": alert_failed_run,
    "on_success_callback": alert_succeeded_run,
}
"""For a DAG itself."""


def pool(is_on_spark: bool) -> str:
    """The pool of a task that starts Spark only where a setting says so."""
    return "spark" if is_on_spark else "default_pool"


@attrs.define
class QualityLink(BaseOperatorLink):
    """A button on a task's page that leads to a page of the plugin ``quality_pages``.

    Attributes:
        stage: the check's, as in ``ops.runs``.
        page: of the plugin.
    """

    name: str
    stage: str
    page: str

    @property
    def xcom_key(self) -> str:
        """Where Airflow keeps the URL once the task has ended."""
        return f"_link_{self.page}"

    def get_link(self, operator: Any, *, ti_key: Any) -> str:
        """URL of the newest run for the task's ``as_of``; Airflow passes the task instance."""
        query = urlencode({"stage": self.stage, "as_of": run_as_of(ti_key.get_template_context())})
        return f"{_base_url()}{QUALITY_PAGES}/{self.page}?{query}"


@attrs.define
class CardLink(BaseOperatorLink):
    """A button on a task's page that leads to the model card, a page of the plugin ``model_cards``.

    Attributes:
        use_case: whose model it is.
    """

    use_case: str
    name: str = "Model card"

    @property
    def xcom_key(self) -> str:
        """Where Airflow keeps the URL once the task has ended."""
        return "_link_model_card"

    def get_link(self, operator: Any, *, ti_key: Any) -> str:
        """URL of the card of the task's version; where it has none, of its ``as_of``'s newest."""
        context = ti_key.get_template_context()
        version = model_version(context)
        query = {"version": version} if version else {"as_of": str(run_as_of(context))}
        return f"{_base_url()}{MODEL_CARDS}/train__{self.use_case}?{urlencode(query)}"


@attrs.define
class MlflowLink(BaseOperatorLink):
    """A button on a task's page that leads to its version in MLflow's web UI.

    Attributes:
        use_case: whose versions they are.
    """

    use_case: str
    name: str = "MLflow"

    @property
    def xcom_key(self) -> str:
        """Where Airflow keeps the URL once the task has ended."""
        return "_link_mlflow"

    def get_link(self, operator: Any, *, ti_key: Any) -> str:
        """URL in the tracking server that the settings name, or in the plugin ``mlflow_ui``."""
        uri = settings().mlflow_tracking_uri or ""
        server = uri.rstrip("/") if uri.startswith("http") else f"{_base_url()}{MLFLOW_UI}"
        version = model_version(ti_key.get_template_context())
        return f"{server}/#/models/{self.use_case}" + (f"/versions/{version}" if version else "")


class AskByAlerts(BaseNotifier):
    """Tells by the channels of the alerts that a ``HITLOperator`` waits for a person."""

    def notify(self, context: Any) -> None:
        """Called once the question is there; Airflow has filled in its templates."""
        from nightshift.alerts.run import report_question

        task, ti = context["task"], context["ti"]
        page = f"/dags/{ti.dag_id}/runs/{quote(ti.run_id)}/tasks/{ti.task_id}/required_actions"
        lines = [line.removeprefix("- ") for line in task.body.splitlines()]
        report_question(settings(), task.subject, lines, _base_url() + page)


def assets(kind: str, names: Iterable[str]) -> list[Asset]:
    """What tasks read and write, for Airflow's graph of assets: ``predictions/churn``, …"""
    return [Asset(f"{kind}/{name}") for name in names]


def changed(kind: str, names: Iterable[str]) -> None:
    """Of what the running task may write of a kind, tell Airflow's assets that only ``names`` has.

    Airflow would tell all outlets of a task that succeeds, also those of a use case that was not
    due or had failed before.
    """
    task = get_current_context()["task"]
    others = [asset for asset in task.outlets if not asset.name.startswith(f"{kind}/")]
    task.outlets = [*others, *assets(kind, names)]


def linked(task: Any, stage: str) -> Any:
    """A task, as ``@task`` gives it, with links to the results and Data Docs of its check."""
    task.operator.operator_extra_links = (
        QualityLink("Quality results", stage, "results"),
        QualityLink("Data Docs", stage, "data-docs"),
    )
    return task


def with_card(task: Any, use_case: str) -> Any:
    """A task, as ``@task`` gives it, with links to the model card and the use case in MLflow."""
    task.operator.operator_extra_links = (CardLink(use_case), MlflowLink(use_case))
    return task


def missing_landings(landing: str, sources: tuple[str, ...], as_of: date) -> list[str]:
    """What was expected by the day before ``as_of`` and has not landed, one folder a source.

    A day on which the source's contract expects nothing is not waited for.
    """
    from nightshift.contracts import load_contract
    from nightshift.io.landing import zone_at

    zone, day = zone_at(landing), as_of - timedelta(days=1)
    return [
        f"{source}/ds={day}"
        for source in sources
        if load_contract(source).arrival.expects(day)
        and all(entry.is_hidden for entry in zone.entries(f"{source}/ds={day}"))
    ]


class LandingsTrigger(BaseTrigger):
    """Fires when yesterday's folder of every source is there, or at the deadline."""

    def __init__(self, landing: str, sources: list[str], as_of: str, deadline: str) -> None:
        super().__init__()
        self.landing = landing
        self.sources = sources
        self.as_of = as_of
        self.deadline = deadline

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Where the class is and what makes it anew, in another triggerer."""
        return (
            "nightshift.orchestration.LandingsTrigger",
            {
                "landing": self.landing,
                "sources": self.sources,
                "as_of": self.as_of,
                "deadline": self.deadline,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Look every half minute."""
        deadline = datetime.fromisoformat(self.deadline)
        as_of = date.fromisoformat(self.as_of)
        while True:
            missing = await asyncio.to_thread(
                missing_landings, self.landing, tuple(self.sources), as_of
            )
            left = (deadline - datetime.now(deadline.tzinfo)).total_seconds()
            if not missing or left <= 0:
                yield TriggerEvent(missing)
                return
            await asyncio.sleep(min(POLL_SECONDS, left))


class WaitForLandings(BaseSensorOperator):
    """Waits, deferred, for yesterday's folder of each source, until the morning's deadline.

    A date whose deadline has passed (a backfill, a run by hand) waits for nothing. A source that
    has not landed by then does not stop the night: shops close. What is stale is the business of
    the quality gate and of source freshness.
    """

    def __init__(self, *, sources: tuple[str, ...], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.sources = sources

    def execute(self, context: Any) -> None:
        """Defer until there is something to do."""
        now = settings()
        with refusals_fail_at_once():
            as_of = run_as_of(context)
        zone = ZoneInfo(now.timezone)
        deadline = datetime.combine(as_of, now.landing_deadline, zone)
        missing = missing_landings(str(now.landing), self.sources, as_of)
        if missing and datetime.now(zone) < deadline:
            self.log.info("waiting for %s until %s", ", ".join(missing), deadline.isoformat())
            self.defer(
                trigger=LandingsTrigger(
                    str(now.landing), list(self.sources), as_of.isoformat(), deadline.isoformat()
                ),
                method_name="resume",
            )
        self.resume(context, missing)

    def resume(self, context: Any, event: list[str]) -> None:
        """Say what had not landed when the wait ended."""
        keep(context, of_missing(event))
        if event:
            self.log.warning("not landed by the deadline: %s", ", ".join(event))
        else:
            self.log.info("everything that was expected has landed")
