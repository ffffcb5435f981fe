"""``make bench-usecases``: a night of every use case, over a night of churn alone.

A demo shop of 10 million order lines and 1.2 million card payments, and two warehouses of one
server that load the same files: in one of them churn alone is scored, in the other every use case
of the registry, each by a small model of 200 shallow trees. The first night loads and computes all
of history, and is not timed. The nights after it, a day's rows each, are taken in turn, each by a
process of its own, timed from its start to its end: landing zone to publications.

``four_over_one``
    a night of every use case, over one of churn alone.
``memory``
    what features, scores and publication of the use cases of ``--in-memory`` alone hold at most,
    Spark's JVM and workers and all, over 4 GiB. It is watched in a run of its own.
"""

import argparse
import json
import logging
import platform
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import date, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import small_models
import watching

from nightshift import pipeline
from nightshift.demo_data.run import PAYMENT_DAYS, write_landing
from nightshift.features.run import build_features
from nightshift.io import lake
from nightshift.io.warehouse import migrate
from nightshift.publishing.run import publish
from nightshift.scoring.run import score
from nightshift.services import mlflow_store
from nightshift.services.postgres import EmbeddedPostgres, free_port
from nightshift.settings import Settings, load_settings
from nightshift.use_cases import USE_CASES, find_use_case

WRITER, READER, PASSWORD = "nightshift_writer", "nightshift_reader", "only-for-benchmarks"
PAYMENTS_A_DAY = 2
"""Of a holder of a card, on average."""
NIGHTS = {"one": ("churn",), "four": tuple(use_case.name for use_case in USE_CASES)}
AIMS = {"four_over_one": 1.6, "memory": 1.0}
MOST_BYTES = 4 * 2**30
TREES, MODEL_ROWS = 200, 20_000


def settings_of(server: EmbeddedPostgres, root: Path, name: str) -> Settings:
    """A warehouse and a lake of its own, on the landing zone that both read."""
    return load_settings(
        _env_file=None,
        state_dir=root / name,
        lake=root / name / "lake",
        landing=root / "landing",
        database_url=server.url(name, WRITER, PASSWORD),
        reader_database_url=server.url(name, READER, PASSWORD),
        mlflow_tracking_uri=server.url(f"{name}_mlflow", WRITER, PASSWORD, "postgresql+psycopg2"),
    )


def command(settings: Settings, names: Sequence[str], as_of: date, stages: str) -> list[str]:
    return [
        sys.executable, __file__, "--settings", settings.model_dump_json(),
        "--as-of", str(as_of), "--names", *names, "--stages", stages,
    ]  # fmt: skip


def run_night(settings: Settings, names: Sequence[str], as_of: date, stages: str) -> None:
    """What :func:`command` starts."""
    # the shop's broken lines are broken on purpose
    logging.getLogger("nightshift").setLevel(logging.ERROR)
    use_cases = [find_use_case(name) for name in names]
    if stages == "night":
        pipeline.nightly(settings, use_cases, as_of)
        return
    build_features(settings, use_cases, as_of)
    for use_case in use_cases:
        score(settings, use_case, as_of)
    publish(settings, use_cases, as_of)


def timed(settings: Settings, names: Sequence[str], as_of: date) -> float:
    began = time.perf_counter()
    watching.run(command(settings, names, as_of, "night"), is_watched=False)
    return time.perf_counter() - began


def peak_bytes(settings: Settings, names: Sequence[str], as_of: date) -> int:
    """What a night's features, scores and publication hold at most, made anew."""
    for name in names:
        for kind in ("features", "scores"):
            shutil.rmtree(lake.dataset_dir(settings.lake_dir, kind, name, as_of))
    return watching.run(command(settings, names, as_of, "scored")).peak_bytes


def main(customers: int, lines: int, payments: int, runs: int, in_memory: Sequence[str]) -> None:
    # not in a folder that only its owner may enter: Postgres runs as an account of its own
    root = Path(tempfile.mkdtemp(prefix="nightshift-bench-"))
    root.chmod(0o755)
    server = EmbeddedPostgres(root / "postgres", free_port(15740), PASSWORD)
    try:
        holders = round(payments / PAYMENT_DAYS / PAYMENTS_A_DAY)
        shop = write_landing(root / "landing", customers=customers, lines=lines,
                             card_holders=holders)  # fmt: skip
        server.start()
        server.ensure_role(WRITER, PASSWORD)
        server.ensure_role(READER, PASSWORD)
        server.ensure_group("nightshift_auditor")
        days = sorted(
            date.fromisoformat(folder.name.removeprefix("ds="))
            for folder in (root / "landing" / "order_lines").glob("ds=*")
        )
        # both kinds take each of the dates, none before the other has
        nights = [day + timedelta(days=1) for day in days if day < shop.as_of][-runs - 1 :]
        made = {}
        for name, names in NIGHTS.items():
            server.ensure_database(name, WRITER, READER)
            server.ensure_database(f"{name}_mlflow", WRITER)
            made[name] = settings_of(server, root, name)
            migrate(made[name])
            uri = made[name].mlflow_tracking_uri
            assert uri is not None
            mlflow_store.prepare(uri, root / name / "mlflow")
            for each in names:
                folder = root / name / each
                small_models.promote(made[name], find_use_case(each), folder, MODEL_ROWS, TREES)
            print(f"set-up of {name}: {timed(made[name], names, nights[0]):.1f} s", file=sys.stderr)
        taken: dict[str, list[float]] = {name: [] for name in NIGHTS}
        for as_of in nights[1:]:
            for name, names in NIGHTS.items():
                taken[name].append(timed(made[name], names, as_of))
                print(f"{as_of} of {name}: {taken[name][-1]:.1f} s", file=sys.stderr)
        held = peak_bytes(made["four"], in_memory, nights[-1]) if in_memory else 0
        print(json.dumps(summary(shop.rows, runs, taken, held)))
    finally:
        server.stop()
        shutil.rmtree(root)


def summary(rows: int, runs: int, taken: dict[str, list[float]], held: int) -> dict[str, Any]:
    seconds = {name: round(statistics.median(each), 2) for name, each in taken.items()}
    ratios = {
        "four_over_one": round(
            statistics.median(
                four / one for one, four in zip(taken["one"], taken["four"], strict=True)
            ),
            3,
        )
    }
    if held:
        ratios["memory"] = round(held / MOST_BYTES, 3)
    return {
        "name": "usecases",
        "rows": rows,
        "runs": runs,
        "ratios": ratios,
        "aims": AIMS,
        "seconds": seconds,
        "use_cases": NIGHTS["four"],
        "peak_mib": held // 2**20,
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("dbt-core", "pyspark", "xgboost")},
        },
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--customers", type=int, default=200_000)
    parser.add_argument("--lines", type=int, default=10_000_000)
    parser.add_argument("--payments", type=int, default=1_200_000)
    parser.add_argument("--runs", type=int, default=3, help="nights of each kind")
    parser.add_argument("--in-memory", nargs="*", default=["recommendations"],
                        help="use cases whose memory is watched")  # fmt: skip
    parser.add_argument("--settings", help=argparse.SUPPRESS)
    parser.add_argument("--as-of", type=date.fromisoformat, help=argparse.SUPPRESS)
    parser.add_argument("--names", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--stages", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.settings:
        read = Settings.model_validate_json(given.settings)
        run_night(read, given.names, given.as_of, given.stages)
    else:
        main(given.customers, given.lines, given.payments, given.runs, given.in_memory)
