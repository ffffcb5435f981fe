"""Judge the newest training run of a use case; move the champion, or leave it and say why.

A person moves it too: by ``promote`` and ``rollback``, or by answering what a use case with manual
approval asks (``answer``). Every one of these holds the use case's registry while it decides.
"""

import json
import logging
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from datetime import date
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from nightshift import model_card
from nightshift.booster import content_hashes, gain_shares, predict, row_order, to_matrix
from nightshift.errors import Cause, GateError, NightshiftError
from nightshift.gates.page import render
from nightshift.gates.rules import Evidence, GateResult, Rebuilt, Reign, Sample, judge_gate
from nightshift.io import lake, model_store, registry
from nightshift.io.model_store import ModelVersion
from nightshift.io.registry import GATES, By, Registry
from nightshift.io.warehouse import connect, holding, recorded_run
from nightshift.metrics import measure, read_measured, settled_rows
from nightshift.settings import Settings
from nightshift.spec import UseCase, gate_name

log = logging.getLogger(__name__)


Outcome = Literal["promoted", "refused", "proposed", "challenger", "unchanged"]
"""What a judgement led to. Of what has passed, ``proposed`` waits for a person, ``challenger`` was
judged in a dry run, and ``unchanged`` was decided on before, it or the same model."""


@dataclass(frozen=True)
class Verdict:
    """One judgement of one version, as ``ops.gate_results`` keeps it."""

    outcome: Outcome
    results: tuple[GateResult, ...]
    mlflow_run_id: str
    candidate_version: str

    @property
    def passed(self) -> bool:
        """Whether every gate passed."""
        return not self.failures

    @property
    def promoted_version(self) -> str | None:
        """The new champion; None when the champion stayed, or was the candidate already."""
        return self.candidate_version if self.outcome == "promoted" else None

    @property
    def failures(self) -> tuple[GateResult, ...]:
        """The gates that failed."""
        return tuple(result for result in self.results if not result.passed)

    @property
    def report(self) -> str:
        """A line of Markdown a gate, for whoever is asked to approve."""
        return "\n".join(
            f"- {'passed' if r.passed else 'FAILED'} `{r.gate}`: {r.detail}" for r in self.results
        )

    def require_passed(self) -> "Verdict":
        """This verdict.

        Raises:
            GateError: when a gate failed, naming each with its figure.
        """
        if not self.passed:
            raise _refusal(self.candidate_version, self.mlflow_run_id, self.failures)
        return self


def _refusal(version: str | None, run_id: str, failures: tuple[GateResult, ...]) -> GateError:
    return GateError(
        f"version {version} is refused and the champion stays: "
        + "; ".join(f"{result.gate}: {result.detail}" for result in failures),
        f"read the report of the MLflow run {run_id}",
        causes=tuple(Cause(r.gate, observed=r.detail) for r in failures),
    )


