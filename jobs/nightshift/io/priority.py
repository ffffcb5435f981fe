"""Who loads gives way to who reads: less of the processors for the threads and the server processes
of a load, where others want them too. A load that has them to itself is as fast as before.
"""

import os
import socket
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

from psycopg2.extensions import connection as Connection

NICE = 15
"""A thirtieth of the share of a process that has not given way. With 10 a reader in a tight loop
still waited 11 ms at most for a core, with 15 not 7, on two cores.
"""
_PROC = Path("/proc")
_TRIES, _BETWEEN_TRIES_SECONDS = 3, 0.11


def lower_thread() -> None:
    """Lower the priority of the calling thread, and of those that it starts from now on, for good.

    Of Linux only: elsewhere a thread has no priority of its own.
    """
    if sys.platform == "linux":
        with suppress(OSError):
            _lower(threading.get_native_id())


def lower_server(connection: Connection) -> bool:
    """Lower the priority of the connection's server process, until the connection ends.

    Where it runs on this machine and under an account that we may command, and on Linux; otherwise
    nothing is changed.

    Returns:
        Whether it was lowered.
    """
    if sys.platform != "linux":
        return False
    pid = connection.get_backend_pid()
    try:
        if not _serves(pid, connection):
            return False
        _lower(pid)
        _lower_session(pid)
    except OSError:
        return False
    return True


def _lower(pid: int) -> None:
    os.setpriority(os.PRIO_PROCESS, pid, max(NICE, os.getpriority(os.PRIO_PROCESS, pid)))


def _serves(pid: int, connection: Connection) -> bool:
    """Whether the process of this machine is the connection's: by our end's address in its title.

    The server may be another machine's, behind a port of this one.
    """
    with socket.socket(fileno=os.dup(connection.fileno())) as ours:
        if ours.family not in (socket.AF_INET, socket.AF_INET6):
            return False
        host, port, *_ = ours.getsockname()
    title = (_PROC / str(pid) / "cmdline").read_bytes()
    return title.startswith(b"postgres: ") and f" {host}({port}) ".encode() in title


def _lower_session(pid: int) -> None:
    """Each server process is a session of its own, and where the kernel shares the processors out
    between sessions (sched(7), autogroup), its niceness alone is of no effect."""
    file = _PROC / str(pid) / "autogroup"
    for _ in range(_TRIES):
        try:
            file.write_text(str(NICE))
        except FileNotFoundError:
            return
        except BlockingIOError:  # the kernel takes one change in a tenth of a second
            time.sleep(_BETWEEN_TRIES_SECONDS)
        else:
            return
