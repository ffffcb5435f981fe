"""Which snapshots a training set holds."""

from datetime import date, timedelta

from nightshift.errors import RefusedAsOf
from nightshift.spec import UseCase


def mature_snapshots(use_case: UseCase, as_of: date, first_landing: date) -> list[date]:
    """The snapshots whose labels are known at ``as_of``, oldest first.

    The newest stands ``label.maturity_days`` before ``as_of``, the others every ``stride_days``
    before it; none stands less than ``min_history_days`` after the first landing.

    Raises:
        RefusedAsOf: when fewer than three fit; the message says how much history is needed.
    """
    rule = use_case.snapshots
    newest = as_of - timedelta(days=use_case.label.maturity_days)
    earliest = first_landing + timedelta(days=rule.min_history_days)
    dates = [newest - timedelta(days=rule.stride_days * step) for step in range(rule.count)]
    dates = sorted(d for d in dates if d >= earliest)
    if len(dates) < 3:
        needed = earliest + timedelta(days=use_case.label.maturity_days + 2 * rule.stride_days)
        raise RefusedAsOf(
            f"{use_case.name} cannot be trained as of {as_of}: labels are known up to snapshot "
            f"{newest}, and the first snapshot with {rule.min_history_days} days of history is "
            f"{earliest}",
            f"choose an as_of from {needed} on, or land older data",
        )
    return dates
