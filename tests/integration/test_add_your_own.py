"""The guide docs/add-your-own.md, as written: all of its commands, in a copy of the project."""

import os
import re
import shutil
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import psycopg2
import pytest

from nightshift.settings import PROJECT_ROOT, Settings

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

GUIDE = PROJECT_ROOT / "docs" / "add-your-own.md"
PARTS = ("jobs", "dbt_project", "docs", "tests", "pyproject.toml", ".gitignore")
REGISTRY = "jobs/nightshift/use_cases/__init__.py"


def blocks(language: str) -> list[str]:
    """The guide's blocks of one language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", GUIDE.read_text(), re.MULTILINE | re.DOTALL)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the project, committed, so that git tells what the guide's commands change."""
    copy = tmp_path / "project"
    copy.mkdir()
    for part in PARTS:
        source = PROJECT_ROOT / part
        if source.is_dir():
            shutil.copytree(
                source, copy / part, ignore=shutil.ignore_patterns("__pycache__", "integration")
            )
        else:
            shutil.copy(source, copy / part)
    (copy / ".venv").symlink_to(sys.prefix)
    git(copy, "init", "-q")
    git(copy, "add", "-A")
    git(copy, "-c", "user.name=t", "-c", "user.email=t@example.com", "commit", "-qm", "before")
    return copy


def git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=folder, check=True, capture_output=True, text=True
    )
    return done.stdout


def sh(folder: Path, script: str, services: dict[str, str]) -> str:
    """Run a block of the guide in the copy, on the test's services; its output."""
    environment = os.environ | services | {
        "PYTHONPATH": str(folder / "jobs"),
        "PYTHONDONTWRITEBYTECODE": "1",
        "COLUMNS": "200",
    }  # fmt: skip
    done = subprocess.run(
        ["sh", "-eu", "-c", script], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{script}\n{done.stdout[-4000:]}\n{done.stderr[-6000:]}"
    return done.stdout


def test_the_guide_leads_from_files_to_predictions(
    tracked_warehouse: Settings, project: Path
) -> None:
    services = {
        "NIGHTSHIFT_DATABASE_URL": tracked_warehouse.warehouse_url,
        "NIGHTSHIFT_READER_DATABASE_URL": tracked_warehouse.reader_url,
        "NIGHTSHIFT_MLFLOW_TRACKING_URI": tracked_warehouse.mlflow_uri,
    }
    shown = [sh(project, script, services) for script in blocks("sh")]

    assert "2025-04-23" in shown[0]
    assert "new: jobs/nightshift/contracts/machines.odcs.yaml" in shown[1]
    assert f"one line more: {REGISTRY}" in shown[2]
    assert f"one line more: {REGISTRY}" in shown[3]
    assert "machine_failure version 1: promoted" in shown[5]
    assert "repair_hours version 1: promoted" in shown[5]
    assert "rows of plants that happen on as_of or after it" in shown[6]
    # of the three dates one is a Monday
    assert "3 dates: 480 rows are published, 4 of 4 publications are new" in shown[7]

    (query,) = blocks("sql")
    with (
        closing(psycopg2.connect(tracked_warehouse.reader_url)) as connection,
        connection.cursor() as cursor,
    ):
        cursor.execute(query)
        rows = cursor.fetchall()
    assert len(rows) == 5
    scores = [score for _, score, *_ in rows]
    assert scores == sorted(scores, reverse=True)
    for machine, score, _, reason, hours, low, high, days_apart in rows:
        assert re.fullmatch(r"M\d{3}", machine)
        assert 0 < score < 1
        assert reason.startswith("machine_")
        assert 0 <= low <= hours <= high
        assert days_apart == 2
    declared = (project / "jobs/nightshift/feature_groups/machine_failure.py").read_text()
    assert 'name="plant_failures_count_28d"' in declared
    assert 'name="plant_shifts_last_all"' in declared

    # new files, and a line for each use case in one of those that were there
    git(project, "add", "-A")
    changed = git(project, "diff", "--cached", "--numstat", "--diff-filter=a").split("\n")
    assert [line for line in changed if line] == [f"2\t0\t{REGISTRY}"]
    new = git(project, "diff", "--cached", "--name-only", "--diff-filter=A").split()
    words = ("machine", "failures", "sensor", "plants", "repair_hours")
    assert len(new) == 50
    assert all(any(word in path for word in words) for path in new)
    ruff = [str(Path(sys.prefix, "bin", "ruff"))]
    python = [path for path in new if path.endswith(".py")]
    for check in (["check"], ["format", "--check"]):
        done = subprocess.run([*ruff, *check, *python], cwd=project, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


def test_a_command_of_the_guide_that_fails_is_seen(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="no such command"):
        sh(tmp_path, "echo no such command >&2; exit 3", {})
