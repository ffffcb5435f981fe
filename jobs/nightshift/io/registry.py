"""Who is champion: each decision on it, kept in ``ops.promotions``, and the aliases that follow.

The rows decide, and MLflow's aliases repeat them for whoever looks there. A decision writes its row
first. A process that is killed before the aliases have followed, or an alias that was moved by
another hand, is put right by whoever opens the registry next: a judgement, a challenge, a
person's command. Where no row names a champion, the alias ``champion`` is believed.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any, Literal

from nightshift.errors import NightshiftError
from nightshift.io import model_store
from nightshift.io.model_store import CHALLENGER, CHAMPION, PREVIOUS, ModelVersion
from nightshift.io.warehouse import connect, holding, migrate
from nightshift.settings import Settings

log = logging.getLogger(__name__)

Action = Literal["promotion", "rollback", "rejection"]
Actor = Literal["gates", "person", "approval"]


@dataclass(frozen=True)
class By:
    """Who or what decided: the gates by themselves, or a person, at the command line or in Airflow.

    Attributes:
        actor: ``approval`` is a person who was asked.
        person: their name; None for the gates.
    """

    actor: Actor
    person: str | None = None


GATES = By("gates")


@dataclass(frozen=True)
class Decision:
    """One row of ``ops.promotions``.

    Attributes:
        as_of: of ``to_version``.
        from_version: the champion before; None when there was none.
        to_version: the champion from then on, or, of a rejection, the version that was rejected.
        mlflow_run_id: made ``to_version``.
        gate_result_ids: rows of ``ops.gate_results`` that the decision rests on.
        gates_passed: how many of these had passed.
        despite_gates: a person promoted what had not passed them.
    """

    action: Action
    by: By
    as_of: date | None
    from_version: str | None
    to_version: str
    mlflow_run_id: str
    gate_result_ids: tuple[int, ...]
    gates_passed: int
    despite_gates: bool
    reason: str
    decided_at: datetime


class Registry:
    """The registry of one use case, while its lock is held."""

    def __init__(self, settings: Settings, use_case_name: str) -> None:
        self._settings = settings
        self._name = use_case_name

    @property
    def champion(self) -> ModelVersion | None:
        """The version that scores; None when there is none yet."""
        moves = self._moves()
        if moves:
            return _champion_of(self._name, moves[-1])
        version = model_store.aliases(self._settings, self._name).get(CHAMPION)
        return None if version is None else self.find(version)

    @property
    def previous(self) -> ModelVersion | None:
        """The champion before the last move; None when there was none."""
        moves = self._moves()
        before = moves[-1].from_version if moves else None
        if before is None:
            return None
        for move in reversed(moves):
            if move.to_version == before:
                return ModelVersion(self._name, before, move.mlflow_run_id, move.as_of)
        return self.find(before)

    def find(self, version: str) -> ModelVersion:
        """A registered version by its number.

        Raises:
            NightshiftError: when there is none; the message names those that there are.
        """
        found = model_store.registered(self._settings, self._name)
        if version not in found:
            raise NightshiftError(
                f"{self._name} has no version {version} in MLflow's registry; it has "
                f"{', '.join(found) or 'none'}",
                f"choose one of them, or train one: `nightshift train {self._name}`",
            )
        return found[version]

    def decisions(self) -> list[Decision]:
        """Every decision, oldest first."""
        return history(self._settings, self._name)

    def decide(
        self,
        action: Action,
        by: By,
        version: ModelVersion,
        gate_result_ids: Sequence[int],
        reason: str,
        *,
        despite_gates: bool = False,
    ) -> None:
        """Write the decision down, then let the aliases follow."""
        champion = self.champion
        with connect(self._settings) as connection, connection.cursor() as cursor:
            cursor.execute(
                "insert into ops.promotions (use_case, action, actor, person, as_of, from_version,"
                " to_version, mlflow_run_id, gate_result_ids, despite_gates, reason)"
                " values (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)",
                (
                    self._name, action, by.actor, by.person, version.as_of,
                    champion and champion.version, version.version, version.run_id,
                    list(gate_result_ids), despite_gates, reason,
                ),
            )  # fmt: skip
        self.settle()

    def settle(self) -> None:
        """Make MLflow's aliases say what the rows say."""
        moves = self._moves()
        found = model_store.aliases(self._settings, self._name)
        reigning = moves[-1].to_version if moves else found.get(CHAMPION)
        wanted = {
            CHAMPION: reigning,
            PREVIOUS: moves[-1].from_version if moves else None,
            CHALLENGER: self._challenger(moves, reigning),
        }
        if all(found.get(alias) == version for alias, version in wanted.items()):
            return
        known = model_store.registered(self._settings, self._name)
        for alias, version in wanted.items():
            if found.get(alias) == version:
                continue
            if version is not None and version not in known:
                log.warning(
                    "%s: MLflow has no version %s, the %s that ops.promotions names",
                    self._name, version, alias,
                )  # fmt: skip
                continue
            log.info(
                "%s: MLflow's alias %s named version %s, and names %s now",
                self._name, alias, found.get(alias, "none"), version or "none",
            )  # fmt: skip
            model_store.set_alias(self._settings, self._name, alias, version)

    def _moves(self) -> list[Decision]:
        """The decisions that changed the champion, oldest first."""
        return [each for each in self.decisions() if each.action != "rejection"]

    def _challenger(self, moves: Sequence[Decision], reigning: str | None) -> str | None:
        """The version that was judged last, if neither it nor the same model was ever champion."""
        reigned = {reigning, *(v for move in moves for v in (move.from_version, move.to_version))}
        judged, run_id = self._judged_last()
        if judged is None or judged in reigned:
            return None
        alike = _same_model(self._settings, self._name, run_id)
        is_repetition = not alike.isdisjoint(move.mlflow_run_id for move in moves)
        return None if is_repetition else judged

    def _judged_last(self) -> tuple[str | None, str]:
        """The version and its MLflow run."""
        with connect(self._settings) as connection, connection.cursor() as cursor:
            cursor.execute(
                "select model_version, mlflow_run_id from ops.gate_results where use_case = %s"
                " order by gate_result_id desc limit 1",
                (self._name,),
            )
            return cursor.fetchone() or (None, "")


