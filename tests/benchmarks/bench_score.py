"""``make bench-score``: a million rows of 80 features to readers, from a cold process.

``speedup`` is how many times longer ``mlflow.pyfunc.spark_udf`` and a write by Spark's JDBC take
for the same rows and the same model (300 trees of depth 6) on the same cores. Both are processes of
their own, timed from their start to their end, taken in turn. The peer writes keys and scores into
a heap; ours writes bands too, and builds the key and the index, audits, attaches and moves the
pointer. Ours explains nothing there: ``explained`` is the same with the reasons that the bands of
the riskiest hundredth ask for, over ``total``, and ``on_spark`` the same by Spark's workers.

The peer's scores are compared with ours, all rows. Its driver for JDBC is that of Debian's
``libpostgresql-jdbc-java``, which is installed, or else downloaded by ``apt-get``.
"""

import argparse
import hashlib
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
from datetime import date
from importlib.metadata import version
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import psycopg2
import pyarrow as pa
import pyarrow.parquet as pq

from nightshift import use_cases
from nightshift.feature_groups.order_lines import IS_PURCHASE, ORDER_LINES
from nightshift.io import lake, model_store, registry
from nightshift.io.warehouse import migrate
from nightshift.settings import Settings, load_settings
from nightshift.spec import Aggregate, Band, FeatureGroup, Measure

FEATURES, PARTS, TREES = 80, 16, 300
WIDE = use_cases.CHURN.model_copy(
    update={
        "feature_groups": (
            FeatureGroup(
                name="wide",
                source=ORDER_LINES,
                entity="customer",
                key="customer_id",
                measures=(
                    Measure(
                        name="purchase",
                        column="invoiced_at",
                        where=IS_PURCHASE,
                        description="lines bought",
                    ),
                ),
                aggregates=(
                    Aggregate(
                        measure="purchase",
                        aggregations=("count",),
                        windows=tuple(range(1, FEATURES + 1)),
                    ),
                ),
            ),
        ),
        "heuristics": (),
        "slices": (),
        "audits": (),
    }
)
AS_OF = date(2026, 1, 1)
PEER_TABLE = "public.peer"
PEER_MODEL = "peer"
DEBIAN = ("libpostgresql-jdbc-java", "libscram-java", "libstringprep-java")
AIMS = {"speedup": 6.0}


def features(rows: int, seed: int) -> pa.Table:
    """Keys as pseudonyms are; a tenth of the values null."""
    random = np.random.default_rng(seed)
    columns: dict[str, pa.Array] = {
        WIDE.key: pa.array(hashlib.md5(b"%d/%d" % (seed, n)).hexdigest() for n in range(rows))
    }
    for name in WIDE.feature_names:
        values = np.floor(random.gamma(1, 20, rows))
        columns[name] = pa.array(values, mask=random.random(rows) < 0.1)
    return pa.table(columns)


