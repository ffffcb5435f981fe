"""Who is champion: moved by gates and by people, kept by the real warehouse and the real MLflow."""

import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from typing import Any

import numpy as np
import psycopg2
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xgboost as xgb
from typer.testing import CliRunner, Result

from nightshift.cli import app
from nightshift.errors import GateError, NightshiftError, SettingError
from nightshift.gates import run as gates
from nightshift.gates.rules import GateResult
from nightshift.io import lake, model_store, registry
from nightshift.io.model_store import CHALLENGER, CHAMPION, PREVIOUS
from nightshift.io.registry import GATES
from nightshift.io.warehouse import connect, recorded_run
from nightshift.scoring.run import challenge, score
from nightshift.services.postgres import free_port
from nightshift.settings import Settings
from nightshift.spec import UseCase, gate_name
from nightshift.use_cases.churn import CHURN

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("logging_as_before")]

AS_OF = date(2011, 6, 12)
NAMES = list(CHURN.feature_names)
MANUAL = CHURN.model_copy(update={"approval": "manual"})


def register(settings: Settings, *, names: list[str] = NAMES) -> str:
    """A small model as a new version."""
    booster = xgb.train(
        {"objective": "binary:logistic", "max_depth": 1, "nthread": 1, "base_score": 0.5},
        xgb.DMatrix(np.zeros((4, len(names)), np.float32), [0, 1, 0, 1], feature_names=names),
        num_boost_round=1,
    )
    mlflow = model_store.client(settings)
    run_id = mlflow.create_run(model_store.experiment_id(settings, "churn")).info.run_id
    folder = settings.state_dir / "made" / run_id
    model_store.write_model(folder, bytes(booster.save_raw("ubj")), {"features": names})
    mlflow.log_artifacts(run_id, str(folder), model_store.MODEL)
    return model_store.register(settings, "churn", run_id, AS_OF.isoformat()).version


def judged(
    settings: Settings,
    version: str,
    *,
    failed: str | None = None,
    left_out: str | None = None,
    use_case: UseCase = CHURN,
) -> gates.Outcome:
    """Keep results of every gate but ``left_out``, all passed but ``failed``; act on them."""
    candidate = model_store.registered(settings, "churn")[version]
    names = [gate_name(gate) for gate in use_case.gates]
    results = tuple(
        GateResult(name, name != failed, 0.5, 0.6, f"figure of {name}")
        for name in names
        if name != left_out
    )
    with registry.opened(settings, "churn") as held:
        ids = gates._keep(settings, use_case, AS_OF, candidate, results)
        runs = gates._runs_decided_on(settings, candidate, held.champion)
        return gates._act(use_case, held, candidate, failed is None, ids, True, runs)


def aliases(settings: Settings) -> tuple[str | None, str | None, str | None]:
    found = model_store.aliases(settings, "churn")
    return found.get(CHAMPION), found.get(PREVIOUS), found.get(CHALLENGER)


def moves(settings: Settings) -> list[tuple[Any, ...]]:
    return [
        (each.action, each.by.actor, each.by.person, each.from_version, each.to_version)
        for each in registry.history(settings, "churn")
    ]


def execute(settings: Settings, sql: str) -> None:
    with connect(settings) as connection, connection.cursor() as cursor:
        cursor.execute(sql)


def nightshift(settings: Settings, *arguments: str) -> Result:
    variables = {
        "COLUMNS": "200",
        "TERM": "dumb",
        "NIGHTSHIFT_STATE_DIR": str(settings.state_dir),
        "NIGHTSHIFT_DATABASE_URL": settings.warehouse_url,
        "NIGHTSHIFT_MLFLOW_TRACKING_URI": settings.mlflow_uri,
    }
    return CliRunner().invoke(app, arguments, env=variables)


