"""What the scheduler imports before it forks the processes of tasks."""

import runpy
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from nightshift.settings import PROJECT_ROOT

FILE = PROJECT_ROOT / "plugins" / "warm_start.py"
CHEAP = "colorsys"


@pytest.fixture
def plugin() -> Iterator[dict[str, Any]]:
    """The plugin's names, with one cheap library to import, which nothing has imported yet."""
    found = runpy.run_path(str(FILE))
    found["ImportBeforeFork"].on_starting.__globals__["LIBRARIES"] = ("no_such_library", CHEAP)
    sys.modules.pop(CHEAP, None)
    yield found
    sys.modules.pop(CHEAP, None)


@pytest.mark.parametrize(
    ("component", "executor", "is_warm"),
    [
        ("scheduler", "LocalExecutor", True),
        ("scheduler", "CeleryExecutor", False),
        ("triggerer", "LocalExecutor", False),
    ],
)
def test_the_scheduler_whose_forks_the_tasks_are_imports_and_nobody_else(
    plugin: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    component: str,
    executor: str,
    is_warm: bool,
) -> None:
    monkeypatch.setattr(sys, "argv", ["airflow", component])
    monkeypatch.setenv("AIRFLOW__CORE__EXECUTOR", executor)

    plugin["ImportBeforeFork"]().on_starting(None)

    assert (CHEAP in sys.modules) == is_warm


def test_no_library_starts_a_thread_when_it_is_imported() -> None:
    # a fork has the locks of threads that it does not have
    script = (
        "import importlib, sys, threading\n"
        "for name in sys.argv[1:]: importlib.import_module(name)\n"
        "sys.exit(str(threading.enumerate()) if threading.active_count() > 1 else 0)"
    )
    libraries = runpy.run_path(str(FILE))["LIBRARIES"]
    command = [sys.executable, "-c", script, *libraries]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 0, done.stderr
