"""Quality rules of a contract: Great Expectations' own expectations, as ODCS ``quality`` entries.

A rule stands at the schema, or under a property, whose column is then implied unless its ``kwargs``
name another. They are those of the expectation; a limit may be one of Great Expectations' suite
parameters, an arithmetic expression over what was usual before the batch:
``{$PARAMETER: "round(usual_rows * 0.5)"}``.

=========================  =======================================================================
parameter                  is, for one landed day
=========================  =======================================================================
landed_rows                rows that were loaded from its files
rows_within_budget         the fewest rows that the contract's ``quarantineBudget`` lets be loaded
usual_rows                 median rows of the last landed days of its weekday
recent_median_<column>     median, over the recent landed days, of the column's median of a day
recent_values_<column>     values of the column in the recent landed days
=========================  =======================================================================

A rule one of whose parameters is not known yet, because too little has landed, is not applied.

What takes the whole batch to know is a column of its own, an SQL expression under the custom
property ``batchColumns``; the batch holds several landed days, so its windows are partitioned by
the day. A ``relationships`` entry to ``<table>.<column>`` makes the boolean column
``<property>_is_known``: whether the value is there, in ``raw`` landed before ``as_of``.
"""

import re
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Annotated, Any, Literal

import yaml
from open_data_contract_standard.model import (
    DataQuality,
    OpenDataContractStandard,
    SchemaObject,
    SchemaProperty,
)
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from nightshift.errors import ContractError
from nightshift.identifiers import IDENTIFIER, identifier

Severity = Literal["error", "warning"]

_MARTS = "nightshift.contracts.marts"
_WORD = re.compile(r"[A-Za-z_]\w*")
_FUNCTIONS = frozenset({"round", "trunc", "abs"})
_OF_A_DAY = frozenset({"landed_rows", "rows_within_budget", "usual_rows"})
OF_A_COLUMN = ("recent_median_", "recent_values_")
_SHOWS_NO_VALUE = "expect_column_values_to_not_be_null"
_MART_CUSTOM = frozenset({"source", "alsoReads", "landedDate", "rowId", "batchColumns"})


class Rule(BaseModel):
    """One expectation.

    Attributes:
        name: the same every night; it names the rule in reports and alerts.
        severity: an error stops the night, a warning is reported.
        expectation: Great Expectations' type.
        arguments: its kwargs; a limit may hold ``{"$PARAMETER": <expression>}``.
    """

    model_config = ConfigDict(frozen=True)

    name: Annotated[str, AfterValidator(identifier)]
    description: str
    dimension: str
    severity: Severity
    expectation: str = Field(pattern=r"^expect_[a-z0-9_]+$")
    arguments: Mapping[str, Any]

    @property
    def column(self) -> str | None:
        """The column that is looked at; None for the table as a whole."""
        return self.arguments.get("column")

    @property
    def columns(self) -> tuple[str, ...]:
        """Every column that is looked at."""
        named = [self.arguments.get(word) for word in ("column", "column_A", "column_B")]
        return tuple(str(c) for c in [*named, *self.arguments.get("column_list", ())] if c)

    @property
    def parameters(self) -> frozenset[str]:
        """The parameters that its limits are computed from."""
        return frozenset(
            word
            for value in self.arguments.values()
            if isinstance(value, Mapping)
            for word in _WORD.findall(str(value.get("$PARAMETER", "")))
            if word not in _FUNCTIONS
        )


class Reference(BaseModel):
    """A column whose values are to be found in another table.

    Attributes:
        to_table: ``raw.<source>`` or ``marts.<model>``.
        to_day: that table's column of the landed day; None for a mart, which is taken whole.
    """

    model_config = ConfigDict(frozen=True)

    column: str
    to_table: str
    to_column: str
    to_day: str | None

    @property
    def is_known(self) -> str:
        """Name of the boolean column that says whether the value is there."""
        return f"{self.column}_is_known"


