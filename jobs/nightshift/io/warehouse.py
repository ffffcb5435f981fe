"""Connections to the warehouse, its fixed schema, locks, and the record of runs."""

import hashlib
import json
import re
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import date
from importlib.resources import files
from typing import Any

import psycopg2
from psycopg2.errors import DiskFull
from psycopg2.extensions import connection as Connection
from psycopg2.extras import Json

from nightshift.errors import NightshiftError, SettingError
from nightshift.io.lake import keep_temporary_files
from nightshift.settings import Settings

CONNECT_SECONDS = 10
_HMAC_BLOCK_BYTES = 64


_LOST = re.compile(
    r"server closed the connection unexpectedly|terminating connection|connection already closed"
    r"|connection to server (?:at|on) |the database system is |could not (?:receive data from|send"
    r" data to) server|could not translate host name|no connection to the server"
    r"|SSL connection has been closed|SSL SYSCALL error|SSL error: unexpected eof"
)
"""How libpq and the server say so, whichever library tells it."""


def require_server(told: str) -> None:
    """Refuse to take a lost server for something else, by what a library has told of an error.

    Raises:
        SettingError: when the server went away; from an error that may pass.
    """
    if found := _LOST.search(told):
        before, after = told[: found.start()], told[found.start() :]
        line = (before[before.rfind("\n") + 1 :] + after.partition("\n")[0]).strip()
        raise SettingError(
            f"the warehouse has ended the connection: {line}",
            "see the server's log, and run again once it answers: `make status`",
        ) from psycopg2.OperationalError(line)


@contextmanager
def session(settings: Settings) -> Iterator[Connection]:
    """A connection to the warehouse as ``nightshift_writer``; the caller commits.

    Raises:
        SettingError: when no server answers at the URL, or it ends the connection in the block.
        NightshiftError: when its disk is full.
    """
    try:
        connection = psycopg2.connect(
            settings.warehouse_url, application_name="nightshift", connect_timeout=CONNECT_SECONDS
        )
    except psycopg2.OperationalError as error:
        raise SettingError(
            f"the warehouse does not answer: {str(error).strip()}",
            "run `make up`, or correct NIGHTSHIFT_DATABASE_URL",
        ) from error
    try:
        yield connection
    except DiskFull as error:
        raise NightshiftError(
            f"the warehouse has no room: {str(error).strip()}",
            "make room on the server's disk, and run again; what was begun is rolled back",
        ) from error
    except (psycopg2.OperationalError, psycopg2.InterfaceError) as error:
        if not connection.closed:
            raise
        raise SettingError(
            f"the warehouse has ended the connection: {str(error).strip()}",
            "see the server's log, and run again once it answers: `make status`",
        ) from error
    finally:
        connection.close()


@contextmanager
def connect(settings: Settings) -> Iterator[Connection]:
    """One transaction on the warehouse: commit at the end, or roll back.

    Raises:
        SettingError: when no server answers at the URL.
    """
    with session(settings) as connection, connection:
        yield connection


def pseudonym(settings: Settings, value: str) -> str:
    """What stands for a landed personal value in marts, lake and predictions."""
    with connect(settings) as connection, connection.cursor() as cursor:
        cursor.execute("select predictions.pseudonym(%s)", (value,))
        return str(cursor.fetchone()[0])


def migrate(settings: Settings) -> None:
    """Create what is missing of the fixed tables (schema.sql) and the key of the pseudonyms.

    Safe at any time, and at once. Where this very schema.sql was applied last, to the same roles,
    nothing is done, and no lock is waited for.
    """
    statements = files("nightshift.io").joinpath("schema.sql").read_text()
    with connect(settings) as connection, connection.cursor() as cursor:
        cursor.execute(
            "select coalesce(string_agg(rolname, ', ' order by rolname), 'nobody') from pg_roles"
            " where rolname in ('nightshift_reader', 'nightshift_auditor')"
        )
        (roles,) = cursor.fetchone()
        mark = f"schema.sql {hashlib.sha256(statements.encode()).hexdigest()}, read by {roles}"
        applied = "select obj_description(to_regnamespace('ops'), 'pg_namespace')"
        cursor.execute(applied)
        if cursor.fetchone() == (mark,):
            return
        cursor.execute("select pg_advisory_xact_lock(hashtext('nightshift.migrate'))")
        cursor.execute(applied)
        if cursor.fetchone() != (mark,):
            cursor.execute(statements)
            _make_pseudonym_key(cursor)
            cursor.execute(f"comment on schema ops is '{mark}'")


def _make_pseudonym_key(cursor: Any) -> None:
    key = secrets.token_bytes(32).ljust(_HMAC_BLOCK_BYTES, b"\0")
    inner_key, outer_key = (bytes(byte ^ pad for byte in key) for pad in (0x36, 0x5C))
    cursor.execute(
        "insert into ops.pseudonym_keys (inner_key, outer_key) values (%s, %s)"
        " on conflict do nothing",
        (inner_key, outer_key),
    )


def lock(connection: Connection, name: str) -> None:
    """Hold ``name`` until the transaction ends; a second caller waits."""
    with connection.cursor() as cursor:
        cursor.execute("select pg_advisory_xact_lock(hashtextextended(%s, 0))", (name,))


@contextmanager
def holding(
    settings: Settings, exclusive: Iterable[str] = (), shared: Iterable[str] = ()
) -> Iterator[None]:
    """Hold named locks for the length of the block; a killed process lets go of them.

    Names are taken in alphabetical order, so that two callers never wait for each other.
    """
    wanted = sorted([(name, "") for name in exclusive] + [(name, "_shared") for name in shared])
    with connect(settings) as connection, connection.cursor() as cursor:
        # the connection only holds the locks, and idles while the work is done elsewhere
        cursor.execute("set local idle_in_transaction_session_timeout = 0")
        for name, mode in wanted:
            cursor.execute(f"select pg_advisory_xact_lock{mode}(hashtextextended(%s, 0))", (name,))
        yield


class Run:
    """An open row of ``ops.runs``; what is put into ``result`` is kept with it."""

    def __init__(self, run_id: int) -> None:
        self.run_id = run_id
        self.result: dict[str, Any] = {}


@contextmanager
def recorded_run(
    settings: Settings, stage: str, as_of: date, use_case: str | None = None
) -> Iterator[Run]:
    """Record a stage's run in ``ops.runs``: running, then succeeded with its result, or failed.

    Its temporary files, and those of what follows in this process, do not outlive a kill for long.
    """
    keep_temporary_files(settings.state_dir)
    migrate(settings)
    with connect(settings) as connection, connection.cursor() as cursor:
        cursor.execute(
            "insert into ops.runs (stage, use_case, as_of, status) values (%s, %s, %s, 'running')"
            " returning run_id",
            (stage, use_case, as_of),
        )
        run = Run(cursor.fetchone()[0])
    try:
        yield run
    except BaseException as error:
        message = error.what if isinstance(error, NightshiftError) else repr(error)
        _close_run(settings, run, "failed", message)
        raise
    _close_run(settings, run, "succeeded", None)


def _close_run(settings: Settings, run: Run, status: str, error: str | None) -> None:
    with connect(settings) as connection, connection.cursor() as cursor:
        cursor.execute(
            "update ops.runs set status = %s, ended_at = clock_timestamp(), result = %s, error = %s"
            " where run_id = %s",
            (
                status,
                Json(run.result, dumps=lambda o: json.dumps(o, default=str)),
                error,
                run.run_id,
            ),
        )
