"""``make bench-features``: the feature job against SQL in DuckDB on the same Parquet.

The standard workload is 10 million order lines of 200,000 customers over two years, and 73
features. Every measurement is a process of its own, taken in turn with its yardstick:

``one_night``
    all features at one ``as_of``, from the extract's Parquet to Parquet, with nothing prepared,
    over DuckDB (two threads) with plain SQL: one ``group by``, exact distinct counts.
``one_night_tuned_sql``
    the same over SQL by someone who knows what ``count(distinct …)`` costs.
``twelve_snapshots``
    twelve firsts of a month in one pass, over ``one_night``.
``increment``
    the night after one that knew all but the last day, over ``one_night``.
``event_mode``
    fifteen features of each of 1.2 million payments at its own instant, from Parquet to Parquet,
    over DuckDB's window functions.
``extract``
    the mart of these lines in Postgres to the lake, from nothing, over COPY of the same columns to
    a client that throws them away, in text or binary, whichever is faster.
``extract_night``
    seconds for the last day's lines on top of all others.
``featuretools``
    how many times longer featuretools takes for a customer's line, with cut-off times, on one
    customer in a hundred.

What ours and DuckDB wrote is compared, all rows of it. The start of Spark, until a trivial job has
run, is timed apart and left out; so is that of its Python workers, but not what they import.
"""

import argparse
import io
import json
import logging
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from datetime import date, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import duckdb
import feature_workload as workload
import numpy as np
import psycopg2
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import watching
from answers import require_same_answers
from pyspark.sql import SparkSession

from nightshift.features import extract, job
from nightshift.features.extract_run import ExtractResult
from nightshift.features.extract_run import extract as run_extract
from nightshift.features.run import run_tasks
from nightshift.io.spark import spark_session
from nightshift.io.warehouse import migrate
from nightshift.services.postgres import EmbeddedPostgres, free_port
from nightshift.settings import load_settings

BUCKETS = 16
THREADS = 2
MART = """
create schema marts;
create table marts.fct_order_lines (
    order_line_id text not null, invoice_id text not null, is_cancellation boolean not null,
    product_id text not null, is_product boolean not null, description text,
    quantity integer not null, unit_price numeric(14, 4) not null,
    line_amount numeric(18, 4) not null, invoiced_at timestamp not null,
    invoiced_date date not null, customer_id text, country text, landed_date date not null
)
"""
MART_INDEXES = """
alter table marts.fct_order_lines add primary key (order_line_id);
create index on marts.fct_order_lines (landed_date);
create table marts.fct_landed_days as
select 'order_lines' as source, landed_date, count(*) as rows_landed, count(*) as rows_kept,
    'first' as build_id
from marts.fct_order_lines group by landed_date
"""
YESTERDAY = workload.AS_OF - timedelta(days=1)
SAMPLE_OF = 100


class Took(NamedTuple):
    """One measurement, of a process and all that it started.

    Attributes:
        seconds: of the work alone.
        start: seconds of Spark's start before it.
        cpu_seconds: of everything, imports and Spark's start included; 0 where it is not watched.
        peak_mib: resident memory at its highest; 0 where it is not watched.
    """

    seconds: float
    start: float
    cpu_seconds: float
    peak_mib: float