class QualityContract(BaseModel):
    """What is checked of one table, day by day.

    Attributes:
        name: of the source, or of the mart.
        source: the source whose landed days its rows belong to.
        reads: every source that it is made of.
        day: the column with the landed day.
        row_id: the column that names a row of a mart; None in raw, where file and position do.
        batch_columns: SQL expression by name; the window of a day is partitioned by ``day``.
        quarantine_budget: share of a day's rows that may be broken; the source's.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    source: str
    reads: tuple[str, ...]
    table: str
    day: str
    row_id: str | None
    rules: tuple[Rule, ...]
    batch_columns: Mapping[str, str]
    references: tuple[Reference, ...]
    quarantine_budget: float

    def columns_of(self, parameter: str) -> tuple[str, ...]:
        """The columns of which some rule asks ``parameter``, e.g. ``recent_median_``."""
        asked = {p for rule in self.rules for p in rule.parameters if p.startswith(parameter)}
        return tuple(sorted(p.removeprefix(parameter) for p in asked))


def parse_quality(
    where: str,
    declared: SchemaObject,
    *,
    name: str,
    source: str,
    reads: tuple[str, ...],
    table: str,
    day: str,
    row_id: str | None,
    batch_columns: Any,
    quarantine_budget: Any,
) -> QualityContract:
    """The rules of a schema object and of its properties.

    A key (``primaryKey``) makes a rule of its own: no two rows of a day share it.

    Raises:
        ContractError: naming the rule and what is wrong with it.
    """
    properties = declared.properties or []
    batch_columns = batch_columns or {}
    if not isinstance(batch_columns, dict) or not all(
        isinstance(sql, str) and IDENTIFIER.fullmatch(str(column))
        for column, sql in batch_columns.items()
    ):
        raise ContractError(
            f"{where}: customProperties batchColumns is {batch_columns!r}",
            "write name: SQL expression, the name in lower-case snake_case",
        )
    references = tuple(_reference(where, p) for p in properties if p.relationships)
    found: list[tuple[str | None, DataQuality]] = [(None, q) for q in declared.quality or []]
    found += [(p.name, q) for p in properties for q in p.quality or []]
    rules = (*_key_rules(properties), *(_rule(where, column, q) for column, q in found))
    names = [rule.name for rule in rules]
    for twice in sorted({n for n in names if names.count(n) > 1}):
        raise ContractError(f"{where}: two rules are named {twice}", "rename one of them")
    columns = {str(p.name): p for p in properties}
    derived = {*batch_columns, *(r.is_known for r in references)}
    for rule in rules:
        _require_columns(f"{where}, rule {rule.name}", rule, columns, derived)
    return QualityContract(
        name=name,
        source=source,
        reads=reads,
        table=table,
        day=day,
        row_id=row_id,
        rules=rules,
        batch_columns=batch_columns,
        references=references,
        quarantine_budget=quarantine_budget,
    )


def _key_rules(properties: Sequence[SchemaProperty]) -> list[Rule]:
    key = [str(p.name) for p in properties if p.primaryKey]
    if not key:
        return []
    one = len(key) == 1
    kind = "expect_column_values_to_be" if one else "expect_compound_columns_to_be"
    return [
        Rule(
            name="key_is_unique",
            description=f"No two rows of a landed day share {', '.join(key)}.",
            dimension="uniqueness",
            severity="error",
            expectation=f"{kind}_unique",
            arguments={"column": key[0]} if one else {"column_list": key},
        )
    ]


def _rule(where: str, column: str | None, declared: DataQuality) -> Rule:
    where = f"{where}, rule {declared.name or '(without a name)'}"
    if (declared.type, declared.engine) != ("custom", "greatExpectations"):
        raise ContractError(
            f"{where}: type is {declared.type!r} and engine {declared.engine!r}",
            "write type: custom and engine: greatExpectations",
        )
    written = declared.implementation
    if not isinstance(written, dict) or written.keys() - {"type", "kwargs"}:
        raise ContractError(
            f"{where}: implementation is {written!r}",
            "write {type: expect_…, kwargs: {…}}",
        )
    arguments = dict(written.get("kwargs") or {})
    if column is not None:
        arguments.setdefault("column", column)
    try:
        return Rule.model_validate(
            {
                "name": declared.name,
                "description": " ".join((declared.description or "").split()),
                "dimension": declared.dimension,
                "severity": declared.severity,
                "expectation": written.get("type"),
                "arguments": arguments,
            }
        )
    except ValidationError as error:
        raise ContractError(f"{where}: {error}", "correct the rule") from error


def _reference(where: str, declared: SchemaProperty) -> Reference:
    (relationship, *more) = declared.relationships or []
    to = relationship.to
    parts = to.split(".") if isinstance(to, str) else []
    if more or len(parts) != 3 or parts[0] not in ("raw", "marts"):
        raise ContractError(
            f"{where}, column {declared.name!r}: relationships go to {to!r}",
            "write one, to raw.<source>.<column> or marts.<model>.<column>",
        )
    schema, table, column = parts
    _require_identifiers(f"{where}, column {declared.name!r}", table, column)
    return Reference(
        column=str(declared.name),
        to_table=f"{schema}.{table}",
        to_column=column,
        to_day="_landed_date" if schema == "raw" else None,
    )


def _require_identifiers(where: str, *names: str) -> None:
    try:
        for name in names:
            identifier(name)
    except ValueError as error:
        raise ContractError(f"{where}: {error}", "correct the contract") from error


def _require_columns(
    where: str, rule: Rule, columns: Mapping[str, SchemaProperty], derived: set[str]
) -> None:
    for column in rule.columns:
        if column not in columns and column not in derived:
            raise ContractError(
                f"{where}: there is no column {column!r}",
                f"known: {', '.join(sorted({*columns, *derived}))}",
            )
        is_personal = column in columns and columns[column].classification == "pii"
        if is_personal and rule.expectation != _SHOWS_NO_VALUE:
            raise ContractError(
                f"{where}: {rule.expectation} would show values of {column}, personal data",
                f"use {_SHOWS_NO_VALUE}, or a column of batchColumns that says no more than whether"
                " the value is right",
            )
    for parameter in sorted(rule.parameters - _OF_A_DAY):
        of = next((p for p in OF_A_COLUMN if parameter.startswith(p)), None)
        if of is None or parameter.removeprefix(of) not in columns:
            raise ContractError(
                f"{where}: there is no parameter {parameter!r}",
                f"known: {', '.join(sorted(_OF_A_DAY))}, {'<column>, '.join(OF_A_COLUMN)}<column>",
            )
        if columns[parameter.removeprefix(of)].classification == "pii":
            raise ContractError(
                f"{where}: {parameter} would show personal data", "choose another column"
            )


MARTS: tuple[str, ...] = tuple(
    sorted(
        file.name.removesuffix(".odcs.yaml")
        for file in files(_MARTS).iterdir()
        if file.name.endswith(".odcs.yaml")
    )
)
"""Every mart that is checked before features are made of it."""


def parse_mart(mart: str, text: str) -> QualityContract:
    """Read the quality contract of a mart: columns with their rules, nothing that dbt declares.

    Raises:
        ContractError: naming the key that is missing, unknown or malformed.
    """
    where = f"contract marts/{mart}.odcs.yaml"
    try:
        document = OpenDataContractStandard.from_string(text)
    except (yaml.YAMLError, ValidationError, TypeError) as error:
        raise ContractError(f"{where}: {error}", "correct the contract") from error
    declared = next((o for o in document.schema_ or [] if o.name == mart), None)
    custom = {p.property: p.value for p in document.customProperties or []}
    required = _MART_CUSTOM - {"alsoReads", "batchColumns"}
    if declared is None or custom.keys() - _MART_CUSTOM or required - custom.keys():
        raise ContractError(
            f"{where}: schema object {mart} or customProperties are missing or unknown",
            f"name the object {mart}; customProperties are {', '.join(sorted(_MART_CUSTOM))}",
        )
    also = custom.get("alsoReads") or []
    if not isinstance(also, list):
        raise ContractError(
            f"{where}: customProperties alsoReads is {also!r}", "write a list of sources"
        )
    _require_identifiers(
        where, mart, str(custom["landedDate"]), str(custom["rowId"]), *map(str, also)
    )
    return parse_quality(
        where,
        declared,
        name=mart,
        source=str(custom["source"]),
        reads=(str(custom["source"]), *map(str, also)),
        table=f"marts.{mart}",
        day=str(custom["landedDate"]),
        row_id=str(custom["rowId"]),
        batch_columns=custom.get("batchColumns"),
        quarantine_budget=1.0,
    )


@cache
def load_mart(mart: str) -> QualityContract:
    """The quality contract of a mart in ``MARTS``.

    Raises:
        ContractError: when it is malformed.
    """
    text = files(_MARTS).joinpath(f"{mart}.odcs.yaml").read_text(encoding="utf-8")
    return parse_mart(mart, text)
