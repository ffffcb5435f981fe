"""What is kept of publications: listed, compared, and shown to readers again."""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date, datetime

from psycopg2.errors import LockNotAvailable
from psycopg2.extensions import connection as Connection
from psycopg2.extensions import cursor as Cursor

from nightshift.errors import NightshiftError
from nightshift.io.warehouse import connect, holding, migrate, recorded_run, session
from nightshift.publishing import sql
from nightshift.settings import Settings
from nightshift.spec import UseCase

log = logging.getLogger(__name__)

NEWEST = 8
"""Partitions that ``prune`` leaves among the newest, over which each query of ``_latest`` plans."""
LOCK_MILLISECONDS = (1, 5)
"""How long a move to the archive may hold readers up while it waits for those before it: at first,
and where so little was not enough, in the second half of ``MOVE_SECONDS``."""
MOVE_SECONDS = 10.0
"""How long it tries again."""
DETACH_SECONDS = 600
"""How long a detachment waits for transactions that read."""

QUANTILES = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)


@dataclass(frozen=True)
class Kept:
    """One publication.

    Attributes:
        published_at: when it was attached; who sees it is told by ``is_seen``.
        is_seen: readers see it, for its ``as_of``.
        is_there: its rows are still kept.
        passed: rules of its last audit that it passed; of ``applied`` rules. 0 where it is from
            before audits were kept.
    """

    publication_id: str
    use_case: str
    as_of: date
    model_version: str
    rows: int
    published_at: datetime
    is_seen: bool
    is_there: bool
    passed: int
    applied: int


@dataclass(frozen=True)
class Changed:
    """A row in two publications."""

    key: str
    score_before: float
    score_after: float
    band_before: str
    band_after: str


@dataclass(frozen=True)
class Difference:
    """What has changed from one publication to another.

    Attributes:
        rows_in_both: rows whose key is in both; ``rows_changed`` of them have another score.
        bands: (band before, band after) → rows that moved, most first.
        quantiles: share → quantile of the score's change, after minus before; empty without rows
            in both.
        largest: the rows whose score has changed most, first the largest.
    """

    before: Kept
    after: Kept
    rows_in_both: int
    rows_new: int
    rows_gone: int
    rows_changed: int
    bands: Mapping[tuple[str, str], int]
    quantiles: Mapping[float, float]
    largest: Sequence[Changed]


def publications(settings: Settings, use_case: UseCase | None = None) -> list[Kept]:
    """Every publication there was, of one use case or of all; by date, the newest first."""
    migrate(settings)
    with connect(settings) as connection:
        return _kept(connection, None if use_case is None else use_case.name)


def diff(
    settings: Settings, use_cases: Sequence[UseCase], before: str, after: str, largest: int = 10
) -> Difference:
    """Compare two publications of a use case, by key.

    Args:
        before: the id of one, or how it begins.
        after: of the other.
        largest: how many of the largest changes are told.

    Raises:
        NightshiftError: when there is no such publication, its rows are no longer kept, or the two
            are of different use cases.
    """
    migrate(settings)
    with connect(settings) as connection, connection.cursor() as cursor:
        known = _kept(connection)
        old, new = (_find(known, given) for given in (before, after))
        if old.use_case != new.use_case:
            raise NightshiftError(
                f"{old.publication_id} is of {old.use_case}, {new.publication_id} of"
                f" {new.use_case}",
                "compare two publications of one use case: `nightshift publications list`",
            )
        use_case = next(each for each in use_cases if each.name == old.use_case)
        both = (use_case, old.publication_id, new.publication_id)
        cursor.execute(sql.difference_figures(*both), (list(QUANTILES),))
        rows_in_both, rows_new, rows_gone, rows_changed, quantiles = cursor.fetchone()
        cursor.execute(sql.difference_bands(*both))
        bands = {(band_before, band_after): rows for band_before, band_after, rows in cursor}
        cursor.execute(sql.difference_largest(*both), (largest,))
        return Difference(
            before=old,
            after=new,
            rows_in_both=rows_in_both,
            rows_new=rows_new,
            rows_gone=rows_gone,
            rows_changed=rows_changed,
            bands=bands,
            quantiles=dict(zip(QUANTILES, quantiles or (), strict=False)),
            largest=[Changed(*row) for row in cursor.fetchall()],
        )


