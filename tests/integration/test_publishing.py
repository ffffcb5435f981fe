"""Publishing on a real Postgres: what readers see before, during and after, and after a kill."""

import json
import os
import re
import runpy
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import psycopg2
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from jsonschema import Draft202012Validator
from psycopg2.errors import InsufficientPrivilege
from typer.testing import CliRunner

from nightshift.cli import app
from nightshift.errors import AuditError, NightshiftError
from nightshift.io import lake
from nightshift.io.warehouse import connect
from nightshift.publication import ScoresManifest, publication_id
from nightshift.publishing import history_run, sql
from nightshift.publishing import run as publishing
from nightshift.publishing.history_run import diff, prune, publications, roll_back, roll_back_nights
from nightshift.publishing.run import publish, publish_nights, top_rows
from nightshift.publishing.schema import json_schema
from nightshift.settings import PROJECT_ROOT, Settings
from nightshift.spec import Retention, UseCase
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
    parts: int = 1,
) -> str:
    """Put scores where scoring leaves them; return their publication's id."""
    table = score_table() if table is None else table
    identity = publication_id(use_case.name, as_of, version, "features")
    folder = lake.dataset_dir(settings.lake_dir, "scores", use_case.name, as_of)
    with lake.replacing(folder) as target:
        written = [target / f"part-{number:05}.parquet" for number in range(parts)]
        for number, part in enumerate(written):
            pq.write_table(table.take(list(range(number, len(table), parts))), part)
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
            sha256=lake.parts_sha256(written),
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
        cursor.execute(sql.create_tables(CHURN))
        cursor.execute(sql.create_staging(CHURN, manifest))
        cursor.execute("set client_min_messages = debug1")
        for statement in (
            sql.attach(CHURN, manifest.publication_id),
            sql.detach(CHURN, manifest.publication_id, sql.data_table(CHURN)),
            sql.attach_to_archive(CHURN, manifest.publication_id, AS_OF),
        ):
            cursor.execute(statement)
    implied = [n for n in connection.notices if "is implied by existing constraints" in n]
    assert len(implied) == 2


def test_a_publication_has_a_key_an_index_a_band_and_autovacuum_once_it_is_seen(
    warehouse: Settings,
) -> None:
    def found(identity: str) -> tuple[list[str], Any]:
        indexes = ask(
            warehouse,
            "select pg_get_indexdef(indexrelid) from pg_index where indrelid ="
            f" 'predictions.churn_p_{identity}'::regclass order by indisprimary, indexrelid",
            as_writer=True,
        )
        (options,) = ask(
            warehouse,
            f"select reloptions from pg_class where relname = 'churn_p_{identity}'",
            as_writer=True,
        )
        return [line.partition(" USING ")[2] for (line,) in indexes], options[0]

    bands = [f"btree (churn_probability) WHERE (band = '{b.name}'::text)" for b in CHURN.bands]
    shown = write_scores(warehouse, version="1")
    publish(warehouse, [CHURN], AS_OF)
    assert found(shown) == ([*bands, "btree (customer_id)"], ["vacuum_truncate=false"])

    refused = write_scores(
        warehouse, with_column(score_table(), "customer_id", ["a", "b", "a"]), version="2"
    )
    with pytest.raises(AuditError, match="key_unique"):
        publish(warehouse, [CHURN], AS_OF)
    assert found(refused) == (bands, ["autovacuum_enabled=false", "vacuum_truncate=false"])


def test_columns_are_described(warehouse: Settings) -> None:
    write_scores(warehouse)
    publish(warehouse, [CHURN], AS_OF)

    undescribed = ask(
        warehouse,
        "select c.relname, a.attname from pg_attribute a join pg_class c on c.oid = a.attrelid"
        " where c.relnamespace = 'predictions'::regnamespace and a.attnum > 0"
        " and c.relname in ('churn', 'churn_latest', 'publications')"
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
    ("cores", "scoring", "is_frozen"),
    [
        (1, "one_process", True),
        (2, "one_process", True),
        (4, "one_process", False),
        (4, "spark", False),
    ],
)
def test_one_connection_several_or_sparks_workers_load_the_parts(
    warehouse: Settings,
    monkeypatch: pytest.MonkeyPatch,
    cores: int,
    scoring: str,
    is_frozen: bool,
) -> None:
    """The first makes the table as well, whose rows then need no vacuum; a core is for readers."""
    loading = warehouse.model_copy(update={"scoring": scoring, "spark_master": "local[2]"})
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    identity = write_scores(warehouse, score_table(10), parts=3)
    publish(loading, [CHURN], AS_OF)
    query = "select customer_id, churn_probability, band, reasons from predictions.churn order by 1"
    first = ask(warehouse, query)
    assert [row[0] for row in first] == [f"c{i:07d}" for i in range(10)]
    pages = f"select relallfrozen from pg_class where relname = 'churn_p_{identity}'"
    assert ask(warehouse, pages, as_writer=True) == [(int(is_frozen),)]

    bad = with_column(score_table(), "reasons", [REASONS, "[not json", REASONS])
    write_scores(warehouse, bad, version="2", parts=3)
    with pytest.raises(AuditError, match="rule readable: invalid input syntax for type json"):
        publish(loading, [CHURN], AS_OF)
    assert ask(warehouse, query) == first
    assert staging_tables(warehouse) == []


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


