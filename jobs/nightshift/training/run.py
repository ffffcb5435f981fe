"""Train a use case: the dataset in the lake in, an MLflow run and a model version out.

``python -m nightshift.training.run MODEL DATASET``, of two folders, fits the model again to the
dataset and prints the SHA-256 of its bytes.
"""

import hashlib
import json
import logging
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import xgboost as xgb

from nightshift.baselines import LINEAR, fit_linear, heuristic_scores, linear_scores
from nightshift.booster import Matrix, Vector, predict, row_order, to_matrix
from nightshift.errors import NightshiftError
from nightshift.io import model_store
from nightshift.io.lake import dataset_dir, digest, read_manifest
from nightshift.io.warehouse import recorded_run
from nightshift.metrics import Estimate, Measured, measure
from nightshift.settings import PROJECT_ROOT, Settings
from nightshift.spec import UseCase
from nightshift.training import report
from nightshift.training.fit import (
    fit_early_stopped,
    fit_trees,
    model_bytes,
    parameters,
)
from nightshift.training.slices import slice_rows
from nightshift.training.split import Split, rolling_origins, stale_splits

log = logging.getLogger(__name__)

MODEL = "model"
SAMPLE_ROWS = 512


@dataclass(frozen=True)
class TrainingResult:
    """``metrics`` are the flat figures that MLflow holds, such as ``test_auc``."""

    mlflow_run_id: str
    version: str
    trees: int
    rows: int
    model_sha256: str
    metrics: dict[str, float]


@dataclass(frozen=True)
class _Dataset:
    manifest: dict[str, Any]
    keys: npt.NDArray[Any]
    snapshots: npt.NDArray[Any]
    labels: npt.NDArray[np.int32]
    matrix: Matrix
    items: npt.NDArray[Any] | None

    def rows_of(self, snapshots: tuple[date, ...]) -> npt.NDArray[np.bool_]:
        return np.isin(self.snapshots, np.array(snapshots, dtype="datetime64[D]"))


def train(settings: Settings, use_case: UseCase, as_of: date) -> TrainingResult:
    """Train, measure and register; the champion is left to the gates.

    Two models are fitted. The *evaluation* model learns from the train snapshots, stops on the
    validation snapshots, and is measured on the test snapshots, which it has never seen: its
    figures are what gates judge. The *shipped* model has as many trees and learns from every
    mature snapshot: the split gives up two label horizons to the embargo, and the newest months,
    which tell the most about tonight, would otherwise be lost. Its own quality is measured once
    its predictions mature.

    The same dataset, seed and library versions give the same model bytes; a repetition is a new
    MLflow run.

    Raises:
        NightshiftError: when the dataset is missing, unfit or too short.
    """
    with recorded_run(settings, "training", as_of, use_case.name) as run:
        dataset = _read_dataset(settings, use_case, as_of)
        days = [date.fromisoformat(str(day)) for day in np.unique(dataset.snapshots)]
        plan, embargo_days = use_case.snapshots, use_case.label.maturity_days
        origins = rolling_origins(days, plan, embargo_days)
        parts = origins[0]
        _check_classes(use_case, dataset, parts)
        _check_features(use_case, dataset, parts)
        started = time.perf_counter()
        evaluation, scores = _fit_and_score(settings, use_case, dataset, parts)
        trees = evaluation.num_boosted_rounds()
        shipped = fit_trees(
            dataset.matrix, dataset.labels, use_case.feature_names, trees, settings.seed
        )
        log.info(
            "fitted %d trees to %s rows in %.1f s",
            trees, f"{len(dataset.labels):,}", time.perf_counter() - started,
        )  # fmt: skip
        measured = {
            part: _measure(settings, use_case, dataset, parts, part, scores)
            for part in ("validation", "test")
        }
        over_time = report.OverTime(
            origins=_measure_origins(settings, use_case, dataset, origins, measured["test"]),
            staleness=_measure_staleness(
                settings, use_case, dataset, parts, stale_splits(days, plan, embargo_days), scores
            ),
        )
        metrics = _flat_metrics(measured)
        log.info(
            "test AUC: %s",
            ", ".join(f"{s} {m['auc'].value:.3f}" for s, m in measured["test"].scorers.items()),
        )
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            gains = report.gain_shares(
                {k: float(v) for k, v in evaluation.get_score(importance_type="total_gain").items()}  # type: ignore[arg-type]
            )
            _write_models(
                folder, use_case, as_of, dataset, parts, evaluation, shipped, settings.seed
            )
            _write_evaluation(folder, use_case, dataset, parts, scores, measured, over_time)
            _write_report(
                folder, use_case, as_of, dataset, parts, trees, scores, measured, over_time, gains
            )
            logged = metrics | _slice_metrics(measured["test"]) | _metrics_over_time(over_time)
            run_id = _log_to_mlflow(
                settings, use_case, as_of, dataset, parts, trees, logged, folder
            )
        version = model_store.register(settings, use_case.name, run_id, as_of.isoformat())
        result = TrainingResult(
            mlflow_run_id=run_id,
            version=version.version,
            trees=trees,
            rows=len(dataset.labels),
            model_sha256=hashlib.sha256(model_bytes(shipped)).hexdigest(),
            metrics=metrics,
        )
        # jsonb has no NaN.
        finite = {name: value for name, value in metrics.items() if np.isfinite(value)}
        run.result = {**asdict(result), "metrics": finite}
        log.info("registered %s version %s (run %s)", use_case.name, version.version, run_id)
        return result


