"""Judge the newest training run of a use case; move the champion, or leave it and say why."""

import json
import logging
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from datetime import date
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from nightshift.booster import predict, row_order, to_matrix
from nightshift.errors import Cause, GateError, NightshiftError
from nightshift.gates.rules import Evidence, GateResult, Reign, Sample, judge_gate
from nightshift.io import model_store
from nightshift.io.lake import dataset_dir
from nightshift.io.model_store import ModelVersion
from nightshift.io.warehouse import connect, lock, recorded_run
from nightshift.metrics import Estimate, measure
from nightshift.settings import Settings
from nightshift.spec import UseCase, gate_name

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Verdict:
    """``promoted_version`` is None when the champion stayed, or was the candidate already."""

    passed: bool
    results: tuple[GateResult, ...]
    mlflow_run_id: str
    candidate_version: str
    promoted_version: str | None

    @property
    def failures(self) -> tuple[GateResult, ...]:
        """The gates that failed."""
        return tuple(result for result in self.results if not result.passed)

    def require_passed(self) -> "Verdict":
        """This verdict.

        Raises:
            GateError: when a gate failed, naming each with its figure.
        """
        if not self.passed:
            raise GateError(
                f"version {self.candidate_version} is refused and the champion stays: "
                + "; ".join(f"{result.gate}: {result.detail}" for result in self.failures),
                "read the report of the MLflow run " + self.mlflow_run_id,
                causes=tuple(Cause(r.gate, observed=r.detail) for r in self.failures),
            )
        return self


def judge(settings: Settings, use_case: UseCase, as_of: date) -> Verdict:
    """Judge every gate of the newest run for (use case, as_of), keep the results, act on them.

    The reigning champion is compared by its *evaluation* model on the candidate's test rows: its
    shipped model may have learned from them.

    A gate that fails is an answer, not an error: the champion stays, and the verdict says why.

    Raises:
        NightshiftError: when there is no such run, or its files or dataset are gone.
    """
    with recorded_run(settings, "gates", as_of, use_case.name) as run:
        run_id = model_store.newest_run(settings, use_case.name, as_of.isoformat())
        candidate = run_id and model_store.version_of_run(settings, use_case.name, run_id)
        if not run_id or not candidate:
            raise NightshiftError(
                f"there is no finished training run of {use_case.name} as of {as_of}",
                f"run `nightshift train {use_case.name} --as-of {as_of}`",
            )
        reigning = model_store.champion(settings, use_case.name)
        evidence = _collect(settings, use_case, as_of, candidate, reigning)
        results = tuple(judge_gate(gate, evidence) for gate in use_case.gates)
        for result in results:
            log.info("%s %s: %s", "pass" if result.passed else "FAIL", result.gate, result.detail)
        passed = all(result.passed for result in results)
        _log_to_mlflow(settings, run_id, passed, results)
        promoted = _act(settings, use_case, as_of, candidate, passed, results)
        verdict = Verdict(passed, results, run_id, candidate.version, promoted)
        run.result = {
            "mlflow_run_id": run_id,
            "candidate_version": candidate.version,
            "promoted_version": promoted,
            "passed": passed,
            "failed_gates": [result.gate for result in verdict.failures],
        }
        return verdict


def gate_results(settings: Settings, use_case: UseCase, as_of: date) -> tuple[GateResult, ...]:
    """What was last judged for (use case, as_of), in the spec's order; empty when nothing was."""
    with connect(settings) as connection, connection.cursor() as cursor:
        cursor.execute(
            "select gate, passed, observed, threshold, detail from ops.gate_results"
            " where mlflow_run_id = (select mlflow_run_id from ops.gate_results"
            "  where use_case = %s and as_of = %s order by judged_at desc limit 1)",
            (use_case.name, as_of),
        )
        found = {row[0]: GateResult(*row) for row in cursor.fetchall()}
    return tuple(
        found[name] for name in (gate_name(gate) for gate in use_case.gates) if name in found
    )


def _collect(
    settings: Settings,
    use_case: UseCase,
    as_of: date,
    candidate: ModelVersion,
    reigning: ModelVersion | None,
) -> Evidence:
    evaluation = model_store.fetch(settings, candidate.run_id, model_store.EVALUATION)
    try:
        test = json.loads((evaluation / "metrics.json").read_text())["test"]
    except (OSError, ValueError, KeyError) as error:
        raise NightshiftError(
            f"the figures of run {candidate.run_id} cannot be read: {error!r}",
            "train again with `nightshift train`",
        ) from error
    return Evidence(
        model=_estimates(next(iter(test["scorers"].values()))),
        differences={name: _estimates(found) for name, found in test["differences"].items()},
        champion=None
        if reigning is None
        else _measure_champion(settings, use_case, as_of, candidate, reigning),
        sample=_score_in_fresh_process(settings, use_case, candidate),
    )


def _estimates(found: dict[str, Any]) -> dict[str, Estimate]:
    return {metric: Estimate(**figures) for metric, figures in found.items()}