def test_champion_previous_and_challenger_follow_the_decisions(tracked_warehouse: Settings) -> None:
    settings = tracked_warehouse
    one, two, three = (register(settings) for _ in range(3))
    assert registry.champion(settings, "churn") is None

    assert judged(settings, one) == "promoted"
    assert aliases(settings) == ("1", None, None)
    assert judged(settings, two) == "promoted"
    assert aliases(settings) == ("2", "1", None)
    assert judged(settings, three, failed="at_least_auc") == "refused"
    assert aliases(settings) == ("2", "1", "3")

    assert gates.rollback(settings, CHURN, "Ann", "complaints") == "1"
    assert aliases(settings) == ("1", "2", "3")
    assert gates.rollback(settings, CHURN, "Ann", "they were not about it") == "2"
    assert aliases(settings) == ("2", "1", "3")
    assert moves(settings) == [
        ("promotion", "gates", None, None, "1"),
        ("promotion", "gates", None, "1", "2"),
        ("rollback", "person", "Ann", "2", "1"),
        ("rollback", "person", "Ann", "1", "2"),
    ]
    evidence = registry.history(settings, "churn")[-1]
    assert evidence.mlflow_run_id == model_store.registered(settings, "churn")[two].run_id
    assert evidence.gates_passed == len(evidence.gate_result_ids) == len(CHURN.gates)
    assert evidence.as_of == AS_OF


def test_gates_do_not_undo_what_a_person_decided(tracked_warehouse: Settings) -> None:
    """A cleared task of an older training, or of the one that was rolled back, moves nothing."""
    settings = tracked_warehouse
    one, two = register(settings), register(settings)
    judged(settings, one)
    judged(settings, two)
    gates.rollback(settings, CHURN, "Ann", "complaints")

    assert judged(settings, two) == "unchanged"
    assert judged(settings, one) == "unchanged"
    assert aliases(settings) == ("1", "2", None)
    assert len(moves(settings)) == 3


def trained(settings: Settings, model: str) -> str:
    """A small model, and what a training records of it; ``model`` stands for its bytes."""
    with recorded_run(settings, "training", AS_OF, "churn") as run:
        version = register(settings)
        run_id = model_store.registered(settings, "churn")[version].run_id
        run.result = {"mlflow_run_id": run_id, "version": version, "model_sha256": model}
    return version


def test_a_model_that_is_trained_again_undoes_no_decision_on_it(
    tracked_warehouse: Settings,
) -> None:
    settings = tracked_warehouse
    assert judged(settings, trained(settings, "a")) == "promoted"
    assert judged(settings, trained(settings, "b")) == "promoted"
    gates.rollback(settings, CHURN, "Ann", "complaints")

    assert judged(settings, trained(settings, "b")) == "unchanged"
    assert judged(settings, trained(settings, "a"), failed="at_least_auc") == "refused"
    assert aliases(settings) == ("1", "2", None), "nor is either scored beside the champion"

    rejected = trained(settings, "c")
    assert judged(settings, rejected, use_case=MANUAL) == "proposed"
    assert not gates.answer(settings, MANUAL, rejected, "Ann", False, "too late")
    assert judged(settings, trained(settings, "c")) == "unchanged"
    assert judged(settings, trained(settings, "d")) == "promoted"


def test_rollback_without_a_previous_champion(tracked_warehouse: Settings) -> None:
    settings = tracked_warehouse
    judged(settings, register(settings))
    with pytest.raises(NightshiftError, match="no champion before the present one"):
        gates.rollback(settings, CHURN, "Ann", "complaints")
    assert aliases(settings) == ("1", None, None)


def test_the_database_refuses_to_change_what_was_decided(tracked_warehouse: Settings) -> None:
    settings = tracked_warehouse
    judged(settings, register(settings))
    for table in ("ops.promotions", "ops.gate_results"):
        for statement in (
            f"update {table} set use_case = use_case",
            f"delete from {table}",
            f"delete from {table} where false",
            f"truncate {table}",
        ):
            with pytest.raises(
                psycopg2.errors.InsufficientPrivilege, match=f"{table} is append-only"
            ):
                execute(settings, statement)
    assert moves(settings) == [("promotion", "gates", None, None, "1")]


def test_the_database_refuses_a_decision_of_nobody(warehouse: Settings) -> None:
    for actor, person in (("gates", "'Ann'"), ("person", "null"), ("rain", "'Ann'")):
        with pytest.raises(psycopg2.errors.CheckViolation):
            execute(
                warehouse,
                "insert into ops.promotions (use_case, to_version, mlflow_run_id, reason, actor,"
                f" person) values ('churn', '1', 'r', '', '{actor}', {person})",
            )


