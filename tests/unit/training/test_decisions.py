import numpy as np
import pytest

from nightshift.training.dataset import Dataset
from nightshift.training.decisions import rule_figures
from nightshift.use_cases.churn import CHURN
from nightshift.use_cases.fraud import FRAUD

LABELS = np.array([1, 1, 0, 0, 1, 1], dtype=np.int32)


def of_payments(**features: list[float]) -> Dataset:
    matrix = np.full((len(LABELS), len(FRAUD.feature_names)), np.nan, dtype=np.float32)
    for name, values in features.items():
        matrix[:, FRAUD.feature_names.index(name)] = values
    keys = np.array(["a", "a", "b", "c", "c", "d"])
    days = np.full(len(LABELS), "2018-07-01", dtype="datetime64[D]")
    return Dataset({}, FRAUD.feature_names, keys, days, LABELS, matrix, None)


def test_each_rule_is_held_against_the_labels_and_nulls_hit_nothing() -> None:
    dataset = of_payments(
        terminal_fraud_count_14d=[2, 0, 3, 1, np.nan, 9],
        customer_fraud_count_14d=[0, 1, 0, 0, 0, 0],
    )
    rows = np.array([True] * 5 + [False])

    found = {
        name: {metric: each.value for metric, each in figures.items()}
        for name, figures in rule_figures(FRAUD, dataset, rows, 1).items()
    }

    assert found["compromised_terminal"] == pytest.approx(
        {"selection_rate": 2 / 5, "precision": 1 / 2, "recall": 1 / 3}
    )
    assert found["compromised_card"] == pytest.approx(
        {"selection_rate": 1 / 5, "precision": 1, "recall": 1 / 3}
    )
    assert found["any rule"] == pytest.approx(
        {"selection_rate": 3 / 5, "precision": 2 / 3, "recall": 2 / 3}
    )
    assert found["velocity"]["selection_rate"] == 0
    assert np.isnan(found["velocity"]["precision"])


def test_without_rules_there_is_nothing_to_measure() -> None:
    assert rule_figures(CHURN, of_payments(), np.ones(6, dtype=bool), 1) == {}
