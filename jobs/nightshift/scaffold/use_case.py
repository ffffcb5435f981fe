"""The files of a new use case, as text, of sources that are declared. Pure."""

import json
import re
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from pydantic import ValidationError

from nightshift.contracts import SOURCES
from nightshift.errors import NightshiftError
from nightshift.publishing import sql
from nightshift.publishing.schema import json_schema
from nightshift.scaffold.sample import require_name
from nightshift.scaffold.templates import render
from nightshift.spec import Source, StableSincePrevious, UseCase

LABELS = {"any_event": "AnyEvent", "no_event": "NoEvent", "count": "Count", "sum": "Sum"}
"""Kinds of labels, with the class that declares each."""
AMOUNTS = ("count", "sum")
"""The labels that are amounts: foretold with an interval, and judged as such."""
BANDS = {"count": (1.0, 3.0), "sum": (100.0, 1000.0)}
"""From which amounts a band is medium, and high; of yes or no from these probabilities:"""
BANDS_OF_PROBABILITIES = (0.2, 0.5)
LARGEST = 1_000
"""Times the high band: an amount beyond that is held back from readers."""
_AUDITS = (
    "KeyKnown", "ReasonsPresent", "RowsAsInPopulation", "ScoreInRange", "StableSincePrevious",
    "StableSinceTraining",
)  # fmt: skip
_NUMBERS = ("integer", "decimal", "double")
_PUBLISHED = ("as_of", "band", "reasons", "model_version", "publication_id", "scored_at")


@dataclass(frozen=True)
class Asked:
    """A use case in its author's words.

    Attributes:
        name: of the use case, its tables, its model.
        entity: what is scored, as ``machine``; ``key`` its column in every source it is read from.
        population: the source by whose events, in the last ``active_days``, an entity is scored.
        label: of ``label_source`` within ``horizon_days``, where the condition ``label_where``
            holds: ``any_event`` or ``no_event``; or an amount, the ``count`` of events or the
            ``sum`` of ``label_column``.
        non_negative: no sum is below 0.
        reporting_delay_days: after which everything of a day has landed.
        features: ``source.column``, or ``other_key:source.column`` for those of another entity that
            the entity's events name.
        windows: days before ``as_of`` that features are taken over.
        stride_days: between the snapshots of the training set.
        score_column: the published probability or amount.
        bands: from which score a row is medium, and high; None for a guess.
        unit: of amounts, as people are told it.
        every_days: nights from one that is scored to the next.
    """

    name: str
    entity: str
    key: str
    population: str
    active_days: int
    label: str
    label_source: str
    horizon_days: int
    features: tuple[str, ...]
    windows: tuple[int, ...]
    score_column: str
    label_where: str | None = None
    label_column: str | None = None
    non_negative: bool = False
    bands: tuple[float, ...] | None = None
    unit: str = ""
    every_days: int = 1
    reporting_delay_days: int = 0
    stride_days: int = 7
    owner: str = "data-team"


@dataclass
class _Measure:
    name: str
    column: str
    aggregates: tuple[tuple[tuple[str, ...], tuple[int | None, ...]], ...]
    through: str | None = None
    feature: str | None = None
    where: str | None = None


@dataclass
class _Group:
    entity: str
    key: str
    source: str
    measures: list[_Measure] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"{self.entity}_{self.source}"

    @property
    def feature_names(self) -> list[str]:
        return [
            f"{self.entity}_{measure.name}_{aggregation}_{_suffix(window)}"
            for measure in self.measures
            for aggregations, windows in measure.aggregates
            for aggregation in aggregations
            for window in windows
        ]


def declared_source(name: str) -> Source:
    """The source that ``feature_groups/<name>.py`` declares, by the name in capitals.

    Raises:
        NightshiftError: when there is none.
    """
    module = f"nightshift.feature_groups.{name}"
    found = None
    if re.fullmatch(r"[a-z][a-z0-9_]*", name) and find_spec(module) is not None:
        found = getattr(import_module(module), name.upper(), None)
    if not isinstance(found, Source):
        raise NightshiftError(
            f"there is no source {name!r} in jobs/nightshift/feature_groups; there are"
            f" {', '.join(declared_sources()) or 'none'}",
            f"make one: nightshift new-source {name} --sample <a landed file>",
        )
    return found


