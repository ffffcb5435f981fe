"""A simulated gift shop: orders first, then the lines of any day from its orders alone.

Customers buy in their own rhythm (gamma gaps in seasonal time) and really leave: after each order
with a hazard that rises with a return of that order and falls with the breadth of what they buy.
A customer who is silent for long *against their own rhythm* has therefore most likely left.

Every attribute of a line is a hash of (seed, order, line), so a later cancellation can repeat the
line that it cancels, and days can be written in any order, in parallel, with the same bytes.
"""

import csv
import io
from dataclasses import dataclass, replace
from datetime import date, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

HEADER = "Invoice,StockCode,Description,Quantity,InvoiceDate,Price,Customer ID,Country\n"
CATEGORIES, PER_CATEGORY = 40, 80
BURN_IN_DAYS = 400
ANONYMOUS_SHARE = 0.2
DUPLICATE_SHARE = 0.006
BROKEN_SHARE = 0.0001
SATURDAY = 5

_COUNTRIES = (
    "United Kingdom",
    "Germany",
    "France",
    "EIRE",
    "Spain",
    "Netherlands",
    "Channel Islands",
)
_COUNTRY_SHARES = (0.9, 0.025, 0.025, 0.02, 0.01, 0.01, 0.01)
_QUANTITIES = np.array([1, 1, 1, 2, 2, 3, 4, 6, 6, 8, 12, 12, 24])
_ADJECTIVES = (
    "RED",
    "BLUE",
    "IVORY",
    "VINTAGE",
    "RETRO",
    "PINK",
    "WOODEN",
    "GLASS",
    "SMALL",
    "LARGE",
)
_NOUNS = ("HEART", "LANTERN", "MUG", "LUNCH BOX", "CUSHION", "CANDLE", "BUNTING", "CLOCK")
_PACKS = ("", " SET OF 3", " SET/6", ", BOXED")
# (code, description, share of lines): what is on an invoice and is no product.
_SPECIALS = (
    ("POST", "POSTAGE", 0.004),
    ("M", "Manual", 0.0015),
    ("D", "Discount", 0.001),
    ("TEST001", "This is a test product.", 0.0003),
)


@dataclass(frozen=True)
class Orders:
    """One row an order, sorted by day; all arrays have the same length.

    Attributes:
        order_id: int64, the key of every hash.
        day: days since the start.
        returned_day: the day on which part of it is cancelled, or -1.
        customer: customer number, or -1 for an anonymous order.
        lines: number of lines, at least 1.
        invoice, cancellation_invoice: invoice numbers.
        minute: minute of the day.
        base_category, breadth: which categories it is bought from.
        bulk: factor on quantities.
    """

    order_id: Ints
    day: Ints
    returned_day: Ints
    customer: Ints
    lines: Ints
    invoice: Ints
    cancellation_invoice: Ints
    minute: Ints
    base_category: Ints
    breadth: Ints
    bulk: Floats

    def take(self, which: NDArray[np.bool_] | Ints | slice) -> "Orders":
        """The orders at a mask, at indices or in a slice."""
        return Orders(**{name: values[which] for name, values in vars(self).items()})

    def __len__(self) -> int:
        return len(self.order_id)


def open_days(start: date, end: date) -> NDArray[np.bool_]:
    """Whether the shop is open, for each day from ``start`` to ``end``, both included."""
    days = [start + timedelta(days=i) for i in range((end - start).days + 1)]
    return np.array([_is_open(day) for day in days])


