"""Use cases of three modes over payments and customers, with rows that make them difficult."""

from collections.abc import Sequence
from datetime import date, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa

from nightshift.features import extract
from nightshift.spec import (
    Aggregate,
    AnyEvent,
    Band,
    BoughtBefore,
    BoughtTogether,
    Candidates,
    EveryEvent,
    FeatureGroup,
    ListsFull,
    LoadsAndScores,
    Measure,
    NewItems,
    PopularLately,
    PopularWithin,
    Population,
    Ratio,
    Reported,
    RowsAsInPopulation,
    Source,
    Through,
    TopItems,
    UseCase,
    Window,
)
from nightshift.use_cases import CHURN

AS_OF = date(2012, 3, 1)

PAYMENTS = Source(
    name="payments",
    relation="marts.payments",
    landed_from=("payments", "chargebacks"),
    row_id="payment_id",
    event_time="paid_at",
    landed_date="landed_date",
    columns={
        "payment_id": "string", "customer_id": "string", "terminal_id": "string",
        "amount": "decimal", "paid_at": "timestamp", "landed_date": "date",
        "is_fraud": "boolean", "reported_on": "date", "session_id": "string", "region": "string",
    },
)  # fmt: skip
CUSTOMERS = Source(
    name="customers",
    relation="marts.customers_history",
    row_id="version_id",
    event_time="valid_from",
    landed_date="landed_date",
    columns={
        "customer_id": "string", "valid_from": "timestamp", "landed_date": "date",
        "is_member": "boolean", "plan": "string",
    },
)  # fmt: skip

SPENDING = FeatureGroup(
    name="spending",
    source=PAYMENTS,
    entity="customer",
    key="customer_id",
    measures=(Measure(name="payment", column="paid_at"), Measure(name="amount", column="amount")),
    aggregates=(
        Aggregate(measure="payment", aggregations=("count", "days_since_last"), windows=(7, 30)),
        Aggregate(measure="amount", aggregations=("mean",), windows=(7, 30)),
    ),
)
ATTRIBUTES = FeatureGroup(
    name="attributes",
    source=CUSTOMERS,
    entity="customer",
    key="customer_id",
    measures=(
        Measure(name="member", column="is_member"),
        Measure(name="on_plan_a", expression="plan = 'a'", type="boolean"),
    ),
    aggregates=(
        Aggregate(measure="member", aggregations=("last",)),
        Aggregate(measure="on_plan_a", aggregations=("last",)),
    ),
)
RISK = FeatureGroup(
    name="risk",
    source=PAYMENTS,
    entity="terminal",
    key="terminal_id",
    measures=(
        Measure(name="payment", column="paid_at"),
        Measure(name="fraud", column="paid_at", where="is_fraud", known="reported_on"),
    ),
    aggregates=(
        Aggregate(measure="payment", aggregations=("count",), windows=(Window(days=30, lag=7), 1)),
        Aggregate(measure="fraud", aggregations=("count",), windows=(Window(days=30, lag=7),)),
    ),
    ratios=(
        Ratio(
            name="terminal_fraud_rate",
            numerator="terminal_fraud_count_30d_lag7d",
            denominator="terminal_payment_count_30d_lag7d",
        ),
    ),
)
HABIT = FeatureGroup(
    name="habit",
    source=PAYMENTS,
    entity="pair",
    key=("customer_id", "terminal_id"),
    measures=(Measure(name="payment", column="paid_at"), Measure(name="amount", column="amount")),
    aggregates=(
        Aggregate(measure="payment", aggregations=("count",), windows=(30, None)),
        Aggregate(measure="amount", aggregations=("sum",)),
    ),
)
TOUCHED = FeatureGroup(
    name="touched",
    source=PAYMENTS,
    entity="customer",
    key="customer_id",
    measures=(
        Through(
            name="terminal_payments",
            column="terminal_id",
            group=RISK,
            feature="terminal_payment_count_30d_lag7d",
        ),
    ),
    aggregates=(
        Aggregate(measure="terminal_payments", aggregations=("mean", "max"), windows=(30,)),
        Aggregate(measure="terminal_payments", aggregations=("last",), windows=(7, None)),
    ),
)


def use_case(**changes: Any) -> UseCase:
    of_features = {
        "heuristics": (), "slices": (), "gates": (LoadsAndScores(),), "working_point": None,
    }  # fmt: skip
    return UseCase(**(dict(CHURN) | of_features | changes))


