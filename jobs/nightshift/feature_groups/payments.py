"""What card payments, and the reports of frauds among them, tell of cards and terminals."""

from nightshift.spec import Aggregate, FeatureGroup, Measure, Ratio, Source, Window

PAYMENTS = Source(
    name="payments",
    relation="marts.fct_payments",
    landed_days="payments",
    landed_from=("card_transactions", "chargebacks"),
    row_id="transaction_id",
    event_time="transaction_at",
    landed_date="landed_date",
    columns={
        "transaction_id": "integer",
        "transaction_at": "timestamp",
        "customer_id": "string",
        "terminal_id": "string",
        "amount": "decimal",
        "is_fraud": "boolean",
        "report_landed_date": "date",
        "landed_date": "date",
    },
)

REPORTING_DELAY_DAYS = 7
"""Days after a payment in which it is reported, if it is."""

PAYMENT = Measure(name="payment", column="transaction_at", description="payments")
FRAUD = Measure(
    name="fraud",
    column="transaction_at",
    where="is_fraud",
    known="report_landed_date",
    description="payments known to be frauds",
)


def _lagged(*days: int) -> tuple[Window, ...]:
    return tuple(Window(days=each, lag=REPORTING_DELAY_DAYS) for each in days)


CUSTOMER_PAYMENTS = FeatureGroup(
    name="customer_payments",
    source=PAYMENTS,
    entity="customer",
    key="customer_id",
    measures=(
        PAYMENT,
        Measure(name="amount", column="amount", description="amounts"),
        Measure(name="terminal", column="terminal_id", description="terminals"),
        FRAUD,
    ),
    aggregates=(
        Aggregate(measure="payment", aggregations=("count",), windows=(1, 7, 30)),
        Aggregate(measure="payment", aggregations=("days_since_last",)),
        Aggregate(measure="amount", aggregations=("mean",), windows=(1, 7, 30)),
        Aggregate(measure="amount", aggregations=("max",), windows=(1, 7, 30)),
        Aggregate(measure="amount", aggregations=("std", "sum"), windows=(30,)),
        Aggregate(measure="terminal", aggregations=("distinct",), windows=(30,)),
        Aggregate(measure="fraud", aggregations=("count",), windows=(14, 30)),
        Aggregate(measure="fraud", aggregations=("days_since_last",)),
    ),
    ratios=(
        Ratio(
            name="customer_payment_pace",
            numerator="customer_payment_count_1d",
            denominator="customer_payment_count_30d",
            description="payments of the last day over those of the last 30",
        ),
        Ratio(
            name="customer_amount_pace",
            numerator="customer_amount_mean_7d",
            denominator="customer_amount_mean_30d",
            description="mean amount of the last week over that of the last 30 days",
        ),
    ),
)
"""A customer is one card here."""

TERMINAL_PAYMENTS = FeatureGroup(
    name="terminal_payments",
    source=PAYMENTS,
    entity="terminal",
    key="terminal_id",
    measures=(
        PAYMENT,
        Measure(name="amount", column="amount", description="amounts"),
        FRAUD,
    ),
    aggregates=(
        Aggregate(measure="payment", aggregations=("count",), windows=(1, 7, 30)),
        Aggregate(measure="payment", aggregations=("count",), windows=_lagged(1, 7, 30)),
        Aggregate(measure="amount", aggregations=("mean",), windows=(7, 30)),
        Aggregate(measure="fraud", aggregations=("count",), windows=_lagged(1, 7, 30)),
        Aggregate(measure="fraud", aggregations=("count",), windows=(14, 28)),
        Aggregate(measure="fraud", aggregations=("days_since_last", "days_since_first")),
    ),
    ratios=tuple(
        Ratio(
            name=f"terminal_fraud_rate_{days}d_lag7d",
            numerator=f"terminal_fraud_count_{days}d_lag7d",
            denominator=f"terminal_payment_count_{days}d_lag7d",
            description=f"share of known frauds in the {days} days up to a week before",
        )
        for days in (1, 7, 30)
    ),
)
"""Known-fraud rates end a week before: what is newer has not been reported yet."""

CUSTOMER_AT_TERMINAL = FeatureGroup(
    name="customer_at_terminal",
    source=PAYMENTS,
    entity="customer_at_terminal",
    key=("customer_id", "terminal_id"),
    measures=(PAYMENT,),
    aggregates=(Aggregate(measure="payment", aggregations=("count",), windows=(7, 30)),),
)
