"""Source contracts: what a landed file must look like, in the Open Data Contract Standard v3.

A contract is ``<source>.odcs.yaml`` in this folder, and a file there is all that makes a source.
The raw and quarantine tables, the parser, the expectations and the dbt source entry are derived
from it; what ODCS has no field for stands under ``customProperties``.
"""

import re
from datetime import date
from functools import cache
from importlib.resources import files
from typing import Any, Literal

import yaml
from open_data_contract_standard.model import (
    OpenDataContractStandard,
    SchemaObject,
    SchemaProperty,
    ServiceLevelAgreementProperty,
    Team,
)
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nightshift.contracts.quality import QualityContract, parse_quality
from nightshift.errors import ContractError
from nightshift.identifiers import identifier
from nightshift.sources import CONTRACT_SUFFIX
from nightshift.sources import SOURCES as SOURCES

Kind = Literal["string", "integer", "number", "timestamp"]
TIMESTAMP_FORMAT = "YYYY-MM-DD HH:MM:SS"
_SQL_TYPES: dict[str, re.Pattern[str]] = {
    "string": re.compile(r"^text$"),
    "integer": re.compile(r"^(integer|bigint)$"),
    "number": re.compile(r"^numeric\((\d+),(\d+)\)$"),
    "timestamp": re.compile(r"^timestamp$"),
}
_OPTIONS: dict[str, set[str]] = {
    "string": {"pattern", "maxLength"},
    "integer": {"minimum", "maximum"},
    "number": {"minimum", "maximum"},
    "timestamp": {"format"},
}


_CUSTOM = {"eventTime", "arrivalCalendar", "batchColumns", "quarantineBudget", "unknownColumns"}
_CLASSES = ("pii", "internal")
_WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")


class Column(BaseModel):
    """One column: its name as landed, its name and type in the warehouse, and its rules.

    Attributes:
        is_key: together with the other key columns it names a row.
        is_pii: its values are personal data: masked in quarantine, logs and alerts.
        values: the only values allowed; () for any.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    landed_name: str
    kind: Kind
    sql_type: str
    description: str
    required: bool
    is_key: bool = False
    is_pii: bool = False
    minimum: int | None = None
    maximum: int | None = None
    pattern: str | None = None
    max_length: int | None = None
    values: tuple[str, ...] = ()

    @property
    def precision_and_scale(self) -> tuple[int, int]:
        """Digits in all and after the point, of a number."""
        match = _SQL_TYPES["number"].match(self.sql_type)
        if match is None:
            raise ContractError(f"column {self.name} is {self.sql_type}, not numeric")
        return int(match[1]), int(match[2])


class Freshness(BaseModel):
    """After how many days without a landing to warn, and to fail."""

    model_config = ConfigDict(frozen=True)

    warn_days: int = Field(gt=0)
    error_days: int = Field(gt=0)


class ArrivalCalendar(BaseModel):
    """The days on which a folder is expected.

    Attributes:
        weekdays: English names in lower case.
        closed: days of every year without one, as MM-DD.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    weekdays: tuple[str, ...] = _WEEKDAYS
    closed: tuple[str, ...] = ()

    def expects(self, day: date) -> bool:
        """Whether something should land in the folder of ``day``."""
        return _WEEKDAYS[day.weekday()] in self.weekdays and f"{day:%m-%d}" not in self.closed


