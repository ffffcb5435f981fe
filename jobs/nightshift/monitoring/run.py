"""Measures published predictions against their matured labels."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from psycopg2 import sql
from psycopg2.extras import execute_values

from nightshift import factors
from nightshift.baselines import LINEAR, fit_linear, heuristic_scores, linear_scores
from nightshift.booster import Matrix, Vector, to_matrix
from nightshift.errors import NightshiftError, RefusedAsOf
from nightshift.io import lake
from nightshift.io.model_store import client
from nightshift.io.warehouse import connect, recorded_run
from nightshift.metrics import Estimates, measure, settled_rows
from nightshift.settings import Settings
from nightshift.spec import DECISIONS, Metric, UseCase

MISSED = "missed"

log = logging.getLogger(__name__)

CHAMPION = "champion"
THRESHOLD, DECISION = "threshold", "decision"
"""Rules that nobody declares: the model's alerts, and all that did not pass."""


@dataclass(frozen=True)
class MaturedQuality:
    """How good what was published for ``as_of`` was, by what happened in its horizon.

    Attributes:
        base_rate: the mean label.
        metrics: those that a gate of the use case judges, in the gates' order.
        figures: scorer → metric → estimate; of a heuristic that tells an order only, of the order.
    """

    use_case: str
    as_of: date
    model_version: str
    rows: int
    base_rate: float
    metrics: tuple[Metric, ...]
    figures: dict[str, Estimates]


def require_published(settings: Settings, use_case: UseCase, as_of: date) -> None:
    """Raise NightshiftError when nothing is published for ``as_of``, before labels are built."""
    _published(settings, use_case, as_of)


def measure_matured(settings: Settings, use_case: UseCase, as_of: date) -> MaturedQuality:
    """Compare what readers see for ``as_of`` with what happened in its horizon.

    The champion's score is the published one. The baselines are the spec's heuristics on the
    same features, and the linear model fitted to the training set of the same ``as_of``, when
    there is one. All figures are kept in ``monitoring.matured_quality``, and those that a gate
    judges also in the MLflow run that made the champion, as ``matured_<metric>_<scorer>``.

    Raises:
        NightshiftError: when nothing was published for ``as_of``, labels are missing, or the
            published population is another than the labelled one.
    """
    with recorded_run(settings, "evaluation", as_of, use_case.name) as run:
        labelled = _labelled(settings, use_case, as_of)
        version, run_id, published = _published(settings, use_case, as_of)
        keys = _names(labelled, use_case)
        if use_case.shown is None:
            unknown = len(set(keys) ^ set(published))
        else:  # of some rows, the first of each list, labels are known
            of_lists = set(labelled[use_case.key].to_pylist())
            unknown = len({key for key in published if key[0] in of_lists} - set(keys))
        if unknown:
            raise NightshiftError(
                f"{use_case.table} has {len(published)} rows for {as_of}, the labels {len(keys)}; "
                f"{unknown} keys are in one only",
                f"run `nightshift nightly --as-of {as_of}` again: rows that landed late have "
                "changed the population",
            )
        matrix = to_matrix(labelled, use_case.feature_names)
        # what is not shown comes after all that is
        unseen = (min(min(row) for row in published.values()) - 1,)
        found = np.array([published.get(key, unseen) for key in keys], dtype=np.float64)
        scores = {CHAMPION: found[:, 0]}
        for heuristic in use_case.heuristics:
            scores[heuristic.name] = heuristic_scores(heuristic, matrix, use_case.feature_names)
        linear = _linear_scores(settings, use_case, as_of, matrix)
        if linear is not None:
            scores[LINEAR] = linear
        if use_case.factorisation is not None:
            named = {name: np.array(labelled[name].to_pylist()) for name in use_case.row_key}
            folder = lake.dataset_dir(settings.lake_dir, "matured", use_case.name, as_of)
            factorised = factors.scores(folder, named, None)
            if factorised is not None:
                scores[use_case.factorisation.name] = factorised
        measured = measure(
            labelled["label"].to_numpy(),
            np.array(labelled[use_case.key].to_pylist()),
            scores,
            [name for name in scores if name not in use_case.order_only],
            settings.seed,
            objective=use_case.objective,
            working_point=use_case.working_point,
            items=labelled[use_case.row_key[1]].to_numpy() if use_case.list_columns else None,
            missed=labelled[MISSED].to_numpy() if MISSED in labelled.column_names else None,
            popularity=None
            if use_case.popularity is None
            else labelled[use_case.popularity].to_numpy(),
            intervals={CHAMPION: found[:, 1:]} if use_case.interval else None,
            settled=settled_rows(use_case.settled, use_case.feature_names, matrix),
        )
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
            _keep_rules(
                cursor, use_case, as_of, dict(zip(keys, labelled["label"].to_pylist(), strict=True))
            )
        totals: tuple[Metric, ...] = ("total_bias",) if use_case.objective == "regression" else ()
        metrics = tuple(dict.fromkeys((*use_case.judged_metrics, *totals)))
        judged = {
            metric: {
                scorer: estimates[metric].value
                for scorer, estimates in measured.scorers.items()
                if metric in estimates and np.isfinite(estimates[metric].value)
            }
            for metric in metrics
        }
        for metric, figures in judged.items():
            for scorer, value in figures.items():
                client(settings).log_metric(run_id, f"matured_{metric}_{scorer}", value)
                log.info("%s after %s: %s %.3f", metric, as_of, scorer, value)
        run.result = {
            "model_version": version,
            **{str(name): each for name, each in judged.items()},
        }
        return MaturedQuality(
            use_case.name, as_of, version, measured.rows, measured.base_rate.value, metrics,
            measured.scorers,
        )  # fmt: skip


