"""The standard workload of ``make bench-features``: rows, 73 features, and the same in plain SQL.

Two years of order lines of a shop, as the extract keeps them: Parquet, one folder a landed month,
in the order in which they landed. Half a year of card payments, with reports of fraud that land
seven days later. All of it is drawn from one seed, so that every run is of the same rows.
"""

import hashlib
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from nightshift.feature_groups.order_lines import CUSTOMER_ORDERS, ORDER_LINES
from nightshift.spec import (
    Aggregate,
    AtLeast,
    EveryEvent,
    Feature,
    FeatureGroup,
    Measure,
    Ratio,
    Reported,
    Source,
    UseCase,
    Window,
)
from nightshift.use_cases import CHURN

START, AS_OF = date(2024, 1, 1), date(2026, 1, 1)
SNAPSHOTS = (*(date(2025, month, 1) for month in range(2, 13)), AS_OF)
"""Twelve firsts of the month."""
CARDS_START, CARDS_DAYS = date(2025, 7, 1), 184
REPORT_DELAY_DAYS = 7

PRODUCTS, SPECIALS = 4_000, ("POST", "M", "D", "TEST001")
COUNTRIES = ("United Kingdom", "Germany", "France", "EIRE")
ANONYMOUS_SHARE, CANCELLED_SHARE, LATE_SHARE, TIED_SHARE = 0.02, 0.02, 0.01, 0.005

_EVERY = (30, 60, 90, 180, 365, None)
STANDARD_ORDERS = FeatureGroup(
    name="standard_orders",
    source=ORDER_LINES,
    entity="customer",
    key="customer_id",
    measures=tuple(each for each in CUSTOMER_ORDERS.measures if each.name != "purchase_month"),
    aggregates=(
        Aggregate(measure="purchase", aggregations=("days_since_last", "days_since_first")),
        Aggregate(measure="purchase", aggregations=("count",), windows=_EVERY),
        Aggregate(measure="order", aggregations=("distinct",), windows=_EVERY),
        Aggregate(measure="purchase_day", aggregations=("distinct",), windows=_EVERY),
        Aggregate(measure="product", aggregations=("distinct",), windows=_EVERY),
        Aggregate(measure="purchase_amount", aggregations=("sum", "mean", "max"), windows=_EVERY),
        Aggregate(measure="purchase_amount", aggregations=("min",), windows=(90, 365, None)),
        Aggregate(measure="purchase_quantity", aggregations=("sum",), windows=_EVERY),
        Aggregate(measure="purchase_price", aggregations=("mean", "max"), windows=(90, 365)),
        Aggregate(measure="return", aggregations=("days_since_last",)),
        Aggregate(measure="return", aggregations=("count",), windows=(90, 365)),
        Aggregate(measure="return_order", aggregations=("distinct",), windows=(90, 365)),
        Aggregate(measure="return_amount", aggregations=("sum",), windows=(90, 365, None)),
    ),
    ratios=(
        *CUSTOMER_ORDERS.ratios,
        Ratio(
            name="customer_return_order_share_365d",
            numerator="customer_return_order_distinct_365d",
            denominator="customer_order_distinct_365d",
        ),
        Ratio(
            name="customer_purchase_quantity_trend_90d_365d",
            numerator="customer_purchase_quantity_sum_90d",
            denominator="customer_purchase_quantity_sum_365d",
        ),
    ),
)

_MEASURES = {measure.name: measure for measure in STANDARD_ORDERS.measures}

STANDARD = CHURN.model_copy(update={"name": "standard", "feature_groups": (STANDARD_ORDERS,)})
"""Customers with a purchase in the last 365 days, 73 features each."""

EVENT_FEATURES = tuple(
    f"{name}_{days}d"
    for name in (
        "customer_payment_count",
        "customer_amount_mean",
        "terminal_payment_count",
        "terminal_amount_mean",
        "terminal_fraud_rate",
    )
    for days in (1, 7, 30)
)
"""What is known of a payment's customer and terminal at its instant."""

