"""Train a use case: the dataset in the lake in, an MLflow run and a model version out.

``python -m nightshift.training.run MODEL DATASET``, of two folders, fits the model again to the
dataset and prints the SHA-256 of its bytes.
"""

import hashlib
import json
import logging
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from datetime import date, timedelta
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xgboost as xgb
from pyspark.sql import SparkSession

from nightshift import model_card
from nightshift.amounts import Exposure
from nightshift.booster import Vector, intervals, predict
from nightshift.distribution import distribution
from nightshift.errors import NightshiftError
from nightshift.io import code, model_store, studies
from nightshift.io.lake import dataset_dir, digest, workspace
from nightshift.io.spark import spark_session
from nightshift.io.warehouse import recorded_run
from nightshift.settings import Settings, TrainingMemory, load_settings
from nightshift.spec import Search, UseCase
from nightshift.training.card import Card, collect, render, summary
from nightshift.training.dataset import (
    BATCH_ROWS,
    Dataset,
    check_classes,
    check_features,
    has_both_classes,
    memory_for,
    read_dataset,
    read_rows,
)
from nightshift.training.evaluation import (
    MODEL,
    OverTime,
    fit_and_score,
    flat_metrics,
    measure_origins,
    measure_part,
    measure_staleness,
    metrics_over_time,
    refit,
    slice_metrics,
    study_metrics,
    trial_metrics,
)
from nightshift.training.fit import (
    Fitted,
    Recipe,
    attach_interval,
    fit_whole,
    model_bytes,
    recipe,
    require_distinct,
)
from nightshift.training.search import Searched, direction, search, study_name
from nightshift.training.split import Split, rolling_origins, search_splits, stale_splits
from nightshift.training.studies import study

log = logging.getLogger(__name__)

SAMPLE_ROWS = 512
LIBRARIES = ("numpy", "pyarrow", "pyspark", "scikit-learn", "xgboost")


@dataclass(frozen=True)
class TrainingResult:
    """``metrics`` are the flat figures that MLflow holds, such as ``test_auc``."""

    mlflow_run_id: str
    version: str
    trees: int
    rows: int
    model_sha256: str
    metrics: dict[str, float]


