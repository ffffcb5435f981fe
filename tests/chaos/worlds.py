"""Warehouses, lakes and model stores that can be disturbed, and the commands that run on them."""

import atexit
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import psycopg2

from nightshift.io import lake
from nightshift.services.postgres import EmbeddedPostgres
from nightshift.settings import PROJECT_ROOT, Settings, load_settings

WRITER, READER = "nightshift_writer", "nightshift_reader"
_SYSTEM_TEMPORARY = tempfile.gettempdir()  # before a stage in this process has changed it
PATIENCE = 180.0
"""Seconds after which a line or a state that never comes is a failure."""


def settings_of(
    server: EmbeddedPostgres, name: str, root: Path, landing: Path, mlflow: str
) -> Settings:
    """Of the database ``name``, and of a state folder of that name under ``root``.

    Args:
        mlflow: database of MLflow's store.
    """
    return load_settings(
        _env_file=None,
        state_dir=root / name,
        landing=landing,
        database_url=server.url(name, WRITER, server.password),
        reader_database_url=server.url(name, READER, server.password),
        mlflow_tracking_uri=server.url(
            mlflow, WRITER, server.password, "postgresql+psycopg2"
        ),
        spark_master="local[2]",
        spark_driver_memory="1g",
    )  # fmt: skip


def copied(server: EmbeddedPostgres, world: Settings, name: str) -> Settings:
    """A second world with the same rows, lake and models. Nobody may be connected to the first."""
    mlflow = f"{name}_mlflow"
    server.ensure_database(name, WRITER, READER, template=database_of(world.warehouse_url))
    server.ensure_database(mlflow, WRITER, template=database_of(world.mlflow_uri))
    with server.superuser() as connection, connection.cursor() as cursor:
        # A copied sequence has numbers to give out before it writes to the log again, and the copy
        # tells the log only of where it stood: a crash would give them out twice.
        cursor.execute("checkpoint")
        # Of so few rows the server would log a load after all, as the lesser work; a real
        # publication's are not logged, but on the disk when they are committed.
        cursor.execute(f"alter database {name} set wal_skip_threshold = 0")
    root = world.state_dir.parent
    shutil.copytree(world.state_dir, root / name)
    return settings_of(server, name, root, world.landing_folder, mlflow)


def removed(server: EmbeddedPostgres, world: Settings) -> None:
    """Drop the world's databases and its folder."""
    with server.superuser() as connection, connection.cursor() as cursor:
        for url in (world.warehouse_url, world.mlflow_uri):
            cursor.execute(f"drop database if exists {database_of(url)} with (force)")
    shutil.rmtree(world.state_dir)
    shutil.rmtree(temporary_of(world), ignore_errors=True)


def make_model_store(server: EmbeddedPostgres, name: str) -> None:
    """A database with MLflow's tables: making them takes seconds, copying them does not."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    server.ensure_database(name, WRITER)
    uri = server.url(name, WRITER, server.password, "postgresql+psycopg2")
    SqlAlchemyStore(uri, "file:///nonexistent").engine.dispose()


def database_of(url: str) -> str:
    """The name of the database that a URL leads to."""
    return url.rsplit("/", 1)[1]


def temporary_of(world: Settings) -> Path:
    """What is the system's folder of temporary files to the world's commands.

    Sockets are among them, so its path is short.
    """
    return _temporary_root() / lake.digest(str(world.state_dir))[:6]


@cache
def _temporary_root() -> Path:
    root = Path(tempfile.mkdtemp(prefix="chaos-", dir=_SYSTEM_TEMPORARY))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    return root


def environment(world: Settings) -> dict[str, str]:
    """What makes the command line use these settings, and lines that are not wrapped."""
    temporary = temporary_of(world)
    temporary.mkdir(parents=True, exist_ok=True)
    return os.environ | {
        "NIGHTSHIFT_STATE_DIR": str(world.state_dir),
        "NIGHTSHIFT_LANDING": str(world.landing),
        "NIGHTSHIFT_LAKE": str(world.lake_dir),
        "NIGHTSHIFT_DATABASE_URL": world.warehouse_url,
        "NIGHTSHIFT_READER_DATABASE_URL": world.reader_url,
        "NIGHTSHIFT_MLFLOW_TRACKING_URI": world.mlflow_uri,
        "NIGHTSHIFT_SPARK_MASTER": world.spark_master,
        "NIGHTSHIFT_SPARK_DRIVER_MEMORY": world.spark_driver_memory,
        "PYTHONPATH": str(PROJECT_ROOT / "jobs"),
        "COLUMNS": "200",
        "TMPDIR": str(temporary),
        "JAVA_TOOL_OPTIONS": f"-Djava.io.tmpdir={temporary} -XX:-UsePerfData",
    }


def nightshift(world: Settings, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command line, run to its end."""
    return subprocess.run(
        [sys.executable, "-m", "nightshift.cli", *arguments],
        env=environment(world), capture_output=True, text=True, check=False,
    )  # fmt: skip