def write_features(settings: Settings, keys: list[str], sha256: str = "features") -> None:
    """Features of ``AS_OF``, as far as publishing reads them."""
    folder = lake.dataset_dir(settings.lake_dir, "features", CHURN.name, AS_OF)
    with lake.replacing(folder) as target:
        for number, part in enumerate((keys[:1], keys[1:])):
            pq.write_table(pa.table({"customer_id": part}), target / f"part-{number:05d}.parquet")
        lake.write_manifest(target, {"sha256": sha256, "rows": len(keys)})


OUTCOMES = (
    "select rule, outcome, round(observed::numeric, 3)::text, detail from ops.audit_results"
    " where publication_id = '{}' and rule ~ '{}' order by audit_result_id"
)


def test_keys_are_those_of_the_features_that_were_scored(warehouse: Settings) -> None:
    keys = ["c0000000", "c0000001", "c0000002"]
    write_features(warehouse, [*keys[:2], "somebody else"])
    identity = write_scores(warehouse)
    with pytest.raises(AuditError, match="key_known: observed 1 rows that break it"):
        publish(warehouse, [CHURN], AS_OF)

    write_features(warehouse, keys[::-1])
    publish(warehouse, [CHURN], AS_OF)
    write_features(warehouse, keys[::-1], sha256="built anew since")
    again = write_scores(warehouse, version="2")
    publish(warehouse, [CHURN], AS_OF)

    found = ask(warehouse, OUTCOMES.format(identity, "key_known"), as_writer=True)
    assert [row[:3] for row in found] == [
        ("key_known", "failed", "1.000"),
        ("key_known", "passed", "0.000"),
    ]
    found = ask(warehouse, OUTCOMES.format(again, "key_known"), as_writer=True)
    assert [row[1:] for row in found] == [
        ("not_applied", None, "the features that were scored are no longer in the lake")
    ]


def moved(rows: int) -> pa.Table:
    """The rows of ``score_table``, of which only those in the upper half keep their score."""
    table = score_table(rows)
    scores = np.maximum(table["churn_probability"].to_numpy(), 0.5)
    table = with_column(table, "churn_probability", scores.tolist())
    return with_column(table, "band", np.where(scores >= 0.7, "high", "medium").tolist())


def test_scores_that_moved_since_the_night_before_keep_the_pointers(warehouse: Settings) -> None:
    night_after = date(2011, 6, 13)
    first = write_scores(warehouse, score_table(1000))
    publish(warehouse, [CHURN], AS_OF)
    refused = write_scores(warehouse, moved(1000), as_of=night_after)

    with pytest.raises(AuditError, match=r"stable_since_previous: observed PSI \d\.\d+") as caught:
        publish(warehouse, [CHURN], night_after)

    assert [cause.rule for cause in caught.value.causes] == ["churn: stable_since_previous"]
    assert f"against publication {first} of 2011-06-12" in caught.value.causes[0].observed
    assert ask(warehouse, "select distinct as_of from predictions.churn") == [(AS_OF,)]
    assert staging_tables(warehouse) == [f"churn_p_{refused}"]
    ((_, outcome, observed, _),) = ask(
        warehouse, OUTCOMES.format(refused, "stable_since_previous"), as_writer=True
    )
    assert (outcome, float(observed) > 0.25) == ("failed", True)
    with connect(warehouse) as connection, pytest.raises(InsufficientPrivilege):
        connection.cursor().execute("update ops.audit_results set outcome = 'passed'")


def test_nights_that_are_published_together_are_compared_with_each_other(
    warehouse: Settings,
) -> None:
    nights = [date(2011, 6, day) for day in (12, 13, 14)]
    for night, table in zip(nights, (score_table(1000), moved(1000), moved(1000)), strict=True):
        write_scores(warehouse, table, as_of=night)

    with pytest.raises(AuditError, match="churn at 2011-06-13 is not published; stable_since_prev"):
        publish_nights(warehouse, {night: [CHURN] for night in nights})

    write_scores(warehouse, score_table(1000), as_of=nights[1])
    with pytest.raises(AuditError, match="churn at 2011-06-14 is not published; stable_since_prev"):
        publish_nights(warehouse, {night: [CHURN] for night in nights})


def test_nights_of_another_version_are_compared_with_each_other(warehouse: Settings) -> None:
    nights = [date(2011, 6, day) for day in (12, 13)]
    for version, second in (("1", score_table(1000)), ("2", moved(1000))):
        for night, table in zip(nights, (score_table(1000), second), strict=True):
            write_scores(warehouse, table, as_of=night, version=version)
        if version == "1":
            publish_nights(warehouse, {night: [CHURN] for night in nights})

    with pytest.raises(AuditError, match="churn at 2011-06-13 is not published; stable_since_prev"):
        publish_nights(warehouse, {night: [CHURN] for night in nights})


