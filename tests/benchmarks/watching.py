"""A process of its own, and what it and all that it starts hold in memory meanwhile."""

import os
import subprocess
import threading
from collections.abc import Sequence
from typing import NamedTuple

import psutil

EVERY_SECONDS = 0.5


class Ended(NamedTuple):
    """A process that has ended well.

    Attributes:
        output: what it printed.
        cpu_seconds: of all processes; 0 where they were not watched.
        peak_bytes: that they held at most; 0 where they were not watched.
    """

    output: str
    cpu_seconds: float
    peak_bytes: int


def run(command: Sequence[str], *, is_watched: bool = True, **environment: str) -> Ended:
    """Run a command; watch what its tree of processes holds, or not.

    To ask for that costs a night of a second a tenth of its time.

    Raises:
        SystemExit: with the end of its errors, when it fails.
    """
    child = psutil.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | environment,
    )  # fmt: skip
    peak, cpu, ended = 0, dict[int, float](), threading.Event()

    def watch() -> None:
        nonlocal peak, cpu
        while not ended.wait(EVERY_SECONDS):
            held, used = _resources(child)
            peak, cpu = max(peak, held), cpu | used

    watcher = threading.Thread(target=watch)
    if is_watched:
        watcher.start()
    try:
        output, errors = child.communicate()
    finally:
        ended.set()
        if is_watched:
            watcher.join()
        for process in _tree(child):
            process.kill()
    if child.returncode != 0:
        raise SystemExit(f"{' '.join(command[:4])} … failed:\n{errors[-4000:]}")
    return Ended(output, sum(cpu.values()), peak)


def _tree(root: psutil.Process) -> list[psutil.Process]:
    try:
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _resources(root: psutil.Process) -> tuple[int, dict[int, float]]:
    """Bytes that the tree holds (of a page that two share, each has half), CPU seconds by pid."""
    held, used = 0, {}
    for process in _tree(root):
        try:
            held += process.memory_full_info().pss
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        used[process.pid] = times.user + times.system
    return held, used
