"""The DDL and the queries of a use case's published table, derived from its spec.

Names come from the spec, whose pattern admits only ``[a-z][a-z0-9_]*``; they are quoted because
one may still be a reserved word.
"""

import hashlib
from datetime import date

from nightshift.errors import NightshiftError
from nightshift.publication import ScoresManifest, reasons_per_row
from nightshift.spec import UseCase

SCHEMA = "predictions"
READER = "nightshift_reader"
LONGEST_NAME = 63 - len("_p_") - 16
"""Postgres cuts identifiers at 63 bytes; a partition's is ``<name>_p_<16 hex digits>``."""


def quoted(name: str) -> str:
    """``name`` as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """``text`` as an SQL string."""
    return "'" + text.replace("'", "''") + "'"


def data_table(use_case: UseCase) -> str:
    """Unquoted name, in schema predictions, of the partitioned table."""
    return f"{use_case.name}_publications_data"


def partition(use_case: UseCase, publication_id: str) -> str:
    """Unquoted name, in schema predictions, of one publication's table."""
    return f"{use_case.name}_p_{publication_id}"


def view_names(use_case: UseCase) -> tuple[str, str]:
    """Unquoted names of the views: all published dates, and the newest."""
    return use_case.name, f"{use_case.name}_latest"


def check_name(use_case: UseCase) -> None:
    """Refuse a use case whose tables' names Postgres would cut."""
    if len(use_case.name) > LONGEST_NAME:
        raise NightshiftError(
            f"use case {use_case.name}: the name has {len(use_case.name)} characters; its tables "
            f"leave room for {LONGEST_NAME}",
            "give it a shorter name",
        )


def columns(use_case: UseCase) -> dict[str, tuple[str, str]]:
    """Column → (type, comment), in the published order: the contract with readers."""
    bands = ", ".join(f"{band.name} from {band.from_score:g}" for band in use_case.bands)
    return {
        use_case.key: ("text", f"The {use_case.entity} that is predicted. One row each per as_of."),
        "as_of": (
            "date",
            "The cut-off: made from what had happened and had landed before this date.",
        ),
        use_case.score_column: ("double precision", f"{use_case.description} Between 0 and 1."),
        "band": ("text", f"The score's band: {bands}."),
        "reasons": (
            "jsonb",
            f"The {reasons_per_row(use_case)} features that move this score most, strongest first: "
            "feature, value, contribution (SHAP, in log-odds), direction (raises or lowers).",
        ),
        "model_version": ("text", f"Version of the registered model {use_case.name}."),
        "publication_id": (
            "text",
            "The publication that the row belongs to; see ops.publications.",
        ),
        "scored_at": ("timestamp with time zone", "When the score was computed."),
    }


def create_data_table(use_case: UseCase) -> str:
    """The partitioned table, empty."""
    body = ", ".join(f"{quoted(name)} {kind}" for name, (kind, _) in columns(use_case).items())
    table = f"{SCHEMA}.{quoted(data_table(use_case))}"
    return "\n".join(
        [
            f"create table {table} ({body}) partition by list (publication_id);",
            f"comment on table {table} is "
            + literal(f"Every publication of {use_case.name}; readers use {use_case.table}.")
            + ";",
            *_column_comments(use_case, data_table(use_case)),
        ]
    )


def _column_comments(use_case: UseCase, relation: str) -> list[str]:
    return [
        f"comment on column {SCHEMA}.{quoted(relation)}.{quoted(name)} is {literal(comment)};"
        for name, (_, comment) in columns(use_case).items()
    ]


def _view_queries(use_case: UseCase) -> dict[str, tuple[str, str]]:
    published, latest = view_names(use_case)
    listed = ", ".join(f"d.{quoted(name)}" for name in columns(use_case))
    data = f"{SCHEMA}.{quoted(data_table(use_case))}"
    mine = f"p.use_case = {literal(use_case.name)}"
    return {
        published: (
            f"select {listed} from {SCHEMA}.pointers p join {data} d "
            f"on d.publication_id = p.publication_id and d.as_of = p.as_of where {mine}",
            f"{use_case.title}, every published as_of. {use_case.description}",
        ),
        # a scalar subquery, so that the executor opens one partition only
        latest: (
            f"select {listed} from {data} d where d.publication_id = (select p.publication_id "
            f"from {SCHEMA}.pointers p where {mine} order by p.as_of desc limit 1)",
            f"{use_case.title}, the newest as_of only. {use_case.description}",
        ),
    }


def view_comments(use_case: UseCase) -> dict[str, str]:
    """View → its comment, which ends in a fingerprint of its definition.

    The fingerprint tells whether the view must be created again, which needs a lock that readers
    wait for.
    """
    comments = [comment for _, comment in columns(use_case).values()]
    return {
        name: f"{comment} [definition {_fingerprint(query, *comments)}]"
        for name, (query, comment) in _view_queries(use_case).items()
    }


