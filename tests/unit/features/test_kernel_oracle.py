"""Every aggregation in every mode against independently written SQL, on adversarial rows."""

from collections.abc import Sequence
from datetime import date, datetime, timedelta
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from nightshift.errors import NightshiftError
from nightshift.features import kernel
from nightshift.spec import (
    Aggregate,
    Aggregation,
    Feature,
    FeatureGroup,
    Measure,
    Source,
    Through,
    Window,
    season_last_year,
)

PAYMENTS = Source(
    name="payments",
    relation="marts.fct_payments",
    row_id="payment_id",
    event_time="paid_at",
    landed_date="landed_date",
    columns={
        "customer_id": "string",
        "product_id": "string",
        "country": "string",
        "quantity": "integer",
        "amount": "decimal",
        "weight": "double",
        "is_fraud": "boolean",
        "paid_at": "timestamp",
        "paid_date": "date",
        "reported_date": "date",
        "landed_date": "date",
    },
)

WINDOWS = (1, 30, None, Window(days=30, lag=7), Window(days=None, lag=7), season_last_year(30))
OF_NUMBERS: tuple[Aggregation, ...] = ("sum", "mean", "min", "max", "std", "last")
OF_EVENTS: tuple[Aggregation, ...] = (
    "count", "days_since_last", "days_since_first", "gap_mean", "gap_std", "gap_last",
)  # fmt: skip
MEASURES: tuple[tuple[Measure, tuple[Aggregation, ...]], ...] = (
    (Measure(name="payment", column="paid_at"), (*OF_EVENTS, "distinct")),
    (Measure(name="amount", column="amount"), ("count", *OF_NUMBERS)),
    (Measure(name="positive", column="amount", where="amount > 0"), OF_NUMBERS),
    (Measure(name="quantity", column="quantity"), (*OF_NUMBERS, "distinct", "entropy")),
    (Measure(name="weight", column="weight"), ("count", *OF_NUMBERS)),
    (Measure(name="light", column="weight", where="weight > -1"), ("sum", "std")),
    (
        Measure(name="double_amount", expression="amount * 2", type="decimal"),
        ("sum", "max", "std"),
    ),
    (Measure(name="country", column="country"), ("distinct", "entropy", "last")),
    (Measure(name="home", column="country", category="København’s"), ("share",)),
    (Measure(name="fraud", column="is_fraud"), ("rate", "last", "entropy")),
    (
        Measure(name="report", column="amount", where="is_fraud", known="reported_date"),
        ("count", "sum", "max", "last", "distinct", "std", "days_since_last", "gap_last"),
    ),
)
SLOPES = ("amount", "light", "report")


def group_of(*keys: str) -> FeatureGroup:
    return FeatureGroup(
        name="payments",
        source=PAYMENTS,
        entity="payer",
        key=keys,
        measures=tuple(measure for measure, _ in MEASURES),
        aggregates=(
            *(
                Aggregate(measure=m.name, aggregations=aggregations, windows=WINDOWS)
                for m, aggregations in MEASURES
            ),
            *(
                Aggregate(
                    measure=name, aggregations=("slope",), windows=(30, Window(days=9, lag=3))
                )
                for name in SLOPES
            ),
        ),
    )


def adversarial_payments(rows: int = 900) -> list[dict[str, Any]]:
    """Ties, exact window edges, leap days, duplicates, extremes, nulls, Unicode, late rows."""
    random = np.random.default_rng(11)
    base = datetime.fromisoformat("2012-03-01")
    found: list[dict[str, Any]] = []
    has_extreme = set()
    for number in range(rows):
        days = int(random.choice([0, 1, 2, 7, 8, 30, 37, 38, 335, 365, random.integers(0, 500)]))
        shift = int(random.choice([-1, 0, 0, 1, 5_000_000, 86_399_999_999]))
        at = base - timedelta(days=days) + timedelta(microseconds=shift)
        late = int(random.choice([0, 0, 0, 0, 1, 8, 45]))
        reported = at.date() + timedelta(days=int(random.choice([0, 3, 7, 20])))
        customer = f"c{int(random.zipf(1.6)) % 23}"
        quantity = [None, 0, 1, -7, 2**62, -(2**62)][int(random.integers(0, 6))]
        if abs(quantity or 0) > 7 and (number < 40 or (customer, at.date()) in has_extreme):
            quantity = 80_995  # two of 2^62 on one day are refused
        elif abs(quantity or 0) > 7:
            has_extreme.add((customer, at.date()))
        amount = int(random.choice([0, 1, 25_500, -535_943_600, 10**17, 33_333]))
        found.append(
            {
                "customer_id": customer,
                "product_id": ["p1", "p2", "ñandú", "日本"][int(random.integers(0, 4))],
                "country": [None, "France", "København’s", "中国", ""][int(random.integers(0, 5))],
                "quantity": quantity,
                "amount": None if random.random() < 0.1 else amount / 10_000,
                "weight": [None, float("nan"), 0.1, 1e-300, -2.5e15, -0.0][
                    int(random.integers(0, 6))
                ],
                "is_fraud": [None, True, False][int(random.integers(0, 3))],
                "paid_at": at,
                "paid_date": at.date(),
                "reported_date": None if random.random() < 0.3 else reported,
                "landed_date": at.date() + timedelta(days=late),
            }
        )
    once = found[0] | {"customer_id": "only-one"}
    return [*found, *found[:40], once]