def train(
    settings: Settings,
    use_case: UseCase,
    as_of: date,
    *,
    trials: int | None = None,
    minutes: float | None = None,
) -> TrainingResult:
    """Train, measure and register; the champion is left to the gates.

    Two models are fitted. The *evaluation* model learns from the train snapshots, stops on the
    validation snapshots, and is measured on the test snapshots, which it has never seen: its
    figures are what gates judge. The *shipped* model has as many trees and learns from every
    mature snapshot: the split gives up two label horizons to the embargo, and the newest months,
    which tell the most about tonight, would otherwise be lost. Its own quality is measured once
    its predictions mature. Each is calibrated on the newest labels known to it.

    ``trials`` and ``minutes`` replace the budget of the spec's search; 0 trials are none. A search
    that a kill has interrupted goes on, and one that has spent its budget is not repeated.

    The same dataset, seed and library versions give the same model bytes; a repetition is a new
    MLflow run.

    Raises:
        NightshiftError: when the dataset is missing, unfit or too short.
    """
    folder = dataset_dir(settings.lake_dir, "training", use_case.name, as_of)
    memory = memory_for(folder, len(use_case.feature_names), settings.training_memory)
    with (
        recorded_run(settings, "training", as_of, use_case.name) as run,
        _memory(settings, memory, folder) as place,
    ):
        dataset = read_dataset(folder, use_case, as_of, memory, place)
        days = [date.fromisoformat(str(day)) for day in np.unique(dataset.snapshots)]
        plan, embargo_days = use_case.snapshots, use_case.label.maturity_days
        origins = rolling_origins(days, plan, embargo_days)
        parts = origins[0]
        check_classes(use_case, dataset, parts)
        check_features(use_case, dataset, parts)
        searched = _search(settings, use_case, dataset, days, trials, minutes)
        chosen = searched.chosen if searched else {}
        made = recipe(use_case, settings.seed, chosen | _workers(memory))
        started = time.perf_counter()
        evaluation, scores = fit_and_score(use_case, dataset, parts, made, settings.seed)
        trees = evaluation.booster.num_boosted_rounds()
        method = evaluation.calibration.method if evaluation.calibration else None
        newest = tuple(days[-plan.validation :])
        quantile_trees = None
        if use_case.interval is not None:
            share = use_case.interval.share
            quantile_trees = (
                share, attach_interval(evaluation.booster, dataset, parts, made, share)
            )  # fmt: skip
        shipped = fit_whole(dataset, made, trees, method, dataset.rows_of(newest), quantile_trees)
        tested = dataset.rows_of(parts.test)
        require_distinct(scores[MODEL][tested], "the evaluation model")
        require_distinct(predict(shipped, dataset.vectors(tested)), "the model that would ship")
        log.info(
            "fitted %d trees to %s rows in %.1f s",
            trees, f"{len(dataset.labels):,}", time.perf_counter() - started,
        )  # fmt: skip
        ends = intervals(evaluation.booster, dataset.matrix, scores[MODEL])
        measured = {
            part: measure_part(use_case, dataset, parts, part, scores, settings.seed, ends)
            for part in ("validation", "test")
        }
        over_time = OverTime(
            origins=measure_origins(
                use_case, dataset, origins, measured["test"], made, settings.seed
            ),
            staleness=measure_staleness(
                use_case,
                dataset,
                parts,
                stale_splits(days, plan, embargo_days),
                scores,
                made,
                settings.seed,
            ),
        )
        metrics = flat_metrics(measured)
        log.info(
            "test %s: %s",
            metric := use_case.judged_metrics[0],
            ", ".join(
                f"{scorer} {figures[metric].value:.3f}"
                for scorer, figures in measured["test"].scorers.items()
                if metric in figures
            ),
        )
        started = time.perf_counter()
        curve, ablated = study(
            use_case, dataset, parts, partial(refit, parts=parts, made=made), trees, settings.seed
        )
        log.info("learning curve and ablation in %.1f s", time.perf_counter() - started)
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            _write_models(
                folder, use_case, as_of, dataset, parts, made, evaluation, shipped, newest,
                quantile_trees,
            )  # fmt: skip
            _write_search(folder, searched)
            manifest = _data_manifest(use_case, as_of, dataset)
            (folder / "data_manifest.json").write_text(
                json.dumps(manifest, indent=1, sort_keys=True, default=str)
            )
            card = collect(
                use_case,
                as_of,
                dataset,
                parts,
                made,
                evaluation,
                searched,
                scores,
                measured,
                over_time,
                curve,
                ablated,
                manifest,
                settings.seed,
            )
            (folder / model_card.ARTIFACT).write_text(render(card), encoding="utf-8")
            _write_evaluation(folder, use_case, dataset, parts, scores, card)
            logged = metrics | slice_metrics(measured["test"]) | metrics_over_time(over_time)
            logged |= study_metrics(curve, ablated)
            run_id = _log_to_mlflow(
                settings,
                use_case,
                as_of,
                dataset,
                parts,
                made,
                trees,
                logged,
                searched,
                summary(card),
                folder,
            )
        registered = model_store.register(settings, use_case.name, run_id, as_of.isoformat())
        result = TrainingResult(
            mlflow_run_id=run_id,
            version=registered.version,
            trees=trees,
            rows=len(dataset.labels),
            model_sha256=hashlib.sha256(model_bytes(shipped)).hexdigest(),
            metrics=metrics,
        )
        # jsonb has no NaN.
        finite = {name: value for name, value in metrics.items() if np.isfinite(value)}
        run.result = {**asdict(result), "metrics": finite}
        log.info("registered %s version %s (run %s)", use_case.name, registered.version, run_id)
        return result


