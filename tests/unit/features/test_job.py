"""A task's work, without Spark: rows of months to vectors, and what it keeps on the way."""

import resource
from collections.abc import Sequence
from dataclasses import replace
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nightshift.errors import NightshiftError
from nightshift.features import extract, job, state
from nightshift.spec import Aggregate, UseCase
from nightshift.use_cases import CHURN

BUCKETS = 16
AS_OF = date(2011, 5, 1)
MONTHS = ("2010-12", "2011-01", "2011-02", "2011-03", "2011-04")
TYPES = {
    "string": pa.string(), "boolean": pa.bool_(), "integer": pa.int64(),
    "decimal": pa.decimal128(18, 4), "timestamp": pa.timestamp("us"), "date": pa.date32(),
}  # fmt: skip


def lines(month: str, rows: int = 60, customers: Sequence[str | None] = ()) -> pa.Table:
    """Rows that landed in a month, in the columns of the lake, in no order."""
    random = np.random.default_rng(int(month.replace("-", "")))
    names = customers or [*(f"c{n}" for n in range(9)), None, "Zoë Ωmega", "x" * 5_000]
    found: list[dict[str, Any]] = []
    for number in range(rows):
        at = datetime.fromisoformat(f"{month}-01") + timedelta(
            seconds=int(random.integers(27 * 86_400))
        )
        found.append(
            {
                "customer_id": names[random.integers(len(names))],
                "invoice_id": f"{month}-{number // 3}", "product_id": f"p{random.integers(9)}",
                "country": "France", "is_cancellation": bool(random.random() < 0.2),
                "is_product": True, "quantity": int(random.integers(1, 5)), "unit_price": 2.5,
                "line_amount": 5.0, "invoiced_at": at, "invoiced_date": at.date(),
                "landed_date": at.date(),
            }
        )  # fmt: skip
    columns = {
        name: pa.array([row[name] for row in found]).cast(TYPES[kind])
        for name, kind in CHURN.source.columns.items()
    }
    columns |= {n: c.dictionary_encode() for n, c in columns.items() if pa.types.is_string(c.type)}
    return pa.table(columns)


def landed(folder: Path, tables: dict[str, pa.Table]) -> tuple[job.Month, ...]:
    """The months as the extract writes them."""
    months = []
    for month, table in tables.items():
        file = folder / month / extract.FILE
        file.parent.mkdir(parents=True, exist_ok=True)
        extract.write(file, table, CHURN.source, "customer_id", BUCKETS)
        months.append(job.Month(month, file, str(hash(file.read_bytes()))))
    return tuple(months)


def work(
    use_case: UseCase, months: tuple[job.Month, ...], root: Path, target: Path, bucket: int
) -> job.Work:
    return job.Work(
        use_case=use_case,
        key=use_case.key,
        months={(use_case.source.name, use_case.key): months},
        snapshots=(AS_OF,),
        label_known_as_of=None,
        state=root / "state",
        target=target,
        code=job.code_sha256(),
        bucket=bucket,
        buckets=BUCKETS,
    )


def run(
    root: Path, months: tuple[job.Month, ...], use_case: UseCase = CHURN
) -> tuple[list[dict[str, Any]], set[str]]:
    """The vectors of all buckets, and the months whose rows were read."""
    target = root / "target"
    target.mkdir(exist_ok=True)
    rows: list[dict[str, Any]] = []
    read: set[str] = set()
    for bucket in range(BUCKETS):
        done = job.run(work(use_case, months, root, target, bucket))
        assert isinstance(done, job.Done), done
        read |= {month.rpartition("/")[2] for month in done.months_read}
        for part in done.parts:
            table = pq.read_table(part.file)
            assert table.num_rows == part.rows
            rows += table.to_pylist()
    return sorted(rows, key=lambda row: row["customer_id"]), read


@pytest.fixture
def months(tmp_path: Path) -> tuple[job.Month, ...]:
    return landed(tmp_path / "events", {month: lines(month) for month in MONTHS})


def test_a_second_run_reads_no_rows_and_gives_the_same(
    tmp_path: Path, months: tuple[job.Month, ...]
) -> None:
    first, read = run(tmp_path, months)
    assert read == set(MONTHS)
    assert {"Zoë Ωmega", "x" * 5_000, "c0"} <= {row["customer_id"] for row in first}

    assert run(tmp_path, months) == (first, set())


def test_a_night_reads_the_month_that_has_changed(
    tmp_path: Path, months: tuple[job.Month, ...]
) -> None:
    before, _ = run(tmp_path, months)
    more = pa.concat_tables([lines(MONTHS[-1]), lines(MONTHS[-1], 5, ["new"])]).unify_dictionaries()
    changed = (*months[:-1], *landed(tmp_path / "later", {MONTHS[-1]: more}))

    after, read = run(tmp_path, changed)

    assert read == {MONTHS[-1]}
    assert after != before
    (tmp_path / "scratch").mkdir()
    assert after == run(tmp_path / "scratch", changed)[0]