def entity_codes(rows: Sequence[dict[str, Any]], keys: Sequence[str]) -> dict[Any, int]:
    found = sorted({tuple(row[key] for key in keys) for row in rows})
    return {key: code for code, key in enumerate([*found, ("nobody",) * len(keys)])}


def events_of(rows: Sequence[dict[str, Any]], group: FeatureGroup) -> kernel.Events:
    """The kernel's arrays, with conditions and expressions evaluated by DuckDB."""
    table = pa.Table.from_pylist(list(rows))
    database = duckdb.connect()
    database.register("payments", table)
    codes = entity_codes(rows, group.key_columns)
    values, valid = {}, {}
    for value, kind in group.measured.items():
        expression = {
            "decimal": f"round(({value}) * 10000)::bigint",
            "timestamp": f"epoch_us({value})",
            "date": f"({value} - date '1970-01-01')::bigint",
            "boolean": f"({value})::bigint",
        }.get(kind, value)
        found = [row[0] for row in database.sql(f"select {expression} from payments").fetchall()]
        if kind == "string":
            texts = {text: code for code, text in enumerate(sorted(set(found) - {None}))}
            found = [texts.get(text) for text in found]
        valid[value] = np.array([v is not None for v in found])
        values[value] = np.array(
            [0 if v is None else v for v in found], np.float64 if kind == "double" else np.int64
        )
    flags = {
        condition: np.array(
            [bool(row[0]) for row in database.sql(f"select {condition} from payments").fetchall()]
        )
        for condition in group.conditions
    }
    epoch = datetime.fromisoformat("1970-01-01")
    return kernel.Events(
        entity=np.array([codes[tuple(row[k] for k in group.key_columns)] for row in rows]),
        entities=len(codes),
        time_us=np.array([(row["paid_at"] - epoch) // timedelta(microseconds=1) for row in rows]),
        landed_day=np.array([(row["landed_date"] - epoch.date()).days for row in rows]),
        flags=flags,
        values=values,
        valid=valid,
    )


IN_SQL: dict[str, str] = {
    "count": "count(v)",
    "sum": "coalesce(sum(v), 0)::double",
    "mean": "sum(v)::double / nullif(count(v), 0)",
    "min": "min(v)::double",
    "max": "max(v)::double",
    "std": "case when count(v) > 1 then stddev_samp(v::double) end",
    "distinct": "count(distinct v)",
    "last": "first(v order by happened desc, known desc, v desc) filter (where v is not null)",
    "days_since_last": "(epoch_us(any_value(cut)) - max(epoch_us(happened))) / 86400e6",
    "days_since_first": "(epoch_us(any_value(cut)) - min(epoch_us(happened))) / 86400e6",
    "gap_mean": "list_avg(gaps(list(epoch_us(happened) // 86400000000)))",
    "gap_std": "list_aggregate(gaps(list(epoch_us(happened) // 86400000000)), 'stddev_samp')",
    "gap_last": "gaps(list(epoch_us(happened) // 86400000000))[-1]",
    "share": "avg((v = 'København’s')::int)",
    "entropy": "case when count(v) > 0 then entropy(v) * ln(2) end",
    "rate": "avg(v::int)",
}
GAPS = """
create macro distinct_days(days) as
    list_sort(list_distinct(list_filter(days, lambda d: d is not null)));
create macro gaps(days) as list_transform(
    range(1, len(distinct_days(days))),
    lambda i: distinct_days(days)[i + 1] - distinct_days(days)[i]
)
"""


def seen_sql(group: FeatureGroup, feature: Feature) -> str:
    """The rows of the feature's window that count, for each request; one of nulls if none does."""
    measure = group.measure(feature.measure)
    exact = {"decimal": "decimal(38, 4)", "integer": "hugeint"}
    kind = exact.get(group.type_of(measure), "")
    value = f"({measure.value}){f'::{kind}' if kind else ''}"
    known = f"greatest(landed_date, {measure.known})" if measure.known else "landed_date"
    counts = [f"({measure.value}) is not null", f"coalesce({measure.where or 'true'}, false)"]
    if measure.known:
        counts.append(f"{measure.known} is not null")
    if group.type_of(measure) == "double":
        counts.append(f"not isnan({measure.value})")
    window = [f"e.happened < r.cut - interval {feature.lag} day"]
    if feature.window is not None:
        window.append(f"e.happened >= r.cut - interval {feature.window + feature.lag} day")
    return (
        f"(select r.id, r.cut, e.v, e.happened, e.known from requests r left join"
        f" (select e.code, {value} as v, paid_at as happened, {known} as known from payments e"
        f" where {' and '.join(counts)}) e"
        f" on e.code = r.code and e.known < r.known and {' and '.join(window)})"
    )


def expected_columns(
    group: FeatureGroup, rows: Sequence[dict[str, Any]], requests: kernel.Requests
) -> dict[str, list[Any]]:
    """Each feature of each request, as plain SQL has it."""
    codes = entity_codes(rows, group.key_columns)
    with_codes = [row | {"code": codes[tuple(row[k] for k in group.key_columns)]} for row in rows]
    database = duckdb.connect()
    database.execute(GAPS)
    database.register("rows", pa.Table.from_pylist(with_codes))
    database.execute(
        "create table payments as select * replace (amount::decimal(38, 4) as amount) from rows"
    )
    asked = pa.table(
        {
            "id": np.arange(len(requests)),
            "code": requests.entity,
            "cut": pa.array(requests.time_us, pa.timestamp("us")),
            "known": pa.array(requests.known_day.astype(np.int32), pa.int32()).cast(pa.date32()),
        }
    )
    database.register("requests", asked)
    by_window: dict[str, list[Feature]] = {}
    result: dict[str, list[Any]] = {}
    for feature in group.features:
        if feature.aggregation == "slope":
            start = f"r.cut - interval {(feature.window or 0) + feature.lag} day"
            is_exact = group.type_of(group.measure(feature.measure)) != "double"
            total, day = ("decimal(30, 4)", "d::decimal(6, 0)") if is_exact else ("double", "d")
            # regr_slope itself rounds too much where large totals cancel.
            found = database.sql(
                f"select (count(*) * sum({day} * y) - sum({day}) * sum(y))::double"
                " / (count(*) * sum(d * d) - sum(d) * sum(d))"
                f" from (select r.id, d, coalesce(sum(v), 0)::{total} as y"
                f" from requests r cross join range({feature.window}) days(d)"
                f" left join {seen_sql(group, feature)} seen on seen.id = r.id"
                f" and (epoch_us(happened) - epoch_us({start})) // 86400000000 = d"
                " group by r.id, d) group by id order by id"
            )
            result[feature.name] = [row[0] for row in found.fetchall()]
        else:
            by_window.setdefault(seen_sql(group, feature), []).append(feature)
    for seen, features in by_window.items():
        selected = ", ".join(f"{IN_SQL[f.aggregation]} as {f.name}" for f in features)
        table = database.sql(
            f"select {selected} from {seen} group by id order by id"
        ).to_arrow_table()
        result |= {name: table[name].to_pylist() for name in table.column_names}
    return result


def requests_of(mode: str, rows: Sequence[dict[str, Any]], events: kernel.Events) -> Any:
    if mode == "event":
        # Each event at its own instant, in the night that follows it.
        return kernel.Requests(events.entity, events.time_us, events.time_us // kernel.DAY_US + 1)
    everyone = np.arange(events.entities)
    nights = [date(2011, 2, 10), date(2012, 2, 29), date(2012, 3, 1), date(2012, 3, 2)]
    parts = [kernel.Requests.snapshot(everyone, night) for night in nights]
    return kernel.Requests(
        *(
            np.concatenate([getattr(p, n) for p in parts])
            for n in ("entity", "time_us", "known_day")
        )
    )


@pytest.mark.parametrize("mode", ["snapshot", "event", "candidate"])
def test_every_feature_equals_plain_sql(mode: str) -> None:
    group = group_of(*(["customer_id", "product_id"] if mode == "candidate" else ["customer_id"]))
    rows = adversarial_payments()
    events = events_of(rows, group)
    requests = requests_of(mode, rows, events)
    tiles = kernel.tiles([group], events, "instant" if mode == "event" else "day")
    found = kernel.features([group], tiles, requests)
    expected = expected_columns(group, rows, requests)
    assert set(found) == set(expected)
    texts = sorted({row["country"] for row in rows} - {None})
    for feature in group.features:
        name, wanted = feature.name, expected[feature.name]
        if feature.type == "string":
            assert [None if code < 0 else texts[code] for code in found[name]] == wanted, name
            continue
        wanted = np.array([np.nan if v is None else float(v) for v in wanted])
        # The SQL's own deviations of values near 2^62 are no better than this.
        loose = feature.aggregation == "std"
        np.testing.assert_allclose(
            found[name], wanted, rtol=1e-6 if loose else 1e-12, atol=1e-9, err_msg=name
        )
        if feature.window != 1:
            assert np.isfinite(wanted).any(), f"{name} is null in every request"


RETURN_RATES = FeatureGroup(
    name="product_returns",
    source=PAYMENTS,
    entity="product",
    key="product_id",
    measures=(Measure(name="fraud", column="is_fraud"),),
    aggregates=(Aggregate(measure="fraud", aggregations=("rate",), windows=(30,)),),
)


def test_what_other_entities_tell_equals_plain_sql() -> None:
    touched = FeatureGroup(
        name="touched",
        source=PAYMENTS,
        entity="payer",
        key="customer_id",
        measures=(
            Through(
                name="product_fraud",
                column="product_id",
                where="amount is not null",
                group=RETURN_RATES,
                feature="product_fraud_rate_30d",
            ),
        ),
        aggregates=(
            Aggregate(
                measure="product_fraud",
                aggregations=("mean", "sum", "min", "max", "last"),
                windows=(30, None),
            ),
        ),
    )
    rows, as_of = adversarial_payments(), date(2012, 3, 1)
    products = events_of(rows, RETURN_RATES)
    rates = kernel.features(
        [RETURN_RATES],
        kernel.tiles([RETURN_RATES], products, "day"),
        kernel.Requests.snapshot(np.arange(products.entities), as_of),
    )["product_fraud_rate_30d"]
    payers = events_of(rows, touched)
    windows = kernel.Windows([touched], kernel.tiles([touched], payers, "day"))
    requests = kernel.Requests.snapshot(np.arange(payers.entities), as_of)
    found = windows.features(requests, {"product_fraud": rates})
    database = duckdb.connect()
    database.register("payments", pa.Table.from_pylist(rows))
    seen = f"paid_at < date '{as_of}' and landed_date < date '{as_of}'"
    recent = f"paid_at >= date '{as_of}' - interval 30 day"
    for window, condition in (("30d", recent), ("all", "true")):
        expected = database.sql(
            f"with rates as (select product_id, avg(is_fraud::int) as rate from payments"
            f" where {seen} and {recent} group by product_id)"
            " select customer_id, avg(rate), coalesce(sum(rate), 0), min(rate), max(rate),"
            # a struct, for `first` leaves out a rate that is null
            " (first({'rate': rate} order by paid_at desc, landed_date desc, product_id desc)).rate"
            f" from payments left join rates using (product_id) where {seen} and {condition}"
            " and amount is not null group by customer_id"
        ).fetchall()
        codes = entity_codes(rows, ["customer_id"])
        assert len(expected) > 10
        for customer, *wanted in expected:
            code = codes[(customer,)]
            actual = [
                found[f"payer_product_fraud_{a}_{window}"][code]
                for a in ("mean", "sum", "min", "max", "last")
            ]
            np.testing.assert_allclose(
                actual, [np.nan if v is None else v for v in wanted], rtol=1e-12
            )
    with pytest.raises(NightshiftError, match="'product_fraud' is of product_fraud_rate_30d"):
        windows.features(requests)
    with pytest.raises(ValueError, match="one instant at a time"):
        windows.features(requests_of("snapshot", rows, payers), {"product_fraud": rates})
