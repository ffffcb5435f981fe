"""The whole night through the command line: repeated, killed at every stage, and out of order.

One small demo shop, one champion and one night that nothing disturbed (``Night``) are shared by
the tests; a test that disturbs a night does so in a warehouse and a lake of its own.
"""

import gzip
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import psycopg2
import pyarrow.parquet as pq
import pytest
from psycopg2.extensions import connection as Connection
from sklearn.metrics import roc_auc_score

from nightshift.demo_data.run import write_landing
from nightshift.io import lake
from nightshift.services.postgres import EmbeddedPostgres
from nightshift.settings import PROJECT_ROOT, Settings, load_settings

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

AS_OF = date(2025, 12, 16)
LATER = date(2025, 12, 31)
WRITER, READER = "nightshift_writer", "nightshift_reader"
PATIENCE = 180.0
"""Seconds after which a line or a state that never comes fails the test."""


@dataclass(frozen=True)
class Night:
    """A night for ``AS_OF`` that nothing disturbed, and the output of one without a champion."""

    settings: Settings
    outcome: dict[str, Any]
    before_training: subprocess.CompletedProcess[str]


class Warehouses:
    """Fresh warehouses on the test server, each with its own lake and state, sharing the rest."""

    def __init__(self, server: EmbeddedPostgres, template: str, root: Path, mlflow: str) -> None:
        self._server, self._template, self._root, self._mlflow = server, template, root, mlflow

    def make(self, name: str) -> Settings:
        self._server.ensure_database(name, WRITER, READER, template=self._template)
        return load_settings(
            _env_file=None,
            state_dir=self._root / name,
            landing=self._root / "landing",
            database_url=self._server.url(name, WRITER, self._server.password),
            reader_database_url=self._server.url(name, READER, self._server.password),
            mlflow_tracking_uri=self._mlflow,
            spark_master="local[2]",
            spark_driver_memory="1g",
        )


