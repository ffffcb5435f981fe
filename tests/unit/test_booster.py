import json

import numpy as np
import pyarrow as pa
import pytest
import xgboost as xgb

from nightshift.booster import contributions, double, predict, to_matrix
from nightshift.errors import NightshiftError


@pytest.fixture(scope="module")
def booster() -> xgb.Booster:
    random = np.random.default_rng(0)
    matrix = random.normal(size=(300, 2)).astype(np.float32)
    data = xgb.QuantileDMatrix(matrix, matrix[:, 0] > 0, feature_names=["a", "b"])
    return xgb.train({"objective": "binary:logistic", "max_depth": 2, "nthread": 2}, data, 5)


def test_the_matrix_follows_the_names_and_nulls_are_nan() -> None:
    table = pa.table({"key": ["x", "y"], "b": [1.5, None], "a": pa.array([7, 8], pa.int64())})
    matrix = to_matrix(table, ["a", "b"])
    assert matrix.dtype == np.float32
    np.testing.assert_array_equal(matrix, [[7.0, 1.5], [8.0, np.nan]])


def test_a_missing_column_is_named() -> None:
    with pytest.raises(NightshiftError, match="lacks the feature columns b, c"):
        to_matrix(pa.table({"a": [1.0]}), ["a", "b", "c"])


def test_contributions_add_up_to_the_log_odds(booster: xgb.Booster) -> None:
    matrix = np.array([[0.5, -1.0], [-2.0, np.nan]], dtype=np.float32)
    probability = predict(booster, matrix)
    assert probability.dtype == np.float64
    found = contributions(booster, matrix)
    assert found.shape == (2, 3)
    np.testing.assert_allclose(
        found.sum(axis=1), np.log(probability / (1 - probability)), atol=1e-5
    )


def test_no_rows_give_no_scores(booster: xgb.Booster) -> None:
    nothing = np.empty((0, 2), dtype=np.float32)
    assert predict(booster, nothing).shape == (0,)
    assert contributions(booster, nothing).shape == (0, 3)


def test_a_row_scores_the_same_alone_and_among_others(booster: xgb.Booster) -> None:
    matrix = np.random.default_rng(1).normal(size=(1000, 2)).astype(np.float32)
    together = predict(booster, matrix)
    assert predict(booster, matrix[500:501])[0] == together[500]


def test_a_matrix_of_another_width_is_refused(booster: xgb.Booster) -> None:
    with pytest.raises(NightshiftError, match="the model reads 2 features, the matrix has 3"):
        predict(booster, np.zeros((1, 3), dtype=np.float32))


@pytest.mark.parametrize("objective", ["binary:logistic", "reg:tweedie"])
def test_a_doubled_booster_gives_the_same_bits(objective: str) -> None:
    random = np.random.default_rng(2)
    rows = 10_000  # more than are doubled at a time
    matrix = random.normal(size=(rows, 6)).astype(np.float32)
    labels = (np.nan_to_num(matrix[:, 0]) + random.normal(size=rows) > 0).astype(np.float64)
    matrix[random.random(matrix.shape) < 0.3] = np.nan
    data = xgb.DMatrix(matrix, labels)
    booster = xgb.train({"objective": objective, "max_depth": 5, "nthread": 1}, data, 20)
    doubled = double(booster)
    assert doubled is not None
    directions = np.concatenate([tree["default_left"] for tree in _trees(booster)], dtype=np.int64)
    assert 0 < directions.mean() < 1, "missing values go both ways"
    np.testing.assert_array_equal(predict(booster, matrix), predict(booster, matrix, doubled))
    whole = np.nan_to_num(matrix)
    np.testing.assert_array_equal(predict(booster, whole), predict(booster, whole, doubled))


def test_trees_that_split_on_categories_are_not_doubled() -> None:
    codes = np.arange(400).reshape(-1, 1).astype(np.float32) % 5
    data = xgb.DMatrix(
        codes, np.isin(codes[:, 0], (1, 4)), feature_types=["c"], enable_categorical=True
    )
    booster = xgb.train({"objective": "binary:logistic", "max_cat_to_onehot": 1}, data, 2)
    assert double(booster) is None


def _trees(booster: xgb.Booster) -> list[dict[str, list[int]]]:
    model = json.loads(booster.save_raw("json"))
    return list(model["learner"]["gradient_booster"]["model"]["trees"])
