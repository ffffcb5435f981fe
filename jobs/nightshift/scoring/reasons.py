"""The features that move a score most, as JSON."""

import json
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def explain(
    values: npt.NDArray[np.float32],
    contributions: npt.NDArray[np.float64],
    feature_names: Sequence[str],
    count: int,
) -> list[str]:
    """For each row a JSON array of the ``count`` features with the largest contribution.

    Args:
        values: the feature vectors, (rows, features); NaN is null.
        contributions: SHAP values in the booster's own unit, (rows, features): without the bias.
        feature_names: (features,).
        count: reasons a row; at most all features. Equal contributions keep the features' order.

    Returns:
        ``[{"feature", "value", "contribution", "direction"}]``, strongest first; numbers to 6
        significant digits; direction is ``raises`` where the contribution is above 0, else
        ``lowers``.
    """
    rows, width = len(contributions), min(count, len(feature_names))
    left = np.abs(contributions)
    heads = [f'{{"feature": {json.dumps(name)}, "value": ' for name in feature_names]
    columns: list[list[str] | list[float]] = []
    # json.dumps a row would cost more than all else; the only text in here is the names'
    for _ in range(width):
        strongest = left.argmax(
            axis=1
        )  # the first of equal ones; sorting all takes six times as long
        at = (np.arange(rows), strongest)
        left[at] = -1
        chosen = contributions[at]
        columns += [
            [heads[feature] for feature in strongest.tolist()],
            values[at].tolist(),
            chosen.tolist(),
            np.where(chosen > 0, "raises", "lowers").tolist(),
        ]
    one = '%s%.6g, "contribution": %.6g, "direction": "%s"}'
    template = f"[{', '.join([one] * width)}]"
    texts = [template % row for row in zip(*columns, strict=True)] if width else ["[]"] * rows
    return [text.replace('"value": nan,', '"value": null,') for text in texts]
