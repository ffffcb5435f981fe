"""Publishing on a real Postgres: what readers see before, during and after, and after a kill."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import psycopg2
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from psycopg2.errors import InsufficientPrivilege

from nightshift.errors import AuditError, NightshiftError
from nightshift.io import lake
from nightshift.io.warehouse import connect
from nightshift.publication import ScoresManifest, publication_id
from nightshift.publishing import run as publishing
from nightshift.publishing import sql
from nightshift.publishing.run import publish, top_rows
from nightshift.settings import Settings
from nightshift.spec import UseCase
from nightshift.use_cases.churn import CHURN

pytestmark = pytest.mark.integration

AS_OF = date(2011, 6, 12)
LAPSE = CHURN.model_copy(update={"name": "lapse"})
REASONS = json.dumps(
    [
        {"feature": name, "value": 1.5, "contribution": 0.25, "direction": "raises"}
        for name in ("a", "b", "c")
    ]
)


def score_table(rows: int = 3) -> pa.Table:
    """Keys c0000000, c0000001, …; scores 0, 1/rows, …; the spec's bands."""
    scores = np.arange(rows) / rows
    bands = np.select([scores >= 0.7, scores >= 0.4], ["high", "medium"], "low")
    return pa.table(
        {
            "customer_id": [f"c{i:07d}" for i in range(rows)],
            "churn_probability": scores,
            "band": bands.tolist(),
            "reasons": pa.array([REASONS] * rows, pa.string()),
        }
    )


def write_scores(
    settings: Settings,
    table: pa.Table | None = None,
    *,
    version: str = "1",
    as_of: date = AS_OF,
    use_case: UseCase = CHURN,
    manifest: dict[str, Any] | None = None,
) -> str:
    """Put scores where scoring leaves them; return their publication's id."""
    table = score_table() if table is None else table
    identity = publication_id(use_case.name, as_of, version, "features")
    folder = lake.dataset_dir(settings.lake_dir, "scores", use_case.name, as_of)
    with lake.replacing(folder) as target:
        part = target / "part-00000.parquet"
        pq.write_table(table, part)
        made = ScoresManifest(
            use_case=use_case.name,
            as_of=as_of,
            model_version=version,
            mlflow_run_id="run",
            publication_id=identity,
            rows=table.num_rows,
            population_rows=table.num_rows,
            features_sha256="features",
            scored_at=datetime(2011, 6, 12, 3, 0, tzinfo=UTC),
            sha256=hashlib.sha256(part.read_bytes()).hexdigest(),
        )
        lake.write_manifest(target, made.model_dump(mode="json") | (manifest or {}))
    return identity


@contextmanager
def reader(settings: Settings) -> Iterator[Any]:
    """A connection of nightshift_reader that commits after each statement."""
    with closing(psycopg2.connect(settings.reader_url)) as connection:
        connection.autocommit = True
        yield connection


def ask(settings: Settings, query: str, *, as_writer: bool = False) -> list[tuple[Any, ...]]:
    url = settings.warehouse_url if as_writer else settings.reader_url
    with closing(psycopg2.connect(url)) as connection, connection.cursor() as cursor:
        cursor.execute(query)
        return list(cursor.fetchall())


def staging_tables(settings: Settings) -> list[str]:
    """Tables of publications that are not attached."""
    found = ask(
        settings,
        "select relname from pg_class c where relkind = 'r' and relnamespace ="
        " 'predictions'::regnamespace and relname ~ '_p_[0-9a-f]{16}$' and not exists"
        " (select from pg_inherits where inhrelid = c.oid)",
        as_writer=True,
    )
    return [name for (name,) in found]


def until(condition: Callable[[], bool], what: str, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.005)


def test_a_reader_sees_the_published_rows(warehouse: Settings) -> None:
    identity = write_scores(warehouse, version="7")

    result = publish(warehouse, [CHURN], AS_OF)

    assert result.publications == (publishing.Publication("churn", identity, "7", 3, True),)
    at = datetime(2011, 6, 12, 3, 0, tzinfo=UTC)
    rows = ask(warehouse, "select * from predictions.churn_latest order by customer_id")
    assert [row[:4] + row[5:] for row in rows] == [
        ("c0000000", AS_OF, 0.0, "low", "7", identity, at),
        ("c0000001", AS_OF, 1 / 3, "low", "7", identity, at),
        ("c0000002", AS_OF, 2 / 3, "medium", "7", identity, at),
    ]
    assert rows[0][4] == json.loads(REASONS)
    assert [row["customer_id"] for row in top_rows(warehouse, CHURN, 2)] == ["c0000002", "c0000001"]


