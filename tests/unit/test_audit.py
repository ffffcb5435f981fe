"""The audit of packages: what it fails for, what is left until a day, and when there was none."""

import runpy
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "audit.py"
AUDIT = runpy.run_path(str(SCRIPT))
TODAY = date(2026, 3, 1)
FLAW = {"id": "PYSEC-1", "aliases": ["CVE-1"], "fix_versions": ["1.1"]}


def report(*flaws: dict[str, Any]) -> dict[str, Any]:
    return {
        "dependencies": [
            {"name": "sound", "version": "2.0", "vulns": []},
            {"name": "ill", "version": "1.0", "vulns": list(flaws)},
            {"name": "own", "skip_reason": "not on PyPI"},
        ]
    }


def left(until: date, name: str = "CVE-1") -> list[dict[str, Any]]:
    return [{"id": name, "until": until, "reason": "we do not call it"}]


def test_a_known_flaw_is_to_be_acted_on() -> None:
    bad, told = AUDIT["judge"](report(FLAW), [], TODAY)
    assert bad == ["ill 1.0: PYSEC-1, fixed in 1.1"]
    assert told == ["not audited: own: not on PyPI"]


@pytest.mark.parametrize("name", ["PYSEC-1", "CVE-1"])
def test_one_that_is_left_counts_again_the_day_after(name: str) -> None:
    bad, told = AUDIT["judge"](report(FLAW), left(TODAY, name), TODAY)
    assert bad == []
    assert "left until 2026-03-01: ill 1.0: PYSEC-1, fixed in 1.1" in told
    bad, _ = AUDIT["judge"](report(FLAW), left(date(2026, 2, 28), name), TODAY)
    assert bad == ["ill 1.0: PYSEC-1, fixed in 1.1; was left until 2026-02-28"]


def test_what_is_left_and_was_repaired_is_told() -> None:
    bad, told = AUDIT["judge"](report(), left(TODAY), TODAY)
    assert (bad, told[-1]) == ([], "left, and there no more: CVE-1")


@pytest.mark.parametrize(
    "packages", [[], [{"name": "a", "skip_reason": "not found on PyPI"}]], ids=["none", "skipped"]
)
def test_a_report_on_nothing_is_no_clean_one(packages: list[dict[str, Any]]) -> None:
    with pytest.raises(AUDIT["NotAudited"], match="no package could be audited"):
        AUDIT["judge"]({"dependencies": packages}, [], TODAY)


@pytest.mark.parametrize(("arguments", "code"), [((), 2), (("--may-skip",), 0)])
def test_an_audit_that_did_not_happen_says_so(arguments: tuple[str, ...], code: int) -> None:
    done = subprocess.run(
        [sys.executable, SCRIPT, *arguments],
        env={"UV": "no-such-program"}, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (code, "")
    assert done.stdout.startswith("NOT AUDITED: pip-audit")
