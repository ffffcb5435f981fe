"""``make bench-publish``: a million predictions to readers, against a bare binary COPY of the rows.

``publish`` is what the product does: checksum, COPY into a table of its own, primary key, index of
the bands, audit, attachment, pointer. It is divided by a binary COPY of the very same rows, all
columns, prepared as a file, into a heap without key or index, taken in turn. That heap is there
before; ``over_copy_frozen`` divides by a COPY in the transaction that makes it, frozen, of which
the server, as it is set, logs nothing. ``publish_read`` is the first ratio, of runs in which a
reader looks one customer up in a tight loop, which takes half a core: ``reader_stall_ms`` is the
longest that it waited in any of them, ``reader_stall_long_ms`` the same while another reader keeps
a transaction open. On a busy machine a reader waits for a core as well: so ``reader_held_ms`` is
the longest wait less the time in which the reader or its server process was ready to run and had no
core, by the kernel's account; and ``reader_stolen_ms`` is how long a virtual machine's host ran
something else on any of its cores during the longest wait, told in steps of 10 ms. Beside them are
told the longest wait beside the bare COPY, that of as many seconds in which nothing else runs
(``reader_stall_idle_ms``), and ``reader_lock_waits``: how often the server's log tells of a reader
who waited longer than 5 ms for a lock. pandas' ``to_sql`` and ``execute_values`` are timed on a
sample, Spark's JDBC on all rows by a session that has started, and compared per row.

The lookups, in milliseconds, are of dates with all rows, beside 400 published dates of fewer.
"""

import argparse
import hashlib
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any, TextIO
from urllib.parse import urlsplit

import numpy as np
import psycopg2
import pyarrow as pa
import pyarrow.parquet as pq
import sqlalchemy
from bench_score import jdbc_jars
from psycopg2.extras import execute_values
from pyspark.sql import SparkSession

from nightshift.io import lake
from nightshift.io.warehouse import migrate
from nightshift.publication import ScoresManifest, publication_id
from nightshift.publishing import sql
from nightshift.publishing.history_run import prune
from nightshift.publishing.run import publish, publish_nights
from nightshift.services.postgres import EmbeddedPostgres, free_port
from nightshift.settings import Settings, load_settings
from nightshift.use_cases.churn import CHURN

AS_OF = date(2026, 1, 1)
DATES, DATED_ROWS = 400, 2_000
PARTS = 16
SAMPLE = 20_000
AIMS = {
    "publish": 1.5, "reader_stall_ms": 10.0, "reader_stall_long_ms": 10.0,
    "latest_ms": 1.0, "dated_ms": 1.0, "top_ms": 1.0,
}  # fmt: skip


def predictions(rows: int, seed: int) -> pa.Table:
    """Scores as scoring leaves them: keys as pseudonyms are, three reasons a row."""
    random = np.random.default_rng(seed)
    scores = random.beta(2, 3, rows)
    bands = np.select([scores >= 0.7, scores >= 0.4], ["high", "medium"], "low")
    names = [json.dumps(name) for name in CHURN.feature_names]
    told = []
    for features, values, weights in zip(
        random.integers(0, len(names), (rows, 3)).tolist(),
        random.gamma(1, 20, (rows, 3)).tolist(),
        random.normal(0, 1, (rows, 3)).tolist(),
        strict=True,
    ):
        parts = (
            f'{{"feature": {names[feature]}, "value": {value:.6g}, "contribution": {weight:.6g},'
            f' "direction": "{"raises" if weight > 0 else "lowers"}"}}'
            for feature, value, weight in zip(features, values, weights, strict=True)
        )
        told.append(f"[{', '.join(parts)}]")
    return pa.table(
        {
            "customer_id": [hashlib.md5(str(n).encode()).hexdigest() for n in range(rows)],
            "churn_probability": scores,
            "band": bands.tolist(),
            "reasons": told,
        }
    )


