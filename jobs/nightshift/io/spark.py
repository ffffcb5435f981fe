"""The Spark session: one a night, closed when the job is done."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from pyspark.sql import SparkSession

from nightshift.settings import Settings


@contextmanager
def spark_session(
    settings: Settings, name: str, daemon: str = "pyspark.daemon"
) -> Iterator[SparkSession]:
    """A session on ``settings.spark_master``, stopped at the end of the block.

    Args:
        daemon: the module whose process the Python workers are forked from.
    """
    os.environ["PYSPARK_PYTHON"] = sys.executable
    jdk = settings.state_dir / "jdk"
    if "JAVA_HOME" not in os.environ and jdk.is_dir():
        os.environ["JAVA_HOME"] = str(next(jdk.glob("*/bin/java"), jdk / "bin/java").parents[1])
    builder = (
        SparkSession.builder.master(settings.spark_master)
        .appName(name)
        .config("spark.driver.memory", settings.spark_driver_memory)
        .config("spark.ui.enabled", "false")
        .config("spark.python.daemon.module", daemon)
        .config("spark.ui.showConsoleProgress", "false")
        .config("spark.sql.session.timeZone", "UTC")
        .config("spark.sql.catalogImplementation", "in-memory")
        .config("spark.sql.warehouse.dir", str(settings.lake_dir / "spark-warehouse"))
        .config("spark.sql.execution.arrow.maxRecordsPerBatch", 65_536)
        .config("spark.sql.parquet.compression.codec", "zstd")
        .config("spark.sql.parquet.outputTimestampType", "TIMESTAMP_MICROS")
    )
    if settings.spark_master.startswith("local"):
        # executors on other machines must reach the driver; those of one machine need not
        builder = builder.config("spark.driver.bindAddress", "127.0.0.1").config(
            "spark.driver.host", "127.0.0.1"
        )
    session = builder.getOrCreate()
    session.sparkContext.setLogLevel("ERROR")
    try:
        yield session
    finally:
        session.stop()
