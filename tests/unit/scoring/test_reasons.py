import json

import numpy as np

from nightshift.scoring.reasons import explain

NAMES = ("recency", "frequency", "amount", "returns")


def test_the_strongest_come_first_with_value_and_direction() -> None:
    values = np.array([[91, 2, 1234567.0, np.nan]], dtype=np.float32)
    contributions = np.array([[0.5, -0.75, 0.1234567891, -0.25]])

    assert explain(values, contributions, NAMES, 3) == [
        '[{"feature": "frequency", "value": 2, "contribution": -0.75, "direction": "lowers"}, '
        '{"feature": "recency", "value": 91, "contribution": 0.5, "direction": "raises"}, '
        '{"feature": "returns", "value": null, "contribution": -0.25, "direction": "lowers"}]'
    ]


def test_numbers_keep_six_significant_digits_and_are_json() -> None:
    values = np.array([[1234567.0, 0.000012345678]], dtype=np.float32)
    contributions = np.array([[-1.23456789, 1e-12]])

    (reasons,) = explain(values, contributions, ("a", "b"), 2)

    assert json.loads(reasons) == [
        {"feature": "a", "value": 1234570.0, "contribution": -1.23457, "direction": "lowers"},
        {"feature": "b", "value": 0.0000123457, "contribution": 1e-12, "direction": "raises"},
    ]


def test_equal_contributions_keep_the_order_of_the_features() -> None:
    values = np.zeros((1, 4), dtype=np.float32)
    contributions = np.array([[0.5, -0.5, 0.5, 0.5]])

    (reasons,) = explain(values, contributions, NAMES, 3)

    assert [reason["feature"] for reason in json.loads(reasons)] == [
        "recency",
        "frequency",
        "amount",
    ]


def test_each_row_has_its_own_reasons() -> None:
    values = np.array([[1, 2, 3, 4], [5, 6, 7, 8]], dtype=np.float32)
    contributions = np.array([[4.0, 3, 2, 1], [1, 2, 3, 4]])

    rows = [json.loads(text) for text in explain(values, contributions, NAMES, 1)]

    assert [(row[0]["feature"], row[0]["value"]) for row in rows] == [
        ("recency", 1),
        ("returns", 8),
    ]
