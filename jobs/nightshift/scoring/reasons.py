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
        contributions: exact SHAP values in log-odds, (rows, features): without the bias.
        feature_names: (features,).
        count: reasons a row; at most all features. Equal contributions keep the features' order.

    Returns:
        ``[{"feature", "value", "contribution", "direction"}]``, strongest first; numbers to 6
        significant digits; direction is ``raises`` where the contribution is above 0, else
        ``lowers``.
    """
    strongest = np.argsort(-np.abs(contributions), axis=1, kind="stable")[:, :count]
    chosen_values = np.take_along_axis(values, strongest, axis=1)
    chosen = np.take_along_axis(contributions, strongest, axis=1)
    heads = [f'{{"feature": {json.dumps(name)}, "value": ' for name in feature_names]
    # json.dumps a row would cost more than the rest; the only text in here is the names'
    parts = [
        f"{heads[feature]}{f'{value:.6g}' if value == value else 'null'}"
        f', "contribution": {weight:.6g}, "direction": "{"raises" if weight > 0 else "lowers"}"}}'
        for feature, value, weight in zip(
            strongest.ravel().tolist(),
            chosen_values.ravel().tolist(),
            chosen.ravel().tolist(),
            strict=True,
        )
    ]
    width = strongest.shape[1]
    return [f"[{', '.join(parts[i : i + width])}]" for i in range(0, len(parts), width)]
