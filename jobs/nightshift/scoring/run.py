"""Score one night's population with the champion: features in, scores and reasons out."""

import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from psycopg2 import sql

from nightshift import model_card
from nightshift.booster import Vector, contributions, double, intervals, predict, to_matrix
from nightshift.columns import numbers
from nightshift.errors import NightshiftError, RefusedAsOf
from nightshift.io import code, lake, model_store, registry
from nightshift.io.copy import copy_batches
from nightshift.io.held_sources import free
from nightshift.io.model_store import ModelVersion
from nightshift.io.warehouse import connect, holding, recorded_run
from nightshift.publication import (
    FeaturesUsed,
    MadeFrom,
    ScoresManifest,
    SourceUsed,
    TrainingUsed,
    publication_id,
)
from nightshift.scoring import lists
from nightshift.scoring.bands import assign
from nightshift.scoring.comparison import Challenge, Comparison, compare
from nightshift.scoring.parts import Refused, Scored, Threshold, score_on_spark, score_part
from nightshift.scoring.threshold import Chosen, Outcomes, choose
from nightshift.settings import Settings
from nightshift.spec import Source, TopItems, UseCase
from nightshift.xgboost_core import xgb

log = logging.getLogger(__name__)

BATCH_ROWS = 65_536
CHALLENGED_DATES = 30
MOST_SHOWN = 1000
# So many rows of a trained model are never of one leaf each.
ROWS_TO_DIFFER = 100


@dataclass(frozen=True)
class ScoreResult:
    """One scored night; ``is_new`` is False when the same scores were there already. ``threshold``:
    from which score on a row is alerted of; None where the use case has no alerts."""

    use_case: str
    as_of: date
    model_version: str
    publication_id: str
    rows: int
    is_new: bool
    threshold: Threshold | None = None


@dataclass(frozen=True)
class Model:
    """A registered version that is loaded."""

    version: model_store.ModelVersion
    loaded: tuple[xgb.Booster, model_store.Signature]


def score_nights(
    settings: Settings, use_case: UseCase, models: Mapping[date, model_store.ModelVersion]
) -> list[ScoreResult]:
    """Score many nights in one process, each as :func:`score` does; each model is loaded once.

    Args:
        models: ``as_of`` → the version that scores it.

    Raises:
        NightshiftError: as of :func:`score`; the nights before it stay scored.
    """
    loaded: dict[model_store.ModelVersion, Model] = {}
    results = []
    for number, as_of in enumerate(sorted(models), 1):
        version = models[as_of]
        if version not in loaded:
            loaded[version] = Model(version, model_store.load_model(settings, version, use_case))
        results.append(score(settings, use_case, as_of, loaded[version]))
        log.info("%s: %d of %d nights scored", use_case.name, number, len(models))
    return results


def score(
    settings: Settings, use_case: UseCase, as_of: date, model: Model | None = None
) -> ScoreResult:
    """Write ``lake/scores/<use_case>/as_of=D`` from the features of ``as_of`` and a model.

    The model is resolved once; its version is on every row. The same features and version
    give the same bytes, and are not computed twice.

    Args:
        model: None for the champion.

    Raises:
        RefusedAsOf: when there is no champion yet.
        NightshiftError: when there are no features, or they do not fit the model; or what a source
            that it reads was refused for.
    """
    day = f"{use_case.name}:{as_of}"
    with (
        recorded_run(settings, "score", as_of, use_case.name) as run,
        holding(settings, exclusive=[f"scores:{day}"], shared=[f"features:{day}"]),
    ):
        free(settings, [use_case], as_of)
        champion = _champion(settings, use_case, as_of) if model is None else model.version
        features, features_manifest = _features(settings, use_case, as_of)
        features_sha256 = str(features_manifest["sha256"])
        identity = publication_id(use_case.name, as_of, champion.version, features_sha256)
        folder = lake.dataset_dir(settings.lake_dir, "scores", use_case.name, as_of)
        threshold = _threshold(settings, use_case, as_of, champion)
        rows = _rows_already_there(folder, identity)
        is_new = rows is None
        lake.remove_leftovers(folder)
        if rows is None:
            booster, signature = (
                model.loaded if model else model_store.load_model(settings, champion, use_case)
            )
            with lake.replacing(folder) as target:
                scored = _score_parts(settings, use_case, booster, features, target, threshold)
                _require_scores(use_case, scored)
                rows = sum(each.rows for each in scored)
                manifest = ScoresManifest(
                    use_case=use_case.name,
                    as_of=as_of,
                    model_version=champion.version,
                    mlflow_run_id=champion.run_id,
                    publication_id=identity,
                    rows=rows,
                    # of a ranking what is not shown is no row
                    population_rows=rows if use_case.shown else int(features_manifest["rows"]),
                    features_sha256=features_sha256,
                    scored_at=datetime.now(UTC),
                    sha256=lake.digest([each.sha256 for each in scored]),
                    training_scores=signature.get("training_scores"),
                    made_from=_made_from(settings, use_case, as_of, features_manifest, signature),
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
            **({} if threshold is None else {"threshold": asdict(threshold)}),
        }
        return ScoreResult(
            use_case.name, as_of, champion.version, identity, rows, is_new, threshold
        )


