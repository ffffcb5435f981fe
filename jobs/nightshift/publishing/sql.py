"""The DDL and the queries of a use case's published table, derived from its spec.

Names come from the spec, whose pattern admits only ``[a-z][a-z0-9_]*``; they are quoted because
one may still be a reserved word.
"""

import hashlib
from collections.abc import Iterable
from datetime import UTC, date, datetime

import pyarrow as pa

from nightshift.errors import NightshiftError
from nightshift.publication import ScoresManifest, reasons_of, reasons_per_row
from nightshift.spec import ScoreInRange, UseCase

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
    """Unquoted name, in schema predictions, of the partitioned table of the newest publications."""
    return f"{use_case.name}_publications_data"


def archive_table(use_case: UseCase) -> str:
    """Unquoted name, in schema predictions, of the partitioned table of all older ones."""
    return f"{use_case.name}_publications_archive"


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
    bands = ", ".join(
        f"{band.name} from {band.from_rank or band.from_score:g}" for band in use_case.bands
    )
    return {
        **_names(use_case),
        "as_of": (
            "date",
            "The cut-off: made from what had happened and had landed before this date.",
        ),
        use_case.score_column: ("double precision", f"{use_case.description}{_scale(use_case)}"),
        **_interval(use_case),
        **_list(use_case),
        "band": ("text", f"The {'rank' if use_case.shown else 'score'}'s band: {bands}."),
        "reasons": (
            "jsonb",
            f"The {reasons_per_row(use_case)} features that move this score most, strongest first: "
            f"feature, value, contribution (SHAP, in {use_case.reason_unit}), direction (raises or "
            "lowers)." + _other_reasons(use_case),
        ),
        **_decisions(use_case),
        "model_version": ("text", f"Version of the registered model {use_case.name}."),
        "publication_id": (
            "text",
            "The publication that the row belongs to; see ops.publications.",
        ),
        "scored_at": ("timestamp with time zone", "When the score was computed."),
    }


def _names(use_case: UseCase) -> dict[str, tuple[str, str]]:
    """The columns that name a row, with comments; the key is first, by which readers look up."""
    key, *others = use_case.row_key
    if not others:
        return {key: ("text", f"The {use_case.entity} that is predicted. One row each per as_of.")}
    named = f"One row each per as_of and {key}."
    what = f"Names the row of {use_case.source.name} that is predicted. One row each per as_of."
    return {
        key: ("text", f"The {use_case.entity} of the row; it may have several per as_of."),
        **{name: ("text", what if use_case.mode == "event" else named) for name in others},
    }


def _decisions(use_case: UseCase) -> dict[str, tuple[str, str]]:
    """The columns of what is decided, with comments."""
    rules = "; ".join(f"{rule.name}: {rule.description}" for rule in use_case.rules)
    alerted = " reviewed from the night's threshold on," if use_case.alerts else ""
    found = {
        "decision": (
            "text",
            f"What is decided: pass, review or block;{alerted} and as the rules say that hit.",
        ),
        "rule_hits": ("jsonb", f"The names of the rules that hit. {rules}."),
        "threshold_version": (
            "text",
            "Which choice of a threshold the decision rests on; see ops.thresholds.",
        ),
    }
    return {name: found[name] for name in use_case.decision_columns}


def _scale(use_case: UseCase) -> str:
    """What the score's comment says of its unit."""
    if use_case.objective == "binary":
        return " Between 0 and 1."
    return f" In {use_case.unit}." if use_case.unit else ""


def _interval(use_case: UseCase) -> dict[str, tuple[str, str]]:
    """The columns of the interval, with comments."""
    if use_case.interval is None:
        return {}
    share = use_case.interval.share
    tail = f"{(1 - share) / 2:.0%}"
    words = (f"at most {tail} are below it", f"at most {tail} are above it")
    return {
        name: (
            "double precision",
            f"The {end} end of the interval that holds {share:.0%} of what happens: {each}."
            f"{_scale(use_case)}",
        )
        for name, end, each in zip(
            use_case.interval_columns, ("lower", "upper"), words, strict=True
        )
    }


