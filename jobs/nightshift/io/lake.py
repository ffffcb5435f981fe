"""Datasets in the lake: Parquet parts beside a manifest, replaced whole.

A dataset is a folder. It is written under a temporary name and renamed, so that it is there
complete or not at all; ``manifest.json`` says what it was made from (``key``), and is what a
reader trusts.
"""

import atexit
import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any

from nightshift.errors import NightshiftError

MANIFEST = "manifest.json"
CHALLENGES = ".challenges"
"""Where challengers' scores are while they are copied to the warehouse."""
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def dataset_dir(lake: Path, kind: str, name: str, as_of: date) -> Path:
    """``<lake>/<kind>/<name>/as_of=YYYY-MM-DD``."""
    return lake / kind / name / f"as_of={as_of.isoformat()}"


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a complete dataset, or None when there is none."""
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return None
    return manifest


def digest(value: Any) -> str:
    """SHA-256 of a value's canonical JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def beside(folder: Path) -> list[Path]:
    """Parquet files of a dataset that are no parts of it, in order."""
    return sorted(set(folder.glob("*.parquet")) - set(parts(folder)))


def parts(folder: Path) -> list[Path]:
    """The Parquet files of a dataset, in the order of their numbers."""
    return sorted(folder.glob("part-*.parquet"))


def parts_sha256(parts: Sequence[Path]) -> str:
    """One digest of the bytes of a dataset's parts, in their order."""
    return digest([file_sha256(part) for part in parts])


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Write ``manifest.json`` durably, as the last file of a dataset."""
    with (folder / MANIFEST).open("w") as file:
        json.dump(manifest, file, indent=1, sort_keys=True, default=str)
        file.flush()
        os.fsync(file.fileno())


def remove_leftovers(folder: Path) -> None:
    """Remove what killed runs have left of a dataset under its temporary names, while its lock is
    held. Also a run that finds the dataset whole does so: a kill may have come after the rename."""
    for left in folder.parent.glob(f".{folder.name}.*"):
        shutil.rmtree(left, ignore_errors=True)


@contextmanager
def scratch(folder: Path) -> Iterator[Path]:
    """Yield an empty folder beside ``folder`` that is gone when the block ends.

    What a killed run left behind under ``folder``'s temporary names is removed first.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder)
    temporary = folder.parent / f".{folder.name}.{uuid.uuid4().hex}"
    temporary.mkdir()
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def workspace(folder: Path) -> Iterator[Path]:
    """Yield an empty folder in ``folder`` that is gone when the block ends.

    Several processes may have one at once; those of killed processes are removed first.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        with _without_abandoned(folder):
            own = Path(tempfile.mkdtemp(prefix="of-", dir=folder))
            stack.enter_context(_held(own))
            stack.callback(shutil.rmtree, own, ignore_errors=True)
        yield own


_OURS = "nightshift-"


def keep_temporary_files(owner: Path) -> None:
    """From now on this process, its libraries and the processes that it starts keep their temporary
    files where the next that calls this for ``owner``, a state folder, finds those of killed ones.

    Otherwise they would stay in the system's folder for good, with the rows that are in them.

    Raises:
        NightshiftError: when the place belongs to somebody else.
    """
    # The state folder itself may have a path too long for the sockets that are among such files.
    name = f"{_OURS}{os.geteuid()}-{digest(str(owner))[:8]}"
    folder = _system_temporary_folder() / name
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.lstat().st_uid != os.geteuid():
        raise NightshiftError(
            f"{folder} belongs to another account", "remove it, or set TMPDIR to another folder"
        )
    tempfile.tempdir = os.environ["TMPDIR"] = str(_of_process(folder, os.getpid()))
    with _without_abandoned(folder):
        pass


@cache
def _system_temporary_folder() -> Path:
    """Not the one that a parent process of ours has, whose path would grow with each child."""
    found = Path(tempfile.gettempdir())
    own = f"{_OURS}{os.geteuid()}-"
    of_parent = next((each for each in found.parents if each.name.startswith(own)), None)
    return found if of_parent is None else of_parent.parent


@cache
def _of_process(folder: Path, pid: int) -> Path:  # a fork has one of its own
    stack = ExitStack()
    atexit.register(stack.close)
    return stack.enter_context(workspace(folder))


@contextmanager
def _without_abandoned(folder: Path) -> Iterator[None]:
    """Remove the workspaces of killed processes; none is made or removed while the block runs."""
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for left in folder.glob("of-*"):
            # its owner may remove it just now
            with suppress(FileNotFoundError), _held(left) as is_abandoned:
                if is_abandoned:
                    shutil.rmtree(left, ignore_errors=True)
        yield


@contextmanager
def _held(folder: Path) -> Iterator[bool]:
    """Whether nobody else holds the folder; if so it is held, until this process dies at most."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        yield False
    else:
        yield True
    finally:
        os.close(descriptor)


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """Yield an empty folder beside ``folder`` that takes its place when the block ends well.

    What a killed run left behind under ``folder``'s temporary names is removed first; and at the
    end what a writer that died left in it, under a name that begins with a dot.

    Raises:
        NightshiftError: when the disk is full; ``folder`` is as it was.
    """
    with scratch(folder) as temporary:
        try:
            yield temporary
            for left in temporary.glob(".*"):
                left.unlink()
            if folder.exists():
                old = folder.parent / f".{folder.name}.{uuid.uuid4().hex}.old"
                folder.rename(old)
                temporary.rename(folder)
                shutil.rmtree(old, ignore_errors=True)
            else:
                temporary.rename(folder)
        except OSError as error:
            if error.errno not in _NO_ROOM:
                raise
            raise NightshiftError(
                f"{folder} was not written: {error}", "make room on its disk, and run again"
            ) from error