def rebuild(model: Path, dataset: Path) -> str:
    """SHA-256 of the model that a dataset gives, fitted as the signature in ``model`` tells.

    Raises:
        NightshiftError: when the model or the dataset cannot be read, or the dataset is another
            than the model was trained on.
    """
    _, signature = model_store.read_model(model)
    manifest, table = _read_table(dataset, signature["key"], signature["features"])
    if manifest.get("sha256") != signature["dataset_sha256"]:
        raise NightshiftError(
            f"the dataset in {dataset} is {manifest.get('sha256')}, the model was trained on "
            f"{signature['dataset_sha256']}",
            "train again with `nightshift train`",
        )
    booster = fit_trees(
        to_matrix(table, signature["features"]),
        table.column("label").cast(pa.int32()).to_numpy(),
        signature["features"],
        signature["trees"],
        signature["seed"],
    )
    return hashlib.sha256(model_bytes(booster)).hexdigest()


def _read_dataset(settings: Settings, use_case: UseCase, as_of: date) -> _Dataset:
    folder = dataset_dir(settings.lake_dir, "training", use_case.name, as_of)
    if read_manifest(folder) is None:
        raise NightshiftError(
            f"there is no training dataset of {use_case.name} as of {as_of} in {folder}",
            f"run `nightshift train {use_case.name} --as-of {as_of}`: it builds the features first",
        )
    manifest, table = _read_table(folder, use_case.key, use_case.feature_names)
    newest = table.column("snapshot").combine_chunks()
    latest = newest[-1].as_py() if len(newest) else as_of
    matures = latest + timedelta(days=use_case.label.maturity_days)
    if len(newest) and matures > as_of:
        raise NightshiftError(
            f"the training dataset in {folder} has snapshot {latest}, whose labels are known on "
            f"{matures} only, after as_of {as_of}",
            "build the training dataset again; training on it would leak the future",
        )
    label_column = table.column("label")
    unfit = label_column.null_count or not set(label_column.unique().to_pylist()) <= {0, 1}
    if unfit:
        raise NightshiftError(
            f"column label of {folder} has values other than 0 and 1: "
            f"{label_column.unique().to_pylist()[:10]}",
            "build the training dataset again",
        )
    items = use_case.vector_key[1:] if use_case.objective == "ranking" else ()
    return _Dataset(
        manifest=manifest,
        keys=np.asarray(table.column(use_case.key).to_pylist(), dtype=str),
        snapshots=np.asarray(newest.to_numpy(zero_copy_only=False), dtype="datetime64[D]"),
        labels=label_column.cast(pa.int32()).to_numpy(),
        matrix=to_matrix(table, use_case.feature_names),
        items=np.asarray(table.column(items[0]).to_pylist(), dtype=str) if items else None,
    )


