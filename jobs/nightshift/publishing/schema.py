"""What a published row looks like, as a JSON Schema for whoever reads it."""

from typing import Any

from nightshift.publication import reasons_of
from nightshift.publishing import sql
from nightshift.spec import DECISIONS, ScoreInRange, UseCase

DRAFT = "https://json-schema.org/draft/2020-12/schema"

_TYPES: dict[str, dict[str, Any]] = {
    "text": {"type": "string"},
    "date": {"type": "string", "format": "date"},
    "double precision": {"type": "number"},
    "integer": {"type": "integer"},
    "timestamp with time zone": {"type": "string", "format": "date-time"},
}


def json_schema(use_case: UseCase) -> dict[str, Any]:
    """The schema of one row of the use case's views, as ``row_to_json`` gives it."""
    properties = {
        name: {**_TYPES.get(kind, _reasons(use_case)), "description": comment}
        for name, (kind, comment) in sql.columns(use_case).items()
    }
    for audit in use_case.audits:
        if isinstance(audit, ScoreInRange):
            properties[use_case.score_column] |= {"minimum": audit.low, "maximum": audit.high}
    if use_case.list_columns:
        properties["rank"] |= {"minimum": 1, "maximum": use_case.shown}
    if use_case.decision_columns:
        properties["decision"]["enum"] = list(DECISIONS)
    if use_case.rules:
        properties["rule_hits"] = {
            "type": "array",
            "items": {"enum": [rule.name for rule in use_case.rules]},
            "description": properties["rule_hits"]["description"],
        }
    properties["band"]["enum"] = [band.name for band in use_case.bands]
    properties["publication_id"]["pattern"] = "^[0-9a-f]{16}$"
    return {
        "$schema": DRAFT,
        "title": use_case.table,
        "description": f"{use_case.title}. {use_case.description}",
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _reasons(use_case: UseCase) -> dict[str, Any]:
    counts = [reasons_of(use_case, band) for band in use_case.bands]
    reason = {
        "feature": {"enum": list(use_case.feature_names)},
        "value": {"type": ["number", "null"]},
        "contribution": {"type": "number"},
        "direction": {"enum": ["raises", "lowers"]},
    }
    return {
        "type": "array",
        "minItems": min(counts),
        "maxItems": max(counts),
        "items": {"type": "object", "properties": reason, "required": list(reason)},
    }
