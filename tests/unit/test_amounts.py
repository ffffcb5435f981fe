import json

import numpy as np
import pytest
import xgboost as xgb

from nightshift import amounts
from nightshift.amounts import Amounts, Exposure, Interval, signed_exp, signed_log
from nightshift.booster import double, intervals, predict
from nightshift.errors import NightshiftError

MATRIX = np.random.default_rng(0).normal(size=(300, 2)).astype(np.float32)
LABELS = np.exp(MATRIX[:, 0]).astype(np.float64)


def boosted(objective: str, labels: np.ndarray, **more: object) -> xgb.Booster:
    data = xgb.QuantileDMatrix(MATRIX, labels, feature_names=["a", "b"])
    return xgb.train({"objective": objective, "max_depth": 2, "nthread": 2, **more}, data, 5)


@pytest.fixture(scope="module")
def trees() -> bytes:
    logs = signed_log(LABELS)
    return bytes(boosted("reg:quantileerror", logs, quantile_alpha=[0.1, 0.9]).save_raw("ubj"))


@pytest.fixture
def booster() -> xgb.Booster:
    return boosted("reg:tweedie", LABELS)


def test_the_signed_logarithm_has_an_inverse_on_both_sides_of_zero() -> None:
    values = np.array([-1e6, -1.0, 0.0, 0.5, 1e6])
    np.testing.assert_allclose(signed_exp(signed_log(values)), values)
    assert signed_log(np.array([-9.0]))[0] == -np.log(10)


def test_a_booster_carries_factor_and_interval_through_its_bytes(
    booster: xgb.Booster, trees: bytes
) -> None:
    raw = predict(booster, MATRIX)
    assert intervals(booster, MATRIX) is None
    carried = Amounts(1.5, Interval(0.8, trees, below=0.25, above=0.5))
    amounts.attach(booster, carried)
    loaded = xgb.Booster()
    loaded.load_model(bytearray(booster.save_raw("ubj")))

    assert amounts.of(loaded) == carried
    np.testing.assert_array_equal(predict(loaded, MATRIX), raw * 1.5)
    missing = MATRIX.copy()
    missing[::3, 0] = np.nan
    np.testing.assert_array_equal(
        predict(loaded, missing, double(loaded)), predict(loaded, missing)
    )
    ends = intervals(loaded, MATRIX)
    assert ends is not None
    within = xgb.Booster()
    within.load_model(bytearray(trees))
    moved = signed_log(ends) - amounts.quantiles(within, MATRIX)
    np.testing.assert_allclose(moved, np.tile([-0.25, 0.5], (300, 1)), atol=1e-6)
    empty = intervals(loaded, MATRIX[:0])
    assert empty is not None
    assert empty.shape == (0, 2)


def test_a_multiple_is_of_the_exposure_and_of_the_floor_where_there_is_less() -> None:
    booster = boosted("reg:tweedie", LABELS)
    matrix = np.array([[3.0, 0.0], [-3.0, 0.0], [np.nan, 0.0]], dtype=np.float32)
    raw = predict(booster, matrix)
    exposure = Exposure(column=0, scale=2.0, floor=0.5)
    amounts.attach(booster, Amounts(10.0, exposure=exposure))
    loaded = xgb.Booster()
    loaded.load_model(bytearray(booster.save_raw("ubj")))

    assert amounts.of(loaded) == Amounts(10.0, exposure=exposure)
    expected = raw * 10.0 * [6.0, 0.5, 0.5]
    np.testing.assert_array_equal(predict(loaded, matrix), expected)
    np.testing.assert_array_equal(predict(loaded, matrix, double(loaded)), expected)


def test_ends_that_cross_change_places(booster: xgb.Booster, trees: bytes) -> None:
    amounts.attach(booster, Amounts(1.0, Interval(0.8, trees, below=-9.0, above=-9.0)))
    ends = intervals(booster, MATRIX)
    assert ends is not None
    assert (ends[:, 0] < ends[:, 1]).all()


def test_a_published_interval_holds_its_score(booster: xgb.Booster, trees: bytes) -> None:
    amounts.attach(booster, Amounts(1.0, Interval(0.8, trees, below=-0.2, above=-0.2)))
    ends, scores = intervals(booster, MATRIX), predict(booster, MATRIX)
    assert ends is not None
    low, high = ends.T
    assert (scores < low).any()  # the guard can fail
    assert (scores > high).any()
    held = intervals(booster, MATRIX, scores)
    assert held is not None
    np.testing.assert_array_equal(held[:, 0], np.minimum(low, scores))
    np.testing.assert_array_equal(held[:, 1], np.maximum(high, scores))


def test_no_amount_of_what_cannot_be_negative_is(trees: bytes) -> None:
    booster = boosted("reg:squarederror", MATRIX[:, 0])
    wide = Interval(0.8, trees, below=9.0, above=0.0)
    amounts.attach(booster, Amounts(2.0, wide))
    scores, ends = predict(booster, MATRIX), intervals(booster, MATRIX)
    assert ends is not None
    assert min(scores.min(), ends.min()) < 0
    carried = Amounts(2.0, wide, non_negative=True)
    amounts.attach(booster, carried)
    loaded = xgb.Booster()
    loaded.load_model(bytearray(booster.save_raw("ubj")))
    assert amounts.of(loaded) == carried
    np.testing.assert_array_equal(predict(loaded, MATRIX), np.maximum(scores, 0))
    np.testing.assert_array_equal(intervals(loaded, MATRIX), np.maximum(ends, 0))


@pytest.mark.parametrize(
    "told",
    [
        "no json",
        json.dumps({"factor": 1.0}),
        json.dumps({"factor": 0.0, "interval": None, "exposure": None}),
        json.dumps({"factor": float("nan"), "interval": None, "exposure": None}),
        json.dumps({"factor": 1.0, "interval": None, "exposure": {"column": 0}}),
        json.dumps({"factor": 1.0, "interval": {"share": 0.8, "trees": "?", "below": 0}}),
    ],
)
def test_what_is_no_factor_and_interval_is_refused(booster: xgb.Booster, told: str) -> None:
    booster.set_attr(**{amounts.ATTRIBUTE: told})
    with pytest.raises(NightshiftError, match="no factor and interval"):
        predict(booster, MATRIX)
