"""A nonsense in a declaration fails where it is written, and says what is wrong."""

from datetime import date
from typing import Any

import pytest
from pydantic import ValidationError

from nightshift.feature_groups.order_lines import CUSTOMER_ORDERS, ORDER_LINES
from nightshift.spec import (
    AGGREGATIONS,
    Aggregate,
    AnyEvent,
    AtLeast,
    Band,
    BeatsBaseline,
    BeatsChampion,
    BoughtBefore,
    BoughtTogether,
    CalibrationWithin,
    Candidates,
    Count,
    Exposure,
    Factorisation,
    FeatureGroup,
    Heuristic,
    Interval,
    ListsFull,
    Measure,
    Model,
    Nights,
    NoEvent,
    PopularWithin,
    Ratio,
    Reported,
    Reproducible,
    Slice,
    SliceAtLeast,
    Source,
    Sum,
    Through,
    TopItems,
    Trend,
    UseCase,
    Window,
    season_last_year,
)
from nightshift.use_cases import CHURN, USE_CASES, find_use_case
from nightshift.use_cases.recommendations import RECOMMENDATIONS
from nightshift.use_cases.spend import SPEND

NET_AMOUNT = "customer_net_amount_sum_365d"


def group(**changes: Any) -> FeatureGroup:
    return FeatureGroup(**(dict(CUSTOMER_ORDERS) | changes))


def use_case(**changes: Any) -> UseCase:
    return UseCase(**(dict(CHURN) | changes))


def test_nights_are_counted_from_a_date() -> None:
    monthly = Nights(every_days=30, since=date(2025, 3, 1))
    due = [day for day in range(1, 32) if monthly.is_due(date(2025, 3, day))]
    assert due == [1, 31]
    assert monthly.is_due(date(2025, 1, 30))  # and before it as well
    assert monthly.next_after(date(2025, 3, 1)) == date(2025, 3, 31)
    assert monthly.next_after(date(2025, 3, 30)) == date(2025, 3, 31)
    assert Nights(every_days=7).is_due(date(2025, 12, 29))  # a Monday
    assert all(Nights().is_due(date(2025, 3, day)) for day in range(1, 32))
    declared = use_case(nights=monthly)
    assert declared.why_not_due(date(2025, 3, 2)) == (
        "not due on 2025-03-02: it is scored every 30 nights, next on 2025-03-31"
    )
    with pytest.raises(ValidationError, match="give it within_days=40 or more"):
        use_case(nights=Nights(every_days=40))


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


def test_lagged_windows_seasons_and_trends_are_named_by_the_same_rule() -> None:
    made = group(
        key=("customer_id", "product_id"),
        measures=(Measure(name="order_amount", column="line_amount"),),
        aggregates=(
            Aggregate(
                measure="order_amount",
                aggregations=("sum",),
                windows=(30, 90, Window(days=30, lag=7), season_last_year(30)),
            ),
        ),
        ratios=(),
        trends=(Trend(measure="order_amount", aggregation="sum", window=30, baseline=90),),
    )
    assert made.feature_names == (
        "customer_order_amount_sum_30d",
        "customer_order_amount_sum_90d",
        "customer_order_amount_sum_30d_lag7d",
        "customer_order_amount_sum_30d_lag335d",
        "customer_order_amount_sum_trend_30d_90d",
    )
    assert made.key_columns == ("customer_id", "product_id")


def test_every_column_says_what_it_is() -> None:
    made = group(
        measures=(
            Measure(name="order_amount", column="line_amount", description="amounts ordered"),
            Measure(name="last_country", column="country"),
            Measure(name="france", column="country", category="France"),
        ),
        aggregates=(
            Aggregate(measure="order_amount", aggregations=("std",), windows=(30,)),
            Aggregate(measure="last_country", aggregations=("last",)),
            Aggregate(measure="france", aggregations=("share",), windows=(Window(days=9, lag=2),)),
        ),
        ratios=(),
    )
    assert [(d.name, d.type, d.null, d.description) for d in made.catalogue] == [
        (
            "customer_order_amount_std_30d",
            "double",
            "null without events, null of fewer than two",
            "sample standard deviation (n − 1) of amounts ordered, in the 30 days before",
        ),
        (
            "customer_last_country_last_all",
            "string",
            "null without events",
            "last of last country; of several at one instant the last landed, then the greatest, "
            "over all time",
        ),
        (
            "customer_france_share_9d_lag2d",
            "double",
            "null without events",
            "share of 'France' in france, from 11 to 2 days before",
        ),
    ]
    assert made.conditions == ("(country) = 'France'",)
    assert made.measured == {"line_amount": "decimal", "country": "string"}


