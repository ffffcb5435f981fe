"""Which Java runtime Spark will use."""

import os
import re
import shutil
import subprocess
from pathlib import Path

from nightshift.settings import PROJECT_ROOT

LEAST = 17


def java_major(java: Path) -> int | None:
    """The major version that ``java -version`` reports, or None when it does not run."""
    try:
        completed = subprocess.run(
            [str(java), "-version"], capture_output=True, text=True, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(r'version "(\d+)', completed.stderr)
    return int(found.group(1)) if completed.returncode == 0 and found else None


def find_java() -> tuple[Path, int] | None:
    """The ``java`` to use and its major version: JAVA_HOME, PATH, then what ``make`` installed.

    The first of at least ``LEAST`` wins; if none is, the first that runs; None without any.
    """
    candidates: list[Path] = []
    if home := os.environ.get("JAVA_HOME"):
        candidates.append(Path(home) / "bin" / "java")
    if found := shutil.which("java"):
        candidates.append(Path(found))
    candidates += sorted(Path("/usr/lib/jvm").glob("*/bin/java"))
    candidates += sorted((PROJECT_ROOT / ".nightshift" / "jdk").glob("**/bin/java"))
    too_old: tuple[Path, int] | None = None
    for java in candidates:
        major = java_major(java)
        if major is not None and major >= LEAST:
            return java, major
        if major is not None and too_old is None:
            too_old = (java, major)
    return too_old