def judge(
    settings: Settings, use_case: UseCase, as_of: date, *, may_promote: bool = True
) -> Verdict:
    """Judge every gate of the newest version of (use case, as_of), keep the results, act on them.

    The reigning champion is compared by its *evaluation* model on the candidate's test rows: its
    shipped model may have learned from them.

    A gate that fails is an answer, not an error: the champion stays, and the verdict says why.
    Without ``may_promote``, a dry run, it stays in any case.

    Raises:
        NightshiftError: when there is no such run, its files or dataset are gone, or a person
            moved the champion meanwhile.
    """
    with (
        recorded_run(settings, "gates", as_of, use_case.name) as run,
        holding(settings, exclusive=[f"judge {use_case.name}"]),
    ):
        candidate = model_store.newest_version(settings, use_case.name, as_of)
        if candidate is None:
            raise NightshiftError(
                f"there is no finished training run of {use_case.name} as of {as_of}",
                f"run `nightshift train {use_case.name} --as-of {as_of}`",
            )
        reigning = registry.champion(settings, use_case.name)
        # without the registry's lock: a night that scores meanwhile does not wait for evidence
        evidence = _collect(settings, use_case, as_of, candidate, reigning)
        results = tuple(judge_gate(gate, evidence) for gate in use_case.gates)
        for result in results:
            log.info("%s %s: %s", "pass" if result.passed else "FAIL", result.gate, result.detail)
        passed = all(result.passed for result in results)
        runs = _runs_decided_on(settings, candidate, reigning)
        with registry.opened(settings, use_case.name) as held:
            if held.champion != reigning:
                raise NightshiftError(
                    f"the champion of {use_case.name} was moved while version "
                    f"{candidate.version} was compared with the one before",
                    "judge again: clear judge_gates in Airflow, or train again",
                )
            _log_to_mlflow(settings, candidate.run_id, passed, results)
            ids = _keep(settings, use_case, as_of, candidate, results)
            outcome = _act(use_case, held, candidate, passed, ids, may_promote, runs)
        verdict = Verdict(outcome, results, candidate.run_id, candidate.version)
        model_store.write_into_card(
            settings,
            candidate.run_id,
            model_card.VERDICT,
            render(
                use_case.name,
                candidate.version,
                candidate.run_id,
                None if reigning is None else reigning.version,
                outcome,
                results,
            ),
        )
        run.result = {
            "mlflow_run_id": candidate.run_id,
            "candidate_version": candidate.version,
            "promoted_version": verdict.promoted_version,
            "outcome": outcome,
            "passed": passed,
            "failed_gates": [result.gate for result in verdict.failures],
        }
        return verdict


def require_passed(settings: Settings, use_case: UseCase, as_of: date) -> None:
    """Say again what was last judged for (use case, as_of).

    Raises:
        GateError: when a gate failed then, naming each with its figure.
    """
    failed = tuple(r for r in gate_results(settings, use_case, as_of) if not r.passed)
    if failed:
        with connect(settings) as connection, connection.cursor() as cursor:
            _, run_id, version = _judged_last(cursor, use_case, as_of)
        raise _refusal(version, run_id, failed)


def promote(
    settings: Settings,
    use_case: UseCase,
    version: str,
    person: str,
    reason: str,
    *,
    despite_gates: bool = False,
) -> None:
    """Make a version champion because a person says so.

    Raises:
        NightshiftError: when there is no such version, it is champion already, its files are
            damaged, its features are not those that are declared (with the difference), or it has
            not passed every gate of the spec and ``despite_gates`` is not set.
    """
    with registry.opened(settings, use_case.name) as held:
        candidate = held.find(version)
        _require_other(use_case, held, candidate)
        model_store.load_model(settings, candidate)
        ids = _require_gates(settings, use_case, candidate, despite_gates)
        by = By("person", _given("the name of who promotes", "--by", person))
        held.decide(
            "promotion", by, candidate, ids, _given("a reason", "--reason", reason),
            despite_gates=despite_gates,
        )  # fmt: skip


def rollback(
    settings: Settings, use_case: UseCase, person: str, reason: str, *, is_once: bool = False
) -> str:
    """Make the previous champion champion again: its version. Twice goes back to where it was.

    Args:
        is_once: the reason names what asks, and what was rolled back for it is not again.

    Raises:
        NightshiftError: when there was none before, or it could not score: its files are damaged,
            or its features are not those that are declared (with the difference).
    """
    with registry.opened(settings, use_case.name) as held:
        by = By("person", _given("the name of who rolls back", "--by", person))
        reason = _given("a reason", "--reason", reason)
        if is_once:
            for each in held.decisions():
                if (each.action, each.by, each.reason) == ("rollback", by, reason):
                    return each.to_version
        before = held.previous
        if before is None:
            raise NightshiftError(
                f"{use_case.name} has no champion before the present one",
                f"see `nightshift history {use_case.name}`; any version can be made champion by "
                f"`nightshift promote {use_case.name} --version … --reason …`",
            )
        model_store.load_model(settings, before)
        _, ids = _results_of(settings, before)
        held.decide("rollback", by, before, ids, reason)
        return before.version


