"""``make bench-backfill``: thirty nights in one backfill, over one night.

The standard workload of ``make bench-features``: 10 million order lines of 200,000 customers, 73
features, extracted from Postgres before anything is timed; a model of 200 trees of depth 3, which
is what churn's parameters make, and churn's bands and reasons. Every measurement is a process with
a lake and a warehouse of its own, in which nothing is prepared:

``one_night``
    features, scores and publication of one ``as_of``, as the night does them.
``thirty_nights``
    the same of the thirty dates that end with it, in one backfill, over ``one_night``.

Imports are left out, the start of Spark is not: both start it once. The last of the thirty nights
must be the one night, byte for byte, in features and scores. Seconds also tell each stage of both,
and ``peak_mib`` is of the largest process of the thirty, Spark's JVM and workers among them.
"""

import argparse
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path

import feature_workload as workload
import numpy as np
import psycopg2
import pyarrow as pa
import pyarrow.parquet as pq
import xgboost as xgb
from bench_features import THREADS, YESTERDAY, extracted, mart

from nightshift import pipeline, use_cases
from nightshift.backfill.run import Request
from nightshift.booster import to_matrix
from nightshift.features.run import build_features
from nightshift.io import lake, model_store
from nightshift.io.warehouse import migrate
from nightshift.settings import Settings, load_settings

STANDARD = workload.STANDARD
NIGHTS = {"one_night": 1, "thirty_nights": 30}
STAGES = {
    "features": pipeline.build_features_of_nights,
    "score": pipeline.score_nights,
    "publish": pipeline.publish_nights,
}
TREES = 200
AIM = 4

Figures = dict[str, float]
"""Seconds of each stage and ``total``, ``peak_mib``."""

# the registry of these processes has one use case more
use_cases.USE_CASES = (*use_cases.USE_CASES, STANDARD)


def settings_of(url: str, root: Path, folder: Path) -> Settings:
    """Of a database of the server, and of a lake on which the extract is."""
    server = url.rsplit("/", 1)[0]
    return load_settings(
        _env_file=None,
        state_dir=folder,
        lake=folder / "lake",
        database_url=f"{server}/{folder.name}",
        reader_database_url=f"{server}/{folder.name}",
        mlflow_tracking_uri=f"{server.replace('postgresql', 'postgresql+psycopg2', 1)}/mlflow",
        spark_master=f"local[{THREADS}]",
    )


def make_database(url: str, name: str) -> None:
    with closing(psycopg2.connect(url)) as connection:
        connection.autocommit = True
        connection.cursor().execute(f"drop database if exists {name} with (force)")
        connection.cursor().execute(f"create database {name}")


def fresh(url: str, root: Path, name: str) -> Settings:
    """A warehouse without a row, and a lake with nothing but the extract."""
    folder = root / name
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "lake").mkdir(parents=True)
    (folder / "lake" / "events").symlink_to(root / "extracted" / "events")
    make_database(url, name)
    settings = settings_of(url, root, folder)
    migrate(settings)
    return settings


def register_champion(url: str, root: Path) -> None:
    """A model of who has not bought for long, with noise, learnt from one night's vectors."""
    settings = fresh(url, root, "training")
    built = build_features(settings, [STANDARD], workload.AS_OF)[STANDARD.name]
    names = list(STANDARD.feature_names)
    tables = [pq.read_table(part, partitioning=None) for part in lake.parts(built.folder)]
    matrix = to_matrix(pa.concat_tables(tables), names)
    random = np.random.default_rng(4)
    recency = matrix[:, names.index("customer_purchase_days_since_last_all")]
    logit = (recency - np.median(recency)) / np.std(recency) + random.normal(size=len(recency))
    booster = xgb.train(
        {
            "objective": "binary:logistic", "max_depth": 3, "colsample_bytree": 0.3,
            "eta": 0.05, "nthread": THREADS, "seed": 4,
        },
        xgb.DMatrix(matrix, logit > 0, feature_names=names),
        TREES,
    )  # fmt: skip
    model_store.write_model(root / "model", bytes(booster.save_raw("ubj")), {"features": names})
    mlflow = model_store.client(settings)
    experiment = model_store.experiment_id(settings, STANDARD.name)
    run = mlflow.create_run(experiment)
    mlflow.log_artifacts(run.info.run_id, str(root / "model"), model_store.MODEL)
    made = model_store.register(settings, STANDARD.name, run.info.run_id, str(YESTERDAY))
    model_store.set_alias(settings, STANDARD.name, model_store.CHAMPION, made.version)


