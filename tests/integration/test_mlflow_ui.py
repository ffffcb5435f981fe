"""MLflow's web UI as Airflow's plugin serves it: to read, and for those who may see the tasks."""

import asyncio
import runpy
from typing import Any

import httpx
import pytest
from fastapi import HTTPException

from nightshift.io import model_store
from nightshift.settings import PROJECT_ROOT, Settings

pytestmark = pytest.mark.integration
API = "/ajax-api/2.0/mlflow"


QUESTION = ("POST", f"{API}/experiments/search", {"max_results": 9})


def ask(app: Any, *calls: tuple[str, str, Any]) -> list[httpx.Response]:
    """What the app answers to each call: method, path, JSON."""

    async def answers() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return [await client.request(method, url, json=body) for method, url, body in calls]

    return asyncio.run(answers())


def test_it_answers_questions_changes_nothing_and_asks_for_rights(
    tracked_warehouse: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    # so that what the app sets for MLflow's server is gone after the test
    for name in ("_MLFLOW_SERVER_FILE_STORE", "_MLFLOW_SERVER_REGISTRY_STORE"):
        monkeypatch.setenv(name, "")
    model_store.experiment_id(tracked_warehouse, "churn")
    build_app = runpy.run_path(str(PROJECT_ROOT / "plugins" / "mlflow_ui.py"))["build_app"]
    may_see = True

    def access() -> None:
        if not may_see:
            raise HTTPException(403)

    app = build_app(tracked_warehouse, access)
    page, found, refused, deleted, after = ask(
        app,
        ("GET", "/", None),
        QUESTION,
        ("POST", f"{API}/experiments/create", {"name": "mine"}),
        ("DELETE", f"{API}/registered-models/delete", None),
        QUESTION,
    )

    assert "<title>MLflow</title>" in page.text
    assert {each["name"] for each in found.json()["experiments"]} >= {"churn"}
    assert (refused.status_code, "make mlflow" in refused.text) == (403, True)
    assert deleted.status_code == 405
    assert after.json() == found.json()

    may_see = False
    assert [answer.status_code for answer in ask(app, ("GET", "/", None), QUESTION)] == [403, 403]
