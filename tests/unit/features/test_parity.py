"""Two versions of the same vectors: what counts as a difference, and what is told of it."""

from datetime import date, datetime

import pyarrow as pa

from nightshift.features.parity import (
    Comparison,
    Moved,
    Report,
    compare,
    differences,
    late,
    rebuilt,
)
from nightshift.use_cases import CHURN

NAN = float("nan")


def vectors(**columns: list[object]) -> pa.Table:
    types = {"id": pa.string(), "text": pa.string()}
    return pa.table({n: pa.array(v, types.get(n, pa.float64())) for n, v in columns.items()})


def test_the_same_vectors_in_another_order_are_the_same() -> None:
    before = vectors(id=["a", "b", "c"], x=[1.0, None, NAN], text=["u", None, "w"])

    found = compare(before, before.take([2, 0, 1]), ["id"])

    assert found == Comparison(vectors=3, moved={})
    assert found.is_same


def test_a_feature_that_differs_is_told_with_its_largest_difference() -> None:
    before = vectors(id=["a", "b", "c"], x=[1.0, 2.0, 3.0], y=[0.0, 0.0, 0.0])
    after = vectors(id=["c", "b", "a"], x=[3.5, 1.0, 1.0], y=[0.0, 0.0, 0.0])

    found = compare(before, after, ["id"])

    assert found.moved == {"x": Moved(2, 1.0, ("b",), 2.0, 1.0)}
    assert (found.vectors, found.differing, found.is_same) == (3, 2, False)


def test_a_last_bit_and_the_sign_of_zero_count() -> None:
    before = vectors(id=["a", "b"], x=[0.1 + 0.2, 0.0])
    after = vectors(id=["a", "b"], x=[0.3, -0.0])

    assert compare(before, after, ["id"]).differing == 2


def test_null_differs_from_any_number_and_any_text() -> None:
    before = vectors(id=["a", "b"], x=[None, 1.0], text=["", "u"])
    after = vectors(id=["a", "b"], x=[0.0, 1.0], text=[None, "v"])

    found = compare(before, after, ["id"])

    assert found.moved == {
        "x": Moved(1, float("inf"), ("a",), None, 0.0),
        "text": Moved(2, 0.0, ("a",), "", None),
    }


def test_vectors_and_features_of_one_version_alone() -> None:
    before = vectors(id=["a", "b"], x=[1.0, 2.0], old=[0.0, 0.0])
    after = vectors(id=["b", "c", "d"], x=[2.0, 3.0, 4.0], new=[0.0, 0.0, 0.0])

    found = compare(before, after, ["id"])

    assert (found.vectors, found.only_before, found.only_after) == (1, 1, 2)
    assert (found.dropped, found.added) == ({"old"}, {"new"})
    assert not found.is_same


def test_a_key_of_several_columns() -> None:
    before = pa.table({"c": ["1", "1"], "p": ["x", "y"], "n": [1.0, 2.0]})
    after = pa.table({"c": ["1", "1"], "p": ["y", "x"], "n": [2.0, 5.0]})

    found = compare(before, after, ["c", "p"])

    assert found.moved == {"n": Moved(1, 4.0, ("1", "x"), 1.0, 5.0)}


def test_an_empty_part() -> None:
    before = vectors(id=["a"], x=[1.0])

    assert compare(before, before[:0], ["id"]).only_before == 1
    assert compare(before[:0], before[:0], ["id"]).is_same


def test_parts_are_added_up() -> None:
    a = compare(vectors(id=["a"], x=[1.0]), vectors(id=["a"], x=[2.0]), ["id"])
    b = compare(vectors(id=["b"], x=[1.0]), vectors(id=["b"], x=[4.0]), ["id"])

    for total in (a + b, Comparison() + a + b):
        assert total.moved == {"x": Moved(2, 3.0, ("b",), 1.0, 4.0)}
        assert (total.vectors, total.differing) == (2, 2)


def test_a_late_row_happened_before_and_landed_after() -> None:
    rows = [  # happened, landed
        ("2011-05-31T23:59:59", "2011-05-31"),
        ("2011-05-31T23:59:59", "2011-06-01"),
        ("2011-06-01T00:00:00", "2011-06-01"),
        ("2010-01-01T00:00:00", "2011-06-03"),
    ]
    table = pa.table(
        {
            "invoiced_at": [datetime.fromisoformat(at) for at, _ in rows],
            "landed_date": [date.fromisoformat(day) for _, day in rows],
        }
    )

    found = late(table, CHURN.source, date(2011, 6, 1))

    assert found == {date(2011, 6, 1): 1, date(2011, 6, 3): 1}


def test_the_days_that_were_built_anew() -> None:
    then = {"2011-05-01": "a", "2011-05-02": "a", "2011-05-03": "a"}
    now = {"2011-05-01": "a", "2011-05-02": "b", "2011-05-04": "b", "2011-06-01": "b"}

    found = rebuilt(then, now, date(2011, 6, 1))

    assert found == ["2011-05-02", "2011-05-03", "2011-05-04"]
    assert rebuilt({}, now, date(2011, 6, 1)) == [], "of a night that did not keep them"


def test_the_causes_in_words() -> None:
    days = [f"2011-05-0{n}" for n in range(1, 6)]
    report = Report(
        as_of=date(2011, 6, 1), trained=Comparison(), hindsight=Comparison(vectors=1, differing=1),
        late={}, rebuilt={"order_lines": days, "other": []}, other_declaration=True,
        other_code=True, scored=None,
    )  # fmt: skip

    assert report.holds, "whatever hindsight shows"
    assert report.causes() == [
        "the declaration of the use case",
        "the code that makes features",
        "rows of order_lines that landed on 2011-05-01, 2011-05-02, 2011-05-03 and 2 more",
    ]


def test_what_two_training_sets_are_made_of_is_told_apart_in_words() -> None:
    then = {
        "rows": 1_000,
        "landed_days": {"orders": {"2011-01-01": "a", "2011-01-02": "b", "2011-01-03": "c"}},
        "parts": {"part-0": {"rows": 600, "sha256": "x"}, "part-1": {"rows": 400, "sha256": "y"}},
        "key": {"code_sha256": "before", "buckets": 2},
    }
    assert differences(then, then) == []
    now = {
        "rows": 1_001,
        "landed_days": {"orders": {"2011-01-01": "a", "2011-01-03": "d", "2011-01-04": "e"}},
        "parts": {"part-0": {"rows": 600, "sha256": "x"}, "part-1": {"rows": 401, "sha256": "z"}},
        "key": {"code_sha256": "after", "buckets": 2},
    }
    assert differences(then, now) == [
        "days of orders have landed since: 2011-01-04",
        "days of orders are gone: 2011-01-02",
        "days of orders were built anew: 2011-01-03",
        "1,000 rows then, 1,001 now",
        "1 of 2 partitions differ: part-1",
        "the code that makes features is another: before then, after now",
    ]
