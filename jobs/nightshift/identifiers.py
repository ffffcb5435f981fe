"""Names that are written into SQL: which are accepted where they are declared.

What would need quotes is refused, also where statements quote: people and dbt models write these
names too, without.
"""

import re

IDENTIFIER = re.compile(r"[a-z][a-z0-9_]*")
_WORDS = """
    all analyse analyze and any array as asc asymmetric authorization binary both case cast check
    collate collation column concurrently constraint create cross current_catalog current_date
    current_role current_schema current_time current_timestamp current_user default deferrable desc
    distinct do else end except false fetch for foreign freeze from full grant group having ilike in
    initially inner intersect into is isnull join lateral leading left like limit localtime
    localtimestamp natural not notnull null offset on only or order outer overlaps placing primary
    references returning right select session_user similar some symmetric system_user table
    tablesample then to trailing true union unique user using variadic verbose when where window
    with
"""
RESERVED = frozenset(_WORDS.split())
"""The words that Postgres takes for no name of a column or a table."""


def identifier(name: str) -> str:
    """``name``, where it is lower-case snake_case and no reserved word.

    Raises:
        ValueError: saying what is wrong with it.
    """
    if not IDENTIFIER.fullmatch(name):
        raise ValueError(f"{name!r} is not lower-case snake_case")
    if name in RESERVED:
        raise ValueError(f"{name!r} is a reserved word of SQL: choose another name")
    return name


def qualified(relation: str) -> str:
    """``<schema>.<table>``, where both are such names.

    Raises:
        ValueError: saying what is wrong with it.
    """
    parts = relation.split(".")
    if len(parts) != 2:
        raise ValueError(f"{relation!r} is not <schema>.<table>")
    for part in parts:
        identifier(part)
    return relation
