"""``make bench-ingest``: a file of order lines to Postgres, against a prepared binary COPY.

``load_checked`` is what the product does: read, check every row, COPY, ledger. ``load`` is the same
transport without the checks: typed batches from Arrow's CSV reader into the same COPY. Both are
divided by a binary COPY of the very same rows, prepared as a file, into the very same table (its
index included), taken in turn. ``pandas.to_sql`` and single inserts are timed on a sample, per row.
"""

import argparse
import gzip
import json
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psycopg2
import pyarrow as pa
import sqlalchemy
from pyarrow import csv as pa_csv

from nightshift.contracts import load_contract
from nightshift.demo_data.run import write_landing
from nightshift.ingest.rows import good_schema
from nightshift.ingest.run import ingest
from nightshift.io.copy import copy_batches
from nightshift.io.warehouse import migrate
from nightshift.services.postgres import EmbeddedPostgres, free_port
from nightshift.settings import Settings, load_settings

CONTRACT = load_contract("order_lines")
TABLE = CONTRACT.raw_table
LANDED, AS_OF = date(2026, 3, 31), date(2026, 4, 1)
SAMPLE = 20_000
AIMS = {"load": 1.25, "load_checked": 1.6}


def one_file(folder: Path, customers: int, lines: int) -> Path:
    """The lines of a demo shop as one CSV in the folder of the last day."""
    shop = folder / "shop"
    write_landing(shop, customers=customers, lines=lines)
    path = folder / "landing" / "order_lines" / f"ds={LANDED}" / "order_lines.csv"
    path.parent.mkdir(parents=True)
    with path.open("wb") as target:
        for number, part in enumerate(sorted(shop.glob("order_lines/ds=*/*.csv.gz"))):
            with gzip.open(part) as source:
                header = source.readline()
                if number == 0:
                    target.write(header)
                shutil.copyfileobj(source, target)
    shutil.rmtree(shop)
    return path


def execute(settings: Settings, *statements: str) -> None:
    connection = psycopg2.connect(settings.warehouse_url)
    connection.autocommit = True
    with connection.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)
    connection.close()


def emptied(settings: Settings) -> None:
    """As before the first load, with nothing left for the server to do in the background."""
    execute(
        settings,
        f"truncate {TABLE}, {CONTRACT.quarantine_table}, ops.changed_days",
        "delete from ops.landing_files",
        "checkpoint",
    )


