"""The kernel against independently written SQL, and its cuts in time at their exact edges."""

import math
from collections.abc import Mapping, Sequence
from datetime import date, datetime, timedelta
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from nightshift.features import kernel, vectors
from nightshift.spec import Feature, UseCase
from nightshift.use_cases import CHURN

AS_OF = date(2012, 3, 1)  # the day after a leap day
SNAPSHOTS = [date(2011, 12, 1), date(2012, 2, 29), AS_OF]
KNOWN = date(2012, 6, 30)

Row = Mapping[str, Any]


def event(customer: str, at: str, landed: str | None = None, **more: Any) -> dict[str, Any]:
    """A purchase of one piece for 10.00; it landed on its own day unless said otherwise."""
    invoiced_at = datetime.fromisoformat(at)
    row = {
        "customer_id": customer, "invoice_id": at, "product_id": "P1", "country": "France",
        "is_cancellation": False, "is_product": True, "quantity": 1, "unit_price": 10.0,
        "line_amount": 10.0, "invoiced_at": invoiced_at, "invoiced_date": invoiced_at.date(),
        "landed_date": date.fromisoformat(landed) if landed else invoiced_at.date(),
    }  # fmt: skip
    return row | more


def adversarial_events(rows: int = 4_000) -> list[dict[str, Any]]:
    """Ties, midnights, leap days, late landings, cancellations, nulls, one event, extremes."""
    random = np.random.default_rng(7)
    start = datetime.fromisoformat("2010-12-01")
    events = []
    for _ in range(rows):
        at = start + timedelta(days=int(random.integers(0, 560)))
        at += timedelta(seconds=int(random.choice([0, 1, 43_200, 86_399])))
        is_cancellation = bool(random.random() < 0.15)
        quantity = int(random.choice([0, 1, 2, 80_995])) * (-1 if is_cancellation else 1)
        price = float(random.choice([0.0, 0.0001, 2.55, 38_970.0, -53_594.36]))
        late = int(random.choice([0, 0, 0, 1, 40]))
        events.append(
            event(
                f"c{int(random.zipf(1.5)) % 40}", at.isoformat(),
                (at.date() + timedelta(days=late)).isoformat(),
                invoice_id=f"{'C' if is_cancellation else ''}{random.integers(0, 300)}",
                product_id=None if random.random() < 0.05 else f"p{random.integers(0, 12)}",
                is_cancellation=is_cancellation,
                is_product=bool(random.random() < 0.9),
                quantity=quantity, unit_price=price, line_amount=round(quantity * price, 4),
            )
        )  # fmt: skip
    return [*events, event("only-one", "2012-02-29T23:59:59")]


def lake_rows(use_case: UseCase, rows: Sequence[Row]) -> pa.Table:
    """The rows as a task reads them from the lake."""
    types = {
        "string": pa.string(), "boolean": pa.bool_(), "integer": pa.int64(),
        "decimal": pa.decimal128(18, 4), "timestamp": pa.timestamp("us"), "date": pa.date32(),
    }  # fmt: skip
    columns = {
        name: pa.array([row[name] for row in rows]).cast(types[kind])
        for name, kind in use_case.source.columns.items()
    }
    return pa.table(
        {n: c.dictionary_encode() if pa.types.is_string(c.type) else c for n, c in columns.items()}
    )


def computed_vectors(
    use_case: UseCase, rows: Sequence[Row], snapshots: Sequence[date], known: date | None = None
) -> dict[tuple[str, date], dict[str, float]]:
    """(key, snapshot) → column → value, from the kernel."""
    tables = {use_case.source.name: lake_rows(use_case, rows)}
    reader = vectors.InMemory(use_case, tables, known)
    found = {}
    for batch, columns in vectors.vectors(reader, snapshots):
        names = batch.columns[use_case.key].to_pylist()
        values = {name: column.to_pylist() for name, column in columns.items()}
        for position, (name, day) in enumerate(zip(names, batch.as_of, strict=True)):
            as_of = kernel.EPOCH + timedelta(days=int(day))
            row = {n: math.nan if v[position] is None else v[position] for n, v in values.items()}
            found[name, as_of] = row
    return found