def test_a_month_that_has_become_old_is_joined_to_those_before(
    tmp_path: Path, months: tuple[job.Month, ...]
) -> None:
    run(tmp_path, months[:-1])

    after, read = run(tmp_path, months)

    assert read == {MONTHS[-1]}
    (tmp_path / "scratch").mkdir()
    assert after == run(tmp_path / "scratch", months)[0]


@pytest.mark.parametrize("damage", ["flipped", "truncated", "lost"])
def test_a_damaged_state_is_made_anew(
    tmp_path: Path, months: tuple[job.Month, ...], damage: str
) -> None:
    before, _ = run(tmp_path, months)
    for file in (tmp_path / "state").rglob("*.npz"):
        content = bytearray(file.read_bytes())
        if damage == "flipped":
            content[len(content) // 2] ^= 0xFF
            file.write_bytes(content)
        elif damage == "truncated":
            file.write_bytes(content[: len(content) // 2])
        else:
            file.unlink()

    after, read = run(tmp_path, months)

    assert after == before
    assert read == set(MONTHS)


def test_a_changed_feature_makes_its_own_group_anew(
    tmp_path: Path, months: tuple[job.Month, ...]
) -> None:
    (group,) = CHURN.feature_groups
    other = group.model_copy(
        update={"name": "prices", "entity": "price", "aggregates": group.aggregates[-4:-3],
                "ratios": ()},
    )  # fmt: skip
    both = CHURN.model_copy(update={"feature_groups": (group, other)})
    run(tmp_path, months, both)
    kept = {file: file.stat().st_mtime_ns for file in (tmp_path / "state").rglob("*.npz")}
    added = Aggregate(measure="product", aggregations=("distinct",), windows=(7,))
    changed = other.model_copy(update={"aggregates": (*other.aggregates, added)})

    run(tmp_path, months, CHURN.model_copy(update={"feature_groups": (group, changed)}))

    now = {file: file.stat().st_mtime_ns for file in (tmp_path / "state").rglob("*.npz")}
    assert {file: now[file] for file in kept} == kept
    assert {file.parent.name.split("-")[0] for file in now.keys() - kept.keys()} == {"prices"}


def test_a_damaged_month_is_named(tmp_path: Path, months: tuple[job.Month, ...]) -> None:
    content = bytearray(months[1].file.read_bytes())
    content[200:260] = bytes(60)
    months[1].file.write_bytes(content)

    with pytest.raises(NightshiftError) as error:
        for bucket in range(BUCKETS):
            extract.read(months[1].file, bucket, CHURN.source, list(CHURN.source.columns))
    assert str(months[1].file) in error.value.what

    refused = [
        job.run(work(CHURN, months, tmp_path, tmp_path, bucket)) for bucket in range(BUCKETS)
    ]
    assert any(isinstance(each, job.Refused) and "damaged" in each.what for each in refused)


def test_a_full_disk_is_an_error_and_leaves_no_state_half_written(
    tmp_path: Path, months: tuple[job.Month, ...]
) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, before[1]))
    try:
        refused = job.run(work(CHURN, months, tmp_path, tmp_path, 0))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)

    assert isinstance(refused, job.Refused)
    assert "File too large" in refused.what
    left = list((tmp_path / "state").rglob("*"))
    assert all(state.load(file) for file in left if file.is_file()), "whole, or not there"
    assert run(tmp_path, months)[1] == set(MONTHS)


def test_a_full_disk_leaves_no_part_half_written(
    tmp_path: Path, months: tuple[job.Month, ...]
) -> None:
    run(tmp_path, months)  # keeps the tiles
    (tmp_path / "new").mkdir()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, before[1]))
    try:
        refused = job.run(work(CHURN, months, tmp_path, tmp_path / "new", 0))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)

    assert isinstance(refused, job.Refused)
    assert "File too large" in refused.what
    assert list((tmp_path / "new").iterdir()) == []


def test_a_worker_with_other_code_refuses(tmp_path: Path, months: tuple[job.Month, ...]) -> None:
    refused = job.run(replace(work(CHURN, months, tmp_path, tmp_path, 0), code="other"))

    assert isinstance(refused, job.Refused)
    assert "other code" in refused.what
    assert not (tmp_path / "state").exists()


def test_a_worker_that_does_not_see_the_lake_says_so(
    tmp_path: Path, months: tuple[job.Month, ...]
) -> None:
    months[1].file.unlink()

    refused = job.run(work(CHURN, months, tmp_path, tmp_path, 0))

    assert isinstance(refused, job.Refused)
    assert str(months[1].file) in refused.what
    assert "same path on every worker" in refused.remedy


def test_an_entity_with_a_hundred_thousand_events(tmp_path: Path) -> None:
    months = landed(tmp_path, {"2011-04": lines("2011-04", 100_000, ["busy", "idle"])})
    rows, _ = run(tmp_path, months)

    assert [row["customer_id"] for row in rows] == ["busy", "idle"]
    assert sum(row["customer_purchase_count_30d"] for row in rows) > 70_000


def test_a_source_without_a_row(tmp_path: Path) -> None:
    months = landed(tmp_path, {"2011-04": lines("2011-04", 5, [None])})

    assert run(tmp_path, months) == ([], {"2011-04"})