def test_tables_of_an_earlier_form_keep_their_rows(tracked_warehouse: Settings) -> None:
    settings = tracked_warehouse
    register(settings)
    execute(
        settings,
        "drop table ops.promotions, ops.gate_results;"
        " create table ops.gate_results (mlflow_run_id text not null, use_case text not null,"
        " as_of date not null, gate text not null, passed boolean not null,"
        " observed double precision, threshold double precision, detail text not null,"
        " judged_at timestamptz not null default now(), primary key (mlflow_run_id, gate));"
        " create table ops.promotions (promotion_id bigint generated always as identity primary"
        " key, use_case text not null, as_of date not null, from_version text, to_version text not"
        " null, mlflow_run_id text not null, reason text not null, promoted_at timestamptz not null"
        " default now());"
        " insert into ops.gate_results values ('r', 'churn', '2011-06-12', 'g', true, 1, 1, 'd');"
        " insert into ops.promotions (use_case, as_of, to_version, mlflow_run_id, reason)"
        " values ('churn', '2011-06-12', '1', 'r', 'passed 1 of 1 gates');"
        " comment on schema ops is 'of an earlier version'",
    )
    champion = registry.champion(settings, "churn")
    assert champion is not None
    assert (champion.version, champion.run_id) == ("1", "r")
    assert moves(settings) == [("promotion", "gates", None, None, "1")]
    with pytest.raises(psycopg2.errors.InsufficientPrivilege):
        execute(settings, "delete from ops.gate_results")


KILLED = """
import os, signal, sys
from nightshift.io import model_store, registry
from nightshift.settings import Settings

model_store.set_alias = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
with registry.opened(Settings.model_validate_json(sys.argv[1]), "churn") as held:
    held.decide("rollback", registry.By("person", "Ann"), held.previous, (), "complaints")
"""


def write_features(settings: Settings) -> None:
    columns: dict[str, Any] = {"customer_id": ["12345"]} | {name: [1.0] for name in NAMES}
    folder = lake.dataset_dir(settings.lake_dir, "features", "churn", AS_OF)
    with lake.replacing(folder) as part:
        pq.write_table(pa.table(columns), part / "part-00000.parquet")
        lake.write_manifest(part, {"use_case": "churn", "as_of": AS_OF, "rows": 1, "sha256": "f"})


def test_a_kill_between_the_row_and_the_aliases_is_repaired_by_who_comes_next(
    tracked_warehouse: Settings,
) -> None:
    settings = tracked_warehouse
    judged(settings, register(settings))
    judged(settings, register(settings))
    write_features(settings)
    assert score(settings, CHURN, AS_OF).model_version == "2"

    killed = subprocess.run([sys.executable, "-c", KILLED, settings.model_dump_json()], check=False)

    assert killed.returncode == -signal.SIGKILL
    assert moves(settings)[-1] == ("rollback", "person", "Ann", "2", "1")
    assert aliases(settings) == ("2", "1", None)
    assert score(settings, CHURN, AS_OF).model_version == "1"
    with registry.opened(settings, "churn"):
        assert aliases(settings) == ("1", "2", None)
    assert len(moves(settings)) == 3


def test_an_alias_that_another_hand_moved_is_put_back(tracked_warehouse: Settings) -> None:
    settings = tracked_warehouse
    judged(settings, register(settings))
    other = register(settings)
    model_store.set_alias(settings, "churn", CHAMPION, other)
    found = registry.champion(settings, "churn")
    assert found is not None
    assert found.version == "1"
    assert aliases(settings) == (other, None, None)
    with registry.opened(settings, "churn"):
        assert aliases(settings) == ("1", None, None)


def test_a_person_promotes_rolls_back_and_reads_the_history(tracked_warehouse: Settings) -> None:
    settings = tracked_warehouse
    one, two = register(settings), register(settings)
    judged(settings, one)
    judged(settings, two, failed="calibration_within")
    promote = ("promote", "churn", "--version", two, "--reason", "campaign starts", "--by", "Ann")

    refused = nightshift(settings, *promote)
    assert refused.exit_code == 1
    shown = " ".join(refused.stderr.split())
    assert "has not passed its gates: calibration_within: figure of calibration_within" in shown
    assert "--despite-gates" in shown
    assert aliases(settings) == ("1", None, "2")

    done = nightshift(settings, *promote, "--despite-gates")
    assert done.exit_code == 0, done.output
    assert aliases(settings) == ("2", "1", None)
    again = nightshift(settings, *promote, "--despite-gates")
    assert "version 2 is champion already" in " ".join(again.stderr.split())

    back = nightshift(settings, "rollback", "churn", "--reason", "complaints", "--by", "Bo")
    assert "version 1 is champion again" in back.output
    assert aliases(settings) == ("1", "2", None)

    shown = nightshift(settings, "history", "churn").output
    for words in (
        "none → 1", "1 → 2", "2 → 1", "promotion", "rollback", "Ann (person)", "Bo (person)",
        f"{len(CHURN.gates) - 1} of {len(CHURN.gates)} passed",
        "campaign starts", "complaints", "despite",
    ):  # fmt: skip
        assert words in shown
    last = registry.history(settings, "churn")
    assert [each.despite_gates for each in last] == [False, True, False]