class Victim:
    """A command in a process group of its own, which can be killed whole: Spark's JVM included."""

    def __init__(
        self,
        world: Settings,
        command: tuple[str, ...],
        more: Mapping[str, str] | None = None,
    ) -> None:
        self.process = subprocess.Popen(
            command, env=environment(world) | (more or {}), start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self._lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        with suppress(ValueError):  # closed, as the victim's end was not waited for
            self._lines.extend(iter(self.process.stderr.readline, ""))

    @property
    def said(self) -> str:
        """Everything on stderr so far."""
        return "".join(list(self._lines))

    @property
    def refusal(self) -> str:
        """What it has said that has failed as it should, in one line: what was wrong, what to do.

        Raises:
            AssertionError: when it has ended in another way.
        """
        assert self.wait() == 1, f"exit code {self.process.returncode}:\n{self.said}"
        # a log that quotes a library's traceback indents it
        assert "\nTraceback" not in self.said, f"a traceback:\n{self.said}"
        refused = " ".join(self.said.rpartition("refused: ")[2].split())
        assert "→" in refused, f"no error that helps:\n{self.said}"
        return refused

    def says(self, words: str) -> bool:
        return any(words in line for line in list(self._lines))

    @property
    def is_running(self) -> bool:
        return self.process.poll() is None

    def wait_for(self, happens: Callable[[], bool], what: str) -> None:
        """Until it happens.

        Raises:
            AssertionError: when it does not, and the victim has ended or ``PATIENCE`` has.
        """
        deadline = time.monotonic() + PATIENCE
        while not happens():
            if (not self.is_running and not happens()) or time.monotonic() > deadline:
                raise AssertionError(f"{what} never came:\n{self.said}")
            time.sleep(0.02)

    def wait(self, seconds: float = PATIENCE) -> int:
        """Its exit code, once it has ended by itself."""
        code = self.process.wait(seconds)
        self._reader.join(timeout=10)
        return code

    def java(self) -> psutil.Process | None:
        """Spark's JVM, once there is one."""
        with suppress(psutil.Error):
            for child in psutil.Process(self.process.pid).children(recursive=True):
                if child.name() == "java":
                    return child
        return None

    def kill(self) -> None:
        """The whole group, which must be running."""
        assert self.is_running, "it ended before it could be killed"
        self.end()
        assert self.process.returncode == -signal.SIGKILL

    def kill_alone(self) -> None:
        """The process itself; what it has started is to notice."""
        self.process.kill()
        self.process.wait()

    def end(self) -> None:
        """Kill what is left, and let go of it."""
        if self.is_running:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._reader.join(timeout=10)
        assert self.process.stderr is not None
        self.process.stderr.close()


@contextmanager
def victim(
    world: Settings, *arguments: str, more: Mapping[str, str] | None = None
) -> Iterator[Victim]:
    """``nightshift`` with these arguments; killed at the block's end if it runs still."""
    command = (sys.executable, "-m", "nightshift.cli", *arguments)
    process = Victim(world, command, more)
    try:
        yield process
    finally:
        process.end()


def processes_of(world: Settings) -> list[psutil.Process]:
    """Every process that runs with the world's settings."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get("NIGHTSHIFT_STATE_DIR") == str(world.state_dir):
                found.append(process)
    return found


def until(condition: Callable[[], bool], what: str, seconds: float = PATIENCE) -> None:
    """Wait for the condition.

    Raises:
        AssertionError: when it does not come.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.02)


def execute(url: str, statement: str, *parameters: object) -> None:
    """One statement in a transaction of its own."""
    with closing(psycopg2.connect(url)) as connection, connection, connection.cursor() as cursor:
        cursor.execute(statement, parameters or None)


def query(url: str, statement: str, *parameters: object) -> list[tuple[Any, ...]]:
    """The rows of one query in a transaction of its own."""
    with closing(psycopg2.connect(url)) as connection, connection, connection.cursor() as cursor:
        cursor.execute(statement, parameters or None)
        return list(cursor.fetchall())
