"""Sources that a stage has refused, and what waits for them: only the use cases that read them.

A stage that all use cases share goes through every source before it judges. What it refused it
keeps in its row of ``ops.runs``, under ``held``; the stages after it leave out the use cases that
read such a source, and a task of the source's own is red. Where no use case is left, the stage
fails by itself.
"""

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import date
from typing import Any

from nightshift import errors
from nightshift.errors import Cause, NightshiftError, joined
from nightshift.io.warehouse import Run, connect
from nightshift.settings import Settings
from nightshift.spec import UseCase
from nightshift.use_cases import USE_CASES

log = logging.getLogger(__name__)

STAGES = ("ingest", "quality", "transform", "quality_marts")
"""The stages that go through all sources, in order."""


def hold(run: Run, refusals: Mapping[str, NightshiftError]) -> None:
    """Keep with a stage's run which sources it has refused, and why.

    Raises:
        NightshiftError: the refusals, where they leave no use case of the registry.
    """
    run.result["held"] = {source: _kept(refusal) for source, refusal in refusals.items()}
    if refusals and not _reading_none_of(USE_CASES, refusals):
        raise _one_of(refusals.values())
    for source, refusal in refusals.items():
        log.error("%s is held, with the use cases that read it: %s", source, refusal)


def held_sources(
    settings: Settings, as_of: date, stages: Sequence[str] = STAGES
) -> dict[str, NightshiftError]:
    """The sources that the newest run of each stage for ``as_of`` has refused, and why."""
    with connect(settings) as connection, connection.cursor() as cursor:
        cursor.execute(
            "select distinct on (stage) stage, result -> 'held' from ops.runs"
            " where as_of = %s and stage = any(%s) and status <> 'running'"
            " order by stage, run_id desc",
            (as_of, list(stages)),
        )
        held = {stage: kept or {} for stage, kept in cursor.fetchall()}
    refusals: dict[str, list[NightshiftError]] = {}
    for stage in stages:
        for source, kept in held.get(stage, {}).items():
            refusals.setdefault(source, []).append(_refusal(kept))
    return {source: _one_of(found) for source, found in refusals.items()}


def require_source(settings: Settings, source: str, as_of: date) -> None:
    """Raise what the source was refused for, if it was."""
    held = held_sources(settings, as_of)
    if source in held:
        raise held[source]


def free(settings: Settings, use_cases: Sequence[UseCase], as_of: date) -> list[UseCase]:
    """The use cases that read no source that is held for ``as_of``.

    Raises:
        NightshiftError: what their sources were refused for, where none is left.
    """
    held = held_sources(settings, as_of)
    left = _reading_none_of(use_cases, held)
    if use_cases and not left:
        raise _one_of(_of(use_cases, held))
    return left


def require_all_free(settings: Settings, use_cases: Sequence[UseCase], as_of: date) -> None:
    """Raise what sources were refused for that any of the use cases reads."""
    refusals = _of(use_cases, held_sources(settings, as_of))
    if refusals:
        raise _one_of(refusals)


def _one_of(refusals: Iterable[NightshiftError]) -> NightshiftError:
    """One error of many, of which those that sources share is said once."""
    return joined(list({refusal.what: refusal for refusal in refusals}.values()))


def _reading_none_of(use_cases: Sequence[UseCase], held: Collection[str]) -> list[UseCase]:
    return [use_case for use_case in use_cases if not set(use_case.landings) & set(held)]


def _of(use_cases: Sequence[UseCase], held: Mapping[str, NightshiftError]) -> list[NightshiftError]:
    read = {source for use_case in use_cases for source in use_case.landings}
    return [refusal for source, refusal in held.items() if source in read]


def _kept(refusal: NightshiftError) -> dict[str, Any]:
    causes = [asdict(cause) for cause in refusal.causes]
    return {
        "kind": type(refusal).__name__, "what": refusal.what, "remedy": refusal.remedy,
        "causes": causes,
    }  # fmt: skip


def _refusal(kept: Mapping[str, Any]) -> NightshiftError:
    causes = []
    for cause in kept["causes"]:
        day = cause["landed_date"]
        causes.append(
            Cause(
                **cause
                | {
                    "landed_date": date.fromisoformat(day) if day else None,
                    "examples": tuple(cause["examples"]),
                }
            )
        )
    kind: type[NightshiftError] = getattr(errors, kept["kind"], NightshiftError)
    return kind(kept["what"], kept["remedy"], tuple(causes))