class Session(NamedTuple):
    """A Spark session with its Python workers, and the folders that the job works in."""

    spark: SparkSession
    state: Path
    out: Path

    def bucket(self, files: Sequence[Path]) -> tuple[job.Month, ...]:
        """The raw files as the lake keeps them: many in a few tasks, one as the extract does."""
        folder = self.state.parent / "events"
        if len(files) == 1:
            return (bucketed(files[0], folder),)
        tasks = self.spark.sparkContext.parallelize(files, min(len(files), 2 * THREADS))
        return tuple(tasks.map(lambda file: bucketed(file, folder)).collect())

    def bucket_payments(self, rows: Path) -> dict[tuple[str, str], tuple[job.Month, ...]]:
        """The same of payments with their reports, by customer and by terminal."""
        folder = self.state.parent / "events"
        files = sorted((rows / "card_transactions").glob("month=*/*.parquet"))
        tasks = self.spark.sparkContext.parallelize(files, min(len(files), 2 * THREADS))
        found = tasks.map(lambda file: bucketed_payments(file, rows, folder)).collect()
        keys = [(source.name, key) for source, key in workload.CARD_FRAUD.streams]
        return {key: tuple(months[key] for months in found) for key in keys}

    def event_features(self, months: Mapping[tuple[str, str], tuple[job.Month, ...]]) -> None:
        """The vectors of all payments."""
        self.out.mkdir(parents=True)
        works = [
            job.Work(
                workload.CARD_FRAUD, key, months, workload.CARD_NIGHTS, None, self.state, self.out,
                job.code_sha256(), bucket, BUCKETS,
            )
            for _, key in workload.CARD_FRAUD.streams
            for bucket in range(BUCKETS)
        ]  # fmt: skip
        run_tasks(self.spark, works)

    def features(self, months: Sequence[job.Month], snapshots: Sequence[date]) -> None:
        """The vectors at the snapshots."""
        shutil.rmtree(self.out, ignore_errors=True)
        self.out.mkdir(parents=True)
        streams = {(workload.STANDARD.source.name, workload.STANDARD.key): tuple(months)}
        works = [
            job.Work(
                workload.STANDARD, workload.STANDARD.key, streams, tuple(snapshots), None,
                self.state, self.out, job.code_sha256(), bucket, BUCKETS,
            )
            for bucket in range(BUCKETS)
        ]  # fmt: skip
        run_tasks(self.spark, works)


def bucketed(file: Path, folder: Path) -> job.Month:
    """What the extract does with a month that it has read."""
    source = workload.STANDARD.source
    strings = [name for name, kind in source.columns.items() if kind == "string"]
    with pq.ParquetFile(file, read_dictionary=strings) as parquet:
        table = parquet.read(use_threads=False).unify_dictionaries().combine_chunks()
    target = folder / f"{file.parent.name}.parquet"
    folder.mkdir(parents=True, exist_ok=True)
    key = workload.STANDARD.key
    extract.write(target, table, source, key, BUCKETS)
    return job.Month(file.parent.name, target, str(table.num_rows))


def bucketed_payments(file: Path, rows: Path, folder: Path) -> dict[tuple[str, str], job.Month]:
    """What dbt does with a month of payments, and the extract with its mart, by each key."""
    strings = ["customer_id", "terminal_id"]
    with pq.ParquetFile(file, read_dictionary=strings) as parquet:
        table = parquet.read(use_threads=False).unify_dictionaries().combine_chunks()
    reports = pq.read_table(rows / "chargebacks", partitioning=None, use_threads=False)
    at = pc.index_in(table["transaction_id"], value_set=reports["transaction_id"])
    table = table.append_column("reported_date", reports["reported_date"].take(at))
    found = {}
    for source, key in workload.CARD_FRAUD.streams:
        target = folder / key / f"{file.parent.name}.parquet"
        target.parent.mkdir(parents=True, exist_ok=True)
        extract.write(target, table, source, key, BUCKETS)
        name = file.parent.name.removeprefix("month=")
        found[source.name, key] = job.Month(name, target, str(table.num_rows))
    return found


@contextmanager
def session(out: Path) -> Iterator[tuple[Session, float]]:
    """A fresh session on which a trivial Python job has run, and the seconds that took."""
    root = Path(tempfile.mkdtemp(prefix="features-", dir=out.parent))
    settings = load_settings(
        _env_file=None, state_dir=root, lake=root, spark_master=f"local[{THREADS}]"
    )
    began = time.perf_counter()
    try:
        daemon = "nightshift.features.daemon"
        with spark_session(settings, "bench-features", daemon) as spark:
            spark.sparkContext.parallelize(range(THREADS), THREADS).map(abs).collect()
            yield Session(spark, root / "state", out), time.perf_counter() - began
    finally:
        shutil.rmtree(root)


def raw_files(rows: Path) -> list[Path]:
    return sorted((rows / "order_lines").glob("month=*/*.parquet"))


def from_scratch(rows: Path, out: Path, snapshots: Sequence[date]) -> tuple[float, float]:
    """From the raw Parquet to vectors, with what the next night needs."""
    with session(out) as (ours, start):
        began = time.perf_counter()
        ours.features(ours.bucket(raw_files(rows)), snapshots)
        return time.perf_counter() - began, start


