"""Models in MLflow's registry, as XGBoost's own UBJSON beside a JSON signature; never a pickle.

A registered model is named as its use case. Its aliases ``champion``, ``previous`` and
``challenger`` are set by ``nightshift.io.registry``, which knows which version scores. A version's
files are ``model/model.ubj`` and ``model/signature.json`` of its run's artifacts.
"""

import hashlib
import json
import logging
import os
import shutil
import tempfile
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse

import numpy as np
import psycopg2

from nightshift import model_card
from nightshift.booster import Matrix, gain_shares, intervals, predict
from nightshift.errors import NightshiftError, SettingError
from nightshift.settings import Settings
from nightshift.spec import UseCase
from nightshift.use_cases import find_use_case
from nightshift.xgboost_core import xgb

log = logging.getLogger(__name__)

if TYPE_CHECKING:
    from mlflow import MlflowClient

MODEL = "model"
EVALUATION = "evaluation"
MODEL_FILE = "model.ubj"
SIGNATURE_FILE = "signature.json"
SAMPLE_FILE = "sample.npy"
CHAMPION = "champion"
PREVIOUS = "previous"
CHALLENGER = "challenger"

ANSWER_SECONDS = 10
_AS_OF_TAG = "nightshift.as_of"

Signature = dict[str, Any]


@dataclass(frozen=True)
class ModelVersion:
    """One version of a registered model.

    Attributes:
        name: its use case's.
        run_id: the MLflow run that made it, and holds its files.
        as_of: what it was trained for; None where MLflow does not say.
    """

    name: str
    version: str
    run_id: str
    as_of: date | None = None


def client(settings: Settings) -> "MlflowClient":
    """A client of the tracking server and registry at ``settings.mlflow_uri``.

    Raises:
        SettingError: when nothing answers there. MLflow itself would try again for minutes.
    """
    _require_answer(settings.mlflow_uri)
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=settings.mlflow_uri, registry_uri=settings.mlflow_uri)


def _require_answer(uri: str) -> None:
    url = urlparse(uri)
    try:
        if url.scheme in ("http", "https"):
            urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=ANSWER_SECONDS).close()
        elif url.scheme.startswith("postgresql") and url.hostname:
            # a database may be closed, or in recovery, where its server answers
            plain = url._replace(scheme="postgresql").geturl()
            psycopg2.connect(plain, connect_timeout=ANSWER_SECONDS).close()
    except urllib.error.HTTPError as answer:
        answer.close()
    except (OSError, psycopg2.OperationalError) as error:
        where = f"{url.hostname}:{url.port}" if url.port else url.hostname
        raise SettingError(
            f"MLflow's store does not answer at {where}: {str(error).strip()}",
            "run `make up`, or correct NIGHTSHIFT_MLFLOW_TRACKING_URI; the champion stays",
        ) from error


def experiment_id(settings: Settings, use_case_name: str) -> str:
    """The id of the use case's experiment, created when there is none.

    With a database as tracking URI the artifacts lie in ``settings.mlflow_artifacts_dir``; a
    tracking server decides for itself.
    """
    from mlflow.exceptions import MlflowException

    mlflow = client(settings)
    location = None
    if urlparse(settings.mlflow_uri).scheme not in ("http", "https"):
        location = (settings.mlflow_artifacts_dir / use_case_name).as_uri()
    if (found := mlflow.get_experiment_by_name(use_case_name)) is not None:
        return str(found.experiment_id)
    try:
        return str(mlflow.create_experiment(use_case_name, artifact_location=location))
    except MlflowException:
        # Another process may have created it in between.
        if (found := mlflow.get_experiment_by_name(use_case_name)) is None:
            raise
        return str(found.experiment_id)


def newest_version(settings: Settings, use_case_name: str, as_of: date) -> ModelVersion | None:
    """The version that was registered last of those trained for ``as_of``, or None."""
    found = registered(settings, use_case_name).values()
    return max(
        (each for each in found if each.as_of == as_of),
        key=lambda each: int(each.version),
        default=None,
    )