def answer(
    settings: Settings, use_case: UseCase, version: str, person: str, is_approved: bool, reason: str
) -> bool:
    """Do what a person answered when asked whether ``version`` shall be champion.

    The same answer again, with the same reason, changes nothing.

    Returns:
        Whether the version is champion now.

    Raises:
        NightshiftError: when it was approved and cannot score, has not passed every gate, or was
            compared with another champion than there is now.
    """
    with registry.opened(settings, use_case.name) as held:
        candidate = held.find(version)
        action: Literal["promotion", "rejection"] = "promotion" if is_approved else "rejection"
        by = By("approval", person)
        if any(
            (d.action, d.by, d.to_version, d.reason) == (action, by, version, reason)
            for d in held.decisions()
        ):
            return is_approved
        if not is_approved:
            _, ids = _results_of(settings, candidate)
            held.decide(action, by, candidate, ids, reason)
            return False
        _require_other(use_case, held, candidate)
        model_store.load_model(settings, candidate)
        ids = _require_gates(settings, use_case, candidate, despite_gates=False)
        _require_same_champion(settings, use_case, held, ids)
        held.decide(action, by, candidate, ids, reason)
        return True


def _given(what: str, option: str, text: str) -> str:
    if not text.strip():
        raise NightshiftError(f"{what} is missing", f"give it with {option}; it is kept for good")
    return text.strip()


def _require_other(use_case: UseCase, held: Registry, candidate: ModelVersion) -> None:
    reigning = held.champion
    if reigning is not None and reigning.version == candidate.version:
        raise NightshiftError(
            f"{use_case.name} version {candidate.version} is champion already",
            f"see `nightshift history {use_case.name}`",
        )


def _results_of(
    settings: Settings, candidate: ModelVersion
) -> tuple[dict[str, GateResult], tuple[int, ...]]:
    """The gates by which a version was judged last, by name, and the ids of their rows."""
    with connect(settings) as connection, connection.cursor() as cursor:
        cursor.execute(
            "select gate_result_id, gate, passed, observed, threshold, detail from ops.gate_results"
            " where mlflow_run_id = %s and judged_at ="
            " (select max(judged_at) from ops.gate_results where mlflow_run_id = %s)"
            " order by gate_result_id",
            (candidate.run_id, candidate.run_id),
        )
        rows = cursor.fetchall()
    return {row[1]: GateResult(*row[1:]) for row in rows}, tuple(row[0] for row in rows)


def _require_gates(
    settings: Settings, use_case: UseCase, candidate: ModelVersion, despite_gates: bool
) -> tuple[int, ...]:
    """The ids of the results by which the version was judged last.

    Raises:
        GateError: when a gate of the spec was failed or never judged, unless ``despite_gates``.
    """
    found, ids = _results_of(settings, candidate)
    asked = [gate_name(gate) for gate in use_case.gates]
    open_ = [f"{name}: never judged" for name in asked if name not in found]
    open_ += [f"{name}: {result.detail}" for name, result in found.items() if not result.passed]
    if open_ and not despite_gates:
        raise GateError(
            f"{use_case.name} version {candidate.version} has not passed its gates: "
            + "; ".join(open_),
            "promote another version, or this one with --despite-gates, which is kept with the "
            "reason",
        )
    return ids


def _require_same_champion(
    settings: Settings, use_case: UseCase, held: Registry, ids: tuple[int, ...]
) -> None:
    with connect(settings) as connection, connection.cursor() as cursor:
        cursor.execute(
            "select max(judged_at) from ops.gate_results where gate_result_id = any(%s)",
            (list(ids),),
        )
        (judged_at,) = cursor.fetchone()
    moved = [d for d in held.decisions() if d.action != "rejection" and d.decided_at > judged_at]
    if moved:
        raise NightshiftError(
            f"{use_case.name} was judged against champion version {moved[0].from_version}, and "
            f"version {moved[-1].to_version} is champion now",
            "clear judge_gates in Airflow, which compares with the new one and asks again",
        )


def gate_results(settings: Settings, use_case: UseCase, as_of: date) -> tuple[GateResult, ...]:
    """What was last judged for (use case, as_of), in the spec's order; empty when nothing was."""
    with connect(settings) as connection, connection.cursor() as cursor:
        judged_at, run_id, _ = _judged_last(cursor, use_case, as_of)
        cursor.execute(
            "select gate, passed, observed, threshold, detail from ops.gate_results"
            " where mlflow_run_id = %s and judged_at = %s",
            (run_id, judged_at),
        )
        found = {row[0]: GateResult(*row) for row in cursor.fetchall()}
    return tuple(
        found[name] for name in (gate_name(gate) for gate in use_case.gates) if name in found
    )