@dataclass(frozen=True)
class Kept:
    """What a training has left in its MLflow run.

    Attributes:
        use_case: as it was declared then.
        manifest: ``data_manifest.json``.
        model: the folder of the shipped model.
        model_sha256: of its bytes.
    """

    run_id: str
    use_case: UseCase
    as_of: date
    manifest: dict[str, Any]
    model: Path
    model_sha256: str


def kept(settings: Settings, run_id: str) -> Kept:
    """Read what is needed to train the model of an MLflow run again.

    Raises:
        NightshiftError: when a file is missing or damaged, or tells of a declaration that this
            version of nightshift cannot read.
    """
    file = model_store.fetch(settings, run_id, "data_manifest.json")
    remedy = "train again with `nightshift train`; this run cannot be reproduced from what it kept"
    try:
        manifest = json.loads(file.read_text())
        use_case = UseCase.model_validate(manifest["spec"])
        as_of = date.fromisoformat(manifest["as_of"])
    except (ValueError, KeyError) as error:
        raise NightshiftError(f"{file} cannot be read: {error!r}", remedy) from error
    model = model_store.fetch(settings, run_id, model_store.MODEL)
    _, signature = model_store.read_model(model)
    return Kept(run_id, use_case, as_of, manifest, model, signature["model_sha256"])


def changed_libraries(manifest: Mapping[str, Any]) -> list[str]:
    """The libraries whose versions are other than a training's manifest says, in words."""
    return [
        f"{name} was {then} and is {version(name)}"
        for name, then in manifest.get("libraries", {}).items()
        if version(name) != then
    ]


def rebuild(settings: Settings, model: Path, dataset: Path) -> str:
    """SHA-256 of the model that a dataset gives, fitted as the signature in ``model`` tells.

    Raises:
        NightshiftError: when the model or the dataset cannot be read, or the dataset is another
            than the model was trained on.
    """
    _, signature = model_store.read_model(model)
    told = signature.get("fit")
    if told is None or "newest_snapshots" not in told:
        raise NightshiftError(
            f"the signature in {model} does not tell how the model was fitted: it is of an older "
            "Nightshift",
            "train again with `nightshift train`, or check out the commit of its MLflow run",
        )
    with _memory(settings, told["memory"], dataset) as place:
        return _rebuilt(dataset, signature, place)


@contextmanager
def _memory(settings: Settings, memory: TrainingMemory, dataset: Path) -> Iterator[Path | None]:
    """A folder beside the dataset for what is not in memory, None where all is; with it Spark."""
    if memory == "in_memory":
        yield None
        return
    with ExitStack() as stack:
        if memory == "spark":
            stack.enter_context(spark_session(settings, "nightshift-train"))
        yield stack.enter_context(workspace(dataset.parent / ".fits"))


def _workers(memory: TrainingMemory) -> dict[str, int]:
    """On Spark as many workers of one thread as it has cores; else the recipe's threads."""
    if memory != "spark":
        return {}
    return {"nthread": SparkSession.active().sparkContext.defaultParallelism}


def _rebuilt(dataset: Path, signature: Mapping[str, Any], place: Path | None) -> str:
    told = signature["fit"]
    rows = read_rows(
        dataset,
        told["objective"],
        signature["vector_key"],
        signature["features"],
        told["memory"],
        place,
    )
    if rows.manifest.get("sha256") != signature["dataset_sha256"]:
        raise NightshiftError(
            f"the dataset in {dataset} is {rows.manifest.get('sha256')}, the model was trained on "
            f"{signature['dataset_sha256']}",
            "train again with `nightshift train`",
        )
    calibrated = told["calibration"]
    newest = tuple(date.fromisoformat(day) for day in told["newest_snapshots"])
    booster = fit_whole(
        rows,
        Recipe(
            told["parameters"],
            told["half_life_days"],
            told["label_cap"],
            told["exposure"] and Exposure(**told["exposure"]),
            told.get("non_negative", False),
        ),
        told["trees"],
        calibrated["method"] if calibrated else None,
        rows.rows_of(newest),
        told["quantile_trees"] and tuple(told["quantile_trees"]),
    )
    return hashlib.sha256(model_bytes(booster)).hexdigest()


