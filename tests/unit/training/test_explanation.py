from functools import partial

import numpy as np

from nightshift.booster import predict
from nightshift.training.dataset import Dataset
from nightshift.training.explanation import explain
from nightshift.training.fit import fit_trees, recipe
from nightshift.use_cases.churn import CHURN

NAMES = ("noise", "tells", "null")


def test_what_tells_the_label_comes_first_and_the_score_follows_it() -> None:
    random = np.random.default_rng(5)
    matrix = random.normal(size=(400, 3)).astype(np.float32)
    matrix[:, 2] = np.nan
    matrix[::10, 1] = np.nan
    labels = (np.nan_to_num(matrix[:, 1]) > 0).astype(np.int32)
    keys, days = np.arange(400).astype(str), np.full(400, "2011-01-01", dtype="datetime64[D]")
    rows = Dataset({}, NAMES, keys, days, labels, matrix, None)
    booster = fit_trees(rows, np.ones(400, dtype=np.bool_), recipe(CHURN, 1), 30)

    found = explain(booster, partial(predict, booster), NAMES, matrix, seed=1)

    assert next(iter(found.importance)) == "tells"
    assert found.importance["null"] == 0
    assert found.values.shape == found.contributions.shape == (400, 3)
    (first, *_) = found.partial
    assert first.feature == "tells"
    assert first.mean[-1] - first.mean[0] > 0.3
    assert (first.low <= first.mean).all()
    assert "null" not in {each.feature for each in found.partial}
