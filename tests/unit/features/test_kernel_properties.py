"""What holds for any rows: no order, split, batch or later row moves a bit of a feature."""

from collections.abc import Sequence
from datetime import date
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nightshift.errors import NightshiftError
from nightshift.features import kernel
from nightshift.spec import (
    AGGREGATIONS,
    Aggregate,
    Aggregation,
    FeatureGroup,
    Measure,
    Source,
    Sum,
    Window,
)

CARDS = Source(
    name="cards",
    relation="marts.fct_cards",
    row_id="card_id",
    event_time="at",
    landed_date="landed",
    columns={
        "customer": "string",
        "text": "string",
        "amount": "decimal",
        "weight": "double",
        "flag": "boolean",
        "at": "timestamp",
        "reported": "date",
        "landed": "date",
    },
)
WINDOWS = (1, 3, None, Window(days=2, lag=2))


def of_all(kind: str, *without: Aggregation) -> tuple[Aggregation, ...]:
    return tuple(a for a, rule in AGGREGATIONS.items() if kind in rule.types and a not in without)


GROUP = FeatureGroup(
    name="cards",
    source=CARDS,
    entity="customer",
    key="customer",
    measures=(
        Measure(name="amount", column="amount"),
        Measure(name="weight", column="weight", where="flag"),
        Measure(name="text", column="text"),
        Measure(name="flag", column="flag"),
        Measure(name="report", column="amount", known="reported"),
        Measure(name="daily", column="amount"),
    ),
    aggregates=(
        Aggregate(measure="amount", aggregations=of_all("decimal", "slope"), windows=WINDOWS),
        Aggregate(measure="weight", aggregations=of_all("double", "slope"), windows=WINDOWS),
        Aggregate(measure="text", aggregations=of_all("string", "share"), windows=WINDOWS),
        Aggregate(measure="flag", aggregations=("rate",), windows=WINDOWS),
        Aggregate(measure="report", aggregations=("count", "max", "last"), windows=WINDOWS),
        Aggregate(measure="daily", aggregations=("slope",), windows=(3,)),
    ),
)
TEXTS = ["a", "b", "ñ"]


class Row(NamedTuple):
    entity: int
    time_us: int
    landed_day: int
    amount: int | None
    weight: float
    text: int | None
    flag: bool
    reported_day: int | None


