"""Faults that come at an exact place: in a COPY, before a write, in a commit and after it; and the
services that fail: the server, the JVM, the disk, MLflow's store, the clock."""

import importlib.util
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import psycopg2
from psycopg2.extensions import connection as Connection

from chaos.worlds import database_of, query, until
from nightshift.services.postgres import EmbeddedPostgres
from nightshift.settings import Settings

WAIT_FOR_THE_TEST = """
create function public.wait_for_the_test() returns trigger language plpgsql as $$
begin
    perform pg_advisory_xact_lock(4711);
    return new;
end $$;
"""
# The table of a publication is made and filled by one run: only the server itself can put the
# trigger there in between.
_ON_THE_PUBLICATION = """
create function public.plant_the_trigger() returns event_trigger language plpgsql as $$
declare made record;
begin
    for made in select * from pg_event_trigger_ddl_commands() where command_tag = 'CREATE TABLE'
    loop
        if made.object_identity like 'predictions.{use_case}\\_p\\_%' then
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
IN_THE_COMMIT = """
create constraint trigger wait_here after insert or update on predictions.pointers
    deferrable initially deferred for each row execute function public.wait_for_the_test();
"""
IS_HELD = (
    "select count(*) from pg_stat_activity where datname = current_database()"
    " and wait_event_type = 'Lock' and wait_event = 'advisory' and query ~* %s"
)
"""Backends that stand still at the planted trigger, by what they were told to do."""


def on_the_publication(use_case: str, customer_id: str) -> str:
    """What is planted so that a COPY of the use case's rows stands still at the customer's."""
    found = _ON_THE_PUBLICATION.replace("{use_case}", use_case)
    return found.replace("{customer_id}", customer_id)


@contextmanager
def held(server: EmbeddedPostgres, world: Settings, plant: str, unplant: str) -> Iterator[None]:
    """Whoever writes the planted row stands still, until the block ends or the server does."""
    database = database_of(world.warehouse_url)
    holder = psycopg2.connect(server.url(database, "postgres", server.password))
    holder.autocommit = True
    try:
        with holder.cursor() as cursor:
            cursor.execute("set synchronous_commit = on")
            cursor.execute(WAIT_FOR_THE_TEST + plant)
            cursor.execute("select pg_advisory_lock(4711)")
        yield
    finally:
        holder.close()
        with server.superuser(database) as again, again.cursor() as cursor:
            until(lambda: copies_in_progress(again) == 0, "the COPY to end")
            cursor.execute(unplant + "drop function public.wait_for_the_test() cascade;")


def copies_in_progress(connection: Connection) -> int:
    with connection.cursor() as cursor:
        cursor.execute(
            "select count(*) from pg_stat_progress_copy where datname = current_database()"
        )
        count: int = cursor.fetchone()[0]
    return count


def rows_of_a_held_copy(world: Settings) -> list[int]:
    """How far the COPY has come that stands still at the planted row; [] while none does."""
    found = query(
        world.warehouse_url,
        "select tuples_processed from pg_stat_progress_copy p join pg_stat_activity a using (pid)"
        " where p.datname = current_database() and a.wait_event = 'advisory'",
    )
    return [rows for (rows,) in found]


def is_held(world: Settings, statement: str) -> bool:
    """Whether somebody stands still at the planted trigger, in a statement like this."""
    return query(world.warehouse_url, IS_HELD, statement) != [(0,)]


@contextmanager
def locked(world: Settings, table: str) -> Iterator[None]:
    """Nobody can write to ``table`` while the block runs, and readers can read."""
    with closing(psycopg2.connect(world.warehouse_url)) as holder:
        with holder.cursor() as cursor:
            cursor.execute(f"lock table {table} in exclusive mode")
        yield


def waits_for(world: Settings, table: str) -> bool:
    """Whether somebody waits for a lock of ``table``."""
    waiting = query(
        world.warehouse_url,
        "select count(*) from pg_locks where not granted and relation = %s::regclass"
        " and database = (select oid from pg_database where datname = current_database())",
        table,
    )
    return waiting != [(0,)]


def crash(server: EmbeddedPostgres) -> None:
    """Stop the server at once, its clients and all; nothing is flushed."""
    server.stop("immediate")


def restarted(server: EmbeddedPostgres) -> None:
    """Start the server after a crash, and return once it has recovered."""
    server.start()
    server.wait_until_ready()


@contextmanager
def replicable(server: EmbeddedPostgres) -> Iterator[None]:
    """A commit can wait for a standby while the block runs; the server is started anew for it,
    and after it."""

    def restart(is_it: bool) -> None:
        server.stop()
        server.replicable = is_it
        restarted(server)

    try:
        restart(True)
        yield
    finally:
        restart(False)


def crash_in_the_commit(server: EmbeddedPostgres, world: Settings, *, is_recorded: bool) -> None:
    """Crash the server while it commits a move of pointers, in a block of ``held``.

    Args:
        is_recorded: True where the commit is in the log already, and only its client does not know:
            in a block of ``replicable``.
    """
    if not is_recorded:
        crash(server)
        restarted(server)
        return
    # A commit that waits for a standby is recorded, and lasts; there is no such standby.
    with server.superuser() as connection, connection.cursor() as cursor:
        cursor.execute("alter system set synchronous_standby_names = 'nobody'")
    try:
        with server.superuser() as connection, connection.cursor() as cursor:
            cursor.execute("select pg_reload_conf()")
            database = database_of(world.warehouse_url)
            with server.superuser(database) as inside, inside.cursor() as within:
                within.execute(
                    "select pg_terminate_backend(pid) from pg_locks where locktype = 'advisory'"
                    " and granted and objid = 4711 and database ="
                    " (select oid from pg_database where datname = current_database())"
                )
            until(lambda: _waits_for_a_standby(connection), "the commit to be recorded")
        crash(server)
    finally:
        restarted(server)
        with server.superuser() as connection, connection.cursor() as cursor:
            cursor.execute("set synchronous_commit = local")
            cursor.execute("alter system reset synchronous_standby_names")
            cursor.execute("select pg_reload_conf()")


def _waits_for_a_standby(connection: Connection) -> bool:
    with connection.cursor() as cursor:
        cursor.execute("select count(*) from pg_stat_activity where wait_event = 'SyncRep'")
        return bool(cursor.fetchone() != (0,))


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[bool]:
    """A disk of that size at ``folder``, while the block runs; False where we may not mount one."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, check=False)
    except FileNotFoundError:
        yield False
        return
    if done.returncode != 0:
        yield False
        return
    try:
        yield True
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def grown(folder: Path, size: str) -> None:
    """Make room on a small disk."""
    subprocess.run(["mount", "-o", f"remount,size={size}", str(folder)], check=True)


