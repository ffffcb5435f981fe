"""What Spark's Python workers are forked from: a process that has the job's imports behind it."""

import gc

import pyarrow as pa
import pyspark.worker  # noqa: F401 - the workers import it, each anew
from pyspark.daemon import manager

from nightshift.features import job

if __name__ == "__main__":
    pa.array([job.RECENT_MONTHS])  # at the first array PyArrow imports pandas
    # PySpark collects garbage after each task: not among what is imported, which takes 70 ms.
    gc.freeze()
    manager()
