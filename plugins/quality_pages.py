"""Quality results and Data Docs under Airflow's own address and login; tasks link to them."""

from collections.abc import Callable
from datetime import date
from functools import cache
from typing import Any, Literal
from urllib.parse import quote

from airflow.plugins_manager import AirflowPlugin

from nightshift.orchestration import QUALITY_PAGES
from nightshift.settings import Settings, settings

# Data Docs show values as they landed, which may be anybody's script: it may run, but without this
# origin's cookies, so it can do nothing in Airflow.
REPORT_HEADERS = {"Content-Security-Policy": "sandbox allow-scripts"}
PAGE_HEADERS = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"}


def build_app(settings: Settings, access: Callable[..., Any]) -> Any:
    """The FastAPI app, every page of which asks ``access``, a dependency, first."""
    from fastapi import Depends, FastAPI, HTTPException, Request
    from fastapi.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
    from starlette.staticfiles import StaticFiles

    from nightshift.errors import NightshiftError
    from nightshift.quality.page import render
    from nightshift.quality.run import newest_run, reports_folder

    app = FastAPI(dependencies=[Depends(access)], docs_url=None, redoc_url=None, openapi_url=None)
    # not mounted: what is mounted does not ask for access
    reports = StaticFiles(directory=reports_folder(settings), check_dir=False)

    @app.exception_handler(NightshiftError)
    def explain(request: Request, error: NightshiftError) -> Response:
        return PlainTextResponse(str(error), 503)

    @app.get("/results")
    def show_results(
        request: Request, stage: Literal["quality", "quality_marts"], as_of: date
    ) -> Response:
        run = newest_run(settings, stage, as_of)
        page = render(stage, as_of, run, f"{request.scope['root_path']}/data-docs")
        return HTMLResponse(page, headers=PAGE_HEADERS)

    @app.get("/data-docs")
    def find_report(
        request: Request, stage: Literal["quality", "quality_marts"], as_of: date
    ) -> Response:
        run = newest_run(settings, stage, as_of)
        if run is None or run.first_page is None:
            raise HTTPException(404, f"no report of {stage} for as_of {as_of}")
        return RedirectResponse(f"{request.scope['root_path']}/data-docs/{quote(run.first_page)}")

    @app.get("/data-docs/{path:path}")
    async def show_report(request: Request, path: str) -> Response:
        response = await reports.get_response(path, request.scope)
        response.headers.update(REPORT_HEADERS)
        return response

    return app


@cache
def _app() -> Any:
    from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity
    from airflow.api_fastapi.core_api.security import requires_access_dag

    may_see_tasks = requires_access_dag(
        "GET", DagAccessEntity.TASK_INSTANCE, param_dag_id="nightly"
    )
    return build_app(settings(), may_see_tasks)


async def app(scope: Any, receive: Any, send: Any) -> None:
    """The app, built by its first request: plugins are loaded in every task's process too."""
    await _app()(scope, receive, send)


class QualityPages(AirflowPlugin):
    """Adds the pages to the API server."""

    name = "quality_pages"
    fastapi_apps = [{"app": app, "url_prefix": QUALITY_PAGES, "name": name}]  # noqa: RUF012