def test_every_aggregation_is_described() -> None:
    for name, rule in AGGREGATIONS.items():
        assert rule.types, name
        assert "{}" in rule.meaning, name


def test_a_leak_is_refused_and_can_be_planted_on_purpose() -> None:
    with pytest.raises(ValidationError, match="greater than or equal to 0"):
        Window(days=30, lag=-30)
    planted = Window.model_construct(days=30, lag=-30)
    made = group(
        measures=(Measure(name="x", column="quantity"),),
        aggregates=(Aggregate(measure="x", aggregations=("sum",), windows=(planted,)),),
        ratios=(),
    )
    assert [(f.window, f.lag) for f in made.features] == [(30, -30)]


def test_a_label_is_a_window_after_the_instant() -> None:
    label = AnyEvent(source=ORDER_LINES, key="customer_id", horizon_days=90)
    (feature,) = label.group.features
    assert (feature.aggregation, feature.window, feature.lag) == ("count", 90, -90)
    assert NoEvent(**label.model_dump(exclude={"kind"})).model_dump() != label.model_dump()
    total = Sum(source=ORDER_LINES, key="customer_id", column="line_amount", horizon_days=30)
    assert [f.aggregation for f in total.group.features] == ["sum"]


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
            "'country' is of type string",
        ),
        ({"aggregates": CUSTOMER_ORDERS.aggregates * 2}, "declared twice"),
        ({"ratios": (Ratio(name="r", numerator="a", denominator="b"),)}, "no feature 'a'"),
        ({"key": "shop_id"}, "key 'shop_id' is not a column"),
        ({"key": ("customer_id", "shop_id")}, "key 'shop_id' is not a column"),
        ({"measures": (Measure(name="x", column="country"),) * 2}, "two measures share a name"),
        (
            {"measures": (Measure(name="x", column="quantity", where="colour = 'red'"),)},
            "\"colour = 'red'\" reads 'colour', which is not a column",
        ),
        (
            {"measures": (Measure(name="x", expression="quantity * prise", type="decimal"),)},
            "reads 'prise', which is not a column",
        ),
        (
            {"measures": (Measure(name="x", column="quantity", known="invoiced_at"),)},
            "known 'invoiced_at' is not a date column",
        ),
        (
            {
                "measures": (Measure(name="x", column="country"),),
                "aggregates": (Aggregate(measure="x", aggregations=("share",)),),
            },
            "is of a measure with a category; give it one",
        ),
        (
            {
                "measures": (Measure(name="x", column="country", category="France"),),
                "aggregates": (Aggregate(measure="x", aggregations=("count",)),),
            },
            "declare another measure",
        ),
        (
            {
                "measures": (Measure(name="x", column="quantity"),),
                "aggregates": (Aggregate(measure="x", aggregations=("slope",), windows=(30, 1)),),
            },
            "slope of 'x' needs windows of at least 2 days",
        ),
        (
            {
                "measures": (Measure(name="x", column="quantity"),),
                "aggregates": (Aggregate(measure="x", aggregations=("rate",)),),
            },
            r"rate of 'x' needs one of \['boolean'\], 'quantity' is of type integer",
        ),
        (
            {"measures": (*CUSTOMER_ORDERS.measures, Measure(name="spare", column="quantity"))},
            "no aggregate uses the measures spare",
        ),
        (
            {"trends": (Trend(measure="order", aggregation="distinct", window=7, baseline=30),)},
            "no feature 'customer_order_distinct_7d'",
        ),
    ],
)
def test_nonsense_in_a_group_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        group(**changes)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"column": "country"}, "the key of products is .'product_id',."),
        ({"feature": "product_sale_sum_7d"}, "products has no number 'product_sale_sum_7d'"),
        ({"known": "landed_date"}, "takes neither `known` nor `category`"),
    ],
)
def test_nonsense_through_a_relation_is_refused(fields: dict[str, Any], message: str) -> None:
    products = group(
        name="products",
        entity="product",
        key="product_id",
        measures=(Measure(name="sale", column="quantity"),),
        aggregates=(Aggregate(measure="sale", aggregations=("sum",), windows=(30,)),),
        ratios=(),
    )
    declared = {
        "name": "sold", "column": "product_id", "group": products,
        "feature": "product_sale_sum_30d",
    }  # fmt: skip
    with pytest.raises(ValidationError, match=message):
        Through(**(declared | fields))
    with pytest.raises(ValidationError, match="through another entity has last, max, mean"):
        group(
            measures=(Through(**declared),),
            aggregates=(Aggregate(measure="sold", aggregations=("std",)),),
            ratios=(),
        )


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"column": "quantity", "expression": "quantity * 2", "type": "integer"},
        {"expression": "quantity * 2"},
        {"column": "quantity", "type": "integer"},
        {"column": "country", "category": "a\\b"},
    ],
)
def test_a_measure_has_one_value(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Measure(name="x", **fields)


def test_conditions_may_use_functions_literals_and_any_column() -> None:
    made = group(
        measures=(
            Measure(
                name="x",
                column="quantity",
                where="lower(country) in ('it''s colour') AND invoiced_at > date '2011-01-01'",
            ),
        ),
        aggregates=(Aggregate(measure="x", aggregations=("sum",)),),
        ratios=(),
    )
    assert len(made.conditions) == 1


@pytest.mark.parametrize(
    ("label", "fields", "message"),
    [
        (NoEvent, {"where": "colour = 1", "horizon_days": 3}, "reads 'colour'"),
        (Sum, {"column": "country", "horizon_days": 3}, "sum of 'event' needs a number"),
        (Reported, {"where": "is_product", "known": "country"}, "'country' is not a date column"),
        (Reported, {"where": "colour", "known": "landed_date"}, "reads 'colour'"),
    ],
)
def test_nonsense_in_a_label_is_refused(label: Any, fields: Any, message: str) -> None:
    of = {"reporting_delay_days": 7} if label is Reported else {"key": "customer_id"}
    with pytest.raises(ValidationError, match=message):
        label(source=ORDER_LINES, **fields, **of)


def test_a_source_needs_its_times() -> None:
    fields = dict(ORDER_LINES) | {"event_time": "sold_at"}
    with pytest.raises(ValidationError, match="'sold_at' is not among its columns"):
        Source(**fields)


def test_a_vector_of_text_is_refused() -> None:
    text = group(
        name="text",
        measures=(Measure(name="x", column="country"),),
        aggregates=(Aggregate(measure="x", aggregations=("last",)),),
        ratios=(),
    )
    with pytest.raises(ValidationError, match="customer_x_last_all is text"):
        use_case(feature_groups=(CUSTOMER_ORDERS, text))


@pytest.mark.parametrize("window", [0, -1, 100_000])
def test_a_window_must_have_a_length(window: int) -> None:
    with pytest.raises(ValidationError):
        Aggregate(measure="x", aggregations=("count",), windows=(window,))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heuristics": (Heuristic(name="h", feature="nothing"),)}, "no feature 'nothing'"),
        (
            {"gates": (BeatsBaseline(metric="auc", baseline="luck", by=0.1),)},
            r"'luck' is none of \['frequency', 'linear', 'recency'\]",
        ),
        ({"gates": (AtLeast(metric="auc", value=0.5),) * 2}, "the same gate twice"),
        (
            {"gates": (AtLeast(metric="mae", value=0.5),)},
            "a binary objective has no mae; it has auc,",
        ),
        (
            {"gates": (AtLeast(metric="log_loss", value=0.5),)},
            "log_loss is better when it is lower; use AtMost",
        ),
        (
            {"gates": (BeatsChampion(metric="selection_rate", tolerance=0.1),)},
            "selection_rate is better neither way",
        ),
        (
            {"gates": (AtLeast(metric="f1", value=0.5),), "working_point": None},
            "f1 asks for a working_point",
        ),
        (
            {"gates": (SliceAtLeast(slice="age", metric="auc", value=0.5),)},
            r"slice 'age' is none of \['tenure', 'value'\]",
        ),
        ({"working_point": TopItems(k=5)}, "top_items is none of a binary objective"),
        ({"slices": (Slice(name="age", feature="age", bands=2),)}, "slice 'age': no feature 'age'"),
        ({"slices": CHURN.slices[:1] * 2}, "two slices of one name"),
        ({"bands": (Band(name="high", from_score=0.5),)}, "bands must start at 0"),
        (
            {"bands": (Band(name="low", from_score=0), Band(name="high", from_score=100))},
            "bands of probabilities end at 1",
        ),
        ({"interval": Interval()}, "an interval is of amounts"),
        ({"model": Model(label_cap=0.99)}, "label_cap is for amounts"),
        (
            {"model": Model(exposure=Exposure(feature=NET_AMOUNT, scale=1, floor=1))},
            "exposure is for amounts",
        ),
        ({"key": "country"}, "the population is of .'customer_id',., the key 'country'"),
    ],
)
def test_nonsense_in_a_use_case_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        use_case(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "declare cuts, or a number of bands"),
        ({"cuts": (1,), "bands": 2}, "not both"),
        ({"cuts": (2, 1)}, "cuts must rise"),
    ],
)
def test_a_slice_without_groups_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Slice(name="tenure", feature="days", **changes)


