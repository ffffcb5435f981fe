"""The demo shop: the same bytes for the same seed, every ingredient, and a label to learn."""

import csv
import gzip
import io
import json
from collections import Counter
from datetime import date, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from nightshift.demo_data.run import MARKER, demo_as_of, write_landing
from nightshift.demo_data.shop import open_days
from nightshift.errors import NightshiftError

SMALL = {"customers": 60, "start": date(2024, 1, 1), "end": date(2024, 6, 30), "lines": 2_000}
COLUMNS = [
    "Invoice",
    "StockCode",
    "Description",
    "Quantity",
    "InvoiceDate",
    "Price",
    "Customer ID",
    "Country",
]


def files(landing: Path) -> dict[str, bytes]:
    return {p.parent.name: p.read_bytes() for p in landing.glob("order_lines/*/*.csv.gz")}


def rows(landing: Path) -> list[list[str]]:
    found: list[list[str]] = []
    for packed in files(landing).values():
        header, *data = csv.reader(io.StringIO(gzip.decompress(packed).decode(), newline=""))
        assert header == COLUMNS
        found += data
    return found


@pytest.fixture(scope="module")
def default_landing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    landing = tmp_path_factory.mktemp("demo")
    write_landing(landing)
    return landing


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    write_landing(tmp_path / "a", **SMALL, seed=1)
    write_landing(tmp_path / "b", **SMALL, seed=1, processes=2)
    write_landing(tmp_path / "c", **SMALL, seed=2)

    assert files(tmp_path / "a") == files(tmp_path / "b")
    assert files(tmp_path / "a") != files(tmp_path / "c")


def test_one_folder_for_each_open_day(tmp_path: Path) -> None:
    written = write_landing(tmp_path, **SMALL)

    days = [date.fromisoformat(name.removeprefix("ds=")) for name in files(tmp_path)]
    assert len(days) == written.folders == int(open_days(SMALL["start"], SMALL["end"]).sum())
    assert not [day for day in days if day.weekday() == 5]
    assert written.rows == len(rows(tmp_path))
    assert written.as_of == demo_as_of(tmp_path) == date(2024, 4, 1)


def test_every_ingredient_is_there(default_landing: Path) -> None:
    lines = rows(default_landing)
    whole = [line for line in lines if len(line) == 8]
    sold = {(line[1], line[5], line[6], -int(line[3])) for line in whole if _is_number(line[3])}
    cancelled = [line for line in whole if line[0].startswith("C") and _is_number(line[3])]

    assert 200_000 < len(lines) < 260_000
    assert 0.15 < sum(not line[6] for line in whole) / len(whole) < 0.25
    assert {"POST", "M", "D", "TEST001"} <= {line[1] for line in whole}
    assert cancelled
    assert all(int(line[3]) < 0 for line in cancelled)
    known = [line for line in cancelled if line[1] and _is_instant(line[4])]
    assert all((line[1], line[5], line[6], int(line[3])) in sold for line in known)
    assert sum(times - 1 for times in Counter(map(tuple, lines)).values()) > 500
    broken = {
        "number": sum(not _is_number(line[3]) for line in whole),
        "date": sum(not _is_instant(line[4]) for line in whole),
        "missing value": sum(not line[1] for line in whole),
        "missing fields": len(lines) - len(whole),
    }
    assert all(1 <= times <= 50 for times in broken.values()), broken


def test_customers_leave_at_a_rate_that_can_be_learned(default_landing: Path) -> None:
    as_of = demo_as_of(default_landing)
    days: dict[str, set[date]] = {}
    spent: Counter[str] = Counter()
    for line in rows(default_landing):
        if len(line) == 8 and line[6] and not line[0].startswith("C") and _is_instant(line[4]):
            days.setdefault(line[6], set()).add(date.fromisoformat(line[4][:10]))
            spent[line[6]] += abs(float(line[5]) * int(line[3])) if _is_number(line[3]) else 0
    past = {c: [d for d in when if d < as_of] for c, when in days.items()}
    year = as_of - timedelta(days=365)
    population = [c for c, when in past.items() if when and max(when) >= year]
    horizon = as_of + timedelta(days=90)
    churned = [c for c in population if not any(as_of <= d < horizon for d in days[c])]

    assert len(population) > 1_000
    assert 0.30 < len(churned) / len(population) < 0.65
    # Heavy tails: the best tenth of the customers has most of the money.
    amounts = np.sort(list(spent.values()))[::-1]
    assert amounts[: len(amounts) // 10].sum() > 0.5 * amounts.sum()
    # The label matures: data goes on for the whole horizon.
    assert max(max(when) for when in days.values()) >= horizon - timedelta(days=2)


def test_christmas_is_busier_than_summer(default_landing: Path) -> None:
    months = Counter(line[4][:7] for line in rows(default_landing) if len(line) == 8)

    assert months["2025-11"] > 1.2 * months["2025-07"]


def test_what_is_written_is_not_written_again(tmp_path: Path) -> None:
    first = write_landing(tmp_path, **SMALL)
    times = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.gz")}

    assert write_landing(tmp_path, **SMALL) == first
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.gz")} == times


def test_a_killed_write_is_completed(tmp_path: Path) -> None:
    write_landing(tmp_path, **SMALL)
    whole = files(tmp_path)
    marker = json.loads((tmp_path / MARKER).read_text())
    del marker["rows"]
    (tmp_path / MARKER).write_text(json.dumps(marker))
    next(tmp_path.rglob("*.gz")).unlink()

    write_landing(tmp_path, **SMALL)

    assert files(tmp_path) == whole


def test_files_of_others_are_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "order_lines").mkdir()
    (tmp_path / "order_lines" / "mine.csv").touch()

    with pytest.raises(NightshiftError, match="not empty and was not written by"):
        write_landing(tmp_path, **SMALL)

    assert (tmp_path / "order_lines" / "mine.csv").exists()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"customers": 0}, "customers is 0"),
        ({"lines": -1}, "lines is -1"),
        ({"end": date(2024, 2, 1)}, "31 days; the last 90 are kept"),
    ],
)
def test_sizes_that_cannot_be(tmp_path: Path, wrong: dict, message: str) -> None:
    with pytest.raises(NightshiftError, match=message):
        write_landing(tmp_path / "x", **(SMALL | wrong))


def test_a_landing_zone_of_others_has_no_demo_as_of(tmp_path: Path) -> None:
    with pytest.raises(NightshiftError, match="not a demo landing zone"):
        demo_as_of(tmp_path)


def _is_number(text: str) -> bool:
    return text.lstrip("-").isdigit()


def _is_instant(text: str) -> bool:
    try:
        datetime.fromisoformat(text)
    except ValueError:
        return False
    return True