def _search(
    settings: Settings,
    use_case: UseCase,
    dataset: Dataset,
    days: Sequence[date],
    trials: int | None,
    minutes: float | None,
) -> Searched | None:
    """The parameters that the budget finds; None where there is none, or nothing to judge by."""
    budget = use_case.model.search
    if trials == 0:
        return None
    if trials is not None or minutes is not None:
        validations = budget.validations if budget else Search(trials=1).validations
        budget = Search(trials=trials, minutes=minutes, validations=validations)
    if budget is None:
        return None
    found = search_splits(
        days, use_case.snapshots, use_case.label.maturity_days, budget.validations
    )
    splits = [parts for parts in found if has_both_classes(dataset, parts)]
    if not splits:
        log.warning("no search: history is too short for a validation before the oldest origin")
        return None
    workers = _workers(dataset.memory)
    defaults = recipe(use_case, settings.seed, workers)
    name = study_name(use_case, dataset, splits, defaults)
    with studies.opened(settings, name, direction(defaults)) as study:
        return search(
            study, budget, dataset, splits, defaults,
            lambda chosen: recipe(use_case, settings.seed, {**chosen, **workers}),
        )  # fmt: skip


def _write_models(
    folder: Path,
    use_case: UseCase,
    as_of: date,
    dataset: Dataset,
    parts: Split,
    made: Recipe,
    evaluation: Fitted,
    shipped: xgb.Booster,
    newest: Sequence[date],
    quantile_trees: tuple[float, int] | None,
) -> None:
    choice = evaluation.calibration
    calibrated = choice and {
        "method": choice.method,
        "log_losses": choice.losses,
    }
    signature = {
        "use_case": use_case.name,
        "as_of": as_of.isoformat(),
        "key": use_case.key,
        "features": list(use_case.feature_names),
        "score_column": use_case.score_column,
        "spec_sha256": digest(use_case.model_dump(mode="json")),
        "dataset_sha256": dataset.manifest.get("sha256"),
        "vector_key": list(use_case.vector_key),
        "fit": {
            "objective": use_case.objective,
            "parameters": made.parameters,
            "half_life_days": made.half_life_days,
            "label_cap": made.label_cap,
            "exposure": made.exposure and asdict(made.exposure),
            "non_negative": made.non_negative,
            "trees": shipped.num_boosted_rounds(),
            "quantile_trees": quantile_trees,
            "newest_snapshots": [day.isoformat() for day in newest],
            "calibration": calibrated,
            "memory": dataset.memory,
        },
        "xgboost": xgb.__version__,
    }
    # what a night's scores are compared with before they are published
    shipped_scores = distribution(_scores(shipped, dataset, newest)).model_dump()
    sample = np.flatnonzero(dataset.rows_of(parts.test))[:SAMPLE_ROWS]
    matrix = dataset.vectors(sample)
    for name, booster in (
        (model_store.EVALUATION, evaluation.booster),
        (model_store.MODEL, shipped),
    ):
        expected = model_store.sample_sha256(booster, matrix)
        model_store.write_model(
            folder / name,
            model_bytes(booster),
            {
                **signature,
                "role": name,
                "sample_scores_sha256": expected,
                **({"training_scores": shipped_scores} if booster is shipped else {}),
            },
        )
        model_store.write_sample(folder / name, matrix)


def _scores(booster: xgb.Booster, dataset: Dataset, snapshots: Sequence[date]) -> Vector:
    """The scores of the rows of some snapshots, (rows,)."""
    rows = np.flatnonzero(dataset.rows_of(tuple(snapshots)))
    batches = [rows[first : first + BATCH_ROWS] for first in range(0, len(rows), BATCH_ROWS)]
    return np.concatenate([predict(booster, dataset.matrix[batch]) for batch in batches])