def lay_down(settings: Settings, rows: int) -> None:
    """The features of a night as the feature job leaves them."""
    folder = lake.dataset_dir(settings.lake_dir, "features", WIDE.name, AS_OF)
    with lake.replacing(folder) as target:
        for part in range(PARTS):
            table = features(rows // PARTS, part)
            pq.write_table(table, target / f"part-{part:05}.parquet", compression="zstd")
        written = rows // PARTS * PARTS
        lake.write_manifest(target, {"rows": written, "sha256": "features"})


def register(settings: Settings) -> float:
    """Train, register and promote a model, for the product and as the peer's; its highest hundredth
    begins at the score that is returned."""
    import mlflow
    import mlflow.xgboost
    import xgboost as xgb

    table = features(50_000, 1_000)
    matrix = np.column_stack([table[name].to_numpy() for name in WIDE.feature_names])
    matrix = matrix.astype(np.float32)
    random = np.random.default_rng(7)
    signal = np.nansum(matrix[:, ::8] - 20, axis=1) / 60
    labels = random.random(len(matrix)) < 1 / (1 + np.exp(-signal))
    names = list(WIDE.feature_names)
    parameters = {"objective": "binary:logistic", "max_depth": 6, "eta": 0.05, "seed": 1}
    data = xgb.DMatrix(matrix, labels, feature_names=names)
    booster = xgb.train(parameters | {"tree_method": "hist"}, data, TREES)
    root = settings.state_dir / "model"
    model_store.write_model(root, bytes(booster.save_raw("ubj")), {"features": names})
    client = model_store.client(settings)
    run = client.create_run(model_store.experiment_id(settings, WIDE.name))
    client.log_artifacts(run.info.run_id, str(root), model_store.MODEL)
    model_store.register(settings, WIDE.name, run.info.run_id, AS_OF.isoformat())
    mlflow.xgboost.save_model(booster, settings.state_dir / PEER_MODEL, model_format="ubj")
    scores = booster.predict(data)
    return float(np.quantile(scores, 0.99))


def ours(settings: Settings, high: float, kind: str) -> None:
    """Score and publish, as a night does."""
    from nightshift.publishing.run import publish
    from nightshift.scoring.run import score

    method = "exact" if kind == "explained" else "none"
    bands = (
        Band(name="low", from_score=0.0, reasons="none"),
        Band(name="high", from_score=high, reasons=method),
    )
    asked = WIDE.model_copy(update={"bands": bands})
    use_cases.USE_CASES = (asked,)
    if kind == "on_spark":
        settings = settings.model_copy(update={"scoring": "spark"})
    score(settings, asked, AS_OF)
    publish(settings, [asked], AS_OF)


def peer(settings: Settings, jars: str) -> None:
    """What MLflow's and Spark's documentation tell to write."""
    import mlflow.pyfunc
    from pyspark.sql import SparkSession, functions

    os.environ["PYSPARK_PYTHON"] = sys.executable
    spark = (
        SparkSession.builder.master("local[*]")
        .config("spark.driver.memory", settings.spark_driver_memory)
        .config("spark.jars", jars)
        .config("spark.ui.enabled", "false")
        .config("spark.driver.host", "127.0.0.1")
        .getOrCreate()
    )
    folder = lake.dataset_dir(settings.lake_dir, "features", WIDE.name, AS_OF)
    model = str(settings.state_dir / PEER_MODEL)
    udf = mlflow.pyfunc.spark_udf(spark, model, result_type="double", env_manager="local")
    rows = spark.read.parquet(*(str(part) for part in lake.parts(folder)))
    scored = rows.select(
        WIDE.key,
        udf(functions.struct(*WIDE.feature_names)).alias(WIDE.score_column),
        functions.lit(AS_OF).alias("as_of"),
    )
    server = urlsplit(settings.warehouse_url)
    scored.write.jdbc(
        f"jdbc:postgresql://{server.hostname}:{server.port}{server.path}?reWriteBatchedInserts=true",
        PEER_TABLE,
        mode="overwrite",
        properties={
            "user": str(server.username),
            "password": str(server.password),
            "driver": "org.postgresql.Driver",
            "batchsize": "10000",
        },
    )
    spark.stop()


def jdbc_jars(folder: Path) -> str:
    """The driver and what it needs, comma between them."""
    installed = Path("/usr/share/java/postgresql.jar")
    root = Path("/")
    if not installed.exists():
        root = folder / "debian"
        root.mkdir()
        root.chmod(0o777)
        subprocess.run(["apt-get", "download", "-qq", *DEBIAN], cwd=root, check=True)
        for package in root.glob("*.deb"):
            subprocess.run(["dpkg-deb", "-x", str(package), str(root)], check=True)
    names = ("postgresql", "scram-client", "scram-common", "saslprep", "stringprep")
    return ",".join(str(root / f"usr/share/java/{name}.jar") for name in names)


def in_a_process_of_its_own(kind: str, settings: Settings, *more: str) -> tuple[float, float]:
    """Seconds from start to end, and the peak resident MiB of the process without its children."""
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, __file__, "--measure", kind, settings.model_dump_json(), *more],
        stdout=subprocess.PIPE, text=True, check=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    return time.perf_counter() - began, float(done.stdout.splitlines()[-1])