ROWS = st.lists(
    st.builds(
        lambda entity, day, part, late, *rest: Row(
            entity, day * kernel.DAY_US + part, day + late, *rest
        ),
        st.integers(0, 3),
        st.integers(100, 105),
        st.sampled_from([0, 1, kernel.DAY_US // 2, kernel.DAY_US - 1]),
        st.sampled_from([0, 0, 0, 1, 4]),
        st.one_of(st.none(), st.integers(-(2**58), 2**58), st.integers(-3, 3)),
        st.one_of(st.just(float("nan")), st.floats(-1e6, 1e6), st.sampled_from([0.1, 0.0, -0.0])),
        st.one_of(st.none(), st.integers(0, 2)),
        st.booleans(),
        st.one_of(st.none(), st.integers(100, 108)),
    ),
    max_size=24,
)


def events_of(rows: Sequence[Row], texts: Sequence[int] = (0, 1, 2)) -> kernel.Events:
    """The kernel's arrays; ``texts`` gives the code of each text."""

    def column(name: str, dtype: type = np.int64) -> Any:
        found = [getattr(row, name) for row in rows]
        valid = np.array([v is not None for v in found], bool)
        return np.array([0 if v is None else v for v in found], dtype), valid

    amount, weight, flag = column("amount"), column("weight", np.float64), column("flag")
    text, reported = column("text"), column("reported_day")
    columns = {
        "amount": amount, "weight": weight, "flag": flag, "reported": reported,
        "text": (np.array(texts, np.int64)[text[0]], text[1]),
    }  # fmt: skip
    return kernel.Events(
        entity=column("entity")[0],
        entities=4,
        time_us=column("time_us")[0],
        landed_day=column("landed_day")[0],
        flags={"flag": flag[0] > 0},
        values={name: values for name, (values, _) in columns.items()},
        valid={name: valid for name, (_, valid) in columns.items()},
    )


def nights() -> kernel.Requests:
    """Every entity at every midnight."""
    entity, day = (a.ravel() for a in np.meshgrid(np.arange(4), np.arange(99, 112)))
    return kernel.Requests(entity, day * kernel.DAY_US, day)


def bits(found: dict[str, Any]) -> dict[str, bytes]:
    return {name: np.asarray(values).tobytes() for name, values in found.items()}


def requests_in(resolution: Any, rows: Sequence[Row]) -> kernel.Requests:
    if resolution == "day":
        return nights()
    events = events_of(rows)
    return kernel.Requests(events.entity, events.time_us, events.time_us // kernel.DAY_US + 1)


RESOLUTIONS = pytest.mark.parametrize("resolution", ["day", "instant"])


@RESOLUTIONS
@settings(max_examples=15, deadline=None)
@given(rows=ROWS, data=st.data())
def test_tiles_of_parts_merge_to_the_tiles_of_the_whole(
    resolution: Any, rows: list[Row], data: st.DataObject
) -> None:
    part_of = data.draw(st.lists(st.integers(0, 2), min_size=len(rows), max_size=len(rows)))
    parts = []
    for number in range(3):
        of_part = [row for row, part in zip(rows, part_of, strict=True) if part == number]
        shuffled = data.draw(st.permutations(of_part))
        # Each part has codes of its own; the first knows no text but "b" and "ñ".
        texts, lookup = ((0, 0, 1), [1, 2]) if number == 0 else ((0, 1, 2), [0, 1, 2])
        shuffled = [r._replace(text=1) if number == 0 and r.text == 0 else r for r in shuffled]
        tiles = kernel.tiles([GROUP], events_of(shuffled, texts), resolution)
        entity = np.arange(4)
        parts.append(kernel.recoded([GROUP], tiles, entity, {"text": np.array(lookup)}))
    rows = [
        row._replace(text=1) if part == 0 and row.text == 0 else row
        for row, part in zip(rows, part_of, strict=True)
    ]
    whole = kernel.tiles([GROUP], events_of(rows), resolution)
    merged = kernel.merge(parts)
    for known, grid in whole.grids.items():
        np.testing.assert_equal(vars(merged.grids[known]), vars(grid))
    for name, items in whole.items.items():
        np.testing.assert_equal(vars(merged.items[name]), vars(items))
    requests = requests_in(resolution, rows)
    assert bits(kernel.features([GROUP], merged, requests)) == bits(
        kernel.features([GROUP], whole, requests)
    )


@RESOLUTIONS
@settings(max_examples=15, deadline=None)
@given(rows=ROWS, entity=st.integers(0, 3))
def test_an_entity_gets_the_same_bits_alone_and_in_any_batch(
    resolution: Any, rows: list[Row], entity: int
) -> None:
    requests = requests_in(resolution, rows)
    requests = requests.take(np.flatnonzero(requests.entity == entity))
    alone = [row for row in rows if row.entity == entity]
    in_batch, by_itself = (
        kernel.features([GROUP], kernel.tiles([GROUP], events_of(r), resolution), requests)
        for r in (rows, alone)
    )
    assert bits(in_batch) == bits(by_itself)


@RESOLUTIONS
@settings(max_examples=25, deadline=None)
@given(rows=ROWS, data=st.data())
def test_what_is_not_known_at_a_request_changes_no_bit(
    resolution: Any, rows: list[Row], data: st.DataObject
) -> None:
    requests = requests_in(resolution, rows)
    if not len(requests):
        return
    chosen = requests.take([data.draw(st.integers(0, len(requests) - 1))])
    time_us, known_day = int(chosen.time_us[0]), int(chosen.known_day[0])
    seen = [
        row
        # A report that comes later leaves the event, and takes the report away.
        if (row.reported_day or 0) < known_day
        else row._replace(reported_day=None)
        for row in rows
        if row.time_us < time_us and row.landed_day < known_day
    ]
    with_future, without = (
        kernel.features([GROUP], kernel.tiles([GROUP], events_of(r), resolution), chosen)
        for r in (rows, seen)
    )
    assert bits(with_future) == bits(without)


@settings(max_examples=15, deadline=None)
@given(rows=ROWS)
def test_at_midnight_days_and_instants_agree(rows: list[Row]) -> None:
    by_day, by_instant = (
        kernel.features([GROUP], kernel.tiles([GROUP], events_of(rows), resolution), nights())
        for resolution in ("day", "instant")
    )
    for name, values in by_day.items():
        np.testing.assert_allclose(
            values, by_instant[name], rtol=1e-9, atol=1e-6, equal_nan=True, err_msg=name
        )


def one(time_us: int, **more: Any) -> Row:
    landed = time_us // kernel.DAY_US
    return Row(0, time_us, landed, 10_000, 1.0, 0, True, None)._replace(**more)


CUT = 105 * kernel.DAY_US


@RESOLUTIONS
@pytest.mark.parametrize(
    ("at", "window", "is_in"),
    [
        (CUT - 1, "1d", True),
        (CUT, "1d", False),
        (CUT - kernel.DAY_US, "1d", True),
        (CUT - kernel.DAY_US - 1, "1d", False),
        (CUT - 2 * kernel.DAY_US - 1, "2d_lag2d", True),
        (CUT - 2 * kernel.DAY_US, "2d_lag2d", False),
        (CUT - 4 * kernel.DAY_US, "2d_lag2d", True),
        (CUT - 4 * kernel.DAY_US - 1, "2d_lag2d", False),
        (CUT - 1, "all", True),
        (CUT, "all", False),
    ],
)
def test_a_window_holds_its_oldest_instant_and_not_its_end(
    resolution: Any, at: int, window: str, is_in: bool
) -> None:
    tiles = kernel.tiles([GROUP], events_of([one(at)]), resolution)
    requests = kernel.Requests(np.array([0]), np.array([CUT]), np.array([120]))
    found = kernel.features([GROUP], tiles, requests)
    assert found[f"customer_amount_count_{window}"][0] == is_in
    assert found[f"customer_text_distinct_{window}"][0] == is_in


def test_a_planted_leak_does_see_what_comes() -> None:
    planted = Window.model_construct(days=1, lag=-1)
    leaking, honest = (
        FeatureGroup(
            name="cards", source=CARDS, entity="customer", key="customer",
            measures=(Measure(name="amount", column="amount"),),
            aggregates=(Aggregate(measure="amount", aggregations=("count",), windows=(window,)),),
        )
        for window in (planted, 1)
    )  # fmt: skip
    asked = kernel.Requests(np.array([0]), np.array([CUT]), np.array([106]))
    for group, count in ((leaking, 1), (honest, 0)):
        tiles = kernel.tiles([group], events_of([one(CUT)]), "day")
        (found,) = kernel.features([group], tiles, asked).values()
        assert found.tolist() == [count]


def test_an_event_does_not_see_itself_nor_its_ties() -> None:
    rows = [one(CUT), one(CUT), one(CUT + 1)]
    found = kernel.features(
        [GROUP], kernel.tiles([GROUP], events_of(rows), "instant"), requests_in("instant", rows)
    )
    assert found["customer_amount_count_1d"].tolist() == [0, 0, 2]


def test_large_values_that_hardly_differ_have_their_deviation() -> None:
    rows = [one(CUT - 1 - i, amount=2**60 + 10_000 * i) for i in range(3)]
    tiles = kernel.tiles([GROUP], events_of(rows), "instant")
    found = kernel.features([GROUP], tiles, nights())
    at = np.flatnonzero((nights().entity == 0) & (nights().time_us == CUT))
    assert found["customer_amount_std_3d"][at].tolist() == [1.0]


def test_sums_beyond_64_bits_are_exact_over_days_and_refused_within_one() -> None:
    rows = [one(CUT - 1 - day * kernel.DAY_US, amount=2**62) for day in range(3)]
    found = kernel.features([GROUP], kernel.tiles([GROUP], events_of(rows), "day"), nights())[
        "customer_amount_sum_3d"
    ]
    assert found.max() == 3 * 2**62 / 10_000
    with pytest.raises(NightshiftError, match="sum: amount: the sum of one entity and day exceeds"):
        kernel.tiles([GROUP], events_of(rows[:1] * 2), "day")


def test_an_infinite_double_is_refused_by_name() -> None:
    with pytest.raises(NightshiftError, match=r"'weight' of marts\.fct_cards is infinite"):
        kernel.tiles([GROUP], events_of([one(CUT, weight=float("inf"))]), "day")


def test_no_rows_at_all_give_what_no_events_give() -> None:
    for resolution in ("day", "instant"):
        found = kernel.features([GROUP], kernel.tiles([GROUP], events_of([]), resolution), nights())
        for feature in GROUP.features:
            empty = AGGREGATIONS[feature.aggregation].empty
            wanted = -1 if feature.type == "string" else np.nan if empty is None else empty
            np.testing.assert_equal(found[feature.name], np.full(len(nights()), wanted))


def test_times_outside_any_window_are_outside() -> None:
    year_1, year_9999 = -62_000_000_000_000_000, 253_000_000_000_000_000
    rows = [one(at)._replace(entity=100, landed_day=1) for at in (year_1, CUT - 1, year_9999)]
    asked = kernel.Requests(np.array([100, 7, 10**6]), np.full(3, CUT), np.full(3, 120))
    for resolution in ("day", "instant"):
        tiles = kernel.tiles([GROUP], events_of(rows), resolution)
        found = kernel.features([GROUP], tiles, asked)
        assert found["customer_amount_count_3d"].tolist() == [1, 0, 0]
        assert found["customer_amount_distinct_all"].tolist() == [1, 0, 0]
        assert found["customer_amount_count_all"].tolist() == [2, 0, 0]


def test_an_instant_within_a_day_is_not_asked_of_days() -> None:
    tiles = kernel.tiles([GROUP], events_of([one(CUT)]), "day")
    with pytest.raises(ValueError, match="for midnights only"):
        kernel.features([GROUP], tiles, kernel.Requests(*np.array([[0], [CUT + 1], [120]])))


def test_an_entity_of_many_events_is_answered_or_refused() -> None:
    many = 200_000
    events = kernel.Events(
        entity=np.zeros(many, np.int64),
        entities=1,
        time_us=CUT + np.arange(many),
        landed_day=np.full(many, 105),
        flags={},
        values={"amount": np.arange(many) % 1_000},
        valid={"amount": np.ones(many, bool)},
    )
    asked = kernel.Requests(events.entity, events.time_us, np.full(many, 106))
    quick, slow = (
        FeatureGroup(
            name="cards", source=CARDS, entity="customer", key="customer",
            measures=(Measure(name="amount", column="amount"),),
            aggregates=(Aggregate(measure="amount", aggregations=aggregations),),
        )
        for aggregations in (("count", "sum", "max", "distinct"), ("std",))
    )  # fmt: skip
    found = kernel.features([quick], kernel.tiles([quick], events, "instant"), asked)
    assert found["customer_amount_count_all"][-1] == many - 1
    assert found["customer_amount_distinct_all"][[0, 500, -1]].tolist() == [0, 500, 1_000]
    assert found["customer_amount_max_all"][[500, -1]].tolist() == [0.0499, 0.0999]
    with pytest.raises(
        NightshiftError, match="customer_amount_std_all would go through 19,999,900"
    ):
        kernel.features([slow], kernel.tiles([slow], events, "instant"), asked)


def test_narrow_integers_are_as_good_as_wide_ones() -> None:
    rows = [one(CUT - 1 - i * kernel.DAY_US, amount=2**30, entity=i % 4) for i in range(9)]
    wide = events_of(rows)
    narrow = kernel.Events(
        wide.entity.astype(np.int32), 4, wide.time_us, wide.landed_day.astype(np.int32),
        wide.flags,
        {n: v.astype(np.int32) if n in ("amount", "text") else v for n, v in wide.values.items()},
        wide.valid,
    )  # fmt: skip
    asked = kernel.Requests(nights().entity.astype(np.int16), nights().time_us, nights().known_day)
    found, expected = (
        kernel.features([GROUP], kernel.tiles([GROUP], events, "day"), requests)
        for events, requests in ((narrow, asked), (wide, nights()))
    )
    assert bits(found) == bits(expected)


def test_a_sum_label() -> None:
    label = Sum(source=CARDS, key="customer", column="amount", horizon_days=2)
    rows = [one(CUT, amount=20_000), one(CUT + 2 * kernel.DAY_US), one(CUT - 1)]
    tiles = kernel.tiles([label.group], events_of(rows), "day")
    asked = kernel.Requests(np.array([0, 1]), np.array([CUT, CUT]), np.array([120, 120]))
    found = kernel.features([label.group], tiles, asked)
    assert kernel.label_values(label, found).tolist() == [2.0, 0.0]


def test_a_report_counts_from_the_day_after_it_came() -> None:
    day = np.array([0, 108, 109, 100, 100])
    found = kernel.reported(
        is_reported=np.array([True, True, True, True, False]),
        reported_day=day,
        has_day=day > 0,
        landed_day=np.array([100, 100, 100, 109, 100]),
        known_day=109,
    )
    assert found.tolist() == [0, 1, 0, 0, 0]


def test_a_snapshot_request_is_a_midnight() -> None:
    asked = kernel.Requests.snapshot(np.array([3]), date(1970, 1, 3), date(1970, 1, 5))
    assert (asked.entity[0], asked.time_us[0], asked.known_day[0]) == (3, 2 * kernel.DAY_US, 4)
