"""What Spark's Python workers are forked from: a process that has the job's imports behind it."""

import pyarrow as pa
from pyspark.daemon import manager

from nightshift.features import job

if __name__ == "__main__":
    pa.array([job.RECENT_MONTHS])  # at the first array PyArrow imports pandas
    manager()
