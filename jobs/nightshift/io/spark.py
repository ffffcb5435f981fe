"""The Spark session: one a night, closed when the job is done."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from py4j.protocol import Py4JError
from pyspark.errors import PySparkException
from pyspark.sql import SparkSession

import nightshift
from nightshift.errors import SettingError
from nightshift.settings import Settings

_PACKAGE_ROOT = Path(nightshift.__file__).parents[1]


@contextmanager
def spark_session(
    settings: Settings, name: str, daemon: str = "pyspark.daemon"
) -> Iterator[SparkSession]:
    """A session on ``settings.spark_master``, stopped at the end of the block.

    Args:
        daemon: the module whose process the Python workers are forked from.

    Raises:
        SettingError: when Spark does not start, or the master does not answer.
    """
    is_local = settings.spark_master.startswith("local")
    if is_local or "PYSPARK_PYTHON" not in os.environ:
        os.environ["PYSPARK_PYTHON"] = sys.executable
    jdk = settings.state_dir / "jdk"
    if "JAVA_HOME" not in os.environ and jdk.is_dir():
        os.environ["JAVA_HOME"] = str(next(jdk.glob("*/bin/java"), jdk / "bin/java").parents[1])
    builder = (
        SparkSession.builder.master(settings.spark_master)
        .appName(name)
        .config("spark.driver.memory", settings.spark_driver_memory)
        .config("spark.executor.memory", settings.spark_executor_memory)
        # also where the package is not installed, the daemon's module is found
        .config("spark.executorEnv.PYTHONPATH", str(_PACKAGE_ROOT))
        # Tasks free and ask for the same memory again and again; glibc would give it back each
        # time, and a quarter of their time would go into its pages.
        .config("spark.executorEnv.MALLOC_MMAP_THRESHOLD_", str(32 * 2**20))
        .config("spark.executorEnv.MALLOC_TRIM_THRESHOLD_", str(2**30))
        .config("spark.python.daemon.module", daemon)
        # Over TCP each task waits 40 ms for an acknowledgement that the other side delays.
        .config("spark.python.unix.domain.socket.enabled", "true")
        .config("spark.ui.enabled", "false")
        .config("spark.ui.showConsoleProgress", "false")
        .config("spark.sql.session.timeZone", "UTC")
        .config("spark.sql.catalogImplementation", "in-memory")
        .config("spark.sql.warehouse.dir", str(settings.lake_dir / "spark-warehouse"))
        .config("spark.sql.execution.arrow.maxRecordsPerBatch", 65_536)
        .config("spark.sql.parquet.compression.codec", "zstd")
        .config("spark.sql.parquet.outputTimestampType", "TIMESTAMP_MICROS")
    )
    # executors of other machines must reach the driver; the one of this process need not
    host = "127.0.0.1" if is_local else settings.spark_driver_host
    if host is not None:
        builder = builder.config("spark.driver.host", host)
    try:
        session = builder.getOrCreate()
    except (Py4JError, PySparkException) as error:
        raise SettingError(
            f"Spark does not start with NIGHTSHIFT_SPARK_MASTER={settings.spark_master}; its own"
            " words are in the log before this",
            "start that master, or correct the setting; `make doctor` looks for Java",
        ) from error
    session.sparkContext.setLogLevel("ERROR")
    try:
        yield session
    finally:
        session.stop()
