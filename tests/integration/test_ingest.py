"""Ingest against the real Postgres: bad input, reruns, concurrency, kills, and real files."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import date, datetime
from pathlib import Path
from typing import Any

import duckdb
import psycopg2
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nightshift.contracts import SourceContract, load_contract
from nightshift.errors import ContractError, RefusedAsOf, SettingError
from nightshift.ingest import formats
from nightshift.ingest import run as ingest_run
from nightshift.ingest.run import ingest
from nightshift.io.warehouse import connect
from nightshift.settings import PROJECT_ROOT, Settings

pytestmark = pytest.mark.usefixtures("registry_of_churn")

REAL_LANDING = PROJECT_ROOT.parent / "shared" / "data" / "landing"
HEADER = "Invoice,StockCode,Description,Quantity,InvoiceDate,Price,Customer ID,Country\n"
GOOD = "489434,85048,GLASS BALL,12,2024-01-01 07:45:00,6.95,13085,United Kingdom\n"
AS_OF = date(2024, 1, 10)


def land(settings: Settings, day: str, content: str | bytes, name: str = "order_lines.csv") -> Path:
    """Land a file; in ``GOOD`` the invoice becomes one of the day's own."""
    if isinstance(content, str):
        content = content.replace("489434", "4894" + day.replace("-", "")[-2:])
    folder = settings.landing_folder / "order_lines" / f"ds={day}"
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / name
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return file


def query(settings: Settings, sql: str) -> list[tuple]:
    with connect(settings) as connection, connection.cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchall()


def everything(settings: Settings) -> tuple[list[tuple], ...]:
    return (
        query(settings, "select * from raw.order_lines order by _file_id, _row_number"),
        query(settings, "select * from quarantine.order_lines order by _file_id, _row_number"),
        query(settings, "select * from ops.landing_files order by file_id"),
    )


def test_rows_and_ledger(warehouse: Settings) -> None:
    bad = GOOD.replace("12,", "a dozen,", 1)
    land(warehouse, "2024-01-01", HEADER + GOOD)
    land(warehouse, "2024-01-02", gzip.compress((HEADER + GOOD + bad + GOOD).encode()), "a.csv.gz")
    land(warehouse, "2024-01-10", HEADER + GOOD)

    result = ingest(warehouse, AS_OF)

    assert (result.files_seen, result.files_loaded) == (2, 2)
    assert (result.rows_in, result.rows_loaded, result.rows_quarantined) == (4, 3, 1)
    assert query(
        warehouse,
        "select _landed_date, _row_number, quantity, price::text, customer_id"
        " from raw.order_lines order by 1, 2",
    ) == [
        (date(2024, 1, 1), 1, 12, "6.9500", "13085"),
        (date(2024, 1, 2), 1, 12, "6.9500", "13085"),
        (date(2024, 1, 2), 3, 12, "6.9500", "13085"),
    ]
    assert query(
        warehouse,
        "select path, _row_number, column_name, rule, value, row_as_landed"
        " from quarantine.order_lines join ops.landing_files on file_id = _file_id",
    ) == [
        (
            "order_lines/ds=2024-01-02/a.csv.gz",
            2,
            "Quantity",
            "a whole number",
            "a dozen",
            bad.rstrip("\n").replace("13085", "•••"),
        )
    ]
    assert query(
        warehouse,
        "select path, status, rows_in, rows_loaded, rows_quarantined from ops.landing_files"
        " order by path",
    ) == [
        ("order_lines/ds=2024-01-01/order_lines.csv", "loaded", 1, 1, 0),
        ("order_lines/ds=2024-01-02/a.csv.gz", "loaded", 3, 2, 1),
    ]
    assert query(warehouse, "select status, result->>'rows_in' from ops.runs") == [
        ("succeeded", "4")
    ]


def test_loading_twice_changes_nothing(warehouse: Settings) -> None:
    land(warehouse, "2024-01-01", HEADER + GOOD + "broken\n")
    ingest(warehouse, AS_OF)
    before = everything(warehouse)

    again = ingest(warehouse, AS_OF)

    assert (again.files_seen, again.files_loaded, again.rows_in) == (1, 0, 0)
    assert everything(warehouse) == before


