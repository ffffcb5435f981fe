"""The yardsticks of ``make bench-features``: rows, SQL, and what compares the answers."""

import re
from datetime import date, datetime, timedelta
from pathlib import Path

import duckdb
import feature_workload as workload
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from answers import require_same_answers

from nightshift.errors import NightshiftError


@pytest.fixture(scope="module")
def order_lines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shop") / "order_lines"
    workload.write_order_lines(folder, customers=60, lines=4_000)
    return folder


def answer(query: str) -> pa.Table:
    return duckdb.sql(query).to_arrow_table()


def test_the_standard_workload_has_73_features_and_15_of_events() -> None:
    assert len(workload.STANDARD.feature_names) == 73
    assert len(workload.EVENT_FEATURES) == 15
    assert len(set(workload.SNAPSHOTS)) == 12


def test_the_rows_are_as_many_as_asked_for_and_of_the_whole_two_years(order_lines: Path) -> None:
    rows = f"read_parquet('{order_lines}/*/*.parquet')"
    found = duckdb.sql(
        f"""select count(*), count(distinct customer_id), min(landed_date) < date '2024-02-01',
        max(landed_date) between '2025-12-01' and '2025-12-31',
        bool_or(landed_date > invoiced_date), bool_or(customer_id is null),
        bool_and((quantity < 0) = is_cancellation), bool_and(line_amount = quantity * unit_price)
        from {rows}"""
    ).fetchall()
    assert found == [(4_000, 60, *[True] * 6)]


def test_the_same_seed_gives_the_same_rows(order_lines: Path, tmp_path: Path) -> None:
    workload.write_order_lines(tmp_path / "again", customers=60, lines=4_000)
    files = sorted(order_lines.rglob("*.parquet"))
    assert len(files) == 24
    for file in files:
        again = pq.read_table(tmp_path / "again" / file.relative_to(order_lines), partitioning=None)
        assert again.equals(pq.read_table(file, partitioning=None))


@pytest.mark.parametrize("as_of", [workload.SNAPSHOTS[0], workload.AS_OF])
def test_plain_and_tuned_sql_agree(order_lines: Path, as_of: date) -> None:
    plain = answer(workload.plain_sql(order_lines, as_of))
    tuned = answer(workload.tuned_sql(order_lines, as_of))
    assert plain.column_names == ["customer_id", "snapshot", *workload.STANDARD.feature_names]
    assert require_same_answers(plain, tuned, ("customer_id", "snapshot"), workload.EXACT) > 10


def test_an_event_sees_what_was_strictly_before_it_and_reports_of_a_week_ago(
    tmp_path: Path,
) -> None:
    at = datetime.fromisoformat("2025-07-20T12:00:00")
    day, week = timedelta(days=1), timedelta(days=7)
    tick = timedelta(microseconds=1)
    payments = [
        (0, at, 2.0),
        (1, at, 4.0),  # at the same instant: unknown to payment 0, and it to this one
        (2, at - tick, 8.0),
        (3, at - day, 16.0),  # the window's oldest instant
        (4, at - day - tick, 32.0),  # just too old for one day
        (5, at - week, 64.0),  # a fraud, too young to have been reported before 0
        (6, at - week - tick, 128.0),  # a fraud that is known
        (7, at - week - day, 256.0),  # genuine, the oldest of one day known
        (8, at - week - day - tick, 512.0),  # a fraud, older than one day known
    ]
    table = pa.table(
        {
            "transaction_id": [p[0] for p in payments],
            "transaction_at": pa.array([p[1] for p in payments], pa.timestamp("us")),
            "customer_id": ["c"] * 9,
            "terminal_id": ["t"] * 9,
            "amount": [p[2] for p in payments],
        }
    )
    for name, rows in {
        "card_transactions": table,
        "chargebacks": pa.table({"transaction_id": [5, 6, 8]}),
    }.items():
        (tmp_path / name / "month=2025-07-01").mkdir(parents=True)
        pq.write_table(rows, tmp_path / name / "month=2025-07-01" / "part-00000.parquet")

    known = answer(workload.event_sql(tmp_path)).sort_by("transaction_id").to_pylist()

    assert known[0] == known[1] | {"transaction_id": 0}
    assert known[0]["customer_payment_count_1d"] == 2
    assert known[0]["customer_amount_mean_1d"] == 12.0
    assert known[0]["terminal_payment_count_7d"] == 4
    assert known[0]["terminal_fraud_rate_1d"] == 0.5
    assert known[0]["terminal_fraud_rate_7d"] == pytest.approx(2 / 3)
    assert known[8]["customer_payment_count_30d"] == 0
    assert known[8]["customer_amount_mean_30d"] is None
    assert known[8]["terminal_fraud_rate_30d"] is None


OURS = {"key": ["a", "b", "c"], "n": [1, 2, 3], "x": [0.1, None, 3e12]}


@pytest.mark.parametrize(
    "theirs",
    [
        {},
        {"key": ["c", "b", "a"], "n": [3, 2, 1], "x": [3e12, None, 0.1]},
        {"x": [0.1 + 5e-11, None, 3e12 + 1]},
    ],
)
def test_the_same_answer_in_another_order_or_to_nine_digits_passes(theirs: dict) -> None:
    assert require_same_answers(pa.table(OURS), pa.table(OURS | theirs), ("key",), {"n"}) == 3


@pytest.mark.parametrize(
    ("theirs", "said"),
    [
        ({"n": [1, 2, 4]}, "n differs in 1 of 3 rows; at {'key': 'c'} ours is 3.0, theirs 4.0"),
        ({"x": [0.1 + 1e-9, None, 3e12]}, "x differs in 1 of 3 rows; at {'key': 'a'}"),
        ({"x": [0.1, 0.0, 3e12]}, "x differs in 1 of 3 rows; at {'key': 'b'} ours is None"),
        ({"x": [0.1, None, float("nan")]}, "x differs in 1 of 3 rows; at {'key': 'c'}"),
        ({"key": ["a", "b", "d"]}, "rows of other key: 3 of ours, 3 of theirs"),
        ({"y": [1, 2, 3]}, "columns of one side only: ['y']"),
    ],
)
def test_another_answer_is_refused_with_its_place(theirs: dict, said: str) -> None:
    with pytest.raises(NightshiftError, match=re.escape(said)):
        require_same_answers(pa.table(OURS), pa.table(OURS | theirs), ("key",), {"n"})


def test_a_missing_row_is_refused() -> None:
    with pytest.raises(NightshiftError, match="3 of ours, 2 of theirs"):
        require_same_answers(pa.table(OURS), pa.table(OURS).slice(1), ("key",), {"n"})
