"""Backfills on real features, models and a real Postgres: planned, killed, seen at once."""

import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from chaos.shop import FIRST, LAST, command, fill, promote, register
from chaos.worlds import Victim, until
from nightshift import pipeline
from nightshift.backfill.run import Request, _why_unable, choose_nights, of_able, plan
from nightshift.errors import RefusedAsOf
from nightshift.io import lake, model_store
from nightshift.io.landing import LATELY_DAYS
from nightshift.io.warehouse import migrate
from nightshift.publishing.run import publish
from nightshift.scoring.run import score
from nightshift.services.postgres import EmbeddedPostgres
from nightshift.settings import Settings
from nightshift.spec import Nights
from nightshift.use_cases.churn import CHURN
from nightshift.use_cases.fraud import FRAUD

pytestmark = pytest.mark.integration

ALL = Request(FIRST, LAST, (CHURN,))
SHOWN = (
    "select string_agg(distinct as_of || ' by ' || model_version, ', ' order by as_of || ' by ' ||"
    " model_version) from predictions.churn"
)


@pytest.fixture
def shop(empty_mart: Settings, tracked_warehouse: Settings) -> Settings:
    """A year of 40 customers' lines in the mart, and in the lake."""
    settings = tracked_warehouse.model_copy(update={"spark_master": "local[2]"})
    fill(settings)
    return settings


def change(settings: Settings, statement: str, *values: object) -> None:
    with closing(psycopg2.connect(settings.warehouse_url)) as connection, connection:
        connection.cursor().execute(statement, values or None)


def ask(settings: Settings, query: str, *values: object) -> list[tuple[Any, ...]]:
    with closing(psycopg2.connect(settings.warehouse_url)) as connection:
        cursor = connection.cursor()
        cursor.execute(query, values or None)
        return list(cursor.fetchall())


def decided(settings: Settings, version: model_store.ModelVersion, at: datetime) -> None:
    """What a promotion at that instant would have left."""
    change(
        settings,
        "insert into ops.promotions (use_case, as_of, to_version, mlflow_run_id, reason,"
        " promoted_at) values ('churn', %s, %s, %s, 'better', %s)",
        version.as_of, version.version, version.run_id, at,
    )  # fmt: skip


def published(settings: Settings) -> list[tuple[Any, ...]]:
    """All that readers see, but for the instant of scoring."""
    return ask(
        settings,
        "select customer_id, as_of, churn_probability, band, reasons::text, model_version,"
        " publication_id from predictions.churn order by 2, 1",
    )


@contextmanager
def polled(settings: Settings) -> Iterator[set[str]]:
    """What a reader in a tight loop sees while the block runs."""
    stop = threading.Event()
    seen: set[str] = set()

    def read() -> None:
        with closing(psycopg2.connect(settings.reader_url)) as connection:
            connection.autocommit = True
            cursor = connection.cursor()
            while not stop.is_set():
                cursor.execute(SHOWN)
                seen.add(cursor.fetchone()[0])

    thread = threading.Thread(target=read)
    thread.start()
    try:
        until(lambda: bool(seen), "the reader's first answer")
        yield seen
    finally:
        stop.set()
        thread.join()


BACKFILL = """
from nightshift import pipeline
from nightshift.backfill.run import Request
request = Request(first, last, (CHURN,))
pipeline.build_features_of_nights(settings, request)
pipeline.score_nights(settings, request)
pipeline.publish_nights(settings, request)
"""


def kill_once(settings: Settings, condition: Callable[[], bool], what: str) -> None:
    """Backfill in a process of its own, and kill it when the condition holds."""
    process = Victim(settings, command(BACKFILL))
    try:
        process.wait_for(condition, what)
        process.kill()
    finally:
        process.end()


def waits(settings: Settings, kind: str) -> Callable[[], bool]:
    query = (
        "select count(*) from pg_stat_activity where datname = current_database()"
        " and wait_event_type = 'Lock' and wait_event = %s"
    )
    return lambda: ask(settings, query, kind) == [(1,)]


def written(settings: Settings, kind: str) -> dict[str, int]:
    """Date → when the dataset of that kind was written."""
    folder = settings.lake_dir / kind / "churn"
    return {each.name: (each / lake.MANIFEST).stat().st_mtime_ns for each in folder.glob("as_of=*")}


