"""``make bench-train``: a training set in the lake to a fitted model, against bare XGBoost.

A million rows of 80 features in twelve snapshots, a tenth of the values null, 300 trees of depth 6
on two threads. Every measurement is a process of its own, and all of them fit the same model:

``total``
    the product's own way from the lake's Parquet to the booster, in files where that is its
    default, over ``bare``: XGBoost on a ``QuantileDMatrix`` of a matrix that is in memory already;
    making the ``QuantileDMatrix`` is part of it, loading the matrix is not.
``peak_memory``
    what the process of ``total`` held at its most, interpreter, libraries and all, over the raw
    matrix in float32; ``bare_memory`` is that of ``bare``.
``evaluation``
    scores and metrics of the two newest snapshots with their bootstrap, and SHAP with partial
    dependence, over ``total``.
``in_memory``, ``in_memory_peak``
    the same as ``total`` and ``peak_memory`` with ``NIGHTSHIFT_TRAINING_MEMORY=in_memory``.

Seconds also tell ``read`` (Parquet to matrix, within ``total``) and ``linear`` (the baseline of the
same rows), and ``mib`` the peak of each process, what it held before its work (``imports``) and the
peak of that of ``total`` once it has evaluated too (``evaluated``).
"""

import argparse
import hashlib
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date, timedelta
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xgboost as xgb

from nightshift.baselines import fit_linear, linear_rows, linear_scores
from nightshift.booster import predict
from nightshift.io.lake import workspace, write_manifest
from nightshift.metrics import measure
from nightshift.settings import TrainingMemory, load_settings
from nightshift.spec import Model
from nightshift.training.dataset import Dataset, memory_for, read_rows
from nightshift.training.explanation import explain
from nightshift.training.fit import fit_trees, model_bytes, recipe
from nightshift.use_cases.churn import CHURN

FEATURES = tuple(f"feature_{number:02}" for number in range(80))
KEY = "customer_id"
SNAPSHOTS = tuple(date(2025, 1, 1) + timedelta(days=28 * number) for number in range(12))
PARTS = 16
TREES = 300
SEED = 20111209
RECIPE = recipe(CHURN.model_copy(update={"model": Model()}), SEED, {"max_depth": 6})

Figures = dict[str, float | str]
"""``seconds``, ``peak_mib``, ``imports_mib``, and what else a measurement tells."""


def write_training_set(folder: Path, rows: int) -> None:
    """Parts by entity, as the feature job writes them: counts, amounts and shares."""
    folder.mkdir(parents=True)
    written = 0
    for part in range(PARTS):
        random = np.random.default_rng([SEED, part])
        entities = rows // (PARTS * len(SNAPSHOTS))
        count = entities * len(SNAPSHOTS)
        taste = random.normal(size=count)
        columns: dict[str, pa.Array] = {
            KEY: pa.array([hashlib.md5(b"%d" % e).hexdigest() for e in
                           range(part * entities, (part + 1) * entities)] * len(SNAPSHOTS)),
            "snapshot": pa.array(np.repeat(np.array(SNAPSHOTS, dtype="datetime64[D]"), entities)),
        }  # fmt: skip
        logit = taste.copy()
        for number, name in enumerate(FEATURES):
            noise = random.normal(size=count)
            values = [
                np.floor(np.exp(0.5 * taste + noise)),
                np.round(np.exp(2 + 0.3 * taste + noise), 2),
                1 / (1 + np.exp(-noise)),
            ][number % 3]
            if number % 8 == 0:
                logit += 0.3 * noise
            columns[name] = pa.array(values, mask=random.random(count) < 0.1)
        labels = random.random(count) < 1 / (1 + np.exp(-logit))
        columns["label"] = pa.array(labels.astype(np.int32))
        pq.write_table(
            pa.table(columns), folder / f"part-{part:05}.parquet",
            compression="lz4", use_dictionary=[KEY], write_page_checksum=True,
        )  # fmt: skip
        written += count
    write_manifest(folder, {"rows": written, "sha256": "bench"})