def _write_search(folder: Path, searched: Searched | None) -> None:
    if searched is not None:
        (folder / "search.json").write_text(
            json.dumps(asdict(searched), indent=1, default=date.isoformat)
        )


def _write_evaluation(
    folder: Path,
    use_case: UseCase,
    dataset: Dataset,
    parts: Split,
    scores: dict[str, Vector],
    card: Card,
) -> None:
    rows = dataset.rows_of(parts.test)
    columns: dict[str, Any] = {
        use_case.key: pa.array(dataset.keys[rows].tolist(), pa.string()),
        "snapshot": pa.array(dataset.snapshots[rows], pa.date32()),
        "label": pa.array(dataset.labels[rows]),
    }
    columns |= {f"score_{name}": pa.array(score[rows]) for name, score in scores.items()}
    pq.write_table(pa.table(columns), folder / "evaluation" / "test_predictions.parquet")
    figures = {
        "validation": asdict(card.validation),
        "test": asdict(card.test),
        **asdict(card.over_time),
        "learning_curve": card.curve and asdict(card.curve),
        "ablation": card.ablation and asdict(card.ablation),
        "gain_share": card.gains,
        "mean_abs_shap": card.explanation.importance,
    }
    (folder / "evaluation" / "metrics.json").write_text(
        json.dumps(figures, indent=1, default=date.isoformat)
    )


def _data_manifest(use_case: UseCase, as_of: date, dataset: Dataset) -> dict[str, Any]:
    """What the dataset was made of, and with what: enough to make it again."""
    days = dataset.rates
    horizon = timedelta(days=use_case.label.horizon_days)
    return {
        **dataset.manifest,
        "spec": use_case.model_dump(mode="json"),
        "code_commit": code.commit(),
        "label_window": {
            "from": min(days).isoformat(),
            "before": (max(days) + horizon).isoformat(),
            "landed_before": as_of.isoformat(),
        },
        "rows_by_snapshot": {
            day.isoformat(): {"rows": rows, "mean_label": rate}
            for day, (rows, rate) in days.items()
        },
        "libraries": {name: version(name) for name in LIBRARIES},
    }


def _log_to_mlflow(
    settings: Settings,
    use_case: UseCase,
    as_of: date,
    dataset: Dataset,
    parts: Split,
    made: Recipe,
    trees: int,
    metrics: dict[str, float],
    searched: Searched | None,
    note: str,
    folder: Path,
) -> str:
    from mlflow.entities import Metric, Param, RunTag
    from mlflow.utils.validation import MAX_METRICS_PER_BATCH

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
                "mlflow.source.git.commit": code.commit(),
            },
        ).info.run_id
    )
    try:
        params = {
            **made.parameters,
            "half_life_days": made.half_life_days,
            "label_cap": made.label_cap,
            "trees": trees,
            "rows": len(dataset.labels),
            "features": len(use_case.feature_names),
            "embargo_days": use_case.label.maturity_days,
        }
        if searched is not None:
            params |= {
                "search/study": searched.study,
                "search/metric": searched.metric,
                "search/trials": len(searched.trials),
                "search/chosen_trial": searched.ranking[0] + 1,
            }
        for name in ("train", "validation", "test"):
            dates = getattr(parts, name)
            params[f"{name}_snapshots"] = f"{len(dates)}: {dates[0]} … {dates[-1]}"
        at = int(time.time() * 1000)
        steps = ((0, metrics), *enumerate(trial_metrics(searched), start=1))
        figures = [
            Metric(name, value, at, step)
            for step, found in steps
            for name, value in found.items()
            if np.isfinite(value)
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


if __name__ == "__main__":
    try:
        sys.stdout.write(rebuild(load_settings(), Path(sys.argv[1]), Path(sys.argv[2])) + "\n")
    except NightshiftError as error:
        sys.exit(error.what)
