"""Service processes: only our own are ever stopped."""

import json
import os
import sys
from pathlib import Path

import psutil
import pytest

from nightshift.errors import NightshiftError
from nightshift.services.postgres import free_port, log_tail
from nightshift.services.processes import ServiceProcess, stop_all

SLEEP = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(60)"]


def test_start_is_idempotent_and_stop_stops(tmp_path: Path) -> None:
    service = ServiceProcess("sleeper", tmp_path)
    service.start(SLEEP, os.environ, tmp_path)
    pid = json.loads(service.pid_file.read_text())["pid"]
    service.start(SLEEP, os.environ, tmp_path)
    assert json.loads(service.pid_file.read_text())["pid"] == pid
    assert stop_all([service]) == ["sleeper"]
    assert not service.is_running()
    assert stop_all([service]) == []


def test_children_are_stopped_too(tmp_path: Path) -> None:
    family = (
        "import subprocess, sys, time;"
        "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'],"
        " start_new_session=True); print(p.pid, flush=True); time.sleep(60)"
    )
    service = ServiceProcess("family", tmp_path)
    service.start([sys.executable, "-c", family], os.environ, tmp_path)
    while not (child := service.log_file.read_text().strip()):
        assert service.is_running()
    stop_all([service], seconds=1)
    assert not psutil.pid_exists(int(child))


def test_a_reused_pid_is_not_ours(tmp_path: Path) -> None:
    service = ServiceProcess("stale", tmp_path)
    service.pid_file.parent.mkdir()
    # our own pid with another start time: were it taken for the service, we would stop ourselves
    service.pid_file.write_text(json.dumps({"pid": os.getpid(), "create_time": 1.0}))
    assert not service.is_running()
    assert stop_all([service]) == []


@pytest.mark.parametrize("text", ["", "not json", "{}", '{"pid": 999999999, "create_time": 1}'])
def test_a_broken_pid_file_means_not_running(tmp_path: Path, text: str) -> None:
    service = ServiceProcess("broken", tmp_path)
    service.pid_file.parent.mkdir()
    service.pid_file.write_text(text)
    assert not service.is_running()


def test_no_free_port_is_an_error_that_names_the_settings() -> None:
    with pytest.raises(NightshiftError, match="NIGHTSHIFT_POSTGRES_PORT"):
        free_port(20000, tries=0)


def test_log_tail(tmp_path: Path) -> None:
    (tmp_path / "a.log").write_text("1\n2\n3\n")
    assert log_tail(tmp_path / "a.log", lines=2) == "2\n3"
    assert log_tail(tmp_path / "none.log") == "(no log was written)"
