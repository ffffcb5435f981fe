"""Snapshots, events and candidates, over several sources and keys, through the job's own tasks."""

from collections.abc import Sequence
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from payment_cases import AS_OF, FRAUD, PAIRS, PAYMENTS, RISK, SPENDERS, SPENDING, TABLES, TOUCHED

from nightshift.features import extract, job, vectors
from nightshift.spec import Candidates, EveryEvent, Measure, Nights, Ratio, Source, UseCase

BUCKETS = 5
NIGHTS = tuple(AS_OF - timedelta(days=days) for days in (33, 2, 1, 0))
KNOWN = AS_OF + timedelta(days=5)


def months_of(
    root: Path, source: Source, key: str, tables: dict[str, pa.Table]
) -> tuple[job.Month, ...]:
    """A source as the extract keeps it."""
    table = tables[source.name]
    landed = np.array([f"{day:%Y-%m}" for day in table[source.landed_date].to_pylist()])
    months = []
    for month in sorted(set(landed)):
        file = root / source.name / key / month / extract.FILE
        file.parent.mkdir(parents=True, exist_ok=True)
        rows = table.filter(pa.array(landed == month))
        extract.write(file, rows, source, key, BUCKETS)
        months.append(job.Month(f"{month}-01", file, f"{source.name} {rows.num_rows}"))
    return tuple(months)


def through_the_job(
    root: Path,
    wanted: UseCase,
    nights: Sequence[date],
    known: date | None,
    hindsight: date | None = None,
    nights_apart: Sequence[Path] = (),
) -> list[dict[str, Any]]:
    """All vectors, from the files of all buckets, as the stage runs its tasks."""
    months = {
        (source.name, key): months_of(root / "events", source, key, TABLES)
        for source, key in wanted.streams
    }
    target = root / wanted.name
    target.mkdir(parents=True)
    keys = sorted({key for _, key in wanted.streams}, key=lambda key: key == wanted.key)
    rows: list[dict[str, Any]] = []
    for key in keys:
        for bucket in range(BUCKETS):
            done = job.run(
                job.Work(
                    wanted, key, months, tuple(nights), known, root / "state", target,
                    job.code_sha256(), bucket, BUCKETS, hindsight, tuple(nights_apart),
                )
            )  # fmt: skip
            assert isinstance(done, job.Done), done
            for part in done.parts:
                rows += pq.read_table(part.file).to_pylist()
    return in_order(rows, wanted)


def in_memory(wanted: UseCase, nights: Sequence[date], known: date | None) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for batch, columns in vectors.vectors(vectors.InMemory(wanted, TABLES, known), nights):
        names = {name: batch.columns[name].to_pylist() for name in wanted.vector_key}
        days = pa.array(batch.as_of.astype(np.int32)).cast(pa.date32()).to_pylist()
        table = names | {"snapshot": days} | {n: v.to_pylist() for n, v in columns.items()}
        found += [dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)]
    return in_order(found, wanted)


def in_order(rows: list[dict[str, Any]], wanted: UseCase) -> list[dict[str, Any]]:
    return sorted(rows, key=lambda row: (str(row.get("snapshot")), row[wanted.vector_key[0]],
                                         row[wanted.vector_key[-1]]))  # fmt: skip


@pytest.mark.parametrize("wanted", [FRAUD, PAIRS, SPENDERS], ids=lambda wanted: wanted.name)
def test_files_of_buckets_give_the_bits_that_whole_tables_give(
    tmp_path: Path, wanted: UseCase
) -> None:
    rows = through_the_job(tmp_path, wanted, NIGHTS, KNOWN)

    assert rows == in_memory(wanted, NIGHTS, KNOWN)
    assert len(rows) > 20
    assert {row["snapshot"] for row in rows} == set(NIGHTS)
    assert {row["label"] for row in rows} == {0, 1}
    filled = [name for name in wanted.feature_names if any(row[name] for row in rows)]
    assert filled == list(wanted.feature_names), "no feature is empty or zero everywhere"