def simulate_orders(*, customers: int, start: date, end: date, lines: int, seed: int) -> Orders:
    """All orders from ``start`` to ``end``, both included, with about ``lines`` lines in all."""
    rng = np.random.default_rng(seed)
    first = start - timedelta(days=BURN_IN_DAYS)
    clock = np.cumsum(_intensity(first, end))
    arrived = rng.uniform(0, clock[-1], customers)
    gap = np.exp(rng.normal(np.log(55.0), 1.1, customers)).clip(3, 260)
    breadth = rng.integers(1, 13, customers)
    returning = rng.beta(0.6, 4.0, customers)
    frailty = rng.normal(0, 0.5, customers)
    basket = np.exp(rng.normal(0, 0.6, customers))
    bulk = np.exp(rng.normal(0, 0.9, customers)).clip(0.3, 60)
    base = rng.integers(0, CATEGORIES, customers)

    # One round an order: every customer who is still there buys once more.
    rounds: list[tuple[Ints, Floats, NDArray[np.bool_]]] = []
    alive, instant = np.arange(customers), arrived.copy()
    while len(alive):
        returned = rng.random(len(alive)) < returning[alive]
        rounds.append((alive, instant[alive].copy(), returned))
        hazard = 1 / (
            1 + np.exp(3.4 - 3.0 * returned + 0.4 * (breadth[alive] - 6.5) - frailty[alive])
        )
        alive = alive[rng.random(len(alive)) > hazard]
        instant[alive] += rng.gamma(2.0, gap[alive] / 2.0)
        alive = alive[instant[alive] < clock[-1]]

    customer = np.concatenate([r[0] for r in rounds])
    day = np.searchsorted(clock, np.concatenate([r[1] for r in rounds]), side="right")
    day = day.astype(np.int64) - BURN_IN_DAYS
    returned = np.concatenate([r[2] for r in rounds])
    kept = day >= 0
    customer, day, returned = customer[kept], day[kept], returned[kept]
    known = len(customer)

    strangers = round(known * ANONYMOUS_SHARE / (1 - ANONYMOUS_SHARE))
    shop_clock = clock[BURN_IN_DAYS:]
    stranger_day = np.searchsorted(
        shop_clock, rng.uniform(clock[BURN_IN_DAYS - 1], clock[-1], strangers), side="right"
    )
    customer = np.concatenate([customer, np.full(strangers, -1)])
    day = np.concatenate([day, stranger_day])
    returned = np.concatenate([returned, np.zeros(strangers, bool)])
    total = known + strangers

    def of_customer(values: NDArray[np.generic], for_strangers: NDArray[np.generic]) -> Any:
        return np.concatenate([values[customer[:known]], for_strangers])

    weight = of_customer(basket, np.ones(strangers)) * rng.gamma(1.5, 1 / 1.5, total)
    counts = np.maximum(1, rng.poisson(weight * (lines / max(weight.sum(), 1e-9))))
    opened = open_days(start, end)
    next_open = _next_open(opened)
    back = day + rng.integers(1, 21, total)
    back = np.where(returned & (back < len(opened)), next_open[back.clip(0, len(opened) - 1)], -1)
    minute = rng.integers(8 * 60, 18 * 60, total)

    in_time = np.lexsort((minute, day))
    unnumbered = Orders(
        order_id=np.arange(total),
        day=day[in_time],
        returned_day=back[in_time],
        customer=customer[in_time],
        lines=counts[in_time],
        invoice=np.zeros(total, np.int64),
        cancellation_invoice=np.zeros(total, np.int64),
        minute=minute[in_time],
        base_category=of_customer(base, rng.integers(0, CATEGORIES, strangers))[in_time],
        breadth=of_customer(breadth, rng.integers(1, 13, strangers))[in_time],
        bulk=of_customer(bulk, np.ones(strangers))[in_time],
    )
    return _numbered(unnumbered)


def day_csv(sold: Orders, cancelled: Orders, day: date, seed: int) -> bytes:
    """The file of one day: the orders sold on it, and those of which part is cancelled on it."""
    rows = pa.concat_arrays(
        [
            _rows(sold, day, seed, is_cancellation=False),
            _rows(cancelled, day, seed, is_cancellation=True),
        ]
    )
    position = np.arange(len(rows))
    day_seed = seed ^ (day.toordinal() << 20)
    twice = np.flatnonzero(_uniform(day_seed, position, 0, 20) < DUPLICATE_SHARE)
    is_broken = _uniform(day_seed, position, 0, 21) < BROKEN_SHARE
    kinds = _hash(day_seed, position, 0, 22) % np.uint64(4)
    damaged = [_damaged(rows[int(at)].as_py(), int(kinds[at])) for at in np.flatnonzero(is_broken)]
    whole = pa.concat_arrays([rows.filter(pa.array(~is_broken)), rows.take(pa.array(twice))])
    return HEADER.encode() + _text(whole) + "".join(damaged).encode()