def _made_from(
    settings: Settings,
    use_case: UseCase,
    as_of: date,
    features: Mapping[str, Any],
    signature: Mapping[str, Any],
) -> MadeFrom:
    """What a receipt will tell of where the scores come from.

    Args:
        features: the manifest of the dataset.
        signature: the model's.
    """
    root = settings.lake_dir
    folder = lake.dataset_dir(root, "features", use_case.name, as_of)
    trained = signature.get("as_of")
    place = trained and lake.dataset_dir(
        root, "training", use_case.name, date.fromisoformat(trained)
    )
    return MadeFrom(
        code_commit=code.commit(),
        features=FeaturesUsed(
            path=str(folder.relative_to(root)),
            sha256=features["sha256"],
            manifest_sha256=lake.file_sha256(folder / lake.MANIFEST),
            rows=features["rows"],
            spec_sha256=features.get("spec_sha256"),
            code_sha256=features.get("key", {}).get("code_sha256"),
            code_commit=features.get("code_commit"),
        ),
        training=TrainingUsed(
            as_of=trained,
            path=place and str(place.relative_to(root)),
            dataset_sha256=signature.get("dataset_sha256"),
            model_sha256=signature.get("model_sha256"),
        ),
        sources=tuple(
            _source_used(use_case, source, key)
            for source, key in use_case.streams
            # of an entity that is looked up through others no row of its own is told
            if key in use_case.row_key or use_case.mode == "event"
        ),
    )


def _source_used(use_case: UseCase, source: Source, key: str) -> SourceUsed:
    landed, *joined = source.landed_from or (source.landed_days or source.name,)
    event = use_case.source if use_case.mode == "event" and key not in use_case.row_key else None
    return SourceUsed(
        name=source.name,
        landed=landed,
        relation=source.relation,
        key=key,
        row_id=source.row_id,
        event_time=source.event_time,
        landed_date=source.landed_date,
        joined=tuple(joined),
        joined_dates=use_case.known_by(source),
        event_relation=event and event.relation,
        event_id=event and event.row_id,
    )


