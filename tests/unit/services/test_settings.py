"""A wrong setting is an error that names it."""

from pathlib import Path

import pytest

from nightshift.errors import SettingError
from nightshift.services import run as services
from nightshift.settings import load_settings


def test_an_unknown_setting_is_named_with_the_likely_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIGHTSHIFT_LANDNIG", "/data")
    with pytest.raises(SettingError) as refused:
        load_settings(_env_file=None)
    assert refused.value.what == "unknown setting NIGHTSHIFT_LANDNIG"
    assert refused.value.remedy == "did you mean NIGHTSHIFT_LANDING?"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("NIGHTSHIFT_TIMEZONE", "Europe/Lundon"),
        ("NIGHTSHIFT_POSTGRES_PORT", "many"),
        ("NIGHTSHIFT_DATABASE_URL", "mysql://a@b/c"),
        ("NIGHTSHIFT_LANDING_DEADLINE", "25:00"),
    ],
)
def test_a_malformed_setting_is_named_with_its_value(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingError, match=name) as refused:
        load_settings(_env_file=None)
    assert repr(value) in refused.value.what


def test_without_services_each_url_says_how_to_get_it(tmp_path: Path) -> None:
    settings = load_settings(_env_file=None, state_dir=tmp_path)
    for name, setting in (
        ("warehouse_url", "NIGHTSHIFT_DATABASE_URL"),
        ("reader_url", "NIGHTSHIFT_READER_DATABASE_URL"),
        ("mlflow_uri", "NIGHTSHIFT_MLFLOW_TRACKING_URI"),
    ):
        with pytest.raises(SettingError, match=rf"{setting} is not set.*\n.*make up"):
            getattr(settings, name)
    with pytest.raises(SettingError, match="make up"):
        services.airflow_environment(settings)


def test_an_unknown_setting_in_the_env_file_is_named(tmp_path: Path) -> None:
    env_file = tmp_path / ".env"
    env_file.write_text("OTHER=1\nNIGHTSHIFT_LAKEE=/data\n")
    with pytest.raises(SettingError, match="unknown setting NIGHTSHIFT_LAKEE"):
        load_settings(_env_file=env_file)


def test_a_password_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIGHTSHIFT_DATABASE_URL", "mysql://me:secret@host/db")
    with pytest.raises(SettingError, match=r"me:\*\*\*@host") as refused:
        load_settings(_env_file=None)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "is_readable"),
    [
        ("postgresql://host/db", True),
        ("postgresql://me@host/db", True),
        ("postgresql://me:%40%2f#:x@[::1]:5432/db?sslmode=require", True),
        ("postgresql://me:a@b@host/db", False),
        ("postgresql://me:a/b@host/db", False),
        ("postgresql://me:a?b@host/db", False),
        ("postgresql://me:50%@host/db", False),
    ],
)
@pytest.mark.parametrize("name", ["DATABASE_URL", "READER_DATABASE_URL", "MLFLOW_TRACKING_URI"])
def test_a_password_that_would_be_taken_for_a_host_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, url: str, is_readable: bool
) -> None:
    monkeypatch.setenv(f"NIGHTSHIFT_{name}", url)
    if is_readable:
        load_settings(_env_file=None)
    else:
        with pytest.raises(SettingError, match=rf"{name}='postgresql://me:\*\*\*@host/db'.*%40"):
            load_settings(_env_file=None)