def declared_sources() -> list[str]:
    """Names of the sources with a contract that use cases can read."""
    found = []
    for name in SOURCES:
        module = f"nightshift.feature_groups.{name}"
        if find_spec(module) and hasattr(import_module(module), name.upper()):
            found.append(name)
    return found


def numbers_of(source: str) -> list[str]:
    """The columns of a source that can be added up."""
    return [name for name, kind in declared_source(source).columns.items() if kind in _NUMBERS]


def proposed_features(key: str, sources: Sequence[str]) -> list[str]:
    """Numbers and events of the sources that have the key, as ``source.column``; of attributes the
    numbers."""
    return [
        f"{name}.{column}"
        for name in dict.fromkeys(sources)
        for source in [declared_source(name)]
        if key in source.columns
        for column, kind in source.columns.items()
        if kind in _NUMBERS
        or (column == source.event_time and not source.relation.startswith("marts.dim_"))
    ]


def files(asked: Asked) -> dict[Path, str]:
    """Path in the project → text, of every file of the use case but the registry's line.

    Raises:
        NightshiftError: naming what of it makes no sense.
    """
    require_name("use case", asked.name)
    if asked.name in SOURCES:
        raise NightshiftError(
            f"use case: {asked.name!r} is the name of a source", "choose another name"
        )
    if asked.label not in LABELS:
        raise NightshiftError(
            f"--label {asked.label}: there is no such label", f"use one of {', '.join(LABELS)}"
        )
    _require_label(asked)
    for what in ("entity", "key", "score_column"):
        require_name(what.replace("_", " "), getattr(asked, what))
    if asked.score_column in {asked.key, *_PUBLISHED}:
        raise NightshiftError(
            f"score column: {asked.score_column!r} is another published column",
            "choose another name, as failure_probability",
        )
    groups = _groups(asked)
    values = _values(asked, groups)
    texts = {
        "feature_groups": render("feature_groups.py.j2", **values),
        "use_cases": render("use_case.py.j2", **values),
    }
    use_case = _declared(asked, texts)
    values |= {"use_case": use_case, "columns": sql.columns(use_case)}
    package = Path("jobs", "nightshift")
    return {
        package / "feature_groups" / f"{asked.name}.py": texts["feature_groups"],
        Path("dbt_project", "models", "predictions", f"{asked.name}.yml"): render(
            "exposure.yml.j2", **values
        ),
        Path("docs", "schemas", f"{asked.name}.json"): (
            json.dumps(json_schema(use_case), indent=2) + "\n"
        ),
        Path("tests", "unit", "use_cases", f"test_{asked.name}.py"): render(
            "test_use_case.py.j2", **values
        ),
        package / "use_cases" / f"{asked.name}.py": texts["use_cases"],
    }


def _require_label(asked: Asked) -> None:
    """Refuse what an author of a label, or of its bands, cannot mean."""
    if (asked.label == "sum") != (asked.label_column is not None):
        raise NightshiftError(
            f"--label {asked.label}: "
            + ("of which column?" if asked.label == "sum" else "takes no --label-column"),
            "give --label-column with --label sum, and with no other",
        )
    if asked.label_column is not None:
        numbers = numbers_of(asked.label_source)
        if asked.label_column not in numbers:
            raise NightshiftError(
                f"--label-column {asked.label_column}: {asked.label_source} has no such number",
                f"it has {', '.join(numbers) or 'none: take another label'}",
            )
    if asked.non_negative and asked.label != "sum":
        raise NightshiftError(
            f"--non-negative says something of a sum, and the label is {asked.label}",
            "leave it out: a count is never below 0, and a probability neither",
        )
    if asked.unit and asked.label not in AMOUNTS:
        raise NightshiftError(
            f"--unit {asked.unit}: a probability has none", "leave it out, or choose another label"
        )
    bands = _bands(asked)
    if len(bands) != 2 or not 0 < bands[0] < bands[1]:
        raise NightshiftError(
            f"--bands {','.join(f'{each:g}' for each in bands)}: not two rising numbers above 0",
            "give from which score a row is medium, and from which it is high: --bands 0.2,0.5",
        )


def _bands(asked: Asked) -> tuple[float, ...]:
    return asked.bands or BANDS.get(asked.label, BANDS_OF_PROBABILITIES)


