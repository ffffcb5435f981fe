"""Which code runs."""

import subprocess
from functools import cache

from nightshift.settings import PROJECT_ROOT


@cache
def commit() -> str:
    """The commit that is checked out, with ``-dirty`` where tracked files differ from it.

    ``unknown`` where the project is no git checkout.
    """
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=PROJECT_ROOT, capture_output=True, text=True, check=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found.stdout.strip()