class SourceContract(BaseModel):
    """A source's contract.

    Attributes:
        owner: the team that answers for the source.
        quarantine_budget: share of a landed day's rows that may be broken before the night stops.
        ignores_unknown_columns: load a file that has more columns than the contract, and warn;
            otherwise such a file is refused.
        quality: what is expected of a landed day's rows.
    """

    model_config = ConfigDict(frozen=True)

    source: str
    version: str
    description: str
    owner: str
    event_time: str
    columns: tuple[Column, ...]
    freshness: Freshness
    arrival: ArrivalCalendar
    quarantine_budget: float = Field(ge=0, le=1)
    ignores_unknown_columns: bool
    quality: QualityContract

    @property
    def raw_table(self) -> str:
        """``raw.<source>``."""
        return f"raw.{self.source}"

    @property
    def quarantine_table(self) -> str:
        """``quarantine.<source>``."""
        return f"quarantine.{self.source}"

    @property
    def lock(self) -> str:
        """Name of the advisory lock of whoever changes the source's raw table or landed files."""
        return f"nightshift.ingest.{self.source}"

    @property
    def landed_names(self) -> tuple[str, ...]:
        """The header that a file must have, in any order."""
        return tuple(column.landed_name for column in self.columns)

    @property
    def key(self) -> tuple[str, ...]:
        """Names of the columns that together name a row; () where rows may repeat."""
        return tuple(column.name for column in self.columns if column.is_key)

    @property
    def pii(self) -> tuple[str, ...]:
        """Names of the columns that hold personal data."""
        return tuple(column.name for column in self.columns if column.is_pii)

    def ddl(self) -> str:
        """Idempotent statements that create the raw and the quarantine table."""
        columns = "".join(
            f"    {c.name} {c.sql_type}{' not null' if c.required else ''},\n" for c in self.columns
        )
        return (
            f"create table if not exists {self.raw_table} (\n{columns}"
            "    _landed_date date not null,\n"
            "    _file_id bigint not null,\n"
            "    _row_number bigint not null\n);\n"
            # rows of a day lie together, and an index of ranges costs the load nothing; without
            # autosummarize every scan would read what has landed since the last vacuum, months ago
            f"create index if not exists {self.source}_landed_date"
            f" on {self.raw_table} using brin (_landed_date) with (autosummarize = on);\n"
            f"{self._key_index()}"
            f"create table if not exists {self.quarantine_table} (\n"
            "    _file_id bigint not null,\n"
            "    _landed_date date not null,\n"
            "    _row_number bigint not null,\n"
            "    column_name text,\n"
            "    rule text not null,\n"
            "    value text,\n"
            "    row_as_landed text not null,\n"
            "    quarantined_at timestamptz not null default now()\n);\n"
            f"create index if not exists {self.source}_quarantine_landed_date"
            f" on {self.quarantine_table} (_landed_date);\n"
        )

    def _key_index(self) -> str:
        """By which other sources' references to the key are looked up."""
        if not self.key:
            return ""
        return (
            f"create index if not exists {self.source}_key"
            f" on {self.raw_table} ({', '.join(self.key)});\n"
        )


def parse_contract(source: str, text: str) -> SourceContract:
    """Read a contract's YAML.

    Raises:
        ContractError: naming the key that is missing, unknown or malformed.
    """
    where = f"contract {source}.odcs.yaml"
    try:
        identifier(source)
    except ValueError as error:
        raise ContractError(f"{where}: {error}", "rename the file and its schema object") from error
    try:
        document = OpenDataContractStandard.from_string(text)
    except (yaml.YAMLError, ValidationError, TypeError) as error:
        raise ContractError(f"{where}: {error}", "correct the contract") from error
    objects = [o for o in document.schema_ or [] if o.name == source]
    if len(objects) != 1:
        raise ContractError(
            f"{where}: {len(objects)} schema objects are named {source!r}, expected one",
            f"name one object under `schema` {source}",
        )
    declared = objects[0]
    columns = tuple(_column(where, p) for p in declared.properties or [])
    custom = {p.property: p.value for p in document.customProperties or []}
    unknown = sorted(str(name) for name in custom if name not in _CUSTOM)
    if unknown:
        raise ContractError(
            f"{where}: unknown customProperties {', '.join(unknown)}",
            f"known: {', '.join(sorted(_CUSTOM))}",
        )
    event_time = custom.get("eventTime")
    if event_time not in {c.name for c in columns if c.kind == "timestamp"}:
        raise ContractError(
            f"{where}: customProperties eventTime is {event_time!r}",
            "set it to the name of a timestamp column",
        )
    for kind in ("name", "landed_name"):
        names = [getattr(c, kind) for c in columns]
        if len(set(names)) != len(names):
            raise ContractError(f"{where}: two columns share a {kind}", "rename one of them")
    if not isinstance(document.team, Team) or not document.team.name:
        raise ContractError(f"{where}: nobody owns the source", "set team.name")
    policy = custom.get("unknownColumns", "refuse")
    if policy not in ("refuse", "ignore"):
        raise ContractError(
            f"{where}: customProperties unknownColumns is {policy!r}", "use refuse or ignore"
        )
    quarantine_budget = custom.get("quarantineBudget", 0.01)
    try:
        return SourceContract.model_validate(
            {
                "source": source,
                "version": document.version or "",
                "description": _text(declared),
                "owner": document.team.name,
                "event_time": event_time,
                "columns": columns,
                "freshness": _freshness(where, source, document.slaProperties or []),
                "arrival": _arrival(where, custom.get("arrivalCalendar") or {}),
                "quarantine_budget": quarantine_budget,
                "ignores_unknown_columns": policy == "ignore",
                "quality": parse_quality(
                    where,
                    declared,
                    name=source,
                    source=source,
                    reads=(source,),
                    table=f"raw.{source}",
                    day="_landed_date",
                    row_id=None,
                    batch_columns=custom.get("batchColumns"),
                    quarantine_budget=quarantine_budget,
                ),
            }
        )
    except ValidationError as error:
        raise ContractError(f"{where}: {error}", "correct the contract") from error