def test_latest_is_the_newest_as_of_and_the_other_view_has_all(warehouse: Settings) -> None:
    newer = date(2011, 6, 13)
    write_scores(warehouse, score_table(4), as_of=newer)
    write_scores(warehouse, score_table(3))
    publish(warehouse, [CHURN], newer)
    publish(warehouse, [CHURN], AS_OF)

    each_date = "select as_of, count(*) from predictions.{} group by 1 order by 1"

    assert ask(warehouse, each_date.format("churn_latest")) == [(newer, 4)]
    assert ask(warehouse, each_date.format("churn")) == [(AS_OF, 3), (newer, 4)]


@pytest.mark.parametrize(
    "relation",
    [
        "raw.secret",
        "ops.publications",
        "ops.runs",
        "predictions.pointers",
        "predictions.churn_publications_data",
        "predictions.churn_p_{identity}",
    ],
)
def test_the_reader_reads_the_views_and_nothing_else(warehouse: Settings, relation: str) -> None:
    identity = write_scores(warehouse)
    publish(warehouse, [CHURN], AS_OF)
    with connect(warehouse) as connection, connection.cursor() as cursor:
        cursor.execute("create table raw.secret (x int)")

    with pytest.raises(InsufficientPrivilege):
        ask(warehouse, f"select * from {relation.format(identity=identity)}")


@pytest.mark.parametrize(
    "statement",
    [
        "delete from predictions.churn_latest",
        "create table predictions.mine (x int)",
        "drop view predictions.churn",
    ],
)
def test_the_reader_changes_nothing(warehouse: Settings, statement: str) -> None:
    write_scores(warehouse)
    publish(warehouse, [CHURN], AS_OF)

    with pytest.raises(psycopg2.Error):
        ask(warehouse, statement)
    assert ask(warehouse, "select count(*) from predictions.churn") == [(3,)]


def test_publishing_twice_changes_nothing(warehouse: Settings) -> None:
    everything = (
        "select c.*, p.moved_at, o.published_at from predictions.churn c"
        " join predictions.pointers p using (publication_id)"
        " join ops.publications o using (publication_id) order by 1"
    )
    write_scores(warehouse)
    publish(warehouse, [CHURN], AS_OF)
    before = ask(warehouse, everything, as_writer=True)

    again = publish(warehouse, [CHURN], AS_OF)

    assert [p.is_new for p in again.publications] == [False]
    assert ask(warehouse, everything, as_writer=True) == before


def test_a_publication_comes_back_without_being_loaded_again(warehouse: Settings) -> None:
    first = write_scores(warehouse, version="1")
    publish(warehouse, [CHURN], AS_OF)
    write_scores(warehouse, version="2")
    publish(warehouse, [CHURN], AS_OF)
    write_scores(warehouse, version="1")
    publish(warehouse, [CHURN], AS_OF)

    assert ask(warehouse, "select distinct publication_id from predictions.churn") == [(first,)]
    assert ask(warehouse, "select count(*) from predictions.churn") == [(3,)]


def test_the_views_are_not_replaced_every_night(warehouse: Settings) -> None:
    versions = "select xmin::text from pg_class where relname in ('churn', 'churn_latest')"
    write_scores(warehouse)
    publish(warehouse, [CHURN], AS_OF)
    before = ask(warehouse, versions, as_writer=True)

    write_scores(warehouse, version="2")
    publish(warehouse, [CHURN], AS_OF)

    assert ask(warehouse, versions, as_writer=True) == before


