"""Score one night's population with the champion: features in, probabilities and reasons out."""

import logging
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xgboost as xgb

from nightshift.booster import contributions, predict, to_matrix
from nightshift.errors import NightshiftError, RefusedAsOf
from nightshift.io import lake, model_store, registry
from nightshift.io.warehouse import holding, recorded_run
from nightshift.publication import ScoresManifest, publication_id, reasons_per_row
from nightshift.scoring.bands import assign
from nightshift.scoring.reasons import explain
from nightshift.settings import Settings
from nightshift.spec import UseCase

log = logging.getLogger(__name__)

PART = "part-00000.parquet"
BATCH_ROWS = 65_536


@dataclass(frozen=True)
class ScoreResult:
    """One scored night; ``is_new`` is False when the same scores were there already."""

    use_case: str
    as_of: date
    model_version: str
    publication_id: str
    rows: int
    is_new: bool


def score(settings: Settings, use_case: UseCase, as_of: date) -> ScoreResult:
    """Write ``lake/scores/<use_case>/as_of=D`` from the features of ``as_of`` and the champion.

    The champion is resolved once; its version is on every row. The same features and version
    give the same bytes, and are not computed twice.

    Raises:
        RefusedAsOf: when there is no champion yet.
        NightshiftError: when there are no features, or they do not fit the model.
    """
    day = f"{use_case.name}:{as_of}"
    with (
        recorded_run(settings, "score", as_of, use_case.name) as run,
        holding(settings, exclusive=[f"scores:{day}"], shared=[f"features:{day}"]),
    ):
        champion = registry.champion(settings, use_case.name)
        if champion is None:
            raise RefusedAsOf(
                f"no champion yet for {use_case.name}",
                f"run `nightshift train {use_case.name} --as-of {as_of.isoformat()}`, or trigger "
                f"the DAG train__{use_case.name}",
            )
        features, features_manifest = _features(settings, use_case, as_of)
        features_sha256 = str(features_manifest["sha256"])
        identity = publication_id(use_case.name, as_of, champion.version, features_sha256)
        folder = lake.dataset_dir(settings.lake_dir, "scores", use_case.name, as_of)
        rows = _rows_already_there(folder, identity)
        is_new = rows is None
        if rows is None:
            booster, _ = model_store.load_model(settings, champion)
            table = _scored(use_case, booster, features)
            rows = table.num_rows
            with lake.replacing(folder) as target:
                pq.write_table(table, target / PART, compression="zstd")
                manifest = ScoresManifest(
                    use_case=use_case.name,
                    as_of=as_of,
                    model_version=champion.version,
                    mlflow_run_id=champion.run_id,
                    publication_id=identity,
                    rows=rows,
                    population_rows=int(features_manifest["rows"]),
                    features_sha256=features_sha256,
                    scored_at=datetime.now(UTC),
                    sha256=lake.file_sha256(target / PART),
                )
                lake.write_manifest(target, manifest.model_dump(mode="json"))
        log.info(
            "%s: %s rows scored for %s with version %s%s",
            use_case.name,
            rows,
            as_of,
            champion.version,
            "" if is_new else " (already there)",
        )
        run.result = {
            "rows": rows,
            "model_version": champion.version,
            "publication_id": identity,
            "is_new": is_new,
        }
        return ScoreResult(use_case.name, as_of, champion.version, identity, rows, is_new)


def _rows_already_there(folder: Path, identity: str) -> int | None:
    """The rows of the existing scores, when they are whole and the same publication."""
    manifest = lake.read_manifest(folder)
    if manifest is None or manifest.get("publication_id") != identity:
        return None
    part = folder / PART
    if not part.exists() or lake.file_sha256(part) != manifest.get("sha256"):
        return None
    return int(manifest["rows"])


def _features(
    settings: Settings, use_case: UseCase, as_of: date
) -> tuple[list[Path], dict[str, Any]]:
    """The parts of the features dataset and its manifest."""
    folder = lake.dataset_dir(settings.lake_dir, "features", use_case.name, as_of)
    remedy = f"run `nightshift nightly --as-of {as_of.isoformat()}`, which builds them"
    manifest = lake.read_manifest(folder)
    parts = sorted(folder.glob("part-*.parquet"))
    if manifest is None or not parts:
        raise NightshiftError(
            f"{use_case.name} has no features for {as_of}: nothing complete in {folder}", remedy
        )
    expected = {use_case.key, *use_case.feature_names}
    for part in parts:
        found = set(pq.read_schema(part).names)
        if found != expected:
            difference = [f"lacks {name}" for name in sorted(expected - found)]
            difference += [f"has the unknown {name}" for name in sorted(found - expected)]
            raise NightshiftError(
                f"{part} does not fit the spec of {use_case.name}: it {', '.join(difference)}",
                remedy,
            )
    return parts, manifest


def _scored(use_case: UseCase, booster: xgb.Booster, parts: list[Path]) -> pa.Table:
    """Key, score, band and reasons of every row, sorted by the key."""
    names = use_case.feature_names
    pieces: list[pa.Table] = []
    for part in parts:
        with pq.ParquetFile(part) as file:
            for batch in file.iter_batches(BATCH_ROWS):
                rows = pa.Table.from_batches([batch])
                matrix = to_matrix(rows, names)
                scores = predict(booster, matrix)
                keys = rows.column(use_case.key)
                outside = np.flatnonzero(~((scores >= 0) & (scores <= 1)))
                if len(outside):
                    first = int(outside[0])
                    raise NightshiftError(
                        f"{use_case.name}: the model gives {use_case.key} {keys[first].as_py()!r} "
                        f"the score {scores[first]}, and {len(outside) - 1} more of {part.name} "
                        "are no probability either",
                        f"train again with `nightshift train {use_case.name}`",
                    )
                pieces.append(
                    pa.table(
                        {
                            use_case.key: keys,
                            use_case.score_column: scores,
                            "band": pa.array(assign(scores, use_case.bands), pa.string()),
                            "reasons": pa.array(
                                explain(
                                    matrix,
                                    contributions(booster, matrix)[:, : len(names)],
                                    names,
                                    reasons_per_row(use_case),
                                ),
                                pa.string(),
                            ),
                        }
                    )
                )
    if not pieces:
        raise NightshiftError(
            f"{use_case.name}: the features dataset has no row, so nobody can be scored",
            "check that the population's source has events in the days before as_of",
        )
    return pa.concat_tables(pieces).sort_by(use_case.key)
