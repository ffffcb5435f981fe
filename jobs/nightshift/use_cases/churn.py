"""Churn: which of the last year's customers will buy nothing in the next 90 days."""

from nightshift.feature_groups.order_lines import CUSTOMER_ORDERS, IS_PURCHASE, ORDER_LINES
from nightshift.spec import (
    AtLeast,
    AtMost,
    Band,
    BandShare,
    BeatsBaseline,
    BeatsChampion,
    CalibrationWithin,
    GainShareAtMost,
    Heuristic,
    KeyKnown,
    LoadsAndScores,
    Model,
    NoEvent,
    Population,
    ReasonsPresent,
    Reproducible,
    RowsAsInPopulation,
    ScoreInRange,
    Slice,
    SliceAtLeast,
    Snapshots,
    StableSincePrevious,
    StableSinceTraining,
    Threshold,
    UseCase,
)

CHURN = UseCase(
    name="churn",
    title="Customer churn",
    description=(
        "The probability that a customer with a purchase in the last 365 days buys nothing in "
        "the 90 days from as_of."
    ),
    owner="data-team",
    entity="customer",
    key="customer_id",
    population=Population(
        source=ORDER_LINES, key="customer_id", where=IS_PURCHASE, active_days=365
    ),
    label=NoEvent(source=ORDER_LINES, key="customer_id", where=IS_PURCHASE, horizon_days=90),
    feature_groups=(CUSTOMER_ORDERS,),
    snapshots=Snapshots(
        stride_days=14,
        count=26,
        min_history_days=90,
        test=2,
        validation=2,
        origins=3,
        staleness_weeks=(1, 2, 4, 8, 13),
    ),
    # Chosen on snapshots of 2010 of real order lines, as were the features.
    model=Model(parameters={"max_depth": 3, "colsample_bytree": 0.3}),
    heuristics=(
        Heuristic(name="recency", feature="customer_purchase_days_since_last_all"),
        Heuristic(name="frequency", feature="customer_order_distinct_365d", descending=True),
    ),
    score_column="churn_probability",
    bands=(
        Band(name="low", from_score=0.0),
        Band(name="medium", from_score=0.4),
        Band(name="high", from_score=0.7),
    ),
    working_point=Threshold(score=0.7),
    slices=(
        Slice(name="tenure", feature="customer_purchase_days_since_first_all", cuts=(90, 180, 365)),
        Slice(name="value", feature="customer_purchase_amount_sum_365d", bands=4),
    ),
    linear_margin=0.005,
    gates=(
        AtLeast(metric="auc", value=0.65),
        AtMost(metric="auc", value=0.97),
        BeatsBaseline(metric="auc", baseline="recency", by=0.01),
        BeatsChampion(metric="auc", tolerance=0.02),
        SliceAtLeast(slice="tenure", metric="auc", value=0.55),
        CalibrationWithin(value=0.1),
        GainShareAtMost(share=0.6),
        Reproducible(),
        LoadsAndScores(),
    ),
    audits=(
        RowsAsInPopulation(),
        KeyKnown(),
        ScoreInRange(),
        ReasonsPresent(),
        BandShare(band="high", at_most=0.9),
        StableSincePrevious(),
        StableSinceTraining(),
    ),
)
