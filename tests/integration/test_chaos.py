"""Faults in short: crashes of the server, kills, full disks, services that are away, another clock.

``make chaos`` does the same at random instants, on whole nights and trainings.
"""

import os
import random
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from datetime import timedelta
from pathlib import Path

import psutil
import psycopg2
import pytest

from chaos import faults
from chaos.checks import (
    assert_no_process_is_left,
    assert_nothing_is_half_done,
    assert_nothing_is_left_behind,
    assert_same,
    datasets_of,
    files_left,
    published_of,
)
from chaos.reader import Judge, Reader, State, look
from chaos.shop import (
    BUILD,
    FIRST,
    LAST,
    MART,
    PUBLISH,
    SCORE,
    USE_CASES,
    command,
    fill,
    promote,
    register,
)
from chaos.worlds import (
    READER,
    WRITER,
    Victim,
    copied,
    execute,
    processes_of,
    query,
    removed,
    settings_of,
    temporary_of,
    until,
)
from nightshift.errors import SettingError
from nightshift.features.extract_run import extract
from nightshift.features.run import build_features_of_nights
from nightshift.io import lake, model_store
from nightshift.publishing.run import publish_nights
from nightshift.scoring.run import score
from nightshift.services.postgres import EmbeddedPostgres
from nightshift.settings import Settings
from nightshift.task_outcomes import may_pass
from nightshift.use_cases.churn import CHURN

SEED = 20111209
DATES = [FIRST + timedelta(days=days) for days in range(3)]
NIGHTS = {as_of: USE_CASES for as_of in DATES}
PUBLISHING = command(PUBLISH, last=DATES[-1])
SCORING = command(SCORE, last=DATES[-1])


class Shop:
    """Three dates of two use cases that readers see as their versions 1 have scored them, and their
    scores by versions 2.

    Attributes:
        before: what readers see.
        after: what they see once the scores are published.
        published: what ``published_of`` tells then.
    """

    def __init__(self, server: EmbeddedPostgres, base: Settings) -> None:
        self.server, self.base = server, base
        self.before = look(base.reader_url, USE_CASES)
        undisturbed = copied(server, base, "chaos_undisturbed")
        publish_nights(undisturbed, NIGHTS)
        self.after = look(undisturbed.reader_url, USE_CASES)
        self.published = published_of(undisturbed)
        removed(server, undisturbed)


@pytest.fixture(scope="module")
def shop(
    postgres_server: EmbeddedPostgres,
    migrated_template: str,
    mlflow_template: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Shop:
    root = tmp_path_factory.mktemp("chaos")
    (root / "landing").mkdir()
    postgres_server.ensure_database("chaos_mlflow", WRITER, template=mlflow_template)
    postgres_server.ensure_database("chaos", WRITER, READER, template=migrated_template)
    base = settings_of(postgres_server, "chaos", root, root / "landing", "chaos_mlflow")
    execute(base.warehouse_url, MART)
    fill(base)
    build_features_of_nights(base, NIGHTS)
    for seed in (1, 2):
        for use_case in USE_CASES:
            promote(base, use_case, register(base, use_case, root / use_case.name, seed))
            for as_of in DATES:
                score(base, use_case, as_of)
        if seed == 1:
            publish_nights(base, NIGHTS)
    disconnect(postgres_server, base)
    return Shop(postgres_server, base)


def disconnect(server: EmbeddedPostgres, world: Settings) -> None:
    """Let go of what MLflow's pool holds in this process."""
    with server.superuser() as connection, connection.cursor() as cursor:
        cursor.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where datname = any(%s)",
            ([url.rsplit("/", 1)[1] for url in (world.warehouse_url, world.mlflow_uri)],),
        )


@pytest.fixture
def world(shop: Shop) -> Iterator[Settings]:
    """A copy of the shop, whose commits are on disk when a client hears of them."""
    made = copied(shop.server, shop.base, "chaos_world")
    with shop.server.superuser() as connection, connection.cursor() as cursor:
        cursor.execute("alter database chaos_world set synchronous_commit = on")
    yield made
    removed(shop.server, made)


@contextmanager
def running(world: Settings, command: tuple[str, ...], **more: str) -> Iterator[Victim]:
    process = Victim(world, command, more)
    try:
        yield process
    finally:
        process.end()


def is_connected(world: Settings) -> bool:
    """Whether somebody works on the warehouse."""
    return query(
        world.warehouse_url,
        "select count(*) > 0 from pg_stat_activity where datname = current_database()"
        " and application_name = 'nightshift'",
    ) == [(True,)]