def with_listed(registry: str, name: str) -> str | None:
    """The text of the registry with one line more; None where the use case is listed.

    Raises:
        NightshiftError: when the registry has no import of a use case to put it beside.
    """
    module = f"nightshift.use_cases.{name}"
    line = f"from {module} import {name.upper()} as {name.upper()}"
    lines = registry.splitlines(keepends=True)
    imports = [i for i, each in enumerate(lines) if each.startswith("from nightshift.use_cases.")]
    if not imports:
        raise NightshiftError(
            "jobs/nightshift/use_cases/__init__.py imports no use case", f"add the line: {line}"
        )
    if any(lines[i].startswith(f"from {module} ") for i in imports):
        return None
    at = next((i for i in imports if lines[i].split()[1] > module), imports[-1] + 1)
    return "".join([*lines[:at], line + "\n", *lines[at:]])


def _groups(asked: Asked) -> list[_Group]:
    """The feature groups, those of other entities first."""
    own: dict[str, _Group] = {}
    others: dict[tuple[str, str], _Group] = {}
    wanted = [_split(asked, feature) for feature in asked.features]
    if not wanted:
        raise NightshiftError(
            f"use case {asked.name}: no features", "name some: --features sensor_readings.pressure"
        )
    columns = [column for _, _, column in wanted]
    for key, source_name, column in wanted:
        source = declared_source(source_name)
        _require_columns(source, f"--features {source_name}.{column}", key, column)
        if key == asked.key:
            group = own.setdefault(source_name, _Group(asked.entity, key, source_name))
        else:
            entity = key.removesuffix("_id")
            group = others.setdefault((key, source_name), _Group(entity, key, source_name))
        is_shared = columns.count(column) > 1
        group.measures.append(_measure(asked, source, column, is_shared=is_shared))
    if asked.label in AMOUNTS:
        past = own.setdefault(
            asked.label_source, _Group(asked.entity, asked.key, asked.label_source)
        )
        past.measures.append(_past(asked))
    for (key, source_name), group in others.items():
        link = _link(asked, key, [*own, source_name])
        linked = own.setdefault(link, _Group(asked.entity, asked.key, link))
        is_attribute = declared_source(link).relation.startswith("marts.dim_")
        linked.measures += [
            _Measure(
                # of attributes the relation as it is now, of events all that they touch
                name, key, ((("last",), (None,)),) if is_attribute
                else ((("mean",), (max(asked.windows),)),),
                through=group.name.upper(), feature=name,
            )
            for name in group.feature_names
        ]  # fmt: skip
    return [*others.values(), *own.values()]


def _past(asked: Asked) -> _Measure:
    """What the label's events have come to so far, by which people would guess."""
    source = declared_source(asked.label_source)
    column = asked.label_column or source.event_time
    _require_columns(source, "the label", asked.key, column)
    what = ("sum",) if asked.label == "sum" else ("count",)
    named = f"past_{asked.label_column or asked.label_source}"
    return _Measure(named, column, ((what, asked.windows),), where=asked.label_where)


def _split(asked: Asked, feature: str) -> tuple[str, str, str]:
    """``[key:]source.column`` as key, source and column."""
    match = re.fullmatch(r"(?:(\w+):)?(\w+)\.(\w+)", feature)
    if match is None:
        raise NightshiftError(
            f"--features {feature}: not <source>.<column>, or <other key>:<source>.<column>",
            "write sensor_readings.pressure, for instance",
        )
    return match[1] or asked.key, match[2], match[3]


def _require_columns(source: Source, what: str, *columns: str) -> None:
    for column in columns:
        if column not in source.columns:
            raise NightshiftError(
                f"{what}: {source.name} has no column {column!r}",
                f"it has {', '.join(source.columns)}",
            )


def _measure(asked: Asked, source: Source, column: str, *, is_shared: bool) -> _Measure:
    kind = source.columns[column]
    name = f"{source.name}_{column}" if is_shared else column
    if column == source.event_time:
        return _Measure(
            source.name, column, ((("count",), asked.windows), (("days_since_last",), (None,)))
        )
    if kind in _NUMBERS and source.relation.startswith("marts.dim_"):
        return _Measure(name, column, ((("last",), (None,)),))
    if kind in _NUMBERS:
        return _Measure(name, column, ((("mean", "min", "max"), asked.windows),))
    return _Measure(name, column, ((("distinct",), asked.windows),))