@pytest.fixture(scope="module")
def warehouses(
    postgres_server: EmbeddedPostgres,
    migrated_template: str,
    mlflow_template: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Warehouses:
    root = tmp_path_factory.mktemp("nightly")
    write_landing(
        root / "landing", customers=800, lines=45_000, start=date(2024, 7, 1),
    )  # fmt: skip
    land_late_lines(root / "landing")
    postgres_server.ensure_database("nightly_mlflow", WRITER, template=mlflow_template)
    mlflow = postgres_server.url(
        "nightly_mlflow", WRITER, postgres_server.password, "postgresql+psycopg2"
    )
    return Warehouses(postgres_server, migrated_template, root, mlflow)


@pytest.fixture(scope="module")
def night(warehouses: Warehouses) -> Night:
    settings = warehouses.make("nightly_undisturbed")
    refused = nightshift(settings, "nightly", "--as-of", str(AS_OF))
    trained = nightshift(settings, "train", "churn", "--as-of", str(AS_OF))
    assert trained.returncode == 0, trained.stdout + trained.stderr
    run_night(settings)
    return Night(settings, outcome_of(settings), refused)


def land_late_lines(landing: Path) -> None:
    """Purchases from before ``AS_OF`` that land after it, of every customer of one day."""
    source = landing / "order_lines"
    with gzip.open(source / "ds=2025-12-01" / "order_lines.csv.gz", "rt") as file:
        header, *lines = file.read().splitlines()
    late = [line.replace(",2025-12-01 ", ",2025-12-15 ") for line in lines]
    late = ["99" + line[2:] for line in late if ",2025-12-15 " in line and line[0].isdigit()]
    assert len(late) > 20
    with gzip.open(source / "ds=2025-12-17" / "late.csv.gz", "wt") as file:
        file.write("\n".join([header, *late]) + "\n")


def environment(settings: Settings) -> dict[str, str]:
    """What makes the command line use these settings, and lines that are not wrapped."""
    return os.environ | {
        "NIGHTSHIFT_STATE_DIR": str(settings.state_dir),
        "NIGHTSHIFT_LANDING": str(settings.landing),
        "NIGHTSHIFT_DATABASE_URL": settings.warehouse_url,
        "NIGHTSHIFT_READER_DATABASE_URL": settings.reader_url,
        "NIGHTSHIFT_MLFLOW_TRACKING_URI": settings.mlflow_uri,
        "NIGHTSHIFT_SPARK_MASTER": settings.spark_master,
        "NIGHTSHIFT_SPARK_DRIVER_MEMORY": settings.spark_driver_memory,
        "PYTHONPATH": str(PROJECT_ROOT / "jobs"),
        "COLUMNS": "200",
    }


def nightshift(settings: Settings, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command line, run to its end."""
    return subprocess.run(
        [sys.executable, "-m", "nightshift.cli", *arguments],
        env=environment(settings), capture_output=True, text=True, check=False,
    )  # fmt: skip


def run_night(settings: Settings, as_of: date = AS_OF) -> str:
    done = nightshift(settings, "nightly", "--as-of", str(as_of))
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


class Victim:
    """A command in a process group of its own, which is killed whole: Spark's JVM included."""

    def __init__(self, settings: Settings, *arguments: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "nightshift.cli", *arguments],
            env=environment(settings), start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self._lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stderr is not None
        self._lines.extend(iter(self._process.stderr.readline, ""))

    def says(self, words: str) -> bool:
        return any(words in line for line in list(self._lines))

    def wait_for(self, happens: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while not happens():
            ended = self._process.poll() is not None
            if (ended and not happens()) or time.monotonic() > deadline:
                raise AssertionError(f"{what} never came:\n{''.join(self._lines)}")
            time.sleep(0.02)

    def kill(self) -> None:
        assert self._process.poll() is None, "it ended before it could be killed"
        self.end()
        assert self._process.returncode == -signal.SIGKILL

    def end(self) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._reader.join(timeout=10)
        assert self._process.stderr is not None
        self._process.stderr.close()


@contextmanager
def victim(settings: Settings, *arguments: str) -> Iterator[Victim]:
    process = Victim(settings, *arguments)
    try:
        yield process
    finally:
        process.end()


def kill_when_it_says(settings: Settings, words: str) -> None:
    with victim(settings, "nightly", "--as-of", str(AS_OF)) as process:
        process.wait_for(lambda: process.says(words), words)
        process.kill()


def execute(url: str, statement: str, *parameters: object) -> None:
    connection = psycopg2.connect(url)
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute(statement, parameters or None)
    finally:
        connection.close()


def query(url: str, statement: str, *parameters: object) -> list[tuple[Any, ...]]:
    connection = psycopg2.connect(url)
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute(statement, parameters or None)
            return list(cursor.fetchall())
    finally:
        connection.close()


def outcome_of(settings: Settings, as_of: date = AS_OF) -> dict[str, Any]:
    """Everything that two nights for the same ``as_of`` must have in common.

    Left out: what names a run or an instant (``scored_at``, ``_file_id``, which a file that is
    loaded at the second attempt gets anew).
    """
    url = settings.warehouse_url
    return {
        "predictions": query(
            settings.reader_url,
            "select customer_id, as_of, churn_probability, band, reasons::text, model_version,"
            " publication_id from predictions.churn where as_of = %s order by customer_id",
            as_of,
        ),
        "raw": query(
            url,
            "select path, _row_number, invoice, stock_code, r.description, quantity, invoice_date,"
            " price, customer_id, country, _landed_date from raw.order_lines r"
            " join ops.landing_files on file_id = _file_id where _landed_date < %s order by 1, 2",
            as_of,
        ),
        "ledger": query(
            url,
            "select path, sha256, bytes, status, reason, rows_in, rows_loaded, rows_quarantined"
            " from ops.landing_files where landed_date < %s order by 1, 4",
            as_of,
        ),
        "quarantine": query(
            url,
            "select path, _row_number, column_name, rule, value, row_as_landed"
            " from quarantine.order_lines join ops.landing_files on file_id = _file_id"
            " where _landed_date < %s order by 1, 2, 3",
            as_of,
        ),
        "mart": query(
            url,
            "select path, split_part(order_line_id, ':', 2)::bigint, invoice_id, is_cancellation,"
            " product_id, is_product, quantity, unit_price, line_amount, invoiced_at, customer_id"
            " from marts.fct_order_lines"
            " join ops.landing_files on file_id = split_part(order_line_id, ':', 1)::bigint"
            " where fct_order_lines.landed_date < %s order by 1, 2",
            as_of,
        ),
    }


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    for what, rows in expected.items():
        assert len(found[what]) == len(rows), what
        differing = [pair for pair in zip(found[what], rows, strict=True) if pair[0] != pair[1]]
        assert not differing, f"{what}: {len(differing)} rows differ, the first is {differing[0]}"


def wait_until_alone(settings: Settings) -> None:
    """Until the server has noticed that its clients are dead, and has rolled back."""
    deadline = time.monotonic() + PATIENCE
    others = (
        "select pid, state, query from pg_stat_activity"
        " where datname = current_database() and pid <> pg_backend_pid()"
        " and backend_type = 'client backend'"
    )
    while left := query(settings.warehouse_url, others):
        assert time.monotonic() < deadline, left
        time.sleep(0.02)


def assert_nothing_is_half_done(settings: Settings, reference: dict[str, Any]) -> None:
    """What holds after any kill, before anything is run again."""
    wait_until_alone(settings)
    for table, column in (
        ("raw.order_lines", "rows_loaded"),
        ("quarantine.order_lines", "rows_quarantined"),
    ):
        if query(settings.warehouse_url, "select to_regclass(%s)", table) == [(None,)]:
            continue
        wrong = query(
            settings.warehouse_url,
            f"select path, {column}, n from ops.landing_files full join"
            f" (select _file_id, count(*) as n from {table} group by 1) as t on _file_id = file_id"
            f" where coalesce(n, 0) is distinct from {column}",
        )
        assert wrong == [], table
    assert_datasets_are_whole(settings.lake_dir)
    view = query(settings.warehouse_url, "select to_regclass('predictions.churn') is not null")
    if view == [(True,)]:
        published = query(settings.reader_url, "select count(*) from predictions.churn")[0][0]
        assert published in (0, len(reference["predictions"]))


def assert_datasets_are_whole(root: Path) -> None:
    """Each folder that a reader would take for a dataset has a manifest that fits its rows."""
    for folder in [*root.rglob("as_of=*"), *root.rglob("month=*")]:
        if folder.name.startswith(".") or not folder.is_dir():
            continue
        manifest = lake.read_manifest(folder)
        assert manifest is not None, folder
        rows = sum(pq.read_metadata(part).num_rows for part in folder.glob("part-*.parquet"))
        assert rows == manifest["rows"], folder


def assert_nothing_is_left_behind(settings: Settings) -> None:
    """What a killed run had begun is gone once a run has ended."""
    left = query(
        settings.warehouse_url,
        "select relnamespace::regnamespace || '.' || relname from pg_class c where relkind in"
        " ('r', 'v') and (relname like '%%\\_\\_dbt\\_%%' or relname ~ '^churn_p_' and not exists"
        " (select from pg_inherits where inhrelid = c.oid)) and %s",
        True,
    )
    assert left == []
    hidden = [
        path
        for pattern in (".as_of=*", ".month=*")
        for path in settings.lake_dir.rglob(pattern)
        if path.is_dir()
    ]
    assert hidden == []


WAIT_FOR_THE_TEST = """
create function public.wait_for_the_test() returns trigger language plpgsql as $$
begin
    perform pg_advisory_xact_lock(4711);
    return new;
end $$;
"""
# The table of a publication is made and filled in one transaction: only the server itself can put
# the trigger there in between.
ON_THE_PUBLICATION = """
create function public.plant_the_trigger() returns event_trigger language plpgsql as $$
declare made record;
begin
    for made in select * from pg_event_trigger_ddl_commands() where command_tag = 'CREATE TABLE'
    loop
        if made.object_identity like 'predictions.churn\\_p\\_%' then
            execute format('create trigger wait_here before insert on %s for each row'
                ' when (new.customer_id = %L) execute function public.wait_for_the_test()',
                made.object_identity, '{customer_id}');
        end if;
    end loop;
end $$;
create event trigger plant_the_trigger on ddl_command_end when tag in ('CREATE TABLE')
    execute function public.plant_the_trigger();
"""
NOT_ON_THE_PUBLICATION = """
drop event trigger plant_the_trigger;
drop function public.plant_the_trigger();
"""
ON_RAW = """
create trigger wait_here before insert on raw.order_lines for each row when (new._row_number = 20)
    execute function public.wait_for_the_test();
"""


@contextmanager
def held_copy(server: EmbeddedPostgres, database: str, plant: str, unplant: str) -> Iterator[None]:
    """Any COPY into the planted table stands still at a row, until the block ends."""
    with server.superuser(database) as holder, holder.cursor() as cursor:
        cursor.execute(WAIT_FOR_THE_TEST + plant)
        cursor.execute("select pg_advisory_lock(4711)")
        yield
        cursor.execute("select pg_advisory_unlock(4711)")
        deadline = time.monotonic() + PATIENCE
        while copies_in_progress(holder):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        cursor.execute(unplant + "drop function public.wait_for_the_test() cascade;")


def copies_in_progress(connection: Connection) -> int:
    with connection.cursor() as cursor:
        cursor.execute(
            "select count(*) from pg_stat_progress_copy where datname = current_database()"
        )
        count: int = cursor.fetchone()[0]
    return count


def kill_in_the_copy(settings: Settings, server: EmbeddedPostgres, plant: str, unplant: str) -> int:
    """Kill the night while its COPY is in progress; the number of rows it had got to."""
    database = settings.warehouse_url.rsplit("/", 1)[1]
    progress = (
        "select tuples_processed from pg_stat_progress_copy p join pg_stat_activity a using (pid)"
        " where p.datname = current_database() and a.wait_event = 'advisory'"
    )
    with (
        held_copy(server, database, plant, unplant),
        victim(settings, "nightly", "--as-of", str(AS_OF)) as process,
    ):
        process.wait_for(lambda: bool(query(settings.warehouse_url, progress)), "a COPY")
        rows: int = query(settings.warehouse_url, progress)[0][0]
        process.kill()
    return rows


def kill_while_it_waits_for(settings: Settings, table: str) -> None:
    """Kill the night at its write to ``table``: everything before that write is committed."""
    waiting = (
        "select count(*) from pg_locks where not granted and relation = %s::regclass"
        " and database = (select oid from pg_database where datname = current_database())"
    )
    holder = psycopg2.connect(settings.warehouse_url)
    try:
        with holder.cursor() as cursor:
            cursor.execute(f"lock table {table} in exclusive mode")
        with victim(settings, "publish", "--as-of", str(AS_OF)) as process:
            process.wait_for(
                lambda: query(settings.warehouse_url, waiting, table) != [(0,)],
                f"a write to {table}",
            )
            process.kill()
    finally:
        holder.rollback()
        holder.close()


def staged_tables(settings: Settings) -> list[tuple[Any, ...]]:
    return query(
        settings.warehouse_url,
        "select relname, exists (select from pg_inherits where inhrelid = c.oid) from pg_class c"
        " where relkind = 'r' and relname ~ '^churn_p_'",
    )


def test_a_night_killed_at_every_stage_ends_as_one_that_was_never_killed(
    night: Night, warehouses: Warehouses, postgres_server: EmbeddedPostgres
) -> None:
    settings = warehouses.make("nightly_killed")

    def still_sound() -> None:
        assert_nothing_is_half_done(settings, night.outcome)

    def ledger() -> int:
        return query(settings.warehouse_url, "select count(*) from ops.landing_files")[0][0]

    kill_when_it_says(settings, "stage ingest: begins")
    still_sound()

    with victim(settings, "nightly", "--as-of", str(AS_OF)) as process:
        process.wait_for(lambda: ledger() > 30, "the 30th file")
        process.kill()
    still_sound()
    assert 30 < ledger() < len(night.outcome["ledger"])

    loaded = ledger()
    assert kill_in_the_copy(settings, postgres_server, ON_RAW, "") == 19
    still_sound()
    assert loaded <= ledger() < len(night.outcome["ledger"])

    for words in (
        "stage quality: begins",
        "stage transform: begins",
        "dbt: ",
        "stage extract: begins",
        "stage features: begins",
    ):
        kill_when_it_says(settings, words)
        still_sound()

    features = lake.dataset_dir(settings.lake_dir, "features", "churn", AS_OF)
    with victim(settings, "nightly", "--as-of", str(AS_OF)) as process:
        process.wait_for(lambda: any(features.parent.glob(f".{features.name}.*/part-*")), "a part")
        process.kill()
    still_sound()
    assert not features.exists()

    for words in ("stage score: begins", "stage publish: begins"):
        kill_when_it_says(settings, words)
        still_sound()

    predictions = night.outcome["predictions"]
    middle = len(predictions) // 2
    plant = ON_THE_PUBLICATION.replace("{customer_id}", predictions[middle][0])
    assert kill_in_the_copy(settings, postgres_server, plant, NOT_ON_THE_PUBLICATION) == middle
    still_sound()
    assert staged_tables(settings) == []

    publication = predictions[0][-1]
    kill_while_it_waits_for(settings, "ops.publications")
    still_sound()
    assert staged_tables(settings) == [(f"churn_p_{publication}", False)]

    kill_while_it_waits_for(settings, "predictions.pointers")
    still_sound()
    assert staged_tables(settings) == [(f"churn_p_{publication}", True)]
    assert query(settings.reader_url, "select count(*) from predictions.churn") == [(0,)]

    run_night(settings)
    assert_same(outcome_of(settings), night.outcome)
    assert_nothing_is_left_behind(settings)
    still_sound()


def test_the_checks_after_a_kill_can_fail(warehouse: Settings) -> None:
    expected: dict[str, Any] = {"predictions": []}
    assert_nothing_is_half_done(warehouse, expected)
    assert_nothing_is_left_behind(warehouse)

    folder = lake.dataset_dir(warehouse.lake_dir, "features", "churn", AS_OF)
    folder.mkdir(parents=True)
    with pytest.raises(AssertionError, match="features"):
        assert_nothing_is_half_done(warehouse, expected)
    folder.rename(folder.with_name(f".{folder.name}.killed"))
    with pytest.raises(AssertionError, match="killed"):
        assert_nothing_is_left_behind(warehouse)

    assert_nothing_is_half_done(warehouse, expected)
    execute(
        warehouse.warehouse_url,
        "create table raw.order_lines (_file_id bigint); insert into raw.order_lines values (1)",
    )
    with pytest.raises(AssertionError, match="raw"):
        assert_nothing_is_half_done(warehouse, expected)


def test_without_a_champion_the_night_is_refused_and_nothing_is_published(night: Night) -> None:
    refused = night.before_training

    assert refused.returncode == 1
    assert "refused: no champion yet for churn" in refused.stderr
    assert f"nightshift train churn --as-of {AS_OF}" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_the_same_night_again_changes_nothing(night: Night) -> None:
    pointers = "select * from predictions.pointers order by use_case, as_of"
    publications = "select * from ops.publications order by publication_id"
    url = night.settings.warehouse_url
    before = query(url, pointers), query(url, publications)

    shown = run_night(night.settings)

    assert "unchanged" in shown
    assert (query(url, pointers), query(url, publications)) == before
    assert_same(outcome_of(night.settings), night.outcome)


def test_what_was_published_is_measured_on_what_then_happened(night: Night) -> None:
    settings = night.settings
    shown = nightshift(settings, "evaluate", "churn", "--as-of", str(AS_OF))
    assert shown.returncode == 0, shown.stdout + shown.stderr

    horizon = AS_OF + timedelta(days=90)
    bought = "select distinct customer_id from marts.fct_order_lines"
    bought += " where not is_cancellation and quantity > 0 and customer_id is not"
    bought += " null and invoiced_at >= %s and invoiced_at < %s and landed_date < %s"
    stayed = {row[0] for row in query(settings.warehouse_url, bought, AS_OF, horizon, horizon)}
    published = {row[0]: row[2] for row in night.outcome["predictions"]}
    assert 0.1 < len(stayed & published.keys()) / len(published) < 0.9
    expected = roc_auc_score([key not in stayed for key in published], list(published.values()))
    measured = {
        scorer: value
        for scorer, value in query(
            settings.warehouse_url,
            "select scorer, value from monitoring.matured_quality"
            " where metric = 'auc' and as_of = %s",
            AS_OF,
        )
    }
    assert measured["champion"] == pytest.approx(expected, abs=1e-9)
    assert measured.keys() == {"champion", "recency", "frequency", "linear"}
    assert f"{expected:.3f}" in shown.stdout


def test_what_was_not_published_is_not_measured(night: Night) -> None:
    refused = nightshift(night.settings, "evaluate", "churn", "--as-of", "2025-12-15")

    assert refused.returncode == 1
    assert "nothing is published in predictions.churn for 2025-12-15" in refused.stderr
    assert "nightshift nightly --as-of 2025-12-15" in refused.stderr


def test_what_lands_later_changes_no_earlier_night(night: Night, warehouses: Warehouses) -> None:
    settings = warehouses.make("nightly_later_first")
    run_night(settings, LATER)
    late = query(
        settings.warehouse_url,
        "select count(*) from marts.fct_order_lines where landed_date >= %s and invoiced_at < %s",
        AS_OF,
        AS_OF,
    )
    assert late[0][0] > 20, "nothing landed late, so this test shows nothing"

    run_night(settings, AS_OF)

    assert_same(outcome_of(settings), night.outcome)
    newest = query(settings.reader_url, "select distinct as_of from predictions.churn_latest")
    assert newest == [(LATER,)]

    # the guard can fail: had the same lines landed in time, other predictions would follow
    execute(
        settings.warehouse_url,
        "with late as (update ops.landing_files set landed_date = %s where path like"
        " '%%late.csv.gz' returning file_id, landed_date, old.landed_date as landed_before),"
        " moved as (update raw.order_lines set _landed_date = late.landed_date from late"
        " where _file_id = file_id)"
        " insert into ops.changed_days (source, landed_date, reason) select distinct"
        " 'order_lines', unnest(array[landed_date, landed_before]), 'moved' from late",
        AS_OF - timedelta(days=1),
    )
    run_night(settings, AS_OF)
    with pytest.raises(AssertionError, match=r"predictions: \d+ rows differ"):
        assert_same(
            {"predictions": outcome_of(settings)["predictions"]},
            {"predictions": night.outcome["predictions"]},
        )
