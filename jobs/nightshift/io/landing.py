"""The landing zone: a local folder, or a prefix of an S3 bucket, seen the same way.

Below it lies ``<source>/ds=YYYY-MM-DD/<file>``; a path is relative to the zone, with ``/``.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from nightshift.errors import ContractError, SettingError
from nightshift.settings import Settings

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

S3_SCHEME = "s3://"
REPLACING = ".replacing"
LATELY_DAYS = 30
"""A use case is scored unasked only where each of its sources landed within so many days."""
_PART_BYTES = 16 << 20


@dataclass(frozen=True)
class Entry:
    """A folder or a file.

    Attributes:
        name: the last part of its path.
        size: bytes of a file.
        version: changes whenever a file's content does: size and modification time, or the ETag.
    """

    name: str
    is_folder: bool
    size: int = 0
    version: str = ""

    @property
    def is_hidden(self) -> bool:
        """Ignored, so that a sender can write under such a name and then rename."""
        return self.name.startswith((".", "_"))


class LandingZone(Protocol):
    """Where senders put their files."""

    url: str

    def entries(self, path: str) -> list[Entry]:
        """What lies directly in the folder ``path``, by name; [] when there is no such folder."""

    def fetched(self, path: str) -> Any:
        """Context manager: a local copy of the file, or the file itself, as a Path."""

    def replace(self, path: str, content: Path) -> None:
        """Put ``content`` in the place of the file ``path``, at once."""

    def remove(self, path: str) -> None:
        """Remove the file ``path``."""


class LocalLandingZone:
    """A folder of the machine."""

    def __init__(self, root: Path) -> None:
        self.url = str(root)
        self._root = root

    def entries(self, path: str) -> list[Entry]:
        """What lies directly in the folder ``path``, by name; [] when there is no such folder."""
        try:
            found = sorted(os.scandir(self._root / path), key=lambda entry: entry.name)
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise SettingError(
                f"the landing zone's folder {self._root / path} cannot be read: {error.strerror}",
                "let this account read it, or correct NIGHTSHIFT_LANDING",
            ) from error
        return [self._entry(entry) for entry in found]

    @staticmethod
    def _entry(entry: "os.DirEntry[str]") -> Entry:
        try:
            if entry.is_dir():
                return Entry(entry.name, is_folder=True)
            stat = entry.stat()
        except OSError:  # a link to nowhere, or to itself
            return Entry(entry.name, is_folder=False)
        return Entry(entry.name, False, stat.st_size, f"{stat.st_size}:{stat.st_mtime_ns}")

    @contextmanager
    def fetched(self, path: str) -> Iterator[Path]:
        """The file itself.

        Raises:
            ContractError: when it is a link that leads out of the landing zone, no regular file,
                gone, or closed to this account.
        """
        file = self._root / path
        # Opening a pipe would wait for ever for somebody to write.
        if not file.is_file() or not os.access(file, os.R_OK):
            raise ContractError(f"{path}: not a file that can be read", "remove it, or land it")
        if not file.resolve().is_relative_to(self._root.resolve()):
            raise ContractError(f"{path}: a link that leads out of the landing zone", "remove it")
        yield file

    def replace(self, path: str, content: Path) -> None:
        """Put ``content`` in the place of the file ``path``, at once.

        A kill leaves at most a hidden ``.<name>.replacing``, which the next call takes over.
        """
        file = self._root / path
        temporary = file.with_name(f".{file.name}{REPLACING}")
        shutil.copyfile(content, temporary)
        shutil.copymode(file, temporary)
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(file)

    def remove(self, path: str) -> None:
        """Remove the file ``path``."""
        (self._root / path).unlink(missing_ok=True)


class S3LandingZone:
    """A prefix of a bucket. Credentials, region, endpoint, retries are boto3's own settings."""

    def __init__(self, url: str) -> None:
        self.url = url
        bucket, _, prefix = url.removeprefix(S3_SCHEME).partition("/")
        self._bucket = bucket
        self._prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self._client: S3Client | None = None

    def _s3(self) -> "S3Client":
        if self._client is None:
            import boto3  # half a second, and only for a landing zone on S3

            # a session of its own: boto3's default one is not for several threads
            self._client = boto3.Session().client("s3")
        return self._client

    def entries(self, path: str) -> list[Entry]:
        """What lies directly in the folder ``path``, by name; [] when there is no such folder."""
        prefix = f"{self._prefix}{path}/" if path else self._prefix
        found: list[Entry] = []
        with self._explained():
            pages = self._s3().get_paginator("list_objects_v2")
            for page in pages.paginate(Bucket=self._bucket, Prefix=prefix, Delimiter="/"):
                for folder in page.get("CommonPrefixes", []):
                    name = folder["Prefix"].removeprefix(prefix).removesuffix("/")
                    found.append(Entry(name, is_folder=True))
                for item in page.get("Contents", []):
                    name = item["Key"].removeprefix(prefix)
                    if name:  # a folder's own marker has none
                        version = f"{item['Size']}:{item['ETag']}"
                        found.append(Entry(name, False, item["Size"], version))
        return sorted(found, key=lambda entry: entry.name)

    @contextmanager
    def fetched(self, path: str) -> Iterator[Path]:
        """A temporary copy, downloaded in parts, each of them tried again when it breaks off.

        Raises:
            ContractError: when there is no such object any more.
            SettingError: when the zone does not answer.
        """
        from boto3.s3.transfer import TransferConfig
        from botocore.exceptions import ClientError

        folder = Path(tempfile.mkdtemp(prefix="nightshift-landing-"))
        try:
            file = folder / "object"
            config = TransferConfig(
                multipart_threshold=_PART_BYTES,
                multipart_chunksize=_PART_BYTES,
                max_concurrency=4,
                num_download_attempts=6,
            )
            key = self._prefix + path
            with self._explained(), file.open("wb") as target:
                try:
                    self._s3().download_fileobj(self._bucket, key, target, Config=config)
                except ClientError as error:
                    if error.response["Error"]["Code"] not in ("404", "NoSuchKey"):
                        raise
                    raise ContractError(f"{path}: it is gone", "have it landed again") from None
            yield file
        finally:
            shutil.rmtree(folder)

    def replace(self, path: str, content: Path) -> None:
        """Put ``content`` in the place of the object ``path``, at once."""
        with self._explained():
            self._s3().upload_file(str(content), self._bucket, self._prefix + path)

    def remove(self, path: str) -> None:
        """Remove the object ``path``; a bucket with versions keeps its versions."""
        with self._explained():
            self._s3().delete_object(Bucket=self._bucket, Key=self._prefix + path)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            yield
        except (BotoCoreError, ClientError, Boto3Error) as error:
            raise SettingError(
                f"the landing zone {self.url} does not answer: {error}",
                "check NIGHTSHIFT_LANDING, and boto3's settings: AWS_ACCESS_KEY_ID,"
                " AWS_SECRET_ACCESS_KEY, AWS_DEFAULT_REGION, AWS_ENDPOINT_URL_S3",
            ) from error


def zone_at(landing: str) -> LandingZone:
    """The zone at an absolute path, or at s3://bucket/prefix."""
    return (
        S3LandingZone(landing) if landing.startswith(S3_SCHEME) else LocalLandingZone(Path(landing))
    )


def landing_zone(settings: Settings) -> LandingZone:
    """The zone that ``NIGHTSHIFT_LANDING`` names."""
    return zone_at(str(settings.landing))


def landed_lately(zone: LandingZone, source: str, as_of: date) -> bool:
    """Whether a folder of the source is of one of the ``LATELY_DAYS`` days before ``as_of``."""
    first, last = as_of - timedelta(days=LATELY_DAYS), as_of - timedelta(days=1)
    return any(f"ds={first}" <= entry.name <= f"ds={last}" for entry in zone.entries(source))
