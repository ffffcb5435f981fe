"""Tasks of the LocalExecutor are forks of the scheduler: what it has imported, they need not."""

import logging
import sys
from importlib import import_module
from typing import Any

from airflow.configuration import conf
from airflow.listeners import hookimpl
from airflow.plugins_manager import AirflowPlugin

log = logging.getLogger(__name__)

# Libraries alone, no stage of ours: those are read anew by each task. Together they take eight
# seconds, and 300 MiB that the forks share.
LIBRARIES = (
    "pandas", "pyarrow.parquet", "great_expectations", "dbt.cli.main", "mlflow", "xgboost",
    "scipy.stats", "pyspark.sql", "duckdb", "boto3",
)  # fmt: skip


class ImportBeforeFork:
    """Listens to the start of Airflow's components."""

    @hookimpl
    def on_starting(self, component: Any) -> None:
        """Called before the scheduler forks its workers.

        Airflow calls it before the component knows what it is.
        """
        is_scheduler = sys.argv[1:2] == ["scheduler"]
        if not is_scheduler or not conf.get("core", "executor").endswith("LocalExecutor"):
            return
        # which tells in 200 lines what it leaves out of its own documentation
        logging.getLogger("great_expectations._docs_decorators").setLevel(logging.WARNING)
        for name in LIBRARIES:
            try:
                import_module(name)
            except ImportError as error:
                log.warning("not imported before the tasks: %s", error)


class WarmStart(AirflowPlugin):
    """Adds the listener."""

    name = "warm_start"
    listeners = [ImportBeforeFork()]  # noqa: RUF012