def _is_open(day: date) -> bool:
    holidays = {(1, 1), (12, 24), (12, 25), (12, 26), (12, 31)}
    return day.weekday() != SATURDAY and (day.month, day.day) not in holidays


def _intensity(first: date, last: date) -> Floats:
    """How much is bought on each day, 1 on average over the year, 0 when the shop is closed."""
    days = [first + timedelta(days=i) for i in range((last - first).days + 1)]
    weekday = np.array([1.2, 1.25, 1.25, 1.35, 1.05, 0.0, 0.9])[[d.weekday() for d in days]]
    until_christmas = np.array([(date(d.year, 12, 10) - d).days for d in days])
    christmas = 1 + 0.6 * np.exp(-(((until_christmas - 20) / 25.0) ** 2))
    is_open = np.array([_is_open(d) for d in days])
    return np.asarray(np.where(is_open, weekday * christmas / 1.08, 0.0), np.float64)


def _next_open(is_open: NDArray[np.bool_]) -> Ints:
    """For each day the first open day from it on, or -1."""
    following = np.where(is_open, np.arange(len(is_open)), len(is_open))
    following = np.minimum.accumulate(following[::-1])[::-1]
    return np.where(following < len(is_open), following, -1).astype(np.int64)


def _numbered(orders: Orders) -> Orders:
    """Invoice numbers in the order in which sales and cancellations happen."""
    back = np.flatnonzero(orders.returned_day >= 0)
    days = np.concatenate([orders.day, orders.returned_day[back]])
    numbers = np.empty(len(days), np.int64)
    numbers[np.argsort(days, kind="stable")] = 500_000 + np.arange(len(days))
    cancellation = np.zeros(len(orders), np.int64)
    cancellation[back] = numbers[len(orders) :]
    return replace(orders, invoice=numbers[: len(orders)], cancellation_invoice=cancellation)


def _hash(seed: int, keys: Ints, lines: Ints | int, purpose: int) -> NDArray[np.uint64]:
    """SplitMix64 of the four; source: Steele, Lea and Flood, OOPSLA 2014."""
    mixed = np.uint64((seed * 0x9E3779B97F4A7C15 + purpose * 0xD1342543DE82EF95) % 2**64)
    bits = (keys.astype(np.uint64) << np.uint64(20)) + np.asarray(lines).astype(np.uint64)
    for salt in (mixed, np.uint64(0x9E3779B97F4A7C15)):
        bits = bits + salt
        bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        bits = bits ^ (bits >> np.uint64(31))
    return bits


def _uniform(seed: int, keys: Ints, lines: Ints | int, purpose: int) -> Floats:
    """Uniform in [0, 1)."""
    return (_hash(seed, keys, lines, purpose) >> np.uint64(11)).astype(np.float64) / 2.0**53