def _list(use_case: UseCase) -> dict[str, tuple[str, str]]:
    """The columns of a ranking, with comments."""
    comments = (
        ("integer", f"The place in the list of the {use_case.entity}, 1 the best."),
        ("text", "Who has proposed the item, by name, with commas between."),
    )
    return dict(zip(use_case.list_columns, comments, strict=False))


def _other_reasons(use_case: UseCase) -> str:
    """What the column's comment says of bands whose reasons are not exact."""
    found = ""
    for method, words in (("approximate", "Approximate"), ("none", "None")):
        bands = [band.name for band in use_case.bands if band.reasons == method]
        found += f" {words} in {', '.join(bands)}." if bands else ""
    return found


def create_tables(use_case: UseCase) -> str:
    """The two partitioned tables, empty.

    Only the newest publications are partitions of the first, so that a query of ``_latest`` plans
    over few. The archive's bounds begin with the date, so that one of a date plans over its own.
    """
    body = ", ".join(f"{quoted(name)} {kind}" for name, (kind, _) in columns(use_case).items())
    lines = []
    for name, partitioned, what in (
        (data_table(use_case), "list (publication_id)", "The newest publications"),
        (archive_table(use_case), "range (as_of, publication_id)", "The older publications"),
    ):
        table = f"{SCHEMA}.{quoted(name)}"
        comment = f"{what} of {use_case.name}; readers use {use_case.table}."
        lines += [
            f"create table if not exists {table} ({body}) partition by {partitioned};",
            f"comment on table {table} is {literal(comment)};",
            *_column_comments(use_case, name),
        ]
    return "\n".join(lines)


def _column_comments(use_case: UseCase, relation: str) -> list[str]:
    return [
        f"comment on column {SCHEMA}.{quoted(relation)}.{quoted(name)} is {literal(comment)};"
        for name, (_, comment) in columns(use_case).items()
    ]