def _read_table(
    folder: Path, key: str, feature_names: Sequence[str]
) -> tuple[dict[str, Any], pa.Table]:
    """The manifest of a dataset, and its rows in the order in which models learn them."""
    manifest = read_manifest(folder)
    files = sorted(folder.glob("part-*.parquet"))
    if manifest is None or not files:
        lacking = "manifest" if manifest is None else "part-*.parquet"
        raise NightshiftError(f"{folder} has no {lacking}", "build the training dataset again")
    table = pa.concat_tables([pq.ParquetFile(file).read() for file in files])
    wanted = {key, "snapshot", "label", *feature_names}
    if missing := sorted(wanted - set(table.column_names)):
        raise NightshiftError(
            f"the training dataset in {folder} lacks {', '.join(missing)}",
            "it was built for another version of the use case: build it again",
        )
    if table.num_rows != manifest["rows"]:
        raise NightshiftError(
            f"the training dataset in {folder} has {table.num_rows} rows, its manifest says "
            f"{manifest['rows']}",
            "build the training dataset again",
        )
    return manifest, table.sort_by(row_order(feature_names, key))


def _check_classes(use_case: UseCase, dataset: _Dataset, parts: Split) -> None:
    for name in ("train", "validation", "test"):
        labels = dataset.labels[dataset.rows_of(getattr(parts, name))]
        if len(np.unique(labels)) < 2:
            dates = getattr(parts, name)
            raise NightshiftError(
                f"the {name} snapshots ({dates[0]} … {dates[-1]}) of {use_case.name} hold "
                f"{len(labels)} rows, all with label {labels[0] if len(labels) else 'none'}",
                "nothing can be learned from one class: check the label's condition and the "
                "landings of its horizon",
            )


def _has_both_classes(dataset: _Dataset, parts: Split) -> bool:
    """Whether an earlier model can be fitted and measured; one that cannot is left out."""
    labels = [
        dataset.labels[dataset.rows_of(days)]
        for days in (parts.train, parts.validation, parts.test)
    ]
    if all(len(np.unique(found)) == 2 for found in labels):
        return True
    log.warning("no model of %s … %s: a part has one class", parts.train[0], parts.test[-1])
    return False


def _check_features(use_case: UseCase, dataset: _Dataset, parts: Split) -> None:
    names = np.array(use_case.feature_names)
    # Reductions that pass over NaN, without a copy of the matrix.
    extremes = np.fmax.reduce(dataset.matrix), np.fmin.reduce(dataset.matrix)
    infinite = np.flatnonzero(np.isinf(extremes).any(axis=0))
    if len(infinite):
        values = dataset.matrix[:, infinite[0]]
        rows = np.flatnonzero(np.isinf(values))
        raise NightshiftError(
            f"feature {names[infinite[0]]} of {dataset.keys[rows[0]]} at snapshot "
            f"{dataset.snapshots[rows[0]]} is {values[rows[0]]}; {len(rows)} of its values are "
            f"infinite, and of {len(infinite)} features some are",
            "mend what the mart holds, or the declaration that divides by it, and build the "
            "training dataset again",
        )
    learned = dataset.rows_of(parts.train)
    greatest = np.fmax.reduce(dataset.matrix, where=learned[:, None], initial=np.float32(np.nan))
    is_null = np.isnan(greatest)
    if is_null.all():
        raise NightshiftError(
            f"all {len(names)} features of {use_case.name} are null in the {learned.sum()} rows of "
            f"the train snapshots ({parts.train[0]} … {parts.train[-1]})",
            "nothing can be learned from them: check the marts that the feature groups read",
        )
    if is_null.any():
        log.warning(
            "null in every row of the train snapshots, so that nothing is learned from it: %s",
            ", ".join(names[is_null]),
        )