def test_a_backfill_killed_in_scoring_and_in_publishing_ends_as_one_that_was_not(
    shop: Settings, tmp_path: Path, postgres_server: EmbeddedPostgres, migrated_template: str
) -> None:
    old, new = register(shop, CHURN, tmp_path, 1), register(shop, CHURN, tmp_path, 2)
    promote(shop, CHURN, old)
    second = FIRST + timedelta(days=1)
    pipeline.build_features_of_nights(shop, ALL)
    features = written(shop, "features")
    assert len(features) == 4
    for stage in (pipeline.score_nights, pipeline.publish_nights):
        stage(shop, Request(second, second, (CHURN,)))
    promote(shop, CHURN, new)
    before = f"{second} by {old.version}"
    with polled(shop) as seen:
        third = FIRST + timedelta(days=2)
        with closing(psycopg2.connect(shop.warehouse_url)) as holder:
            holder.cursor().execute(
                "select pg_advisory_xact_lock(hashtextextended(%s, 0))", (f"scores:churn:{third}",)
            )
            kill_once(shop, waits(shop, "advisory"), "the third date to be scored")
        scores = written(shop, "scores")
        assert set(scores) == {f"as_of={FIRST}", f"as_of={second}"}
        until(lambda: not waits(shop, "advisory")(), "the server to notice the kill")

        pipeline.score_nights(shop, ALL)
        assert {
            name: at for name, at in written(shop, "scores").items() if name in scores
        } == scores

        manifest = lake.read_manifest(lake.dataset_dir(shop.lake_dir, "scores", "churn", third))
        assert manifest is not None
        with closing(psycopg2.connect(shop.warehouse_url)) as holder:
            holder.cursor().execute(
                "insert into ops.publications (publication_id, use_case, as_of, model_version,"
                " mlflow_run_id, rows, features_sha256, scored_at)"
                " values (%s, 'churn', %s, '', '', 0, '', now())",
                (manifest["publication_id"], third),
            )
            kill_once(shop, waits(shop, "transactionid"), "the third date to be attached")
        attached = ask(shop, PARTITIONS)
        assert len(attached) == 3  # the old one, and two of the new
        assert seen == {before}

        scored = written(shop, "scores")
        pipeline.build_features_of_nights(shop, ALL)
        pipeline.score_nights(shop, ALL)
        pipeline.publish_nights(shop, ALL)
        dates = [FIRST + timedelta(days=days) for days in range(4)]
        after = ", ".join(f"{as_of} by {new.version}" for as_of in dates)
        until(lambda: after in seen, "the reader to see the new rows")

    assert seen == {before, after}
    assert written(shop, "features") == features
    assert written(shop, "scores") == scored
    assert set(attached) < set(ask(shop, PARTITIONS))
    undisturbed = nights_at_once(shop, postgres_server, migrated_template)
    assert published(shop) == published(undisturbed) != []
    newest = "select distinct as_of from predictions.churn_latest"
    assert ask(shop, newest) == ask(undisturbed, newest) == [(LAST,)]


PARTITIONS = (
    "select oid::bigint, relname from pg_class"
    " where relispartition and relkind = 'r' and relname ~ '^churn_p_' order by 1"
)


def nights_at_once(shop: Settings, server: EmbeddedPostgres, template: str) -> Settings:
    """The same nights in a warehouse of its own, from the same features and champion, as Airflow's
    backfill of ``nightly`` may run them: each alone, in parallel, the newest first."""
    name = shop.warehouse_url.rsplit("/", 1)[1] + "_undisturbed"
    server.ensure_database(name, "nightshift_writer", "nightshift_reader", template=template)
    other = shop.model_copy(
        update={
            "database_url": shop.warehouse_url.rsplit("/", 1)[0] + f"/{name}",
            "lake": shop.lake_dir.with_name("undisturbed"),
        }
    )
    shutil.copytree(shop.lake_dir / "features", other.lake_dir / "features")
    shutil.copytree(shop.lake_dir / "events", other.lake_dir / "events")
    migrate(other)

    def night(as_of: date) -> None:
        score(other, CHURN, as_of)  # the alias in MLflow names the champion
        publish(other, [CHURN], as_of)

    with ThreadPoolExecutor() as threads:
        for done in [threads.submit(night, as_of) for as_of in reversed(ALL.dates)]:
            done.result()
    return other