def _view_queries(use_case: UseCase) -> dict[str, tuple[str, str]]:
    published, latest = view_names(use_case)
    listed = ", ".join(f"d.{quoted(name)}" for name in columns(use_case))
    data, archive = (
        f"{SCHEMA}.{quoted(name)}" for name in (data_table(use_case), archive_table(use_case))
    )
    mine = f"p.use_case = {literal(use_case.name)}"
    return {
        published: (
            f"select {listed} from {SCHEMA}.pointers p join "
            f"(select * from {data} union all select * from {archive}) d "
            f"on d.publication_id = p.publication_id and d.as_of = p.as_of where {mine}",
            f"{use_case.title}, every published as_of. {use_case.description}",
        ),
        # the newest date's publications are never in the archive; and a scalar subquery, so that
        # the executor opens one partition only
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


def staging_mark(use_case: UseCase, as_of: date) -> str:
    """How the comment begins by which what a killed run left behind is found again."""
    return f"Scores of {use_case.name} for {as_of.isoformat()}"


def loose_tables(use_case: UseCase) -> str:
    """SELECT of its publications' tables that are no partitions: ``relname``, ``as_of``, ``since``
    when, and ``was_attached``, where the drop of a publication was not completed.

    Of a table whose comment does not say when it was made, ``since`` is its ``as_of``.
    """
    mark = staging_mark(use_case, date.min).removesuffix(date.min.isoformat())
    name = f"{literal(partition(use_case, ''))} || o.publication_id"
    return (
        "select relname, substring(comment from '[0-9]{4}-[0-9]{2}-[0-9]{2}')::date as as_of,"
        " coalesce(substring(comment from ', staged (.*)')::timestamptz,"
        "  substring(comment from '[0-9]{4}-[0-9]{2}-[0-9]{2}')::date) as since,"
        " exists (select from ops.publications o where o.dropped_at is null"
        f"  and t.relname = {name}) as was_attached"
        " from (select c.oid, c.relname, obj_description(c.oid, 'pg_class') as comment"
        "  from pg_class c where c.relkind = 'r'"
        f"  and c.relnamespace = {literal(SCHEMA)}::regnamespace) t"
        f" where starts_with(comment, {literal(mark)})"
        " and not exists (select from pg_inherits i where i.inhrelid = t.oid)"
    )


def create_staging(use_case: UseCase, manifest: ScoresManifest) -> str:
    """A standalone table for one publication.

    The CHECKs imply the partition's bound, so that attaching it scans nothing. What is the same on
    every row is a default: it need not travel through COPY. No autovacuum until it is attached,
    which would wait a second for one (``deadlock_timeout``); and no vacuum ever shortens it, for
    which it would hold readers up. Of reasons and the like, whose values are compared slowly,
    nobody asks, so the planner has no statistics.
    """
    comment = f"{staging_mark(use_case, manifest.as_of)}, staged {datetime.now(UTC).isoformat()}"
    constants = {
        "as_of": literal(manifest.as_of.isoformat()),
        "model_version": literal(manifest.model_version),
        "publication_id": literal(manifest.publication_id),
        "scored_at": literal(manifest.scored_at.isoformat()),
    }
    declared = columns(use_case)
    parts = [
        f"{quoted(name)} {kind}"
        + (f" not null default {constants[name]}" if name in constants else "")
        for name, (kind, _) in declared.items()
    ]
    parts += [f"check ({name} = {constants[name]})" for name in ("publication_id", "as_of")]
    without_statistics = ", ".join(
        f"alter {quoted(name)} set statistics 0"
        for name, (kind, _) in declared.items()
        if kind == "jsonb"
    )
    table = f"{SCHEMA}.{quoted(partition(use_case, manifest.publication_id))}"
    return (
        f"create table {table} ({', '.join(parts)})"
        " with (autovacuum_enabled = false, vacuum_truncate = false);\n"
        f"alter table {table} {without_statistics};\n"
        f"comment on table {table} is {literal(comment)};"
    )


def copied_columns(use_case: UseCase) -> list[str]:
    """The columns of the scores dataset, in the order they are copied in."""
    return [
        *use_case.row_key, use_case.score_column, *use_case.interval_columns,
        *use_case.list_columns, "band", "reasons", *use_case.decision_columns,
    ]  # fmt: skip


def copied_schema(use_case: UseCase) -> pa.Schema:
    """Their types, as they travel through COPY."""
    numbers = dict.fromkeys((use_case.score_column, *use_case.interval_columns), pa.float64())
    numbers |= dict.fromkeys(use_case.list_columns[:1], pa.int32())
    return pa.schema([(c, numbers.get(c, pa.string())) for c in copied_columns(use_case)])


def _quoted_all(names: Iterable[str]) -> str:
    return ", ".join(quoted(name) for name in names)


def add_band_indexes(use_case: UseCase, publication_id: str) -> list[str]:
    """An index a band, read backwards for its highest scores; none of a ranking, whose scores are
    of one scale within a list only.

    One index on band and score would take three times as long to build: two texts and two numbers
    are compared at each step of its sort.
    """
    if use_case.shown is not None:
        return []
    table = f"{SCHEMA}.{quoted(partition(use_case, publication_id))}"
    return [
        f"create index on {table} ({quoted(use_case.score_column)})"
        f" where band = {literal(band.name)}"
        for band in use_case.bands
    ]


SHARE_WORKERS = (
    "select set_config(name, (setting::int / 2)::text, true) from pg_settings"
    " where name in ('max_parallel_maintenance_workers', 'max_parallel_workers_per_gather')"
)
"""Half of the server's workers for the indexes and queries of this transaction: another has the
rest, and readers wait for a core the longer, the more processes want one."""


def add_unique_index(use_case: UseCase, publication_id: str) -> str:
    """The key lookup's index, and the proof that no row is there twice; beside it other indexes
    can be built, which a primary key would lock out."""
    table = quoted(partition(use_case, publication_id))
    return (
        f"create unique index {quoted(_key_name(publication_id))} on {SCHEMA}.{table}"
        f" ({_quoted_all(use_case.row_key)})"
    )


def add_primary_key(use_case: UseCase, publication_id: str) -> str:
    """Make the unique index the key, which proves that every row has a name."""
    name = _key_name(publication_id)
    return (
        f"alter table {SCHEMA}.{quoted(partition(use_case, publication_id))}"
        f" add constraint {quoted(name)} primary key using index {quoted(name)}"
    )


def _key_name(publication_id: str) -> str:
    return f"key_{publication_id}"


def key_figures(use_case: UseCase, publication_id: str) -> str:
    """One row: rows without a name, and rows whose name another row has as well."""
    is_named = " and ".join(f"{quoted(name)} is not null" for name in use_case.row_key)
    named = f"filter (where {is_named})"
    return (
        f"select count(*) - count(*) {named}, count(*) {named}"
        f" - count(distinct ({_quoted_all(use_case.row_key)})) {named} "
        f"from {SCHEMA}.{quoted(partition(use_case, publication_id))}"
    )


def analyze(use_case: UseCase, publication_id: str) -> str:
    """The planner's statistics.

    Of 7,500 rows, not 30,000: that tells how many are in a band, and takes a third of the time.
    """
    table = f"{SCHEMA}.{quoted(partition(use_case, publication_id))}"
    return f"set local default_statistics_target = 25; analyze {table}"


def audit_figures(use_case: UseCase, manifest: ScoresManifest) -> str:
    """One scan: a row a band, with the figures that the audit judges in the order of
    ``audit.Figures``, each of the band's rows."""
    score = quoted(use_case.score_column)
    names = ", ".join(literal(band.name) for band in use_case.bands)
    steps = " ".join(
        f"when {'rank' if use_case.shown else score} >= {band.from_rank or band.from_score!r}"
        f" then {literal(band.name)}"
        for band in reversed(use_case.bands[1:])
    )
    steps += f" when {score} is not null then {literal(use_case.bands[0].name)}"
    asked = " ".join(
        f"when {literal(band.name)} then {reasons_of(use_case, band)}" for band in use_case.bands
    )
    length = "case when jsonb_typeof(reasons) = 'array' then jsonb_array_length(reasons) end"
    ranges = [audit for audit in use_case.audits if isinstance(audit, ScoreInRange)]
    is_number = (
        " and ".join(f"{score} between {audit.low!r} and {audit.high!r}" for audit in ranges)
        or "true"
    )
    ends = [quoted(name) for name in use_case.interval_columns]
    is_interval = f"{ends[0]} <= {ends[1]} and {ends[1]} < 'infinity'" if ends else "true"
    return (
        "select band, count(*),"
        f" count(*) filter (where ({is_number}) is not true),"
        f" count(*) filter (where (band in ({names})) is not true),"
        f" count(*) filter (where band is distinct from case {steps} end),"
        f" count(*) filter (where {length} is distinct from case band {asked} end),"
        f" count(*) filter (where model_version <> {literal(manifest.model_version)}),"
        f" count(*) filter (where ({is_interval}) is not true)"
        f" from {SCHEMA}.{quoted(partition(use_case, manifest.publication_id))} group by band"
    )


def list_figures(use_case: UseCase, publication_id: str) -> str:
    """One row, of a ranking: lists, full ones, and those that are too long, whose places are not 1,
    2, 3 and so on, or whose scores rise."""
    table = f"{SCHEMA}.{quoted(partition(use_case, publication_id))}"
    key, score = quoted(use_case.key), quoted(use_case.score_column)
    return (
        f"select count(*), count(*) filter (where size = {use_case.shown}),"
        f" count(*) filter (where (size <= {use_case.shown} and places = size and first = 1"
        " and last = size and not rises) is not true) from ("
        f"select {key}, count(*) as size, count(distinct rank) as places, min(rank) as first,"
        f" max(rank) as last, bool_or({score} > before) as rises from (select {key}, rank,"
        f" {score}, lag({score}, 1, {score}) over (partition by {key} order by rank) as before"
        f" from {table}) as r group by {key}) as l"
    )


def attach(use_case: UseCase, publication_id: str) -> str:
    """Make the staging table a partition of the newest; readers are not blocked."""
    table = f"{SCHEMA}.{quoted(partition(use_case, publication_id))}"
    return (
        f"alter table {SCHEMA}.{quoted(data_table(use_case))} attach partition {table}"
        f" for values in ({literal(publication_id)});"
        f" alter table {table} reset (autovacuum_enabled)"
    )


def attach_to_archive(use_case: UseCase, publication_id: str, as_of: date) -> str:
    """Make the table a partition of the archive; readers are not blocked.

    No other id of 16 hex digits lies between an id and the id followed by 0, in any collation.
    """
    day = literal(as_of.isoformat())
    table = f"{SCHEMA}.{quoted(partition(use_case, publication_id))}"
    return (
        f"alter table {SCHEMA}.{quoted(archive_table(use_case))} attach partition {table}"
        f" for values from ({day}, {literal(publication_id)})"
        f" to ({day}, {literal(publication_id + '0')});"
        f" alter table {table} reset (autovacuum_enabled)"
    )


def detach(use_case: UseCase, publication_id: str, parent: str, how: str = "") -> str:
    """Make a partition a table of its own again.

    Args:
        parent: unquoted name of the partitioned table.
        how: ``concurrently``, which waits for readers and blocks none, or ``finalize``, which ends
            one that was interrupted; both outside transactions. Without it, readers are blocked.
    """
    return (
        f"alter table {SCHEMA}.{quoted(parent)} detach partition "
        f"{SCHEMA}.{quoted(partition(use_case, publication_id))} {how}"
    )


def top(use_case: UseCase) -> str:
    """The highest scores of the newest as_of, of a ranking the first lists; parameter: how many."""
    listed = ", ".join(quoted(name) for name in columns(use_case))
    names = _quoted_all(use_case.row_key)
    order = f"{quoted(use_case.score_column)} desc, {names}"
    if use_case.list_columns:  # scores of two lists are not of one scale
        order = f"{quoted(use_case.key)}, rank"
    return (
        f"select {listed} from {SCHEMA}.{quoted(view_names(use_case)[1])} order by {order} limit %s"
    )


def difference(use_case: UseCase, before: str, after: str) -> str:
    """The rows of two publications side by side: what names them, and score and band of each."""
    names, score = _quoted_all(use_case.row_key), quoted(use_case.score_column)
    old, new = (f"{SCHEMA}.{quoted(partition(use_case, each))}" for each in (before, after))
    return (
        f"select concat_ws('·', {names}) as key,"
        f" o.{score} as score_before, n.{score} as score_after,"
        f" n.{score} - o.{score} as change, o.band as band_before, n.band as band_after,"
        f" n.publication_id is null as is_gone, o.publication_id is null as is_new"
        f" from {old} o full outer join {new} n using ({names})"
    )


def difference_figures(use_case: UseCase, before: str, after: str) -> str:
    """One row: rows in both, new, gone, with another score; then the change's quantiles.

    Parameter: the quantiles' shares.
    """
    return (
        "select count(*) filter (where not is_new and not is_gone), count(*) filter (where is_new),"
        " count(*) filter (where is_gone), count(*) filter (where change <> 0),"
        " percentile_cont(%s::float8[]) within group (order by change)"
        f" from ({difference(use_case, before, after)}) d"
    )


def difference_bands(use_case: UseCase, before: str, after: str) -> str:
    """A row each pair of different bands that rows moved between: before, after, rows."""
    return (
        f"select band_before, band_after, count(*) from ({difference(use_case, before, after)}) d"
        " where band_before <> band_after group by 1, 2 order by 3 desc, 1, 2"
    )


def difference_largest(use_case: UseCase, before: str, after: str) -> str:
    """The rows whose score has changed most; parameter: how many."""
    return (
        "select key, score_before, score_after, band_before, band_after"
        f" from ({difference(use_case, before, after)}) d where change <> 0"
        " order by abs(change) desc, key limit %s"
    )