PAYMENTS = Source(
    name="payments",
    relation="marts.payments",
    row_id="transaction_id",
    event_time="transaction_at",
    landed_date="landed_date",
    columns={
        "transaction_id": "integer", "transaction_at": "timestamp", "customer_id": "string",
        "terminal_id": "string", "amount": "decimal", "landed_date": "date",
        "reported_date": "date",
    },
)  # fmt: skip
_PAID = (
    Measure(name="payment", column="transaction_at"),
    Measure(name="amount", column="amount"),
)
_OF_DAYS = (
    Aggregate(measure="payment", aggregations=("count",), windows=(1, 7, 30)),
    Aggregate(measure="amount", aggregations=("mean",), windows=(1, 7, 30)),
)
_OF_KNOWN_DAYS = tuple(Window(days=days, lag=REPORT_DELAY_DAYS) for days in (1, 7, 30))
CARD_FRAUD = UseCase(
    **dict(CHURN)
    | {
        "name": "card_fraud",
        "population": EveryEvent(source=PAYMENTS),
        "label": Reported(
            source=PAYMENTS, where="reported_date is not null", known="reported_date",
            reporting_delay_days=REPORT_DELAY_DAYS,
        ),
        "feature_groups": (
            FeatureGroup(
                name="customer_payments", source=PAYMENTS, entity="customer", key="customer_id",
                measures=_PAID, aggregates=_OF_DAYS,
            ),
            FeatureGroup(
                name="terminal_payments",
                source=PAYMENTS,
                entity="terminal",
                key="terminal_id",
                measures=(
                    *_PAID, Measure(name="fraud", column="transaction_at", known="reported_date"),
                ),
                aggregates=(
                    *_OF_DAYS,
                    Aggregate(measure="payment", aggregations=("count",), windows=_OF_KNOWN_DAYS),
                    Aggregate(measure="fraud", aggregations=("count",), windows=_OF_KNOWN_DAYS),
                ),
                ratios=tuple(
                    Ratio(
                        name=f"terminal_fraud_rate_{days}d",
                        numerator=f"terminal_fraud_count_{days}d_lag{REPORT_DELAY_DAYS}d",
                        denominator=f"terminal_payment_count_{days}d_lag{REPORT_DELAY_DAYS}d",
                    )
                    for days in (1, 7, 30)
                ),
            ),
        ),
        "heuristics": (),
        "slices": (),
        "working_point": None,
        "gates": (AtLeast(metric="auc", value=0.5),),
    }
)  # fmt: skip
"""The fifteen features, and the six counts that the rates of fraud are made of."""
CARD_NIGHTS = tuple(CARDS_START + timedelta(days=day + 1) for day in range(CARDS_DAYS))
"""The nights that score all payments."""

EXACT = {f.name for f in STANDARD_ORDERS.features if f.aggregation in ("count", "distinct")}
EXACT |= {name for name in EVENT_FEATURES if "_count_" in name}
"""Columns that are whole numbers."""