def measure(name: str, url: str, root: Path) -> Figures:
    """The stages, one after the other."""
    settings = fresh(url, root, name)
    first = workload.AS_OF - timedelta(days=NIGHTS[name] - 1)
    request = Request(first, workload.AS_OF, (STANDARD,))
    figures: Figures = {}
    for stage, run in STAGES.items():
        began = time.perf_counter()
        run(settings, request)
        figures[stage] = time.perf_counter() - began
    used = [
        resource.getrusage(of).ru_maxrss for of in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    ]
    return figures | {"total": sum(figures.values()), "peak_mib": max(used) / 1024}


def in_a_process_of_its_own(name: str, url: str, root: Path) -> Figures:
    done = subprocess.run(
        [sys.executable, __file__, "--measure", name, "--url", url, "--folder", str(root)],
        stdout=subprocess.PIPE, text=True, check=True,
        # Spark's workers import the workload too
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    figures: Figures = json.loads(done.stdout.splitlines()[-1])
    return figures


def require_same_night(root: Path) -> None:
    """The last of the thirty is the one, byte for byte."""
    for kind in ("features", "scores"):
        found = {
            name: lake.read_manifest(
                lake.dataset_dir(root / name / "lake", kind, STANDARD.name, workload.AS_OF)
            )
            for name in NIGHTS
        }
        digests = {name: manifest and manifest["sha256"] for name, manifest in found.items()}
        if len(set(digests.values())) != 1 or None in digests.values():
            raise SystemExit(f"the {kind} of {workload.AS_OF} are not the same: {digests}")


def main(customers: int, lines: int, runs: int) -> None:
    # not in a folder that only its owner may enter: Postgres runs as an account of its own
    root = Path(tempfile.mkdtemp(prefix="nightshift-bench-"))
    root.chmod(0o755)
    try:
        rows = root / "rows"
        workload.write_order_lines(rows / "order_lines", customers, lines)
        with mart(rows) as url:
            extracted(url, root / "extracted")
            make_database(url, "mlflow")
            register_champion(url, root)
            took: dict[str, list[Figures]] = {name: [] for name in NIGHTS}
            for run in range(runs):
                for name in NIGHTS:
                    took[name].append(in_a_process_of_its_own(name, url, root))
                    print(f"run {run + 1}: {name} {took[name][-1]}", file=sys.stderr)
                require_same_night(root)
        print(json.dumps(summary(lines, took)))
    finally:
        shutil.rmtree(root)


def summary(lines: int, took: dict[str, list[Figures]]) -> dict[str, object]:
    def ratio(stage: str) -> float:
        pairs = zip(took["thirty_nights"], took["one_night"], strict=True)
        return round(statistics.median(many[stage] / one[stage] for many, one in pairs), 3)

    return {
        "name": "backfill",
        "rows": lines,
        "runs": len(took["one_night"]),
        "ratios": {
            "thirty_nights": ratio("total"),
            **{f"thirty_nights_{stage}": ratio(stage) for stage in STAGES},
        },
        "aims": {"thirty_nights": AIM},
        "seconds": {
            f"{name}_{stage}": round(statistics.median(each[stage] for each in figures), 2)
            for name, figures in took.items()
            for stage in (*STAGES, "total")
        },
        "peak_mib": round(max(each["peak_mib"] for each in took["thirty_nights"])),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("pyspark", "pyarrow", "xgboost")},
        },
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--customers", type=int, default=200_000)
    parser.add_argument("--lines", type=int, default=10_000_000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--measure", choices=NIGHTS, help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        print(json.dumps(measure(given.measure, given.url, given.folder)))
    else:
        main(given.customers, given.lines, given.runs)