def challenge(settings: Settings, use_case: UseCase, as_of: date) -> Challenge | None:
    """Score ``as_of`` with the challenger too, into ``monitoring.<use_case>_challenger``.

    Readers never see these scores. The rows of a date are replaced at once; those of the newest
    ``CHALLENGED_DATES`` are kept, and of every date one row in ``monitoring.challenges``.

    Returns:
        None where no version is challenger.

    Raises:
        NightshiftError: when the champion has not scored these features, or the challenger cannot
            score them.
    """
    challenger = registry.challenger(settings, use_case.name)
    if challenger is None:
        log.info("%s has no challenger", use_case.name)
        return None
    from nightshift.scoring.challenge_page import render  # which most nights do not need

    day = f"{use_case.name}:{as_of}"
    with (
        recorded_run(settings, "challenge", as_of, use_case.name) as run,
        holding(
            settings,
            exclusive=[f"challenge:{use_case.name}"],
            shared=[f"scores:{day}", f"features:{day}"],
        ),
        lake.workspace(settings.lake_dir / lake.CHALLENGES) as place,
    ):
        features, features_manifest = _features(settings, use_case, as_of)
        folder = lake.dataset_dir(settings.lake_dir, "scores", use_case.name, as_of)
        manifest = lake.read_manifest(folder)
        if manifest is None or manifest["features_sha256"] != features_manifest["sha256"]:
            raise NightshiftError(
                f"{use_case.name} has no scores of these features for {as_of}",
                f"run `nightshift score {use_case.name} --as-of {as_of}` first",
            )
        booster, _ = model_store.load_model(settings, challenger, use_case)
        bands = tuple(band.model_copy(update={"reasons": "none"}) for band in use_case.bands)
        unexplained = use_case.model_copy(update={"bands": bands, "rules": (), "alerts": None})
        if use_case.shown is not None:  # beside what the champion shows, wherever it would be
            point = TopItems(k=MOST_SHOWN)
            unexplained = unexplained.model_copy(update={"working_point": point})
        _score_parts(settings, unexplained, booster, features, place)
        champion_version = str(manifest["model_version"])
        pairs = list(zip(lake.parts(folder), lake.parts(place), strict=True))
        if use_case.shown is not None:
            for ours, theirs in pairs:
                _only_rows_of(ours, theirs, use_case.row_key)
        comparison = compare(*_side_by_side(use_case, pairs))
        found = Challenge(use_case.name, as_of, champion_version, challenger.version, comparison)
        _keep_challenge(settings, use_case, found, pairs)
        run.result = asdict(found)
        model_store.write_into_card(
            settings,
            challenger.run_id,
            model_card.NIGHTS,
            render(_challenges(settings, challenger)),
        )
        log.info(
            "%s for %s: challenger %s gives %.1f %% of %s rows the band of champion %s, rank "
            "correlation %s",
            use_case.name, as_of, challenger.version, 100 * comparison.agreement,
            f"{comparison.rows:,}", champion_version,
            "none" if comparison.rank_correlation is None else f"{comparison.rank_correlation:.3f}",
        )  # fmt: skip
        return found


