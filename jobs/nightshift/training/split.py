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
    embargo = timedelta(days=embargo_days)
    test = ordered[-plan.test :] if len(ordered) >= plan.test else []
    before_test = [s for s in ordered if test and s + embargo <= test[0]]
    validation = before_test[-plan.validation :] if len(before_test) >= plan.validation else []
    train = [s for s in ordered if validation and s + embargo <= validation[0]]
    if not train:
        there = f"{ordered[0]} … {ordered[-1]}" if ordered else "none"
        raise NightshiftError(
            f"{len(ordered)} mature snapshots ({there}) are too few to split into train, "
            f"validation and test with {embargo_days} days between them",
            f"train once {history_needed(plan, embargo_days)} days of history have landed, or "
            "shorten stride_days, validation or test in the use case's snapshots",
        )
    return Split(tuple(train), tuple(validation), tuple(test))


def history_needed(plan: Snapshots, embargo_days: int) -> int:
    """Days from the first landing to the first ``as_of`` that can be trained on.

    ``embargo_days`` is also how long a label takes to mature.
    """
    gap = -(-embargo_days // plan.stride_days)
    strides = plan.test - 1 + gap + plan.validation - 1 + gap
    return plan.min_history_days + strides * plan.stride_days + embargo_days
