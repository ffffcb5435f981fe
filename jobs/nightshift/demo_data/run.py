"""Write the demo's landing zone, a shop's and its cards': the same bytes for the same seed."""

import gzip
import json
import logging
import multiprocessing
import os
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from nightshift.demo_data.payments import (
    REPORTING_DELAY_DAYS,
    make_holders,
    payments_csv,
    payments_of,
    reports_csv,
)
from nightshift.demo_data.shop import Orders, day_csv, open_days, simulate_orders
from nightshift.errors import NightshiftError

_log = logging.getLogger(__name__)

ORDER_LINES, PAYMENTS, REPORTS = "order_lines", "card_transactions", "chargebacks"
DEMO_START = date(2024, 1, 1)
DEMO_END = date(2026, 3, 31)
LABEL_DAYS = 90
"""Days of data after the demo's as_of, so that its labels are mature."""
PAYMENT_DAYS = 120
"""Days of payments before the demo's as_of: for a month of features, training, and reports."""
MARKER = ".nightshift-demo.json"
_POOL_FROM_LINES = 1_000_000
_DAYS_A_TASK = 14


@dataclass(frozen=True)
class DemoData:
    """What was written, of all sources; ``as_of`` is the date to run on, its labels are known."""

    landing: Path
    as_of: date
    folders: int
    rows: int
    bytes: int


@dataclass(frozen=True)
class _Days:
    """What a process needs to write some days."""

    landing: Path
    start: date
    seed: int
    days: tuple[tuple[int, Orders, Orders], ...]


def is_written(landing: Path) -> bool:
    """True when ``landing`` holds demo data, written to its end."""
    try:
        return "rows" in json.loads((landing / MARKER).read_text())
    except (OSError, ValueError):
        return False


def demo_as_of(landing: Path) -> date:
    """The ``as_of`` to run a demo landing zone on.

    Raises:
        NightshiftError: when ``landing`` was not written by :func:`write_landing`.
    """
    try:
        return date.fromisoformat(json.loads((landing / MARKER).read_text())["as_of"])
    except (OSError, KeyError, ValueError) as error:
        raise NightshiftError(
            f"{landing} is not a demo landing zone (no readable {MARKER})",
            "name an as_of, or write demo data with `nightshift demo-data`",
        ) from error


def write_landing(
    landing: Path,
    *,
    customers: int = 2_500,
    start: date = DEMO_START,
    end: date = DEMO_END,
    lines: int = 225_000,
    card_holders: int = 0,
    seed: int = 20111209,
    processes: int | None = None,
) -> DemoData:
    """Write ``<landing>/order_lines/ds=YYYY-MM-DD/order_lines.csv.gz`` for each open day.

    With holders of cards also ``card_transactions``, for each day from 120 days before the demo's
    ``as_of``, and ``chargebacks``: the day's frauds, in the folder of the day seven days later.

    Args:
        landing: a folder that is missing, empty, or was written by this function.
        customers: how many customers the shop has ever had.
        start: first day.
        end: last day, included; at least 90 days after the demo's ``as_of``.
        lines: how many order lines there are in all, about.
        card_holders: who make two payments a day, on average; 0 for no card data.
        seed: the same arguments and seed give the same bytes.
        processes: how many write in parallel; by default as many as there are cores.

    Raises:
        NightshiftError: when an argument is out of range, or ``landing`` holds other files.
    """
    as_of = _require_sizes(customers, start, end, lines, card_holders)
    asked = {
        "customers": customers,
        "start": start.isoformat(),
        "end": end.isoformat(),
        "lines": lines,
        "card_holders": card_holders,
        "seed": seed,
        "as_of": as_of.isoformat(),
    }
    marker = landing / MARKER
    written = _require_own(landing)
    if written is not None and {k: written.get(k) for k in asked} == asked and "rows" in written:
        _log.info("%s holds this demo data already", landing)
        return DemoData(landing, as_of, written["folders"], written["rows"], written["bytes"])
    landing.mkdir(parents=True, exist_ok=True)
    _write_marker(marker, asked)
    for source in (ORDER_LINES, PAYMENTS, REPORTS):
        shutil.rmtree(landing / source, ignore_errors=True)

    _log.info("simulating %s customers from %s to %s", f"{customers:,}", start, end)
    orders = simulate_orders(customers=customers, start=start, end=end, lines=lines, seed=seed)
    days = int(np.count_nonzero(open_days(start, end)))
    folders = rows = size = 0
    shown = time.monotonic()
    for day_rows, day_bytes in _written(
        list(_tasks(landing, orders, start, end, seed)),
        processes or (os.cpu_count() or 1) if lines >= _POOL_FROM_LINES else 1,
    ):
        folders, rows, size = folders + 1, rows + day_rows, size + day_bytes
        if time.monotonic() - shown > 2:
            shown = time.monotonic()
            _log.info("wrote %d/%d days, %s lines", folders, days, f"{rows:,}")
    paid_from = max(start, as_of - timedelta(days=PAYMENT_DAYS))
    for day_rows, day_bytes in _write_payments(landing, card_holders, paid_from, end, seed):
        folders, rows, size = folders + 1, rows + day_rows, size + day_bytes
    _write_marker(marker, asked | {"folders": folders, "rows": rows, "bytes": size})
    _log.info("%s: %d folders, %s rows, run it as of %s", landing, folders, f"{rows:,}", as_of)
    return DemoData(landing, as_of, folders, rows, size)


