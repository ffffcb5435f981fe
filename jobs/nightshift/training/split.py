"""Which snapshots train, which choose the number of trees, and which only measure."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, timedelta

from nightshift.errors import NightshiftError
from nightshift.spec import Snapshots


@dataclass(frozen=True)
class Split:
    """The parts of history, each oldest first; no label window reaches into the next part."""

    train: tuple[date, ...]
    validation: tuple[date, ...]
    test: tuple[date, ...]


def split(snapshots: Iterable[date], plan: Snapshots, embargo_days: int) -> Split:
    """The newest ``plan.test`` snapshots test, ``plan.validation`` before them validate.

    Each snapshot of a part stands at least ``embargo_days`` before the first of the next.

    Raises:
        NightshiftError: when history is too short for three parts; the message says how many
            days it must have.
    """
    ordered = sorted(set(snapshots))
    test = tuple(ordered[-plan.test :]) if len(ordered) >= plan.test else ()
    found = _before(ordered, test[0], plan, embargo_days) if test else None
    if found is None:
        there = f"{ordered[0]} … {ordered[-1]}" if ordered else "none"
        raise NightshiftError(
            f"{len(ordered)} mature snapshots ({there}) are too few to split into train, "
            f"validation and test with {embargo_days} days between them",
            f"train once {history_needed(plan, embargo_days)} days of history have landed, or "
            "shorten stride_days, validation or test in the use case's snapshots",
        )
    return Split(*found, test)


def rolling_origins(
    snapshots: Iterable[date], plan: Snapshots, embargo_days: int
) -> tuple[Split, ...]:
    """At most ``plan.origins`` splits, newest first: each one's test lies just before the last's.

    A model of an earlier origin learns from nothing that a training of its own day did not have.

    Raises:
        NightshiftError: when history is too short for one.
    """
    ordered = sorted(set(snapshots))
    found = [split(ordered, plan, embargo_days)]
    while len(found) < plan.origins:
        ordered = ordered[: -plan.test]
        try:
            found.append(split(ordered, plan, embargo_days))
        except NightshiftError:
            break
    return tuple(found)


def search_splits(
    snapshots: Iterable[date], plan: Snapshots, embargo_days: int, count: int
) -> tuple[Split, ...]:
    """At most ``count`` trains and validations, newest first; none has a test.

    Their labels were known before the test of the oldest origin, so that no figure that is
    reported has been searched for.

    Raises:
        NightshiftError: when history is too short for one origin.
    """
    ordered = sorted(set(snapshots))
    oldest = rolling_origins(ordered, plan, embargo_days)[-1]
    found: list[Split] = []
    while len(found) < count:
        parts = _before(ordered, oldest.test[0], plan, embargo_days)
        if parts is None:
            break
        found.append(Split(*parts, ()))
        ordered = [s for s in ordered if s < parts[1][0]]
    return tuple(found)


def stale_splits(snapshots: Iterable[date], plan: Snapshots, embargo_days: int) -> dict[int, Split]:
    """Weeks → the split of a model that old on the day of the first test snapshot.

    The test is that of ``split``; train and validation are what a training that many weeks earlier
    had. Ages for which history is too short are left out; one below a stride has the fresh split.

    Raises:
        NightshiftError: when history is too short for a fresh model.
    """
    ordered = sorted(set(snapshots))
    test = split(ordered, plan, embargo_days).test
    found = {}
    for weeks in plan.staleness_weeks:
        parts = _before(ordered, test[0] - timedelta(weeks=weeks), plan, embargo_days)
        if parts is not None:
            found[weeks] = Split(*parts, test)
    return found


def history_needed(plan: Snapshots, embargo_days: int) -> int:
    """Days from the first landing to the first ``as_of`` that can be trained on.

    ``embargo_days`` is also how long a label takes to mature.
    """
    gap = -(-embargo_days // plan.stride_days)
    strides = plan.test - 1 + gap + plan.validation - 1 + gap
    return plan.min_history_days + strides * plan.stride_days + embargo_days


def _before(
    ordered: list[date], day: date, plan: Snapshots, embargo_days: int
) -> tuple[tuple[date, ...], tuple[date, ...]] | None:
    """Train and validation of a training on ``day``; None when history is too short."""
    embargo = timedelta(days=embargo_days)
    mature = [s for s in ordered if s + embargo <= day]
    validation = mature[-plan.validation :] if len(mature) >= plan.validation else []
    train = [s for s in mature if validation and s + embargo <= validation[0]]
    return (tuple(train), tuple(validation)) if train else None