def _keep_rules(
    cursor: Any, use_case: UseCase, as_of: date, labels: Mapping[tuple[str, ...], int]
) -> None:
    """What each rule, the threshold and the decision found among what was published."""
    if not use_case.decision_columns:
        return
    rule_hits = sql.SQL("rule_hits" if use_case.rules else "'[]'::jsonb")
    cursor.execute(
        sql.SQL(
            "select {names}, v.decision, {hits}, coalesce(v.{score} >= t.threshold, false)"
            " from {table} as v left join ops.thresholds as t"
            " on t.use_case = %s and t.threshold_version = {version} where v.as_of = %s"
        ).format(
            names=sql.SQL(", ").join(sql.Identifier("v", name) for name in use_case.row_key),
            hits=rule_hits,
            score=sql.Identifier(use_case.score_column),
            version=sql.SQL("v.threshold_version" if use_case.alerts else "null"),
            table=sql.Identifier(*use_case.table.split(".")),
        ),
        (use_case.name, as_of),
    )
    named = {rule.name: [0, 0] for rule in use_case.rules} | {DECISION: [0, 0]}
    named |= {THRESHOLD: [0, 0]} if use_case.alerts else {}
    rows = cursor.fetchall()
    for *names, decision, hits, is_alerted in rows:
        label = labels[tuple(names)]
        hit = [*(name for name in hits if name in named)]
        hit += [DECISION] if decision != DECISIONS[0] else []
        hit += [THRESHOLD] if is_alerted and THRESHOLD in named else []
        for name in hit:
            named[name][0] += 1
            named[name][1] += label
    positives = sum(labels.values())
    execute_values(
        cursor,
        "insert into monitoring.rule_quality"
        " (use_case, as_of, rule, rows, hits, found, positives, precision, recall) values %s"
        " on conflict (use_case, as_of, rule) do update set (rows, hits, found, positives,"
        " precision, recall, measured_at) = (excluded.rows, excluded.hits, excluded.found,"
        " excluded.positives, excluded.precision, excluded.recall, now())",
        [
            (
                use_case.name, as_of, name, len(rows), hits, found, positives,
                found / hits if hits else None, found / positives if positives else None,
            )
            for name, (hits, found) in named.items()
        ],
    )  # fmt: skip


@dataclass(frozen=True)
class RuleFigures:
    """What a rule found on the nights that were measured, ``precision`` and ``recall`` of all their
    rows together; ``newest`` is the precision of the newest night with a hit."""

    rule: str
    nights: int
    hits: int
    precision: float | None
    recall: float | None
    newest: float | None