def _judged_last(cursor: Any, use_case: UseCase, as_of: date) -> tuple[Any, ...]:
    """When, which MLflow run, which version; Nones where nothing was judged."""
    cursor.execute(
        "select judged_at, mlflow_run_id, model_version from ops.gate_results"
        " where use_case = %s and as_of = %s order by gate_result_id desc limit 1",
        (use_case.name, as_of),
    )
    return cursor.fetchone() or (None, None, None)


def _collect(
    settings: Settings,
    use_case: UseCase,
    as_of: date,
    candidate: ModelVersion,
    reigning: ModelVersion | None,
) -> Evidence:
    """What the gates ask for; what cannot be had is a problem that fails the gates that need it."""
    asked = {gate.kind for gate in use_case.gates}
    test, problem, reign = None, "", None
    gains: dict[str, float] = {}
    try:
        evaluation = model_store.fetch(settings, candidate.run_id, model_store.EVALUATION)
        test = read_measured(json.loads((evaluation / "metrics.json").read_text())["test"])
        gains = gain_shares(model_store.read_model(evaluation)[0])
    except (NightshiftError, OSError, ValueError, KeyError, TypeError) as error:
        problem = f"the figures of run {candidate.run_id} cannot be read: {error!r}"
    if reigning is not None:
        try:
            reign = _measure_champion(settings, use_case, as_of, candidate, reigning)
        except (NightshiftError, OSError, ValueError, KeyError) as error:
            why = error.what if isinstance(error, NightshiftError) else repr(error)
            reign = Reign(reigning.version, {}, problem=why)
    return Evidence(
        model=next(iter(test.scorers.values())) if test else {},
        differences=test.differences if test else {},
        slices=test.slices if test else {},
        gains=gains,
        problem=problem,
        champion=reign,
        sample=_score_in_fresh_process(settings, use_case, candidate)
        if "loads_and_scores" in asked
        else None,
        rebuilt=_rebuild_in_fresh_process(settings, use_case, as_of, candidate)
        if "reproducible" in asked
        else None,
    )


def _measure_champion(
    settings: Settings,
    use_case: UseCase,
    as_of: date,
    version: ModelVersion,
    reigning: ModelVersion,
) -> Reign:
    evaluation = model_store.fetch(settings, version.run_id, model_store.EVALUATION)
    champion, signature = model_store.load_evaluation(settings, reigning.run_id)
    if list(signature["features"]) != list(use_case.feature_names):
        return Reign(reigning.version, {}, is_obsolete=True)
    predictions = pq.ParquetFile(evaluation / "test_predictions.parquet").read()
    candidate, _ = model_store.read_model(evaluation)
    folder = lake.dataset_dir(settings.lake_dir, "training", use_case.name, as_of)
    snapshots = predictions.column("snapshot").unique().to_pylist()
    tested = pa.array(snapshots, pa.date32())
    parts = [
        pq.read_table(file, partitioning=None, filters=pc.field("snapshot").isin(tested))
        for file in lake.parts(folder)
    ]
    remedy = f"train again: `nightshift train {use_case.name} --as-of {as_of}`"
    if not parts:
        raise NightshiftError(f"the training dataset in {folder} is gone", remedy)
    rows = pa.concat_tables(parts)
    matrix = to_matrix(rows, use_case.feature_names)
    order = row_order(
        rows.column("snapshot").to_numpy(),
        content_hashes(matrix, rows.column("label").cast(pa.float64()).to_numpy()),
        pc.rank(rows.column(use_case.key), tiebreaker="dense").to_numpy(),
    )
    rows, matrix = rows.take(order), matrix[order]
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
        objective=use_case.objective,
        working_point=use_case.working_point,
        snapshots=predictions.column("snapshot").to_numpy(),
        items=rows.column(use_case.vector_key[1]).to_numpy(zero_copy_only=False)
        if use_case.objective == "ranking"
        else None,
        settled=settled_rows(use_case.settled, use_case.feature_names, matrix),
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


