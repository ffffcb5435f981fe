"""The prover: it holds where nothing leaks, and catches each planted leak."""

from datetime import date, datetime, timedelta
from typing import Any

import numpy as np
import payment_cases as payments
import pyarrow as pa
import pytest

from nightshift.errors import NightshiftError
from nightshift.features import prove
from nightshift.features.windows import Timeline
from nightshift.spec import Aggregate, UseCase, Window
from nightshift.use_cases import CHURN

AS_OF = date(2011, 9, 1)
AS_OF_PAYMENTS = payments.AS_OF
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


TABLES = {CHURN.source.name: events()}


def with_window(window: Window) -> UseCase:
    """Churn with one feature more, which a check at import would refuse."""
    (group,) = CHURN.feature_groups
    leaking = Aggregate.model_construct(
        measure="purchase_amount", aggregations=("sum",), windows=(window,)
    )
    changed = group.model_copy(update={"aggregates": (*group.aggregates, leaking)})
    return CHURN.model_copy(update={"feature_groups": (changed,)})


def test_no_feature_moves() -> None:
    trials = list(prove.trials(CHURN, TABLES, AS_OF))

    assert [trial.change for trial in trials if not trial.holds] == []
    assert len(trials) == 3 + 4 * 6 - 1, "four for each window"
    assert all(trial.rows and trial.vectors for trial in trials)


def test_a_window_that_ends_after_the_instant_is_caught() -> None:
    leaking = with_window(Window.model_construct(days=30, lag=-1))

    found = {trial.change: trial.moved for trial in prove.trials(leaking, TABLES, AS_OF)}

    name = "customer_purchase_amount_sum_30d_lag-1d"
    assert name in found["rows of order_lines that happen on as_of or after it"]


def test_rows_that_had_not_landed_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that forgets when rows landed."""
    tiles = prove.kernel.tiles

    def forgetful(groups: Any, events: Any, resolution: Any) -> Any:
        object.__setattr__(events, "landed_day", np.zeros_like(events.landed_day))
        return tiles(groups, events, resolution)

    monkeypatch.setattr(prove.kernel, "tiles", forgetful)
    found = {trial.change: trial.moved for trial in prove.trials(CHURN, TABLES, AS_OF)}

    assert found["rows of order_lines that happened before as_of and landed on it or after it"]


def test_a_window_that_is_a_day_too_long_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel whose windows of thirty days hold thirty-one."""
    edges = Timeline.edges

    def too_early(self: Timeline, requests: Any, feature: Any) -> Any:
        since, until = edges(self, requests, feature)
        return (since - 1 if feature.window == 30 else since), until

    monkeypatch.setattr(Timeline, "edges", too_early)
    found = {trial.change: trial.moved for trial in prove.trials(CHURN, TABLES, AS_OF)}

    assert any("30d" in name for moved in found.values() for name in moved)


@pytest.mark.parametrize(
    ("use_case", "trials"),
    [
        # rows of two sources, labels, reports, edges of each window of each source, instants
        (payments.FRAUD, 4 + 1 + 1 + (5 * 4 - 1) + 3 + 2),
        (payments.PAIRS, 4 + 1 + 1 + (5 * 4 - 1) + 3),
        (payments.SPENDERS, 4 + 1 + 0 + (2 * 4) + 3 + 3),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_no_feature_of_any_mode_moves(use_case: UseCase, trials: int) -> None:
    found = list(prove.trials(use_case, payments.TABLES, AS_OF_PAYMENTS))

    assert [trial for trial in found if not trial.holds] == []
    assert len(found) == trials


def test_nothing_need_reach_beyond_the_longest_window() -> None:
    bounded = payments.use_case(
        name="bounded",
        population=payments.SPENDERS.population,
        label=payments.SPENDERS.label,
        feature_groups=(payments.SPENDING,),
    )
    found = list(prove.trials(bounded, payments.TABLES, AS_OF_PAYMENTS))
    assert "rows a microsecond before and after 30d of payments" in {t.change for t in found}
    assert [trial for trial in found if not trial.holds] == []


def test_reports_that_are_not_known_yet_are_caught() -> None:
    """A rate of fraud that looks back seven days, and does not ask when the fraud was reported."""
    risk = payments.RISK
    careless = tuple(measure.model_copy(update={"known": None}) for measure in risk.measures)
    groups = (risk.model_copy(update={"measures": careless}), payments.SPENDING)
    leaking = payments.FRAUD.model_copy(update={"feature_groups": groups})

    found = {t.change: t.moved for t in prove.trials(leaking, payments.TABLES, AS_OF_PAYMENTS)}

    labels = "what was reported on as_of or after it, or never, told otherwise: other labels"
    assert found[labels] == ("terminal_fraud_count_30d_lag7d", "terminal_fraud_rate")


def test_an_event_that_sees_its_own_instant_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel whose windows end a microsecond late."""
    edges = Timeline.edges

    def too_late(self: Timeline, requests: Any, feature: Any) -> Any:
        since, until = edges(self, requests, feature)
        return since, until + 1

    monkeypatch.setattr(Timeline, "edges", too_late)
    trials = prove.trials(payments.FRAUD, payments.TABLES, AS_OF_PAYMENTS)
    found = {trial.change: trial.moved for trial in trials}

    assert "customer_payment_count_7d" in found["a twin of every event at its own instant"]
    assert found["rows of payments that happen on as_of or after it"] == ()


def test_a_date_at_which_nothing_is_scored_is_refused() -> None:
    with pytest.raises(NightshiftError, match="fraud scores nothing at 2001-01-01"):
        list(prove.trials(payments.FRAUD, payments.TABLES, date(2001, 1, 1)))
