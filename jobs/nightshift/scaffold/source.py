"""The files of a new source, as text. Pure."""

from pathlib import Path

from nightshift.contracts import Column, dbt_sources, parse_contract
from nightshift.contracts.quality import parse_mart
from nightshift.scaffold.sample import Inferred, row_id_of
from nightshift.scaffold.templates import render
from nightshift.spec import ColumnType

_EXAMPLES = {
    "string": "a1",
    "integer": "7",
    "number": "1.5",
    "timestamp": "2026-01-01 08:00:00",
}
_STALE_DAYS = {"fct": (2, 7), "dim": (92, 366)}
"""Days without a landing after which to warn and to fail: events land daily, attributes do not."""


def files(inferred: Inferred, mart: str, owner: str, description: str) -> dict[Path, str]:
    """Path in the project → text, of every file of the source; the contract, which makes it one,
    is the last.

    Args:
        inferred: what its sample tells.
        mart: ``fct`` for events, ``dim`` for attributes that hold from an instant on.
        owner: the team that answers for it.
        description: what a row is, in a sentence.
    """
    source, key = inferred.source, inferred.key
    columns = inferred.columns
    required = [column for column in columns if column.required]
    # the instant first: it tells most rows apart, and an index begins with it
    required.sort(key=lambda column: column.name != inferred.event_time)
    types = {column.name: _type(column) for column in columns}
    values = {
        "source": source,
        "mart": f"{mart}_{source}",
        "title": source.replace("_", " ").capitalize(),
        "owner": owner,
        "description": description,
        "grain": f"One row per {', '.join(key) if key else 'distinct landed row'}.",
        "columns": columns,
        "required": required,
        "key": key,
        "has_personal_key": not set(key).isdisjoint(inferred.pii),
        "row_id": key[0] if len(key) == 1 else row_id_of(source),
        "event_time": inferred.event_time,
        "event_landed": next(c.landed_name for c in columns if c.name == inferred.event_time),
        "leaves_out": inferred.leaves_out,
        "limits": {name: _limits(*bounds) for name, bounds in inferred.ranges.items()},
        "stale_days": _STALE_DAYS[mart],
        # without a key, rows that agree in all columns are copies
        "lookup": key or tuple(column.name for column in required),
        "nullable": () if key else tuple(c.name for c in columns if not c.required),
        "types": types,
        "sql_types": {c.name: _sql_type(c, types[c.name]) for c in columns},
        "text": {column.name: _EXAMPLES[column.kind] for column in columns},
        "example": ", ".join(f'{c.name}: "{_EXAMPLES[c.kind]}"' for c in columns),
    }
    contract = render("contract.odcs.yaml.j2", **values)
    parsed = parse_contract(source, contract)
    quality = render("mart.odcs.yaml.j2", **values)
    parse_mart(f"{mart}_{source}", quality)
    dbt, package = Path("dbt_project"), Path("jobs", "nightshift")
    staging, marts = dbt / "models" / "staging" / source, dbt / "models" / "marts"
    return {
        package / "feature_groups" / f"{source}.py": render("source.py.j2", **values),
        package / "contracts" / "marts" / f"{mart}_{source}.odcs.yaml": quality,
        **{dbt / path: text for path, text in dbt_sources.generated(parsed).items()},
        staging / f"stg_{source}.sql": render("staging.sql.j2", **values),
        staging / f"stg_{source}.yml": render("staging.yml.j2", **values),
        marts / f"{mart}_{source}.sql": render("mart.sql.j2", **values),
        marts / f"{mart}_{source}.yml": render("mart.yml.j2", **values),
        Path("tests", "unit", "contracts", f"test_{source}.py"): render(
            "test_source.py.j2", **values
        ),
        package / "contracts" / f"{source}.odcs.yaml": contract,
    }


def _type(column: Column) -> ColumnType:
    if column.is_pii:
        return "string"  # a pseudonym
    if column.kind == "number":
        return "decimal" if column.precision_and_scale[1] <= 4 else "double"
    return column.kind


def _sql_type(column: Column, kind: ColumnType) -> str:
    return {"string": "text", "double": "double precision"}.get(kind, column.sql_type)


def _limits(low: float, high: float) -> tuple[float, float]:
    span = (high - low) or abs(high) or 1.0
    return (low - span if low < 0 else 0.0, high + span)