def test_a_second_night_loads_only_what_is_new(warehouse: Settings) -> None:
    land(warehouse, "2024-01-01", HEADER + GOOD)
    ingest(warehouse, AS_OF)
    land(warehouse, "2024-01-10", HEADER + GOOD)

    assert ingest(warehouse, date(2024, 1, 11)).files_loaded == 1


REFUSED = {
    "truncated gzip": (
        "x.csv.gz",
        gzip.compress((HEADER + GOOD * 50).encode())[:-20],
        "truncated or damaged",
    ),
    "missing column": ("x.csv", (HEADER + GOOD).replace(",Price", "").encode(), "missing 'Price'"),
    "extra column": (
        "x.csv",
        (HEADER + GOOD).replace("Country\n", "Country,Colour\n").encode(),
        "unexpected 'Colour'",
    ),
    "duplicated header": (
        "x.csv",
        (HEADER + GOOD).replace("StockCode", "Invoice").encode(),
        "twice 'Invoice'",
    ),
    "empty file": ("x.csv", b"", "empty, without even a header"),
    "empty gzip": ("x.csv.gz", gzip.compress(b""), "empty, without even a header"),
    "not UTF-8": ("x.csv", (HEADER + GOOD).encode() + b"\xff\n", "not UTF-8: byte 0xff in line 3"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_file_broken_as_a_whole_harms_no_other(warehouse: Settings, case: str) -> None:
    name, content, reason = REFUSED[case]
    land(warehouse, "2024-01-01", HEADER + GOOD)
    land(warehouse, "2024-01-02", content, name)
    land(warehouse, "2024-01-03", HEADER + GOOD)

    with pytest.raises(ContractError) as refusal:
        ingest(warehouse, AS_OF)

    path = f"order_lines/ds=2024-01-02/{name}"
    assert path in refusal.value.what
    assert reason in refusal.value.what
    loaded = "select _landed_date from raw.order_lines order by 1"
    assert query(warehouse, loaded) == [(date(2024, 1, 1),), (date(2024, 1, 3),)]
    ((status, rows_in, why),) = query(
        warehouse,
        f"select status, rows_in, reason from ops.landing_files where path = '{path}'",
    )
    assert (status, rows_in) == ("refused", 0)
    assert reason in why
    assert query(warehouse, "select status from ops.runs") == [("failed",)]

    with pytest.raises(ContractError):
        ingest(warehouse, AS_OF)
    refused = "select count(*) from ops.landing_files where status = 'refused'"
    assert query(warehouse, refused) == [(1,)]

    fixed = (HEADER + GOOD).encode()
    land(warehouse, "2024-01-02", gzip.compress(fixed) if name.endswith("gz") else fixed, name)
    assert ingest(warehouse, AS_OF).files_loaded == 1
    assert query(warehouse, "select count(*) from raw.order_lines") == [(3,)]


@pytest.mark.parametrize(
    ("right", "wrong", "column", "rule"),
    [
        ("12,", "a dozen,", "Quantity", "a whole number"),
        ("2024-01-01 07", "2024-13-01 07", "InvoiceDate", "a date and time YYYY-MM-DD HH:MM:SS"),
        ("489434", "", "Invoice", "a value (it is required)"),
        ("6.95", "-1000001", "Price", "at least -1000000"),
        ("BALL", "\0", "Description", "no NUL character"),
        (",United Kingdom", "", None, "8 fields, found 7"),
    ],
)
def test_a_broken_row_harms_no_other(
    warehouse: Settings, right: str, wrong: str, column: str | None, rule: str
) -> None:
    land(warehouse, "2024-01-01", HEADER + GOOD + GOOD.replace(right, wrong, 1) + GOOD)

    result = ingest(warehouse, AS_OF)

    assert (result.rows_in, result.rows_loaded, result.rows_quarantined) == (3, 2, 1)
    quarantined = "select _row_number, column_name, rule from quarantine.order_lines"
    assert query(warehouse, quarantined) == [(2, column, rule)]


def test_only_a_header_is_loaded_with_a_warning(warehouse: Settings) -> None:
    land(warehouse, "2024-01-01", HEADER)

    result = ingest(warehouse, AS_OF)

    assert (result.files_loaded, result.rows_in) == (1, 0)
    assert result.warnings == (
        "order_lines/ds=2024-01-01/order_lines.csv has a header but no rows",
    )


def test_a_folder_that_is_no_date_harms_no_other(warehouse: Settings) -> None:
    land(warehouse, "2024-01-01", HEADER + GOOD)
    land(warehouse, "2011-13-45", HEADER + GOOD)

    with pytest.raises(ContractError, match="order_lines/ds=2011-13-45: not a landing folder"):
        ingest(warehouse, AS_OF)

    assert query(warehouse, "select count(*) from raw.order_lines") == [(1,)]


def test_changed_content_of_a_loaded_file_replaces_its_rows(warehouse: Settings) -> None:
    land(warehouse, "2024-01-01", HEADER + GOOD + "broken\n")
    land(warehouse, "2024-01-02", HEADER + GOOD)
    ingest(warehouse, AS_OF)
    land(warehouse, "2024-01-01", HEADER + GOOD.replace("12,", "13,", 1) + GOOD)

    result = ingest(warehouse, AS_OF)

    assert (result.files_loaded, result.rows_loaded, result.rows_quarantined) == (1, 2, 0)
    rows = "select _landed_date::text, quantity from raw.order_lines order by 1, _row_number"
    assert query(warehouse, rows) == [("2024-01-01", 13), ("2024-01-01", 12), ("2024-01-02", 12)]
    assert query(warehouse, "select count(*) from quarantine.order_lines") == [(0,)]
    assert query(
        warehouse,
        "select right(path, 24), status, rows_in from ops.landing_files order by file_id",
    ) == [
        ("24-01-01/order_lines.csv", "replaced", 2),
        ("24-01-02/order_lines.csv", "loaded", 1),
        ("24-01-01/order_lines.csv", "loaded", 2),
    ]
    days = "select landed_date::text from ops.changed_days order by change_id"
    assert query(warehouse, days) == [("2024-01-01",), ("2024-01-02",), ("2024-01-01",)]


def test_a_new_version_that_is_broken_leaves_the_old_rows(warehouse: Settings) -> None:
    land(warehouse, "2024-01-01", HEADER + GOOD)
    ingest(warehouse, AS_OF)
    before = everything(warehouse)
    file = land(warehouse, "2024-01-01", (HEADER + GOOD * 9).encode() + b"\xff\n")

    with pytest.raises(ContractError, match="not UTF-8"):
        ingest(warehouse, AS_OF)

    assert everything(warehouse)[:2] == before[:2]
    assert query(warehouse, "select status from ops.landing_files order by file_id") == [
        ("loaded",),
        ("refused",),
    ]
    file.write_text(HEADER + GOOD)


def test_the_same_content_under_another_name_is_loaded_once(warehouse: Settings) -> None:
    content = (HEADER + GOOD).encode()
    land(warehouse, "2024-01-01", content)
    land(warehouse, "2024-01-02", content, "again.csv")
    land(warehouse, "2024-01-03", HEADER.encode())
    land(warehouse, "2024-01-04", HEADER.encode())

    result = ingest(warehouse, AS_OF)

    assert (result.files_loaded, result.rows_loaded) == (3, 1)
    assert result.warnings[0] == (
        "order_lines/ds=2024-01-02/again.csv: the same content as"
        " order_lines/ds=2024-01-01/order_lines.csv, which is loaded; left out"
    )
    before = everything(warehouse)
    assert ingest(warehouse, AS_OF).files_loaded == 0
    assert everything(warehouse) == before


def test_a_file_that_changes_while_it_is_read_is_not_loaded(
    warehouse: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = land(warehouse, "2024-01-01", HEADER + GOOD)
    read = formats.read

    def overtaken(*arguments: Any) -> Iterator[formats.TextBatch]:
        yield from read(*arguments)
        file.write_text(HEADER + GOOD + GOOD)

    with monkeypatch.context() as patched, pytest.raises(ContractError, match="while it was read"):
        patched.setattr(formats, "read", overtaken)
        ingest(warehouse, AS_OF)
    assert query(warehouse, "select count(*) from raw.order_lines") == [(0,)]

    assert ingest(warehouse, AS_OF).rows_loaded == 2


def test_a_content_that_was_replaced_may_land_again(warehouse: Settings) -> None:
    land(warehouse, "2024-01-01", HEADER + GOOD)
    ingest(warehouse, AS_OF)
    first = HEADER + GOOD.replace("489434", "489401")
    land(warehouse, "2024-01-01", HEADER + GOOD + GOOD)
    land(warehouse, "2024-01-02", first.encode())

    assert ingest(warehouse, AS_OF).files_loaded == 2


def test_a_file_that_becomes_the_same_as_another_loses_its_rows(warehouse: Settings) -> None:
    land(warehouse, "2024-01-01", HEADER + GOOD)
    file = land(warehouse, "2024-01-02", HEADER + GOOD + GOOD)
    ingest(warehouse, AS_OF)
    file.write_text((HEADER + GOOD).replace("489434", "489401"))

    ingest(warehouse, AS_OF)

    assert query(warehouse, "select _landed_date::text from raw.order_lines") == [("2024-01-01",)]
    assert query(warehouse, "select status from ops.landing_files order by file_id") == [
        ("loaded",), ("replaced",), ("duplicate",),
    ]  # fmt: skip
    days = "select landed_date::text from ops.changed_days order by change_id"
    assert query(warehouse, days) == [("2024-01-01",), ("2024-01-02",), ("2024-01-02",)]
    before = everything(warehouse)
    ingest(warehouse, AS_OF)
    assert everything(warehouse) == before


def test_a_file_that_was_only_touched_is_not_loaded_again(warehouse: Settings) -> None:
    file = land(warehouse, "2024-01-01", HEADER + GOOD)
    ingest(warehouse, AS_OF)
    before = everything(warehouse)[:2]
    os.utime(file, (1, 1))

    assert ingest(warehouse, AS_OF).files_loaded == 0
    assert everything(warehouse)[:2] == before


def test_a_late_file_of_an_old_day_marks_that_day(warehouse: Settings) -> None:
    land(warehouse, "2024-01-01", HEADER + GOOD)
    land(warehouse, "2024-01-03", HEADER + GOOD)
    ingest(warehouse, AS_OF)
    last = "select max(change_id) from ops.changed_days"
    ((known,),) = query(warehouse, last)
    land(warehouse, "2024-01-01", HEADER + GOOD + GOOD, "late.csv")

    ingest(warehouse, AS_OF)

    changed = f"select landed_date, reason from ops.changed_days where change_id > {known}"
    assert query(warehouse, changed) == [
        (date(2024, 1, 1), "loaded order_lines/ds=2024-01-01/late.csv")
    ]


def changed(column: str, /, **update: object) -> SourceContract:
    """The contract of order lines with one column changed."""
    contract = load_contract("order_lines")
    columns = [c.model_copy(update=update) if c.name == column else c for c in contract.columns]
    return contract.model_copy(update={"columns": tuple(columns)})


def test_a_table_follows_its_contract_as_far_as_nothing_is_lost(
    warehouse: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    land(warehouse, "2024-01-01", HEADER + GOOD)
    ingest(warehouse, AS_OF)
    contract = changed("country", required=False)
    colour = contract.columns[-1].model_copy(update={"name": "colour", "landed_name": "Colour"})
    kept = tuple(column for column in contract.columns if column.name != "description")
    wider = contract.model_copy(update={"columns": (*kept, colour)})
    monkeypatch.setattr(ingest_run, "SOURCES", ("order_lines",))
    monkeypatch.setattr(ingest_run, "load_contract", lambda source: wider)
    row = GOOD.replace("GLASS BALL,", "").replace("United Kingdom\n", ",red\n")
    header = HEADER.replace("Description,", "").replace("\n", ",Colour\n")
    land(warehouse, "2024-01-02", header + row)

    ingest(warehouse, AS_OF)

    rows = "select description, country, colour from raw.order_lines order by _landed_date"
    assert query(warehouse, rows) == [("GLASS BALL", "United Kingdom", None), (None, None, "red")]


@pytest.mark.parametrize(
    ("contract", "message"),
    [
        (changed("price", sql_type="numeric(18,2)"), "price is numeric(14,4); the contract says"),
        (changed("country", name="land"), "no column land, which the contract requires"),
    ],
)
def test_a_contract_that_the_table_cannot_follow_is_refused(
    warehouse: Settings, monkeypatch: pytest.MonkeyPatch, contract: SourceContract, message: str
) -> None:
    land(warehouse, "2024-01-01", HEADER + GOOD)
    ingest(warehouse, AS_OF)
    before = everything(warehouse)
    monkeypatch.setattr(ingest_run, "SOURCES", ("order_lines",))
    monkeypatch.setattr(ingest_run, "load_contract", lambda source: contract)

    with pytest.raises(ContractError) as refusal:
        ingest(warehouse, AS_OF)

    assert message in str(refusal.value)
    assert everything(warehouse) == before


def test_personal_data_are_masked_in_quarantine(warehouse: Settings) -> None:
    in_row = GOOD.replace("12,", "many,", 1)
    in_value = GOOD.replace("13085", "13085 Jane")
    land(warehouse, "2024-01-01", HEADER + in_row + in_value + "13085,too few\n")

    ingest(warehouse, AS_OF)

    kept = query(warehouse, "select value, row_as_landed from quarantine.order_lines")
    assert len(kept) == 3
    assert "13085" not in str(kept)
    assert "GLASS BALL" in str(kept)


def test_three_sources_in_four_formats(warehouse: Settings) -> None:
    land(warehouse, "2024-01-01", HEADER + GOOD)
    cards = warehouse.landing_folder / "card_transactions" / "ds=2024-01-01"
    cards.mkdir(parents=True)
    (cards / "a.csv").write_text(
        "transaction_id,transaction_at,customer_id,terminal_id,amount\n"
        "1,2024-01-01 10:00:00,596,3156,57.16\n"
    )
    row = {
        "transaction_id": 2, "transaction_at": "2024-01-01 11:00:00",
        "customer_id": "4961", "terminal_id": "3412", "amount": 81.51,
    }  # fmt: skip
    (cards / "b.jsonl.gz").write_bytes(gzip.compress(json.dumps(row).encode()))
    reports = warehouse.landing_folder / "chargebacks" / "ds=2024-01-08"
    reports.mkdir(parents=True)
    instant = datetime(2024, 1, 8)  # noqa: DTZ001
    pq.write_table(
        pa.table({"transaction_id": [2], "reported_at": [instant]}), reports / "reports.parquet"
    )

    result = ingest(warehouse, AS_OF)

    assert (result.files_loaded, result.rows_loaded, result.rows_quarantined) == (4, 4, 0)
    assert query(
        warehouse,
        "select transaction_id, transaction_at::text, customer_id, trim_scale(amount)::text"
        " from raw.card_transactions order by 1",
    ) == [(1, "2024-01-01 10:00:00", "596", "57.16"), (2, "2024-01-01 11:00:00", "4961", "81.51")]
    assert query(warehouse, "select transaction_id, reported_at from raw.chargebacks") == [
        (2, instant)
    ]


def test_an_as_of_that_cannot_be_run(warehouse: Settings) -> None:
    with pytest.raises(SettingError, match="no folder"):
        ingest(warehouse, AS_OF)
    land(warehouse, "2024-01-01", HEADER + GOOD)

    with pytest.raises(RefusedAsOf, match="9999-01-01 is in the future"):
        ingest(warehouse, date(9999, 1, 1))
    with pytest.raises(RefusedAsOf, match="earliest folder is ds=2024-01-01"):
        ingest(warehouse, date(2024, 1, 1))
    assert ingest(warehouse, date(2024, 1, 2)).rows_loaded == 1


def test_two_ingests_at_once_load_each_file_once(warehouse: Settings) -> None:
    for day in range(1, 10):
        land(warehouse, f"2024-01-0{day}", HEADER + GOOD * 1000)

    with ThreadPoolExecutor(2) as pool:
        results = [f.result() for f in [pool.submit(ingest, warehouse, AS_OF) for _ in "ab"]]

    assert sum(result.files_loaded for result in results) == 9
    assert query(warehouse, "select count(*) from raw.order_lines") == [(9000,)]


def test_the_database_refuses_a_ledger_that_does_not_add_up(warehouse: Settings) -> None:
    with pytest.raises(psycopg2.errors.CheckViolation):
        query(
            warehouse,
            "insert into ops.landing_files (source, landed_date, path, sha256, bytes, status,"
            " rows_in, rows_loaded, rows_quarantined)"
            " values ('s', '2024-01-01', 'p', 'x', 1, 'loaded', 3, 1, 1) returning 1",
        )


def test_a_kill_in_the_middle_of_a_copy_leaves_nothing_half_loaded(warehouse: Settings) -> None:
    land(warehouse, "2024-01-01", HEADER + GOOD)
    land(warehouse, "2024-01-02", HEADER + GOOD * 500_000)

    with _ingesting(warehouse) as process:
        _until(warehouse, "select 1 from pg_stat_progress_copy where tuples_processed > 1000")
        os.kill(process.pid, signal.SIGSTOP)
        in_copy = query(warehouse, "select 1 from pg_stat_progress_copy")
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert in_copy == [(1,)]
    _until(
        warehouse,
        "select 1 where not exists (select from pg_stat_activity"
        " where datname = current_database() and pid <> pg_backend_pid())",
    )

    assert query(warehouse, "select count(*) from raw.order_lines") == [(1,)]
    assert query(warehouse, "select path from ops.landing_files") == [
        ("order_lines/ds=2024-01-01/order_lines.csv",)
    ]
    assert ingest(warehouse, AS_OF).rows_loaded == 500_000
    assert query(warehouse, "select count(*) from raw.order_lines") == [(500_001,)]


@contextmanager
def _ingesting(settings: Settings) -> Iterator[subprocess.Popen[bytes]]:
    code = (
        "import sys; from datetime import date; from nightshift.settings import Settings;"
        "from nightshift.ingest.run import ingest;"
        "ingest(Settings.model_validate_json(sys.argv[1]), date.fromisoformat(sys.argv[2]))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, settings.model_dump_json(), AS_OF.isoformat()]
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _until(settings: Settings, sql: str, seconds: float = 60) -> None:
    connection = psycopg2.connect(settings.warehouse_url)
    connection.autocommit = True
    try:
        with connection.cursor() as cursor:
            deadline = time.monotonic() + seconds
            while time.monotonic() < deadline:
                cursor.execute(sql)
                if cursor.fetchall():
                    return
                time.sleep(0.002)
    finally:
        connection.close()
    pytest.fail(f"never true within {seconds} s: {sql}")


@pytest.mark.skipif(not REAL_LANDING.is_dir(), reason="the real landing zone is not here")
def test_all_real_files_reconcile_with_an_independent_count(warehouse: Settings) -> None:
    settings = warehouse.model_copy(update={"landing": REAL_LANDING})

    result = ingest(settings, date(2018, 8, 8))

    assert result.rows_in == 836_992 + 1_236_698 + 9_465
    assert result.rows_quarantined == 0
    for source, measures in (
        ("order_lines", "sum(quantity::bigint), sum(price::numeric(14, 4))::text"),
        # some amounts are binary fractions, such as 85.64999999999999
        ("card_transactions", "sum(transaction_id::bigint), sum(amount::numeric(26, 16))::text"),
        ("chargebacks", "sum(transaction_id::bigint), max(reported_at)::text"),
    ):
        counted = duckdb.sql(
            f"select ds::text, count(*), {measures} from read_csv("
            f"'{REAL_LANDING}/{source}/*/*.csv.gz', hive_partitioning = true, all_varchar = true,"
            f" hive_types = {{'ds': date}}, header = true) group by 1 order by 1"
        ).fetchall()
        assert counted == query(
            settings,
            f"select _landed_date::text, count(*), {measures} from raw.{source}"
            " group by 1 order by 1",
        )
    ledger = (
        "select source, count(*), sum(rows_in), sum(rows_loaded), sum(rows_quarantined)"
        " from ops.landing_files where status = 'loaded' group by 1 order by 1"
    )
    assert query(settings, ledger) == [
        ("card_transactions", 129, 1_236_698, 1_236_698, 0),
        ("chargebacks", 122, 9_465, 9_465, 0),
        ("order_lines", 526, 836_992, 836_992, 0),
    ]
