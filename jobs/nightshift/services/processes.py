"""Long-running processes that outlive the command which starts them, each in a group of its own."""

import json
import logging
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

logger = logging.getLogger(__name__)

# A Popen that is collected while its process lives warns; these processes are meant to live on.
_started: list[subprocess.Popen[bytes]] = []


class ServiceProcess:
    """One process, known by its pid file, which also holds the start time: pids are reused.

    Args:
        name: e.g. ``airflow-scheduler``; names the files.
        state_dir: pid file and log go to ``<state_dir>/run`` and ``<state_dir>/logs``.
    """

    def __init__(self, name: str, state_dir: Path) -> None:
        self.name = name
        self.pid_file = state_dir / "run" / f"{name}.pid"
        self.log_file = state_dir / "logs" / f"{name}.log"

    def process(self) -> psutil.Process | None:
        """The live process, or None."""
        try:
            noted = json.loads(self.pid_file.read_text())
            process = psutil.Process(noted["pid"])
            is_ours = abs(process.create_time() - noted["create_time"]) < 1
            is_alive = process.status() != psutil.STATUS_ZOMBIE
        except (FileNotFoundError, ValueError, KeyError, psutil.Error):
            return None
        return process if is_ours and is_alive else None

    def is_running(self) -> bool:
        """Whether the process that we started lives."""
        return self.process() is not None

    def start(self, command: Sequence[str], environment: Mapping[str, str], cwd: Path) -> None:
        """Start ``command`` in a session of its own, its output in the log. Safe when it runs."""
        if self.is_running():
            return
        self.pid_file.parent.mkdir(parents=True, exist_ok=True)
        self.log_file.parent.mkdir(parents=True, exist_ok=True)
        with self.log_file.open("wb") as log:
            popen = subprocess.Popen(
                command,
                env=dict(environment),
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        _started.append(popen)
        created = psutil.Process(popen.pid).create_time()
        self.pid_file.write_text(json.dumps({"pid": popen.pid, "create_time": created}))


def stop_all(services: Sequence[ServiceProcess], seconds: float = 20) -> list[str]:
    """Stop the services and what they started: SIGTERM, and SIGKILL after ``seconds``.

    Returns:
        The names of those that ran.
    """
    stopped: list[str] = []
    processes: list[psutil.Process] = []
    for service in services:
        process = service.process()
        if process is not None:
            stopped.append(service.name)
            with suppress(psutil.Error):
                processes += process.children(recursive=True)
            processes.append(process)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
    _, alive = psutil.wait_procs(processes, timeout=seconds)
    for process in alive:
        logger.warning("pid %d did not stop within %.0f s: killing it", process.pid, seconds)
        with suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(alive, timeout=5)
    for popen in _started:
        popen.poll()
    for service in services:
        service.pid_file.unlink(missing_ok=True)
    return stopped
