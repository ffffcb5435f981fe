#!/usr/bin/env python3
"""Known vulnerabilities of the packages in requirements.txt, by pip-audit.

What `[[tool.nightshift.audit]]` of pyproject.toml names (id, until, reason) is left until that day.
Exits with 1 where there are others. Where the advisories could not be asked, it says so and exits
with 2, or with 0 if --may-skip is given: an audit that did not happen finds nothing, and must not
look like one that did.
"""

import json
import os
import subprocess
import sys
import tomllib
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TOOL = "pip-audit==2.10.1"
SECONDS = 900


class NotAudited(Exception):
    """The advisories could not be asked."""


def ask(requirements: Path) -> dict[str, Any]:
    """pip-audit's report in JSON.

    Raises:
        NotAudited: when it made none.
    """
    command = [
        os.environ.get("UV", "uv"), "tool", "run", "--from", TOOL, "pip-audit",
        "--requirement", str(requirements), "--no-deps", "--disable-pip",
        "--progress-spinner", "off", "--format", "json",
    ]  # fmt: skip
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
        report: dict[str, Any] = json.loads(done.stdout)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotAudited(f"{TOOL} did not run: {error}") from error
    except json.JSONDecodeError as error:
        said = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        raise NotAudited(f"{TOOL} gave no report, and said: {said}") from error
    return report


def judge(
    report: dict[str, Any], left: list[dict[str, Any]], today: date
) -> tuple[list[str], list[str]]:
    """What must be acted on, and what is told besides, a line each.

    Raises:
        NotAudited: when the report is about no package.
    """
    packages = report["dependencies"]
    skipped = [each for each in packages if "skip_reason" in each]
    if len(skipped) == len(packages):
        reason = skipped[0]["skip_reason"] if skipped else "there are none"
        raise NotAudited(f"no package could be audited: {reason}")
    until = {each["id"]: each["until"] for each in left}
    bad, told = [], [f"not audited: {each['name']}: {each['skip_reason']}" for each in skipped]
    found = set()
    for each in packages:
        for flaw in each.get("vulns", ()):
            names = {flaw["id"], *flaw.get("aliases", ())}
            found |= names
            fixed = ", ".join(flaw["fix_versions"]) or "no version yet"
            line = f"{each['name']} {each['version']}: {flaw['id']}, fixed in {fixed}"
            days = [until[name] for name in names & until.keys()]
            if days and max(days) >= today:
                told.append(f"left until {max(days)}: {line}")
            else:
                bad.append(line + (f"; was left until {max(days)}" if days else ""))
    told += [f"left, and there no more: {name}" for name in sorted(until.keys() - found)]
    return bad, told


def main() -> int:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    left = project["tool"].get("nightshift", {}).get("audit", [])
    requirements = ROOT / "requirements.txt"
    try:
        # where the advisories are not to be had, one question is enough to know
        first = ROOT / ".nightshift" / "audit.txt"
        first.parent.mkdir(exist_ok=True)
        first.write_text(requirements.read_text().splitlines()[0] + "\n")
        judge(ask(first), left, date.max)
        bad, told = judge(ask(requirements), left, datetime.now(UTC).date())
    except NotAudited as error:
        print(f"NOT AUDITED: {error}")
        return 0 if "--may-skip" in sys.argv[1:] else 2
    for line in told:
        print(line)
    for line in bad:
        print(f"VULNERABLE: {line}")
    print(f"audited: {len(bad)} vulnerabilities to act on")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