def timed(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def land_good_rows(settings: Settings, file: Path) -> None:
    """Put what was loaded in the place of the file: the reader without checks needs whole rows."""
    columns = ", ".join(f'{c.name} as "{c.landed_name}"' for c in CONTRACT.columns)
    with (
        psycopg2.connect(settings.warehouse_url) as connection,
        connection.cursor() as cursor,
        file.open("wb") as target,
    ):
        cursor.copy_expert(
            f"copy (select {columns} from {TABLE}) to stdout (format csv, header)", target
        )


def copy_binary(settings: Settings, prepared: Path, direction: str) -> None:
    with (
        psycopg2.connect(settings.warehouse_url) as connection,
        connection.cursor() as cursor,
        prepared.open("rb" if direction == "from stdin" else "wb") as file,
    ):
        cursor.copy_expert(f"copy {TABLE} {direction} (format binary)", file, size=1 << 20)


def load_unchecked(settings: Settings, file: Path) -> None:
    """The file's rows through Arrow's own types, without a rule, by the same COPY."""
    schema = good_schema(CONTRACT)
    names = {c.landed_name: c.name for c in CONTRACT.columns}
    types = {c.landed_name: schema.field(c.name).type for c in CONTRACT.columns}
    reader = pa_csv.open_csv(
        file,
        read_options=pa_csv.ReadOptions(block_size=8 << 20),
        parse_options=pa_csv.ParseOptions(newlines_in_values=True),
        convert_options=pa_csv.ConvertOptions(
            column_types=types, null_values=[""], strings_can_be_null=True
        ),
    )
    stamps = [
        ("_landed_date", pa.scalar(LANDED, pa.date32())),
        ("_file_id", pa.scalar(1, pa.int64())),
    ]

    def batches() -> Any:
        first = 1
        for batch in reader:
            table = pa.Table.from_batches([batch]).rename_columns(
                [names[name] for name in batch.schema.names]
            )
            numbers = pa.array(np.arange(first, first + batch.num_rows))
            table = table.append_column("_row_number", numbers)
            for name, value in stamps:
                table = table.append_column(name, pa.repeat(value, batch.num_rows))
            first += batch.num_rows
            yield from table.to_batches()

    full = pa.schema([*schema, ("_landed_date", pa.date32()), ("_file_id", pa.int64())])
    with psycopg2.connect(settings.warehouse_url) as connection:
        copy_batches(connection, TABLE, full, batches())


def in_a_process_of_its_own(settings: Settings) -> tuple[float, float]:
    """Seconds of ``ingest`` after the imports, and the process's peak resident MiB."""
    done = subprocess.run(
        [sys.executable, __file__, "--ingest", settings.model_dump_json()],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    seconds, peak = json.loads(done.stdout.splitlines()[-1])
    return seconds, peak


def ingest_and_measure(settings: Settings) -> None:
    seconds = timed(lambda: ingest(settings, AS_OF))
    print(json.dumps([seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]))


def sample_seconds(settings: Settings) -> tuple[float, float]:
    """Seconds for SAMPLE rows by ``pandas.to_sql`` and by single inserts."""
    engine = sqlalchemy.create_engine(
        settings.warehouse_url.replace("postgresql://", "postgresql+psycopg2://")
    )
    frame = pd.read_sql(f"select * from {TABLE} limit {SAMPLE}", engine)
    schema, name = TABLE.split(".")
    by_pandas = timed(
        lambda: frame.to_sql(name, engine, schema=schema, if_exists="append", index=False)
    )
    engine.dispose()
    rows = list(frame.astype(object).where(frame.notna(), None).itertuples(index=False, name=None))
    marks = ", ".join(["%s"] * len(frame.columns))

    def insert() -> None:
        with psycopg2.connect(settings.warehouse_url) as connection, connection.cursor() as cursor:
            for row in rows:
                cursor.execute(f"insert into {TABLE} values ({marks})", row)

    return by_pandas, timed(insert)


def main(customers: int, lines: int, runs: int) -> None:
    # not in a folder that only its owner may enter: Postgres runs as an account of its own
    root = Path(tempfile.mkdtemp(prefix="nightshift-bench-"))
    root.chmod(0o755)
    server = EmbeddedPostgres(root / "data", free_port(15700), "bench")
    try:
        file = one_file(root, customers, lines)
        print(f"{file.stat().st_size / 2**20:.0f} MiB of CSV", file=sys.stderr)
        server.start()
        server.ensure_database("bench", "postgres")
        url = server.url("bench", "postgres", "bench")
        settings = load_settings(
            _env_file=None, state_dir=root, landing=root / "landing", database_url=url,
            reader_database_url=url,
        )  # fmt: skip
        migrate(settings)
        ingest(settings, AS_OF)
        land_good_rows(settings, file)
        emptied(settings)
        result = ingest(settings, AS_OF)
        prepared = root / "prepared.copy"
        copy_binary(settings, prepared, "to stdout")
        by_pandas, by_insert = sample_seconds(settings)
        seconds: dict[str, list[float]] = {"copy": [], "load": [], "load_checked": []}
        peaks = []
        for run in range(runs):
            emptied(settings)
            seconds["copy"].append(timed(lambda: copy_binary(settings, prepared, "from stdin")))
            emptied(settings)
            seconds["load"].append(timed(lambda: load_unchecked(settings, file)))
            emptied(settings)
            took, peak = in_a_process_of_its_own(settings)
            seconds["load_checked"].append(took)
            peaks.append(peak)
            now = {name: round(values[-1], 2) for name, values in seconds.items()}
            print(f"run {run + 1}: {now}", file=sys.stderr)
        rows = result.rows_loaded
        per_row = statistics.median(seconds["load_checked"]) / result.rows_in
        ratios = {
            name: statistics.median(
                ours / peer for ours, peer in zip(seconds[name], seconds["copy"], strict=True)
            )
            for name in AIMS
        }
        ratios["to_sql"] = by_pandas / SAMPLE / per_row
        ratios["single_inserts"] = by_insert / SAMPLE / per_row
        print(
            json.dumps(
                {
                    "name": "ingest",
                    "rows": rows,
                    "runs": runs,
                    "ratios": {name: round(value, 3) for name, value in ratios.items()},
                    "aims": AIMS,
                    "seconds": {k: round(statistics.median(v), 2) for k, v in seconds.items()},
                    "peak_mib": round(max(peaks)),
                    "versions": {
                        "python": platform.python_version(),
                        "postgres": "18",
                        "pyarrow": version("pyarrow"),
                        "pgpq": version("pgpq"),
                    },
                }
            )
        )
    finally:
        server.stop()
        shutil.rmtree(root)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--customers", type=int, default=200_000)
    parser.add_argument("--lines", type=int, default=10_000_000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--ingest", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.ingest:
        ingest_and_measure(Settings.model_validate_json(given.ingest))
    else:
        main(given.customers, given.lines, given.runs)
