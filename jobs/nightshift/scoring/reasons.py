"""The features that move a score most, as JSON."""

import json
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from nightshift.columns import of_integers, of_numbers, of_texts, texts_at

NONE = of_texts(["[]"])
"""Of a row without reasons."""

_NULL, _END, _NOTHING = of_texts(["null", "}]", ""])
_DIGITS = 6
# those that a float64 holds exactly
_POWERS = np.array([float(10**exponent) for exponent in range(23)])


def explain(
    values: npt.NDArray[np.float32],
    contributions: npt.NDArray[np.float64],
    feature_names: Sequence[str],
    count: int,
) -> pa.Array:
    """For each row a JSON array of the ``count`` features with the largest contribution.

    Columns are put together, not rows: that lets go of the interpreter, so threads work at once.

    Args:
        values: the feature vectors, (rows, features); NaN is null.
        contributions: SHAP values in the booster's own unit, (rows, features): without the bias.
        feature_names: (features,).
        count: reasons a row; at most all features. Equal contributions keep the features' order.

    Returns:
        (rows,) of ``[{"feature", "value", "contribution", "direction"}]``, strongest first; numbers
        to 6 significant digits; direction is ``raises`` where the contribution is above 0, else
        ``lowers``.
    """
    rows, width = len(contributions), min(count, len(feature_names))
    if width == 0:
        return NONE.take(of_integers(np.zeros(rows, dtype=np.intp)))
    left = np.abs(contributions)
    heads = [f'{{"feature": {json.dumps(name)}, "value": ' for name in feature_names]
    first, other, contribution, direction = of_texts(
        ["[", "}, ", ', "contribution": ', ', "direction": ']
    )
    pieces: list[pa.Array | pa.Scalar] = []
    for _ in range(width):
        # the first of equal ones; sorting all takes six times as long
        strongest = left.argmax(axis=1)
        at = (np.arange(rows), strongest)
        left[at] = -1
        chosen = contributions[at]
        pieces += [
            other if pieces else first,
            texts_at(strongest, heads),
            _texts(values[at]),
            contribution,
            _texts(chosen),
            direction,
            texts_at((chosen > 0).astype(np.intp), ['"lowers"', '"raises"']),
        ]
    return pc.binary_join_element_wise(*pieces, _END, _NOTHING)


def _texts(values: npt.NDArray[np.floating]) -> pa.Array:
    """As JSON, with 6 significant digits; ``null`` of NaN.

    The nearest float64 to a whole number of six digits over or times a power of ten that is exact
    is written as just these digits. Numbers beyond those powers, below 1e-17 and above 1e27, are
    rare enough to be written one by one.
    """
    numbers = np.asarray(values, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        order = np.floor(np.log10(np.abs(numbers)))
    is_number = np.isfinite(order)  # neither zero nor NaN
    places = np.where(is_number, _DIGITS - 1 - order, 0).astype(np.intp)
    up = _POWERS[np.clip(places, 0, len(_POWERS) - 1)]
    down = _POWERS[np.clip(-places, 0, len(_POWERS) - 1)]
    texts = of_numbers(np.rint(numbers * up / down) * down / up).cast(pa.string())
    beyond = np.flatnonzero(np.abs(places) >= len(_POWERS))
    if len(beyond):
        written = texts.to_pylist()
        for row in beyond:
            written[row] = f"{numbers[row]:.{_DIGITS}g}"
        texts = of_texts(written)
    return pc.if_else(pc.is_nan(of_numbers(numbers)), _NULL, texts)