FRAUD = use_case(
    name="fraud",
    population=EveryEvent(
        source=PAYMENTS,
        where="amount > 0",
        own=(
            Measure(name="payment_amount", column="amount"),
            Measure(name="payment_is_early", expression="hour(paid_at) < 7", type="boolean"),
        ),
    ),
    label=Reported(source=PAYMENTS, where="is_fraud", known="reported_on", reporting_delay_days=7),
    feature_groups=(SPENDING, RISK, HABIT, ATTRIBUTES),
    ratios=(
        Ratio(
            name="amount_to_habit",
            numerator="payment_amount",
            denominator="customer_amount_mean_30d",
        ),
    ),
)
PAIRS = use_case(
    name="pairs",
    population=Candidates(
        source=PAYMENTS,
        key=("customer_id", "terminal_id"),
        where="amount > 0",
        exclude="amount >= 89",
        active_days=60,
        sold_days=60,
        generators=(
            BoughtBefore(days=60, limit=4),
            BoughtTogether(order="session_id", days=40, limit=2, neighbours=3, shrinkage=1),
            PopularLately(days=20, limit=2),
            PopularWithin(column="region", days=30, limit=2, weight=0.5),
            NewItems(days=30, limit=1),
        ),
        keep=3,
    ),
    label=AnyEvent(source=PAYMENTS, key=("customer_id", "terminal_id"), horizon_days=5),
    feature_groups=(SPENDING, RISK, HABIT, ATTRIBUTES, TOUCHED),
    working_point=TopItems(k=3),
    bands=(Band(name="first", from_rank=1),),
    audits=(RowsAsInPopulation(), ListsFull(at_least=0.5)),
)
SPENDERS = use_case(
    name="spenders",
    population=Population(source=PAYMENTS, key="customer_id", active_days=60),
    label=AnyEvent(source=CUSTOMERS, key="customer_id", horizon_days=5),
    feature_groups=(TOUCHED, ATTRIBUTES, SPENDING),
)


def payments(rows: int = 700) -> pa.Table:
    """Ties, midnights, nulls, late rows and late reports, of twenty customers at six terminals."""
    random = np.random.default_rng(5)
    found: list[dict[str, Any]] = []
    for number in range(rows):
        days = int(random.integers(-8, 70)) if random.random() < 0.7 else 1
        day = AS_OF - timedelta(days=days)
        seconds = int(random.choice([0, 3_600, 43_200, 86_399]))
        at = datetime.combine(day, datetime.min.time()) + timedelta(seconds=seconds)
        late = int(random.choice([0, 0, 0, 0, 3]))
        is_fraud = bool(random.random() < 0.2)
        reported = day + timedelta(days=int(random.integers(0, 15))) if is_fraud else None
        found.append(
            {
                "payment_id": f"p{number}",
                "customer_id": None if random.random() < 0.02 else f"c{random.integers(20)}",
                "terminal_id": None if random.random() < 0.05 else f"t{random.integers(6)}",
                "amount": None if random.random() < 0.1 else float(random.integers(-1, 90)),
                "paid_at": at, "landed_date": day + timedelta(days=late),
                "is_fraud": is_fraud, "reported_on": reported,
                "session_id": None if number % 17 == 0 else f"s{days}-{number % 4}",
                "region": ("north", "south", None)[number % 3],
            }
        )  # fmt: skip
    return typed(found, PAYMENTS)


def customers() -> pa.Table:
    """Versions of all customers but a few, some of which began in the last days."""
    random = np.random.default_rng(6)
    found: list[dict[str, Any]] = []
    for number in range(60):
        day = AS_OF - timedelta(days=int(random.integers(-4, 300)))
        at = datetime.combine(day, datetime.min.time()) + timedelta(hours=int(random.integers(24)))
        found.append(
            {
                "customer_id": f"c{number % 17}", "valid_from": at, "landed_date": day,
                "is_member": bool(random.random() < 0.5), "plan": random.choice(["a", "b"]),
            }
        )  # fmt: skip
    return typed(found, CUSTOMERS)


def typed(found: Sequence[dict[str, Any]], source: Source) -> pa.Table:
    columns = {
        field.name: pa.array([row[field.name] for row in found]) for field in extract.schema(source)
    }
    wanted = extract.schema(source)
    plain = {
        name: values.cast(pa.string()).dictionary_encode()
        if pa.types.is_dictionary(wanted.field(name).type)
        else values.cast(wanted.field(name).type)
        for name, values in columns.items()
    }
    return pa.table(plain)


TABLES = {"payments": payments(), "customers": customers()}