def test_what_was_never_judged_is_not_promoted(tracked_warehouse: Settings) -> None:
    settings = tracked_warehouse
    version = register(settings)
    with pytest.raises(GateError, match="at_least_auc: never judged"):
        gates.promote(settings, CHURN, version, "Ann", "x")
    judged(settings, version, left_out="loads_and_scores", use_case=MANUAL)
    with pytest.raises(GateError, match="gates: loads_and_scores: never judged"):
        gates.promote(settings, CHURN, version, "Ann", "x")
    with pytest.raises(NightshiftError, match=r"no version 9 in MLflow's registry; it has 1"):
        gates.promote(settings, CHURN, "9", "Ann", "x")
    judged(settings, version, use_case=MANUAL)
    with pytest.raises(NightshiftError, match="a reason is missing"):
        gates.promote(settings, CHURN, version, "Ann", " ")
    with pytest.raises(NightshiftError, match="the name of who promotes is missing"):
        gates.promote(settings, CHURN, version, " ", "x")
    assert moves(settings) == []


def test_a_model_of_other_features_is_refused_with_the_difference(
    tracked_warehouse: Settings,
) -> None:
    settings = tracked_warehouse
    one = register(settings)
    other = register(settings, names=["customer_shoe_size", *NAMES[1:]])
    judged(settings, other)
    judged(settings, one)
    for refused in (
        lambda: gates.promote(settings, CHURN, other, "Ann", "x", despite_gates=True),
        lambda: gates.rollback(settings, CHURN, "Ann", "x"),
    ):
        with pytest.raises(NightshiftError) as error:
            refused()
        assert f"it lacks {NAMES[0]}; it has customer_shoe_size" in error.value.what
    assert aliases(settings) == ("1", "2", None)


def test_manual_approval_proposes_and_a_person_answers(tracked_warehouse: Settings) -> None:
    settings = tracked_warehouse
    one, two = register(settings), register(settings)
    assert judged(settings, one, use_case=MANUAL) == "proposed"
    assert aliases(settings) == (None, None, "1")
    assert gates.answer(settings, MANUAL, one, "Ann", True, "run a")
    assert judged(settings, two, use_case=MANUAL) == "proposed"
    for _ in range(2):  # a retry of the task
        assert not gates.answer(settings, MANUAL, two, "Bo", False, "run b")
    assert gates.answer(settings, MANUAL, one, "Ann", True, "run a")
    assert aliases(settings) == ("1", None, "2")
    assert moves(settings) == [
        ("promotion", "approval", "Ann", None, "1"),
        ("rejection", "approval", "Bo", "1", "2"),
    ]
    # asked again, for the task was cleared; but not behind a person's back
    assert judged(settings, two, use_case=MANUAL) == "proposed"
    assert judged(settings, two) == "unchanged"


def test_an_approval_of_what_was_compared_with_another_champion(
    tracked_warehouse: Settings,
) -> None:
    settings = tracked_warehouse
    one, two, three = (register(settings) for _ in range(3))
    judged(settings, one)
    judged(settings, two, use_case=MANUAL)
    judged(settings, three)
    with pytest.raises(NightshiftError, match="against champion version 1, and version 3 is"):
        gates.answer(settings, MANUAL, two, "Ann", True, "run a")
    assert aliases(settings)[0] == "3"