def _challenges(settings: Settings, challenger: ModelVersion) -> list[Challenge]:
    """The nights of a version beside the champion, newest first."""
    with connect(settings) as connection, connection.cursor() as cursor:
        cursor.execute(
            "select use_case, as_of, champion_version, challenger_version, rows, agreement,"
            " rank_correlation, mean_difference, largest_difference from monitoring.challenges"
            " where use_case = %s and challenger_version = %s order by as_of desc",
            (challenger.name, challenger.version),
        )
        return [
            Challenge(name, as_of, champion, version, Comparison(*figures))
            for name, as_of, champion, version, *figures in cursor.fetchall()
        ]


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
        interval: low and high; None where the use case has none.
        bias: what the contributions are added to.
        contributions: of every feature, largest first.
        published: of the same row and night; None where nothing was.
    """

    names: dict[str, str]
    model_version: str
    mlflow_run_id: str
    score: float
    interval: tuple[float, float] | None
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
    booster, _ = model_store.load_model(settings, model, use_case)
    matrix = to_matrix(vectors, use_case.feature_names)
    scores = predict(booster, matrix)
    parts = contributions(booster, matrix)
    ends = intervals(booster, matrix, scores) if use_case.interval else None
    ranks: lists.Places | None = None
    order = np.argsort(-scores, kind="stable")
    if use_case.shown is not None:
        chosen, places = lists.shown(_texts(vectors, use_case.key), scores, use_case.shown)
        order, ranks = chosen.astype(np.intp), np.zeros(len(scores), np.int64)
        ranks[chosen] = places
    bands = assign(scores, use_case.bands, ranks)
    published = _published(settings, use_case, as_of, vectors)
    found = []
    for row in order:
        order = np.argsort(-np.abs(parts[row, :-1]), kind="stable")
        found.append(
            Explained(
                names={name: str(vectors[name][row]) for name in use_case.vector_key},
                model_version=model.version,
                mlflow_run_id=model.run_id,
                score=float(scores[row]),
                interval=None if ends is None else (float(ends[row, 0]), float(ends[row, 1])),
                band=use_case.bands[bands[row]].name,
                bias=float(parts[row, -1]),
                contributions=tuple(
                    Contribution(
                        use_case.feature_names[i],
                        None if np.isnan(matrix[row, i]) else float(matrix[row, i]),
                        float(parts[row, i]),
                    )
                    for i in order
                ),
                published=published.get(
                    tuple(str(vectors[name][row]) for name in use_case.row_key)
                ),
            )
        )
    return found


def _texts(table: pa.Table, name: str) -> pa.Array:
    return table[name].cast(pa.string()).combine_chunks()


def _published(
    settings: Settings, use_case: UseCase, as_of: date, vectors: pa.Table
) -> dict[tuple[str, ...], Published]:
    """By the columns that name a row."""
    with connect(settings) as connection, connection.cursor() as cursor:
        cursor.execute("select to_regclass(%s)", (use_case.table,))
        if cursor.fetchone() == (None,):
            return {}
        cursor.execute(
            sql.SQL(
                "select publication_id, model_version, {score}, {names} from {table}"
                " where as_of = %s and {key} = any(%s)"
            ).format(
                key=sql.Identifier(use_case.key),
                names=sql.SQL(", ").join(map(sql.Identifier, use_case.row_key)),
                score=sql.Identifier(use_case.score_column),
                table=sql.Identifier(*use_case.table.split(".")),
            ),
            (as_of, vectors[use_case.key].to_pylist()),
        )
        return {tuple(map(str, row[3:])): Published(*row[:3]) for row in cursor.fetchall()}


def _threshold(
    settings: Settings, use_case: UseCase, as_of: date, version: model_store.ModelVersion
) -> Threshold | None:
    """The threshold of the night, chosen once: a night that is run again has the same."""
    alerts = use_case.alerts
    if alerts is None:
        return None
    named = f"{as_of.isoformat()}/{version.version}"
    with connect(settings) as connection, connection.cursor() as cursor:
        cursor.execute(
            "select threshold from ops.thresholds where use_case = %s and threshold_version = %s",
            (use_case.name, named),
        )
        if (row := cursor.fetchone()) is not None:
            return Threshold(row[0], named)
        cursor.execute(
            "select threshold from ops.thresholds where use_case = %s and as_of < %s"
            " order by as_of desc, threshold_id desc limit 1",
            (use_case.name, as_of),
        )
        before = cursor.fetchone()
        previous = None if before is None else float(before[0])
        outcomes = _outcomes(settings, cursor, use_case, as_of)
        if outcomes is None or outcomes.nights < alerts.min_nights:
            outcomes = _tested(settings, use_case, version)
        chosen: Chosen = choose(alerts, outcomes, previous)
        cursor.execute(
            "insert into ops.thresholds (use_case, as_of, model_version, threshold_version,"
            " threshold, previous, target, reason, evidence)"
            " values (%s, %s, %s, %s, %s, %s, %s, %s, %s)",
            (
                use_case.name, as_of, version.version, named, chosen.threshold, previous,
                alerts.target.model_dump_json(), chosen.reason, json.dumps(chosen.evidence),
            ),
        )  # fmt: skip
    log.info(
        "%s for %s: threshold %.4f, before %s: %s",
        use_case.name, as_of, chosen.threshold, "none" if previous is None else f"{previous:.4f}",
        chosen.reason,
    )  # fmt: skip
    return Threshold(chosen.threshold, named)


def _outcomes(settings: Settings, cursor: Any, use_case: UseCase, as_of: date) -> Outcomes | None:
    """What readers were shown on the nights whose labels are known, and what came of it."""
    folder = lake.dataset_dir(settings.lake_dir, "outcomes", use_case.name, as_of)
    manifest = lake.read_manifest(folder)
    cursor.execute("select to_regclass(%s)", (use_case.table,))
    if manifest is None or cursor.fetchone() == (None,):
        return None
    nights = [date.fromisoformat(night) for night in manifest["nights"]]
    cursor.execute(
        sql.SQL(
            "select as_of, {key}, max({score}) from {table} where as_of = any(%s)"
            " group by as_of, {key} order by as_of, {key}"
        ).format(
            key=sql.Identifier(use_case.key),
            score=sql.Identifier(use_case.score_column),
            table=sql.Identifier(*use_case.table.split(".")),
        ),
        (nights,),
    )
    shown = cursor.fetchall()
    if not shown:
        return None
    reported = pa.concat_tables(
        [pq.read_table(part, partitioning=None) for part in lake.parts(folder)]
    )
    found = set(zip(reported["as_of"].to_pylist(), reported[use_case.key].to_pylist(), strict=True))
    there = sorted({night for night, _, _ in shown})
    return Outcomes(
        scores=np.array([score for _, _, score in shown], dtype=np.float64),
        is_found=np.array([(night, key) in found for night, key, _ in shown], dtype=np.bool_),
        nights=len(there),
        of=f"{len(there)} published nights from {there[0]} to {there[-1]}",
    )


def _tested(
    settings: Settings, use_case: UseCase, version: model_store.ModelVersion
) -> Outcomes | None:
    """The test scores of the model's training; None where it keeps none."""
    try:
        folder = model_store.fetch(settings, version.run_id, model_store.EVALUATION)
        rows = pq.ParquetFile(folder / "test_predictions.parquet").read()
    except (NightshiftError, OSError):
        return None
    best = rows.group_by(["snapshot", use_case.key]).aggregate(
        [("score_model", "max"), ("label", "max")]
    )
    nights = rows["snapshot"].unique().to_pylist()
    return Outcomes(
        scores=numbers(best["score_model_max"]),
        is_found=numbers(best["label_max"]) > 0,
        nights=len(nights),
        of=f"too few published nights are known, and {len(nights)} test nights of the training of"
        f" version {version.version}",
    )


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
    if lake.parts_sha256(lake.parts(folder)) != manifest.get("sha256"):
        return None
    return int(manifest["rows"])