def write_order_lines(folder: Path, customers: int, lines: int, seed: int = 4) -> int:
    """Write ``lines`` order lines from ``START`` to the day before ``AS_OF``.

    Files: ``folder/month=YYYY-MM-01/part-00000.parquet`` by landed month.

    Returns:
        How many happened on the last day.
    """
    rng = np.random.default_rng(seed)
    days = (AS_OF - START).days
    clock = np.cumsum(_trade(days))

    # An order: of whom (a few buy often), when while they are a customer, of how many lines.
    orders = max(1, lines // 7)
    often = np.cumsum(rng.lognormal(0, 1.1, customers))
    customer = np.searchsorted(often, rng.random(orders) * often[-1], side="right")
    customer[:customers] = np.arange(customers)[:orders]
    came = rng.uniform(-0.9, 0.98, customers).clip(0, None)
    left = np.minimum(1, came + 0.02 + rng.exponential(0.25, customers))
    instant = came[customer] + rng.random(orders) * (left - came)[customer]
    day = np.searchsorted(clock, instant * clock[-1], side="right").clip(0, days - 1)
    minute = rng.normal(13 * 60, 130, orders).astype(np.int64).clip(7 * 60, 20 * 60)
    late = np.where(rng.random(orders) < LATE_SHARE, rng.integers(1, 11, orders), 0)
    landed = np.minimum(day + late, days - 1)
    cancelled = rng.random(orders) < CANCELLED_SHARE
    anonymous = rng.random(orders) < ANONYMOUS_SHARE
    size = rng.lognormal(1.4, 0.9, orders)
    size = np.maximum(1, np.rint(size * (lines / size.sum()))).astype(np.int64)
    size[rng.integers(0, orders)] += max(0, lines - size.sum())

    order = np.repeat(np.arange(orders), size)
    order = np.sort(rng.permutation(order)[:lines])
    order = order[np.lexsort((minute[order], day[order], landed[order]))]
    buyer, rows = customer[order], len(order)
    breadth, taste = rng.integers(20, 400, customers), rng.integers(0, PRODUCTS, customers)
    product = (taste[buyer] + (rng.random(rows) ** 2 * breadth[buyer]).astype(np.int64)) % PRODUCTS
    special = PRODUCTS + rng.integers(0, len(SPECIALS), rows)
    product = np.where(rng.random(rows) < 0.007, special, product)
    bulk = rng.lognormal(0.4, 0.9, customers)
    quantity = np.maximum(1, np.rint(bulk[buyer] * rng.integers(1, 13, rows))).astype(np.int64)
    quantity = np.where(cancelled[order], -quantity, quantity)
    price = np.rint(2_900 + 97_000 * rng.random(PRODUCTS + len(SPECIALS)) ** 3).astype(np.int64)
    abroad = np.searchsorted([0.9, 0.94, 0.97], rng.random(customers))

    codes = [f"{20_000 + i}{'' if i % 3 else 'A'}" for i in range(PRODUCTS)] + list(SPECIALS)
    midnight = np.datetime64(START, "us").astype(np.int64)
    table = pa.table(
        {
            "customer_id": pa.DictionaryArray.from_arrays(
                pa.array(buyer, mask=anonymous[order]), _pseudonyms("customer", customers)
            ).cast(pa.string()),
            "invoice_id": pc.binary_join_element_wise(
                pa.array(["", "C"]).take(pa.array(cancelled[order].astype(np.int64))),
                pa.array(500_000 + order).cast(pa.string()),
                "",
            ),
            "product_id": pa.array(codes).take(pa.array(product)),
            "country": pa.array(COUNTRIES).take(pa.array(abroad[buyer])),
            "is_cancellation": pa.array(cancelled[order]),
            "is_product": pa.array(product < PRODUCTS),
            "quantity": pa.array(quantity),
            "unit_price": _decimals(price[product]),
            "line_amount": _decimals(quantity * price[product]),
            "invoiced_at": pa.array(
                midnight + (day[order] * 1440 + minute[order]) * 60_000_000, pa.timestamp("us")
            ),
            "invoiced_date": _dates(START, day[order]),
            "landed_date": _dates(START, landed[order]),
        }
    )
    _write_by_month(table, folder)
    return int(np.count_nonzero(day[order] == days - 1))


def write_cards(folder: Path, payments: int, seed: int = 5) -> None:
    """Write payments and reports of fraud: ``folder/{card_transactions,chargebacks}/month=…``.

    Times are whole seconds, and some are of the same customer, terminal and second as another.
    """
    rng = np.random.default_rng(seed)
    customers, terminals = max(1, payments // 240), max(1, payments // 120)
    second = np.sort(rng.integers(0, CARDS_DAYS * 86_400, payments))
    customer, terminal = rng.integers(0, customers, payments), rng.integers(0, terminals, payments)
    tied = 1 + np.flatnonzero(rng.random(payments - 1) < TIED_SHARE)
    for column in (second, customer, terminal):
        column[tied] = column[tied - 1]
    day = second // 86_400
    # a terminal in twenty is in the hands of thieves for four weeks of the half year
    stolen_from = np.where(
        rng.random(terminals) < 0.05, rng.integers(0, CARDS_DAYS, terminals), 10_000
    )
    since = day - stolen_from[terminal]
    fraud = (rng.random(payments) < 0.002) | ((since >= 0) & (since < 28))
    amount = np.rint(rng.lognormal(3.5, 0.9, payments) * 100).astype(np.int64) * 100
    midnight = np.datetime64(CARDS_START, "us").astype(np.int64)
    at = midnight + second * 1_000_000
    ids = np.arange(payments)
    _write_by_month(
        pa.table(
            {
                "transaction_id": pa.array(ids),
                "transaction_at": pa.array(at, pa.timestamp("us")),
                "customer_id": _pseudonyms("holder", customers).take(pa.array(customer)),
                "terminal_id": pa.array(terminal).cast(pa.string()),
                "amount": _decimals(amount),
                "landed_date": _dates(CARDS_START, day),
            }
        ),
        folder / "card_transactions",
    )
    reported = day[fraud] + REPORT_DELAY_DAYS
    _write_by_month(
        pa.table(
            {
                "transaction_id": pa.array(ids[fraud]),
                "reported_date": _dates(CARDS_START, reported),
                "landed_date": _dates(CARDS_START, reported),
            }
        ),
        folder / "chargebacks",
    )


def plain_sql(files: Path, as_of: date) -> str:
    """One night in one ``group by``: one row a customer of the population.

    Counts are integers, all else doubles; ``customer_id`` and ``snapshot`` come first.
    """
    aggregates = ",\n  ".join(
        f"{_aggregate(f, as_of)} as {f.name}" for f in STANDARD_ORDERS.features
    )
    return f"""
with visible as (
  {_visible(files, as_of)}
), aggregated as (
  select customer_id, date '{as_of}' as snapshot,
  {aggregates}
  from visible
  group by customer_id
  having {_member(as_of)}
)
select *, {_ratios()} from aggregated
"""


def tuned_sql(files: Path, as_of: date) -> str:
    """The rows of ``plain_sql``, as someone writes it who knows what a distinct count costs.

    The newest occurrence of each (customer, item) is found once; a window's distinct count is the
    number of those that lie in it. ``count(distinct …)`` holds a set for each window and customer.
    """
    windows: dict[str, list[Feature]] = {}
    for feature in STANDARD_ORDERS.features:
        if feature.aggregation == "distinct":
            windows.setdefault(feature.measure, []).append(feature)
    counted = ""
    for name, features in windows.items():
        measure = _MEASURES[name]
        counts = ", ".join(
            f"count(*) filter (where {_within('newest', f.window, as_of)}) as {f.name}"
            for f in features
        )
        counted += f"""
), {name}_pairs as (
  select customer_id, {measure.column}, max(invoiced_at) as newest from visible
  where {measure.where} and {measure.column} is not null group by all
), {name}_counts as (
  select customer_id, {counts} from {name}_pairs group by customer_id"""
    others = ",\n  ".join(
        f"{_aggregate(f, as_of)} as {f.name}"
        for f in STANDARD_ORDERS.features
        if f.aggregation != "distinct"
    )
    names = ", ".join(
        f"coalesce({f.name}, 0) as {f.name}" if f.aggregation == "distinct" else f.name
        for f in STANDARD_ORDERS.features
    )
    joins = "".join(f" left join {name}_counts using (customer_id)" for name in windows)
    return f"""
with visible as (
  {_visible(files, as_of)}{counted}
), others as (
  select customer_id,
  {others}
  from visible
  group by customer_id
  having {_member(as_of)}
), aggregated as (
  select customer_id, date '{as_of}' as snapshot, {names}
  from others{joins}
)
select *, {_ratios()} from aggregated
"""


def _visible(files: Path, as_of: date) -> str:
    return (
        f"select * from read_parquet('{files}/month=*/*.parquet', hive_partitioning = false) "
        f"where customer_id is not null and invoiced_at < timestamp '{as_of}' "
        f"and landed_date < date '{as_of}'"
    )


def _within(time: str, window: int | None, as_of: date) -> str:
    return f"{time} >= timestamp '{as_of}' - interval {window} day" if window else "true"


def _member(as_of: date) -> str:
    population = STANDARD.population
    active = _within("invoiced_at", population.active_days, as_of)
    return f"count(*) filter (where {population.where} and {active}) > 0"


def _aggregate(feature: Feature, as_of: date) -> str:
    measure, night = _MEASURES[feature.measure], f"timestamp '{as_of}'"
    column = measure.column
    within = _within("invoiced_at", feature.window, as_of)
    among = f"filter (where {measure.where} and {within})"
    return {
        "count": f"count({column}) {among}",
        "distinct": f"count(distinct {column}) {among}",
        "sum": f"coalesce(sum({column}) {among}, 0)::double",
        "mean": f"avg({column}) {among}",
        "min": f"(min({column}) {among})::double",
        "max": f"(max({column}) {among})::double",
        "days_since_last": f"epoch_us({night} - max({column}) {among}) / 86400e6",
        "days_since_first": f"epoch_us({night} - min({column}) {among}) / 86400e6",
    }[feature.aggregation]


def _ratios() -> str:
    return ", ".join(
        f"{r.numerator} / nullif({r.denominator}, 0) as {r.name}" for r in STANDARD_ORDERS.ratios
    )


def sample_sql(files: Path, one_in: int) -> str:
    """What is visible at ``AS_OF`` of one customer in ``one_in``, as a frame has it."""
    return f"""
with visible as (
  {_visible(files, AS_OF)}
)
select row_number() over () as line, customer_id, invoice_id, product_id, is_cancellation,
  is_product, quantity, unit_price::double as unit_price, line_amount::double as line_amount,
  invoiced_at, strftime(invoiced_date, '%Y-%m-%d') as invoiced_date
from visible where hash(customer_id) % {one_in} = 0
"""


def event_sql(folder: Path) -> str:
    """What was known of every payment at its instant: one row a payment, ``EVENT_FEATURES``.

    A window of n days before a payment at t is ``[t − n days, t)``. The rate of fraud is that of
    the payments in ``[t − 7 − n days, t − 7 days)``, whose reports have all landed.
    """
    windows, columns = [], []
    for entity in ("customer", "terminal"):
        for days in (1, 7, 30):
            windows.append(_event_window(f"{entity}_{days}", entity, days, 0))
            columns += [
                f"count(*) over {entity}_{days} as {entity}_payment_count_{days}d",
                f"avg(amount) over {entity}_{days} as {entity}_amount_mean_{days}d",
            ]
    for days in (1, 7, 30):
        windows.append(_event_window(f"reported_{days}", "terminal", days, REPORT_DELAY_DAYS))
        columns.append(f"avg(is_fraud) over reported_{days} as terminal_fraud_rate_{days}d")
    return f"""
with payments as (
  select p.*, (c.transaction_id is not null)::int as is_fraud
  from read_parquet('{folder}/card_transactions/month=*/*.parquet', hive_partitioning = false) p
  left join read_parquet('{folder}/chargebacks/month=*/*.parquet', hive_partitioning = false) c
  using (transaction_id)
), known as (
  select transaction_id, {", ".join(columns)}
  from payments
  window {", ".join(windows)}
)
select transaction_id, {", ".join(EVENT_FEATURES)} from known
"""


def _event_window(name: str, entity: str, days: int, lag: int) -> str:
    return (
        f"{name} as (partition by {entity}_id order by transaction_at range between "
        f"interval {days + lag} day preceding and "
        f"interval {lag * 86_400_000_000 + 1} microsecond preceding)"
    )


def _trade(days: int) -> NDArray[np.float64]:
    """How much is bought on each day: closed on Saturdays, more before Christmas."""
    day = np.datetime64(START, "D") + np.arange(days)
    weekday = (day.astype(np.int64) + 3) % 7
    year_day = (day - day.astype("datetime64[Y]")).astype(np.int64)
    christmas = 1 + 0.5 * np.exp(-(((year_day - 330) / 20) ** 2))
    return np.where(weekday == 5, 0.0, christmas)


def _pseudonyms(entity: str, count: int) -> pa.Array:
    return pa.array(
        [hashlib.sha256(f"{entity}{i}".encode()).hexdigest()[:32] for i in range(count)]
    )


def _dates(start: date, days: NDArray[np.int64]) -> pa.Array:
    return pa.array(np.datetime64(start, "D") + days)


def _decimals(units: NDArray[np.int64]) -> pa.Array:
    """Decimals of four places from whole 1/10,000, without a Python object a row."""
    words = np.empty((len(units), 2), np.int64)
    words[:, 0], words[:, 1] = units, units >> 63
    return pa.Array.from_buffers(pa.decimal128(18, 4), len(units), [None, pa.py_buffer(words)])


def _write_by_month(table: pa.Table, folder: Path) -> None:
    for month, rows in _months(table["landed_date"]):
        path = folder / f"month={month}-01" / "part-00000.parquet"
        path.parent.mkdir(parents=True)
        pq.write_table(table.slice(rows.start, len(rows)), path, compression="zstd")


def _months(landed: pa.ChunkedArray) -> Iterator[tuple[str, range]]:
    """Each month of ascending dates, with its range of rows."""
    months = landed.to_numpy().astype("datetime64[M]")
    starts = np.flatnonzero(np.append(True, months[1:] != months[:-1]))
    for start, end in zip(starts, [*starts[1:], len(months)], strict=True):
        yield str(months[start]), range(start, end)
