"""Small models of any use case, registered in a second, for tests of what follows a training."""

from pathlib import Path

import numpy as np
import xgboost as xgb

from nightshift import amounts
from nightshift.io import model_store, registry
from nightshift.settings import Settings
from nightshift.spec import UseCase

TOLD_BY = {
    "churn": "customer_purchase_days_since_last_all",
    "fraud": "payment_amount",
    "recommendations": "pair_order_distinct_all",
    "spend": "customer_purchase_amount_sum_90d",
}
"""Use case → the feature that its small model learns from."""
ABOVE = {"fraud": 180}
"""From which value of it a row is a 1, where that is not 90: frauds are few, as the audit asks."""


def small_booster(
    use_case: UseCase, told_by: str, rows: int = 500, trees: int = 20, above: float = 90
) -> xgb.Booster:
    """The higher the feature ``told_by``, the likelier 1, which is what is ``above``, or the larger
    the amount."""
    names = list(use_case.feature_names)
    matrix = np.random.default_rng(1).uniform(0, 200, (rows, len(names))).astype(np.float32)
    told = matrix[:, names.index(told_by)].astype(np.float64)
    common = {"max_depth": 2, "nthread": 1, "seed": 1}
    if use_case.objective == "binary":
        data = xgb.DMatrix(matrix, told > above, feature_names=names)
        return xgb.train({"objective": "binary:logistic", **common}, data, trees)
    data = xgb.DMatrix(matrix, told, feature_names=names)
    if use_case.objective == "ranking":
        data = xgb.DMatrix(matrix, told / 100, feature_names=names)
        return xgb.train({"objective": "reg:squarederror", **common}, data, trees)
    booster = xgb.train({"objective": "reg:tweedie", **common}, data, trees)
    ends = xgb.train(
        {"objective": "reg:quantileerror", "quantile_alpha": [0.1, 0.9], **common},
        xgb.DMatrix(matrix, amounts.signed_log(told), feature_names=names),
        trees,
    )
    interval = amounts.Interval(0.8, bytes(ends.save_raw("ubj")), 0.1, 0.1)
    amounts.attach(booster, amounts.Amounts(2.0, interval))
    return booster


def register(
    settings: Settings,
    use_case: UseCase,
    root: Path,
    told_by: str,
    trained: str = "2026-01-01",
    rows: int = 500,
    trees: int = 20,
    booster: xgb.Booster | None = None,
    above: float = 90,
) -> str:
    """Register a small model of the use case, or ``booster``, by way of the folder ``root``.
    Its version."""
    booster = booster or small_booster(use_case, told_by, rows, trees, above)
    model_store.write_model(
        root, bytes(booster.save_raw("ubj")), {"features": list(use_case.feature_names)}
    )
    mlflow = model_store.client(settings)
    run = mlflow.create_run(model_store.experiment_id(settings, use_case.name))
    mlflow.log_artifacts(run.info.run_id, str(root), model_store.MODEL)
    return model_store.register(settings, use_case.name, run.info.run_id, trained).version


def promote(settings: Settings, use_case: UseCase, root: Path, rows: int, trees: int) -> None:
    """Register a small model of a listed use case, and make it champion as the gates would."""
    name = use_case.name
    number = register(
        settings, use_case, root, TOLD_BY[name], rows=rows, trees=trees, above=ABOVE.get(name, 90)
    )
    made = model_store.registered(settings, name)[number]
    with registry.opened(settings, name) as held:
        held.decide("promotion", registry.GATES, made, (), "a small model's")
