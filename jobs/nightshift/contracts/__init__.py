"""Source contracts: what a landed file must look like, in the Open Data Contract Standard v3.

A contract is ``<source>.odcs.yaml`` in this folder. The raw and quarantine tables, the checks of
ingest and the sensors of the nightly are all derived from it.
"""

import re
from functools import cache
from importlib.resources import files
from typing import Any, Literal

import yaml
from open_data_contract_standard.model import OpenDataContractStandard, SchemaProperty
from pydantic import BaseModel, ConfigDict, ValidationError

from nightshift.errors import ContractError

SOURCES: tuple[str, ...] = ("order_lines",)
"""Every source that is ingested, in order."""

Kind = Literal["string", "integer", "number", "timestamp"]
TIMESTAMP_FORMAT = "YYYY-MM-DD HH:MM:SS"
_NAME = re.compile(r"^[a-z][a-z0-9_]*$")
_SQL_TYPES: dict[str, re.Pattern[str]] = {
    "string": re.compile(r"^text$"),
    "integer": re.compile(r"^integer$"),
    "number": re.compile(r"^numeric\((\d+),(\d+)\)$"),
    "timestamp": re.compile(r"^timestamp$"),
}
_OPTIONS: dict[str, set[str]] = {
    "string": {"pattern", "maxLength"},
    "integer": {"minimum", "maximum"},
    "number": {"minimum", "maximum"},
    "timestamp": {"format"},
}


class Column(BaseModel):
    """One column: its name as landed, its name and type in the warehouse, and its rules."""

    model_config = ConfigDict(frozen=True)

    name: str
    landed_name: str
    kind: Kind
    sql_type: str
    required: bool
    minimum: int | None = None
    maximum: int | None = None
    pattern: str | None = None
    max_length: int | None = None

    @property
    def precision_and_scale(self) -> tuple[int, int]:
        """Digits in all and after the point, of a number."""
        match = _SQL_TYPES["number"].match(self.sql_type)
        if match is None:
            raise ContractError(f"column {self.name} is {self.sql_type}, not numeric")
        return int(match[1]), int(match[2])


class SourceContract(BaseModel):
    """What is needed of a source's contract to load it."""

    model_config = ConfigDict(frozen=True)

    source: str
    version: str
    event_time: str
    columns: tuple[Column, ...]

    @property
    def raw_table(self) -> str:
        """``raw.<source>``."""
        return f"raw.{self.source}"

    @property
    def quarantine_table(self) -> str:
        """``quarantine.<source>``."""
        return f"quarantine.{self.source}"

    @property
    def landed_names(self) -> tuple[str, ...]:
        """The header that a file must have, in any order."""
        return tuple(column.landed_name for column in self.columns)

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
            f"create index if not exists {self.source}_landed_date"
            f" on {self.raw_table} (_landed_date);\n"
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


def parse_contract(source: str, text: str) -> SourceContract:
    """Read a contract's YAML.

    Raises:
        ContractError: naming the key that is missing, unknown or malformed.
    """
    where = f"contract {source}.odcs.yaml"
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
    columns = tuple(_column(where, p) for p in objects[0].properties or [])
    custom = {p.property: p.value for p in document.customProperties or []}
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
    return SourceContract(
        source=source, version=document.version or "", event_time=event_time, columns=columns
    )


@cache
def load_contract(source: str) -> SourceContract:
    """The contract of a source in ``SOURCES``.

    Raises:
        ContractError: when there is none, or it is malformed.
    """
    file = files("nightshift.contracts").joinpath(f"{source}.odcs.yaml")
    if not file.is_file():
        raise ContractError(
            f"there is no contract for source {source!r}; known: {', '.join(SOURCES)}",
            f"add contracts/{source}.odcs.yaml",
        )
    return parse_contract(source, file.read_text(encoding="utf-8"))


def _column(where: str, declared: SchemaProperty) -> Column:
    where = f"{where}, column {declared.name!r}"
    if not declared.name or not _NAME.match(declared.name):
        raise ContractError(f"{where}: a name is lower-case snake_case", "rename the column")
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
    return Column.model_validate(
        {
            "name": declared.name,
            "landed_name": declared.physicalName or declared.name,
            "kind": kind,
            "sql_type": sql_type,
            "required": bool(declared.required),
            "minimum": options.get("minimum"),
            "maximum": options.get("maximum"),
            "pattern": options.get("pattern"),
            "max_length": options.get("maxLength"),
        }
    )