def one_night(rows: Path, out: Path) -> tuple[float, float]:
    return from_scratch(rows, out, [workload.AS_OF])


def twelve_snapshots(rows: Path, out: Path) -> tuple[float, float]:
    return from_scratch(rows, out, workload.SNAPSHOTS)


def increment(rows: Path, out: Path) -> tuple[float, float]:
    """The night after one that knew all but the last day: its month is bucketed and tiled anew."""
    files = raw_files(rows)
    before = out.parent / "before" / files[-1].parent.name / files[-1].name
    before.parent.mkdir(parents=True, exist_ok=True)
    known = pc.less(pq.read_table(files[-1], partitioning=None)["landed_date"], YESTERDAY)
    pq.write_table(pq.read_table(files[-1], partitioning=None).filter(known), before)
    with session(out) as (ours, start):
        months = ours.bucket([*files[:-1], before])
        ours.features(months, [YESTERDAY])
        began = time.perf_counter()
        ours.features([*months[:-1], *ours.bucket(files[-1:])], [workload.AS_OF])
        return time.perf_counter() - began, start


def event_mode(rows: Path, out: Path) -> tuple[float, float]:
    """Every payment of half a year, from the raw Parquet, with what the next night needs."""
    with session(out) as (ours, start):
        began = time.perf_counter()
        ours.event_features(ours.bucket_payments(rows))
        return time.perf_counter() - began, start


@contextmanager
def mart(rows: Path) -> Iterator[str]:
    """A Postgres that holds the lines as dbt's mart does; its URL. It is loaded once."""
    server = EmbeddedPostgres(rows / "postgres", free_port(15700), "bench")
    is_loaded = rows / "postgres.loaded"
    server.start()
    try:
        server.ensure_database("bench", "postgres")
        url = server.url("bench", "postgres", "bench")
        if not is_loaded.exists():
            load_mart(url, raw_files(rows))
            is_loaded.touch()
        yield url
    finally:
        server.stop()


def load_mart(url: str, files: Sequence[Path]) -> None:
    """Columns, types, constraints, indexes and the order of rows are those of the dbt project."""
    with closing(psycopg2.connect(url)) as connection:
        connection.autocommit = True
        cursor = connection.cursor()
        cursor.execute(MART)
        landed = 0
        for file in files:
            table = pq.read_table(file, partitioning=None)
            numbers = pa.array(np.arange(landed, landed + table.num_rows)).cast(pa.string())
            landed += table.num_rows
            added = {
                "order_line_id": pc.binary_join_element_wise("1", numbers, ":"),
                "description": pc.binary_join_element_wise("LINE OF", table["product_id"], " "),
            }
            for name, values in added.items():
                table = table.append_column(name, values)
            lines = io.BytesIO()
            pa_csv.write_csv(table, lines, pa_csv.WriteOptions(include_header=False))
            lines.seek(0)
            columns = ", ".join(table.column_names)
            cursor.copy_expert(f"copy marts.fct_order_lines ({columns}) from stdin csv", lines)
        cursor.execute(MART_INDEXES)
        cursor.execute("vacuum (analyze)")
        cursor.execute("checkpoint")


def copy_to_nowhere(rows: Path, out: Path) -> tuple[float, float]:
    """Read the columns that the extract reads, and throw them away."""
    columns = ", ".join(workload.STANDARD.source.columns)
    seconds = []
    with mart(rows) as url, closing(psycopg2.connect(url)) as connection:
        for form in ("text", "binary"):
            statement = f"copy (select {columns} from marts.fct_order_lines) to stdout"
            with Path(os.devnull).open("wb") as nowhere:
                began = time.perf_counter()
                connection.cursor().copy_expert(f"{statement} (format {form})", nowhere)
                seconds.append(time.perf_counter() - began)
    return min(seconds), 0.0


def extracted(url: str, out: Path) -> tuple[ExtractResult, float]:
    """Bring the lake in ``out`` up to date; what was done, and the seconds that took."""
    settings = load_settings(
        _env_file=None, state_dir=out, lake=out, database_url=url, reader_database_url=url
    )
    migrate(settings)
    began = time.perf_counter()
    result = run_extract(settings, [workload.STANDARD], workload.AS_OF)
    return result, time.perf_counter() - began