RANK = "candidate_bought_before_rank"
CANDIDATES = Candidates(
    source=ORDER_LINES,
    key=("customer_id", "product_id"),
    active_days=365,
    sold_days=28,
    generators=(BoughtBefore(days=90, limit=5), PopularWithin(column="country", days=9, limit=2)),
)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"generators": ()}, "at least 1 item"),
        ({"generators": CANDIDATES.generators * 2}, "two generators of one name"),
        ({"keep": 0}, "greater than or equal to 1"),
        ({"key": ("customer_id", "quantity")}, "key 'quantity' is not a column of text"),
        ({"exclude": "is_postage"}, "'is_postage' reads 'is_postage', which is not a column"),
        (
            {"generators": (BoughtTogether(order="basket", days=9, limit=1),)},
            "order 'basket' is not a column of text of order_lines",
        ),
    ],
)
def test_candidates_that_cannot_be_proposed_are_refused(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        Candidates(**(dict(CANDIDATES) | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bands": CHURN.bands}, "from_rank must start at 1 and rise; got .0, 0, 0."),
        ({"bands": (Band(name="a", from_rank=2),)}, "from_rank must start at 1 and rise"),
        (
            {"label": Count(source=ORDER_LINES, key=CANDIDATES.key, horizon_days=9)},
            "candidates are relevant or not; got the label count",
        ),
        ({"working_point": TopItems(k=9, popularity="sold")}, "working_point: no feature 'sold'"),
        ({"working_point": TopItems(k=41)}, "40 candidates are kept, and lists show 41"),
        (
            {
                "heuristics": (
                    Heuristic(name="h", feature="candidate_bought_before_rank", ties="x"),
                )
            },
            "heuristic 'h': no feature 'x'",
        ),
    ],
)
def test_nonsense_in_a_ranking_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        UseCase(**(dict(RECOMMENDATIONS) | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bands": (Band(name="a", from_rank=1),)}, "from_rank is for rankings"),
        ({"audits": (ListsFull(at_least=0.5),)}, "lists_full is for rankings"),
        ({"factorisation": Factorisation(name="als")}, "a factorisation orders candidates"),
    ],
)
def test_what_is_of_rankings_is_refused_elsewhere(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        use_case(**changes)


def test_a_ranking_says_how_many_items_are_shown() -> None:
    pair = ("customer_id", "product_id")
    with pytest.raises(ValidationError, match="a ranking asks for a working_point: how many items"):
        use_case(
            population=CANDIDATES,
            label=AnyEvent(source=ORDER_LINES, key=pair, horizon_days=90),
            bands=(Band(name="first", from_rank=1),),
            audits=(),
            working_point=None,
            gates=(Reproducible(),),
            slices=(),
        )


def test_what_is_foretold_makes_the_objective() -> None:
    amount = Sum(source=ORDER_LINES, key="customer_id", column="line_amount", horizon_days=90)
    forecast = use_case(label=amount, gates=(CalibrationWithin(value=0.1),))
    assert (CHURN.objective, forecast.objective) == ("binary", "regression")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"interval": None},
            "interval_coverage is of the model's own interval: declare one, and use AtLeast",
        ),
        (
            {"gates": (BeatsBaseline(metric="interval_width", baseline="linear", by=0),)},
            "interval_width is of the model's own interval",
        ),
        (
            {"model": Model(exposure=Exposure(feature="age", scale=1, floor=1))},
            "exposure: no feature 'age'",
        ),
        (
            {"heuristics": (Heuristic(name="past_year", feature=NET_AMOUNT),)},
            "'past_year' tells an order only, so that it has no mae; give the heuristic its scale",
        ),
    ],
)
def test_nonsense_about_amounts_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        UseCase(**{name: getattr(SPEND, name) for name in UseCase.model_fields} | changes)


def test_an_amount_does_not_fall_with_what_foretells_it() -> None:
    with pytest.raises(ValidationError, match="leave out descending, or scale"):
        Heuristic(name="past_year", feature=NET_AMOUNT, descending=True, scale=0.25)


def test_an_unknown_use_case_is_refused_with_those_that_exist() -> None:
    with pytest.raises(Exception, match="there are: churn, fraud, recommendations, spend"):
        find_use_case("chrun")


def test_names_are_unique() -> None:
    assert len({u.name for u in USE_CASES}) == len(USE_CASES)
    assert ORDER_LINES.row_id == "order_line_id"
