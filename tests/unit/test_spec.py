"""A nonsense in a declaration fails where it is written, and says what is wrong."""

from typing import Any

import pytest
from pydantic import ValidationError

from nightshift.feature_groups.order_lines import CUSTOMER_ORDERS, ORDER_LINES
from nightshift.spec import (
    Aggregate,
    AtLeast,
    Band,
    BeatsBaseline,
    FeatureGroup,
    Heuristic,
    Measure,
    Ratio,
    UseCase,
)
from nightshift.use_cases import CHURN, USE_CASES, find_use_case


def group(**changes: Any) -> FeatureGroup:
    return FeatureGroup(**(dict(CUSTOMER_ORDERS) | changes))


def use_case(**changes: Any) -> UseCase:
    return UseCase(**(dict(CHURN) | changes))


def test_features_are_named_by_one_rule() -> None:
    made = group(
        measures=(Measure(name="order_amount", column="line_amount"),),
        aggregates=(
            Aggregate(measure="order_amount", aggregations=("sum", "max"), windows=(30, None)),
        ),
        ratios=(),
    )
    assert made.feature_names == (
        "customer_order_amount_sum_30d",
        "customer_order_amount_sum_all",
        "customer_order_amount_max_30d",
        "customer_order_amount_max_all",
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"measures": (Measure(name="x", column="colour"),)}, "'colour', which is not a column"),
        (
            {"aggregates": (Aggregate(measure="nothing", aggregations=("count",)),)},
            "no measure 'nothing'",
        ),
        (
            {
                "measures": (Measure(name="x", column="country"),),
                "aggregates": (Aggregate(measure="x", aggregations=("sum",)),),
            },
            "'country' is a string",
        ),
        ({"aggregates": CUSTOMER_ORDERS.aggregates * 2}, "declared twice"),
        ({"ratios": (Ratio(name="r", numerator="a", denominator="b"),)}, "no feature 'a'"),
        ({"key": "shop_id"}, "key 'shop_id' is not a column"),
    ],
)
def test_nonsense_in_a_group_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        group(**changes)


@pytest.mark.parametrize("window", [0, -1, 100_000])
def test_a_window_must_have_a_length(window: int) -> None:
    with pytest.raises(ValidationError):
        Aggregate(measure="x", aggregations=("count",), windows=(window,))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heuristics": (Heuristic(name="h", feature="nothing"),)}, "no feature 'nothing'"),
        ({"gates": (BeatsBaseline(metric="auc", baseline="luck", by=0.1),)}, "against 'luck'"),
        ({"gates": (AtLeast(metric="auc", value=0.5),) * 2}, "the same gate twice"),
        ({"bands": (Band(name="high", from_score=0.5),)}, "bands must start at 0"),
        ({"key": "country"}, "must share one source and the key 'country'"),
    ],
)
def test_nonsense_in_a_use_case_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        use_case(**changes)


def test_an_unknown_use_case_is_refused_with_those_that_exist() -> None:
    with pytest.raises(Exception, match="there are: churn"):
        find_use_case("spend")


def test_names_are_unique() -> None:
    assert len({u.name for u in USE_CASES}) == len(USE_CASES)
    assert ORDER_LINES.row_id == "order_line_id"