def _fit_and_score(
    settings: Settings, use_case: UseCase, dataset: _Dataset, parts: Split
) -> tuple[xgb.Booster, dict[str, Vector]]:
    learn = dataset.rows_of(parts.train)
    matrix, labels = dataset.matrix, dataset.labels
    evaluation = _fit(settings, use_case, dataset, parts)
    linear = fit_linear(matrix[learn], labels[learn], settings.seed)
    scores = {MODEL: predict(evaluation, matrix)}
    for heuristic in use_case.heuristics:
        column = matrix[:, use_case.feature_names.index(heuristic.feature)]
        scores[heuristic.name] = heuristic_scores(heuristic, column)
    scores[LINEAR] = linear_scores(linear, matrix)
    return evaluation, scores


def _fit(settings: Settings, use_case: UseCase, dataset: _Dataset, parts: Split) -> xgb.Booster:
    learn, choose = dataset.rows_of(parts.train), dataset.rows_of(parts.validation)
    return fit_early_stopped(
        (dataset.matrix[learn], dataset.labels[learn]),
        (dataset.matrix[choose], dataset.labels[choose]),
        use_case.feature_names,
        settings.seed,
    )


def _measure(
    settings: Settings,
    use_case: UseCase,
    dataset: _Dataset,
    parts: Split,
    part: str,
    scores: dict[str, Vector],
) -> Measured:
    """Measure one part of a split; the test also slice by slice."""
    rows = dataset.rows_of(getattr(parts, part))
    slices = slice_rows(
        use_case.slices if part == "test" else (),
        use_case.feature_names,
        dataset.matrix,
        dataset.rows_of(parts.train),
        rows,
    )
    return measure(
        dataset.labels[rows],
        dataset.keys[rows],
        {name: score[rows] for name, score in scores.items()},
        [name for name in scores if name not in {h.name for h in use_case.heuristics}],
        settings.seed,
        objective=use_case.objective,
        working_point=use_case.working_point,
        snapshots=dataset.snapshots[rows],
        items=None if dataset.items is None else dataset.items[rows],
        slices=slices,
    )


def _measure_origins(
    settings: Settings,
    use_case: UseCase,
    dataset: _Dataset,
    origins: Sequence[Split],
    newest: Measured,
) -> tuple[tuple[Split, Measured], ...]:
    """Each origin's split with the figures of its test, newest first."""
    found = [(origins[0], newest)]
    for parts in origins[1:]:
        if not _has_both_classes(dataset, parts):
            continue
        _, scores = _fit_and_score(settings, use_case, dataset, parts)
        measured = _measure(settings, use_case, dataset, parts, "test", scores)
        found.append((parts, replace(measured, slices={})))
    return tuple(found)


def _measure_staleness(
    settings: Settings,
    use_case: UseCase,
    dataset: _Dataset,
    fresh: Split,
    stale: Mapping[int, Split],
    scores: dict[str, Vector],
) -> Measured | None:
    """The fresh model against those that are weeks older, all on the newest test."""
    stale = {weeks: parts for weeks, parts in stale.items() if _has_both_classes(dataset, parts)}
    if not stale:
        return None
    fitted = {fresh: scores[MODEL]}
    for parts in stale.values():
        if parts not in fitted:
            fitted[parts] = predict(_fit(settings, use_case, dataset, parts), dataset.matrix)
    ages = {
        f"{weeks} week" + ("s" if weeks > 1 else ""): fitted[parts]
        for weeks, parts in stale.items()
    }
    without_slices = use_case.model_copy(update={"slices": ()})
    return _measure(
        settings, without_slices, dataset, fresh, "test", {"fresh": fitted[fresh], **ages}
    )