def test_attaching_scans_nothing(warehouse: Settings) -> None:
    """The partition's bound follows from the CHECKs; without them Postgres would scan it."""
    manifest = ScoresManifest(
        use_case="churn",
        as_of=AS_OF,
        model_version="1",
        mlflow_run_id="run",
        publication_id="0123456789abcdef",
        rows=0,
        population_rows=0,
        features_sha256="f",
        scored_at=datetime(2011, 6, 12, tzinfo=UTC),
        sha256="s",
    )
    with connect(warehouse) as connection, connection.cursor() as cursor:
        cursor.execute(sql.create_data_table(CHURN))
        cursor.execute(sql.create_staging(CHURN, manifest))
        cursor.execute("set client_min_messages = debug1")
        cursor.execute(sql.attach(CHURN, manifest.publication_id))
    assert any("is implied by existing constraints" in notice for notice in connection.notices)


def test_columns_are_described(warehouse: Settings) -> None:
    write_scores(warehouse)
    publish(warehouse, [CHURN], AS_OF)

    undescribed = ask(
        warehouse,
        "select c.relname, a.attname from pg_attribute a join pg_class c on c.oid = a.attrelid"
        " where c.relname in ('churn', 'churn_latest') and a.attnum > 0"
        " and col_description(c.oid, a.attnum) is null",
    )
    assert undescribed == []


def test_no_scores_are_a_clear_error(warehouse: Settings) -> None:
    with pytest.raises(NightshiftError, match="churn has no scores for 2011-06-12"):
        publish(warehouse, [CHURN], AS_OF)
    with pytest.raises(NightshiftError, match="nothing of churn was ever published"):
        top_rows(warehouse, CHURN)


def with_column(table: pa.Table, name: str, values: list[Any]) -> pa.Table:
    at = table.column_names.index(name)
    return table.set_column(at, name, pa.array(values, table.schema.field(name).type))


@pytest.mark.parametrize(
    ("column", "values", "rule"),
    [
        ("customer_id", ["a", "b", "a"], "key_unique: observed 1 rows"),
        ("customer_id", ["a", None, "b"], "key_not_null: observed 1 rows"),
        ("churn_probability", [0.0, float("nan"), 0.5], "score_in_range: observed 1 rows"),
        ("churn_probability", [0.0, float("inf"), 0.5], "score_in_range: observed 1 rows"),
        ("churn_probability", [0.0, None, 0.5], "score_in_range: observed 1 rows"),
        ("churn_probability", [-0.001, 0.1, 1.001], "score_in_range: observed 2 rows"),
        ("band", ["low", "low", "hgih"], "band_known: observed 1 rows"),
        ("band", ["low", "low", None], "band_known: observed 1 rows"),
        ("band", ["low", "low", "high"], "band_fits_score: observed 1 rows"),
        ("reasons", [REASONS, "[]", REASONS], "reasons_present: observed 1 rows"),
        ("reasons", [REASONS, None, "{}"], "reasons_present: observed 2 rows"),
        ("reasons", [REASONS, "[not json", REASONS], "rule readable"),
    ],
)
def test_a_broken_rule_keeps_the_scores_from_readers(
    warehouse: Settings, column: str, values: list[Any], rule: str
) -> None:
    first = write_scores(warehouse, version="1")
    publish(warehouse, [CHURN], AS_OF)
    refused = write_scores(warehouse, with_column(score_table(), column, values), version="2")

    with pytest.raises(AuditError, match=rule):
        publish(warehouse, [CHURN], AS_OF)

    assert ask(warehouse, "select distinct publication_id from predictions.churn") == [(first,)]
    kept = [] if rule == "rule readable" else [f"churn_p_{refused}"]
    assert staging_tables(warehouse) == kept


@pytest.mark.parametrize(
    ("manifest", "rule"),
    [
        ({"rows": 4}, "rows_as_in_manifest: observed 3 rows, expected 4"),
        ({"population_rows": 5}, "rows_as_in_population: observed 3 rows, expected 5"),
        ({"model_version": "9"}, "publication_id"),
        ({"sha256": "0" * 64}, "SHA-256"),
        ({"as_of": "2011-06-13"}, "belongs to churn at 2011-06-13"),
    ],
)
def test_scores_that_are_not_their_manifests_are_refused(
    warehouse: Settings, manifest: dict[str, Any], rule: str
) -> None:
    write_scores(warehouse, manifest=manifest)

    with pytest.raises(AuditError, match=rule):
        publish(warehouse, [CHURN], AS_OF)
    assert ask(warehouse, "select * from predictions.pointers", as_writer=True) == []


