from datetime import date
from pathlib import Path

import numpy as np
import pytest

from nightshift import factors

FIRST, SECOND = date(2011, 8, 12), date(2011, 8, 13)


def test_scores_are_products_of_a_snapshots_factors(tmp_path: Path) -> None:
    two = np.array([[1, 2], [3, 4]], np.float32)
    factors.write(tmp_path, "customer_id", {FIRST: (["a", "b"], two), SECOND: (["a"], two[1:])})
    factors.write(tmp_path, "product_id", {FIRST: (["x"], two[:1]), SECOND: (["x"], two[:1])})
    named = {
        "customer_id": np.array(["a", "b", "c", "a", "a"], object),
        "product_id": np.array(["x", "x", "x", "y", "x"], object),
    }
    days = np.array([FIRST] * 4 + [SECOND], "datetime64[D]")

    found = factors.scores(tmp_path, named, days)

    # whom or what nobody knows has no score but 0
    assert found is not None and found.tolist() == [5.0, 11.0, 0.0, 0.0, 11.0]
    later = factors.scores(tmp_path, named, days + np.timedelta64(1, "D"))
    assert later is not None and later[:4].tolist() == pytest.approx([11.0, 0.0, 0.0, 0.0])
    assert np.isnan(later[4]), "of a snapshot without factors"


def test_a_dataset_without_factors_has_no_scores(tmp_path: Path) -> None:
    assert factors.scores(tmp_path, {"customer_id": np.array(["a"])}, None) is None
