"""The training DAG, for Airflow, of a use case whose promotions a person has to approve.

It is churn in 30 days, of which some months of landings are history enough.
"""

import runpy

from nightshift import use_cases
from nightshift.settings import PROJECT_ROOT
from nightshift.spec import AtLeast, BeatsChampion, LoadsAndScores, Snapshots, Studies

ASKED = use_cases.CHURN.model_copy(
    update={
        "name": "asked",
        "title": "Churn that a person is asked about",
        "label": use_cases.CHURN.label.model_copy(update={"horizon_days": 30}),
        "snapshots": Snapshots(stride_days=14, count=12, min_history_days=30),
        "slices": (),
        "studies": Studies(learning_curve=(), ablation=False),
        "gates": (
            AtLeast(metric="auc", value=0.55),
            BeatsChampion(metric="auc", by=0.01, tolerance=0.05),
            LoadsAndScores(),
        ),
        "approval": "manual",
    }
)

use_cases.USE_CASES = (ASKED,)
train__asked = runpy.run_path(str(PROJECT_ROOT / "dags" / "train.py"))["train__asked"]
