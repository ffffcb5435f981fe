"""The prover: it holds where nothing leaks, and catches each planted leak."""

from datetime import date, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from nightshift.features import prove
from nightshift.features.windows import Timeline
from nightshift.spec import Aggregate, UseCase, Window
from nightshift.use_cases import CHURN

AS_OF = date(2011, 9, 1)
TYPES = {
    "string": pa.string(), "boolean": pa.bool_(), "integer": pa.int64(),
    "decimal": pa.decimal128(18, 4), "timestamp": pa.timestamp("us"), "date": pa.date32(),
}  # fmt: skip


def events(rows: int = 1_500) -> pa.Table:
    """A year before the snapshot and a hundred days after it, of thirty customers."""
    random = np.random.default_rng(3)
    start = datetime.fromisoformat("2010-09-01")
    found: list[dict[str, Any]] = []
    for _ in range(rows):
        at = start + timedelta(seconds=int(random.integers(0, 470 * 86_400)))
        customer, quantity = f"c{random.integers(0, 30)}", int(random.integers(1, 9))
        found.append(
            {
                "customer_id": customer, "invoice_id": f"{customer}-{at:%Y%m%d}",
                "product_id": f"p{random.integers(0, 20)}", "country": "France",
                "is_cancellation": bool(random.random() < 0.1), "is_product": True,
                "quantity": quantity, "unit_price": 2.5, "line_amount": 2.5 * quantity,
                "invoiced_at": at, "invoiced_date": at.date(), "landed_date": at.date(),
            }
        )  # fmt: skip
    columns = {
        name: pa.array([row[name] for row in found]).cast(TYPES[kind])
        for name, kind in CHURN.source.columns.items()
    }
    table = pa.table(columns)
    for name, kind in CHURN.source.columns.items():
        if kind == "string":
            at = table.column_names.index(name)
            table = table.set_column(at, name, table[name].dictionary_encode())
    return table


def with_window(window: Window) -> UseCase:
    """Churn with one feature more, which a check at import would refuse."""
    (group,) = CHURN.feature_groups
    leaking = Aggregate.model_construct(
        measure="purchase_amount", aggregations=("sum",), windows=(window,)
    )
    changed = group.model_copy(update={"aggregates": (*group.aggregates, leaking)})
    return CHURN.model_copy(update={"feature_groups": (changed,)})


def test_no_feature_moves() -> None:
    trials = list(prove.trials(CHURN, events(), AS_OF))

    assert [trial.change for trial in trials if not trial.holds] == []
    assert len(trials) == 3 + 4 * 6 - 1, "four for each window"
    assert all(trial.rows and trial.vectors for trial in trials)


def test_a_window_that_ends_after_the_instant_is_caught() -> None:
    leaking = with_window(Window.model_construct(days=30, lag=-1))

    found = {trial.change: trial.moved for trial in prove.trials(leaking, events(), AS_OF)}

    name = "customer_purchase_amount_sum_30d_lag-1d"
    assert name in found["rows that happen on as_of or after it"]


def test_rows_that_had_not_landed_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that forgets when rows landed."""
    compute = prove.kernel.compute

    def forgetful(use_case: UseCase, events: Any, *rest: Any) -> Any:
        object.__setattr__(events, "landed_day", np.zeros_like(events.landed_day))
        return compute(use_case, events, *rest)

    monkeypatch.setattr(prove.kernel, "compute", forgetful)
    found = {trial.change: trial.moved for trial in prove.trials(CHURN, events(), AS_OF)}

    assert found["rows that happened before as_of and landed on it or after it"]


def test_a_window_that_is_a_day_too_long_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel whose windows of thirty days hold thirty-one."""
    edges = Timeline.edges

    def too_early(self: Timeline, requests: Any, feature: Any) -> Any:
        since, until = edges(self, requests, feature)
        return (since - 1 if feature.window == 30 else since), until

    monkeypatch.setattr(Timeline, "edges", too_early)
    found = {trial.change: trial.moved for trial in prove.trials(CHURN, events(), AS_OF)}

    assert any("30d" in name for moved in found.values() for name in moved)
