"""What a backfill will do, from what is known before it begins."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from itertools import groupby
from statistics import linear_regression, median
from typing import TYPE_CHECKING, Any, Literal

from nightshift.spec import UseCase

if TYPE_CHECKING:
    from nightshift.io.model_store import ModelVersion

STAGES = ("features", "score", "publish")
RUNS_COMPARED = 5
SIZES_APART = 2.0
"""So many times more must the largest run have done than the smallest for a line through them."""

ModelChoice = Literal["as-then", "as-now"]


@dataclass(frozen=True)
class Published:
    """What readers see of a night."""

    publication_id: str
    model_version: str
    rows: int


@dataclass(frozen=True)
class Night:
    """A date of a use case, and the model that scores it."""

    as_of: date
    use_case: UseCase
    model: "ModelVersion"


@dataclass(frozen=True)
class Exposure:
    """A consumer that dbt knows of.

    Attributes:
        reads: names of what it reads in the schema predictions.
    """

    name: str
    kind: str
    owner: str
    reads: frozenset[str]


@dataclass(frozen=True)
class Estimate:
    """How long a stage will take; ``is_bound`` where earlier runs do not tell its start apart, and
    so many nights will take less than as many times the one."""

    seconds: float
    is_bound: bool = False


@dataclass(frozen=True)
class Plan:
    """What a backfill will do.

    Attributes:
        nights: by date, then by name.
        skipped: dates and names of use cases that had no champion then.
        rows: (as_of, use case) → vectors that the lake holds of it, or that are published of it.
        published: (as_of, use case) → what readers see now.
        newest: use case → the newest date that readers see now.
        estimates: stage → what it will take, by earlier runs; None where there is none.
        consumers: who reads what will change.
        not_due: use case → which of the dates are left out because it is not scored then.
        left_out: use cases that cannot be scored at the dates, and why.
    """

    nights: tuple[Night, ...]
    skipped: tuple[tuple[date, str], ...]
    rows: Mapping[tuple[date, str], int]
    published: Mapping[tuple[date, str], Published]
    newest: Mapping[str, date]
    estimates: Mapping[str, Estimate | None]
    consumers: tuple[Exposure, ...]
    not_due: Mapping[str, str] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """For a person: dates, rows, time, what readers will see change, and who they are."""
        return "\n".join([*self.changes, *self.outlook])

    @property
    def changes(self) -> list[str]:
        """Of each use case dates, rows and models, and what readers will see change; then which
        dates are not scored."""
        names = sorted({night.use_case.name for night in self.nights})
        found = []
        for name in names:
            of_it = [night for night in self.nights if night.use_case.name == name]
            expected = expected_rows(of_it, self.rows)
            about = "an unknown number of" if expected is None else f"about {expected:,}"
            found.append(
                f"{name}: {len(of_it)} dates from {of_it[0].as_of} to {of_it[-1].as_of},"
                f" {about} rows"
            )
            found += [f"  {line}" for line in _models(of_it)]
            found += [f"  {line}" for line in self._changes_of(of_it)]
        found += [f"{name}: {why}" for name, why in sorted(self.not_due.items())]
        found += [f"skipped: {name} for {day}, without a champion" for day, name in self.skipped]
        return found

    @property
    def outlook(self) -> list[str]:
        """Which use cases are left out, how long it takes, and who reads what changes."""
        left_out = [f"left out: {each}" for each in self.left_out]
        readers = [
            f"consumer: {each.name} ({each.kind}, {each.owner}) reads"
            f" {', '.join(f'predictions.{name}' for name in sorted(each.reads))}"
            for each in self.consumers
        ]
        nobody = ["consumers: dbt knows of no exposure that reads what changes"]
        return [*left_out, _time(self.estimates), *(readers or nobody)]

    def _changes_of(self, nights: Sequence[Night]) -> list[str]:
        name, last = nights[0].use_case.name, nights[-1].as_of
        there = [(n, now) for n in nights if (now := self.published.get((n.as_of, name)))]
        same = [now for night, now in there if now.model_version == night.model.version]
        found = []
        for (old, new), some in groupby(
            there, key=lambda each: (each[1].model_version, each[0].model.version)
        ):
            if old != new:
                days, rows = zip(*((night.as_of, now.rows) for night, now in some), strict=True)
                which = f"{len(days)} dates from {days[0]} to {days[-1]}" if days[1:] else days[0]
                found.append(
                    f"changes {which}: {sum(rows):,} published rows of version {old} give way to"
                    f" version {new}"
                )
        if same:
            found.append(
                f"{len(same)} published dates ({sum(now.rows for now in same):,} rows) are of the"
                " same version: each changes only if its features do"
            )
        if new := len(nights) - len(there):
            found.append(f"{new} dates are published for the first time")
        newest = self.newest.get(name)
        found.append(
            f"predictions.{name}_latest moves from {newest or 'nothing'} to {last}"
            if newest is None or newest < last
            else f"predictions.{name}_latest changes with {last}"
            if newest == last
            else f"predictions.{name}_latest stays at {newest}"
        )
        return found


def _models(nights: Sequence[Night]) -> list[str]:
    found = []
    for version, of_it in groupby(nights, key=lambda night: night.model.version):
        dates = [night.as_of for night in of_it]
        found.append(f"{dates[0]} to {dates[-1]} by version {version}")
    return found


def expected_rows(nights: Sequence[Night], known: Mapping[tuple[date, str], int]) -> int | None:
    """Rows of all the nights of a use case; of one without known rows, those of the nearest date.

    Args:
        known: (as_of, use case) → rows, also of other dates.
    """
    of_it = {day: rows for (day, name), rows in known.items() if name == nights[0].use_case.name}
    if not of_it:
        return None
    return sum(
        of_it[min(of_it, key=lambda day: (abs((day - night.as_of).days), day))] for night in nights
    )


def _time(estimates: Mapping[str, Estimate | None]) -> str:
    unknown = [stage for stage in STAGES if estimates.get(stage) is None]
    known = {stage: found for stage, found in estimates.items() if found is not None}
    parts = ", ".join(f"{stage} {found.seconds:,.0f} s" for stage, found in known.items())
    if not known:
        return "time: no earlier run tells how long it takes"
    about = "at most" if any(found.is_bound for found in known.values()) else "about"
    seconds = sum(found.seconds for found in known.values())
    total = f"time: {about} {seconds:,.0f} s by earlier runs ({parts})"
    return total + (f"; nothing is known of {', '.join(unknown)}" if unknown else "")


def estimates(
    runs: Iterable[tuple[str, float, Mapping[str, Any] | None]], nights: int, rows: int | None
) -> dict[str, Estimate | None]:
    """Stage → its time for so many nights, by those runs that did most at once.

    Features are counted by datasets; scores and publications by rows. Where the sizes of earlier
    runs differ enough, a line through them tells what each starts with from what grows.

    Args:
        runs: stage, seconds and result of succeeded runs.
    """
    known: dict[str, list[tuple[int, float]]] = {stage: [] for stage in STAGES}
    for stage, took, result in runs:
        if done := _done(stage, result or {}):
            known[stage].append((done, took))
    wanted = {"features": nights, "score": rows, "publish": rows}
    return {stage: _estimate(known[stage], wanted[stage]) for stage in STAGES}


def _estimate(runs: Sequence[tuple[int, float]], wanted: int | None) -> Estimate | None:
    """By (size, seconds) of each run."""
    if not runs or not wanted:
        return None
    runs = sorted(runs)
    smallest, largest = runs[0][0], runs[-1][0]
    if largest >= SIZES_APART * smallest:
        slope, start = linear_regression(*zip(*runs, strict=True))
        if slope > 0 and start > 0:
            return Estimate(start + slope * wanted)
    rate = median(took / done for done, took in runs[-RUNS_COMPARED:])
    return Estimate(rate * wanted, is_bound=wanted > largest)


def _done(stage: str, result: Mapping[str, Any]) -> int:
    if stage == "features":
        return sum(not each["is_reused"] for each in result.get("datasets", []))
    if stage == "score":
        return int(result["rows"]) if result.get("is_new") else 0
    return sum(int(each["rows"]) for each in result.get("publications", []) if each["is_new"])
