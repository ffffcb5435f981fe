"""From a booster's log-odds to probabilities that come true.

A calibration is a rising curve, and data: it lies in the model file itself, as an attribute of the
booster, so that whoever scores with the model scores calibrated. Fitted in
``nightshift.training.calibration``.
"""

import json
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from nightshift.errors import NightshiftError
from nightshift.spec import CalibrationMethod
from nightshift.xgboost_core import xgb

ATTRIBUTE = "nightshift.calibration"

Vector = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Calibration:
    """Log-odds ``after`` as a function of the booster's ``before``: straight between knots, and
    with ``slope`` beyond the first and the last.

    Platt's line is one knot and its slope; an isotonic curve has two knots a block and slope 1.

    Attributes:
        method: how it was fitted.
        before: rising; at least one.
        after: rising, as many.
        slope: above 0.
    """

    method: CalibrationMethod
    before: tuple[float, ...]
    after: tuple[float, ...]
    slope: float

    def probabilities(self, log_odds: npt.NDArray[np.floating]) -> Vector:
        """Calibrated probabilities, (rows,) float64; a higher log-odds never gives a lower one."""
        from scipy.special import expit  # 0.3 s, for models that are calibrated only

        x = np.asarray(log_odds, dtype=np.float64)
        beyond = np.minimum(x - self.before[0], 0) + np.maximum(x - self.before[-1], 0)
        found = np.interp(x, self.before, self.after) + self.slope * beyond
        return np.asarray(expit(found), dtype=np.float64)


def attach(booster: xgb.Booster, calibration: Calibration) -> None:
    """Make the calibration part of the booster, and of the bytes that it is saved as."""
    booster.set_attr(**{ATTRIBUTE: json.dumps(asdict(calibration))})


def of(booster: xgb.Booster) -> Calibration | None:
    """The calibration of a booster; None where it has none.

    Raises:
        NightshiftError: when what the booster carries is no calibration.
    """
    text = booster.attr(ATTRIBUTE)
    if text is None:
        return None
    try:
        found = json.loads(text)
        calibration = Calibration(
            found["method"], tuple(found["before"]), tuple(found["after"]), found["slope"]
        )
        before, after = np.array(calibration.before), np.array(calibration.after)
        knots = np.concatenate((before, after))
        is_whole = (
            len(before) == len(after) > 0
            and np.isfinite([*knots, calibration.slope]).all()
            and (np.diff(before) > 0).all()
            and (np.diff(after) >= 0).all()
            and calibration.slope > 0
        )
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(text) from error
    if not is_whole:
        raise _damaged(text)
    return calibration


def _damaged(text: str) -> NightshiftError:
    return NightshiftError(
        f"the model carries a calibration that is no rising curve: {text[:200]}",
        "train again with `nightshift train`, or restore MLflow's artifact folder",
    )
