import json
from collections.abc import Sequence

import numpy as np

from nightshift.scoring import reasons

NAMES = ("recency", "frequency", "amount", "returns")


def explain(
    values: np.ndarray, contributions: np.ndarray, names: Sequence[str], count: int
) -> list[str]:
    return list(reasons.explain(values, contributions, names, count).to_pylist())


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

    (text,) = explain(values, contributions, ("a", "b"), 2)

    assert json.loads(text) == [
        {"feature": "a", "value": 1234570.0, "contribution": -1.23457, "direction": "lowers"},
        {"feature": "b", "value": 0.0000123457, "contribution": 1e-12, "direction": "raises"},
    ]


def test_equal_contributions_keep_the_order_of_the_features() -> None:
    values = np.zeros((1, 4), dtype=np.float32)
    contributions = np.array([[0.5, -0.5, 0.5, 0.5]])

    (text,) = explain(values, contributions, NAMES, 3)

    assert [reason["feature"] for reason in json.loads(text)] == [
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


def test_numbers_of_any_size_are_as_python_writes_them() -> None:
    random = np.random.default_rng(3)
    many = 10.0 ** random.uniform(-60, 60, 20_000) * random.choice([-1, 1], 20_000)
    edges = [0.0, -0.0, 1e-17, 1e22, 9.999995, 999999.5, 123456.5, 1e27, 1e28, 5e-324, 1.7e308]
    contributions = np.array([*many, *edges])[:, np.newaxis]

    rows = explain(np.zeros_like(contributions, dtype=np.float32), contributions, ["a"], 1)

    found = [json.loads(row)[0]["contribution"] for row in rows]
    assert found == [float(f"{number:.6g}") for number in contributions[:, 0]]


def test_no_reasons_are_an_empty_list() -> None:
    assert explain(np.zeros((2, 4), np.float32), np.ones((2, 4)), NAMES, 0) == ["[]", "[]"]