def held_mib(line: str) -> float:
    """``VmRSS``, resident now, or ``VmHWM``, resident at most, of this process."""
    found = re.search(rf"{line}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def bare(rows: Path) -> Figures:
    """XGBoost alone, on the matrix that ``total`` has read."""
    matrix, labels = np.load(rows / "matrix.npy"), np.load(rows / "labels.npy")
    began = time.perf_counter()
    data = xgb.QuantileDMatrix(
        matrix, labels, feature_names=list(FEATURES), max_bin=RECIPE.parameters["max_bin"]
    )
    booster = xgb.train(RECIPE.parameters, data, TREES)
    seconds = time.perf_counter() - began
    return {
        "seconds": seconds,
        "peak_mib": held_mib("VmHWM"),
        "model": hashlib.sha256(model_bytes(booster)).hexdigest(),
    }


def fitted(rows: Path, memory: TrainingMemory, place: Path) -> tuple[Dataset, xgb.Booster, Figures]:
    imports = held_mib("VmRSS")
    began = time.perf_counter()
    in_files = None if memory == "in_memory" else place
    dataset = read_rows(rows, "binary", (KEY,), FEATURES, memory, in_files)
    read = time.perf_counter() - began
    booster = fit_trees(dataset, np.ones(len(dataset.labels), dtype=np.bool_), RECIPE, TREES)
    figures: Figures = {
        "seconds": time.perf_counter() - began,
        "read": read,
        "memory": memory,
        "imports_mib": imports,
        "peak_mib": held_mib("VmHWM"),
        "model": hashlib.sha256(model_bytes(booster)).hexdigest(),
    }
    return dataset, booster, figures


def total(rows: Path) -> Figures:
    memory = memory_for(rows, len(FEATURES), load_settings(_env_file=None).training_memory)
    with workspace(rows / "fits") as place:
        dataset, booster, figures = fitted(rows, memory, place)
        return figures | evaluated(dataset, booster)


def evaluated(dataset: Dataset, booster: xgb.Booster) -> Figures:
    began = time.perf_counter()
    tested = dataset.rows_of(SNAPSHOTS[-2:])
    matrix, labels = dataset.vectors(tested), dataset.labels[tested]
    scores = {"model": predict(booster, matrix), "rule": matrix[:, 0].astype(np.float64)}
    measure(labels, dataset.keys[tested], scores, ("model",), SEED)
    explain(booster, partial(predict, booster), FEATURES, matrix, SEED)
    evaluation = time.perf_counter() - began
    began = time.perf_counter()
    learned = linear_rows(dataset.rows_of(SNAPSHOTS[:-2]))
    linear = fit_linear(dataset.vectors(learned), dataset.labels[learned], "binary", SEED)
    linear_scores(linear, matrix)
    return {
        "evaluation": evaluation,
        "linear": time.perf_counter() - began,
        "evaluated_mib": held_mib("VmHWM"),
    }


def in_memory(rows: Path) -> Figures:
    return fitted(rows, "in_memory", rows)[2]


MEASUREMENTS: dict[str, Callable[[Path], Figures]] = {
    "total": total,
    "bare": bare,
    "in_memory": in_memory,
}
AIMS = {"total": 1.2, "peak_memory": 2.0, "evaluation": 1.0}


def in_a_process_of_its_own(name: str, rows: Path) -> Figures:
    done = subprocess.run(
        [sys.executable, __file__, "--measure", name, "--folder", str(rows)],
        stdout=subprocess.PIPE, text=True, check=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    figures: Figures = json.loads(done.stdout.splitlines()[-1])
    return figures


def main(rows: int, runs: int) -> None:
    root = Path(tempfile.mkdtemp(prefix="nightshift-bench-"))
    try:
        folder = root / "as_of"
        write_training_set(folder, rows)
        dataset = read_rows(folder, "binary", (KEY,), FEATURES)
        np.save(folder / "matrix.npy", dataset.matrix)
        np.save(folder / "labels.npy", dataset.labels)
        raw_mib = dataset.matrix.nbytes / 2**20
        del dataset
        took: dict[str, list[Figures]] = {name: [] for name in MEASUREMENTS}
        for run in range(runs):
            for name in MEASUREMENTS:
                took[name].append(in_a_process_of_its_own(name, folder))
                print(f"run {run + 1}: {name} {took[name][-1]}", file=sys.stderr)
        models = {found["model"] for figures in took.values() for found in figures}
        if len(models) > 1:
            raise SystemExit("the models are not the same, bit by bit")
        print(json.dumps(summary(rows, raw_mib, took)))
    finally:
        shutil.rmtree(root)


def summary(rows: int, raw_mib: float, took: dict[str, list[Figures]]) -> dict[str, object]:
    def median(name: str, figure: str) -> float:
        return statistics.median(float(found[figure]) for found in took[name])

    def ratio(ours: str, figure: str, theirs: str) -> float:
        pairs = zip(took[ours], took[theirs], strict=True)
        return statistics.median(float(a[figure]) / float(b["seconds"]) for a, b in pairs)

    ratios = {
        "total": ratio("total", "seconds", "bare"),
        "peak_memory": median("total", "peak_mib") / raw_mib,
        "evaluation": ratio("total", "evaluation", "total"),
        "bare_memory": median("bare", "peak_mib") / raw_mib,
        "in_memory": ratio("in_memory", "seconds", "bare"),
        "in_memory_peak": median("in_memory", "peak_mib") / raw_mib,
    }
    seconds = {name: median(name, "seconds") for name in MEASUREMENTS}
    seconds |= {name: median("total", name) for name in ("read", "evaluation", "linear")}
    mib = {name: median(name, "peak_mib") for name in MEASUREMENTS}
    mib |= {"matrix": raw_mib, "imports": median("total", "imports_mib")}
    mib["evaluated"] = median("total", "evaluated_mib")
    return {
        "name": "train",
        "rows": rows,
        "runs": len(took["bare"]),
        "ratios": {name: round(value, 3) for name, value in ratios.items()},
        "aims": AIMS,
        "seconds": {name: round(value, 2) for name, value in seconds.items()},
        "peak_mib": round(mib["total"]),
        "mib": {name: round(value) for name, value in mib.items()},
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("numpy", "pyarrow", "xgboost")},
        },
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--measure", choices=MEASUREMENTS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        print(json.dumps(MEASUREMENTS[given.measure](given.folder)))
    else:
        main(given.rows, given.runs)
