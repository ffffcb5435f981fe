"""MLflow's own web UI, to read, under Airflow's address and login; the tasks link to it."""

import asyncio
import os
import re
from collections.abc import Callable
from functools import cache
from typing import Any

from airflow.plugins_manager import AirflowPlugin

from nightshift.orchestration import MLFLOW_UI
from nightshift.settings import Settings, settings

# The UI asks its questions by POST; whatever else is posted would change something.
QUESTION = re.compile(r"(^|[/-])(search|search-datasets|graphql)$")


def build_app(settings: Settings, access: Callable[..., Any]) -> Any:
    """The FastAPI app, every page of which asks ``access``, a dependency, first."""
    os.environ |= {
        "_MLFLOW_SERVER_FILE_STORE": settings.mlflow_uri,
        "_MLFLOW_SERVER_REGISTRY_STORE": settings.mlflow_uri,
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    from a2wsgi import WSGIMiddleware
    from fastapi import Depends, FastAPI, HTTPException, Request
    from mlflow.server import app as mlflow
    from starlette.responses import Response

    server = WSGIMiddleware(mlflow)

    class Answered(Response):
        """What MLflow answers."""

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            await server(scope, receive, send)

    app = FastAPI(dependencies=[Depends(access)], docs_url=None, redoc_url=None, openapi_url=None)

    @app.api_route("/{path:path}", methods=["GET", "HEAD", "POST"])
    def ask(request: Request, path: str) -> Response:
        if request.method == "POST" and not QUESTION.search(path):
            raise HTTPException(403, "here MLflow is to read; to change something: `make mlflow`")
        return Answered()

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
    built = await asyncio.to_thread(_app)  # importing MLflow takes seconds
    await built(scope, receive, send)


class MlflowUi(AirflowPlugin):
    """Adds MLflow to the API server."""

    name = "mlflow_ui"
    fastapi_apps = [{"app": app, "url_prefix": MLFLOW_UI, "name": name}]  # noqa: RUF012
    external_views = [  # noqa: RUF012
        {"name": "MLflow", "href": f"{MLFLOW_UI}/", "destination": "nav", "url_route": "mlflow"}
    ]