def test_scores_unlike_those_of_the_training_are_refused(warehouse: Settings) -> None:
    training = {"edges": [0.1, 0.2, 0.3], "counts": [400, 300, 200, 100]}
    identity = write_scores(warehouse, score_table(1000), manifest={"training_scores": training})

    with pytest.raises(AuditError, match=r"stable_since_training: observed PSI 1\.872"):
        publish(warehouse, [CHURN], AS_OF)

    write_scores(warehouse, score_table(1000))
    publish(warehouse, [CHURN], AS_OF)
    found = ask(warehouse, OUTCOMES.format(identity, "stable_since_training"), as_writer=True)
    assert [outcome for _, outcome, *_ in found] == ["failed", "not_applied"]


def test_refused_rows_are_cleared_by_the_next_run(warehouse: Settings) -> None:
    write_scores(warehouse, manifest={"rows": 4})
    with pytest.raises(AuditError):
        publish(warehouse, [CHURN], AS_OF)
    assert len(staging_tables(warehouse)) == 1

    write_scores(warehouse)
    publish(warehouse, [CHURN], AS_OF)

    assert staging_tables(warehouse) == []
    assert ask(warehouse, "select count(*) from predictions.churn") == [(3,)]


def test_a_use_case_that_is_refused_holds_none_of_the_others(warehouse: Settings) -> None:
    write_scores(warehouse)
    write_scores(warehouse, use_case=LAPSE, manifest={"rows": 4})
    never_scored = CHURN.model_copy(update={"name": "never_scored"})

    with pytest.raises(AuditError) as caught:
        publish(warehouse, [CHURN, LAPSE, never_scored], AS_OF)

    assert "lapse at 2011-06-12 is not published; rows_as_in_manifest" in caught.value.what
    assert "never_scored has no scores for 2011-06-12" in caught.value.what
    assert [cause.rule for cause in caught.value.causes] == [
        "NightshiftError",
        "lapse: rows_as_in_manifest",
    ]
    assert "nightshift score never_scored" in caught.value.remedy
    assert ask(warehouse, "select count(*) from predictions.churn") == [(3,)]
    assert ask(warehouse, "select count(*) from predictions.lapse") == [(0,)]
    moved = "select use_case, as_of::text from predictions.pointers"
    assert ask(warehouse, moved, as_writer=True) == [("churn", "2011-06-12")]
    ran = "select status, jsonb_array_length(result -> 'publications') from ops.runs"
    assert ask(warehouse, ran, as_writer=True) == [("failed", 1)]


def test_the_use_cases_of_a_night_move_together(warehouse: Settings) -> None:
    both = (
        "select (select min(model_version) from predictions.churn_latest),"
        " (select min(model_version) from predictions.lapse_latest)"
    )
    for use_case in (CHURN, LAPSE):
        write_scores(warehouse, version="1", use_case=use_case)
    publish(warehouse, [CHURN, LAPSE], AS_OF)
    write_scores(warehouse, version="2")
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


def test_dates_move_together_or_not_at_all(warehouse: Settings) -> None:
    dates = [AS_OF + timedelta(days=days) for days in range(3)]
    nights = {dates[0]: [CHURN, LAPSE], dates[1]: [CHURN], dates[2]: [LAPSE, CHURN]}
    seen_by_readers = (
        "select string_agg(distinct model_version, ',') from ("
        "select as_of, model_version from predictions.churn union all"
        " select as_of, model_version from predictions.lapse) as rows"
    )
    for version in ("1", "2"):
        for as_of, use_cases in nights.items():
            for use_case in use_cases:
                is_refused = (version, as_of, use_case) == ("2", dates[2], LAPSE)
                manifest = {"rows": 4} if is_refused else None
                write_scores(
                    warehouse, version=version, as_of=as_of, use_case=use_case, manifest=manifest
                )
        if version == "1":
            publish_nights(warehouse, nights)

    with pytest.raises(AuditError, match="lapse at 2011-06-14"):
        publish_nights(warehouse, nights)
    assert ask(warehouse, seen_by_readers) == [("1",)]

    attached = (
        "select inhrelid from pg_inherits where inhparent::regclass::text"
        " ~ '^predictions.churn_publications_(data|archive)$' and inhrelid in"
        " (select oid from pg_class where relispartition and relkind = 'r') order by 1"
    )
    before = ask(warehouse, attached, as_writer=True)
    assert len(before) == 6  # the three new ones of churn had passed
    write_scores(warehouse, version="2", as_of=dates[2], use_case=LAPSE)
    stop = threading.Event()
    seen: set[tuple[Any, ...]] = set()

    def read() -> None:
        with reader(warehouse) as connection, connection.cursor() as cursor:
            while not stop.is_set():
                cursor.execute(seen_by_readers)
                seen.add(cursor.fetchone())

    thread = threading.Thread(target=read)
    thread.start()
    until(lambda: bool(seen), "the reader's first answer")
    results = publish_nights(warehouse, nights)
    until(lambda: ("2",) in seen, "the reader to see the new rows")
    stop.set()
    thread.join()

    assert seen == {("1",), ("2",)}
    assert [(r.as_of, [p.use_case for p in r.publications]) for r in results] == [
        (dates[0], ["churn", "lapse"]),
        (dates[1], ["churn"]),
        (dates[2], ["churn", "lapse"]),
    ]
    assert ask(warehouse, attached, as_writer=True) == before  # what had passed was kept


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