def write_parts(table: pa.Table, folder: Path, parts: int) -> list[Path]:
    """As many files as scoring leaves."""
    folder.mkdir()
    found = [folder / f"part-{number:05}.parquet" for number in range(parts)]
    each = -(-len(table) // parts)
    for number, part in enumerate(found):
        rows = table.slice(number * each, each)
        pq.write_table(rows, part, compression="zstd", row_group_size=65_536)
    return found


def lay_down(settings: Settings, parts: list[Path], rows: int, as_of: date) -> None:
    """Scores, and the features' keys, of one date in the lake."""
    folder = lake.dataset_dir(settings.lake_dir, "features", CHURN.name, as_of)
    with lake.replacing(folder) as target:
        for part in parts:
            pq.write_table(pq.read_table(part, columns=["customer_id"]), target / part.name)
        lake.write_manifest(target, {"sha256": "features", "rows": rows})
    folder = lake.dataset_dir(settings.lake_dir, "scores", CHURN.name, as_of)
    with lake.replacing(folder) as target:
        for part in parts:
            shutil.copyfile(part, target / part.name)
        manifest = ScoresManifest(
            use_case=CHURN.name, as_of=as_of, model_version="1", mlflow_run_id="run",
            publication_id=publication_id(CHURN.name, as_of, "1", "features"), rows=rows,
            population_rows=rows, features_sha256="features", scored_at=datetime.now(UTC),
            sha256=lake.parts_sha256(parts),
        )  # fmt: skip
        lake.write_manifest(target, manifest.model_dump(mode="json"))


def execute(url: str, *statements: str) -> None:
    with closing(psycopg2.connect(url)) as connection:
        connection.autocommit = True
        for statement in statements:
            connection.cursor().execute(statement)


def timed(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def bare_table(name: str) -> str:
    body = ", ".join(f"{sql.quoted(c)} {kind}" for c, (kind, _) in sql.columns(CHURN).items())
    return f"create table {name} ({body})"


def copy_binary(
    url: str, prepared: Path, direction: str, relation: str, created: str | None = None
) -> None:
    """COPY by the prepared file; with ``created``, which makes the table, frozen."""
    with (
        closing(psycopg2.connect(url)) as connection,
        connection,
        connection.cursor() as cursor,
        prepared.open("rb" if direction == "from stdin" else "wb") as file,
    ):
        if created is not None:
            cursor.execute(created)
        options = "format binary" if created is None else "format binary, freeze"
        cursor.copy_expert(f"copy {relation} {direction} ({options})", file, size=1 << 20)


def seconds_without_core(accounts: list[TextIO]) -> float:
    """How long processes were ready to run and did not, so far; by their ``schedstat`` of /proc."""
    found = 0
    for account in accounts:
        account.seek(0)
        found += int(account.read().split()[1])
    return found / 1e9


def seconds_stolen(machine: TextIO) -> float:
    """How long the machine's host has run something else on its cores, by their ``/proc/stat``."""
    machine.seek(0)
    return int(machine.readline().split()[8]) / os.sysconf("SC_CLK_TCK")


@dataclass
class Waits:
    """What a reader waited for single lookups, in milliseconds."""

    longest: float = 0.0
    held: float = 0.0
    stolen: float = 0.0
    lookups: int = 0


def read_until_told(url: str, key: str) -> None:
    """Look a customer up in a tight loop, each time in a transaction of its own; print `Waits`.

    Ends when its standard input does.
    """
    ended, found = threading.Event(), Waits()
    threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
    with closing(psycopg2.connect(url)) as connection, connection.cursor() as cursor:
        connection.autocommit = True
        query = "select * from predictions.churn_latest where customer_id = %s"
        cursor.execute(query, (key,))
        thread = f"self/task/{threading.get_native_id()}"
        accounts = [
            (Path("/proc") / who / "schedstat").open()
            for who in (thread, str(connection.get_backend_pid()))
        ]
        with Path("/proc/stat").open() as machine:
            print("ready", flush=True)
            while not ended.is_set():
                without_core, stolen = seconds_without_core(accounts), seconds_stolen(machine)
                started = time.perf_counter()
                cursor.execute(query, (key,))
                rows = cursor.fetchall()
                waited = time.perf_counter() - started
                without_core = seconds_without_core(accounts) - without_core
                if waited * 1000 > found.longest:
                    found.longest = waited * 1000
                    found.stolen = (seconds_stolen(machine) - stolen) * 1000
                found.held = max(found.held, (waited - without_core) * 1000)
                found.lookups += 1
                assert len(rows) == 1, "a reader found a gap or a mix"
                time.sleep(0.0005)
    print(json.dumps(asdict(found)))


@contextmanager
def reading(url: str, key: str) -> Iterator[Waits]:
    """A reader beside the body, as an app is one: a process and session of its own.

    Within one session Linux lets threads wait for each other's share of the cores (autogroup), so
    one in that of ``publish`` would wait for what no app waits for.
    """
    found = Waits()
    with subprocess.Popen(
        [sys.executable, __file__, "--read", url, key],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
    ) as reader:  # fmt: skip
        assert reader.stdout is not None
        assert reader.stdout.readline() == "ready\n"
        yield found
        told, _ = reader.communicate()
    assert reader.returncode == 0
    vars(found).update(json.loads(told))


def in_a_process_of_its_own(settings: Settings, as_of: date) -> tuple[float, float]:
    """Seconds of ``publish`` after the imports, and the process's peak resident MiB."""
    done = subprocess.run(
        [sys.executable, __file__, "--publish", settings.model_dump_json(), str(as_of)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    seconds, peak = json.loads(done.stdout.splitlines()[-1])
    return seconds, peak


def publish_and_measure(settings: Settings, as_of: date) -> None:
    seconds = timed(lambda: publish(settings, [CHURN], as_of))
    # not getrusage, which begins with what the parent held
    status = Path("/proc/self/status").read_text()
    peak_kib = int(status.partition("VmHWM:")[2].split()[0])
    print(json.dumps([seconds, peak_kib / 1024]))


def peers(settings: Settings, table: pa.Table) -> dict[str, float]:
    """Seconds a row of a sample, by what people write instead; without key, audit and pointer."""
    sample = table.slice(0, SAMPLE)
    columns = sample.column_names
    frame = sample.to_pandas()
    execute(settings.warehouse_url, "drop table if exists public.sample", bare_table("sample"))
    engine = sqlalchemy.create_engine(
        settings.warehouse_url.replace("postgresql://", "postgresql+psycopg2://")
    )
    types = {"reasons": sqlalchemy.dialects.postgresql.JSONB}
    objects = frame.assign(reasons=[json.loads(text) for text in frame["reasons"]])
    found = {
        "to_sql": timed(
            lambda: objects.to_sql("sample", engine, if_exists="append", index=False, dtype=types)
        )
    }
    engine.dispose()
    rows = list(frame.itertuples(index=False, name=None))

    def insert() -> None:
        with closing(psycopg2.connect(settings.warehouse_url)) as connection, connection:
            statement = f"insert into sample ({', '.join(columns)}) values %s"
            execute_values(connection.cursor(), statement, rows)

    found["execute_values"] = timed(insert)
    return {name: seconds / SAMPLE for name, seconds in found.items()}


def by_spark(settings: Settings, parts: list[Path], jars: str) -> float:
    """Seconds of Spark's JDBC for all rows."""
    os.environ["PYSPARK_PYTHON"] = sys.executable
    builder = SparkSession.builder.master("local[*]").config("spark.jars", jars)
    settled = {"spark.ui.enabled": "false", "spark.driver.host": "127.0.0.1"}
    spark = builder.config(map=settled).getOrCreate()
    rows = spark.read.parquet(*map(str, parts))
    rows.limit(1).collect()
    server = urlsplit(settings.warehouse_url)
    execute(settings.warehouse_url, bare_table("public.jdbc"))
    # text is to become jsonb
    options = "reWriteBatchedInserts=true&stringtype=unspecified"
    found = timed(
        lambda: rows.write.jdbc(
            f"jdbc:postgresql://{server.hostname}:{server.port}{server.path}?{options}",
            "public.jdbc",
            mode="append",
            properties={
                "user": str(server.username), "password": str(server.password),
                "driver": "org.postgresql.Driver", "batchsize": "10000",
            },
        )
    )  # fmt: skip
    spark.stop()
    execute(settings.warehouse_url, "drop table public.jdbc")
    return found


def lookups(settings: Settings) -> dict[str, float]:
    """Milliseconds of a lookup in dates with all rows, medians of 200, each planned anew.

    Those are published, from ``AS_OF`` on; before it, here, some 400 of ``DATED_ROWS``.
    """
    parts = write_parts(predictions(DATED_ROWS, 2), settings.state_dir / "dated", 1)
    dates = [AS_OF - timedelta(days=back) for back in range(1, DATES)]
    for as_of in dates:
        lay_down(settings, parts, DATED_ROWS, as_of)
    publish_nights(settings, {as_of: [CHURN] for as_of in dates})
    key = hashlib.md5(b"7").hexdigest()
    latest, churn = "predictions.churn_latest", "predictions.churn"
    queries: dict[str, tuple[str, tuple[Any, ...]]] = {
        "latest_ms": (f"select * from {latest} where customer_id = %s", (key,)),
        "dated_ms": (
            f"select * from {churn} where customer_id = %s and as_of = %s",
            (key, AS_OF),
        ),
        "top_ms": (
            f"select * from {latest} where band = %s order by churn_probability desc limit 10",
            ("high",),
        ),
    }
    found = {}
    with closing(psycopg2.connect(settings.reader_url)) as connection:
        connection.autocommit = True
        cursor = connection.cursor()
        for name, (query, arguments) in queries.items():
            taken = []
            for _ in range(220):
                started = time.perf_counter()
                cursor.execute(query, arguments)
                rows = cursor.fetchall()
                taken.append(time.perf_counter() - started)
                assert rows, query
            found[name] = statistics.median(taken[20:]) * 1000
    return found


def main(rows: int, runs: int) -> None:
    # not in a folder that only its owner may enter: Postgres runs as an account of its own
    root = Path(tempfile.mkdtemp(prefix="nightshift-bench-"))
    root.chmod(0o755)
    server = EmbeddedPostgres(root / "data", free_port(15750), "bench")
    try:
        server.start()
        server.ensure_database("bench", "postgres")
        url = server.url("bench", "postgres", "bench")
        settings = load_settings(
            _env_file=None, state_dir=root, landing=root, database_url=url, reader_database_url=url
        )
        migrate(settings)
        execute(
            url,
            "alter system set log_lock_waits = on",
            "alter system set deadlock_timeout = '5ms'",
            "select pg_reload_conf()",
        )
        table = predictions(rows, 1)
        parts = write_parts(table, root / "parts", PARTS)
        key = str(table["customer_id"][rows // 2])
        lay_down(settings, parts, rows, AS_OF)
        publish(settings, [CHURN], AS_OF)
        prepared = root / "prepared.copy"
        copy_binary(url, prepared, "to stdout", "(select * from predictions.churn_latest)")

        timings = ("copy", "copy_frozen", "publish", "copy_read", "publish_read")
        seconds: dict[str, list[float]] = {name: [] for name in timings}
        stalls: dict[str, list[float]] = {"copy": [], "publish": [], "idle": []}
        held: list[float] = []
        stolen: list[float] = []
        peaks: list[float] = []

        def copy_bare() -> float:
            execute(url, "drop table if exists bare", bare_table("bare"), "checkpoint")
            return timed(lambda: copy_binary(url, prepared, "from stdin", "bare"))

        def prepare(days: int) -> date:
            execute(url, "drop table if exists bare")
            as_of = AS_OF + timedelta(days=days)
            lay_down(settings, parts, rows, as_of)
            execute(url, "checkpoint")
            return as_of

        def publish_next(days: int) -> float:
            took, peak = in_a_process_of_its_own(settings, prepare(days))
            peaks.append(peak)
            return took

        for run in range(runs):
            execute(url, "drop table if exists bare", "checkpoint")
            seconds["copy_frozen"].append(
                timed(lambda: copy_binary(url, prepared, "from stdin", "bare", bare_table("bare")))
            )
            seconds["copy"].append(copy_bare())
            seconds["publish"].append(publish_next(2 * run + 1))
            with reading(url, key) as reader:
                seconds["copy_read"].append(copy_bare())
            stalls["copy"].append(reader.longest)
            with reading(url, key) as reader:
                seconds["publish_read"].append(publish_next(2 * run + 2))
            stalls["publish"].append(reader.longest)
            stolen.append(reader.stolen)
            held.append(reader.held)
            with reading(url, key) as reader:
                time.sleep(seconds["publish_read"][-1])
            stalls["idle"].append(reader.longest)
            print(
                f"run {run + 1}: "
                + ", ".join(f"{name} {found[-1]:.2f} s" for name, found in seconds.items())
                + ", longest wait of "
                + ", ".join(f"{name} {found[-1]:.1f} ms" for name, found in stalls.items())
                + f", of publish with a core {held[-1]:.1f} ms; stolen {stolen[-1]:.0f} ms",
                file=sys.stderr,
            )
        as_of = prepare(2 * runs + 1)
        with closing(psycopg2.connect(url)) as long:
            long.cursor().execute("select count(*) from predictions.churn")
            with reading(url, key) as reader:
                in_a_process_of_its_own(settings, as_of)
                prune(settings, [CHURN], as_of)
        found = lookups(settings)
        # last: Spark's JVM stays, and it all leaves much to write to the disk
        by_row = peers(settings, table) | {
            "jdbc": by_spark(settings, parts, jdbc_jars(root)) / rows
        }
        per_row = statistics.median(seconds["publish"]) / rows

        def ratio(one: str, other: str) -> float:
            pairs = zip(seconds[one], seconds[other], strict=True)
            return statistics.median(ours / bare for ours, bare in pairs)

        ratios = {
            "publish": ratio("publish", "copy"),
            "over_copy_frozen": ratio("publish", "copy_frozen"),
            "publish_read": ratio("publish_read", "copy_read"),
            "reader_stall_ms": max(stalls["publish"]),
            "reader_stall_long_ms": reader.longest,
            **found,
            **{name: each / per_row for name, each in by_row.items()},
            "reader_held_ms": max(held),
            "reader_held_long_ms": reader.held,
            "reader_stolen_ms": max(zip(stalls["publish"], stolen, strict=True))[1],
            "reader_stolen_long_ms": reader.stolen,
            "reader_stall_copy_ms": max(stalls["copy"]),
            "reader_stall_idle_ms": max(stalls["idle"]),
            "reader_lock_waits": server.log_file.read_text().count("waiting for AccessShareLock"),
        }
        print(
            json.dumps(
                {
                    "name": "publish",
                    "rows": rows,
                    "runs": runs,
                    "dates": DATES,
                    "rows_a_date": DATED_ROWS,
                    "sample_rows": SAMPLE,
                    "ratios": {name: round(value, 3) for name, value in ratios.items()},
                    "aims": AIMS,
                    "seconds": {k: round(statistics.median(v), 2) for k, v in seconds.items()},
                    "peak_mib": round(max(peaks)),
                    "versions": {
                        "python": platform.python_version(),
                        "postgres": "18",
                        "pyarrow": version("pyarrow"),
                        "pgpq": version("pgpq"),
                        "pandas": version("pandas"),
                    },
                }
            )
        )
    finally:
        server.stop()
        shutil.rmtree(root)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--publish", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--read", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.publish:
        publish_and_measure(
            Settings.model_validate_json(given.publish[0]), date.fromisoformat(given.publish[1])
        )
    elif given.read:
        read_until_told(*given.read)
    else:
        main(given.rows, given.runs)