def execute(url: str, *statements: str) -> list[tuple[float, ...]]:
    """Each statement in a transaction of its own; the rows of the last one."""
    with closing(psycopg2.connect(url)) as connection:
        connection.autocommit = True
        cursor = connection.cursor()
        for statement in statements:
            cursor.execute(statement)
        return cursor.fetchall() if cursor.description else []


def forget(settings: Settings) -> None:
    """Nothing is scored or published; the model is champion."""
    shutil.rmtree(settings.lake_dir / "scores", ignore_errors=True)
    execute(
        settings.warehouse_url,
        "drop schema predictions cascade",
        "drop schema ops cascade",
        "checkpoint",
    )
    with registry.opened(settings, WIDE.name) as held:
        held.decide("promotion", registry.GATES, held.find("1"), (), "the benchmark's")


def main(rows: int, runs: int) -> None:
    # not at the top, which the processes that are timed load as well
    from nightshift.services import mlflow_store
    from nightshift.services.postgres import EmbeddedPostgres, free_port

    # not in a folder that only its owner may enter: Postgres runs as an account of its own
    root = Path(tempfile.mkdtemp(prefix="nightshift-bench-"))
    root.chmod(0o755)
    server = EmbeddedPostgres(root / "data", free_port(15770), "bench")
    try:
        jars = jdbc_jars(root)
        server.start()
        for name in ("bench", "mlflow"):
            server.ensure_database(name, "postgres")
        url = server.url("bench", "postgres", "bench")
        tracking = server.url("mlflow", "postgres", "bench", "postgresql+psycopg2")
        settings = load_settings(
            _env_file=None, state_dir=root, landing=root, database_url=url,
            reader_database_url=url, mlflow_tracking_uri=tracking,
        )  # fmt: skip
        mlflow_store.prepare(tracking, settings.mlflow_artifacts_dir)
        migrate(settings)
        lay_down(settings, rows)
        high = register(settings)
        taken: dict[str, list[tuple[float, float]]] = {}
        for run in range(runs):
            for kind in ("total", "peer", "explained", "on_spark"):
                if kind != "peer":
                    forget(settings)
                more = jars if kind == "peer" else str(high)
                taken.setdefault(kind, []).append(in_a_process_of_its_own(kind, settings, more))
                seconds, peak = taken[kind][-1]
                print(f"run {run + 1}: {kind} {seconds:.2f} s, {peak:.0f} MiB", file=sys.stderr)
                if kind == "peer":
                    require_same_scores(settings, rows)
        print(json.dumps(summary(rows, runs, taken)))
    finally:
        server.stop()
        shutil.rmtree(root)


def require_same_scores(settings: Settings, rows: int) -> None:
    """Of ``total``, which ran just before."""
    found = execute(
        settings.warehouse_url,
        f"select count(*), max(abs(o.{WIDE.score_column} - p.{WIDE.score_column}))"
        f" from {WIDE.table} o join {PEER_TABLE} p using ({WIDE.key}, as_of)",
    )
    count, difference = found[0]
    if count != rows // PARTS * PARTS or difference > 1e-6:
        raise SystemExit(f"{count} rows are in both, and differ by {difference} at most")


def summary(rows: int, runs: int, taken: dict[str, list[tuple[float, float]]]) -> dict[str, object]:
    def ratio(one: str, other: str) -> float:
        pairs = zip(taken[one], taken[other], strict=True)
        return statistics.median(a[0] / b[0] for a, b in pairs)

    return {
        "name": "score",
        "rows": rows,
        "runs": runs,
        "ratios": {
            "speedup": round(ratio("peer", "total"), 2),
            "explained": round(ratio("explained", "total"), 2),
            "on_spark": round(ratio("on_spark", "total"), 2),
        },
        "aims": AIMS,
        "seconds": {k: round(statistics.median(s for s, _ in v), 2) for k, v in taken.items()},
        "peak_mib": round(max(peak for _, peak in taken["total"])),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("xgboost", "mlflow", "pyspark", "pgpq")},
        },
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        kind, told, more = given.measure
        measured = Settings.model_validate_json(told)
        if kind == "peer":
            peer(measured, more)
        else:
            ours(measured, float(more), kind)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    else:
        main(given.rows, given.runs)
