"""What the tasks share: the date of a run, the wait for landings, refusals as failures."""

import asyncio
from copy import deepcopy
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.definitions.param import ParamsDict
from airflow.sdk.exceptions import AirflowFailException, ParamValidationError

from nightshift import orchestration
from nightshift.backfill.run import Request
from nightshift.errors import QualityError, RefusedAsOf
from nightshift.orchestration import (
    AS_OF_PARAM,
    MINUTES_PARAM,
    CardLink,
    LandingsTrigger,
    MlflowLink,
    QualityLink,
    WaitForLandings,
    as_of_of,
    minutes,
    missing_landings,
    run_as_of,
    run_stage,
)
from nightshift.scoring.run import ScoreResult
from nightshift.settings import load_settings
from nightshift.spec import Nights
from nightshift.task_outcomes import keep
from nightshift.use_cases.churn import CHURN

MIDNIGHT = datetime(2025, 12, 28, 0, 0, tzinfo=UTC)
LATER = datetime(2026, 4, 1, 9, 30, tzinfo=UTC)
SCORED = ScoreResult("churn", date(2025, 12, 28), "7", "ab12", 1234, True)


def test_the_param_wins() -> None:
    assert as_of_of("2025-12-24", MIDNIGHT, LATER, "UTC", False) == date(2025, 12, 24)


@pytest.mark.parametrize(
    ("logical_date", "timezone", "expected"),
    [
        (datetime(2025, 12, 28, 0, 0, tzinfo=UTC), "UTC", date(2025, 12, 28)),
        (datetime(2025, 12, 28, 23, 59, 59, tzinfo=UTC), "UTC", date(2025, 12, 28)),
        # midnight in Berlin is the evening before in UTC
        (datetime(2025, 12, 27, 23, 0, tzinfo=UTC), "Europe/Berlin", date(2025, 12, 28)),
        (datetime(2025, 12, 27, 22, 59, tzinfo=UTC), "Europe/Berlin", date(2025, 12, 27)),
        # in summer an hour earlier
        (datetime(2025, 6, 27, 22, 0, tzinfo=UTC), "Europe/Berlin", date(2025, 6, 28)),
        (datetime(2025, 12, 28, 4, 59, tzinfo=UTC), "America/New_York", date(2025, 12, 27)),
        (datetime(2025, 12, 28, 5, 0, tzinfo=UTC), "America/New_York", date(2025, 12, 28)),
    ],
)
def test_the_logical_date_counts_in_the_pipelines_time_zone(
    logical_date: datetime, timezone: str, expected: date
) -> None:
    assert as_of_of(None, logical_date, LATER, timezone, False) == expected
    assert as_of_of(None, logical_date, LATER, timezone, True) == expected


def test_without_a_logical_date_run_after_stands_in() -> None:
    assert as_of_of(None, None, LATER, "UTC", False) == date(2026, 4, 1)
    late = datetime(2026, 4, 1, 23, 30, tzinfo=UTC)
    assert as_of_of(None, None, late, "Asia/Tokyo", False) == date(2026, 4, 2)


def test_the_param_is_refused_in_a_backfill() -> None:
    with pytest.raises(RefusedAsOf, match=r"as_of=2025-12-24 is set in a backfill"):
        as_of_of("2025-12-24", MIDNIGHT, LATER, "UTC", True)


@pytest.mark.parametrize("is_enum", [False, True])
def test_a_backfill_is_known_by_the_runs_type(is_enum: bool) -> None:
    run_type: Any = SimpleNamespace(value="backfill") if is_enum else "backfill"
    context = {
        "params": {"as_of": "2025-12-24"},
        "logical_date": MIDNIGHT,
        "dag_run": SimpleNamespace(run_after=LATER, run_type=run_type),
    }
    with pytest.raises(RefusedAsOf):
        run_as_of(context)
    context["dag_run"] = SimpleNamespace(run_after=LATER, run_type="manual")
    assert run_as_of(context) == date(2025, 12, 24)


@pytest.mark.parametrize("value", ["2025-02-30", "28.12.2025", "", "yesterday"])
def test_the_form_takes_nothing_but_a_date(value: str) -> None:
    with pytest.raises(ParamValidationError):
        ParamsDict({"as_of": AS_OF_PARAM})["as_of"] = value


def test_the_form_takes_a_date_or_nothing() -> None:
    params = ParamsDict({"as_of": AS_OF_PARAM})
    assert params["as_of"] is None
    params["as_of"] = "2025-12-28"
    assert params["as_of"] == "2025-12-28"


@pytest.mark.parametrize("value", [0, -1, "ten", 10_001])
def test_the_form_takes_nothing_but_minutes_that_are_some(value: object) -> None:
    with pytest.raises(ParamValidationError):
        ParamsDict({"minutes": MINUTES_PARAM})["minutes"] = value