def extract_all(rows: Path, out: Path) -> tuple[float, float]:
    """All lines, from nothing."""
    with mart(rows) as url:
        return extracted(url, out)[1], 0.0


def extract_night(rows: Path, out: Path) -> tuple[float, float]:
    """The last day's lines, on top of those of the days before."""

    def last_day(is_there: bool) -> None:
        with closing(psycopg2.connect(url)) as connection, connection:
            kept = "rows_landed" if is_there else "0"
            connection.cursor().execute(
                f"update marts.fct_landed_days set rows_kept = {kept} where landed_date = %s",
                (YESTERDAY,),
            )

    with mart(rows) as url:
        last_day(is_there=False)
        extracted(url, out)
        last_day(is_there=True)
        result, seconds = extracted(url, out)
    print(f"{result.rows} lines of {result.days_changed} day", file=sys.stderr)
    return seconds, 0.0


def by_duckdb(queries: Sequence[str], out: Path) -> tuple[float, float]:
    """Each query's rows to a Parquet file of its own in ``out``."""
    out.mkdir()
    began = time.perf_counter()
    with duckdb.connect() as connection:
        connection.execute(f"set threads = {THREADS}")
        for number, query in enumerate(queries):
            target = out / f"part-{number:05}.parquet"
            connection.execute(f"copy ({query}) to '{target}' (format parquet, compression zstd)")
    return time.perf_counter() - began, 0.0


def duckdb_plain(rows: Path, out: Path) -> tuple[float, float]:
    return by_duckdb([workload.plain_sql(rows / "order_lines", workload.AS_OF)], out)


def duckdb_tuned(rows: Path, out: Path) -> tuple[float, float]:
    return by_duckdb([workload.tuned_sql(rows / "order_lines", workload.AS_OF)], out)


def duckdb_twelve(rows: Path, out: Path) -> tuple[float, float]:
    files = rows / "order_lines"
    return by_duckdb([workload.tuned_sql(files, as_of) for as_of in workload.SNAPSHOTS], out)


def duckdb_events(rows: Path, out: Path) -> tuple[float, float]:
    return by_duckdb([workload.event_sql(rows)], out)


def featuretools_sample(rows: Path, out: Path) -> tuple[float, float]:
    """The aggregates (no ratios) of one customer in ``SAMPLE_OF``, from a frame in memory."""
    warnings.simplefilter("ignore")  # of its own use of pandas
    os.environ["TQDM_DISABLE"] = "1"
    logging.disable()
    import featuretools as ft
    import pandas as pd
    from featuretools import primitives

    lines = duckdb.sql(workload.sample_sql(rows / "order_lines", SAMPLE_OF)).df()
    began = time.perf_counter()
    words = {
        "count": primitives.Count, "distinct": primitives.NumUnique, "sum": primitives.Sum,
        "mean": primitives.Mean, "min": primitives.Min, "max": primitives.Max,
        "days_since_last": primitives.TimeSinceLast, "days_since_first": primitives.TimeSinceFirst,
    }  # fmt: skip
    entities = ft.EntitySet("shop")
    customers = pd.DataFrame({"customer_id": lines["customer_id"].unique()})
    entities.add_dataframe(customers, "customers", index="customer_id")
    kinds = dict.fromkeys(("invoice_id", "product_id", "invoiced_date"), "Categorical")
    measures = {measure.name: measure for measure in workload.STANDARD_ORDERS.measures}
    frames: dict[str, str] = {}
    for measure in measures.values():
        condition = str(measure.where)
        if condition not in frames:
            name = frames[condition] = f"lines_{len(frames)}"
            entities.add_dataframe(
                lines.query(condition.replace(" and ", " & ")), name, index="line",
                time_index="invoiced_at", logical_types=kinds,
            )  # fmt: skip
            entities.add_relationship("customers", "customer_id", name, "customer_id")
    at = pd.DataFrame(
        {"customer_id": customers["customer_id"], "time": pd.Timestamp(workload.AS_OF)}
    )
    done = 0
    for window in dict.fromkeys(f.window for f in workload.STANDARD_ORDERS.features):
        features = []
        for feature in workload.STANDARD_ORDERS.features:
            if feature.window == window:
                measure = measures[feature.measure]
                frame = entities[frames[str(measure.where)]]
                column = "line" if feature.aggregation == "count" else measure.column
                features.append(
                    ft.Feature(
                        frame.ww[column], parent_dataframe_name="customers",
                        primitive=words[feature.aggregation],
                    )
                )  # fmt: skip
        matrix = ft.calculate_feature_matrix(
            features, entities, cutoff_time=at, include_cutoff_time=False,
            training_window=f"{window} days" if window else None,
        )  # fmt: skip
        done += matrix.shape[1]
    if done != len(workload.STANDARD_ORDERS.features):
        raise SystemExit(f"featuretools made {done} of {len(workload.STANDARD_ORDERS.features)}")
    seconds = time.perf_counter() - began
    # per line of everyone's, as ours reads them
    return seconds * SAMPLE_OF, 0.0