def test_publishing_through_crashes_kills_and_a_rival_shows_the_old_or_the_new(
    shop: Shop, world: Settings
) -> None:
    chance = random.Random(SEED)
    with Reader(world.reader_url, USE_CASES, shop.before, shop.after) as reader:
        assert query(world.warehouse_url, "show wal_level") == [("minimal",)]  # as shipped
        ((anybody,),) = query(world.warehouse_url, "select max(customer_id) from predictions.churn")
        plant = faults.on_the_publication("lapse", anybody)
        with (
            faults.held(shop.server, world, plant, faults.NOT_ON_THE_PUBLICATION),
            running(world, PUBLISHING) as process,
        ):
            process.wait_for(lambda: bool(faults.rows_of_a_held_copy(world)), "the COPY")
            faults.crash(shop.server)
            faults.restarted(shop.server)
            assert "the warehouse" in process.refusal
        assert_nothing_is_half_done(world)
        assert look(world.reader_url, USE_CASES) == shop.before

        for _ in range(2):
            with (
                faults.locked(world, "predictions.pointers"),  # else it may have ended by then
                running(world, PUBLISHING) as process,
            ):
                process.wait_for(lambda: is_connected(world), "the first connection")
                time.sleep(chance.uniform(0, 0.5))
                process.kill()
            assert_nothing_is_half_done(world)

        with (
            faults.held(shop.server, world, faults.IN_THE_COMMIT, ""),
            running(world, PUBLISHING) as process,
        ):
            process.wait_for(lambda: faults.is_held(world, "^commit"), "the commit")
            faults.crash_in_the_commit(shop.server, world, is_recorded=False)
            assert "the warehouse" in process.refusal
        assert_nothing_is_half_done(world)
        assert look(world.reader_url, USE_CASES) == shop.before

        with (
            faults.replicable(shop.server),
            faults.held(shop.server, world, faults.IN_THE_COMMIT, ""),
            running(world, PUBLISHING) as process,
        ):
            process.wait_for(lambda: faults.is_held(world, "^commit"), "the commit")
            faults.crash_in_the_commit(shop.server, world, is_recorded=True)
            assert "the warehouse" in process.refusal
        assert look(world.reader_url, USE_CASES) == shop.after

        with running(world, PUBLISHING) as first, running(world, PUBLISHING) as second:
            assert first.wait() == 0, first.said
            assert second.wait() == 0, second.said

    assert reader.seen.violations == []
    assert reader.seen.polls > 10
    assert reader.seen.outages >= 3
    assert reader.seen.last == 1
    assert_same(published_of(world), shop.published)
    assert_nothing_is_half_done(world)
    assert_nothing_is_left_behind(world)


def test_a_killed_jvm_is_an_error_that_helps_and_leaves_nothing(
    shop: Shop, world: Settings
) -> None:
    features = command(BUILD, first=LAST, last=LAST)
    with running(world, features) as process:
        process.wait_for(lambda: is_working(process), "a task of Spark's")
        java = process.java()
        assert java is not None
        java.kill()
        assert "Spark's JVM has ended while it worked" in process.refusal
    assert_nothing_is_half_done(world)

    with running(world, features) as process:
        assert process.wait() == 0, process.said

    assert_nothing_is_left_behind(world)


def is_working(process: Victim) -> bool:
    """Whether Spark's JVM has Python workers."""
    with suppress(psutil.Error):  # one that ends just now
        java = process.java()
        return java is not None and any(map(is_worker, java.children()))
    return False


def is_worker(child: psutil.Process) -> bool:
    """Whether it is a Python worker; spark-submit can have left the JVM a zombie as well."""
    try:
        return "nightshift.features.daemon" in child.cmdline()
    except psutil.Error:
        return False


def test_scoring_with_a_full_disk_is_refused_and_without_the_model_store_goes_on(
    shop: Shop, world: Settings
) -> None:
    expected = datasets_of(world)
    shutil.rmtree(world.lake_dir / "scores")

    # no file may be larger than 512 bytes
    limited = ("sh", "-c", 'ulimit -f 1 && exec "$@"', "sh", *SCORING)
    with running(world, limited) as process:
        said = process.refusal
    assert "was not written: [Errno 27]" in said
    assert "make room on its disk, and run again" in said
    assert_nothing_is_half_done(world)

    with faults.closed(shop.server, world.mlflow_uri):
        with pytest.raises(SettingError, match="MLflow's store does not answer") as refused:
            model_store.client(world)
        assert "the champion stays" in refused.value.remedy
        for as_of in DATES:
            for use_case in USE_CASES:
                score(world, use_case, as_of)

    assert_same(datasets_of(world), expected)
    assert_nothing_is_left_behind(world)