def oracle_sql(feature: Feature, where: str, column: str) -> str:
    """The feature as a correlated aggregate in plain SQL, over what is visible at ``as_of``."""
    inside = f"({where})"
    if feature.window is not None:
        inside += f" and invoiced_at >= as_of - interval {feature.window} day"
    days = "epoch_us(as_of::timestamp) / 86400e6"
    expression = {
        "count": f"count({column}) filter (where {inside})::double",
        "sum": f"coalesce(sum({column}::decimal(38, 4)) filter (where {inside}), 0)::double",
        "mean": f"(sum({column}::decimal(38, 4)) filter (where {inside}))::double"
        f" / (count({column}) filter (where {inside}))",
        "std": f"stddev_samp({column}::double) filter (where {inside})",
        # DuckDB's entropy is in bits
        "entropy": f"entropy({column}) filter (where {inside}) * ln(2)",
        "min": f"min({column}) filter (where {inside})::double",
        "max": f"max({column}) filter (where {inside})::double",
        "distinct": f"count(distinct {column}) filter (where {inside})::double",
        "days_since_last": f"{days} - max(epoch_us(invoiced_at)) filter (where {inside}) / 86400e6",
        "days_since_first": f"{days} - min(epoch_us(invoiced_at)) filter (where {inside})/ 86400e6",
    }[feature.aggregation]
    return f'{expression} as "{feature.name}"'


@pytest.fixture(scope="module")
def events() -> list[dict[str, Any]]:
    return adversarial_events()


@pytest.fixture(scope="module")
def computed(events: list[dict[str, Any]]) -> dict[tuple[str, date], dict[str, float]]:
    return computed_vectors(CHURN, events, SNAPSHOTS, KNOWN)


def test_every_feature_equals_plain_sql(
    events: list[dict[str, Any]], computed: dict[tuple[str, date], dict[str, float]]
) -> None:
    group = CHURN.feature_groups[0]
    measures = {m.name: m for m in group.measures}
    database = duckdb.connect()
    database.register("events", pa.Table.from_pylist(events))
    database.execute("create table snapshots as select unnest(?::date[]) as as_of", [SNAPSHOTS])
    selected = ", ".join(
        oracle_sql(f, measures[f.measure].where or "true", measures[f.measure].value)
        for f in group.features
    )
    rows = (
        database.sql(
            f"select customer_id, as_of, {selected} from events join snapshots"
            " on invoiced_at < as_of and landed_date < as_of group by customer_id, as_of"
            " having count(*) filter (where not is_cancellation and quantity > 0"
            " and invoiced_at >= as_of - interval 365 day) > 0"
        )
        .to_arrow_table()
        .to_pylist()
    )
    expected = {(row.pop("customer_id"), row.pop("as_of")): row for row in rows}
    assert set(expected) == set(computed)
    assert len(expected) > 60
    for key, row in expected.items():
        for name, value in row.items():
            wanted = np.nan if value is None else value
            np.testing.assert_allclose(
                computed[key][name], wanted, rtol=1e-12, atol=1e-9, err_msg=f"{key} {name}"
            )


def test_every_ratio_equals_its_parts(
    computed: dict[tuple[str, date], dict[str, float]],
) -> None:
    for row in computed.values():
        for ratio in CHURN.feature_groups[0].ratios:
            below = row[ratio.denominator]
            wanted = np.nan if below == 0 else row[ratio.numerator] / below
            np.testing.assert_equal(row[ratio.name], wanted)


def test_labels_equal_plain_sql(
    events: list[dict[str, Any]], computed: dict[tuple[str, date], dict[str, float]]
) -> None:
    database = duckdb.connect()
    database.register("events", pa.Table.from_pylist(events))
    for (customer, as_of), row in computed.items():
        bought = database.execute(
            "select count(*) from events where customer_id = ? and not is_cancellation"
            " and quantity > 0 and invoiced_at >= ? and invoiced_at < ?::date + interval 90 day"
            " and landed_date < ?",
            [customer, as_of, as_of, KNOWN],
        ).fetchall()[0][0]
        assert row["label"] == (bought == 0), (customer, as_of)