MEASUREMENTS: dict[str, Callable[[Path, Path], tuple[float, float]]] = {
    "one_night": one_night,
    "duckdb_plain": duckdb_plain,
    "duckdb_tuned": duckdb_tuned,
    "twelve_snapshots": twelve_snapshots,
    "increment": increment,
    "duckdb_twelve": duckdb_twelve,
    "event_mode": event_mode,
    "duckdb_events": duckdb_events,
    "extract": extract_all,
    "copy_to_nowhere": copy_to_nowhere,
    "extract_night": extract_night,
    "featuretools": featuretools_sample,
}
ONCE = {"duckdb_twelve", "featuretools"}
"""Measured in the first run only: long, and the yardstick of nothing that has an aim."""
ON_SPARK = {"one_night", "twelve_snapshots", "increment", "event_mode"}
OURS = {*ON_SPARK, "extract", "extract_night"}

RATIOS: dict[str, tuple[str, str, float | None]] = {
    "one_night": ("one_night", "duckdb_plain", 1.0),
    "one_night_tuned_sql": ("one_night", "duckdb_tuned", 1.0),
    "twelve_snapshots": ("twelve_snapshots", "one_night", 2.0),
    "increment": ("increment", "one_night", 0.2),
    "event_mode": ("event_mode", "duckdb_events", 1.5),
    "extract": ("extract", "copy_to_nowhere", 1.4),
    "featuretools": ("featuretools", "one_night", None),
}
"""Name → what is divided by what, and the aim if there is one."""
COMPARED = (
    ("one_night", "duckdb_plain", ("customer_id", "snapshot")),
    ("one_night", "duckdb_tuned", ("customer_id", "snapshot")),
    ("increment", "duckdb_tuned", ("customer_id", "snapshot")),
    ("twelve_snapshots", "duckdb_twelve", ("customer_id", "snapshot")),
    ("event_mode", "duckdb_events", ("transaction_id",)),
)
"""What must have given the same rows, and the columns that name a row."""


def in_a_process_of_its_own(name: str, rows: Path, out: Path, is_watched: bool = True) -> Took:
    """Run a measurement in a fresh interpreter; watch what its tree of processes holds, or not."""
    # Spark's workers import the workload too
    ended = watching.run(
        [sys.executable, __file__, "--measure", name, "--rows", str(rows), "--out", str(out)],
        is_watched=is_watched,
        PYTHONPATH=os.pathsep.join(sys.path),
    )
    seconds, start = json.loads(ended.output.splitlines()[-1])
    return Took(
        round(seconds, 2), round(start, 2), round(ended.cpu_seconds, 1), ended.peak_bytes // 2**20
    )


def answer(folder: Path) -> pa.Table:
    table = pa.concat_tables(
        [pq.read_table(part, partitioning=None) for part in sorted(folder.glob("*.parquet"))]
    )
    if "transaction_id" in table.column_names:
        table = table.select(["transaction_id", *workload.EVENT_FEATURES])
        return table.set_column(0, "transaction_id", table["transaction_id"].cast(pa.int64()))
    if "snapshot" not in table.column_names:  # of a single night
        stamp = pa.repeat(pa.scalar(workload.AS_OF, pa.date32()), table.num_rows)
        table = table.append_column("snapshot", stamp)
    return table


