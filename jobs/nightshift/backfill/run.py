"""Choose the nights and models of a backfill, and look at what it will change."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, time, timedelta
from zoneinfo import ZoneInfo

import yaml

from nightshift.backfill.plan import (
    STAGES,
    Exposure,
    ModelChoice,
    Night,
    Plan,
    Published,
    estimates,
    expected_rows,
)
from nightshift.errors import NightshiftError, RefusedAsOf
from nightshift.io import lake, registry
from nightshift.io.landing import LATELY_DAYS, landed_lately, landing_zone
from nightshift.io.model_store import ModelVersion
from nightshift.io.warehouse import connect, migrate
from nightshift.settings import PROJECT_ROOT, Settings
from nightshift.spec import UseCase

EXPOSURES = PROJECT_ROOT / "dbt_project" / "models"
RUNS_READ = 200


@dataclass(frozen=True)
class Request:
    """What is asked of a backfill.

    Attributes:
        first, last: dates, both included.
        use_cases: at least one.
        model: ``as-now`` scores every date with today's champion; ``as-then`` with the one that
            was champion as the date began, in the pipeline's time zone.
        skip_without_champion: leave out dates at which a use case had no champion, instead of
            refusing all.
        left_out: what was asked for and is not among the use cases, and why, in words.
    """

    first: date
    last: date
    use_cases: tuple[UseCase, ...]
    model: ModelChoice = "as-now"
    skip_without_champion: bool = False
    left_out: tuple[str, ...] = ()

    @property
    def dates(self) -> tuple[date, ...]:
        """All dates, ascending."""
        return tuple(
            self.first + timedelta(days=number)
            for number in range((self.last - self.first).days + 1)
        )


def of_able(settings: Settings, request: Request) -> Request:
    """The same of the use cases that can be scored at its dates: those that have a champion, and of
    whose sources something landed lately. Where none can, all stay, and are refused with a remedy.
    """
    migrate(settings)
    found = [(each, _why_unable(settings, request, each)) for each in request.use_cases]
    able = tuple(use_case for use_case, why in found if why is None)
    if not able:
        return request
    left_out = tuple(f"{use_case.name}, {why}" for use_case, why in found if why is not None)
    return replace(request, use_cases=able, left_out=left_out)


def _why_unable(settings: Settings, request: Request, use_case: UseCase) -> str | None:
    if registry.champion(settings, use_case.name) is None:
        return "which has no champion yet"
    zone = landing_zone(settings)
    for as_of in (request.first, request.last):
        for source in use_case.landings:
            # old folders may be gone from the zone
            if not (landed_lately(zone, source, as_of) or _loaded(settings, source, as_of)):
                return f"for nothing of {source} landed in the {LATELY_DAYS} days before {as_of}"
    return None


def _loaded(settings: Settings, source: str, as_of: date) -> bool:
    """Whether rows are loaded that landed lately."""
    with connect(settings) as connection, connection.cursor() as cursor:
        cursor.execute(
            "select exists(select from ops.landing_files where status = 'loaded' and source = %s"
            " and landed_date between %s and %s)",
            (source, as_of - timedelta(days=LATELY_DAYS), as_of - timedelta(days=1)),
        )
        return bool(cursor.fetchone()[0])


def choose_nights(settings: Settings, request: Request) -> tuple[Night, ...]:
    """The nights of a backfill by date, then by name, each with its model; those that are due.

    Raises:
        RefusedAsOf: when the dates are none, in the future or before any landing, when no use case
            is due at any of them, or when one that is had no champion.
    """
    _require_dates(settings, request)
    found: list[Night] = []
    missing: list[tuple[date, str]] = []
    for use_case in request.use_cases:
        for as_of, model in _models(settings, request, use_case.name).items():
            if not use_case.is_due(as_of):
                continue
            if model is None:
                missing.append((as_of, use_case.name))
            else:
                found.append(Night(as_of, use_case, model))
    if not found and not missing:
        raise RefusedAsOf(
            f"no use case is due from {request.first} to {request.last}: "
            + "; ".join(f"{u.name} is {u.why_not_due(request.last)}" for u in request.use_cases),
            "choose dates on which one of them is scored",
        )
    if missing and not (found and request.skip_without_champion):
        _refuse_without_champion(settings, request, sorted(missing))
    return tuple(sorted(found, key=lambda night: (night.as_of, night.use_case.name)))


def plan(settings: Settings, request: Request) -> Plan:
    """What the backfill will do; nothing is changed.

    Raises:
        RefusedAsOf: as of :func:`choose_nights`.
    """
    nights = choose_nights(settings, request)
    asked = [(as_of, use_case) for as_of in request.dates for use_case in request.use_cases]
    wanted = {(as_of, use_case.name) for as_of, use_case in asked if use_case.is_due(as_of)}
    not_due = Counter(use_case.name for as_of, use_case in asked if not use_case.is_due(as_of))
    published, newest = _published(settings, request)
    rows = _rows_known(settings, request) | {key: p.rows for key, p in published.items()}
    expected = [
        expected_rows([night for night in nights if night.use_case == use_case], rows)
        for use_case in {night.use_case.name: night.use_case for night in nights}.values()
    ]
    return Plan(
        nights=nights,
        skipped=tuple(sorted(wanted - {(night.as_of, night.use_case.name) for night in nights})),
        rows=rows,
        published={key: found for key, found in published.items() if key in wanted},
        newest=newest,
        estimates=estimates(
            _runs(settings), len(nights), None if None in expected else sum(filter(None, expected))
        ),
        consumers=_consumers(request.use_cases),
        not_due={
            use_case.name: f"{not_due[use_case.name]} dates are not due: it is scored"
            f" {use_case.nights.words}, next on {use_case.nights.next_after(request.last)}"
            for use_case in request.use_cases
            if use_case.name in not_due
        },
        left_out=request.left_out,
    )


def by_date(nights: Sequence[Night]) -> dict[date, list[UseCase]]:
    """``as_of`` → the use cases that are scored."""
    found: dict[date, list[UseCase]] = {}
    for night in nights:
        found.setdefault(night.as_of, []).append(night.use_case)
    return found


def _require_dates(settings: Settings, request: Request) -> None:
    if request.last < request.first:
        raise RefusedAsOf(
            f"there is no date from {request.first} to {request.last}",
            "give the earlier date first; both are included",
        )
    today = datetime.now(ZoneInfo(settings.timezone)).date()
    if request.last > today:
        raise RefusedAsOf(
            f"as_of {request.last} is in the future: it is {today} in {settings.timezone}",
            f"choose dates up to {today}",
        )
    migrate(settings)
    sources = sorted({source for use_case in request.use_cases for source in use_case.landings})
    with connect(settings) as connection, connection.cursor() as cursor:
        cursor.execute(
            "select source, min(landed_date) from ops.landing_files where status = 'loaded'"
            " and source = any(%s) group by source order by source",
            (sources,),
        )
        for source, landed in cursor.fetchall():
            if request.first <= landed:
                raise RefusedAsOf(
                    f"nothing of {source} had landed before {request.first}: its first landed day"
                    f" is {landed}",
                    f"begin with {landed + timedelta(days=1)} or later",
                )


def _models(settings: Settings, request: Request, name: str) -> dict[date, ModelVersion | None]:
    if request.model == "as-now":
        return dict.fromkeys(request.dates, registry.champion(settings, name))
    decisions = registry.history(settings, name)
    zone = ZoneInfo(settings.timezone)
    return {
        as_of: registry.champion_at(decisions, name, datetime.combine(as_of, time(), zone))
        for as_of in request.dates
    }


def _refuse_without_champion(
    settings: Settings, request: Request, missing: Sequence[tuple[date, str]]
) -> None:
    as_of, name = missing[0]
    if request.model == "as-now":
        raise RefusedAsOf(
            f"no champion yet for {name}",
            f"run `nightshift train {name} --as-of {request.last}`, or trigger the DAG"
            f" train__{name}",
        )
    moves = [d for d in registry.history(settings, name) if d.action != "rejection"]
    first = (
        f"; its first became champion at {moves[0].decided_at:%Y-%m-%d %H:%M %Z}" if moves else ""
    )
    raise RefusedAsOf(
        f"{name} had no champion as {as_of} began ({len(missing)} such dates in all){first}",
        "begin later, leave these dates out with --skip-without-champion, or score with today's"
        " champion: --model as-now",
    )


def _published(
    settings: Settings, request: Request
) -> tuple[dict[tuple[date, str], Published], dict[str, date]]:
    """What readers see of every date of the use cases, and the newest date of each."""
    with connect(settings) as connection, connection.cursor() as cursor:
        cursor.execute(
            "select p.as_of, p.use_case, publication_id, o.model_version, o.rows"
            " from predictions.pointers p join ops.publications o using (publication_id)"
            " where p.use_case = any(%s) order by p.as_of",
            ([use_case.name for use_case in request.use_cases],),
        )
        found = {(as_of, name): Published(*rest) for as_of, name, *rest in cursor.fetchall()}
    return found, {name: as_of for as_of, name in found}


def _rows_known(settings: Settings, request: Request) -> dict[tuple[date, str], int]:
    """Vectors of each night that the lake keeps."""
    found = {}
    for use_case in request.use_cases:
        for folder in (settings.lake_dir / "features" / use_case.name).glob("as_of=*"):
            manifest = lake.read_manifest(folder)
            if manifest is not None:
                as_of = date.fromisoformat(folder.name.removeprefix("as_of="))
                found[as_of, use_case.name] = int(manifest["rows"])
    return found


def _runs(settings: Settings) -> list[tuple[str, float, Mapping[str, object] | None]]:
    with connect(settings) as connection, connection.cursor() as cursor:
        cursor.execute(
            "select stage, extract(epoch from ended_at - started_at)::float8, result from ops.runs"
            " where status = 'succeeded' and stage = any(%s) order by run_id desc limit %s",
            (list(STAGES), RUNS_READ),
        )
        return list(cursor.fetchall())


def _consumers(use_cases: Sequence[UseCase]) -> tuple[Exposure, ...]:
    names = {name for use_case in use_cases for name in (use_case.name, f"{use_case.name}_latest")}
    return tuple(each for each in _exposures() if each.reads & names)


def _exposures() -> Iterator[Exposure]:
    """The exposures of the dbt project that read published predictions."""
    for file in sorted(EXPOSURES.rglob("*.yml")):
        try:
            declared = yaml.safe_load(file.read_text()) or {}
        except yaml.YAMLError as error:
            raise NightshiftError(
                f"{file} is no YAML: {error}", "correct it: dbt cannot read it either"
            ) from error
        for each in declared.get("exposures", []):
            reads = re.findall(
                r"source\(\s*'predictions'\s*,\s*'(\w+)'\s*\)", " ".join(each.get("depends_on", []))
            )
            owner = each.get("owner", {})
            yield Exposure(
                each.get("label", each["name"]), each.get("type", "exposure"),
                str(owner.get("email") or owner.get("name")), frozenset(reads),
            )  # fmt: skip
