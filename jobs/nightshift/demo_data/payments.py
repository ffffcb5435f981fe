"""Simulated card payments, some of them frauds, and the reports of these a week later.

The process is that of Le Borgne, Siblini, Lebichot and Bontempi, Reproducible Machine Learning for
Credit Card Fraud Detection: Practical Handbook (2022), section 'transaction data simulator':
holders pay at terminals near them, in habits of their own, and a payment is a fraud

- because its amount is above :data:`FRAUD_ABOVE`;
- at a terminal that was compromised in the last 28 days; or
- with a card that was stolen in the last 14 days: one payment in three, of five times the amount.

A day depends on the seed, the number of holders and its date alone, so days can be made in any
order, and a longer history holds the same days as a shorter one.
"""

import io
from dataclasses import dataclass
from datetime import date, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.csv as pc
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

TERMINALS_A_HOLDER = 2
REPORTING_DELAY_DAYS = 7
COMPROMISED_DAYS = 28
STOLEN_DAYS = 14
FRAUD_ABOVE = 220.0
_COMPROMISED_A_DAY = 2 / 10_000
_STOLEN_A_DAY = 3 / 5_000
_STOLEN_SHARE, _STOLEN_FACTOR = 1 / 3, 5
_NEAR_TERMINALS = 25 * np.pi  # those within 5 of 100 by 100, of 10,000
_IDS_A_DAY = 10_000_000
_DAY_SECONDS = 86_400
_FIRST_DAY = date(2000, 1, 1)


@dataclass(frozen=True)
class Holders:
    """Holders of cards: all arrays but the last have one entry a holder.

    Attributes:
        amount: their mean amount.
        payments: how many they make a day, on average.
        first_near, near_count: where in ``near`` their terminals are.
        near: numbers of terminals, at least one a holder.
        terminals: how many there are in all.
        seed: of everything that happens to them.
    """

    amount: Floats
    payments: Floats
    first_near: Ints
    near_count: Ints
    near: Ints
    terminals: int
    seed: int


@dataclass(frozen=True)
class Payments:
    """The payments of a day by their instant; all arrays have one entry a payment.

    Attributes:
        second: of the day.
        scenario: 0 for a genuine payment; of a fraud 1 (amount), 2 (terminal) or 3 (stolen card).
    """

    transaction_id: Ints
    second: Ints
    holder: Ints
    terminal: Ints
    amount: Floats
    scenario: Ints


def make_holders(holders: int, seed: int) -> Holders:
    """Holders and terminals on a map, each holder with a habit and the terminals nearby."""
    rng = np.random.default_rng([seed, 0])
    terminals = holders * TERMINALS_A_HOLDER
    places = rng.uniform(0, 100, (terminals, 2))
    homes = rng.uniform(0, 100, (holders, 2))
    amount, payments = rng.uniform(5, 100, holders), rng.uniform(0, 4, holders)
    # as many are near as in the Handbook, however many there are
    radius = 100 * np.sqrt(_NEAR_TERMINALS / np.pi / terminals)
    near = []
    for home in homes:
        distance = np.hypot(*(places - home).T)
        near.append(np.flatnonzero(distance <= max(radius, distance.min())))
    count = np.array([len(found) for found in near])
    return Holders(
        amount, payments, np.cumsum(count) - count, count, np.concatenate(near), terminals, seed
    )


def payments_of(holders: Holders, day: date) -> Payments:
    """The payments of a day, frauds among them."""
    rng = np.random.default_rng([holders.seed, 1, day.toordinal()])
    holder = np.repeat(np.arange(len(holders.amount)), rng.poisson(holders.payments))
    second = rng.normal(_DAY_SECONDS / 2, 20_000, len(holder)).astype(np.int64)
    mean = holders.amount[holder]
    amount = rng.normal(mean, mean / 2)
    amount = np.where(amount < 0, rng.uniform(0, 2 * mean), amount)
    chosen = (rng.random(len(holder)) * holders.near_count[holder]).astype(np.int64)
    terminal = holders.near[holders.first_near[holder] + chosen]

    is_stolen = np.isin(holder, _chosen(holders, day, STOLEN_DAYS, 2)) & (
        rng.random(len(holder)) < _STOLEN_SHARE
    )
    is_compromised = np.isin(terminal, _chosen(holders, day, COMPROMISED_DAYS, 3))
    scenario = np.select([is_stolen, is_compromised, amount > FRAUD_ABOVE], [3, 2, 1], 0)
    amount = np.where(is_stolen, amount * _STOLEN_FACTOR, amount).round(2)

    in_day = np.flatnonzero((second > 0) & (second < _DAY_SECONDS))
    kept = in_day[np.argsort(second[in_day], kind="stable")]
    first_id = (day - _FIRST_DAY).days * _IDS_A_DAY
    return Payments(
        transaction_id=first_id + np.arange(len(kept)),
        second=second[kept],
        holder=holder[kept],
        terminal=terminal[kept],
        amount=amount[kept],
        scenario=scenario[kept],
    )


def _chosen(holders: Holders, day: date, days: int, purpose: int) -> Ints:
    """Whose card was stolen (purpose 2), or which terminals compromised (3), in the last days."""
    size = len(holders.amount) if purpose == 2 else holders.terminals
    rate = size * (_STOLEN_A_DAY if purpose == 2 else _COMPROMISED_A_DAY)
    found = []
    for ago in range(days):
        rng = np.random.default_rng([holders.seed, purpose, day.toordinal() - ago])
        found.append(rng.integers(0, size, rng.poisson(rate)))
    return np.concatenate(found)


def payments_csv(payments: Payments, day: date) -> bytes:
    """A landing file of ``card_transactions``."""
    return _csv(
        {
            "transaction_id": payments.transaction_id,
            "transaction_at": np.datetime64(day, "s") + payments.second,
            "customer_id": payments.holder,
            "terminal_id": payments.terminal,
            "amount": payments.amount,
        }
    )


def reports_csv(payments: Payments, day: date) -> bytes:
    """The landing file of ``chargebacks`` that reports a day's frauds, seven days after it."""
    frauds = payments.transaction_id[payments.scenario > 0]
    reported_at = np.datetime64(day + timedelta(days=REPORTING_DELAY_DAYS), "s")
    return _csv({"transaction_id": frauds, "reported_at": np.full(len(frauds), reported_at)})


def _csv(columns: dict[str, NDArray[np.generic]]) -> bytes:
    text = io.BytesIO()
    text.write((",".join(columns) + "\n").encode())
    options = pc.WriteOptions(include_header=False, quoting_style="none")
    pc.write_csv(pa.table(columns), text, options)
    return text.getvalue()
