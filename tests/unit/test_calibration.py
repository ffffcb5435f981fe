import json

import numpy as np
import pytest
import xgboost as xgb

from nightshift import calibration
from nightshift.booster import contributions, log_odds, predict
from nightshift.calibration import Calibration
from nightshift.errors import NightshiftError

PLATT = Calibration("platt", (0.0,), (0.5,), 2.0)
CURVE = Calibration("isotonic", (-1.0, 1.0), (-3.0, 0.0), 1.0)


@pytest.fixture
def booster() -> xgb.Booster:
    random = np.random.default_rng(0)
    matrix = random.normal(size=(300, 2)).astype(np.float32)
    data = xgb.QuantileDMatrix(matrix, matrix[:, 0] > 0, feature_names=["a", "b"])
    return xgb.train({"objective": "binary:logistic", "max_depth": 2, "nthread": 2}, data, 5)


def _log_odds(probabilities: np.ndarray) -> np.ndarray:
    return np.log(probabilities / (1 - probabilities))


def test_a_line_is_straight_and_a_curve_goes_on_beyond_its_knots() -> None:
    before = np.array([-2.0, -1.0, 0.0, 1.0, 3.0])
    np.testing.assert_allclose(_log_odds(PLATT.probabilities(before)), 2 * before + 0.5)
    np.testing.assert_allclose(_log_odds(CURVE.probabilities(before)), [-4, -3, -1.5, 0, 2])


def test_a_booster_carries_its_calibration_through_its_bytes(booster: xgb.Booster) -> None:
    matrix = np.random.default_rng(1).normal(size=(50, 2)).astype(np.float32)
    raw = predict(booster, matrix)
    reasons = contributions(booster, matrix)
    assert calibration.of(booster) is None
    calibration.attach(booster, CURVE)
    loaded = xgb.Booster()
    loaded.load_model(bytearray(booster.save_raw("ubj")))
    assert calibration.of(loaded) == CURVE
    scores = predict(loaded, matrix)
    np.testing.assert_array_equal(scores, CURVE.probabilities(log_odds(booster, matrix)))
    assert not np.allclose(scores, raw)
    assert (np.diff(scores[np.argsort(raw, kind="stable")]) >= 0).all()
    # What moved the trees is told as before.
    np.testing.assert_array_equal(contributions(loaded, matrix), reasons)


@pytest.mark.parametrize(
    "text",
    [
        "no json",
        '{"method": "platt"}',
        '{"method": "platt", "before": [], "after": [], "slope": 1.0}',
        '{"method": "platt", "before": [0.0], "after": [NaN], "slope": 1.0}',
        '{"method": "platt", "before": [0.0], "after": [0.0], "slope": -1.0}',
        '{"method": "isotonic", "before": [0.0, 1.0], "after": [1.0, 0.0], "slope": 1.0}',
    ],
)
def test_what_is_no_rising_curve_is_refused(booster: xgb.Booster, text: str) -> None:
    booster.set_attr(**{calibration.ATTRIBUTE: text})
    with pytest.raises(NightshiftError, match="no rising curve"):
        predict(booster, np.zeros((1, 2), dtype=np.float32))


def test_a_score_that_is_not_finite_is_refused() -> None:
    matrix = np.zeros((3, 1), dtype=np.float32)
    booster = xgb.train({"objective": "reg:squarederror"}, xgb.DMatrix(matrix, np.ones(3)), 2)
    model = json.loads(booster.save_raw("json"))
    for tree in model["learner"]["gradient_booster"]["model"]["trees"]:
        tree["split_conditions"] = [3e38] * len(tree["split_conditions"])
    booster.load_model(bytearray(json.dumps(model).encode()))
    with pytest.raises(NightshiftError, match="row 0 the score inf, and 2 more of 3 rows"):
        predict(booster, matrix)