@pytest.mark.parametrize("wanted", [FRAUD, PAIRS, SPENDERS], ids=lambda wanted: wanted.name)
def test_a_night_equals_its_snapshot_in_a_training_set(tmp_path: Path, wanted: UseCase) -> None:
    night = through_the_job(tmp_path / "a", wanted, [AS_OF], None)
    trained = through_the_job(tmp_path / "b", wanted, NIGHTS, KNOWN)

    of_that_night = [
        {n: value for n, value in row.items() if n not in ("snapshot", "label", "missed")}
        for row in trained
        if row["snapshot"] == AS_OF
    ]
    if wanted.mode == "candidate":  # entities without a relevant item are not trained on
        some = {row["customer_id"] for row in of_that_night}
        night = [row for row in night if row["customer_id"] in some]
    assert of_that_night == night != []


@pytest.mark.parametrize("wanted", [FRAUD, PAIRS, SPENDERS], ids=lambda wanted: wanted.name)
def test_nights_together_write_the_bytes_that_each_writes_alone(
    tmp_path: Path, wanted: UseCase
) -> None:
    through_the_job(tmp_path, wanted, [AS_OF], None)
    folders = tuple(tmp_path / str(night) for night in NIGHTS)
    for folder in folders:
        folder.mkdir()
    through_the_job(tmp_path / "together", wanted, NIGHTS, None, nights_apart=folders)

    def vectors_in(folder: Path) -> dict[str, bytes]:
        return {file.name: file.read_bytes() for file in folder.glob("part-*.parquet")}

    assert vectors_in(tmp_path / wanted.name) == vectors_in(folders[-1]) != {}
    assert all(vectors_in(folder) for folder in folders)


@pytest.mark.parametrize("wanted", [FRAUD, SPENDERS], ids=lambda wanted: wanted.name)
def test_hindsight_sees_what_landed_late(tmp_path: Path, wanted: UseCase) -> None:
    night = through_the_job(tmp_path / "a", wanted, [AS_OF], None)
    later = through_the_job(tmp_path / "b", wanted, [AS_OF], None, hindsight=date.max)

    names = wanted.vector_key
    assert {tuple(row[n] for n in names) for row in night} <= {
        tuple(row[n] for n in names) for row in later
    }
    assert [row for row in later if row not in night], "of a late payment, or a late report"


def own(*measures: Measure) -> EveryEvent:
    return EveryEvent(source=PAYMENTS, own=measures)


def database() -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect()
    for name, table in TABLES.items():
        connection.register(name, table)
    return connection


SPENDING_SQL = """
    (select count(*) from payments p where {of} and p.customer_id = e.customer_id
       and p.paid_at >= e.at - interval 7 day) as customer_payment_count_7d,
    (select avg(amount) from payments p where {of} and p.customer_id = e.customer_id
       and p.paid_at >= e.at - interval 30 day) as customer_amount_mean_30d,
    (select is_member::double from customers p where p.customer_id = e.customer_id
       and p.valid_from < e.at and p.landed_date < e.snapshot
       order by valid_from desc, landed_date desc, is_member desc limit 1)
       as customer_member_last_all"""
RISK_SQL = """
    (select count(*) from payments p where {of} and p.terminal_id = e.terminal_id
       and p.paid_at >= e.at - interval 1 day) as terminal_payment_count_1d,
    (select count(*) filter (where is_fraud and reported_on < e.snapshot)
       / nullif(count(*), 0)
       from payments p where {of} and p.terminal_id = e.terminal_id
       and p.paid_at >= e.at - interval 37 day and p.paid_at < e.at - interval 7 day)
       as terminal_fraud_rate,
    (select coalesce(sum(amount), 0)::double from payments p where {of}
       and p.terminal_id = e.terminal_id and p.customer_id = e.customer_id)
       as pair_amount_sum_all"""
