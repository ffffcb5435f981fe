"""Measures published predictions against their matured labels."""

import logging
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from psycopg2.extras import execute_values

from nightshift.baselines import LINEAR, fit_linear, heuristic_scores, linear_scores
from nightshift.booster import Matrix, Vector, to_matrix
from nightshift.errors import NightshiftError
from nightshift.io import lake
from nightshift.io.model_store import client
from nightshift.io.warehouse import connect, recorded_run
from nightshift.metrics import Estimate, measure
from nightshift.settings import Settings
from nightshift.spec import UseCase

log = logging.getLogger(__name__)

CHAMPION = "champion"


@dataclass(frozen=True)
class MaturedQuality:
    """Scorer → AUC with its interval, on the window after ``as_of``."""

    as_of: date
    model_version: str
    rows: int
    base_rate: float
    auc: dict[str, Estimate]


def require_published(settings: Settings, use_case: UseCase, as_of: date) -> None:
    """Raise NightshiftError when nothing is published for ``as_of``, before labels are built."""
    _published(settings, use_case, as_of)


def measure_matured(settings: Settings, use_case: UseCase, as_of: date) -> MaturedQuality:
    """Compare what readers see for ``as_of`` with what happened in its horizon.

    The champion's score is the published one. The baselines are the spec's heuristics on the
    same features, and the linear model fitted to the training set of the same ``as_of``, when
    there is one. All figures are kept in ``monitoring.matured_quality``, and the AUCs also in
    the MLflow run that made the champion, as ``matured_auc_<scorer>``.

    Raises:
        NightshiftError: when nothing was published for ``as_of``, labels are missing, or the
            published population is another than the labelled one.
    """
    with recorded_run(settings, "evaluation", as_of, use_case.name) as run:
        labelled = _labelled(settings, use_case, as_of)
        version, run_id, published = _published(settings, use_case, as_of)
        keys = labelled[use_case.key].to_pylist()
        unknown = len(set(keys) ^ set(published))
        if unknown:
            raise NightshiftError(
                f"{use_case.table} has {len(published)} rows for {as_of}, the labels {len(keys)}; "
                f"{unknown} keys are in one only",
                f"run `nightshift nightly --as-of {as_of}` again: rows that landed late have "
                "changed the population",
            )
        matrix = to_matrix(labelled, use_case.feature_names)
        scores = {CHAMPION: np.array([published[key] for key in keys])}
        for heuristic in use_case.heuristics:
            column = matrix[:, use_case.feature_names.index(heuristic.feature)]
            scores[heuristic.name] = heuristic_scores(heuristic, column)
        linear = _linear_scores(settings, use_case, as_of, matrix)
        probabilities = [CHAMPION]
        if linear is not None:
            scores[LINEAR] = linear
            probabilities.append(LINEAR)
        labels = labelled["label"].to_numpy()
        measured = measure(labels, np.array(keys), scores, probabilities, settings.seed)
        rows = [
            (use_case.name, as_of, version, scorer, metric, estimate.value, measured.rows)
            for scorer, estimates in measured.scorers.items()
            for metric, estimate in estimates.items()
            if np.isfinite(estimate.value)
        ]
        with connect(settings) as connection, connection.cursor() as cursor:
            execute_values(
                cursor,
                "insert into monitoring.matured_quality"
                " (use_case, as_of, model_version, scorer, metric, value, rows) values %s"
                " on conflict (use_case, as_of, model_version, scorer, metric) do update"
                " set value = excluded.value, rows = excluded.rows, measured_at = now()",
                rows,
            )
        auc = {scorer: estimates["auc"] for scorer, estimates in measured.scorers.items()}
        for scorer, estimate in auc.items():
            client(settings).log_metric(run_id, f"matured_auc_{scorer}", estimate.value)
        run.result = {"model_version": version, "auc": {k: e.value for k, e in auc.items()}}
        for scorer, estimate in auc.items():
            log.info("AUC after %s: %s %.3f", as_of, scorer, estimate.value)
        return MaturedQuality(as_of, version, measured.rows, measured.base_rate.value, auc)


def _labelled(settings: Settings, use_case: UseCase, as_of: date) -> pa.Table:
    folder = lake.dataset_dir(settings.lake_dir, "matured", use_case.name, as_of)
    if lake.read_manifest(folder) is None:
        raise NightshiftError(
            f"no matured labels of {use_case.name} for {as_of}",
            f"run `nightshift evaluate {use_case.name} --as-of {as_of}`",
        )
    return _read_parts(folder).sort_by(use_case.key)


def _read_parts(folder: Path) -> pa.Table:
    parts = sorted(folder.glob("part-*.parquet"))
    return pa.concat_tables([pq.read_table(part, partitioning=None) for part in parts])


def _published(
    settings: Settings, use_case: UseCase, as_of: date
) -> tuple[str, str, dict[str, float]]:
    """The model version that readers see for ``as_of``, its MLflow run, and key → score."""
    with connect(settings) as connection, connection.cursor() as cursor:
        cursor.execute("select to_regclass(%s)", (use_case.table,))
        row = cursor.fetchone()
        if row is not None and row[0] is not None:
            cursor.execute(
                f"select v.{use_case.key}, v.{use_case.score_column}, v.model_version,"
                f" p.mlflow_run_id from {use_case.table} as v"
                " join ops.publications as p using (publication_id) where v.as_of = %s",
                (as_of,),
            )
            rows = cursor.fetchall()
            if rows:
                return rows[0][2], rows[0][3], {row[0]: row[1] for row in rows}
    raise NightshiftError(
        f"nothing is published in {use_case.table} for {as_of}",
        f"run `nightshift nightly --as-of {as_of}` first",
    )


def _linear_scores(
    settings: Settings, use_case: UseCase, as_of: date, matrix: Matrix
) -> Vector | None:
    folder = lake.dataset_dir(settings.lake_dir, "training", use_case.name, as_of)
    if lake.read_manifest(folder) is None:
        return None
    table = _read_parts(folder).sort_by([("snapshot", "ascending"), (use_case.key, "ascending")])
    model = fit_linear(
        to_matrix(table, use_case.feature_names),
        table["label"].to_numpy(),
        use_case.objective,
        settings.seed,
    )
    return linear_scores(model, matrix)