def _require_sizes(customers: int, start: date, end: date, lines: int, card_holders: int) -> date:
    as_of = end - timedelta(days=LABEL_DAYS)
    least = {"customers": (customers, 1), "lines": (lines, 1), "card_holders": (card_holders, 0)}
    for name, (value, lowest) in least.items():
        if value < lowest:
            raise NightshiftError(f"{name} is {value}", f"choose {name} of {lowest} or more")
    if as_of <= start:
        raise NightshiftError(
            f"from {start} to {end} is {(end - start).days} days; the last {LABEL_DAYS} are kept"
            " for labels",
            "choose a later end or an earlier start",
        )
    return as_of


def _require_own(landing: Path) -> dict[str, Any] | None:
    """What the marker says, or None for a folder that is missing or empty."""
    if landing.exists() and not landing.is_dir():
        raise NightshiftError(f"{landing} is not a folder", "choose another landing folder")
    if not landing.exists() or not any(landing.iterdir()):
        return None
    try:
        written: dict[str, Any] = json.loads((landing / MARKER).read_text())
    except (OSError, ValueError):
        raise NightshiftError(
            f"{landing} is not empty and was not written by `nightshift demo-data`",
            "choose an empty folder; demo data never replaces files of your own",
        ) from None
    return written


def _write_marker(marker: Path, content: dict[str, Any]) -> None:
    temporary = marker.with_name(marker.name + ".tmp")
    temporary.write_text(json.dumps(content, indent=1) + "\n")
    temporary.replace(marker)


def _tasks(landing: Path, orders: Orders, start: date, end: date, seed: int) -> Iterator[_Days]:
    opened = np.flatnonzero(open_days(start, end))
    back = orders.take(orders.returned_day >= 0)
    back = back.take(np.argsort(back.returned_day, kind="stable"))

    def of_day(of: Orders, days: Any, day: int) -> Orders:
        low, high = np.searchsorted(days, [day, day + 1])
        return of.take(slice(low, high))

    for first in range(0, len(opened), _DAYS_A_TASK):
        yield _Days(
            landing,
            start,
            seed,
            tuple(
                (int(day), of_day(orders, orders.day, day), of_day(back, back.returned_day, day))
                for day in opened[first : first + _DAYS_A_TASK]
            ),
        )


def _written(tasks: list[_Days], processes: int) -> Iterator[tuple[int, int]]:
    """Rows and bytes of each day, as they are written."""
    if processes == 1:
        for task in tasks:
            yield from map(_day_writer(task), task.days)
        return
    # Not fork: the caller may have threads.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        for written in pool.map(_write_days, tasks):
            yield from written


def _write_days(task: _Days) -> list[tuple[int, int]]:
    return [_day_writer(task)(day) for day in task.days]


def _day_writer(task: _Days) -> Callable[[tuple[int, Orders, Orders]], tuple[int, int]]:
    def write(day: tuple[int, Orders, Orders]) -> tuple[int, int]:
        number, sold, cancelled = day
        landed_date = task.start + timedelta(days=number)
        return _land(
            task.landing, ORDER_LINES, landed_date, day_csv(sold, cancelled, landed_date, task.seed)
        )

    return write


def _write_payments(
    landing: Path, card_holders: int, first: date, last: date, seed: int
) -> Iterator[tuple[int, int]]:
    """Rows and bytes of each folder of payments and of reports, as they are written."""
    if not card_holders:
        return
    holders = make_holders(card_holders, seed)
    for number in range((last - first).days + 1):
        day = first + timedelta(days=number)
        payments = payments_of(holders, day)
        yield _land(landing, PAYMENTS, day, payments_csv(payments, day))
        reported = day + timedelta(days=REPORTING_DELAY_DAYS)
        if reported <= last and payments.scenario.any():
            yield _land(landing, REPORTS, reported, reports_csv(payments, day))


def _land(landing: Path, source: str, landed_date: date, text: bytes) -> tuple[int, int]:
    """Write a day's file; its rows and bytes."""
    packed = gzip.compress(text, compresslevel=1, mtime=0)
    folder = landing / source / f"ds={landed_date.isoformat()}"
    # Ingest passes over names that begin with a dot.
    temporary = folder.with_name(f".{folder.name}.tmp")
    temporary.mkdir(parents=True)
    (temporary / f"{source}.csv.gz").write_bytes(packed)
    temporary.rename(folder)
    return text.count(b"\n") - 1, len(packed)