def _text(declared: SchemaObject | SchemaProperty) -> str:
    return " ".join((declared.description or "").split())


def _freshness(
    where: str, source: str, declared: list[ServiceLevelAgreementProperty]
) -> dict[str, Any]:
    """The two SLA properties ``latency``, in days, with ``driver`` warn and error."""
    element = f"{source}._landed_date"
    found = {
        str(each.driver): each.value
        for each in declared
        if each.property == "latency" and each.element == element and each.unit == "d"
    }
    if found.keys() != {"warn", "error"}:
        raise ContractError(
            f"{where}: slaProperties have no latency of {element} in unit d with driver warn and"
            " one with driver error",
            "add both: the days without a landing after which to warn and to fail",
        )
    return {"warn_days": found["warn"], "error_days": found["error"]}


def _arrival(where: str, declared: dict[str, Any]) -> ArrivalCalendar:
    try:
        calendar = ArrivalCalendar.model_validate(declared)
        unknown = sorted(set(calendar.weekdays) - set(_WEEKDAYS))
        if unknown:
            raise ValueError(f"no weekdays: {', '.join(unknown)}")
        for day in calendar.closed:
            date.fromisoformat(f"2024-{day}")
    except ValueError as error:
        raise ContractError(
            f"{where}: customProperties arrivalCalendar: {error}",
            f"weekdays of {', '.join(_WEEKDAYS)}; closed as MM-DD",
        ) from error
    return calendar


@cache
def load_contract(source: str) -> SourceContract:
    """The contract of a source in ``SOURCES``.

    Raises:
        ContractError: when there is none, or it is malformed.
    """
    file = files("nightshift.contracts").joinpath(f"{source}{CONTRACT_SUFFIX}")
    if not file.is_file():
        raise ContractError(
            f"there is no contract for source {source!r}; known: {', '.join(SOURCES)}",
            f"add contracts/{source}.odcs.yaml",
        )
    return parse_contract(source, file.read_text(encoding="utf-8"))


def _column(where: str, declared: SchemaProperty) -> Column:
    where = f"{where}, column {declared.name!r}"
    try:
        identifier(declared.name or "")
    except ValueError as error:
        raise ContractError(f"{where}: {error}", "rename the column") from error
    kind = declared.logicalType
    if kind not in _SQL_TYPES:
        raise ContractError(
            f"{where}: logicalType is {kind!r}, expected one of {', '.join(_SQL_TYPES)}",
            "correct logicalType",
        )
    sql_type = declared.physicalType or ""
    if not _SQL_TYPES[kind].match(sql_type):
        raise ContractError(
            f"{where}: physicalType {sql_type!r} does not hold a {kind},"
            f" expected {_SQL_TYPES[kind].pattern.strip('^$')}",
            "correct physicalType",
        )
    options: dict[str, Any] = declared.logicalTypeOptions or {}
    unknown = sorted(set(options) - _OPTIONS[kind])
    if unknown:
        raise ContractError(
            f"{where}: logicalTypeOptions {', '.join(unknown)} are not checked for a {kind}",
            f"use only {', '.join(sorted(_OPTIONS[kind]))}",
        )
    if kind == "timestamp" and options.get("format") != TIMESTAMP_FORMAT:
        raise ContractError(
            f"{where}: format is {options.get('format')!r}", f"use {TIMESTAMP_FORMAT}"
        )
    if declared.classification not in _CLASSES:
        raise ContractError(
            f"{where}: classification is {declared.classification!r}",
            f"use {' or '.join(_CLASSES)}: it says whether values are personal data",
        )
    values = tuple(str(each.value) for each in declared.enum or [])
    if values and kind != "string":
        raise ContractError(f"{where}: enum is checked for strings only", "use minimum and maximum")
    return Column.model_validate(
        {
            "name": declared.name,
            "landed_name": declared.physicalName or declared.name,
            "kind": kind,
            "sql_type": sql_type,
            "description": _text(declared),
            "required": bool(declared.required),
            "is_key": bool(declared.primaryKey),
            "is_pii": declared.classification == "pii",
            "values": values,
            "minimum": options.get("minimum"),
            "maximum": options.get("maximum"),
            "pattern": options.get("pattern"),
            "max_length": options.get("maxLength"),
        }
    )