def _flat_metrics(measured: dict[str, Measured]) -> dict[str, float]:
    flat: dict[str, float] = {}
    for part, figures in measured.items():
        flat |= _flat(f"{part}_base_rate", figures.base_rate)
        for scorer, estimates in figures.scorers.items():
            for metric, estimate in estimates.items():
                name = f"{part}_{metric}" + ("" if scorer == MODEL else f"_{scorer}")
                flat |= _flat(name, estimate)
        for baseline, estimates in figures.differences.items():
            for metric, estimate in estimates.items():
                flat |= _flat(f"{part}_{metric}_minus_{baseline}", estimate)
    return flat


def _slice_metrics(test: Measured) -> dict[str, float]:
    flat: dict[str, float] = {}
    for name, groups in test.slices.items():
        for group, figures in groups.items():
            flat[f"slice/{name}/{group}/rows"] = figures.rows
            for metric, estimate in figures.estimates.items():
                flat |= _flat(f"slice/{name}/{group}/{metric}", estimate)
    return flat


def _metrics_over_time(over_time: report.OverTime) -> dict[str, float]:
    flat: dict[str, float] = {}
    for parts, measured in over_time.origins:
        for metric, estimate in measured.scorers[MODEL].items():
            flat |= _flat(f"origin/{parts.test[0]}/{metric}", estimate)
    if over_time.staleness is not None:
        for age, estimates in over_time.staleness.scorers.items():
            for metric, estimate in estimates.items():
                flat |= _flat(f"staleness/{age}/{metric}", estimate)
    return flat


def _flat(name: str, estimate: Estimate) -> dict[str, float]:
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}


def _write_models(
    folder: Path,
    use_case: UseCase,
    as_of: date,
    dataset: _Dataset,
    parts: Split,
    evaluation: xgb.Booster,
    shipped: xgb.Booster,
    seed: int,
) -> None:
    signature = {
        "use_case": use_case.name,
        "as_of": as_of.isoformat(),
        "key": use_case.key,
        "features": list(use_case.feature_names),
        "score_column": use_case.score_column,
        "spec_sha256": digest(use_case.model_dump(mode="json")),
        "dataset_sha256": dataset.manifest.get("sha256"),
        "seed": seed,
        "trees": shipped.num_boosted_rounds(),
        "xgboost": xgb.__version__,
    }
    sample = np.flatnonzero(dataset.rows_of(parts.test))[:SAMPLE_ROWS]
    matrix = dataset.matrix[sample]
    for name, booster in (
        (model_store.EVALUATION, evaluation),
        (model_store.MODEL, shipped),
    ):
        expected = hashlib.sha256(predict(booster, matrix).tobytes()).hexdigest()
        model_store.write_model(
            folder / name,
            model_bytes(booster),
            {**signature, "role": name, "sample_scores_sha256": expected},
        )
        model_store.write_sample(folder / name, matrix)


def _write_evaluation(
    folder: Path,
    use_case: UseCase,
    dataset: _Dataset,
    parts: Split,
    scores: dict[str, Vector],
    measured: dict[str, Measured],
    over_time: report.OverTime,
) -> None:
    rows = dataset.rows_of(parts.test)
    columns: dict[str, Any] = {
        use_case.key: pa.array(dataset.keys[rows].tolist(), pa.string()),
        "snapshot": pa.array(dataset.snapshots[rows], pa.date32()),
        "label": pa.array(dataset.labels[rows], pa.int32()),
    }
    columns |= {f"score_{name}": pa.array(score[rows]) for name, score in scores.items()}
    pq.write_table(pa.table(columns), folder / "evaluation" / "test_predictions.parquet")
    (folder / "evaluation" / "metrics.json").write_text(
        json.dumps(
            {part: asdict(figures) for part, figures in measured.items()} | asdict(over_time),
            indent=1,
            default=date.isoformat,
        )
    )