def aliases(settings: Settings, use_case_name: str) -> dict[str, str]:
    """Alias → version; empty when no version was ever registered."""
    from mlflow.exceptions import MlflowException

    try:
        found = client(settings).get_registered_model(use_case_name)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return {}
        raise
    return {alias: str(version) for alias, version in found.aliases.items()}


def set_alias(settings: Settings, use_case_name: str, alias: str, version: str | None) -> None:
    """Point an alias at ``version``, or take it away."""
    mlflow = client(settings)
    if version is None:
        mlflow.delete_registered_model_alias(use_case_name, alias)
    else:
        mlflow.set_registered_model_alias(use_case_name, alias, version)


def registered(settings: Settings, use_case_name: str) -> dict[str, ModelVersion]:
    """Every registered version of the use case by its number, oldest first."""
    mlflow = client(settings)
    found: list[ModelVersion] = []
    token = None
    while True:
        page = mlflow.search_model_versions(f"name = '{use_case_name}'", page_token=token)
        found += [_model_version(version) for version in page]
        token = page.token
        if not token:
            return {each.version: each for each in sorted(found, key=lambda v: int(v.version))}


def register(settings: Settings, use_case_name: str, run_id: str, as_of: str) -> ModelVersion:
    """Make the run's ``model/`` a new version of the use case's registered model."""
    from mlflow.exceptions import MlflowException

    mlflow = client(settings)
    try:
        mlflow.create_registered_model(use_case_name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    source = f"{mlflow.get_run(run_id).info.artifact_uri}/{MODEL}"
    created = mlflow.create_model_version(
        use_case_name, source, run_id=run_id, tags={_AS_OF_TAG: as_of}
    )
    return _model_version(created)


def fetch(settings: Settings, run_id: str, path: str) -> Path:
    """A local path of a run's artifact (file or folder): where it lies, or a downloaded copy.

    Raises:
        NightshiftError: when the artifact is not there.
    """
    if (lying := _lying_here(settings, run_id, path)) is not None:
        return lying
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    mlflow = client(settings)
    try:
        uri = f"{mlflow.get_run(run_id).info.artifact_uri}/{path}"
        found = Path(download_artifacts(artifact_uri=uri, tracking_uri=settings.mlflow_uri))
    except (MlflowException, OSError) as error:
        raise _no_artifact(run_id, path, error) from error
    return found


def _lying_here(settings: Settings, run_id: str, path: str) -> Path | None:
    """The artifact where :func:`experiment_id` has MLflow keep it; None where a server keeps it.

    Without MLflow, whose import takes three seconds, and whose store may be down.

    Raises:
        NightshiftError: when the run's other artifacts lie here, and this one does not.
    """
    if urlparse(settings.mlflow_uri).scheme in ("http", "https"):
        return None
    folder = next(settings.mlflow_artifacts_dir.glob(f"*/{run_id}/artifacts"), None)
    if folder is None:
        return None
    if not (folder / path).exists():
        raise _no_artifact(run_id, path, f"{folder} does not have it")
    return folder / path


def _no_artifact(run_id: str, path: str, why: object) -> NightshiftError:
    return NightshiftError(
        f"MLflow run {run_id} has no artifact {path}: {why}",
        "train again with `nightshift train`, or restore MLflow's artifact folder",
    )


def run_id_of(settings: Settings, named: str) -> str:
    """The MLflow run that is meant: by its id, or by a version, as ``churn/3``.

    Raises:
        NightshiftError: when there is none.
    """
    from mlflow.exceptions import MlflowException

    name, is_version, number = named.partition("/")
    if is_version:
        found = registered(settings, name)
        if number not in found:
            raise NightshiftError(
                f"there is no version {number} of {name}; there are {', '.join(found) or 'none'}",
                f"see `nightshift history {name}`, or MLflow's page of models",
            )
        return found[number].run_id
    try:
        return str(client(settings).get_run(named).info.run_id)
    except MlflowException as error:
        raise NightshiftError(
            f"MLflow has no run {named}",
            "name a run by its whole id, or a version by <use case>/<version>, as churn/3",
        ) from error


def run_ids(settings: Settings, use_case_name: str) -> list[str]:
    """Every training run of the use case, deleted ones included."""
    from mlflow.entities import ViewType

    mlflow = client(settings)
    experiment = mlflow.get_experiment_by_name(use_case_name)
    if experiment is None:
        return []
    found: list[str] = []
    token = None
    while True:
        page = mlflow.search_runs(
            [experiment.experiment_id], run_view_type=ViewType.ALL, page_token=token
        )
        found += [run.info.run_id for run in page]
        token = page.token
        if not token:
            return found


def has_artifact(settings: Settings, run_id: str, path: str) -> bool:
    """Whether the run has the artifact ``path``."""
    listed = client(settings).list_artifacts(run_id, path.rpartition("/")[0] or None)
    return path in {artifact.path for artifact in listed}


def replace_artifact(settings: Settings, run_id: str, path: str, content: Path) -> None:
    """Put ``content`` in the place of the run's file ``path``: at once, also in a local folder."""
    from mlflow.utils.file_utils import local_file_uri_to_path

    uri = f"{client(settings).get_run(run_id).info.artifact_uri}/{path}"
    if urlparse(uri).scheme not in ("", "file"):
        client(settings).log_artifact(run_id, str(content), path.rpartition("/")[0] or None)
        return
    file = Path(local_file_uri_to_path(uri))
    temporary = file.with_name(f".{file.name}.replacing")
    shutil.copyfile(content, temporary)
    temporary.replace(file)


def write_into_card(settings: Settings, run_id: str, place: str, html: str) -> None:
    """Put HTML into a place of the run's model card; what it tells stands, if that cannot be.

    Args:
        place: one of ``model_card``.
    """
    from mlflow.exceptions import MlflowException

    try:
        card = fetch(settings, run_id, model_card.ARTIFACT).read_text(encoding="utf-8")
        with tempfile.TemporaryDirectory() as scratch:
            file = Path(scratch) / model_card.ARTIFACT
            file.write_text(model_card.with_place(card, place, html), encoding="utf-8")
            replace_artifact(settings, run_id, model_card.ARTIFACT, file)
    except (NightshiftError, MlflowException, OSError, ValueError) as error:
        log.warning("the model card does not show the %s: %s", place, error)


def importances(settings: Settings, use_case_name: str) -> dict[str, float] | None:
    """Feature → share of the champion's total gain; None where there is no champion to ask."""
    from mlflow.exceptions import MlflowException

    try:
        version = aliases(settings, use_case_name).get(CHAMPION)
        if version is None:
            return None
        booster, _ = load_model(settings, registered(settings, use_case_name)[version])
    except (NightshiftError, MlflowException) as error:
        log.warning("no importances: %s", error)
        return None
    return gain_shares(booster)


def load_model(
    settings: Settings, version: ModelVersion, use_case: UseCase | None = None
) -> tuple[xgb.Booster, Signature]:
    """The booster of a registered version and its signature.

    Args:
        use_case: whose model it is; None for the listed one of its name.

    Raises:
        NightshiftError: when a file is missing or damaged, or the model was trained for other
            features than the use case declares now; the message names the difference.
    """
    try:
        booster, signature = read_model(fetch(settings, version.run_id, MODEL))
    except NightshiftError as error:
        raise NightshiftError(
            f"{version.name} version {version.version} cannot be loaded: {error.what}",
            f"{error.remedy}; until then `nightshift rollback {version.name}` lets the champion "
            "before it score, and what is trained again after that waits for `nightshift promote`",
        ) from error
    check_features(
        f"model {version.name} version {version.version}",
        signature["features"],
        (use_case or find_use_case(version.name)).feature_names,
    )
    return booster, signature


def load_evaluation(settings: Settings, run_id: str) -> tuple[xgb.Booster, Signature]:
    """The booster that a run measured on its test snapshots, and its signature."""
    return read_model(fetch(settings, run_id, EVALUATION))


def write_model(folder: Path, model: bytes, signature: Signature) -> None:
    """Write ``model.ubj`` and ``signature.json``; the signature is given the model's SHA-256."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MODEL_FILE).write_bytes(model)
    signature = {**signature, "model_sha256": hashlib.sha256(model).hexdigest()}
    (folder / SIGNATURE_FILE).write_text(json.dumps(signature, indent=1, sort_keys=True) + "\n")


def write_sample(folder: Path, matrix: Matrix) -> None:
    """Write the rows whose scores ``signature.json`` pins, (rows, features) float32."""
    np.save(folder / SAMPLE_FILE, matrix, allow_pickle=False)


def sample_sha256(booster: xgb.Booster, matrix: Matrix) -> str:
    """SHA-256 of the scores (float64, in row order), followed by their intervals if there are."""
    found = hashlib.sha256(predict(booster, matrix).tobytes())
    if (ends := intervals(booster, matrix)) is not None:
        found.update(ends.tobytes())
    return found.hexdigest()


def score_sample(folder: Path) -> str:
    """``sample_sha256`` of the model in ``folder`` and its sample.

    Raises:
        NightshiftError: when the model or its sample cannot be read.
    """
    booster, _ = read_model(folder)
    try:
        matrix: Matrix = np.load(folder / SAMPLE_FILE, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise NightshiftError(
            f"{folder / SAMPLE_FILE} cannot be read: {error}", "train again with `nightshift train`"
        ) from error
    return sample_sha256(booster, matrix)


def read_model(folder: Path) -> tuple[xgb.Booster, Signature]:
    """Read what ``write_model`` wrote.

    Raises:
        NightshiftError: when a file is missing, is not what was written, or the booster's
            features are not the signature's.
    """
    remedy = "train again with `nightshift train`, or restore MLflow's artifact folder"
    try:
        model = (folder / MODEL_FILE).read_bytes()
        signature: Signature = json.loads((folder / SIGNATURE_FILE).read_text())
        expected, features = signature["model_sha256"], signature["features"]
    except (OSError, ValueError, KeyError) as error:
        raise NightshiftError(f"the model in {folder} cannot be read: {error!r}", remedy) from error
    found = hashlib.sha256(model).hexdigest()
    if found != expected:
        raise NightshiftError(
            f"{folder / MODEL_FILE} is damaged: its SHA-256 is {found}, "
            f"{SIGNATURE_FILE} says {expected}",
            remedy,
        )
    booster = xgb.Booster()
    booster.load_model(bytearray(model))
    check_features(str(folder / MODEL_FILE), booster.feature_names or (), features)
    return booster, signature


def check_features(what: str, found: Sequence[str], expected: Sequence[str]) -> None:
    """Refuse a model whose features are not the expected ones, in the expected order.

    Raises:
        NightshiftError: naming what is missing, what is unknown, or the first that is out of order.
    """
    if list(found) == list(expected):
        return
    missing = [name for name in expected if name not in found]
    unknown = [name for name in found if name not in expected]
    parts = []
    if missing:
        parts.append(f"it lacks {', '.join(missing)}")
    if unknown:
        parts.append(f"it has {', '.join(unknown)}, which nobody declares")
    if not parts:
        position = next(
            (i for i, (a, b) in enumerate(zip(found, expected, strict=False)) if a != b),
            min(len(found), len(expected)),
        )
        parts.append(f"the order differs from feature {position} on")
    raise NightshiftError(
        f"{what} does not fit the features that are declared: {'; '.join(parts)}",
        "train again with `nightshift train`",
    )


def _model_version(found: Any) -> ModelVersion:
    as_of = found.tags.get(_AS_OF_TAG)
    return ModelVersion(
        name=str(found.name),
        version=str(found.version),
        run_id=str(found.run_id),
        as_of=date.fromisoformat(as_of) if as_of else None,
    )
