"""Demo payments: the Handbook's rates and frauds, and one report of each, seven days late."""

import csv
import gzip
from collections import Counter
from datetime import date, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from nightshift.contracts import load_contract
from nightshift.demo_data.payments import (
    COMPROMISED_DAYS,
    FRAUD_ABOVE,
    Payments,
    make_holders,
    payments_csv,
    payments_of,
    reports_csv,
)
from nightshift.demo_data.run import write_landing
from nightshift.errors import NightshiftError

FIRST = date(2025, 9, 1)
SMALL = {
    "customers": 20, "start": date(2025, 12, 1), "end": date(2026, 3, 31), "lines": 400,
    "card_holders": 80,
}  # fmt: skip


@pytest.fixture(scope="module")
def days() -> dict[date, Payments]:
    holders = make_holders(2_000, seed=1)
    return {
        day: payments_of(holders, day) for day in (FIRST + timedelta(days=n) for n in range(70))
    }


def landed(landing: Path, source: str) -> dict[date, list[dict[str, str]]]:
    found = {}
    for path in sorted(landing.glob(f"{source}/ds=*/{source}.csv.gz")):
        rows = csv.DictReader(gzip.decompress(path.read_bytes()).decode().splitlines())
        assert rows.fieldnames == [column.name for column in load_contract(source).columns]
        found[date.fromisoformat(path.parent.name.removeprefix("ds="))] = list(rows)
    return found


def landed_rows(landing: Path, source: str) -> int:
    return sum(
        gzip.decompress(path.read_bytes()).count(b"\n") - 1
        for path in landing.glob(f"{source}/*/*.gz")
    )


def share(days: dict[date, Payments], scenario: int) -> float:
    scenarios = np.concatenate([payments.scenario for payments in days.values()])
    return float((scenarios == scenario).mean())


def test_rates_are_those_of_the_handbook_from_the_first_day_on(days: dict[date, Payments]) -> None:
    payments = [len(day.second) for day in days.values()]
    amounts = np.concatenate([day.amount[day.scenario == 0] for day in days.values()])

    # Poisson of 0 to 4 a holder, of whose instants a normal distribution keeps 97 in 100 in the day
    assert 1.85 < np.mean(payments) / 2_000 < 2.0
    assert 50 < amounts.mean() < 57
    assert amounts.min() >= 0
    # 56 of 10,000 terminals are compromised at a time; 42 of 5,000 cards stolen, one in three used
    assert 0.0040 < share(days, 2) < 0.0072
    assert 0.0019 < share(days, 3) < 0.0037
    assert 0.0002 < share(days, 1) < 0.0010
    first_week = {day: days[day] for day in list(days)[:7]}
    assert share(first_week, 2) > 0.5 * share(days, 2)


def test_frauds_are_of_three_kinds(days: dict[date, Payments]) -> None:
    made = [np.stack([d.terminal, d.scenario, d.amount]) for d in days.values()]
    day = np.repeat(np.arange(len(made)), [each.shape[1] for each in made])
    terminal, scenario, amount = np.concatenate(made, axis=1)

    assert amount[scenario == 0].max() <= FRAUD_ABOVE < amount[scenario == 1].min()
    assert 4 < amount[scenario == 3].mean() / amount[scenario == 0].mean() < 6
    lengths = []
    for compromised in np.unique(terminal[scenario == 2]):
        at = terminal == compromised
        first, last = day[at & (scenario == 2)][[0, -1]]
        assert scenario[at & (first <= day) & (day <= last)].all()
        lengths.append(last - first + 1)
    assert COMPROMISED_DAYS - 8 < np.percentile(lengths, 75) <= COMPROMISED_DAYS


def test_a_day_depends_on_its_date_and_seed_alone() -> None:
    holders = make_holders(50, seed=1)
    alone = payments_csv(payments_of(holders, FIRST), FIRST)

    payments_of(holders, FIRST - timedelta(days=1))
    assert payments_csv(payments_of(make_holders(50, seed=1), FIRST), FIRST) == alone
    assert payments_csv(payments_of(make_holders(50, seed=2), FIRST), FIRST) != alone


def test_holders_pay_at_terminals_of_their_own() -> None:
    holders = make_holders(3, seed=1)

    assert (holders.near_count >= 1).all()
    assert len(holders.near) == holders.near_count.sum()
    assert set(holders.near) <= set(range(holders.terminals))


def test_every_fraud_has_one_report_seven_days_later(tmp_path: Path) -> None:
    written = write_landing(tmp_path, **SMALL)
    payments, reports = landed(tmp_path, "card_transactions"), landed(tmp_path, "chargebacks")
    holders = make_holders(80, seed=20111209)

    paid = {row["transaction_id"]: row["transaction_at"] for d in payments.values() for row in d}
    assert len(paid) == sum(map(len, payments.values()))
    assert list(payments) == [SMALL["start"] + timedelta(days=n) for n in range(121)]
    for day, rows in payments.items():
        made = payments_of(holders, day)
        frauds = made.transaction_id[made.scenario > 0].astype(str).tolist()
        known = reports.get(day + timedelta(days=7), [])
        if day + timedelta(days=7) <= SMALL["end"]:
            assert [row["transaction_id"] for row in known] == frauds
        instants = [datetime.fromisoformat(row["transaction_at"]) for row in rows]
        assert instants == sorted(instants)
        assert {instant.date() for instant in instants} == {day}
    reported = [row for rows in reports.values() for row in rows]
    assert len(reported) > 20
    assert set(Counter(row["transaction_id"] for row in reported).values()) == {1}
    for row in reported:
        delay = datetime.fromisoformat(row["reported_at"]) - datetime.fromisoformat(
            paid[row["transaction_id"]]
        )
        assert timedelta(days=6) < delay < timedelta(days=7)
    assert max(reports) <= SMALL["end"]
    lines = landed_rows(tmp_path, "order_lines")
    assert written.rows == lines + len(paid) + len(reported)


def test_a_day_without_fraud_has_no_report() -> None:
    genuine = Payments(
        *(np.array([n]) for n in (1, 2, 3, 4)), amount=np.array([5.5]), scenario=np.array([0])
    )

    assert payments_csv(genuine, FIRST).splitlines()[1:] == [b"1,2025-09-01 00:00:02,3,4,5.5"]
    assert reports_csv(genuine, FIRST) == b"transaction_id,reported_at\n"


def test_the_shop_is_the_same_with_cards_and_without(tmp_path: Path) -> None:
    write_landing(tmp_path, **(SMALL | {"card_holders": 0}))
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["order_lines"]
    shop = {p.parent.name: p.read_bytes() for p in tmp_path.glob("order_lines/*/*.gz")}

    write_landing(tmp_path, **SMALL)

    assert {p.parent.name: p.read_bytes() for p in tmp_path.glob("order_lines/*/*.gz")} == shop
    assert landed_rows(tmp_path, "card_transactions") > 10_000


def test_a_number_of_holders_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(NightshiftError, match="card_holders is -1"):
        write_landing(tmp_path, **(SMALL | {"card_holders": -1}))
