"""The Spark session: one a night, closed when the job is done."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from py4j.protocol import Py4JError
from pyspark.errors import PySparkException
from pyspark.sql import SparkSession

import nightshift
from nightshift.errors import NightshiftError, SettingError
from nightshift.settings import Settings

ENDING_SECONDS = 10.0
PYSPARKS_DAEMON = "pyspark.daemon"
_PACKAGE_ROOT = Path(nightshift.__file__).parents[1]


@contextmanager
def spark_session(
    settings: Settings, name: str, daemon: str = PYSPARKS_DAEMON
) -> Iterator[SparkSession]:
    """A session on ``settings.spark_master``, stopped at the end of the block.

    Args:
        daemon: the module whose process the Python workers are forked from.

    Raises:
        SettingError: when Spark does not start, or the master does not answer.
        NightshiftError: when Spark's JVM ends in the block.
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
        .config("spark.driver.defaultJavaOptions", f'"-Djava.io.tmpdir={tempfile.gettempdir()}"')
        # also where the package is not installed, the daemon's module is found
        .config("spark.executorEnv.PYTHONPATH", str(_PACKAGE_ROOT))
        # Tasks free and ask for the same memory again and again; glibc would give it back each
        # time, and a quarter of their time would go into its pages.
        .config("spark.executorEnv.MALLOC_MMAP_THRESHOLD_", str(32 * 2**20))
        .config("spark.executorEnv.MALLOC_TRIM_THRESHOLD_", str(2**30))
        .config("spark.python.daemon.module", daemon)
        # A worker that waits for another task finds its socket closed at the session's end, and may
        # print a traceback of it. One of a daemon of ours is a fork that has its imports already.
        .config("spark.python.worker.reuse", str(daemon == PYSPARKS_DAEMON).lower())
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
    except (Py4JError, PySparkException, OSError) as error:
        raise SettingError(
            f"Spark does not start with NIGHTSHIFT_SPARK_MASTER={settings.spark_master}; its own"
            " words are in the log before this",
            "start that master, or correct the setting; `make doctor` looks for Java",
        ) from error
    session.sparkContext.setLogLevel("ERROR")
    try:
        yield session
    except (Py4JError, OSError, EOFError) as error:
        if not _has_ended(session, ENDING_SECONDS):
            raise
        raise NightshiftError(
            "Spark's JVM has ended while it worked: it was killed, or found no memory",
            "see the log before this; where memory is short, set NIGHTSHIFT_SPARK_DRIVER_MEMORY;"
            " then run again",
        ) from error
    finally:
        if not _has_ended(session):
            session.stop()


def _has_ended(session: SparkSession, patience: float = 0.0) -> bool:
    """Whether the JVM that this process has started is gone: its sockets close before it is."""
    process = getattr(session.sparkContext._gateway, "proc", None)
    if process is None:
        return False
    with suppress(subprocess.TimeoutExpired):
        process.wait(patience)
    return process.poll() is not None