def roll_back(
    settings: Settings, use_case: UseCase, as_of: date, by: str, reason: str, to: str | None = None
) -> Kept:
    """Show readers the publication that they saw before for ``as_of``; twice goes back again.

    A night that is run again with the same scores leaves it so.

    Args:
        by: who decides.
        reason: why; kept for good.
        to: the id of another that readers have seen for this date, or how it begins.

    Returns:
        The publication that readers see from now on.

    Raises:
        NightshiftError: when there is none to go back to, or its rows are no longer kept.
    """
    day = f"{use_case.name}:{as_of.isoformat()}"
    with (
        recorded_run(settings, "rollback", as_of, use_case.name) as run,
        holding(settings, exclusive=[f"publish:{day}"]),
        connect(settings) as connection,
        connection.cursor() as cursor,
    ):
        cursor.execute(
            "select from_publication_id, to_publication_id from ops.pointer_moves"
            " where use_case = %s and as_of = %s order by pointer_move_id",
            (use_case.name, as_of),
        )
        moves = cursor.fetchall()
        listed = f"see `nightshift publications list {use_case.name}`"
        known = [each for each in _kept(connection, use_case.name) if each.as_of == as_of]
        current = next((each for each in known if each.is_seen), None)
        if current is None:
            raise NightshiftError(f"nothing of {use_case.name} is published for {as_of}", listed)
        wanted = to or (moves[-1][0] if moves else None)
        if wanted is None:
            raise NightshiftError(
                f"{use_case.name} at {as_of}: {current.publication_id} is the first publication,"
                " and there is none before it to go back to",
                "score with another model: `nightshift rollback "
                f"{use_case.name}`, then `nightshift nightly --as-of {as_of}`",
            )
        target = _find(known, wanted)
        if target.publication_id not in {each for move in moves for each in move}:
            raise NightshiftError(
                f"readers have never seen {target.publication_id}: it was not published",
                f"publish it: `nightshift publish --as-of {as_of}`",
            )
        if target.is_seen:
            raise NightshiftError(f"readers see {target.publication_id} already", listed)
        _show(cursor, [target], by, reason)
        run.result = {
            "from": current.publication_id, "to": target.publication_id, "by": by, "reason": reason
        }  # fmt: skip
    log.info(
        "%s: %s of %s instead of %s", use_case.table, target.publication_id, as_of,
        current.publication_id,
    )  # fmt: skip
    return target


@dataclass(frozen=True)
class RolledBack:
    """What was done for many dates at once.

    Attributes:
        shown: the publications that readers see from now on.
        stayed: those that they see still: none before it, or its rows are no longer kept.
        forward: of ``shown`` those that a person had rolled back from.
    """

    shown: tuple[Kept, ...]
    stayed: tuple[Kept, ...]
    forward: tuple[Kept, ...]


