"""Model cards under Airflow's own address and login; the tasks of a training link to them."""

from collections.abc import Callable
from datetime import date
from functools import cache
from typing import Any

from airflow.plugins_manager import AirflowPlugin

from nightshift.orchestration import MODEL_CARDS
from nightshift.settings import Settings, settings

# A card runs no script and loads nothing: its plots are in it.
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
}


def build_app(settings: Settings, access: Callable[..., Any]) -> Any:
    """The FastAPI app, whose page asks ``access``, a dependency that reads ``dag_id``, first."""
    from fastapi import Depends, FastAPI, HTTPException, Request
    from fastapi.responses import HTMLResponse, PlainTextResponse, Response

    from nightshift import model_card
    from nightshift.errors import NightshiftError
    from nightshift.io import model_store
    from nightshift.use_cases import USE_CASES

    app = FastAPI(dependencies=[Depends(access)], docs_url=None, redoc_url=None, openapi_url=None)
    trained = {f"train__{use_case.name}": use_case.name for use_case in USE_CASES}

    @app.exception_handler(NightshiftError)
    def explain(request: Request, error: NightshiftError) -> Response:
        return PlainTextResponse(str(error), 503)

    @app.get("/{dag_id}")
    def show_card(dag_id: str, as_of: date | None = None, version: str | None = None) -> Response:
        found = None
        if dag_id in trained and version is not None:
            found = model_store.registered(settings, trained[dag_id]).get(version)
        elif dag_id in trained and as_of is not None:
            found = model_store.newest_version(settings, trained[dag_id], as_of)
        if found is None:
            which = f"version {version}" if version else f"model for as_of {as_of}"
            raise HTTPException(404, f"{dag_id} has trained no {which}")
        if not model_store.has_artifact(settings, found.run_id, model_card.ARTIFACT):
            raise HTTPException(404, f"version {found.version} has no model card")
        card = model_store.fetch(settings, found.run_id, model_card.ARTIFACT)
        return HTMLResponse(card.read_text(encoding="utf-8"), headers=HEADERS)

    return app


@cache
def _app() -> Any:
    from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity
    from airflow.api_fastapi.core_api.security import requires_access_dag

    return build_app(settings(), requires_access_dag("GET", DagAccessEntity.TASK_INSTANCE))


async def app(scope: Any, receive: Any, send: Any) -> None:
    """The app, built by its first request: plugins are loaded in every task's process too."""
    await _app()(scope, receive, send)


class ModelCards(AirflowPlugin):
    """Adds the page to the API server."""

    name = "model_cards"
    fastapi_apps = [{"app": app, "url_prefix": MODEL_CARDS, "name": name}]  # noqa: RUF012