def _fingerprint(*texts: str) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:12]


def create_view(use_case: UseCase, name: str) -> str:
    """(Re)create one of the two views with its comments."""
    query, _ = _view_queries(use_case)[name]
    view = f"{SCHEMA}.{quoted(name)}"
    comment = view_comments(use_case)[name]
    return "\n".join(
        [
            f"create or replace view {view} as {query};",
            f"comment on view {view} is {literal(comment)};",
            *_column_comments(use_case, name),
        ]
    )


def staging_comment(use_case: UseCase, as_of: date) -> str:
    """The mark by which what a killed run left behind is found again."""
    return f"Scores of {use_case.name} for {as_of.isoformat()}"


def create_staging(use_case: UseCase, manifest: ScoresManifest) -> str:
    """A standalone table for one publication.

    The CHECKs imply the partition's bound, so that attaching it scans nothing. What is the same on
    every row is a default: it need not travel through COPY.
    """
    constants = {
        "as_of": literal(manifest.as_of.isoformat()),
        "model_version": literal(manifest.model_version),
        "publication_id": literal(manifest.publication_id),
        "scored_at": literal(manifest.scored_at.isoformat()),
    }
    parts = [
        f"{quoted(name)} {kind}"
        + (f" not null default {constants[name]}" if name in constants else "")
        for name, (kind, _) in columns(use_case).items()
    ]
    parts += [f"check ({name} = {constants[name]})" for name in ("publication_id", "as_of")]
    table = f"{SCHEMA}.{quoted(partition(use_case, manifest.publication_id))}"
    return (
        f"create table {table} ({', '.join(parts)});\n"
        f"comment on table {table} is {literal(staging_comment(use_case, manifest.as_of))};"
    )


def copy_into(use_case: UseCase, publication_id: str) -> str:
    """COPY of the four columns that differ from row to row, as CSV."""
    listed = ", ".join(quoted(name) for name in copied_columns(use_case))
    return (
        f"copy {SCHEMA}.{quoted(partition(use_case, publication_id))} ({listed}) "
        "from stdin with (format csv, freeze)"
    )


def copied_columns(use_case: UseCase) -> list[str]:
    """The columns of the scores dataset, in the order they are copied in."""
    return [use_case.key, use_case.score_column, "band", "reasons"]


def add_primary_key(use_case: UseCase, publication_id: str) -> str:
    """The key lookup's index, and the proof that no entity is there twice."""
    table = quoted(partition(use_case, publication_id))
    return f"alter table {SCHEMA}.{table} add primary key ({quoted(use_case.key)})"


def key_figures(use_case: UseCase, publication_id: str) -> str:
    """One row: rows without a key, and rows whose key another row has as well."""
    key = quoted(use_case.key)
    return (
        f"select count(*) - count({key}), count({key}) - count(distinct {key}) "
        f"from {SCHEMA}.{quoted(partition(use_case, publication_id))}"
    )


def audit_figures(use_case: UseCase, manifest: ScoresManifest) -> str:
    """One scan, one row: the figures that the audit judges, in the order of ``audit.Figures``."""
    score = quoted(use_case.score_column)
    names = ", ".join(literal(band.name) for band in use_case.bands)
    steps = " ".join(
        f"when {score} >= {band.from_score!r} then {literal(band.name)}"
        for band in reversed(use_case.bands)
    )
    length = "case when jsonb_typeof(reasons) = 'array' then jsonb_array_length(reasons) end"
    return (
        "select count(*),"
        f" count(*) filter (where ({score} between 0 and 1) is not true),"
        f" count(*) filter (where (band in ({names})) is not true),"
        f" count(*) filter (where band is distinct from case {steps} end),"
        f" count(*) filter (where {length} is distinct from {reasons_per_row(use_case)}),"
        f" count(*) filter (where model_version <> {literal(manifest.model_version)})"
        f" from {SCHEMA}.{quoted(partition(use_case, manifest.publication_id))}"
    )


def attach(use_case: UseCase, publication_id: str) -> str:
    """Make the staging table a partition; readers are not blocked."""
    return (
        f"alter table {SCHEMA}.{quoted(data_table(use_case))} attach partition "
        f"{SCHEMA}.{quoted(partition(use_case, publication_id))} "
        f"for values in ({literal(publication_id)})"
    )


def top(use_case: UseCase) -> str:
    """The highest scores of the newest as_of; parameter: how many."""
    listed = ", ".join(quoted(name) for name in columns(use_case))
    return (
        f"select {listed} from {SCHEMA}.{quoted(view_names(use_case)[1])} "
        f"order by {quoted(use_case.score_column)} desc, {quoted(use_case.key)} limit %s"
    )