def roll_back_nights(
    settings: Settings,
    use_cases: Sequence[UseCase],
    first: date,
    last: date,
    by: str,
    reason: str,
    *,
    is_once: bool = False,
) -> RolledBack:
    """Show readers the publications that they saw before, of all dates at once; as a backfill moves
    them. Twice goes back again.

    Args:
        first, last: of the dates, both included; those that are published count.
        by: who decides.
        reason: why; kept for good.
        is_once: the reason names what asks, and what moved for it already does not move again.

    Raises:
        NightshiftError: when nothing is published, or nothing can go back.
    """
    names = [use_case.name for use_case in use_cases]
    asked = f"{', '.join(names)} from {first} to {last}"
    listed = "see `nightshift publications list`"
    single = names[0] if len(names) == 1 else None
    with recorded_run(settings, "rollback", last, single) as run:
        with connect(settings) as connection, connection.cursor() as cursor:
            cursor.execute(
                "select use_case, as_of from predictions.pointers"
                " where use_case = any(%s) and as_of between %s and %s",
                (names, first, last),
            )
            days = set(cursor.fetchall())
        if not days:
            raise NightshiftError(f"nothing of {asked} is published", listed)
        with (
            holding(settings, exclusive=[f"publish:{name}:{as_of}" for name, as_of in days]),
            connect(settings) as connection,
            connection.cursor() as cursor,
        ):
            known = {each.publication_id: each for each in _kept(connection)}
            cursor.execute(
                "select use_case, as_of, from_publication_id, person, reason from ops.pointer_moves"
                " where use_case = any(%s) and as_of between %s and %s order by pointer_move_id",
                (names, first, last),
            )
            moves: dict[tuple[str, date], list[tuple[str | None, ...]]] = {}
            for name, as_of, *move in cursor.fetchall():
                moves.setdefault((name, as_of), []).append(tuple(move))
            moving, there, stayed, forward = [], [], [], []
            for seen in known.values():
                day = (seen.use_case, seen.as_of)
                if not seen.is_seen or day not in days:
                    continue
                before, person, _ = moves[day][-1]
                target = known.get(before or "")
                if is_once and any(move[1:] == (by, reason) for move in moves[day]):
                    there.append(seen)
                elif target is None or not target.is_there:
                    stayed.append(seen)
                else:
                    moving.append(target)
                    forward += [target] if person else []
            if not moving and not there:
                raise NightshiftError(
                    f"{asked}: each of the {len(stayed)} publications is the first of its date, or"
                    " the rows of the one before are no longer kept",
                    listed,
                )
            _show(cursor, moving, by, reason)
        run.result = {
            "shown": [each.publication_id for each in moving],
            "stayed": [each.publication_id for each in stayed],
            "by": by,
            "reason": reason,
        }
    log.info("%s: %d rolled back, %d stay", asked, len(moving), len(stayed))
    return RolledBack((*there, *moving), tuple(stayed), tuple(forward))


def _show(cursor: Cursor, targets: Sequence[Kept], by: str, reason: str) -> None:
    """Move the pointers to these, in the name of a person."""
    cursor.execute(
        "select set_config('nightshift.person', %s, true),"
        " set_config('nightshift.reason', %s, true)",
        (by, reason),
    )
    cursor.execute(
        "update predictions.pointers as p set publication_id = t.publication_id, moved_at = now()"
        " from unnest(%s::text[], %s::date[], %s::text[]) as t (use_case, as_of, publication_id)"
        " where p.use_case = t.use_case and p.as_of = t.as_of",
        (
            [each.use_case for each in targets], [each.as_of for each in targets],
            [each.publication_id for each in targets],
        ),
    )  # fmt: skip


@dataclass(frozen=True)
class Pruned:
    """What was done: ids of publications, by use case.

    Attributes:
        dropped: whose rows are no longer kept.
        archived: moved to the archive, where readers see them as before.
        discarded: never published: what an audit had refused, or a killed run had left.
        waiting: left for the next time, since transactions are reading all the while.
    """

    dropped: Mapping[str, Sequence[str]]
    archived: Mapping[str, Sequence[str]]
    discarded: Mapping[str, Sequence[str]]
    waiting: Mapping[str, Sequence[str]]


def prune(settings: Settings, use_cases: Sequence[UseCase], as_of: date) -> Pruned:
    """Drop the publications that their use case's ``retention`` no longer keeps, never one that a
    pointer names, and after its ``days`` what was staged and never published; then move all but the
    newest to the archive. No reader waits for it.

    Killed at any instant, the next run completes it.

    Args:
        as_of: of the run, for ``ops.runs``; what is old is told by the clock.
    """
    done = Pruned({}, {}, {}, {})
    with recorded_run(settings, "prune", as_of) as run:
        for use_case in use_cases:
            dropped: list[str] = []
            discarded: list[str] = []
            archived: list[str] = []
            waiting: list[str] = []
            with holding(settings, exclusive=[f"prune:{use_case.name}"]):
                for publication_id, day in _doomed(settings, use_case):
                    is_done = _drop(settings, use_case, publication_id, day)
                    (dropped if is_done else waiting).append(publication_id)
                for publication_id, day in _never_published(settings, use_case):
                    is_done = _discard(settings, use_case, publication_id, day)
                    (discarded if is_done else waiting).append(publication_id)
                for publication_id, day in _outdated(settings, use_case):
                    is_done = _archive(settings, use_case, publication_id, day)
                    (archived if is_done else waiting).append(publication_id)
            for kind, found in (
                ("dropped", dropped), ("discarded", discarded), ("archived", archived),
                ("waiting", waiting),
            ):  # fmt: skip
                if found:
                    getattr(done, kind)[use_case.name] = found
                    log.info("%s: %s: %s", use_case.table, kind, ", ".join(found))
        run.result = asdict(done)
    return done