SEEN = "p.paid_at < e.at and p.landed_date < e.snapshot"


def require_equal(rows: list[dict[str, Any]], query: str, names: Sequence[str]) -> None:
    """Compare rows with those of a query, by its first columns, as many as are ``names``."""
    found = database().sql(query)
    expected = {tuple(row[: len(names)]): row[len(names) :] for row in found.fetchall()}
    actual = {tuple(row[name] for name in names): row for row in rows}
    assert actual.keys() == expected.keys()
    assert len(expected) > 20
    for key, values in expected.items():
        for name, value in zip(found.columns[len(names) :], values, strict=True):
            assert actual[key][name] == (None if value is None else pytest.approx(value)), (
                key, name,
            )  # fmt: skip


def test_events_equal_plain_sql(tmp_path: Path) -> None:
    nights = ", ".join(f"date '{night}'" for night in NIGHTS)
    require_equal(
        through_the_job(tmp_path, FRAUD, NIGHTS, KNOWN),
        f"""
        with e as (
            select *, paid_at as at, paid_at::date + 1 as snapshot from payments
            where amount > 0 and customer_id is not null and landed_date = paid_at::date
            and paid_at::date + 1 in ({nights})
        ), found as (select e.payment_id, {SPENDING_SQL} from e)
        select e.payment_id, found.* exclude (payment_id), {RISK_SQL},
            amount::double as payment_amount,
            (hour(paid_at) < 7)::int::double as payment_is_early,
            amount::double / nullif(customer_amount_mean_30d, 0) as amount_to_habit,
            (is_fraud and reported_on < date '{KNOWN}')::int as label
        from e join found using (payment_id)
        """.format(of=SEEN),
        ("payment_id",),
    )


CANDIDATES_SQL = """
    with n(snapshot) as (values {nights}), seen as (
        select snapshot, paid_at >= snapshot - interval 60 day as is_recent, p.* from payments p, n
        where amount > 0 and paid_at < snapshot and landed_date < snapshot
    ), member as (
        select snapshot, customer_id,
            (select region from seen s where s.snapshot = seen.snapshot and region is not null
                and s.customer_id = seen.customer_id
                order by paid_at desc, landed_date desc, region desc limit 1) as region
        from seen where customer_id is not null and is_recent group by all
    ), sold as (
        select snapshot, terminal_id, min(paid_at) as since from seen where terminal_id is not null
        group by all having bool_or(is_recent) and not bool_or(amount >= 89)
    ), line as (
        select distinct snapshot, session_id, terminal_id from seen
        where session_id is not null and terminal_id is not null
        and paid_at >= snapshot - interval 40 day and landed_date >= snapshot - interval 40 day
    ), of_item as (
        select snapshot, terminal_id, count(*) as orders from line group by all
    ), any_near as (
        select snapshot, a.terminal_id as one, b.terminal_id as other,
            count(*) / (sqrt(any_value(x.orders) * any_value(y.orders)) + 1) as nearness
        from line a join line b using (snapshot, session_id)
        join of_item x using (snapshot) join of_item y using (snapshot)
        where a.terminal_id <> b.terminal_id and x.terminal_id = a.terminal_id
        and y.terminal_id = b.terminal_id
        group by all
    ), near as (
        select * from any_near
        qualify row_number() over (partition by snapshot, one order by nearness desc, other) <= 3
    ), proposed as (
        select snapshot, customer_id, terminal_id, 'bought_before' as generator, 4 as most,
            count(*) as score, max(paid_at) as last_at
        from seen join member using (snapshot, customer_id)
        where is_recent group by all
        union all
        select b.snapshot, customer_id, other, 'bought_together', 2, sum(nearness), null
        from (select distinct snapshot, customer_id, terminal_id from seen
              where paid_at >= snapshot - interval 40 day) b
        join member using (snapshot, customer_id)
        join near on near.snapshot = b.snapshot and near.one = b.terminal_id group by all
        union all
        select snapshot, m.customer_id, s.terminal_id, 'popular_lately', 2,
            count(distinct s.customer_id), null
        from member m join seen s using (snapshot)
        where s.paid_at >= snapshot - interval 20 day group by all
        union all
        select m.snapshot, m.customer_id, s.terminal_id, 'popular_within_region', 2,
            count(distinct s.customer_id), null
        from member m join seen s on s.snapshot = m.snapshot and s.region = m.region
        where s.paid_at >= m.snapshot - interval 30 day group by all
        union all
        select snapshot, m.customer_id, s.terminal_id, 'new_items', 1,
            count(distinct s.customer_id), null
        from member m join seen s using (snapshot) join sold using (snapshot, terminal_id)
        where s.paid_at >= snapshot - interval 30 day and since >= snapshot - interval 30 day
        group by all
    ), ranked as (
        select snapshot, customer_id, terminal_id, generator, most, score, row_number() over (
            partition by snapshot, customer_id, generator
            order by score desc, last_at desc, terminal_id) as rank
        from proposed join sold using (snapshot, terminal_id)
        where customer_id is not null and score > 0
    ), pair as (
        select snapshot, customer_id, terminal_id, snapshot::timestamp as at,
            {columns}
        from ranked group by all having bool_or(rank <= most)
    ), e as (
        select * from pair
        qualify row_number() over (
            partition by snapshot, customer_id order by {fused} desc, terminal_id) <= {keep}
    ), relevant as (
        select distinct snapshot, customer_id, terminal_id from payments, n
        where customer_id is not null and terminal_id is not null and paid_at >= snapshot
        and paid_at < snapshot + interval 5 day and landed_date < date '{known}'
    )
    """