def test_a_champion_whose_files_are_gone(tracked_warehouse: Settings) -> None:
    settings = tracked_warehouse
    judged(settings, register(settings))
    judged(settings, register(settings))
    champion = registry.champion(settings, "churn")
    assert champion is not None
    (model_store.fetch(settings, champion.run_id, "model") / "model.ubj").unlink()
    write_features(settings)

    with pytest.raises(NightshiftError, match="churn version 2 cannot be loaded") as error:
        score(settings, CHURN, AS_OF)
    assert "nightshift rollback churn" in error.value.remedy
    assert aliases(settings) == ("2", "1", None)

    gates.rollback(settings, CHURN, "Ann", "its files are gone")
    assert score(settings, CHURN, AS_OF).model_version == "1"
    with pytest.raises(NightshiftError, match="churn version 2 cannot be loaded"):
        gates.rollback(settings, CHURN, "Ann", "back")


def test_a_champion_that_the_store_has_lost(tracked_warehouse: Settings) -> None:
    settings = tracked_warehouse
    version = register(settings)
    with registry.opened(settings, "churn") as held:
        lost = model_store.ModelVersion("churn", "7", "0" * 32, AS_OF)
        held.decide("promotion", GATES, lost, (), "of a store that was replaced since")
    write_features(settings)
    with pytest.raises(NightshiftError, match=f"version 7 cannot be loaded: MLflow run {'0' * 32}"):
        score(settings, CHURN, AS_OF)
    assert aliases(settings) == (None, None, None)
    gates.promote(settings, CHURN, version, "Ann", "the store was replaced", despite_gates=True)
    assert score(settings, CHURN, AS_OF).model_version == version


def test_a_night_is_scored_while_the_store_is_down(tracked_warehouse: Settings) -> None:
    settings = tracked_warehouse
    judged(settings, register(settings))
    write_features(settings)
    down = f"postgresql+psycopg2://u:secret@127.0.0.1:{free_port(19_400)}/x"
    without = settings.model_copy(update={"mlflow_tracking_uri": down})
    assert score(without, CHURN, AS_OF).model_version == "1"
    assert challenge(without, CHURN, AS_OF) is None
    judged(settings, register(settings), failed="calibration_within")
    with pytest.raises(SettingError, match="does not answer"):
        challenge(without, CHURN, AS_OF)


def test_a_store_that_is_down(warehouse: Settings) -> None:
    port = free_port(19_400)
    for scheme in ("postgresql+psycopg2://u:secret@127.0.0.1", "http://127.0.0.1"):
        settings = warehouse.model_copy(update={"mlflow_tracking_uri": f"{scheme}:{port}/x"})
        with pytest.raises(SettingError, match=f"does not answer at 127.0.0.1:{port}") as error:
            registry.champion(settings, "churn")
        assert "NIGHTSHIFT_MLFLOW_TRACKING_URI" in error.value.remedy
        assert "secret" not in str(error.value)


def test_a_training_that_was_killed_before_it_registered_is_not_judged(
    tracked_warehouse: Settings,
) -> None:
    settings = tracked_warehouse
    version = register(settings)
    mlflow = model_store.client(settings)
    experiment = model_store.experiment_id(settings, "churn")
    left = mlflow.create_run(experiment, tags={"nightshift.as_of": AS_OF.isoformat()})
    mlflow.set_terminated(left.info.run_id)
    found = model_store.newest_version(settings, "churn", AS_OF)
    assert found is not None
    assert found.version == version
    assert model_store.newest_version(settings, "churn", date(2011, 6, 13)) is None


def test_a_champion_that_a_person_moves_while_gates_judge(
    tracked_warehouse: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tracked_warehouse
    judged(settings, register(settings))
    one, two = register(settings), register(settings)
    collect = gates._collect

    def overtaken(*arguments: Any) -> Any:
        gates.promote(settings, CHURN, one, "Ann", "in between", despite_gates=True)
        return collect(*arguments)

    monkeypatch.setattr(gates, "_collect", overtaken)
    with pytest.raises(NightshiftError, match=f"moved while version {two} was compared"):
        gates.judge(settings, CHURN, AS_OF)
    assert aliases(settings) == (one, "1", None)


def test_two_promotions_at_once_make_one_chain(tracked_warehouse: Settings) -> None:
    settings = tracked_warehouse
    versions = [register(settings) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        outcomes = list(pool.map(lambda version: judged(settings, version), versions))
    assert outcomes == ["promoted"] * 4
    chain = [(before, after) for *_, before, after in moves(settings)]
    assert [before for before, _ in chain] == [None, *(after for _, after in chain[:-1])]
    assert aliases(settings) == (chain[-1][1], chain[-1][0], None)