_DOOMED = (
    "select publication_id, as_of from ("
    "  select o.*, p.publication_id is not null as is_seen, rank() over"
    "   (partition by o.as_of order by o.published_at desc, o.publication_id) as age"
    "  from ops.publications o left join predictions.pointers p using (publication_id)"
    "  where o.use_case = %(use_case)s and o.dropped_at is null) o"
    " where not is_seen and age > %(versions)s"
    "  and published_at <= now() - make_interval(days => %(days)s)"
)


def _retained(use_case: UseCase) -> dict[str, object]:
    return {
        "use_case": use_case.name,
        "versions": use_case.retention.versions,
        "days": use_case.retention.days,
    }


def _doomed(settings: Settings, use_case: UseCase) -> list[tuple[str, date]]:
    with connect(settings) as connection, connection.cursor() as cursor:
        cursor.execute(_DOOMED, _retained(use_case))
        return list(cursor.fetchall())


def _drop(settings: Settings, use_case: UseCase, publication_id: str, as_of: date) -> bool:
    """Detach and drop, unless a run or a person has chosen it meanwhile; False to try again."""
    with holding(settings, exclusive=[f"publish:{use_case.name}:{as_of.isoformat()}"]):
        with connect(settings) as connection, connection.cursor() as cursor:
            cursor.execute(
                f"{_DOOMED} and publication_id = %(id)s",
                {**_retained(use_case), "id": publication_id},
            )
            if cursor.fetchone() is None:
                return True
            cursor.execute(
                "select p.relname, i.inhdetachpending from pg_inherits i"
                " join pg_class c on c.oid = i.inhrelid join pg_class p on p.oid = i.inhparent"
                " where c.relnamespace = %s::regnamespace and c.relname = %s",
                (sql.SCHEMA, sql.partition(use_case, publication_id)),
            )
            found = cursor.fetchone()
        if found is not None:
            parent, is_pending = found
            how = "finalize" if is_pending else "concurrently"
            with session(settings) as connection, connection.cursor() as cursor:
                connection.autocommit = True
                cursor.execute(
                    "select set_config('lock_timeout', %s, false)", (f"{DETACH_SECONDS}s",)
                )
                try:
                    cursor.execute(sql.detach(use_case, publication_id, parent, how))
                except LockNotAvailable:
                    return False
        with connect(settings) as connection, connection.cursor() as cursor:
            table = sql.quoted(sql.partition(use_case, publication_id))
            cursor.execute(f"drop table if exists {sql.SCHEMA}.{table}")
            cursor.execute(
                "update ops.publications set dropped_at = now() where publication_id = %s",
                (publication_id,),
            )
    return True


_NEVER_PUBLISHED = (
    "select right(relname, 16), as_of from ({}) t"
    " where not was_attached and since <= now() - make_interval(days => %(days)s)"
)


def _never_published(settings: Settings, use_case: UseCase) -> list[tuple[str, date]]:
    with connect(settings) as connection, connection.cursor() as cursor:
        cursor.execute(_NEVER_PUBLISHED.format(sql.loose_tables(use_case)), _retained(use_case))
        return list(cursor.fetchall())


def _discard(settings: Settings, use_case: UseCase, publication_id: str, as_of: date) -> bool:
    """Drop what was staged, unless a run stages or publishes it now; False to try again."""
    with (
        holding(settings, exclusive=[f"publish:{use_case.name}:{as_of.isoformat()}"]),
        connect(settings) as connection,
        connection.cursor() as cursor,
    ):
        cursor.execute(
            f"{_NEVER_PUBLISHED.format(sql.loose_tables(use_case))}"
            " and right(relname, 16) = %(id)s",
            {**_retained(use_case), "id": publication_id},
        )
        if cursor.fetchone() is None:
            return True
        # whoever inspects it may look as long as they like
        cursor.execute("select set_config('lock_timeout', '1s', true)")
        try:
            table = sql.quoted(sql.partition(use_case, publication_id))
            cursor.execute(f"drop table {sql.SCHEMA}.{table}")
        except LockNotAvailable:
            connection.rollback()
            return False
    return True


