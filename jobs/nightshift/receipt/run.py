"""The receipt of one published row: what the warehouse tells, and what lies in the lake and MLflow.

What is not there any more is said in words, beside what is.
"""

import json
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from psycopg2.extras import Json

from nightshift.errors import NightshiftError
from nightshift.io import lake, model_store
from nightshift.io.warehouse import connect, holding, migrate
from nightshift.receipt.facts import FeatureValues, TrainingManifest
from nightshift.settings import Settings
from nightshift.spec import UseCase

DATA_MANIFEST = "data_manifest.json"


def recorded(
    settings: Settings,
    use_case: UseCase,
    entity: str | None,
    as_of: date | None = None,
    publication: str | None = None,
    named: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """What ``predictions.receipt`` tells; its ``row`` is None where there is none, ``missing`` why.

    Args:
        entity: its key, or another column that names a row, as in the views.
        named: column that names a row → its value, where ``entity`` is not enough.
        as_of: None for the newest date on which readers see a row of it.
        publication: an id, also of one that readers no longer see.

    Raises:
        NightshiftError: when there is no such publication.
    """
    migrate(settings)
    with connect(settings) as connection, connection.cursor() as cursor:
        cursor.execute("set local time zone %s", (settings.timezone,))
        cursor.execute(
            "select predictions.receipt(%s, %s, %s, %s, %s)",
            (use_case.name, entity, as_of, publication, Json(dict(named or {}))),
        )
        found: dict[str, Any] = cursor.fetchone()[0]
    if found["publication"] is None:
        raise NightshiftError(
            "; ".join(found["missing"]), f"see `nightshift publications list {use_case.name}`"
        )
    return found


def feature_values(settings: Settings, use_case: UseCase, told: Mapping[str, Any]) -> FeatureValues:
    """The row's vector in ``lake/features``.

    Args:
        told: what :func:`recorded` returned.
    """
    as_of = date.fromisoformat(told["as_of"])
    folder = lake.dataset_dir(settings.lake_dir, "features", use_case.name, as_of)
    with holding(settings, shared=[f"features:{use_case.name}:{as_of}"]):
        manifest = lake.read_manifest(folder)
        if manifest is None:
            return FeatureValues(folder, None, {}, False, f"{folder} is no longer kept")
        try:
            names = named(use_case, told)
            if names.keys() != set(use_case.row_key):
                columns = ", ".join(use_case.row_key)
                unknown = f"which row of {folder} it would be is not told: it is named by {columns}"
                return FeatureValues(folder, None, {}, False, unknown)
            part, vector = _row_of(folder, use_case, names)
        except (OSError, pa.ArrowException) as error:
            return FeatureValues(folder, None, {}, False, f"{folder} cannot be read: {error}")
        if part is None:
            return FeatureValues(folder, None, {}, False, f"no row of it is in {folder} any more")
        expected = manifest.get("parts", {}).get(part.name, {}).get("sha256")
        is_same = manifest["sha256"] == told["publication"]["features_sha256"]
        is_scored = is_same and lake.file_sha256(part) == expected
    problem = None
    if not is_same:
        problem = "the features were written anew since, as by an erasure of somebody else"
    elif not is_scored:
        problem = f"{part} is damaged: its SHA-256 is not the manifest's"
    return FeatureValues(folder, part, vector, is_scored, problem)


def named(use_case: UseCase, told: Mapping[str, Any]) -> dict[str, str]:
    """What names the published row: of one that is not there what was asked for, as its key and by
    other columns."""
    row = told["row"]
    if row is None:
        return ({use_case.key: told["entity"]} if told["entity"] else {}) | told["named"]
    return {name: row[name] for name in use_case.row_key}


def _row_of(
    folder: Path, use_case: UseCase, names: Mapping[str, str]
) -> tuple[Path | None, dict[str, Any]]:
    """The part that holds the row, and the row without what names it."""
    for part in lake.parts(folder):
        asked = [(name, "=", value) for name, value in names.items()]
        rows = pq.read_table(part, filters=asked, partitioning=None)
        if rows.num_rows:
            return part, rows.drop_columns([*use_case.row_key]).slice(0, 1).to_pylist()[0]
    return None, {}


def training_manifest(settings: Settings, told: Mapping[str, Any]) -> TrainingManifest:
    """What the MLflow run of the model keeps of its training set.

    Args:
        told: what :func:`recorded` returned.
    """
    run_id = told["publication"]["mlflow_run_id"]
    where = f"MLflow run {run_id}, artifact {DATA_MANIFEST}"
    try:
        file = model_store.fetch(settings, run_id, DATA_MANIFEST)
        manifest = json.loads(file.read_text())
    except (NightshiftError, OSError, ValueError) as error:
        what = error.what if isinstance(error, NightshiftError) else str(error)
        return TrainingManifest(where, None, {}, None, what)
    wanted = ((told["made_from"] or {}).get("training") or {}).get("dataset_sha256")
    return TrainingManifest(
        where=where,
        sha256=lake.file_sha256(file),
        told={name: value for name, value in manifest.items() if name != "spec"},
        is_dataset=None if wanted is None else manifest.get("sha256") == wanted,
        problem=None,
    )