def test_refused_rows_are_cleared_by_the_next_run(warehouse: Settings) -> None:
    write_scores(warehouse, manifest={"rows": 4})
    with pytest.raises(AuditError):
        publish(warehouse, [CHURN], AS_OF)
    assert len(staging_tables(warehouse)) == 1

    write_scores(warehouse)
    publish(warehouse, [CHURN], AS_OF)

    assert staging_tables(warehouse) == []
    assert ask(warehouse, "select count(*) from predictions.churn") == [(3,)]


def test_use_cases_of_a_night_move_together_or_not_at_all(warehouse: Settings) -> None:
    both = (
        "select (select min(model_version) from predictions.churn_latest),"
        " (select min(model_version) from predictions.lapse_latest)"
    )
    for use_case in (CHURN, LAPSE):
        write_scores(warehouse, version="1", use_case=use_case)
    publish(warehouse, [CHURN, LAPSE], AS_OF)
    write_scores(warehouse, version="2")
    write_scores(warehouse, version="2", use_case=LAPSE, manifest={"rows": 4})

    with pytest.raises(AuditError, match="lapse"):
        publish(warehouse, [CHURN, LAPSE], AS_OF)
    assert ask(warehouse, both) == [("1", "1")]

    write_scores(warehouse, version="2", use_case=LAPSE)
    stop = threading.Event()
    seen: set[tuple[Any, ...]] = set()

    def read() -> None:
        with reader(warehouse) as connection, connection.cursor() as cursor:
            while not stop.is_set():
                cursor.execute(both)
                seen.add(cursor.fetchone())

    thread = threading.Thread(target=read)
    thread.start()
    until(lambda: bool(seen), "the reader's first answer")
    publish(warehouse, [LAPSE, CHURN], AS_OF)
    until(lambda: ("2", "2") in seen, "the reader to see the new rows")
    stop.set()
    thread.join()
    assert seen == {("1", "1"), ("2", "2")}


def test_readers_see_whole_publications_only(warehouse: Settings) -> None:
    sizes = {"1": 2000, "2": 1500, "3": 1000, "4": 2500, "5": 500}
    write_scores(warehouse, score_table(sizes["1"]), version="1")
    publish(warehouse, [CHURN], AS_OF)
    stop = threading.Event()
    seen: set[tuple[Any, ...]] = set()
    query = "select count(*), min(model_version), max(model_version) from predictions.churn_latest"

    def read(is_prepared: bool) -> None:
        with reader(warehouse) as connection, connection.cursor() as cursor:
            if is_prepared:
                cursor.execute(f"prepare q as {query}")
            while not stop.is_set():
                cursor.execute("execute q" if is_prepared else query)
                seen.add(cursor.fetchone())

    threads = [threading.Thread(target=read, args=(prepared,)) for prepared in (False, True)]
    for thread in threads:
        thread.start()
    for version in ("2", "3", "4", "5"):
        write_scores(warehouse, score_table(sizes[version]), version=version)
        publish(warehouse, [CHURN], AS_OF)
        until(lambda v=version: any(row[1] == v for row in seen), f"version {version}")  # type: ignore[misc]
    stop.set()
    for thread in threads:
        thread.join()
    assert seen == {(rows, version, version) for version, rows in sizes.items()}


def planned_before(warehouse: Settings, connection: Any) -> Callable[[], tuple[Any, ...]]:
    """A prepared statement whose plan an open READ COMMITTED transaction keeps."""
    cursor = connection.cursor()
    cursor.execute("prepare q as select count(*), min(model_version) from predictions.churn_latest")

    def execute() -> tuple[Any, ...]:
        cursor.execute("execute q")
        row: tuple[Any, ...] = cursor.fetchone()
        return row

    for _ in range(7):  # from the sixth on, the plan is a generic one and kept
        assert execute() == (3, "1")
    return execute


def test_a_plan_from_before_the_attachment_is_waited_for(warehouse: Settings) -> None:
    write_scores(warehouse, version="1")
    publish(warehouse, [CHURN], AS_OF)
    write_scores(warehouse, version="2")
    with closing(psycopg2.connect(warehouse.reader_url)) as connection:
        execute = planned_before(warehouse, connection)
        thread = threading.Thread(target=publish, args=(warehouse, [CHURN], AS_OF))
        thread.start()
        attached = "select count(*) from ops.publications"
        until(lambda: ask(warehouse, attached, as_writer=True) == [(2,)], "the attachment")
        assert execute() == (3, "1")
        connection.commit()
        thread.join()
        assert execute() == (3, "2")


