"""``make bench-night``: a day's order lines on top of a long history, from file to checked marts.

The four stages that a night begins with (ingest, quality of what landed, dbt, quality of the marts)
run in a fresh process a night; what is timed begins after its imports. Each night lands the next
day of a demo shop. The floor, taken in turn, is the least that any warehouse does with such a day:
a prepared binary COPY into ``raw`` and one plain insert into the fact, indexes included, in a copy
of the database with the same history.
"""

import argparse
import json
import logging
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psycopg2

from nightshift.contracts import load_contract
from nightshift.demo_data.run import write_landing
from nightshift.services.postgres import EmbeddedPostgres, free_port
from nightshift.settings import Settings, load_settings

RAW = load_contract("order_lines").raw_table
FACT = "marts.fct_order_lines"
AIM_SECONDS = 15
INTO_FACT = f"""
insert into {FACT}
select
    _file_id || ':' || _row_number, invoice, invoice like 'C%%', stock_code, true, description,
    quantity, price, quantity * price, invoice_date, invoice_date::date, customer_id, country,
    _landed_date
from {RAW} where _landed_date = %s
"""


def timed(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def night(
    server: EmbeddedPostgres, settings: Settings, as_of: date
) -> tuple[dict[str, float], float]:
    """Seconds of each stage in a process of its own, and the process's peak resident MiB.

    ``cpu`` is the CPU seconds of the stages and of the server: on a busy machine they say more.
    """
    before = cpu_seconds(server)
    done = subprocess.run(
        [sys.executable, __file__, "--as-of", str(as_of), "--settings", settings.model_dump_json()],
        stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    seconds, cpu, peak = json.loads(done.stdout.splitlines()[-1])
    return seconds | {"cpu": cpu + cpu_seconds(server) - before}, peak


def cpu_seconds(server: EmbeddedPostgres) -> float:
    """Of the server's processes, those that have ended included."""
    postmaster = server.process()
    assert postmaster is not None
    ended = postmaster.cpu_times()
    running = [process.cpu_times() for process in postmaster.children()]
    return sum(t.user + t.system for t in [ended, *running]) + (
        ended.children_user + ended.children_system
    )


def run_and_measure(settings: Settings, as_of: date) -> None:
    """What :func:`night` starts."""
    # what stages import when they are called, which is of the process's start
    import dbt.cli.main  # noqa: F401
    import great_expectations  # noqa: F401

    from nightshift.ingest.run import ingest
    from nightshift.quality.run import check_landed, check_marts
    from nightshift.transform.run import build

    # the shop's broken lines are broken on purpose
    logging.getLogger("nightshift").setLevel(logging.ERROR)
    stages: dict[str, Callable[[Settings, date], Any]] = {
        "ingest": ingest,
        "check_landed": check_landed,
        "transform": build,
        "check_marts": check_marts,
    }
    before = time.process_time()
    seconds = {name: timed(lambda run=run: run(settings, as_of)) for name, run in stages.items()}
    seconds["night"] = sum(seconds.values())
    cpu = time.process_time() - before
    print(json.dumps([seconds, cpu, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]))


def landed_rows(url: str, day: date, prepared: Path) -> int:
    """Write a day's rows of ``raw`` to a file for the floor's COPY; how many they are."""
    with (
        psycopg2.connect(url) as connection,
        connection.cursor() as cursor,
        prepared.open("wb") as file,
    ):
        cursor.copy_expert(
            f"copy (select * from {RAW} where _landed_date = '{day}') to stdout (format binary)",
            file,
        )
        return int(cursor.rowcount)


def floor(url: str, day: date, prepared: Path) -> None:
    with (
        psycopg2.connect(url) as connection,
        connection.cursor() as cursor,
        prepared.open("rb") as file,
    ):
        cursor.copy_expert(f"copy {RAW} from stdin (format binary)", file, size=1 << 20)
        cursor.execute(INTO_FACT, (day,))


def main(customers: int, lines: int, runs: int) -> None:
    # not in a folder that only its owner may enter: Postgres runs as an account of its own
    root = Path(tempfile.mkdtemp(prefix="nightshift-bench-"))
    root.chmod(0o755)
    server = EmbeddedPostgres(root / "data", free_port(15700), "bench")
    try:
        shop = write_landing(root / "landing", customers=customers, lines=lines)
        server.start()
        server.ensure_database("night", "postgres")
        url, floor_url = (server.url(name, "postgres", "bench") for name in ("night", "floor"))
        settings = load_settings(
            _env_file=None, state_dir=root, landing=shop.landing, database_url=url,
            reader_database_url=url,
        )  # fmt: skip
        days = sorted(
            date.fromisoformat(folder.name.removeprefix("ds="))
            for folder in shop.landing.glob("order_lines/ds=*")
        )[-runs:]
        history, _ = night(server, settings, days[0])
        print(f"set-up: {rounded(history)}", file=sys.stderr)
        with server.superuser("night") as connection, connection.cursor() as cursor:
            # as autovacuum leaves it during the day
            cursor.execute("vacuum (analyze)")
            cursor.execute("checkpoint")
        with server.superuser() as connection, connection.cursor() as cursor:
            cursor.execute("create database floor template night strategy file_copy")
        nights: list[dict[str, float]] = []
        peaks = []
        prepared = root / "prepared.copy"
        for day in days:
            took, peak = night(server, settings, day + timedelta(days=1))
            peaks.append(peak)
            rows = landed_rows(url, day, prepared)
            took["floor"] = timed(lambda day=day: floor(floor_url, day, prepared))
            nights.append(took)
            print(f"{day}: {rows:,} rows: {rounded(took)}", file=sys.stderr)
        print(
            json.dumps(
                {
                    "name": "night",
                    "rows": shop.rows,
                    "runs": runs,
                    "ratios": rounded(
                        {
                            "of_15_seconds": statistics.median(
                                n["night"] / AIM_SECONDS for n in nights
                            ),
                            "floor": statistics.median(n["night"] / n["floor"] for n in nights),
                        }
                    ),
                    "aims": {"of_15_seconds": 1.0},
                    "seconds": rounded(
                        {name: statistics.median(n[name] for n in nights) for name in nights[0]}
                    ),
                    "peak_mib": round(max(peaks)),
                    "versions": {
                        "python": platform.python_version(),
                        "postgres": "18",
                        "dbt": version("dbt-core"),
                        "great_expectations": version("great-expectations"),
                        "pyarrow": version("pyarrow"),
                    },
                }
            )
        )
    finally:
        server.stop()
        shutil.rmtree(root)


def rounded(values: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 3) for name, value in values.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--customers", type=int, default=200_000)
    parser.add_argument("--lines", type=int, default=10_000_000)
    parser.add_argument("--runs", type=int, default=5, help="nights")
    parser.add_argument("--settings", help=argparse.SUPPRESS)
    parser.add_argument("--as-of", type=date.fromisoformat, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.settings:
        run_and_measure(Settings.model_validate_json(given.settings), given.as_of)
    else:
        main(given.customers, given.lines, given.runs)
