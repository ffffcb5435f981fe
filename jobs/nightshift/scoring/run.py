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
from psycopg2 import sql

from nightshift.booster import Matrix, Vector, contributions, predict, to_matrix
from nightshift.errors import NightshiftError, RefusedAsOf
from nightshift.io import lake, model_store, registry
from nightshift.io.warehouse import connect, holding, recorded_run
from nightshift.publication import ScoresManifest, publication_id, reasons_per_row
from nightshift.scoring.bands import assign
from nightshift.scoring.reasons import explain
from nightshift.settings import Settings
from nightshift.spec import UseCase

log = logging.getLogger(__name__)

PART = "part-00000.parquet"
BATCH_ROWS = 65_536
# So many rows of a trained model are never of one leaf each.
ROWS_TO_DIFFER = 100


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
        champion = _champion(settings, use_case, as_of)
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


@dataclass(frozen=True)
class Contribution:
    """What one feature adds to a score: ``value`` is None for null; ``contribution`` is exact SHAP,
    in the booster's own unit."""

    feature: str
    value: float | None
    contribution: float

    @property
    def direction(self) -> str:
        """``raises`` or ``lowers``, as in the published reasons."""
        return "raises" if self.contribution > 0 else "lowers"


@dataclass(frozen=True)
class Published:
    """The row that readers see."""

    publication_id: str
    model_version: str
    score: float


@dataclass(frozen=True)
class Explained:
    """One row's score, and what it is made of.

    Attributes:
        names: the columns that name the row.
        bias: what the contributions are added to.
        contributions: of every feature, largest first.
        published: of the same row and night; None where nothing was.
    """

    names: dict[str, str]
    model_version: str
    mlflow_run_id: str
    score: float
    band: str
    bias: float
    contributions: tuple[Contribution, ...]
    published: Published | None

    @property
    def is_as_published(self) -> bool | None:
        """Whether the published score has the same bits; None without one of this version."""
        if self.published is None or self.published.model_version != self.model_version:
            return None
        return np.float64(self.score).tobytes() == np.float64(self.published.score).tobytes()


def explain_rows(
    settings: Settings, use_case: UseCase, as_of: date, vectors: pa.Table, version: str | None
) -> list[Explained]:
    """Score feature vectors as a night does, and take each score apart; highest scores first.

    Args:
        vectors: the columns that name a row, and the features.
        version: of the model; None for the champion.

    Raises:
        RefusedAsOf: when there is no champion yet.
        NightshiftError: when there is no such version, or it reads other features.
    """
    if version is None:
        model = _champion(settings, use_case, as_of)
    else:
        known = model_store.registered(settings, use_case.name)
        if version not in known:
            raise NightshiftError(
                f"{use_case.name} has no version {version}; there are {', '.join(known) or 'none'}",
                f"see `nightshift history {use_case.name}`",
            )
        model = known[version]
    booster, _ = model_store.load_model(settings, model)
    matrix = to_matrix(vectors, use_case.feature_names)
    scores = predict(booster, matrix)
    parts = contributions(booster, matrix)
    published = _published(settings, use_case, as_of, vectors)
    found = []
    for row in np.argsort(-scores, kind="stable"):
        order = np.argsort(-np.abs(parts[row, :-1]), kind="stable")
        found.append(
            Explained(
                names={name: str(vectors[name][row]) for name in use_case.vector_key},
                model_version=model.version,
                mlflow_run_id=model.run_id,
                score=float(scores[row]),
                band=assign(scores[row : row + 1], use_case.bands)[0],
                bias=float(parts[row, -1]),
                contributions=tuple(
                    Contribution(
                        use_case.feature_names[i],
                        None if np.isnan(matrix[row, i]) else float(matrix[row, i]),
                        float(parts[row, i]),
                    )
                    for i in order
                ),
                published=published.get(str(vectors[use_case.key][row])),
            )
        )
    return found


def _published(
    settings: Settings, use_case: UseCase, as_of: date, vectors: pa.Table
) -> dict[str, Published]:
    """By key, where a key names a row."""
    if use_case.mode != "snapshot":
        return {}
    with connect(settings) as connection, connection.cursor() as cursor:
        cursor.execute("select to_regclass(%s)", (use_case.table,))
        if cursor.fetchone() == (None,):
            return {}
        cursor.execute(
            sql.SQL(
                "select {key}, publication_id, model_version, {score} from {table}"
                " where as_of = %s and {key} = any(%s)"
            ).format(
                key=sql.Identifier(use_case.key),
                score=sql.Identifier(use_case.score_column),
                table=sql.Identifier(*use_case.table.split(".")),
            ),
            (as_of, vectors[use_case.key].to_pylist()),
        )
        return {str(key): Published(*found) for key, *found in cursor.fetchall()}


def _champion(settings: Settings, use_case: UseCase, as_of: date) -> model_store.ModelVersion:
    champion = registry.champion(settings, use_case.name)
    if champion is None:
        raise RefusedAsOf(
            f"no champion yet for {use_case.name}",
            f"run `nightshift train {use_case.name} --as-of {as_of.isoformat()}`, or trigger "
            f"the DAG train__{use_case.name}",
        )
    return champion


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
                _require_finite(use_case, part, rows, matrix)
                scores = predict(booster, matrix)
                keys = rows.column(use_case.key)
                _require_probabilities(use_case, part, keys, scores)
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
    scored = pa.concat_tables(pieces).sort_by(use_case.key)
    scores = scored.column(use_case.score_column).to_numpy()
    if len(scores) >= ROWS_TO_DIFFER and np.ptp(scores) == 0:
        raise NightshiftError(
            f"{use_case.name}: the model gives all {len(scores):,} rows the same score, "
            f"{scores[0]:g}",
            "look for features that have become null or constant: `nightshift features list "
            f"{use_case.name}`; or `nightshift rollback {use_case.name}`",
        )
    return scored


def _require_finite(use_case: UseCase, part: Path, rows: pa.Table, matrix: Matrix) -> None:
    """Refuse infinite features: the model has learned from none."""
    infinite = np.argwhere(np.isinf(matrix))
    if len(infinite):
        row, column = (int(place) for place in infinite[0])
        raise NightshiftError(
            f"{use_case.name}: feature {use_case.feature_names[column]} of {use_case.key} "
            f"{rows.column(use_case.key)[row].as_py()!r} in {part.name} is {matrix[row, column]}; "
            f"{len(infinite)} values of {matrix.shape[0]:,} rows are infinite",
            "mend what the mart holds, or the declaration that divides by it, and run the night "
            "again",
        )


def _require_probabilities(
    use_case: UseCase, part: Path, keys: pa.ChunkedArray, scores: Vector
) -> None:
    outside = np.flatnonzero(~((scores >= 0) & (scores <= 1)))
    if use_case.objective == "binary" and len(outside):
        first = int(outside[0])
        raise NightshiftError(
            f"{use_case.name}: the model gives {use_case.key} {keys[first].as_py()!r} the score "
            f"{scores[first]}, and {len(outside) - 1} more of {part.name} are no probability "
            "either",
            f"train again with `nightshift train {use_case.name}`",
        )