def _features(
    settings: Settings, use_case: UseCase, as_of: date
) -> tuple[list[Path], dict[str, Any]]:
    """The parts of the features dataset and its manifest."""
    folder = lake.dataset_dir(settings.lake_dir, "features", use_case.name, as_of)
    remedy = f"run `nightshift nightly --as-of {as_of.isoformat()}`, which builds them"
    manifest = lake.read_manifest(folder)
    parts = lake.parts(folder)
    if manifest is None or not parts:
        raise NightshiftError(
            f"{use_case.name} has no features for {as_of}: nothing complete in {folder}", remedy
        )
    expected = {*use_case.vector_key, *use_case.feature_names}
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


def _score_parts(
    settings: Settings,
    use_case: UseCase,
    booster: xgb.Booster,
    features: list[Path],
    target: Path,
    threshold: Threshold | None = None,
) -> list[Scored]:
    """A part of the scores for each of the features, by threads of this process or on Spark."""
    if settings.scoring == "spark":
        from nightshift.io.spark import spark_session

        with spark_session(settings, f"nightshift score {use_case.name}") as spark:
            context = spark.sparkContext
            model = context.broadcast(bytes(booster.save_raw("ubj")))
            found = (
                context.parallelize(features, len(features))
                .map(lambda part: score_on_spark(use_case, model.value, part, target, threshold))
                .collect()
            )
        for each in found:
            if isinstance(each, Refused):
                raise NightshiftError(each.what, each.remedy)
        return [each for each in found if isinstance(each, Scored)]
    booster.set_param({"nthread": 1})
    doubled = double(booster)
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
        return list(
            threads.map(
                lambda part: score_part(use_case, booster, doubled, part, target, threshold),
                features,
            )
        )


def _only_rows_of(part: Path, other: Path, names: Sequence[str]) -> None:
    """Rewrite another part of scores with the rows of the first, in their order."""
    ours, theirs = pq.read_table(part, columns=list(names)), pq.read_table(other)
    ours_named, named = (
        pc.binary_join_element_wise(*(_texts(table, name) for name in names), "\0")
        for table in (ours, theirs)
    )
    found = theirs.take(pc.index_in(ours_named, value_set=named))
    pq.write_table(found, other)