@dataclass(frozen=True)
class ChosenThreshold:
    """A row of ``ops.thresholds``."""

    as_of: date
    threshold_version: str
    threshold: float
    previous: float | None
    reason: str


def rule_figures(settings: Settings, use_case: UseCase, nights: int) -> list[RuleFigures]:
    """Each rule over the newest measured nights."""
    with connect(settings) as connection, connection.cursor() as cursor:
        cursor.execute(
            "select rule, count(*), sum(hits)::bigint, sum(found)::float8 / nullif(sum(hits), 0),"
            " sum(found)::float8 / nullif(sum(positives), 0),"
            " (array_agg(precision order by as_of desc) filter (where precision is not null))[1]"
            " from monitoring.rule_quality where use_case = %s and as_of in"
            " (select distinct as_of from monitoring.rule_quality where use_case = %s"
            " order by 1 desc limit %s) group by rule order by rule",
            (use_case.name, use_case.name, nights),
        )
        return [RuleFigures(*row) for row in cursor.fetchall()]


def thresholds(settings: Settings, use_case: UseCase, nights: int) -> list[ChosenThreshold]:
    """The newest choices, newest first."""
    with connect(settings) as connection, connection.cursor() as cursor:
        cursor.execute(
            "select as_of, threshold_version, threshold, previous, reason from ops.thresholds"
            " where use_case = %s order by as_of desc, threshold_id desc limit %s",
            (use_case.name, nights),
        )
        return [ChosenThreshold(*row) for row in cursor.fetchall()]


def _labelled(settings: Settings, use_case: UseCase, as_of: date) -> pa.Table:
    folder = lake.dataset_dir(settings.lake_dir, "matured", use_case.name, as_of)
    if lake.read_manifest(folder) is None:
        raise NightshiftError(
            f"no matured labels of {use_case.name} for {as_of}",
            f"run `nightshift evaluate {use_case.name} --as-of {as_of}`",
        )
    return _read_parts(folder).sort_by([(name, "ascending") for name in use_case.row_key])


def _names(rows: pa.Table, use_case: UseCase) -> list[tuple[str, ...]]:
    """What names each row."""
    return list(zip(*(rows[name].to_pylist() for name in use_case.row_key), strict=True))


def _read_parts(folder: Path) -> pa.Table:
    return pa.concat_tables([pq.read_table(part, partitioning=None) for part in lake.parts(folder)])


def _published(
    settings: Settings, use_case: UseCase, as_of: date
) -> tuple[str, str, dict[tuple[str, ...], tuple[float, ...]]]:
    """The model version that readers see for ``as_of``, its MLflow run, and of each row by what
    names it the score, followed by low and high where the use case has an interval."""
    with connect(settings) as connection, connection.cursor() as cursor:
        cursor.execute("select to_regclass(%s)", (use_case.table,))
        row = cursor.fetchone()
        if row is not None and row[0] is not None:
            cursor.execute(
                sql.SQL(
                    "select v.model_version, p.mlflow_run_id, {names}, {scores} from {table} as v"
                    " join ops.publications as p using (publication_id) where v.as_of = %s"
                ).format(
                    names=sql.SQL(", ").join(
                        sql.Identifier("v", name) for name in use_case.row_key
                    ),
                    scores=sql.SQL(", ").join(
                        sql.Identifier("v", name)
                        for name in (use_case.score_column, *use_case.interval_columns)
                    ),
                    table=sql.Identifier(*use_case.table.split(".")),
                ),
                (as_of,),
            )
            rows = cursor.fetchall()
            if rows:
                ends = 2 + len(use_case.row_key)
                return rows[0][0], rows[0][1], {tuple(r[2:ends]): tuple(r[ends:]) for r in rows}
    if not use_case.is_due(as_of):
        raise RefusedAsOf(
            f"{use_case.name} is {use_case.why_not_due(as_of)}; nothing is published for it",
            "measure a date on which it was due",
        )
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
    table = _read_parts(folder).sort_by(
        [(name, "ascending") for name in ("snapshot", *use_case.row_key)]
    )
    model = fit_linear(
        to_matrix(table, use_case.feature_names),
        table["label"].to_numpy(),
        use_case.objective,
        settings.seed,
    )
    return linear_scores(model, matrix)
