"""Spend: what a customer's purchases, net of cancellations, add up to in the next 90 days."""

from nightshift.feature_groups.order_lines import (
    CUSTOMER_ORDERS,
    CUSTOMER_SPEND,
    IS_PURCHASE,
    IS_SOLD,
    ORDER_LINES,
)
from nightshift.spec import (
    AtLeast,
    AtMost,
    Band,
    BandShare,
    BeatsBaseline,
    BeatsChampion,
    CalibrationWithin,
    Exposure,
    Heuristic,
    Interval,
    KeyKnown,
    LoadsAndScores,
    Model,
    Population,
    ReasonsPresent,
    Reproducible,
    RowsAsInPopulation,
    ScoreInRange,
    Slice,
    Snapshots,
    StableSincePrevious,
    StableSinceTraining,
    Studies,
    Sum,
    UseCase,
)

SPEND = UseCase(
    name="spend",
    title="Customer spend",
    description=(
        "What a customer with a purchase in the last 365 days is expected to spend in the 90 days "
        "from as_of, net of cancellations."
    ),
    owner="data-team",
    entity="customer",
    key="customer_id",
    population=Population(
        source=ORDER_LINES, key="customer_id", where=IS_PURCHASE, active_days=365
    ),
    label=Sum(
        source=ORDER_LINES, key="customer_id", where=IS_SOLD, column="line_amount", horizon_days=90
    ),
    feature_groups=(CUSTOMER_ORDERS, CUSTOMER_SPEND),
    snapshots=Snapshots(
        stride_days=14, count=26, min_history_days=90, test=2, validation=2, origins=2
    ),
    # Chosen on snapshots before 2011-03-14 of real order lines: Tweedie's loss had a mean absolute
    # error a tenth higher, and without an exposure the largest customers were foretold too low.
    model=Model(
        loss="absolute_error",
        exposure=Exposure(feature="customer_net_amount_sum_365d", scale=90 / 365, floor=20),
    ),
    heuristics=(
        Heuristic(name="past_year", feature="customer_net_amount_sum_365d", scale=90 / 365),
        Heuristic(name="last_season", feature="customer_net_amount_sum_90d_lag275d", scale=1),
    ),
    score_column="expected_spend",
    unit="pounds",
    interval=Interval(share=0.8),
    bands=(
        Band(name="low", from_score=0),
        Band(name="medium", from_score=100),
        Band(name="high", from_score=500),
    ),
    slices=(Slice(name="value", feature="customer_net_amount_sum_365d", bands=4),),
    studies=Studies(learning_curve=(), ablation=False),
    gates=(
        BeatsBaseline(metric="mae", baseline="past_year", by=0),
        BeatsBaseline(metric="mae", baseline="last_season", by=0),
        BeatsChampion(metric="mae", tolerance=10),
        CalibrationWithin(value=0.2),
        AtLeast(metric="interval_coverage", value=0.75),
        AtMost(metric="interval_coverage", value=0.95),
        AtMost(metric="spearman", value=0.97),
        Reproducible(),
        LoadsAndScores(),
    ),
    audits=(
        RowsAsInPopulation(),
        KeyKnown(),
        ScoreInRange(low=-1_000_000, high=10_000_000),
        ReasonsPresent(),
        BandShare(band="high", at_most=0.5),
        StableSincePrevious(),
        StableSinceTraining(),
    ),
)