def _link(asked: Asked, key: str, near: Sequence[str]) -> str:
    """The source whose rows name both entities: best one of attributes, which every entity has."""
    found = [
        name
        for name in dict.fromkeys(
            [asked.population, *near, asked.label_source, *declared_sources()]
        )
        if {asked.key, key} <= declared_source(name).columns.keys()
    ]
    if not found:
        raise NightshiftError(
            f"use case {asked.name}: no source has both {asked.key} and {key}, which"
            f" tells whose {key} is whose",
            f"make a mart that has both, or leave the features of {key} out",
        )
    return min(found, key=lambda name: not declared_source(name).relation.startswith("marts.dim_"))


def _values(asked: Asked, groups: Sequence[_Group]) -> dict[str, object]:
    label = declared_source(asked.label_source)
    _require_columns(declared_source(asked.population), "the population", asked.key)
    _require_columns(label, "the label", asked.key)
    own = [group for group in groups if group.key == asked.key]
    own_events, events = (name.replace("_", " ") for name in (asked.population, asked.label_source))
    whose = f"a {asked.entity} with {own_events} in the last {asked.active_days} days"
    when = f"in the {asked.horizon_days} days from as_of"
    description = {
        "any_event": f"The probability that {whose} has any {events} {when}.",
        "no_event": f"The probability that {whose} has no {events} {when}.",
        "count": f"How many {events} {whose} is expected to have {when}.",
        "sum": f"What the {(asked.label_column or '').replace('_', ' ')} of the {events} of {whose}"
        f" is expected to add up to {when}.",
    }[asked.label]
    is_amount = asked.label in AMOUNTS
    # the publication before is as old as the stride
    default = StableSincePrevious().within_days
    within = f"within_days={asked.every_days}" if asked.every_days > default else ""
    longest = max(asked.windows)
    heuristic = next(name for group in own for name in group.feature_names)
    if is_amount:
        heuristic = f"{asked.entity}_{(past := _past(asked)).name}_{past.aggregates[0][0][0]}"
        heuristic += f"_{longest}d"
    imported = {
        "AtLeast", "Band", "BeatsChampion", "CalibrationWithin", "Heuristic", "LoadsAndScores",
        "Population", "Reproducible", "Snapshots", "UseCase", LABELS[asked.label],
        *(("BeatsBaseline", "Interval", "Model") if is_amount else ("AtMost",)),
        *(_AUDITS if is_amount or within else ()),
        *(("Nights",) if asked.every_days > 1 else ()),
    }  # fmt: skip
    return {
        "is_amount": is_amount,
        "within": within,
        "is_non_negative": asked.non_negative or asked.label == "count",
        "bands": _bands(asked),
        "largest": LARGEST * max(1.0, _bands(asked)[-1]),
        "longest": longest,
        "imported": sorted(imported),
        "asked": asked,
        "constant": asked.name.upper(),
        "title": asked.name.replace("_", " ").capitalize(),
        "description": description,
        "description_lines": textwrap.wrap(description, 78, drop_whitespace=False),
        "label_class": LABELS[asked.label],
        "groups": groups,
        "own": own,
        "modules": sorted({asked.name, asked.population, asked.label_source}),
        "group_sources": sorted({group.source for group in groups}),
        "heuristic": heuristic,
        "min_history_days": max(asked.windows),
        "feature_names": [name for group in own for name in group.feature_names],
        "has_through": any(m.through for group in groups for m in group.measures),
    }


def _suffix(window: int | None) -> str:
    return "all" if window is None else f"{window}d"


def _declared(asked: Asked, texts: dict[str, str]) -> UseCase:
    """What the two modules declare, without a file of them: a nonsense is refused by the spec."""
    groups = f"nightshift.feature_groups.{asked.name}"
    before = sys.modules.get(groups)
    try:
        for module, text in (
            (groups, texts["feature_groups"]),
            (f"nightshift.use_cases.{asked.name}", texts["use_cases"]),
        ):
            made = ModuleType(module)
            exec(compile(text, f"{module} (new)", "exec"), made.__dict__)
            if module == groups:  # for the other to import
                sys.modules.setdefault(module, made)
        return made.__dict__[asked.name.upper()]
    except (ValidationError, ValueError) as error:
        lines = (
            [str(each["msg"]).removeprefix("Value error, ") for each in error.errors()]
            if isinstance(error, ValidationError)
            else [str(error)]
        )
        raise NightshiftError(
            f"use case {asked.name}: {'; '.join(lines)}", "change what was asked for, and run again"
        ) from error
    finally:
        if before is None:
            sys.modules.pop(groups, None)