@contextmanager
def opened(settings: Settings, use_case_name: str) -> Iterator[Registry]:
    """The registry of a use case, settled and locked: one judgement, move or look at a time.

    Raises:
        SettingError: when the warehouse or MLflow's store does not answer.
    """
    migrate(settings)
    with holding(settings, exclusive=[f"promote {use_case_name}"]):
        registry = Registry(settings, use_case_name)
        registry.settle()
        yield registry


def champion(settings: Settings, use_case_name: str) -> ModelVersion | None:
    """The version that scores; None when there is none yet.

    MLflow is only asked where no decision names one: what was decided scores also without it.
    """
    if moves := Registry(settings, use_case_name)._moves():
        return _champion_of(use_case_name, moves[-1])
    with opened(settings, use_case_name) as registry:
        return registry.champion


def challenger(settings: Settings, use_case_name: str) -> ModelVersion | None:
    """The version that was judged last and is not champion; None when there is none.

    As of :func:`champion`, where the decisions tell that there is none, MLflow is not asked.
    """
    look = Registry(settings, use_case_name)
    moves = look._moves()
    if moves and look._challenger(moves, None) is None:
        return None
    with opened(settings, use_case_name) as registry:
        version = model_store.aliases(settings, use_case_name).get(CHALLENGER)
        return None if version is None else registry.find(version)


def of_same_model(settings: Settings, version: ModelVersion) -> set[str]:
    """The MLflow runs whose model is the version's byte for byte, for the same ``as_of``: its own,
    and those of which it is a repetition."""
    return {version.run_id} | _same_model(settings, version.name, version.run_id)


def _same_model(settings: Settings, use_case_name: str, run_id: str) -> set[str]:
    """By what trainings have recorded: none of a model that was registered otherwise."""
    with connect(settings) as connection, connection.cursor() as cursor:
        cursor.execute(
            "select distinct other.result ->> 'mlflow_run_id' from ops.runs as own"
            " join ops.runs as other on (other.stage, other.use_case, other.as_of)"
            " = (own.stage, own.use_case, own.as_of)"
            " and other.result ->> 'model_sha256' = own.result ->> 'model_sha256'"
            " where own.stage = 'training' and own.use_case = %s"
            " and own.result ->> 'mlflow_run_id' = %s",
            (use_case_name, run_id),
        )
        return {name for (name,) in cursor.fetchall()}


def champion_at(
    decisions: Sequence[Decision], use_case_name: str, instant: datetime
) -> ModelVersion | None:
    """The version that was champion at an instant; None before the first.

    Args:
        decisions: every one on the use case, oldest first.
    """
    moves = [d for d in decisions if d.action != "rejection" and d.decided_at <= instant]
    if not moves:
        return None
    return _champion_of(use_case_name, moves[-1])


def history(settings: Settings, use_case_name: str) -> list[Decision]:
    """Every decision on the use case's champion, oldest first."""
    migrate(settings)
    with connect(settings) as connection, connection.cursor() as cursor:
        cursor.execute(
            "select action, actor, person, as_of, from_version, to_version, mlflow_run_id,"
            " gate_result_ids, (select count(*) from ops.gate_results"
            "  where gate_result_id = any(gate_result_ids) and passed),"
            " despite_gates, reason, promoted_at from ops.promotions"
            " where use_case = %s order by promotion_id",
            (use_case_name,),
        )
        return [_decision(row) for row in cursor.fetchall()]


def _champion_of(use_case_name: str, move: Decision) -> ModelVersion:
    # by the row, also when MLflow has lost the version: what loads it says what is missing
    return ModelVersion(use_case_name, move.to_version, move.mlflow_run_id, move.as_of)


def _decision(row: tuple[Any, ...]) -> Decision:
    action, actor, person, as_of, before, after, run_id, ids, *rest = row
    return Decision(action, By(actor, person), as_of, before, after, run_id, tuple(ids), *rest)