def test_a_full_disk_of_the_warehouse_is_refused(shop: Shop, world: Settings) -> None:
    disk = shop.server.data_dir.with_name("small")
    with faults.small_disk(disk, "96k") as is_mounted:
        if not is_mounted:
            pytest.skip("this account may not mount a tmpfs")
        owner = shop.server.data_dir.stat()
        os.chown(disk, owner.st_uid, owner.st_gid)
        with shop.server.superuser() as connection, connection.cursor() as cursor:
            cursor.execute(f"create tablespace small location '{disk}'")
            cursor.execute("grant create on tablespace small to nightshift_writer")
            cursor.execute("alter database chaos_world set default_tablespace = small")
        try:
            with running(world, PUBLISHING) as process:
                said = process.refusal
            assert "the warehouse has no room" in said
            assert "make room on the server's disk, and run again" in said
            assert look(world.reader_url, USE_CASES) == shop.before
            faults.grown(disk, "64m")

            publish_nights(world, NIGHTS)

            assert look(world.reader_url, USE_CASES) == shop.after
            assert_same(published_of(world), shop.published)
            assert_nothing_is_left_behind(world)
        finally:
            with shop.server.superuser() as connection, connection.cursor() as cursor:
                cursor.execute("drop database chaos_world with (force)")
                cursor.execute("drop tablespace small")


def test_an_extract_whose_session_ends_may_be_tried_again(world: Settings) -> None:
    slowly = (
        "alter table marts.fct_order_lines rename to lines; create view marts.fct_order_lines as"
    )
    slowly += " select * from marts.lines where pg_sleep(0.001) is not null"
    execute(world.warehouse_url, slowly)
    shutil.rmtree(world.lake_dir / "events")
    refusals: list[Exception] = []

    def read() -> None:
        try:
            extract(world, [CHURN], LAST)
        except SettingError as error:
            refusals.append(error)

    reading = threading.Thread(target=read)
    reading.start()
    until(
        lambda: query(
            world.warehouse_url,
            "select count(*) > 0 from pg_stat_activity where datname = current_database()"
            " and state = 'active' and application_name = '' and query ~* '^copy'"
            " and pg_terminate_backend(pid)",
        ) == [(True,)],
        "the rows on their way",
    )  # fmt: skip
    reading.join()

    (refusal,) = refusals
    assert "the warehouse has ended the connection: " in str(refusal)
    assert may_pass(refusal)
    assert_nothing_is_half_done(world)
    as_before = "drop view marts.fct_order_lines; alter table marts.lines rename to fct_order_lines"
    execute(world.warehouse_url, as_before)
    extract(world, [CHURN], LAST)
    assert_nothing_is_left_behind(world)


def test_another_clock_changes_nothing(shop: Shop, world: Settings) -> None:
    more = faults.clock("+400d")
    if more is None:
        pytest.skip("the package libfaketime is not installed, or does not work here")
    everything = command(BUILD, SCORE, PUBLISH, last=DATES[-1])
    shutil.rmtree(world.lake_dir / "features")
    shutil.rmtree(world.lake_dir / "scores")

    with running(world, everything, **more) as process:
        assert process.wait() == 0, process.said

    assert look(world.reader_url, USE_CASES) == shop.after
    assert datasets_of(world) == datasets_of(shop.base)


FULL: State = {"churn 2011-06-01": ["new", 2, "b"], "churn 2011-06-02": ["new", 1, "c"]}
OLD: State = {"churn 2011-06-01": ["old", 2, "a"]}


@pytest.mark.parametrize(
    ("states", "words"),
    [
        ([OLD, OLD, FULL, FULL], None),
        ([OLD, {}], "gap: churn 2011-06-01 is not there"),
        ([OLD, {"churn 2011-06-01": ["new+old", 2, "x"]}], "mix: churn 2011-06-01 shows new.old"),
        ([OLD, {**FULL, "churn 2011-06-02": ["new", 0, "x"]}], "shows .*'new', 0, 'x'"),
        ([OLD, {"churn 2011-06-01": ["new", 2, "b"]}], "shows .*'new', 2, 'b'.*, before"),
        ([OLD, FULL, OLD], "state 0 was shown again after state 1"),
    ],
    ids=["sound", "gap", "mix", "rows missing", "half of the dates", "back again"],
)
def test_the_judge_of_what_a_reader_sees_can_fail(states: list[State], words: str | None) -> None:
    judge = Judge([OLD, FULL])
    for state in states:
        judge.take(state)

    assert judge.seen.violated == (words is not None)
    if words is not None:
        assert re.search(words, judge.seen.violations[0])


