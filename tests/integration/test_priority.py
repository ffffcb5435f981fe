"""Loads give way to readers where that is theirs to command, and are none the worse elsewhere."""

import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import psycopg2
import pytest
from psycopg2.extensions import connection as Connection

from nightshift.io.priority import NICE, lower_server, lower_thread
from nightshift.io.warehouse import session
from nightshift.settings import Settings

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(sys.platform != "linux", reason="of Linux only"),
]
NOBODY = 65534


def niceness(pid: int) -> int:
    return os.getpriority(os.PRIO_PROCESS, pid)


def of_server(connection: Connection) -> tuple[int, str]:
    """Its niceness, and that of its session where the kernel knows such."""
    pid = connection.get_backend_pid()
    file = Path(f"/proc/{pid}/autogroup")
    return niceness(pid), file.read_text().split()[-1] if file.exists() else ""


def in_a_thread[T](work: Callable[[], T]) -> T:
    found: list[T] = []
    thread = threading.Thread(target=lambda: found.append(work()))
    thread.start()
    thread.join()
    return found[0]


def test_a_loads_server_process_gives_way_and_its_readers_do_not(warehouse: Settings) -> None:
    with session(warehouse) as load, session(warehouse) as reader:
        before = of_server(reader)
        assert lower_server(load)
        assert of_server(load) == (NICE, str(NICE) if before[1] else "")
        assert of_server(reader) == before


def test_a_thread_and_those_that_it_starts_give_way_and_its_process_does_not() -> None:
    def own() -> int:
        return niceness(threading.get_native_id())

    def lowered() -> tuple[int, int]:
        lower_thread()
        return own(), in_a_thread(own)

    before = own()
    assert in_a_thread(lowered) == (max(NICE, before), max(NICE, before))
    assert own() == before


@contextmanager
def forwarded(url: str) -> Iterator[str]:
    """The server behind another port of this machine, as one of another machine may be."""
    server = urlsplit(url)
    with socket.create_server(("127.0.0.1", 0)) as door:

        def pass_on(source: socket.socket, target: socket.socket) -> None:
            while data := source.recv(1 << 16):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

        def serve() -> None:
            ours, _ = door.accept()
            with ours, socket.create_connection((server.hostname, server.port)) as theirs:
                back = threading.Thread(target=pass_on, args=(theirs, ours))
                back.start()
                pass_on(ours, theirs)
                back.join()

        thread = threading.Thread(target=serve)
        thread.start()
        yield server._replace(
            netloc=f"{server.username}:{server.password}@127.0.0.1:{door.getsockname()[1]}"
        ).geturl()
        thread.join()


def test_a_process_that_is_not_known_to_be_the_servers_is_left_alone(warehouse: Settings) -> None:
    with (
        forwarded(warehouse.warehouse_url) as url,
        closing(psycopg2.connect(url)) as connection,
    ):
        before = of_server(connection)
        assert not lower_server(connection)
        assert of_server(connection) == before


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_what_is_not_permitted_is_not_done_and_no_error(warehouse: Settings) -> None:
    with session(warehouse) as connection:
        before = of_server(connection)
        os.seteuid(NOBODY)
        try:
            assert not lower_server(connection)
        finally:
            os.seteuid(0)
        assert of_server(connection) == before
        with connection.cursor() as cursor:
            cursor.execute("select 1")