def main(customers: int, lines: int, payments: int, runs: int) -> None:
    # not in a folder that only its owner may enter: Postgres runs as an account of its own
    root = Path(tempfile.mkdtemp(prefix="nightshift-bench-"))
    root.chmod(0o755)
    try:
        rows = root / "rows"
        last_day = workload.write_order_lines(rows / "order_lines", customers, lines)
        workload.write_cards(rows, payments)
        print(f"{lines} lines, {last_day} on the last day; {payments} payments", file=sys.stderr)
        took: dict[str, list[Took]] = {name: [] for name in MEASUREMENTS}
        watched = []
        for name in MEASUREMENTS:
            if name in OURS:
                shutil.rmtree(root / name, ignore_errors=True)
                watched.append(in_a_process_of_its_own(name, rows, root / name))
                print(f"watched: {name} {watched[-1]}", file=sys.stderr)
        for run in range(runs):
            names = [name for name in MEASUREMENTS if run == 0 or name not in ONCE]
            for name in names:
                out = root / name
                shutil.rmtree(out, ignore_errors=True)
                took[name].append(in_a_process_of_its_own(name, rows, out, is_watched=False))
                print(f"run {run + 1}: {name} {took[name][-1]}", file=sys.stderr)
            for ours, theirs, keys in COMPARED:
                if theirs in names:
                    compared = require_same_answers(
                        answer(root / ours), answer(root / theirs), keys, workload.EXACT
                    )
                    print(f"run {run + 1}: {ours} = {theirs}, {compared} rows", file=sys.stderr)
        print(json.dumps(summary(lines, runs, took, watched)))
    finally:
        shutil.rmtree(root)


def growth(customers: int, sizes: Sequence[int]) -> None:
    """One night from scratch of more and more lines, and of customers in proportion."""
    root = Path(tempfile.mkdtemp(prefix="nightshift-bench-"))
    grown: list[dict[str, float]] = []
    try:
        for lines in sizes:
            rows, out = root / "rows", root / "one_night"
            shutil.rmtree(rows, ignore_errors=True)
            shutil.rmtree(out, ignore_errors=True)
            of_them = max(1, customers * lines // 10_000_000)
            workload.write_order_lines(rows / "order_lines", of_them, lines)
            took = in_a_process_of_its_own("one_night", rows, out)
            grown.append({"rows": lines, "customers": of_them, **took._asdict()})
            print(grown[-1], file=sys.stderr)
        print(json.dumps({"name": "features_growth", "grown": grown}))
    finally:
        shutil.rmtree(root)


def summary(
    lines: int, runs: int, took: dict[str, list[Took]], watched: Sequence[Took]
) -> dict[str, object]:
    def ratio(ours: str, theirs: str) -> float:
        pairs = zip(took[ours], took[theirs], strict=False)
        return statistics.median(a.seconds / b.seconds for a, b in pairs)

    seconds = {name: statistics.median(t.seconds for t in times) for name, times in took.items()}
    seconds["spark_start"] = statistics.median(t.start for name in ON_SPARK for t in took[name])
    return {
        "name": "features",
        "rows": lines,
        "runs": runs,
        "ratios": {name: round(ratio(a, b), 3) for name, (a, b, _) in RATIOS.items()},
        "aims": {name: aim for name, (_, _, aim) in RATIOS.items() if aim is not None},
        "seconds": {name: round(value, 2) for name, value in seconds.items()},
        "peak_mib": round(max(t.peak_mib for t in watched)),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("pyspark", "pyarrow", "duckdb", "featuretools")},
        },
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--customers", type=int, default=200_000)
    parser.add_argument("--lines", type=int, default=10_000_000)
    parser.add_argument("--payments", type=int, default=1_200_000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument(
        "--growth", type=int, nargs="+", metavar="LINES",
        help="measure one night of so many lines each, and nothing else",
    )  # fmt: skip
    parser.add_argument("--measure", choices=MEASUREMENTS, help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        print(json.dumps(MEASUREMENTS[given.measure](given.rows, given.out)))
    elif given.growth:
        growth(given.customers, given.growth)
    else:
        main(given.customers, given.lines, given.payments, given.runs)