def _rebuild_in_fresh_process(
    settings: Settings, use_case: UseCase, as_of: date, candidate: ModelVersion
) -> Rebuilt:
    try:
        folder = model_store.fetch(settings, candidate.run_id, model_store.MODEL)
        signature = json.loads((folder / model_store.SIGNATURE_FILE).read_text())
        expected = str(signature["model_sha256"])
    except (NightshiftError, OSError, ValueError, KeyError) as error:
        return Rebuilt("", None, f"the model's files cannot be read: {error}")
    dataset = lake.dataset_dir(settings.lake_dir, "training", use_case.name, as_of)
    # The stage of training in a process of its own: what this one holds cannot help it.
    done = subprocess.run(
        [sys.executable, "-m", "nightshift.training.run", str(folder), str(dataset)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        return Rebuilt(expected, None, done.stderr.strip().splitlines()[-1] if done.stderr else "")
    return Rebuilt(expected, done.stdout.strip())


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


def _keep(
    settings: Settings,
    use_case: UseCase,
    as_of: date,
    candidate: ModelVersion,
    results: tuple[GateResult, ...],
) -> tuple[int, ...]:
    """Keep the results of a judgement for good: the ids of their rows."""
    ids = []
    with connect(settings) as connection, connection.cursor() as cursor:
        for result in results:
            cursor.execute(
                "insert into ops.gate_results (mlflow_run_id, model_version, use_case, as_of, gate,"
                " passed, observed, threshold, detail)"
                " values (%s, %s, %s, %s, %s, %s, %s, %s, %s) returning gate_result_id",
                (
                    candidate.run_id, candidate.version, use_case.name, as_of, result.gate,
                    result.passed, result.observed, result.threshold, result.detail,
                ),
            )  # fmt: skip
            ids.append(cursor.fetchone()[0])
    return tuple(ids)


def _runs_decided_on(
    settings: Settings, candidate: ModelVersion, reigning: ModelVersion | None
) -> set[str]:
    """The MLflow runs of which a decision is one on the candidate as well: its own, and those of
    which it is a repetition, as after a kill; its own alone where it can take the place of the
    champion, whose files are damaged."""
    runs = registry.of_same_model(settings, candidate)
    for other in sorted(runs - {candidate.run_id}):
        log.info("version %s is the model of MLflow run %s again", candidate.version, other)
    if reigning is None or reigning.run_id not in runs - {candidate.run_id}:
        return runs
    return runs if _is_whole(settings, reigning) else {candidate.run_id}


def _is_whole(settings: Settings, version: ModelVersion) -> bool:
    """Whether a version's model can be read."""
    try:
        model_store.read_model(model_store.fetch(settings, version.run_id, model_store.MODEL))
    except NightshiftError as error:
        log.warning("champion version %s cannot be read: %s", version.version, error.what)
        return False
    return True


def _act(
    use_case: UseCase,
    held: Registry,
    candidate: ModelVersion,
    passed: bool,
    ids: tuple[int, ...],
    may_promote: bool,
    runs: set[str],
) -> Outcome:
    """Move the champion if the gates alone may: not what a person has to approve, and not a model
    that was champion before or was rejected, for that would undo what was decided since.

    Args:
        runs: of :func:`_runs_decided_on`.
    """
    decided = {d.mlflow_run_id for d in held.decisions()}
    promoted = {d.mlflow_run_id for d in held.decisions() if d.action != "rejection"}
    reigning = held.champion
    if reigning is not None:
        promoted.add(reigning.run_id)
    outcome: Outcome
    if not passed:
        outcome = "refused"
    elif runs & promoted:
        outcome = "unchanged"
    elif not may_promote:
        outcome = "challenger"
    elif use_case.approval == "manual":
        outcome = "proposed"
    elif runs & decided:
        outcome = "unchanged"
    else:
        reason = f"passed {len(ids)} of {len(ids)} gates"
        held.decide("promotion", GATES, candidate, ids, reason)
        return "promoted"
    held.settle()
    log.info("version %s: %s, the champion stays", candidate.version, outcome)
    return outcome
