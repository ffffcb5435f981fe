"""Artifacts that lie on this machine's disk: no server is asked for them."""

from pathlib import Path

import pytest

from nightshift.errors import NightshiftError
from nightshift.io import model_store
from nightshift.settings import Settings, load_settings

NOBODY = "postgresql+psycopg2://nobody@127.0.0.1:1/none"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings(
        _env_file=None, state_dir=tmp_path, landing=tmp_path, mlflow_tracking_uri=NOBODY
    )


def test_an_artifact_is_found_where_it_lies(settings: Settings) -> None:
    folder = settings.mlflow_artifacts_dir / "1" / "run" / "artifacts" / "model"
    folder.mkdir(parents=True)

    assert model_store.fetch(settings, "run", "model") == folder


def test_what_the_others_lie_without_is_missing_at_once(settings: Settings) -> None:
    (settings.mlflow_artifacts_dir / "1" / "run" / "artifacts" / "model").mkdir(parents=True)

    with pytest.raises(NightshiftError, match=r"run has no artifact evaluation: .* does not have"):
        model_store.fetch(settings, "run", "evaluation")