def test_each_date_is_scored_by_the_model_that_was_champion_as_it_began(
    tracked_warehouse: Settings, tmp_path: Path
) -> None:
    settings = tracked_warehouse
    first, second = register(settings, CHURN, tmp_path, 1), register(settings, CHURN, tmp_path, 2)
    london = settings.model_copy(update={"timezone": "Europe/London"})  # 23:00 UTC is midnight
    decided(settings, first, datetime(2011, 6, 1, 23, tzinfo=UTC))
    decided(settings, second, datetime(2011, 6, 2, 23, 0, 1, tzinfo=UTC))
    then = Request(FIRST, LAST, (CHURN,), "as-then")

    with pytest.raises(RefusedAsOf, match="churn had no champion as 2011-06-01 began") as refusal:
        choose_nights(london, then)
    assert "1 such dates in all" in refusal.value.what
    assert "2011-06-01 23:00" in refusal.value.what
    assert "--skip-without-champion" in refusal.value.remedy

    skipping = Request(FIRST, LAST, (CHURN,), "as-then", skip_without_champion=True)
    nights = choose_nights(london, skipping)
    assert [(night.as_of.day, night.model.version) for night in nights] == [
        (2, first.version), (3, first.version), (4, second.version),
    ]  # fmt: skip
    assert {night.model.run_id for night in nights} == {first.run_id, second.run_id}
    assert "skipped: churn for 2011-06-01, without a champion" in plan(london, skipping).text
    with pytest.raises(RefusedAsOf, match="had no champion as 2011-06-01 began"):
        choose_nights(london, Request(FIRST, FIRST, (CHURN,), "as-then", True))

    now = choose_nights(london, ALL)
    assert {night.model.version for night in now} == {second.version}

    alternate = CHURN.model_copy(update={"nights": Nights(every_days=2, since=FIRST)})
    asked = Request(FIRST, LAST, (alternate,))
    assert [night.as_of.day for night in choose_nights(london, asked)] == [1, 3]
    told = "churn: 2 dates are not due: it is scored every 2 nights, next on 2011-06-05"
    assert told in plan(london, asked).text.splitlines()
    between = FIRST + timedelta(days=1)
    with pytest.raises(RefusedAsOf, match="no use case is due from 2011-06-02 to 2011-06-02"):
        choose_nights(london, Request(between, between, (alternate,)))


@pytest.mark.parametrize(
    ("first", "last", "words"),
    [
        (LAST, FIRST, "there is no date from 2011-06-04 to 2011-06-01"),
        (FIRST, date(2999, 1, 1), "as_of 2999-01-01 is in the future"),
        (date(2010, 12, 1), FIRST, "nothing of order_lines had landed before 2010-12-01"),
        (FIRST, LAST, "no champion yet for churn"),
    ],
)
def test_dates_that_cannot_be_backfilled_are_refused(
    tracked_warehouse: Settings, first: date, last: date, words: str
) -> None:
    change(
        tracked_warehouse,
        "insert into ops.landing_files (source, landed_date, path, sha256, bytes, status, rows_in,"
        " rows_loaded, rows_quarantined) values ('order_lines', '2010-12-01', 'a', '', 1, 'loaded',"
        " 1, 1, 0)",
    )
    with pytest.raises(RefusedAsOf, match=words):
        plan(tracked_warehouse, Request(first, last, (CHURN,)))


def test_a_use_case_that_is_named_is_refused_where_one_of_its_sources_had_not_landed(
    tracked_warehouse: Settings,
) -> None:
    for source, landed in (("card_transactions", "2011-05-01"), ("chargebacks", str(FIRST))):
        change(
            tracked_warehouse,
            "insert into ops.landing_files (source, landed_date, path, sha256, bytes, status,"
            " rows_in, rows_loaded, rows_quarantined) values (%s, %s, 'a', '', 1, 'loaded', 1, 1,"
            " 0)",
            source, landed,
        )  # fmt: skip
    with pytest.raises(RefusedAsOf, match=f"nothing of chargebacks had landed before {FIRST}"):
        plan(tracked_warehouse, Request(FIRST, LAST, (FRAUD,)))