def _side_by_side(
    use_case: UseCase, pairs: Sequence[tuple[Path, Path]]
) -> tuple[Vector, Vector, npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Scores and bands of the champion's and the challenger's parts, as ``compare`` takes them."""
    scores = [
        numbers(
            pa.concat_tables(
                [pq.read_table(pair[which], columns=[use_case.score_column]) for pair in pairs]
            ).column(use_case.score_column)
        )
        for which in (0, 1)
    ]
    first, second = scores
    one, other = (
        None if use_case.shown is None else np.concatenate(
            [numbers(pq.read_table(pair[which], columns=["rank"])["rank"]) for pair in pairs]
        ).astype(np.int64)
        for which in (0, 1)
    )  # fmt: skip
    return (
        first, second, assign(first, use_case.bands, one), assign(second, use_case.bands, other)
    )  # fmt: skip


def _keep_challenge(
    settings: Settings, use_case: UseCase, found: Challenge, pairs: Sequence[tuple[Path, Path]]
) -> None:
    """Replace the date's rows in one transaction."""
    schema = pa.schema(
        {
            **dict.fromkeys(use_case.row_key, pa.string()),
            "as_of": pa.date32(),
            "champion_version": pa.string(),
            "champion_score": pa.float64(),
            "champion_band": pa.string(),
            "challenger_version": pa.string(),
            "challenger_score": pa.float64(),
            "challenger_band": pa.string(),
        }
    )
    table = sql.Identifier("monitoring", f"{use_case.name}_challenger")
    constants = {
        "as_of": found.as_of,
        "champion_version": found.champion_version,
        "challenger_version": found.challenger_version,
    }

    def rows() -> Iterator[pa.RecordBatch]:
        columns = [*use_case.row_key, use_case.score_column, "band"]
        for ours, theirs in pairs:
            with (
                pq.ParquetFile(ours, pre_buffer=False) as champion,
                pq.ParquetFile(theirs, pre_buffer=False) as challenger,
            ):
                both = zip(
                    champion.iter_batches(BATCH_ROWS, columns=columns),
                    challenger.iter_batches(BATCH_ROWS, columns=columns),
                    strict=True,
                )
                for one, other in both:
                    named = {
                        **{name: one.column(name) for name in use_case.row_key},
                        "champion_score": one.column(use_case.score_column),
                        "champion_band": one.column("band"),
                        "challenger_score": other.column(use_case.score_column),
                        "challenger_band": other.column("band"),
                    }
                    filled = [
                        named.get(field.name, pa.repeat(constants.get(field.name), len(one)))
                        for field in schema
                    ]
                    yield pa.RecordBatch.from_arrays(
                        [
                            column.cast(field.type)
                            for column, field in zip(filled, schema, strict=True)
                        ],
                        schema=schema,
                    )

    with connect(settings) as connection, connection.cursor() as cursor:
        cursor.execute(
            sql.SQL(
                "create table if not exists {table} ({columns}, as_of date, champion_version text,"
                " champion_score double precision, champion_band text, challenger_version text,"
                " challenger_score double precision, challenger_band text,"
                " primary key (as_of, {names}))"
            ).format(
                table=table,
                columns=sql.SQL(", ").join(
                    sql.SQL("{} text").format(sql.Identifier(name)) for name in use_case.row_key
                ),
                names=sql.SQL(", ").join(map(sql.Identifier, use_case.row_key)),
            )
        )
        cursor.execute(
            sql.SQL(
                "delete from {table} where as_of = %s or as_of not in"
                " (select as_of from monitoring.challenges where use_case = %s"
                " order by as_of desc limit %s)"
            ).format(table=table),
            (found.as_of, found.use_case, CHALLENGED_DATES),
        )
        copy_batches(connection, f"monitoring.{use_case.name}_challenger", schema, rows())
        kept = {
            "use_case": found.use_case,
            "as_of": found.as_of,
            "champion_version": found.champion_version,
            "challenger_version": found.challenger_version,
            **asdict(found.comparison),
        }
        cursor.execute(
            sql.SQL(
                "insert into monitoring.challenges ({names}) values ({values})"
                " on conflict (use_case, as_of) do update set ({names}, challenged_at) ="
                " ({excluded}, now())"
            ).format(
                names=sql.SQL(", ").join(map(sql.Identifier, kept)),
                values=sql.SQL(", ").join(sql.Placeholder(name) for name in kept),
                excluded=sql.SQL(", ").join(sql.Identifier("excluded", name) for name in kept),
            ),
            kept,
        )


def _require_scores(use_case: UseCase, scored: list[Scored]) -> None:
    """Refuse nobody, and a model that tells nobody from anybody."""
    rows = sum(each.rows for each in scored)
    if not rows:
        raise NightshiftError(
            f"{use_case.name}: the features dataset has no row, so nobody can be scored",
            "check that the population's source has events in the days before as_of",
        )
    low, high = min(each.low for each in scored), max(each.high for each in scored)
    if rows >= ROWS_TO_DIFFER and low == high:
        raise NightshiftError(
            f"{use_case.name}: the model gives all {rows:,} rows the same score, {low:g}",
            "look for features that have become null or constant: `nightshift features list "
            f"{use_case.name}`; or `nightshift rollback {use_case.name}`",
        )