def _write_report(
    folder: Path,
    use_case: UseCase,
    as_of: date,
    dataset: _Dataset,
    parts: Split,
    trees: int,
    scores: dict[str, Vector],
    measured: dict[str, Measured],
    over_time: report.OverTime,
    gains: dict[str, float],
) -> None:
    rows = dataset.rows_of(parts.test)
    labels = dataset.labels[rows].astype(np.float64)
    tested = {name: score[rows] for name, score in scores.items()}
    (folder / "data_manifest.json").write_text(
        json.dumps(dataset.manifest, indent=1, sort_keys=True, default=str)
    )
    (folder / "report.md").write_text(
        report.markdown(
            use_case,
            as_of,
            parts,
            trees,
            measured["validation"],
            measured["test"],
            over_time,
            gains,
        )
    )
    plots = folder / "plots"
    plots.mkdir()
    (plots / "roc_and_pr.png").write_bytes(report.roc_and_pr_png(labels, tested))
    (plots / "calibration.png").write_bytes(
        report.calibration_png(labels, {name: tested[name] for name in (MODEL, LINEAR)})
    )
    (plots / "importance.png").write_bytes(report.importance_png(gains))


def _log_to_mlflow(
    settings: Settings,
    use_case: UseCase,
    as_of: date,
    dataset: _Dataset,
    parts: Split,
    trees: int,
    metrics: dict[str, float],
    folder: Path,
) -> str:
    from mlflow.entities import Metric, Param, RunTag
    from mlflow.utils.validation import MAX_METRICS_PER_BATCH, MAX_TAG_VAL_LENGTH

    client = model_store.client(settings)
    run_id = str(
        client.create_run(
            model_store.experiment_id(settings, use_case.name),
            run_name=f"{use_case.name} as of {as_of}",
            tags={
                "nightshift.use_case": use_case.name,
                "nightshift.as_of": as_of.isoformat(),
                "nightshift.spec_sha256": digest(use_case.model_dump(mode="json")),
                "nightshift.dataset_sha256": str(dataset.manifest.get("sha256")),
                "mlflow.source.git.commit": _git_commit(),
            },
        ).info.run_id
    )
    try:
        params = {
            **parameters(settings.seed),
            "trees": trees,
            "rows": len(dataset.labels),
            "features": len(use_case.feature_names),
            "embargo_days": use_case.label.maturity_days,
        }
        for name in ("train", "validation", "test"):
            dates = getattr(parts, name)
            params[f"{name}_snapshots"] = f"{len(dates)}: {dates[0]} … {dates[-1]}"
        at = int(time.time() * 1000)
        note = (folder / "report.md").read_text()
        if len(note) > MAX_TAG_VAL_LENGTH:
            note = note[: MAX_TAG_VAL_LENGTH - 100].rpartition("\n\n")[0]
            note += "\n\nThe rest is in `report.md` among the run's artifacts.\n"
        figures = [
            Metric(name, value, at, 0) for name, value in metrics.items() if np.isfinite(value)
        ]
        for start in range(0, len(figures), MAX_METRICS_PER_BATCH):
            client.log_batch(run_id, metrics=figures[start : start + MAX_METRICS_PER_BATCH])
        client.log_batch(
            run_id,
            params=[Param(name, str(value)) for name, value in params.items()],
            tags=[RunTag("mlflow.note.content", note)],
        )
        client.log_artifacts(run_id, str(folder))
    except BaseException:
        client.set_terminated(run_id, "FAILED")
        raise
    client.set_terminated(run_id)
    return run_id


def _git_commit() -> str:
    try:
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=PROJECT_ROOT, capture_output=True, text=True, check=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found.stdout.strip()


if __name__ == "__main__":
    try:
        sys.stdout.write(rebuild(Path(sys.argv[1]), Path(sys.argv[2])) + "\n")
    except NightshiftError as error:
        sys.exit(error.what)
