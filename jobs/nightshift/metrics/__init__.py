"""How good scores are: the figures of each objective, with intervals, also slice by slice.

Pure, and shared by training, gates and monitoring.
"""

from nightshift.metrics.bootstrap import Estimate, Estimates
from nightshift.metrics.measure import (
    Confusion,
    Groups,
    Measured,
    SliceFigures,
    measure,
    read_measured,
    settled_rows,
)

__all__ = [
    "Confusion",
    "Estimate",
    "Estimates",
    "Groups",
    "Measured",
    "SliceFigures",
    "measure",
    "read_measured",
    "settled_rows",
]