def test_without_the_wait_such_a_plan_finds_no_rows(
    warehouse: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Why the wait is there: when Postgres learns to do without, this test fails."""
    write_scores(warehouse, version="1")
    publish(warehouse, [CHURN], AS_OF)
    write_scores(warehouse, version="2")
    monkeypatch.setattr(publishing, "READER_GRACE_SECONDS", 0.0)
    with closing(psycopg2.connect(warehouse.reader_url)) as connection:
        execute = planned_before(warehouse, connection)
        publish(warehouse, [CHURN], AS_OF)
        assert execute() == (0, None)
        connection.commit()
        assert execute() == (3, "2")


PUBLISH = """
import sys
from datetime import date
from nightshift.publishing.run import publish
from nightshift.settings import load_settings
from nightshift.use_cases.churn import CHURN
lake, url = sys.argv[1:]
publish(load_settings(_env_file=None, lake=lake, database_url=url), [CHURN], date(2011, 6, 12))
"""


def start_publishing(settings: Settings) -> subprocess.Popen[bytes]:
    arguments = [sys.executable, "-c", PUBLISH, str(settings.lake_dir), settings.warehouse_url]
    return subprocess.Popen(arguments)


def kill(process: subprocess.Popen[bytes]) -> None:
    assert process.poll() is None, "the publisher ended before it could be killed"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


ROWS_NOW = "select count(*), min(model_version), max(model_version) from predictions.churn_latest"


def test_a_kill_in_the_middle_of_the_copy(warehouse: Settings, tmp_path: Path) -> None:
    rows = 400_000
    write_scores(warehouse, version="1")
    publish(warehouse, [CHURN], AS_OF)
    write_scores(warehouse, score_table(rows), version="2")
    progress = "select coalesce(max(tuples_processed), 0) from pg_stat_progress_copy"

    process = start_publishing(warehouse)
    until(lambda: ask(warehouse, progress, as_writer=True)[0][0] > 10_000, "the COPY")
    kill(process)

    assert ask(warehouse, ROWS_NOW) == [(3, "1", "1")]
    publish(warehouse, [CHURN], AS_OF)
    assert ask(warehouse, ROWS_NOW) == [(rows, "2", "2")]
    assert staging_tables(warehouse) == []


@pytest.mark.parametrize("blocked", ["ops.publications", "predictions.pointers"])
def test_a_kill_before_a_commit(warehouse: Settings, blocked: str) -> None:
    """Before the attachment is committed, and before the pointers' move is."""
    write_scores(warehouse, version="1")
    publish(warehouse, [CHURN], AS_OF)
    identity = write_scores(warehouse, score_table(5), version="2")
    waiting = (
        "select count(*) from pg_locks where not granted"
        f" and relation = '{blocked}'::regclass and database ="
        " (select oid from pg_database where datname = current_database())"
    )

    with closing(psycopg2.connect(warehouse.warehouse_url)) as connection:
        connection.cursor().execute(f"lock table {blocked} in share mode")
        process = start_publishing(warehouse)
        until(lambda: ask(warehouse, waiting, as_writer=True) == [(1,)], "the publisher to block")
        kill(process)
        assert ask(warehouse, ROWS_NOW) == [(3, "1", "1")]
        left = [f"churn_p_{identity}"] if blocked == "ops.publications" else []
        assert staging_tables(warehouse) == left

    publish(warehouse, [CHURN], AS_OF)

    assert ask(warehouse, ROWS_NOW) == [(5, "2", "2")]
    assert staging_tables(warehouse) == []
    assert ask(warehouse, "select count(*) from ops.publications", as_writer=True) == [(2,)]


def test_two_publishers_of_the_same_night_take_turns(warehouse: Settings) -> None:
    write_scores(warehouse, score_table(20_000))
    results: list[bool] = []

    def run() -> None:
        results.append(publish(warehouse, [CHURN], AS_OF).publications[0].is_new)

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(results) == [False, False, True]
    assert ask(warehouse, "select count(*) from predictions.churn") == [(20_000,)]