def _outdated(settings: Settings, use_case: UseCase) -> list[tuple[str, date]]:
    """Of the newest partitions those that are too many, oldest first.

    None of the newest date is among them: ``_latest`` does not look into the archive.
    """
    with connect(settings) as connection, connection.cursor() as cursor:
        cursor.execute(
            "select o.publication_id, o.as_of,"
            " o.as_of < (select max(as_of) from predictions.pointers where use_case = %s)"
            " from ops.publications o join pg_class c"
            "  on c.relnamespace = %s::regnamespace"
            "  and c.relname = o.use_case || '_p_' || o.publication_id"
            " join pg_inherits i on i.inhrelid = c.oid and not i.inhdetachpending"
            " join pg_class p on p.oid = i.inhparent and p.relname = %s"
            " where o.use_case = %s order by o.as_of, o.published_at",
            (use_case.name, sql.SCHEMA, sql.data_table(use_case), use_case.name),
        )
        found = cursor.fetchall()
    return [(each, day) for each, day, is_older in found[: max(0, len(found) - NEWEST)] if is_older]


def _archive(settings: Settings, use_case: UseCase, publication_id: str, as_of: date) -> bool:
    """Move a partition to the archive, between two queries of readers; False to try again.

    To leave the newest it must be alone with them for an instant, in one transaction with its
    arrival in the archive: readers see it in one of them at any time. It asks for that instant for
    some milliseconds at a time, so that nobody waits for it while it waits for a long query.
    """
    deadline = time.monotonic() + MOVE_SECONDS
    while True:
        patience = LOCK_MILLISECONDS[time.monotonic() > deadline - MOVE_SECONDS / 2]
        try:
            with connect(settings) as connection, connection.cursor() as cursor:
                cursor.execute(f"set local lock_timeout = {patience}")
                # the locks are held until the commit returns; if it is lost, nothing has happened
                cursor.execute("set local synchronous_commit = off")
                cursor.execute(sql.detach(use_case, publication_id, sql.data_table(use_case)))
                cursor.execute(sql.attach_to_archive(use_case, publication_id, as_of))
            return True
        except LockNotAvailable:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)


def _kept(connection: Connection, use_case: str | None = None) -> list[Kept]:
    with connection.cursor() as cursor:
        cursor.execute(
            "select o.publication_id, o.use_case, o.as_of, o.model_version, o.rows,"
            " o.published_at, p.publication_id is not null,"
            " exists (select from pg_inherits i where not i.inhdetachpending and i.inhrelid ="
            "  to_regclass(format('%%I.%%I', %s, o.use_case || '_p_' || o.publication_id))),"
            " count(*) filter (where a.outcome = 'passed'),"
            " count(*) filter (where a.outcome <> 'not_applied')"
            " from ops.publications o"
            " left join predictions.pointers p using (publication_id)"
            " left join (select *, rank() over (partition by publication_id"
            "   order by audited_at desc) as age from ops.audit_results) a"
            "  on a.publication_id = o.publication_id and a.age = 1"
            " where %s is null or o.use_case = %s"
            " group by o.publication_id, p.publication_id"
            " order by o.use_case, o.as_of desc, o.published_at desc",
            (sql.SCHEMA, use_case, use_case),
        )
        return [Kept(*row) for row in cursor.fetchall()]


def _find(known: Sequence[Kept], given: str) -> Kept:
    """The publication whose id is or begins with what was given, and whose rows are there."""
    found = [each for each in known if given and each.publication_id.startswith(given)]
    if len(found) != 1:
        raise NightshiftError(
            f"{len(found) or 'no'} publications have an id that begins with {given!r}",
            "name one of `nightshift publications list`",
        )
    if not found[0].is_there:
        raise NightshiftError(
            f"the rows of {given} are no longer kept",
            "run its night again, or compare and show one that is kept: "
            "`nightshift publications list`",
        )
    return found[0]