HISTORY = [event("a", "2012-02-01T10:00:00"), event("b", "2012-01-15T10:00:00")]


@pytest.mark.parametrize(
    "future",
    [
        event("a", "2012-03-01T00:00:00", line_amount=999.0),
        event("a", "2012-03-05T00:00:00", "2012-02-20", line_amount=999.0),
        event("a", "2012-02-10T00:00:00", "2012-03-01", line_amount=999.0),
        event("b", "2012-02-10T00:00:00", "2012-04-01", is_cancellation=True, quantity=-1),
    ],
    ids=["at midnight of as_of", "dated after as_of", "landed on as_of", "landed a month late"],
)
def test_what_is_not_known_yet_changes_no_feature(future: dict[str, Any]) -> None:
    assert repr(computed_vectors(CHURN, [*HISTORY, future], [AS_OF])) == repr(
        computed_vectors(CHURN, HISTORY, [AS_OF])
    )


def test_what_is_known_does_change_features() -> None:
    known = event("a", "2012-02-29T23:59:59", "2012-02-29", line_amount=999.0)
    assert repr(computed_vectors(CHURN, [*HISTORY, known], [AS_OF])) != repr(
        computed_vectors(CHURN, HISTORY, [AS_OF])
    )


@pytest.mark.parametrize(
    ("at", "count"),
    [("2012-01-31T00:00:00", 2), ("2012-01-30T23:59:59", 1), ("2012-02-29T23:59:59", 2)],
)
def test_a_window_begins_at_its_first_midnight(at: str, count: int) -> None:
    rows = [event("a", "2012-02-15T10:00:00"), event("a", at)]
    assert (
        computed_vectors(CHURN, rows, [AS_OF])["a", AS_OF]["customer_purchase_count_30d"] == count
    )


@pytest.mark.parametrize(
    ("at", "label"),
    [
        ("2012-03-01T00:00:00", 0),
        ("2012-03-02T00:00:00", 0),
        ("2012-05-29T23:59:59", 0),
        ("2012-05-30T00:00:00", 1),
        ("2012-05-31T00:00:00", 1),
    ],
    ids=["at as_of", "a day after", "last second of the horizon", "at its end", "a day after that"],
)
def test_label_window_is_closed_below_and_open_above(at: str, label: int) -> None:
    rows = [event("a", "2012-02-15T10:00:00"), event("a", at)]
    assert computed_vectors(CHURN, rows, [AS_OF], date(2012, 7, 1))["a", AS_OF]["label"] == label


def test_a_purchase_that_landed_after_the_label_was_taken_is_unknown_to_it() -> None:
    rows = [
        event("a", "2012-02-15T10:00:00"),
        event("a", "2012-03-10T10:00:00", landed="2012-05-30"),
    ]
    assert computed_vectors(CHURN, rows, [AS_OF], date(2012, 5, 30))["a", AS_OF]["label"] == 1
    assert computed_vectors(CHURN, rows, [AS_OF], date(2012, 5, 31))["a", AS_OF]["label"] == 0


@pytest.mark.parametrize(
    ("at", "is_member"), [("2011-03-02T00:00:00", True), ("2011-03-01T23:59:59", False)]
)
def test_population_is_who_was_active_in_the_window(at: str, is_member: bool) -> None:
    assert (("a", AS_OF) in computed_vectors(CHURN, [event("a", at)], [AS_OF])) is is_member


def test_the_order_of_rows_does_not_matter(events: list[dict[str, Any]]) -> None:
    assert repr(computed_vectors(CHURN, events[::-1], SNAPSHOTS, KNOWN)) == repr(
        computed_vectors(CHURN, events, SNAPSHOTS, KNOWN)
    )
