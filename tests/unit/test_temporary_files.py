"""Where the processes of a state folder keep temporary files."""

import subprocess
import sys
from pathlib import Path

WITH_A_CHILD = """
import subprocess, sys, tempfile
from pathlib import Path
from nightshift.io.lake import keep_temporary_files

keep_temporary_files(Path(sys.argv[1]))
print(tempfile.gettempdir(), flush=True)
if len(sys.argv) < 4:
    subprocess.run([sys.executable, "-c", sys.argv[2], *sys.argv[1:], "a child"], check=True)
"""


def test_a_childs_folder_is_beside_its_parents_and_both_go_with_them(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITH_A_CHILD, str(tmp_path), WITH_A_CHILD],
        env={"TMPDIR": str(tmp_path)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    parent, child = map(Path, done.stdout.split())
    assert parent != child
    assert parent.parent == child.parent
    assert parent.parent.parent == tmp_path
    assert not parent.exists()
    assert not child.exists()