@contextmanager
def closed(server: EmbeddedPostgres, url: str) -> Iterator[None]:
    """Nobody but the superuser gets into the database, while the block runs."""
    name = database_of(url)
    with server.superuser() as connection, connection.cursor() as cursor:
        cursor.execute(f"alter database {name} with allow_connections false")
        cursor.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where datname = %s", (name,)
        )
    try:
        yield
    finally:
        with server.superuser() as connection, connection.cursor() as cursor:
            cursor.execute(f"alter database {name} with allow_connections true")


def clock(shift: str) -> dict[str, str] | None:
    """Environment in which the wall clock is another, for a process and what it starts.

    Args:
        shift: as ``+400d``, or ``@2025-12-01 00:00:00``.

    Returns:
        None where the package libfaketime is not installed, or does not work on this machine.
    """
    found = importlib.util.find_spec("libfaketime")
    if found is None or found.origin is None:
        return None
    library = Path(found.origin).parent / "vendor" / "libfaketime" / "src" / "libfaketime.so.1"
    more = {
        "LD_PRELOAD": str(library),
        "FAKETIME": shift,
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",  # waits are by it, and would not end
        "FAKETIME_SKIP_CMDS": "java",
    }
    tried = [sys.executable, "-c", "import time; time.sleep(0.01); print(time.time())"]
    done = subprocess.run(tried, env=more, capture_output=True, text=True, check=False)
    is_other = done.returncode == 0 and abs(float(done.stdout) - time.time()) > 3600
    return more if is_other else None
