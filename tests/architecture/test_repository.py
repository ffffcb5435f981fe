"""What is in the repository fits together, and belongs to no machine."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# built from parts, so that this file does not find itself
MACHINE_PATH = re.compile("(?<![A-Za-z0-9_.-])/(?:" + "|".join(("home", "Users", "root")) + r")/\w")
INDEX_URL = re.compile("(?:index-url|find-links|trusted-host)")


def tracked() -> list[Path]:
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip("not a git checkout")
    return [path for name in done.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def test_requirements_are_those_of_the_lock() -> None:
    lock = tomllib.loads((ROOT / "uv.lock").read_text())
    locked = {package["name"]: package["version"] for package in lock["package"]}
    pinned = dict(
        line.split(";")[0].strip().split("==")
        for line in (ROOT / "requirements.txt").read_text().splitlines()
    )
    wrong = {name: version for name, version in pinned.items() if locked[name] != version}
    assert wrong == {}, "run `make requirements`"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    declared = [*project["project"]["dependencies"], *project["dependency-groups"]["dev"]]
    names = {re.split(r"[=<>\[; ]", line, maxsplit=1)[0] for line in declared}
    assert names <= pinned.keys(), "run `make requirements`"


def test_requirements_name_no_package_index() -> None:
    assert not INDEX_URL.search((ROOT / "requirements.txt").read_text())
    assert "://" not in (ROOT / "requirements.txt").read_text()


def test_no_file_names_a_path_of_a_machine() -> None:
    found = []
    for path in tracked():
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        found += [f"{path.relative_to(ROOT)}: {m.group()}" for m in MACHINE_PATH.finditer(text)]
    assert found == []


@pytest.mark.parametrize(
    ("text", "is_found"),
    [
        ("open('" + "/home" + "/ann/data')", True),
        ("cd " + "/root" + "/nightshift", True),
        ("https://example.com" + "/home" + "/page", False),
        ("/usr/lib/jvm", False),
    ],
)
def test_the_check_of_paths_can_fail(text: str, is_found: bool) -> None:
    assert bool(MACHINE_PATH.search(text)) is is_found


def test_every_make_target_explains_itself() -> None:
    makefile = (ROOT / "Makefile").read_text()
    phony = set(re.findall(r"^\.PHONY: (\S+)$", makefile, flags=re.MULTILINE))
    explained = set(re.findall(r"^([a-z-]+):.* ## ", makefile, flags=re.MULTILINE))
    assert phony == explained