def test_candidates_equal_plain_sql(tmp_path: Path) -> None:
    assert isinstance(PAIRS.population, Candidates)
    columns = ", ".join(
        f"max({what}) filter (where generator = '{name}' {some}) as candidate_{name}_{what}"
        for name in PAIRS.population.names
        for what, some in (("rank", "and rank <= most"), ("score", ""))
    )
    nights = ", ".join(f"(date '{night}')" for night in NIGHTS)
    fused = " + ".join(
        f"coalesce({each.weight} / (60.0 + candidate_{name}_rank), 0)::double"
        for name, each in zip(PAIRS.population.names, PAIRS.population.generators, strict=True)
    )
    ctes = CANDIDATES_SQL.format(
        nights=nights, known=KNOWN, columns=columns, fused=fused, keep=PAIRS.population.keep
    )
    query = f"""{ctes}
        select e.* exclude ("at"), {SPENDING_SQL}, {RISK_SQL},
            (r.terminal_id is not null)::int as label,
            (select count(*) from relevant x
              where x.snapshot = e.snapshot and x.customer_id = e.customer_id) -
            (select count(*) from relevant x join e f using (snapshot, customer_id, terminal_id)
              where x.snapshot = e.snapshot and x.customer_id = e.customer_id) as missed
        from e left join relevant r using (snapshot, customer_id, terminal_id)
        where exists (select 1 from relevant x
            where x.snapshot = e.snapshot and x.customer_id = e.customer_id)
        """.replace("{of}", SEEN)

    rows = through_the_job(tmp_path, PAIRS, NIGHTS, KNOWN)

    require_equal(rows, query, ("snapshot", "customer_id", "terminal_id"))
    assert {row["missed"] > 0 for row in rows} == {True, False}