def _rows(orders: Orders, day: date, seed: int, *, is_cancellation: bool) -> pa.Array:
    """The day's rows as CSV text, each with its line end."""
    order = np.repeat(np.arange(len(orders)), orders.lines)
    line = np.arange(len(order)) - np.repeat(np.cumsum(orders.lines) - orders.lines, orders.lines)
    if is_cancellation:
        chosen = (line == 0) | (_uniform(seed, orders.order_id[order], line, 1) < 0.4)
        order, line = order[chosen], line[chosen]
    key = orders.order_id[order]
    category = orders.base_category[order] + (_uniform(seed, key, line, 2) * orders.breadth[order])
    within = (_uniform(seed, key, line, 3) ** 2 * PER_CATEGORY).astype(np.int64)
    product = (category.astype(np.int64) % CATEGORIES) * PER_CATEGORY + within
    special = np.searchsorted(_SPECIAL_BOUNDS, _uniform(seed, key, line, 4), side="right")
    is_special = special < len(_SPECIALS)
    product = np.where(is_special, CATEGORIES * PER_CATEGORY + special, product)
    pieces = _QUANTITIES[_hash(seed, key, line, 5) % np.uint64(len(_QUANTITIES))]
    quantity = np.maximum(1, np.rint(pieces * orders.bulk[order])).astype(np.int64)
    quantity = np.where(is_special, 1, quantity)
    is_described = _uniform(seed, key, line, 6) >= 0.0015
    customer = orders.customer[order]
    country = np.searchsorted(_COUNTRY_BOUNDS, _uniform(seed, customer, 0, 7), side="right")

    invoice = (orders.cancellation_invoice if is_cancellation else orders.invoice)[order]
    number = pa.array(invoice).cast(pa.string())
    if is_cancellation:
        number = pc.binary_join_element_wise("C", number, "")
    customer_id = pc.if_else(
        pa.array(customer < 0), "", pa.array(customer + 12_000).cast(pa.string())
    )
    return pc.binary_join_element_wise(
        number,
        _CODES.take(pa.array(product)),
        _DESCRIPTIONS.take(pa.array(np.where(is_described, product, len(_CODES)))),
        pa.array(-quantity if is_cancellation else quantity).cast(pa.string()),
        _minutes(day).take(pa.array(orders.minute[order])),
        _PRICES.take(pa.array(product)),
        customer_id,
        pc.binary_join_element_wise(_COUNTRY_NAMES.take(pa.array(country)), "\n", ""),
        ",",
    )


def _minutes(day: date) -> pa.Array:
    return pa.array([f"{day} {m // 60:02d}:{m % 60:02d}:00" for m in range(24 * 60)])


def _text(rows: pa.Array) -> bytes:
    """The strings end to end."""
    return bytes("".join(rows.to_pylist()), "utf-8")


def _damaged(row: str, kind: int) -> str:
    fields = next(csv.reader([row]))
    if kind == 0:
        fields[3] = "many"
    elif kind == 1:
        fields[4] = "2024-02-31 10:00:00"
    elif kind == 2:
        fields[1] = ""
    else:
        fields = fields[:5]
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(fields)
    return line.getvalue()


def _catalogue() -> tuple[pa.Array, pa.Array, pa.Array]:
    """Codes, descriptions as CSV text, prices; products, then specials, then no description."""
    codes, descriptions, prices = [], [], []
    for number in range(CATEGORIES * PER_CATEGORY):
        suffix = ("", "", "", "A", "B", "")[number % 6]
        codes.append(f"{20_000 + number}{suffix}")
        words = (
            _ADJECTIVES[number % len(_ADJECTIVES)],
            _NOUNS[number // 7 % len(_NOUNS)],
        )
        name = " ".join(words) + _PACKS[number // 3 % len(_PACKS)]
        descriptions.append(f'"{name}"' if "," in name else name)
        cents = int(_hash(7, np.array([number]), 0, 1)[0] % np.uint64(1000))
        prices.append(f"{0.29 + 9.7 * (cents / 1000) ** 3:.2f}")
    for code, description, _ in _SPECIALS:
        codes.append(code)
        descriptions.append(description)
        prices.append("12.50")
    return pa.array(codes), pa.array([*descriptions, ""]), pa.array(prices)


_CODES, _DESCRIPTIONS, _PRICES = _catalogue()
_SPECIAL_BOUNDS = np.cumsum([share for _, _, share in _SPECIALS])
_COUNTRY_NAMES = pa.array(_COUNTRIES)
_COUNTRY_BOUNDS = np.cumsum(_COUNTRY_SHARES)[:-1]