def test_of_all_use_cases_those_that_cannot_be_scored_are_left_out(
    tracked_warehouse: Settings, tmp_path: Path
) -> None:
    settings = tracked_warehouse.model_copy(update={"landing": tmp_path / "landing"})
    asked = Request(FIRST, LAST, (CHURN, FRAUD))
    assert of_able(settings, asked) == asked, "where none can be, all are refused"
    with pytest.raises(RefusedAsOf, match="no champion yet for churn"):
        plan(settings, of_able(settings, asked))

    promote(settings, CHURN, register(settings, CHURN, tmp_path, 1))
    for day in (FIRST - timedelta(days=LATELY_DAYS), LAST - timedelta(days=1)):
        (settings.landing_folder / "order_lines" / f"ds={day}").mkdir(parents=True)
    able = of_able(settings, asked)
    assert able.use_cases == (CHURN,)
    shown = plan(settings, able).text
    assert "left out: fraud, which has no champion yet" in shown.splitlines()

    folder = settings.landing_folder / "order_lines" / f"ds={LAST - timedelta(days=1)}"
    folder.rmdir()
    (folder.parent / f"ds={LAST}").mkdir()  # of the date itself a night knows nothing
    (folder.parent / f"ds={LAST - timedelta(days=LATELY_DAYS + 1)}").mkdir()
    why = f"for nothing of order_lines landed in the 30 days before {LAST}"
    assert _why_unable(settings, asked, CHURN) == why
    change(
        settings,
        "insert into ops.landing_files (source, landed_date, path, sha256, bytes, status, rows_in,"
        " rows_loaded, rows_quarantined) values ('order_lines', %s, 'a', '', 1, 'loaded', 1, 1, 0)",
        LAST - timedelta(days=LATELY_DAYS),
    )
    assert _why_unable(settings, asked, CHURN) is None, "the folder is gone, its rows are not"


def test_the_plan_says_what_will_change_for_whom(
    tracked_warehouse: Settings, tmp_path: Path
) -> None:
    settings = tracked_warehouse
    old, new = register(settings, CHURN, tmp_path, 1), register(settings, CHURN, tmp_path, 2)
    promote(settings, CHURN, new)
    for day, version in ((2, old), (3, new), (30, old)):
        as_of = date(2011, 6, day)
        change(
            settings,
            "insert into ops.publications values (%s, 'churn', %s, %s, '', 1200, '', now());"
            " insert into predictions.pointers values ('churn', %s, %s)",
            str(day), as_of, version.version, as_of, str(day),
        )  # fmt: skip
    change(
        settings,
        "insert into ops.runs (stage, as_of, status, started_at, ended_at, result) values"
        " ('features', '2011-06-30', 'succeeded', '2011-06-30', timestamptz '2011-06-30' + interval"
        " '10 s', '{\"datasets\": [{\"is_reused\": false}]}'), ('score', '2011-06-30', 'succeeded',"
        " '2011-06-30', timestamptz '2011-06-30' + interval '6 s', '{\"rows\": 1200, \"is_new\":"
        " true}')",
    )

    shown = plan(settings, ALL).text

    assert shown.splitlines() == [
        "churn: 4 dates from 2011-06-01 to 2011-06-04, about 4,800 rows",
        f"  2011-06-01 to 2011-06-04 by version {new.version}",
        f"  changes 2011-06-02: 1,200 published rows of version {old.version} give way to version"
        f" {new.version}",
        "  1 published dates (1,200 rows) are of the same version: each changes only if its"
        " features do",
        "  2 dates are published for the first time",
        "  predictions.churn_latest stays at 2011-06-30",
        "time: at most 64 s by earlier runs (features 40 s, score 24 s); nothing is known of"
        " publish",
        "consumer: Churn predictions (ml, data-team@example.com) reads predictions.churn,"
        " predictions.churn_latest",
    ]
    assert ask(settings, "select count(*) from ops.runs") == [(2,)]
