"""What the declared rules find among the test rows, beside the model."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from nightshift.metrics import Estimates, binary
from nightshift.metrics.bootstrap import RESAMPLES, draw, estimate
from nightshift.rules import hits
from nightshift.spec import UseCase
from nightshift.training.dataset import Dataset


def rule_figures(
    use_case: UseCase, dataset: Dataset, rows: npt.NDArray[Any], seed: int
) -> dict[str, Estimates]:
    """Of each rule ``selection_rate``, ``precision`` and ``recall`` of what it hits.

    Also of ``any rule``. Features are those of the training set, which holds them as float32.

    Args:
        rows: which of the dataset, by a mask or by positions; at least one.
        seed: of the resampling, which keeps an entity's rows together.
    """
    if not use_case.rules:
        return {}
    matrix = dataset.vectors(rows)
    table = pa.table(
        {
            name: pa.array(matrix[:, place], from_pandas=True)
            for place, name in enumerate(dataset.feature_names)
        }
    )
    found = hits(use_case.rules, table)
    named = {rule.name: found[:, place] for place, rule in enumerate(use_case.rules)}
    labels = dataset.labels[rows].astype(np.float64)
    statistics = {
        (name, metric): statistic
        for name, hit in {**named, "any rule": found.any(axis=1)}.items()
        for metric, statistic in binary.selection(labels, hit).items()
        if metric != "f1"
    }
    codes = pd.factorize(dataset.keys[rows])[0]
    values, draws = draw(statistics, codes, seed, RESAMPLES)
    figures: dict[str, Estimates] = {}
    for name, metric in statistics:
        figures.setdefault(name, {})[metric] = estimate(values[name, metric], draws[name, metric])
    return figures
