from datetime import date

import numpy as np

from nightshift.metrics import Groups, measure
from nightshift.spec import Slice, TopShare
from nightshift.training.evaluation import OverTime
from nightshift.training.report import markdown
from nightshift.training.split import Split
from nightshift.use_cases.churn import CHURN


def test_a_protected_slice_shows_how_its_groups_fare() -> None:
    feature = CHURN.feature_names[0]
    use_case = CHURN.model_copy(
        update={"slices": (Slice(name="region", feature=feature, bands=2, protected=True),)}
    )
    labels, score = np.array([1, 1, 0, 0, 1, 1, 0, 0]), np.array([9, 8, 7, 1, 6, 2, 1, 0]) / 10
    groups = Groups(("a", "b", "c"), np.array([0] * 4 + [1] * 4), 2)
    test = measure(
        labels, np.arange(8), {"model": score}, ["model"], 1, 20,
        working_point=TopShare(share=0.5), slices={"region": groups},
    )  # fmt: skip
    parts = Split((date(2011, 1, 1),), (date(2011, 4, 1),), (date(2011, 7, 1),))
    text = markdown(
        use_case, date(2011, 10, 1), parts, 3, test, test, OverTime(((parts, test),), None), {}
    )
    assert "| selection_rate | b 0.250 | a 0.750 | 0.500 |" in text
    assert "| recall | b 0.500 | a 1.000 | 0.500 |" in text
    assert "- c (0 rows): 0 entities, too few to measure: 2 are asked" in text
    assert "| selected | 3 | 1 |" in text
    assert "Rolling origins" not in text
    assert "Staleness" not in text
