"""Every setting of Nightshift, in one typed object.

Read from ``NIGHTSHIFT_*`` environment variables and a ``.env`` file at the project's root. What a
user sets replaces the embedded part of the same name; what is unset is taken from
``<state_dir>/services.json``, which ``make up`` writes.
"""

import difflib
import json
import os
import re
from datetime import time
from email.errors import HeaderParseError
from email.headerregistry import Address
from functools import cache
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote
from zoneinfo import ZoneInfo

from dotenv import dotenv_values
from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from nightshift.errors import SettingError

PROJECT_ROOT = Path(__file__).resolve().parents[2]
PREFIX = "NIGHTSHIFT_"
TrainingMemory = Literal["in_memory", "external", "spark"]


_ENCODED = r"(?:%[0-9A-Fa-f]{2}|[^%@/?\s])*"
_READABLE_URL = re.compile(rf"(?:[a-z0-9+]+://)?(?:{_ENCODED}@)?[^@]*")


class Settings(BaseSettings):
    """Paths are absolute once read; relative ones start at the project's root."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_file=PROJECT_ROOT / ".env", extra="ignore", frozen=True
    )

    state_dir: Path = Path(".nightshift")
    landing: Path | str = Path(".nightshift/landing")
    """A folder, or s3://bucket/prefix."""
    lake: Path | None = None
    lake_buckets: int = Field(default=16, ge=1, le=4096)
    """Parts that the entities of every source are hashed into: one is a task's memory."""

    database_url: str | None = None
    """postgresql://user:password@host:port/database of the warehouse, as nightshift_writer."""
    reader_database_url: str | None = None
    airflow_database_url: str | None = None
    """SQLAlchemy URL of Airflow's metadata database, driver named."""
    mlflow_tracking_uri: str | None = None
    airflow_url: str | None = None
    """Base URL of an Airflow of the user's own."""
    airflow_username: str = "admin"
    airflow_password: str | None = None

    timezone: str = "UTC"
    """The pipeline's time zone: ``as_of`` is a date in it, and event times are local to it."""
    landing_deadline: time = time(2, 0)
    """On the morning of ``as_of``: how long the nightly waits for the expected landings."""

    alert_email: str | None = None
    """Who gets an e-mail when a night fails and when it recovers: addresses with commas between;
    sent through Airflow's connection ``smtp_default``."""
    alert_webhook: bool = False
    """Whether the same goes to the incoming webhook of Airflow's connection ``slack_default``."""
    runbooks_url: str = "docs/runbooks"
    """Where an alert's reader finds this repository's docs/runbooks."""

    training_memory: TrainingMemory | Literal["auto"] = "auto"
    """Where a training's rows are: ``in_memory``; ``external``, in files beside the lake's dataset,
    read batch by batch; ``spark``, in the memory of the Spark master's workers; ``auto``, in files
    once they are many."""

    scoring: Literal["one_process", "spark"] = "one_process"
    """Where a night's rows are scored, and copied to Postgres: by threads of one process, or by the
    Spark master's workers, which then need the lake on storage that they share, and a way to the
    warehouse. The bytes are the same."""

    spark_master: str = "local[*]"
    spark_driver_memory: str = "2g"
    spark_driver_host: str | None = None
    """Name or address at which the workers of a Spark cluster reach this machine; the default is
    Spark's own, the machine's name."""
    spark_executor_memory: str = "1g"
    """Of an executor's JVM on a Spark cluster; its Python workers take theirs beside it."""
    postgres_port: int = 5433
    airflow_port: int = 8080
    seed: int = 20111209

    @field_validator("landing", mode="before")
    @classmethod
    def _folder_or_bucket(cls, value: object) -> object:
        if isinstance(value, str) and ("://" in value or value.lower().startswith("s3:")):
            if not re.match(r"^s3://[a-z0-9][a-z0-9.-]+(/|$)", value):
                raise ValueError("expected a folder, or s3://bucket/prefix")
            return value.rstrip("/")
        return cls._absolute(Path(str(value)))

    @field_validator("state_dir", "lake")
    @classmethod
    def _absolute(cls, value: Path | None) -> Path | None:
        return None if value is None else (PROJECT_ROOT / value.expanduser()).resolve()

    @field_validator("timezone")
    @classmethod
    def _known_timezone(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (KeyError, ValueError) as error:
            raise ValueError(
                "not a time zone of the IANA database, such as Europe/London"
            ) from error
        return value

    @field_validator("database_url", "reader_database_url")
    @classmethod
    def _postgres_url(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith(("postgresql://", "postgres://")):
            raise ValueError("expected postgresql://user:password@host:port/database")
        return value

    @field_validator(
        "database_url", "reader_database_url", "airflow_database_url", "mlflow_tracking_uri"
    )
    @classmethod
    def _url_with_encoded_password(cls, value: str | None) -> str | None:
        """What reads such a URL otherwise takes part of the password for the host, and tells it."""
        try:
            unquote(value or "", errors="strict")
            is_readable = value is None or _READABLE_URL.fullmatch(value) is not None
        except UnicodeDecodeError:
            is_readable = False
        if not is_readable:
            raise ValueError(
                "user and password must be percent-encoded: @ is %40, / is %2F, ? is %3F, % is %25"
            )
        return value

    @field_validator("alert_email")
    @classmethod
    def _email_addresses(cls, value: str | None) -> str | None:
        for address in (value or "").split(",") if value is not None else ():
            try:
                is_whole = bool(Address(addr_spec=address.strip()).domain)
            except (HeaderParseError, ValueError, IndexError):
                is_whole = False
            if not is_whole:
                raise ValueError(
                    f"{address.strip()!r} is no e-mail address; expected name@domain,"
                    " several with commas between"
                )
        return value

    @field_validator("alert_webhook", mode="before")
    @classmethod
    def _no_url(cls, value: object) -> object:
        if "://" in str(value):
            raise ValueError(
                "expected true or false; the URL is the password of Airflow's connection"
                " slack_default"
            )
        return value

    @property
    def alert_recipients(self) -> tuple[str, ...]:
        """The addresses of ``alert_email``; () switches e-mail off."""
        return tuple(address.strip() for address in (self.alert_email or "").split(",") if address)

    @property
    def landing_folder(self) -> Path:
        """The landing zone where it is a folder.

        Raises:
            SettingError: when it is a bucket.
        """
        if isinstance(self.landing, Path):
            return self.landing
        raise SettingError(
            f"NIGHTSHIFT_LANDING is {self.landing}, and this needs a folder",
            "set it to a folder of this machine",
        )

    @property
    def lake_dir(self) -> Path:
        """Where extracts, features, training sets and scores are kept as Parquet."""
        return self.lake or self.state_dir / "lake"

    @property
    def services_file(self) -> Path:
        """What ``make up`` started, with its secrets (mode 600)."""
        return self.state_dir / "services.json"

    @property
    def mlflow_artifacts_dir(self) -> Path:
        """The folder of the embedded MLflow's artifacts."""
        return self.state_dir / "mlflow-artifacts"

    def _embedded(self, key: str, setting: str) -> str:
        try:
            services: dict[str, Any] = json.loads(self.services_file.read_text())
            return str(services[key])
        except (FileNotFoundError, KeyError) as error:
            raise SettingError(
                f"{PREFIX}{setting.upper()} is not set, and no embedded service provides it "
                f"({self.services_file} has no {key!r})",
                f"run `make up`, or set {PREFIX}{setting.upper()}",
            ) from error

    @property
    def warehouse_url(self) -> str:
        """postgresql:// URL of the warehouse as ``nightshift_writer``."""
        return self.database_url or self._embedded("warehouse_url", "database_url")

    @property
    def reader_url(self) -> str:
        """postgresql:// URL of the warehouse as ``nightshift_reader``."""
        return self.reader_database_url or self._embedded("reader_url", "reader_database_url")

    @property
    def mlflow_uri(self) -> str:
        """MLflow's tracking URI."""
        return self.mlflow_tracking_uri or self._embedded("mlflow_uri", "mlflow_tracking_uri")


def _masked(value: object) -> str:
    """The value as it was given, without the password of a URL or the path of a web page's."""
    shown = re.sub(r"(://[^:/@\s]*):.*@", r"\1:***@", repr(value))
    return re.sub(r"(https?://[^/'\s]+)/[^'\s]+", r"\1/***", shown)


def load_settings(**overrides: Any) -> Settings:
    """Read the settings.

    Raises:
        SettingError: naming each setting that is unknown or malformed.
    """
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    env_file = overrides.get("_env_file", PROJECT_ROOT / ".env")
    for name in sorted({*os.environ, *(dotenv_values(env_file) if env_file else ())}):
        if name.startswith(PREFIX) and name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(sorted(known))}"
            raise SettingError(f"unknown setting {name}", hint)
    try:
        return Settings(**overrides)
    except ValidationError as error:
        lines = [
            f"{PREFIX}{'_'.join(map(str, e['loc'])).upper()}={_masked(e.get('input'))}: {e['msg']}"
            for e in error.errors()
        ]
        raise SettingError("; ".join(lines), "correct it in the environment or in .env") from None


@cache
def settings() -> Settings:
    """The process's settings, read once."""
    return load_settings()
