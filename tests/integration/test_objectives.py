"""Amounts and rankings through the whole of a training, on the real MLflow store."""

from datetime import date, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nightshift.feature_groups.order_lines import IS_PURCHASE, ORDER_LINES
from nightshift.io import model_store
from nightshift.io.lake import dataset_dir, replacing, write_manifest
from nightshift.settings import Settings
from nightshift.spec import (
    BeatsBaseline,
    CalibrationWithin,
    Count,
    Population,
    Sum,
    TopItems,
    UseCase,
)
from nightshift.training.run import train
from nightshift.use_cases.churn import CHURN

AS_OF = date(2011, 6, 12)
SPEND = UseCase.model_validate(
    CHURN.model_dump()
    | {
        "label": Sum(
            source=ORDER_LINES, key="customer_id", where=IS_PURCHASE, column="line_amount",
            horizon_days=90,
        ),
        "working_point": None,
        "gates": (
            BeatsBaseline(metric="spearman", baseline="recency", by=0.01),
            CalibrationWithin(value=0.5),
        ),
        "slices": (),
    }
)  # fmt: skip
PAIR = ("customer_id", "product_id")
NEXT_BUY = UseCase.model_validate(
    CHURN.model_dump()
    | {
        "population": Population(source=ORDER_LINES, key=PAIR, where=IS_PURCHASE, active_days=365),
        "label": Count(source=ORDER_LINES, key=PAIR, where=IS_PURCHASE, horizon_days=90),
        "working_point": TopItems(k=3),
        "gates": (BeatsBaseline(metric="ndcg_at_k", baseline="recency", by=0.01),),
        "slices": (),
    }
)


def write_training_set(settings: Settings, use_case: UseCase) -> None:
    """Labels that one feature tells, with noise; ten items a customer in a ranking."""
    random = np.random.default_rng(7)
    dates = [AS_OF - timedelta(days=90 + 14 * back) for back in reversed(range(20))]
    rows = len(dates) * 200
    values = random.gamma(1.0, 20.0, size=(rows, len(use_case.feature_names)))
    told = values[:, use_case.feature_names.index("customer_purchase_amount_sum_90d")]
    labels = told * random.gamma(2.0, 1.0, rows)
    columns = {
        "customer_id": pa.array(
            [
                f"{i % 200 // 10 if len(use_case.vector_key) > 1 else i % 200:05d}"
                for i in range(rows)
            ]
        ),
        "snapshot": pa.array([dates[i // 200] for i in range(rows)], pa.date32()),
        "label": pa.array(labels),
    }
    if len(use_case.vector_key) > 1:
        columns["product_id"] = pa.array([f"P{i % 10}" for i in range(rows)])
        columns["label"] = pa.array(np.floor(labels / 40).clip(0, 4))
    columns |= {n: pa.array(values[:, i]) for i, n in enumerate(use_case.feature_names)}
    folder = dataset_dir(settings.lake_dir, "training", use_case.name, AS_OF)
    with replacing(folder) as part:
        pq.write_table(pa.table(columns), part / "part-00000.parquet")
        write_manifest(
            part, {"use_case": use_case.name, "as_of": AS_OF, "rows": rows, "sha256": "d"}
        )


@pytest.mark.parametrize(
    ("use_case", "metric"), [(SPEND, "spearman"), (NEXT_BUY, "ndcg_at_k")], ids=["sum", "ranking"]
)
def test_other_objectives_are_trained_and_have_a_card(
    tracked_warehouse: Settings, use_case: UseCase, metric: str
) -> None:
    write_training_set(tracked_warehouse, use_case)
    done = train(tracked_warehouse, use_case, AS_OF)
    assert done.metrics[f"test_{metric}"] > done.metrics[f"test_{metric}_recency"] + 0.1
    card = model_store.fetch(tracked_warehouse, done.mlflow_run_id, "card.html").read_text()
    assert "It is better than recency alone by " in card
    assert "purchase_amount" in card
    assert ("Calibration, lift" in card) is False
