"""From which score on a row is alerted of: chosen each night from outcomes, within guard rails.

Pure.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from nightshift.booster import Vector
from nightshift.spec import AlertBudget, Alerts

FEWEST_ALERTS = 20
"""Of which a precision is told from chance, more or less."""
DIGITS = 6
ROUNDING = 1e-9


@dataclass(frozen=True)
class Outcomes:
    """What is known of past scores.

    Attributes:
        scores: (alerts that could have been,) the highest score of an entity on a night.
        is_found: (the same,) whether a row of the entity on that night had label 1.
        nights: how many nights they are of.
        of: in words, what they are from.
    """

    scores: Vector
    is_found: npt.NDArray[np.bool_]
    nights: int
    of: str


@dataclass(frozen=True)
class Chosen:
    """A threshold, why it is that, and the figures that it rests on."""

    threshold: float
    reason: str
    evidence: dict[str, Any]


def choose(alerts: Alerts, outcomes: Outcomes | None, previous: float | None) -> Chosen:
    """The threshold that would have met the target, as near as the guard rails allow.

    Args:
        outcomes: None where there are none at all.
        previous: the threshold of the night before; None before the first.
    """
    if outcomes is None or not outcomes.nights:
        kept = alerts.initial if previous is None else previous
        what = "the initial one" if previous is None else "the one before is kept"
        return Chosen(*_railed(alerts, kept, previous, f"no outcome is known yet: {what}"), {})
    wanted, said, is_told = _wanted(alerts, outcomes)
    reason = f"{outcomes.of}: {said}"
    if not is_told and previous is not None:
        wanted, reason = previous, f"{reason}; the one before is kept"
    threshold, reason = _railed(alerts, wanted, previous, reason)
    alerted = outcomes.scores >= threshold
    found = int((alerted & outcomes.is_found).sum())
    evidence = {
        "nights": outcomes.nights,
        "wanted": round(wanted, DIGITS),
        "alerts_a_night": round(float(alerted.sum()) / outcomes.nights, 2),
        "precision": round(found / int(alerted.sum()), 4) if alerted.any() else None,
        "recall": round(found / int(outcomes.is_found.sum()), 4) if found else None,
    }
    return Chosen(threshold, reason, evidence)


def _wanted(alerts: Alerts, outcomes: Outcomes) -> tuple[float, str, bool]:
    """The threshold that the target asks for, in words too, and whether outcomes tell it."""
    order = np.argsort(-outcomes.scores, kind="stable")
    scores, found = outcomes.scores[order], outcomes.is_found[order]
    last = np.flatnonzero(np.append(scores[1:] != scores[:-1], True))  # of each run of equal scores
    count = last + 1
    target = alerts.target
    if isinstance(target, AlertBudget):
        fits = np.flatnonzero(count <= target.entities * outcomes.nights)
        if not len(fits):
            return alerts.high, f"any threshold alerts of more than {target.entities} a night", True
        at = fits[-1]
        a_night = count[at] / outcomes.nights
        told = f"{float(scores[last[at]]):.4f} alerts of {a_night:.1f} a night"
        return float(scores[last[at]]), f"{told}, {target.entities} are asked", True
    precision = np.cumsum(found)[last] / count
    told_by = np.flatnonzero((precision >= target.value) & (count >= FEWEST_ALERTS))
    if not len(told_by):
        return (
            alerts.high,
            f"no threshold with {FEWEST_ALERTS} alerts reaches a precision of {target.value:g}",
            len(scores) >= FEWEST_ALERTS,
        )
    at = told_by[-1]
    return (
        float(scores[last[at]]),
        f"{float(scores[last[at]]):.4f} has a precision of {precision[at]:.3f}, "
        f"{target.value:g} is asked",
        True,
    )


def _railed(
    alerts: Alerts, wanted: float, previous: float | None, reason: str
) -> tuple[float, str]:
    """At most a step from the one before, and within the rails; and the reason for that."""
    found = wanted
    if previous is not None and abs(found - previous) > alerts.step + ROUNDING:
        found = previous + alerts.step * (1 if found > previous else -1)
        reason += f"; one step of {alerts.step:g} from {previous:.4f}"
    railed = min(max(found, alerts.low), alerts.high)
    if railed != found:
        reason += f"; held at the guard rail {railed:g}"
    return round(railed, DIGITS), reason
