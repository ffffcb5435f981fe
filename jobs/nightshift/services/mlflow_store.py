"""MLflow's tables, made once; and its web UI on them.

    python -m nightshift.services.mlflow_store prepare <artifacts folder>
    python -m nightshift.services.mlflow_store ui

``prepare`` reads MLFLOW_TRACKING_URI, so that the password is on no command line.
"""

import logging
import os
import sys
from pathlib import Path

from nightshift.services.postgres import free_port
from nightshift.settings import settings

logger = logging.getLogger(__name__)


def prepare(uri: str, artifacts: Path) -> None:
    """Create or check the tables of the tracking store and the model registry."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    artifacts.mkdir(parents=True, exist_ok=True)
    store = SqlAlchemyStore(uri, artifacts.as_uri())
    store.engine.dispose()


def ui() -> None:
    """Become ``mlflow server``, on the next free port from 5000."""
    environment = {**os.environ, "MLFLOW_BACKEND_STORE_URI": settings().mlflow_uri}
    server = Path(sys.executable).parent / "mlflow"
    arguments = ["server", "--host", "127.0.0.1", "--port", str(free_port(5000)), "--workers", "1"]
    os.execve(server, [str(server), *arguments], environment)


if __name__ == "__main__":
    if sys.argv[1:] == ["ui"]:
        ui()
    else:
        prepare(os.environ["MLFLOW_TRACKING_URI"], Path(sys.argv[2]))
