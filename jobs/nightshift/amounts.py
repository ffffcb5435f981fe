"""What a booster of amounts carries beside its trees: a factor, and the trees of an interval.

Both are data and lie in the model file itself, as an attribute of the booster, so that whoever
scores with the model scores the same. Fitted in ``nightshift.training.amounts``.
"""

import base64
import json
from dataclasses import asdict, dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from nightshift.errors import NightshiftError
from nightshift.xgboost_core import xgb

ATTRIBUTE = "nightshift.amounts"

Vector = npt.NDArray[np.float64]


def signed_log(values: Vector) -> Vector:
    """sign(x) · log(1 + |x|): amounts are heavy-tailed on both sides of 0."""
    return np.asarray(np.sign(values) * np.log1p(np.abs(values)))


def signed_exp(values: Vector) -> Vector:
    """The inverse of :func:`signed_log`."""
    return np.asarray(np.sign(values) * np.expm1(np.abs(values)))


@dataclass(frozen=True)
class Interval:
    """Two quantiles of the signed log of labels, or of their multiples of an exposure, moved apart.

    Attributes:
        share: of the labels that it holds.
        trees: a booster of the two quantiles, as UBJSON.
        below: what the lower one is moved down by; negative moves it up.
        above: what the upper one is moved up by.
    """

    share: float
    trees: bytes
    below: float
    above: float


@dataclass(frozen=True)
class Exposure:
    """``column`` of the matrix, times ``scale``, at least ``floor``: see ``spec.Exposure``."""

    column: int
    scale: float
    floor: float

    def of(self, matrix: npt.NDArray[np.float32]) -> Vector:
        """What each row's amount is a multiple of, (rows,) float64; ``floor`` where it is null."""
        values = matrix[:, self.column].astype(np.float64) * self.scale
        return np.fmax(values, self.floor)


@dataclass(frozen=True)
class Amounts:
    """What makes amounts of what the trees add up to.

    Attributes:
        factor: above 0: what the trees' amounts are times, so that their total comes true.
        interval: beside each amount; None for none.
        exposure: what the trees' multiples are of; None where they are amounts.
        non_negative: amounts, and ends of the interval, below 0 are 0.
    """

    factor: float
    interval: Interval | None = None
    exposure: Exposure | None = None
    non_negative: bool = False


def attach(booster: xgb.Booster, amounts: Amounts) -> None:
    """Make the factor and the interval part of the booster, and of the bytes it is saved as."""
    found = amounts.interval
    told = {
        "factor": amounts.factor,
        "interval": found
        and {
            "share": found.share,
            "trees": base64.b64encode(found.trees).decode(),
            "below": found.below,
            "above": found.above,
        },
        "exposure": amounts.exposure and asdict(amounts.exposure),
        # told where it says something: models of before have the bytes that they had
        **({"non_negative": True} if amounts.non_negative else {}),
    }
    booster.set_attr(**{ATTRIBUTE: json.dumps(told)})


def of(booster: xgb.Booster) -> Amounts | None:
    """What a booster carries; None where it has none.

    Raises:
        NightshiftError: when what it carries is damaged.
    """
    text = booster.attr(ATTRIBUTE)
    return None if text is None else _read(text)


@lru_cache(maxsize=8)
def _read(text: str) -> Amounts:
    try:
        told = json.loads(text)
        found = told["interval"]
        amounts = Amounts(
            told["factor"],
            found
            and Interval(
                found["share"],
                base64.b64decode(found["trees"], validate=True),
                found["below"],
                found["above"],
            ),
            told["exposure"] and Exposure(**told["exposure"]),
            told.get("non_negative", False),
        )
        margins = (amounts.interval.below, amounts.interval.above) if amounts.interval else ()
        is_whole = amounts.factor > 0 and bool(np.isfinite([amounts.factor, *margins]).all())
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(text) from error
    if not is_whole:
        raise _damaged(text)
    return amounts


def _damaged(text: str) -> NightshiftError:
    return NightshiftError(
        f"the model carries amounts that are no factor and interval: {text[:200]}",
        "train again with `nightshift train`, or restore MLflow's artifact folder",
    )


def quantiles(trees: xgb.Booster, matrix: npt.NDArray[np.float32]) -> Vector:
    """The two quantiles that an interval is made of, (rows, 2) float64, before they are moved."""
    return np.asarray(trees.inplace_predict(matrix), dtype=np.float64).reshape(len(matrix), 2)


def bounds(carried: Amounts, matrix: npt.NDArray[np.float32]) -> Vector | None:
    """Low and high of each row, (rows, 2) float64 in the label's unit; low is never above high.

    None where the model carries no interval.
    """
    interval = carried.interval
    if interval is None:
        return None
    if len(matrix) == 0:
        return np.empty((0, 2), dtype=np.float64)
    moves = np.array([-interval.below, interval.above])
    moved = quantiles(_booster(interval.trees), matrix) + moves
    ends = signed_exp(np.sort(moved, axis=1))
    if carried.non_negative:
        ends = np.maximum(ends, 0)
    return ends if carried.exposure is None else ends * carried.exposure.of(matrix)[:, None]


def holding(ends: Vector, scores: Vector) -> Vector:
    """The intervals, (rows, 2), each as wide as it takes to hold its own score, (rows,).

    Quantiles and amounts are of other trees, so that an amount may lie beyond them; a wider
    interval holds no fewer labels.
    """
    return np.stack([np.minimum(ends[:, 0], scores), np.maximum(ends[:, 1], scores)], axis=1)


@lru_cache(maxsize=8)
def _booster(trees: bytes) -> xgb.Booster:
    booster = xgb.Booster({"nthread": 1})
    booster.load_model(bytearray(trees))
    return booster