def _measure_champion(
    settings: Settings,
    use_case: UseCase,
    as_of: date,
    version: ModelVersion,
    reigning: ModelVersion,
) -> Reign:
    evaluation = model_store.fetch(settings, version.run_id, model_store.EVALUATION)
    try:
        champion, signature = model_store.load_evaluation(settings, reigning.run_id)
    except NightshiftError as error:
        return Reign(reigning.version, {}, problem=error.what)
    if list(signature["features"]) != list(use_case.feature_names):
        return Reign(reigning.version, {}, is_obsolete=True)
    predictions = pq.ParquetFile(evaluation / "test_predictions.parquet").read()
    candidate, _ = model_store.read_model(evaluation)
    folder = dataset_dir(settings.lake_dir, "training", use_case.name, as_of)
    snapshots = predictions.column("snapshot").unique().to_pylist()
    parts = [pq.ParquetFile(file).read() for file in sorted(folder.glob("part-*.parquet"))]
    remedy = f"train again: `nightshift train {use_case.name} --as-of {as_of}`"
    if not parts:
        raise NightshiftError(f"the training dataset in {folder} is gone", remedy)
    rows = pa.concat_tables(parts)
    mask = pc.is_in(rows.column("snapshot"), pa.array(snapshots, pa.date32()))
    rows = rows.filter(mask).sort_by(row_order(use_case.feature_names, use_case.key))
    matrix = to_matrix(rows, use_case.feature_names)
    scored = predictions.column("score_model").to_numpy()
    if rows.column(use_case.key).to_pylist() != predictions.column(
        use_case.key
    ).to_pylist() or not np.array_equal(predict(candidate, matrix), scored):
        raise NightshiftError(
            f"the training dataset in {folder} has changed since version "
            f"{version.version} was trained",
            remedy,
        )
    measured = measure(
        predictions.column("label").to_numpy(),
        np.asarray(predictions.column(use_case.key).to_pylist(), dtype=str),
        {"candidate": scored, "champion": predict(champion, matrix)},
        ("candidate", "champion"),
        settings.seed,
    )
    return Reign(reigning.version, measured.differences["champion"])


def _score_in_fresh_process(
    settings: Settings, use_case: UseCase, candidate: ModelVersion
) -> Sample:
    try:
        folder = model_store.fetch(settings, candidate.run_id, model_store.MODEL)
        signature = json.loads((folder / model_store.SIGNATURE_FILE).read_text())
        expected = str(signature["sample_scores_sha256"])
        model_store.check_features(
            f"version {candidate.version}", signature["features"], use_case.feature_names
        )
    except (NightshiftError, OSError, ValueError, KeyError) as error:
        return Sample("", None, f"the model's files cannot be read: {error}")
    done = subprocess.run(
        [sys.executable, "-m", "nightshift.io.fresh_score", str(folder)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        return Sample(expected, None, done.stderr.strip().splitlines()[-1] if done.stderr else "")
    return Sample(expected, done.stdout.strip())


def _log_to_mlflow(
    settings: Settings, run_id: str, passed: bool, results: tuple[GateResult, ...]
) -> None:
    from mlflow.entities import Metric, RunTag

    client = model_store.client(settings)
    at = int(time.time() * 1000)
    client.log_batch(
        run_id,
        metrics=[Metric(f"gate_{r.gate}", float(r.passed), at, 0) for r in results],
        tags=[RunTag("nightshift.gates", "passed" if passed else "failed")],
    )
    client.log_dict(run_id, {"results": [asdict(result) for result in results]}, "gates.json")


def _act(
    settings: Settings,
    use_case: UseCase,
    as_of: date,
    candidate: ModelVersion,
    passed: bool,
    results: tuple[GateResult, ...],
) -> str | None:
    """Keep the results and, if all passed, move the champion: one lock, one transaction."""
    with connect(settings) as connection, connection.cursor() as cursor:
        lock(connection, f"promote {use_case.name}")
        for result in results:
            cursor.execute(
                "insert into ops.gate_results"
                " (mlflow_run_id, use_case, as_of, gate, passed, observed, threshold, detail)"
                " values (%s, %s, %s, %s, %s, %s, %s, %s)"
                " on conflict (mlflow_run_id, gate) do update set passed = excluded.passed,"
                " observed = excluded.observed, threshold = excluded.threshold,"
                " detail = excluded.detail, judged_at = now()",
                (
                    candidate.run_id, use_case.name, as_of, result.gate, result.passed,
                    result.observed, result.threshold, result.detail,
                ),
            )  # fmt: skip
        if not passed:
            return None
        reigning = model_store.champion(settings, use_case.name)
        if reigning is not None and reigning.version == candidate.version:
            return None
        cursor.execute(
            "insert into ops.promotions"
            " (use_case, as_of, from_version, to_version, mlflow_run_id, reason)"
            " values (%s, %s, %s, %s, %s, %s)",
            (
                use_case.name, as_of, reigning and reigning.version, candidate.version,
                candidate.run_id, f"passed {len(results)} of {len(results)} gates",
            ),
        )  # fmt: skip
        model_store.promote(settings, use_case.name, candidate.version)
        return candidate.version
