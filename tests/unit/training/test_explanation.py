from functools import partial

import numpy as np

from nightshift.booster import predict
from nightshift.training.explanation import explain
from nightshift.training.fit import fit_trees

NAMES = ("noise", "tells", "null")


def test_what_tells_the_label_comes_first_and_the_score_follows_it() -> None:
    random = np.random.default_rng(5)
    matrix = random.normal(size=(400, 3)).astype(np.float32)
    matrix[:, 2] = np.nan
    matrix[::10, 1] = np.nan
    labels = (np.nan_to_num(matrix[:, 1]) > 0).astype(np.int32)
    booster = fit_trees(matrix, labels, NAMES, 30, 1)

    found = explain(booster, partial(predict, booster), NAMES, matrix, seed=1)

    assert next(iter(found.importance)) == "tells"
    assert found.importance["null"] == 0
    assert found.values.shape == found.contributions.shape == (400, 3)
    (first, *_) = found.partial
    assert first.feature == "tells"
    assert first.mean[-1] - first.mean[0] > 0.3
    assert (first.low <= first.mean).all()
    assert "null" not in {each.feature for each in found.partial}