@pytest.mark.parametrize("value", [None, 0.5, 90])
def test_a_budget_of_minutes_reaches_the_task(
    value: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = ParamsDict({"minutes": deepcopy(MINUTES_PARAM)})
    assert params["minutes"] is None
    params["minutes"] = value
    monkeypatch.setattr(orchestration, "get_current_context", lambda: {"params": params})
    assert minutes() == value


def test_the_form_of_a_backfill_and_the_use_cases_of_its_plan_reach_its_tasks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: dict[tuple[str, str], list[str] | None] = {("plan", "use_cases"): ["churn"]}
    context = {
        "params": {
            "from": "2025-12-01", "to": "2025-12-03", "use_cases": ["churn", "fraud"],
            "model": "as-then", "skip_without_champion": True, "plan_only": False,
        },
        "logical_date": None,
        "dag_run": SimpleNamespace(run_after=LATER, run_type="manual"),
        "ti": SimpleNamespace(xcom_pull=lambda *, task_ids, key: told[task_ids, key]),
    }  # fmt: skip
    monkeypatch.setattr(orchestration, "get_current_context", lambda: context)

    asked = Request(date(2025, 12, 1), date(2025, 12, 3), (CHURN,), "as-then", True)
    assert orchestration.run_backfill(lambda request: request, str) == asked
    assert asked.dates == (date(2025, 12, 1), date(2025, 12, 2), date(2025, 12, 3))
    assert orchestration.run_stage(lambda as_of: as_of, str) == date(2025, 12, 3)

    told["plan", "use_cases"] = None  # it was marked as a success by hand
    with pytest.raises(AirflowFailException, match="clear the task plan"):
        orchestration.run_backfill(lambda request: request, str)


def test_a_use_case_that_is_not_due_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    context: dict[str, Any] = {
        "params": {},
        "logical_date": MIDNIGHT,
        "dag_run": SimpleNamespace(run_after=LATER, run_type="manual"),
    }
    monkeypatch.setattr(orchestration, "get_current_context", lambda: context)
    weekly = CHURN.model_copy(update={"nights": Nights(every_days=7, since=date(2025, 12, 27))})
    monkeypatch.setattr(orchestration, "find_use_case", lambda name: weekly)
    called: list[date] = []

    orchestration.run_due("churn", lambda use_case, as_of: called.append(as_of), str)
    assert called == []
    assert context["nightshift_note"] == (
        "**not due on 2025-12-28: it is scored every 7 nights, next on 2026-01-03**"
    )
    assert orchestration.due([weekly, CHURN], date(2025, 12, 28)) == [CHURN]

    context["params"] = {"as_of": "2026-01-03"}
    orchestration.run_due("churn", lambda use_case, as_of: called.append(as_of), str)
    assert called == [date(2026, 1, 3)]


def test_a_refusal_fails_the_task_without_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    context = {
        "params": {},
        "logical_date": MIDNIGHT,
        "dag_run": SimpleNamespace(run_after=LATER, run_type="manual"),
    }
    monkeypatch.setattr(orchestration, "get_current_context", lambda: context)

    def refuse(as_of: date) -> None:
        raise QualityError(f"nothing landed before {as_of}", "look at the landing zone")

    with pytest.raises(AirflowFailException, match="nothing landed before 2025-12-28") as failure:
        run_stage(refuse, str)
    assert "look at the landing zone" in str(failure.value)

    def crash(as_of: date) -> None:
        raise ConnectionError("gone")

    with pytest.raises(ConnectionError):  # Airflow tries again
        run_stage(crash, str)
    assert run_stage(lambda as_of: as_of.isoformat(), str) == "2025-12-28"


def test_the_first_task_refuses_a_param_in_a_backfill_without_retries() -> None:
    context = {
        "params": {"as_of": "2025-12-24"},
        "logical_date": MIDNIGHT,
        "dag_run": SimpleNamespace(run_after=LATER, run_type="backfill"),
    }
    waiting = WaitForLandings(task_id="wait", sources=("order_lines",))
    with pytest.raises(AirflowFailException, match="leave the param empty"):
        waiting.execute(context)


def test_a_link_names_the_check_and_its_as_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", "https://airflow.example/")
    context = {
        "params": {},
        "logical_date": MIDNIGHT,
        "dag_run": SimpleNamespace(run_after=LATER, run_type="manual"),
    }
    link = QualityLink("Quality results", "quality_marts", "results")

    url = link.get_link(None, ti_key=SimpleNamespace(get_template_context=lambda: context))

    assert url == ("https://airflow.example/quality/results?stage=quality_marts&as_of=2025-12-28")

    card = CardLink("churn").get_link(
        None, ti_key=SimpleNamespace(get_template_context=lambda: context)
    )
    assert card == "https://airflow.example/model-cards/train__churn?as_of=2025-12-28"


def test_the_links_of_a_score_lead_to_the_version_that_gave_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", "https://airflow.example/")
    context: dict[str, Any] = {}
    ti = SimpleNamespace(get_template_context=lambda: context)
    mlflow = MlflowLink("churn")
    assert mlflow.get_link(None, ti_key=ti) == "https://airflow.example/mlflow/#/models/churn"

    keep(context, "scored", SCORED)

    assert mlflow.get_link(None, ti_key=ti) == (
        "https://airflow.example/mlflow/#/models/churn/versions/7"
    )
    assert CardLink("churn").get_link(None, ti_key=ti) == (
        "https://airflow.example/model-cards/train__churn?version=7"
    )

    monkeypatch.setattr(
        orchestration,
        "settings",
        lambda: load_settings(_env_file=None, mlflow_tracking_uri="https://mlflow.example/"),
    )
    assert mlflow.get_link(None, ti_key=ti) == "https://mlflow.example/#/models/churn/versions/7"


def land(landing: Path, source: str, day: str) -> None:
    folder = landing / source / f"ds={day}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "a.csv").touch()


def test_missing_landings_are_those_of_the_day_before(tmp_path: Path) -> None:
    sources = ("order_lines", "chargebacks")
    as_of = date(2026, 3, 3)
    assert missing_landings(str(tmp_path), sources, as_of) == [
        "order_lines/ds=2026-03-02",
        "chargebacks/ds=2026-03-02",
    ]
    land(tmp_path, "order_lines", "2026-03-02")
    land(tmp_path, "chargebacks", "2026-03-03")  # of the day itself: not known to as_of
    assert missing_landings(str(tmp_path), sources, as_of) == ["chargebacks/ds=2026-03-02"]
    land(tmp_path, "chargebacks", "2026-03-02")
    assert missing_landings(str(tmp_path), sources, as_of) == []


def test_a_day_on_which_nothing_is_expected_is_not_waited_for(tmp_path: Path) -> None:
    sunday, saturday = date(2026, 3, 1), ("order_lines", "chargebacks")
    assert missing_landings(str(tmp_path), saturday, sunday) == ["chargebacks/ds=2026-02-28"]


@pytest.mark.parametrize("begun", [".a.csv.part", "_a.csv"])
def test_a_folder_that_is_being_filled_has_not_landed(tmp_path: Path, begun: str) -> None:
    folder = tmp_path / "order_lines" / "ds=2026-03-02"
    folder.mkdir(parents=True)
    (folder / begun).touch()
    assert missing_landings(str(tmp_path), ("order_lines",), date(2026, 3, 3)) == [
        "order_lines/ds=2026-03-02"
    ]


def test_a_file_in_the_folders_place_is_no_landing(tmp_path: Path) -> None:
    (tmp_path / "order_lines").mkdir()
    (tmp_path / "order_lines" / "ds=2026-03-02").touch()
    assert missing_landings(str(tmp_path), ("order_lines",), date(2026, 3, 3)) == [
        "order_lines/ds=2026-03-02"
    ]


def trigger(landing: Path, deadline: datetime) -> LandingsTrigger:
    return LandingsTrigger(str(landing), ["order_lines"], "2026-03-03", deadline.isoformat())


async def fired(waiting: LandingsTrigger) -> Any:
    return (await anext(waiting.run())).payload


def test_the_trigger_fires_when_the_folder_lands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(orchestration, "POLL_SECONDS", 0.01)

    async def scenario() -> Any:
        far = datetime.now(UTC) + timedelta(hours=1)
        waiting = asyncio.create_task(fired(trigger(tmp_path, far)))
        done, _ = await asyncio.wait([waiting], timeout=0.1)
        assert not done
        land(tmp_path, "order_lines", "2026-03-02")
        return await asyncio.wait_for(waiting, 60)

    assert asyncio.run(scenario()) == []


def test_the_trigger_fires_at_the_deadline(tmp_path: Path) -> None:
    soon = datetime.now(UTC) + timedelta(seconds=0.2)
    payload = asyncio.run(asyncio.wait_for(fired(trigger(tmp_path, soon)), 60))
    assert payload == ["order_lines/ds=2026-03-02"]


def test_the_trigger_is_made_anew_from_what_it_serializes(tmp_path: Path) -> None:
    path, arguments = trigger(tmp_path, LATER).serialize()
    module, _, name = path.rpartition(".")
    assert getattr(__import__(module, fromlist=[name]), name) is LandingsTrigger
    assert LandingsTrigger(**arguments).serialize() == (path, arguments)