def test_a_rollback_shows_the_publication_before_and_a_rerun_leaves_it(
    warehouse: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    first = write_scores(warehouse, version="1")
    publish(warehouse, [CHURN], AS_OF)
    with pytest.raises(NightshiftError, match=f"{first} is the first publication"):
        roll_back(warehouse, CHURN, AS_OF, "Ada", "wrong")
    second = write_scores(warehouse, version="2")
    publish(warehouse, [CHURN], AS_OF)
    seen = "select distinct publication_id from predictions.churn_latest"

    assert roll_back(warehouse, CHURN, AS_OF, "Ada", "too many high").publication_id == first
    assert ask(warehouse, seen) == [(first,)]

    again = publish(warehouse, [CHURN], AS_OF)
    assert again.publications == (publishing.Publication("churn", first, "1", 3, False),)
    assert "Ada has rolled back from" in caplog.text
    assert ask(warehouse, seen) == [(first,)]

    assert roll_back(warehouse, CHURN, AS_OF, "Ada", "back").publication_id == second
    assert roll_back(warehouse, CHURN, AS_OF, "Bo", "by id", first[:6]).publication_id == first
    third = write_scores(warehouse, version="3")
    publish(warehouse, [CHURN], AS_OF)
    assert ask(warehouse, seen) == [(third,)]

    moves = "select from_publication_id, to_publication_id, person, reason from ops.pointer_moves"
    assert ask(warehouse, f"{moves} order by pointer_move_id", as_writer=True) == [
        (None, first, None, None),
        (first, second, None, None),
        (second, first, "Ada", "too many high"),
        (first, second, "Ada", "back"),
        (second, first, "Bo", "by id"),
        (first, third, None, None),
    ]
    with connect(warehouse) as connection, pytest.raises(InsufficientPrivilege):
        connection.cursor().execute("delete from ops.pointer_moves")


def test_a_rollback_to_what_readers_never_saw_is_refused(warehouse: Settings) -> None:
    with pytest.raises(NightshiftError, match="nothing of churn is published for 2011-06-12"):
        roll_back(warehouse, CHURN, AS_OF, "Ada", "none")
    identity = write_scores(warehouse, version="1")
    write_scores(warehouse, use_case=LAPSE, manifest={"rows": 4})
    with pytest.raises(AuditError, match="lapse"):
        publish_nights(warehouse, {AS_OF: [CHURN, LAPSE]})
    other = write_scores(warehouse, version="2")
    publish(warehouse, [CHURN], AS_OF)

    for to, why in ((identity, "have never seen"), ("", "is the first"), (other, "see .* already")):
        with pytest.raises(NightshiftError, match=why):
            roll_back(warehouse, CHURN, AS_OF, "Ada", "wrong", to or None)
    assert ask(warehouse, "select distinct model_version from predictions.churn") == [("2",)]


@pytest.mark.usefixtures("logging_as_before")
def test_the_command_line_lists_compares_goes_back_and_prunes(warehouse: Settings) -> None:
    def nightshift(*arguments: str, code: int = 0) -> str:
        variables = {
            "COLUMNS": "200",
            "NIGHTSHIFT_STATE_DIR": str(warehouse.state_dir),
            "NIGHTSHIFT_DATABASE_URL": warehouse.warehouse_url,
            "NIGHTSHIFT_READER_DATABASE_URL": warehouse.reader_url,
        }
        done = CliRunner().invoke(app, arguments, env=variables)
        assert done.exit_code == code, done.output
        return " ".join((done.stderr if code else done.stdout).split())

    first, second = (publish_version(warehouse, version) for version in ("1", "2"))
    day, by = str(AS_OF), ("--by", "Ada", "--reason", "too many")

    shown = nightshift("publications", "list", "churn")
    assert re.search(rf"{second} │ 2 │ 3 │.*passed │ readers see it", shown), shown
    shown = nightshift("publications", "diff", first[:7], second)
    assert f"{first}" in shown and "3 rows in both" in shown, shown
    back = nightshift("rollback", "churn", "--as-of", day, *by)
    assert back == (f"predictions.churn at {day} is publication {first} again: 3 rows by version 1")
    assert nightshift("rollback", "churn", "--from", day, "--to", day, *by) == (
        f"churn: 1 date, {day}, as before; 1 date, {day}, of them had been rolled back, and go"
        " forward again"
    )
    assert ask(warehouse, ROWS_NOW) == [(3, "2", "2")]
    for arguments, words in (
        (("churn", "--from", day), "--to is None, and not a date"),
        (("churn", "--from", day, "--to", first), f"--to is '{first}', and not a date"),
        (("churn", "--from", day, "--as-of", day), "--as-of and --from are both given"),
        (("churn", "spend"), "several use cases are rolled back only by dates"),
        (("churn", "--to", first), f"--to {first} names a publication, and no date"),
    ):
        assert words in nightshift("rollback", *arguments, code=1)
    write_scores(warehouse, version="3", manifest={"rows": 4})
    with pytest.raises(AuditError):
        publish(warehouse, [CHURN], AS_OF)
    with connect(warehouse) as connection, connection.cursor() as cursor:
        (left,) = staging_tables(warehouse)
        cursor.execute(f"comment on table predictions.{left} is 'Scores of churn for {day}'")
    assert nightshift("publications", "prune", "--as-of", day) == (
        f"churn: 1 discarded: {left.removeprefix('churn_p_')}"
    )
    schema = json.loads(nightshift("publications", "schema", "churn"))
    assert schema["properties"]["churn_probability"]["type"] == "number"


def test_other_published_columns_are_refused(warehouse: Settings) -> None:
    write_scores(warehouse)
    publish(warehouse, [CHURN], AS_OF)
    before = ask(warehouse, "select * from predictions.churn order by customer_id")
    other = CHURN.model_copy(update={"score_column": "leaving_probability"})
    table, next_day = score_table(), AS_OF + timedelta(days=1)
    names = ["leaving_probability" if n == "churn_probability" else n for n in table.column_names]
    write_scores(warehouse, table.rename_columns(names), version="2", as_of=next_day)
    write_scores(warehouse, use_case=LAPSE, as_of=next_day)

    with pytest.raises(NightshiftError, match="churn_publications_data has the columns") as refused:
        publish(warehouse, [other, LAPSE], next_day)

    assert ask(warehouse, "select count(*) from predictions.lapse") == [(3,)], "it holds no other"
    assert "give the changed use case a new name" in str(refused.value)
    assert ask(warehouse, "select * from predictions.churn order by customer_id") == before
    assert staging_tables(warehouse) == []


def test_a_range_of_dates_of_several_use_cases_goes_back_at_once(warehouse: Settings) -> None:
    days = [AS_OF + timedelta(days=day) for day in range(4)]
    identities: dict[tuple[str, str, date], str] = {}

    def publish_dates_of(version: str, dates: list[date]) -> None:
        for as_of in dates:
            for use_case in (CHURN, LAPSE):
                identities[use_case.name, version, as_of] = write_scores(
                    warehouse, use_case=use_case, version=version, as_of=as_of
                )
        publish_nights(warehouse, {as_of: [CHURN, LAPSE] for as_of in dates})

    publish_dates_of("1", days[:3])
    publish_dates_of("2", days)
    both, whole = (CHURN, LAPSE), (days[0], days[3])
    versions = "select 'churn', as_of, max(model_version) from predictions.churn group by 2"
    versions += " union all select 'lapse', as_of, max(model_version) from predictions.lapse"
    versions += " group by 2 order by 1, 2"

    def shown() -> list[str]:
        return [version for _, _, version in ask(warehouse, versions)]

    with reader(warehouse) as connection, connection.cursor() as cursor:
        cursor.execute("listen nightshift_publications")
        done = roll_back_nights(warehouse, both, *whole, "Ada", "not this backfill")
        connection.poll()
        told = {json.loads(each.payload)["publication_id"] for each in connection.notifies}

    assert shown() == ["1", "1", "1", "2"] * 2
    back = {identities[name, "1", day] for name in ("churn", "lapse") for day in days[:3]}
    assert {each.publication_id for each in done.shown} == back == told
    assert {(each.use_case, each.as_of) for each in done.stayed} == {
        ("churn", days[3]), ("lapse", days[3]),
    }  # fmt: skip
    moves = "select person, reason, count(*) from ops.pointer_moves where person is not null"
    moves += " group by 1, 2"
    assert ask(warehouse, moves, as_writer=True) == [("Ada", "not this backfill", 6)]
    publish_nights(warehouse, {as_of: [CHURN, LAPSE] for as_of in days})
    assert shown() == ["1", "1", "1", "2"] * 2, "it is run again, and leaves it so"

    # what asks once is done once; who asks anew goes back to where it was
    once = roll_back_nights(warehouse, both, *whole, "Ada", "not this backfill", is_once=True)
    assert (len(once.shown), len(once.forward)) == (6, 0)
    assert shown() == ["1", "1", "1", "2"] * 2
    again = roll_back_nights(warehouse, [LAPSE], days[0], days[1], "Ada", "it was right")
    assert again.forward == again.shown
    assert shown() == ["1", "1", "1", "2", "2", "2", "1", "2"]
    publish_dates_of("3", days[:1])
    roll_back_nights(warehouse, both, *whole, "Ada", "not this backfill", is_once=True)
    assert shown() == ["3", "1", "1", "2", "3", "2", "1", "2"], "also with another in between"

    for asked, why in (
        ((both, days[3], days[3]), "each of the 2 publications is the first of its date"),
        ((both, days[3] + timedelta(days=1), days[3] + timedelta(days=9)), "nothing of churn, lap"),
    ):
        with pytest.raises(NightshiftError, match=why):
            roll_back_nights(warehouse, *asked, "Ada", "wrong")


def test_a_diff_tells_which_rows_changed_and_by_how_much(warehouse: Settings) -> None:
    before = write_scores(warehouse, score_table(10), version="1")
    publish(warehouse, [CHURN], AS_OF)
    table = with_column(
        score_table(10), "churn_probability", [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.85, 0.5]
    )
    table = with_column(table, "band", ["low"] * 4 + ["medium"] * 3 + ["high"] * 2 + ["medium"])
    table = with_column(table, "customer_id", ["new", *(f"c{i:07d}" for i in range(1, 10))])
    after = write_scores(warehouse, table, version="2")
    publish(warehouse, [CHURN], AS_OF)

    found = diff(warehouse, [CHURN], before[:8], after, largest=1)

    assert (found.before.is_seen, found.after.is_seen) == (False, True)
    assert (found.rows_in_both, found.rows_new, found.rows_gone, found.rows_changed) == (9, 1, 1, 2)
    assert found.bands == {("high", "medium"): 1}
    assert found.quantiles[0.0] == pytest.approx(-0.4)
    assert (found.quantiles[0.5], found.quantiles[1.0]) == (0.0, pytest.approx(0.05))
    assert [(row.key, row.band_before, row.band_after) for row in found.largest] == [
        ("c0000009", "high", "medium")
    ]
    same = diff(warehouse, [CHURN], after, after)
    assert (same.rows_in_both, same.rows_changed, same.bands, same.largest) == (10, 0, {}, [])
    with pytest.raises(NightshiftError, match="no publications have an id that begins with 'zz'"):
        diff(warehouse, [CHURN], "zz", after)


def test_publications_of_two_use_cases_are_not_compared(warehouse: Settings) -> None:
    one = write_scores(warehouse)
    other = write_scores(warehouse, use_case=LAPSE)
    publish(warehouse, [CHURN, LAPSE], AS_OF)

    with pytest.raises(NightshiftError, match=r"is of churn, .* of lapse"):
        diff(warehouse, [CHURN, LAPSE], one, other)
    assert {kept.publication_id for kept in publications(warehouse)} == {one, other}
    assert [(kept.publication_id, kept.passed) for kept in publications(warehouse, LAPSE)] == [
        (other, len(LAPSE.audits) + 8 - 3)
    ]


def test_listeners_hear_of_new_predictions_once_they_are_there(warehouse: Settings) -> None:
    with reader(warehouse) as connection, connection.cursor() as cursor:
        cursor.execute("listen nightshift_publications")
        identity = write_scores(warehouse, version="7")
        publish(warehouse, [CHURN], AS_OF)
        publish(warehouse, [CHURN], AS_OF)
        connection.poll()
        (told,) = connection.notifies
        assert json.loads(told.payload) == {
            "use_case": "churn", "as_of": "2011-06-12", "publication_id": identity
        }  # fmt: skip
        cursor.execute(
            "select use_case, as_of, publication_id, rows, model_version, published_at <= now()"
            " from predictions.publications"
        )
        assert cursor.fetchall() == [("churn", AS_OF, identity, 3, "7", True)]


def publish_dates(settings: Settings, days: int, rows: int = 3) -> list[date]:
    """Publish a night each day from ``AS_OF`` on, one after the other."""
    dates = [AS_OF + timedelta(days=day) for day in range(days)]
    for as_of in dates:
        write_scores(settings, score_table(rows), as_of=as_of)
        publish(settings, [CHURN], as_of)
    return dates


def partitions_of(settings: Settings, parent: str) -> int:
    found = ask(
        settings,
        f"select count(*) from pg_inherits where inhparent = 'predictions.{parent}'::regclass",
        as_writer=True,
    )
    return int(found[0][0])


def plan_of(settings: Settings, query: str) -> list[str]:
    """The lines of EXPLAIN ANALYZE that read a publication's table, in the reader's role."""
    lines = [line for (line,) in ask(settings, f"explain (analyze, costs off) {query}")]
    return [line.strip() for line in lines if "churn_p_" in line]


def test_a_lookup_opens_one_partition_and_plans_over_few(warehouse: Settings) -> None:
    dates = publish_dates(warehouse, history_run.NEWEST + 4, rows=2000)
    everything = "select * from predictions.churn order by as_of, customer_id"
    before = ask(warehouse, everything)
    one, band = "customer_id = 'c0000007'", "band = 'high' order by churn_probability desc limit 5"
    assert len(plan_of(warehouse, f"select * from predictions.churn_latest where {one}")) > 8

    pruned = prune(warehouse, [CHURN], dates[-1])

    assert len(pruned.archived["churn"]) == 4
    assert (pruned.dropped, pruned.waiting) == ({}, {})
    assert partitions_of(warehouse, "churn_publications_data") == history_run.NEWEST
    assert ask(warehouse, everything) == before
    for view, where, planned in (
        ("churn_latest", one, history_run.NEWEST),
        ("churn_latest", band, history_run.NEWEST),
        ("churn", f"as_of = '{dates[1]}' and {one}", 1),
        ("churn", f"as_of = '{dates[-1]}' and {one}", 1),
    ):
        reads = plan_of(warehouse, f"select * from predictions.{view} where {where}")
        assert len(reads) == planned, reads
        assert all("Index Scan" in line for line in reads), reads
        assert sum("never executed" not in line for line in reads) == 1, reads


def test_old_dates_go_straight_to_the_archive(warehouse: Settings) -> None:
    newest = date(2011, 6, 20)
    write_scores(warehouse, as_of=newest)
    publish(warehouse, [CHURN], newest)
    publish_dates(warehouse, 3)

    assert partitions_of(warehouse, "churn_publications_archive") == 3
    assert ask(warehouse, "select distinct as_of from predictions.churn_latest") == [(newest,)]
    assert ask(warehouse, "select count(*) from predictions.churn") == [(12,)]


KEEP_ONE = CHURN.model_copy(update={"retention": Retention(versions=1, days=0)})


def test_what_is_no_longer_kept_is_dropped_and_never_what_readers_see(warehouse: Settings) -> None:
    identities = []
    for version in ("1", "2", "3"):
        identities.append(write_scores(warehouse, version=version))
        publish(warehouse, [CHURN], AS_OF)
    assert prune(warehouse, [CHURN], AS_OF) == history_run.Pruned({}, {}, {}, {})
    roll_back(warehouse, CHURN, AS_OF, "Ada", "wrong")

    pruned = prune(warehouse, [KEEP_ONE], AS_OF)

    assert pruned.dropped == {"churn": [identities[0]]}, "3 is the newest, and readers see 2"
    kept = {each.publication_id: each.is_there for each in publications(warehouse)}
    assert kept == {identities[0]: False, identities[1]: True, identities[2]: True}
    with pytest.raises(NightshiftError, match="no longer kept"):
        roll_back(warehouse, CHURN, AS_OF, "Ada", "back", identities[0])
    assert ask(warehouse, ROWS_NOW) == [(3, "2", "2")]

    write_scores(warehouse, version="1")
    publish(warehouse, [CHURN], AS_OF)
    assert ask(warehouse, ROWS_NOW) == [(3, "1", "1")], "it is loaded again"
    assert all(each.is_there for each in publications(warehouse))


def test_what_was_staged_and_never_published_goes_after_its_days(warehouse: Settings) -> None:
    seen, later = write_scores(warehouse), AS_OF + timedelta(days=7)
    publish(warehouse, [CHURN], AS_OF)
    refused = write_scores(warehouse, manifest={"rows": 4}, as_of=later)
    with pytest.raises(AuditError):
        publish(warehouse, [CHURN], later)
    left, of_old = "churn_p_1111111111111111", "churn_p_2222222222222222"
    recently = datetime.now(UTC) - timedelta(days=29)
    with connect(warehouse) as connection, connection.cursor() as cursor:
        for table, since in ((left, f", staged {recently.isoformat()}"), (of_old, "")):
            cursor.execute(
                f"create table predictions.{table} (customer_id text);"
                f"comment on table predictions.{table} is 'Scores of churn for 2011-06-01{since}'"
            )
        # as by a drop that was killed after its detachment: prune knows it as a publication
        parent = "predictions.churn_publications_data"
        cursor.execute(f"alter table {parent} detach partition predictions.churn_p_{seen}")

    assert prune(warehouse, [CHURN], AS_OF).discarded == {"churn": [of_old[-16:]]}

    with connect(warehouse) as reading, reading.cursor() as cursor:
        cursor.execute(f"select count(*) from predictions.churn_p_{refused}")
        done = prune(warehouse, [KEEP_ONE], AS_OF)
    assert (done.discarded, done.waiting) == ({"churn": [left[-16:]]}, {"churn": [refused]})
    assert prune(warehouse, [KEEP_ONE], AS_OF).discarded == {"churn": [refused]}
    assert staging_tables(warehouse) == [f"churn_p_{seen}"]

    # such a publication is neither shown by a rollback nor in the way of its own return
    other = publish_version(warehouse, "2")
    with pytest.raises(NightshiftError, match="the rows of the one before are no longer kept"):
        roll_back_nights(warehouse, [CHURN], AS_OF, AS_OF, "Ada", "wrong")
    write_scores(warehouse)
    publish(warehouse, [CHURN], AS_OF)
    assert ask(warehouse, ROWS_NOW) == [(3, "1", "1")]
    assert roll_back(warehouse, CHURN, AS_OF, "Ada", "wrong").publication_id == other


def test_receipts_tell_of_publications_that_are_superseded_pruned_or_of_old(
    warehouse: Settings,
) -> None:
    first, second, third = (publish_version(warehouse, version) for version in ("1", "2", "3"))

    def receipt(*arguments: str) -> dict[str, Any]:
        (found,) = ask(warehouse, f"select predictions.receipt('churn', {', '.join(arguments)})",
                       as_writer=True)[0]  # fmt: skip
        assert isinstance(found, dict)
        return found

    seen = receipt("'c0000001'")
    assert seen["publication"]["publication_id"] == third
    assert (seen["as_of"], seen["row"]["model_version"]) == (str(AS_OF), "3")
    assert seen["decision"] is None
    assert any("no decision made version 3 champion" in each for each in seen["missing"])
    assert any("from before code, features" in each for each in seen["missing"])
    assert [each["outcome"] for each in seen["audit"]].count("failed") == 0
    assert (seen["sources"], seen["quality"], seen["gates"]) == ([], [], [])

    # the newest date on which readers see a row of it, though a newer one is published
    write_scores(warehouse, score_table(1), as_of=AS_OF + timedelta(days=1))
    publish(warehouse, [CHURN], AS_OF + timedelta(days=1))
    assert receipt("'c0000001'")["as_of"] == str(AS_OF)
    assert receipt("'c0000000'")["as_of"] == str(AS_OF + timedelta(days=1))

    superseded = receipt("'c0000001'", "null", f"'{second}'")
    assert (superseded["publication"]["is_seen"], superseded["row"]["model_version"]) == (
        False, "2",
    )  # fmt: skip
    roll_back(warehouse, CHURN, AS_OF, "Ada", "wrong prices")
    (back,) = [each for each in receipt("'c0000001'")["moves"] if each["person"]]
    assert (back["person"], back["reason"], back["to_publication_id"]) == (
        "Ada", "wrong prices", second,
    )  # fmt: skip
    prune(warehouse, [KEEP_ONE], AS_OF)
    pruned = receipt("'c0000001'", "null", f"'{first}'")
    assert pruned["row"] is None
    assert f"the rows of publication {first} are no longer kept, since 2" in pruned["missing"][0]
    assert pruned["publication"]["model_version"] == "1"
    assert receipt("'c0000001'", f"'{AS_OF}'::date + 9", f"'{second}'")["publication"] is None
    assert receipt("null")["row"] is None


def publish_version(settings: Settings, version: str) -> str:
    identity = write_scores(settings, version=version)
    publish(settings, [CHURN], AS_OF)
    return identity


def test_dropping_waits_for_a_long_reader_and_nobody_waits_for_it(
    warehouse: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    identities = []
    for version in ("1", "2"):
        identities.append(write_scores(warehouse, version=version))
        publish(warehouse, [CHURN], AS_OF)
    with closing(psycopg2.connect(warehouse.reader_url)) as long, long.cursor() as cursor:
        cursor.execute(ROWS_NOW)
        monkeypatch.setattr(history_run, "DETACH_SECONDS", 1)
        assert prune(warehouse, [KEEP_ONE], AS_OF).waiting == {"churn": [identities[0]]}
        with reader(warehouse) as other, other.cursor() as quick:
            quick.execute("set lock_timeout = '100ms'")
            quick.execute(ROWS_NOW)
            assert quick.fetchall() == [(3, "2", "2")]
        monkeypatch.setattr(history_run, "DETACH_SECONDS", 60)
        done: list[history_run.Pruned] = []
        thread = threading.Thread(target=lambda: done.append(prune(warehouse, [KEEP_ONE], AS_OF)))
        thread.start()
        long.commit()
        thread.join()
    assert done[0].dropped == {"churn": [identities[0]]}, "the detachment is taken up again"
    assert staging_tables(warehouse) == []
    assert partitions_of(warehouse, "churn_publications_data") == 1


def test_a_move_to_the_archive_gives_way_to_a_long_reader(
    warehouse: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    dates = publish_dates(warehouse, 2)
    monkeypatch.setattr(history_run, "NEWEST", 1)
    monkeypatch.setattr(history_run, "MOVE_SECONDS", 0.3)
    with closing(psycopg2.connect(warehouse.reader_url)) as long, long.cursor() as cursor:
        cursor.execute("select count(*) from predictions.churn")
        with reader(warehouse) as other, other.cursor() as quick:
            quick.execute("set lock_timeout = '1s'")
            thread = threading.Thread(target=prune, args=(warehouse, [CHURN], dates[-1]))
            thread.start()
            while thread.is_alive():
                quick.execute("select count(*) from predictions.churn")
                assert quick.fetchall() == [(6,)]
            thread.join()
        assert partitions_of(warehouse, "churn_publications_data") == 2
        long.commit()
    assert len(prune(warehouse, [CHURN], dates[-1]).archived["churn"]) == 1
    assert ask(warehouse, "select count(*) from predictions.churn") == [(6,)]


def test_a_published_row_is_as_its_json_schema_says(warehouse: Settings) -> None:
    name = CHURN.feature_names[0]
    table = score_table()
    told = json.dumps([reason | {"feature": name} for reason in json.loads(REASONS)])
    write_scores(warehouse, with_column(table, "reasons", [told] * 3))
    publish(warehouse, [CHURN], AS_OF)
    validator = Draft202012Validator(json_schema(CHURN))

    rows = ask(warehouse, "select row_to_json(c) from predictions.churn_latest as c")
    for (row,) in rows:
        validator.validate(row)
        for broken in (row | {"band": "hgih"}, row | {"churn_probability": 1.5}, row | {"x": 1}):
            assert not validator.is_valid(broken)


def test_the_sample_consumer_follows_what_is_published(warehouse: Settings) -> None:
    source = PROJECT_ROOT / "docs" / "examples" / "follow_predictions.py"
    follow = runpy.run_path(str(source))["follow"]
    first = write_scores(warehouse, score_table(10), version="1")
    publish(warehouse, [CHURN], AS_OF)
    following = follow(warehouse.reader_url)

    assert [row[0] for row in next(following)] == [first] * 3
    second = write_scores(warehouse, score_table(100), version="2")
    publish(warehouse, [CHURN], AS_OF)
    rows = next(following)
    assert ([row[0] for row in rows], rows[0][2]) == ([second] * 10, 0.99)
    following.close()