def test_the_reader_tells_of_planted_violations(shop: Shop, world: Settings) -> None:
    with Reader(world.reader_url, USE_CASES, shop.before, shop.after) as reader:
        seen_before = query(world.warehouse_url, "select publication_id from predictions.pointers")
        execute(
            world.warehouse_url,
            f"delete from predictions.churn_p_{seen_before[0][0]} where ctid in (select ctid from"
            f" predictions.churn_p_{seen_before[0][0]} limit 5)",
        )
        time.sleep(0.3)
        execute(world.warehouse_url, "alter view predictions.churn rename to gone")
        time.sleep(0.3)

    assert reader.seen.violated >= 2
    told = " ".join(reader.seen.violations)
    assert "before" in told
    assert "error 42P01" in told


def test_the_checks_after_a_run_can_fail(world: Settings) -> None:
    assert_nothing_is_left_behind(world)

    execute(world.warehouse_url, "create table predictions.churn_p_orphan (a int)")
    with pytest.raises(AssertionError, match=r"tables.*churn_p_orphan"):
        assert_nothing_is_left_behind(world)
    execute(world.warehouse_url, "drop table predictions.churn_p_orphan")

    with closing(psycopg2.connect(world.warehouse_url)) as connection:
        connection.cursor().execute("select pg_advisory_lock(1)")
        with pytest.raises(AssertionError, match="locks"):
            assert_nothing_is_left_behind(world)

    with running(world, ("sleep", "60")):
        until(lambda: bool(processes_of(world)), "the process")
        with pytest.raises(AssertionError, match=r"processes.*sleep"):
            assert_no_process_is_left(world, 0)

    left = lake.dataset_dir(world.lake_dir, "features", "churn", FIRST)
    for file in (temporary_of(world) / "left", left.with_name(f".{left.name}.killed")):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
        with pytest.raises(AssertionError, match=f"temporary files.*{file.name}"):
            assert_nothing_is_left_behind(world)
        file.unlink()

    published = published_of(world)
    execute(world.warehouse_url, "update ops.publications set rows = rows + 1")
    with pytest.raises(AssertionError, match="publications: 6 rows differ"):
        assert_same(published_of(world), published)


def test_what_a_kill_after_the_rename_left_goes_with_a_run_that_changes_nothing(
    world: Settings,
) -> None:
    month = next((world.lake_dir / "events").rglob("month=*"))
    kinds = ("features", "scores")
    datasets = [lake.dataset_dir(world.lake_dir, kind, "churn", FIRST) for kind in kinds]
    left = [each.with_name(f".{each.name}.killed.old") for each in (month, *datasets)]
    for folder in left:
        shutil.copytree(folder.with_name(folder.name[1:].partition(".")[0]), folder)
    assert len(files_left(world)) == 3

    extract(world, [CHURN], LAST)
    (built,) = build_features_of_nights(world, {FIRST: [CHURN]})[FIRST].values()
    assert built.is_reused
    assert not score(world, CHURN, FIRST).is_new

    assert files_left(world) == []


TEMPORARY = """
import os, sys, tempfile
from pathlib import Path
from nightshift.io.lake import keep_temporary_files
keep_temporary_files(Path(sys.argv[1]))
Path(tempfile.mkdtemp(), "rows").write_text("of a person")
if sys.argv[2] == "killed":
    os.kill(os.getpid(), 9)
"""


def test_temporary_files_of_a_killed_process_go_with_the_next(tmp_path: Path) -> None:
    def run(how: str, owner: str = "state") -> list[Path]:
        subprocess.run(
            [sys.executable, "-c", TEMPORARY, str(tmp_path / owner), how],
            env=os.environ | {"TMPDIR": str(tmp_path)}, check=False,
        )  # fmt: skip
        return list(tmp_path.rglob("rows"))

    assert len(run("killed")) == 1
    assert len(run("killed")) == 1  # its own, and not the first one's
    assert len(run("ends well", "another state")) == 1  # which has no part in it
    assert run("ends well") == []