def test_what_other_entities_tell_a_snapshot_equals_plain_sql(tmp_path: Path) -> None:
    nights = ", ".join(f"(date '{night}')" for night in NIGHTS)
    require_equal(
        through_the_job(tmp_path, SPENDERS, NIGHTS, KNOWN),
        f"""
        with n(snapshot) as (values {nights}), e as (
            select distinct customer_id, snapshot, snapshot::timestamp as at
            from payments p, n
            where customer_id is not null and paid_at >= snapshot - interval 60 day
            and paid_at < snapshot and landed_date < snapshot
        ), t as (
            select terminal_id, snapshot, count(*) filter (
                where paid_at >= snapshot - interval 37 day
                and paid_at < snapshot - interval 7 day
            ) as counted
            from payments p, n where paid_at < snapshot and landed_date < snapshot
            group by all
        )
        select snapshot, customer_id, {SPENDING_SQL},
            (select avg(counted) from payments p join t using (terminal_id)
              where {{of}} and p.customer_id = e.customer_id and t.snapshot = e.snapshot
              and p.paid_at >= e.at - interval 30 day) as customer_terminal_payments_mean_30d,
            (select counted from t where t.snapshot = e.snapshot and t.terminal_id = (
                select terminal_id from payments p where {{of}}
                and p.customer_id = e.customer_id and terminal_id is not null
                order by paid_at desc, landed_date desc, terminal_id desc limit 1
            )) as customer_terminal_payments_last_all,
            exists (select 1 from customers p where p.customer_id = e.customer_id
                and p.valid_from >= e.at and p.valid_from < e.at + interval 5 day
                and p.landed_date < date '{KNOWN}')::int as label
        from e
        """.format(of=SEEN),
        ("snapshot", "customer_id"),
    )


@pytest.mark.parametrize(
    ("wanted", "changes", "message"),
    [
        (FRAUD, {"nights": Nights(every_days=7)}, "every 7 nights would leave out those of the"),
        (FRAUD, {"key": "merchant_id"}, "key 'merchant_id' is not a column of payments"),
        (
            FRAUD,
            {"feature_groups": (TOUCHED,), "ratios": ()},
            "goes through other entities, which is for snap",
        ),
        (SPENDERS, {"feature_groups": (RISK,)}, "a row that is scored has .'customer_id',."),
        (SPENDERS, {"key": "terminal_id"}, "the population is of .'customer_id',."),
        (SPENDERS, {"label": PAIRS.label}, "the label is of .'customer_id', 'terminal_id'.,"),
        (SPENDERS, {"label": FRAUD.label}, "is no label of a customer"),
        (PAIRS, {"label": SPENDERS.label}, "the label is of .'customer_id',., what is scored"),
        (
            FRAUD,
            {"feature_groups": (SPENDING.model_copy(update={"name": "risk"}), RISK)},
            "two differ that are named risk",
        ),
        (
            FRAUD,
            {
                "population": own(Measure(name="told", expression="is_fraud", type="boolean")),
                "ratios": (),
            },
            "own 'told' reads is_fraud, which is not known before the event is reported",
        ),
        (
            FRAUD,
            {"ratios": (Ratio(name="x", numerator="payment_amount", denominator="nothing"),)},
            "ratio 'x': no feature 'nothing'",
        ),
    ],
)
def test_what_does_not_fit_a_mode_is_refused(
    wanted: UseCase, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        UseCase(**(dict(wanted) | changes))


@pytest.mark.parametrize(
    ("measure", "message"),
    [
        (Measure(name="x", column="customer_id"), "is of type string, and models take numbers"),
        (Measure(name="x", column="amount", where="amount > 0"), "takes neither `where`, `known`"),
        (Measure(name="x", expression="price * 2", type="double"), "reads 'price', which is not"),
    ],
)
def test_what_an_event_does_not_have_itself_is_refused(measure: Measure, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        own(measure)


def test_events_are_named_by_a_column() -> None:
    columns = {name: kind for name, kind in PAYMENTS.columns.items() if name != "payment_id"}
    with pytest.raises(ValueError, match="names each event by 'payment_id', which is not among"):
        EveryEvent(source=PAYMENTS.model_copy(update={"columns": columns}))
