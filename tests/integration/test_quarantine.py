"""Quarantined rows: listed, shown without personal data, replayed once."""

from datetime import date
from pathlib import Path

import pytest

from nightshift.contracts import SourceContract, load_contract
from nightshift.errors import ContractError, NightshiftError
from nightshift.ingest import run
from nightshift.ingest.run import ReplayedFile, ingest, replay
from nightshift.io.quarantine import BrokenRule, rows, summary
from nightshift.io.warehouse import connect
from nightshift.settings import Settings

AS_OF = date(2024, 1, 10)
PATH = "order_lines/ds=2024-01-01/order_lines.csv"
HEADER = "Invoice,StockCode,Description,Quantity,InvoiceDate,Price,Customer ID,Country\n"
GOOD = "489434,85048,GLASS BALL,12,2024-01-01 07:45:00,6.95,13085,United Kingdom\n"
TOO_DEAR = GOOD.replace("6.95", "2000000")
BROKEN = GOOD.replace("12,", "many,", 1)


@pytest.fixture
def file(warehouse: Settings) -> Path:
    """A landed and ingested file: rows 1 and 5 are good, 2 and 4 too dear, 3 broken."""
    path = warehouse.landing_folder / PATH
    path.parent.mkdir(parents=True)
    path.write_text(HEADER + GOOD + TOO_DEAR + BROKEN + TOO_DEAR + GOOD)
    ingest(warehouse, AS_OF)
    return path


@pytest.fixture
def dearer(monkeypatch: pytest.MonkeyPatch) -> SourceContract:
    """The contract of order lines with a higher limit on the price, in force."""
    contract = load_contract("order_lines")
    columns = tuple(
        column.model_copy(update={"maximum": 9_000_000}) if column.name == "price" else column
        for column in contract.columns
    )
    changed = contract.model_copy(update={"columns": columns})
    monkeypatch.setattr(run, "load_contract", lambda source: changed)
    return changed


def query(settings: Settings, statement: str) -> list[tuple]:
    with connect(settings) as connection, connection.cursor() as cursor:
        cursor.execute(statement)
        return cursor.fetchall()


def state(settings: Settings) -> tuple[list[tuple], ...]:
    return (
        query(settings, "select _row_number, price::text from raw.order_lines order by 1"),
        query(settings, "select _row_number from quarantine.order_lines order by 1"),
        query(settings, "select rows_in, rows_loaded, rows_quarantined from ops.landing_files"),
    )


def test_what_is_there_is_listed_and_shown(warehouse: Settings, file: Path) -> None:
    assert summary(warehouse) == [
        BrokenRule("order_lines", PATH, "Price", "at most 1000000", 2),
        BrokenRule("order_lines", PATH, "Quantity", "a whole number", 1),
    ]
    shown = rows(warehouse, load_contract("order_lines"), PATH, 2)
    assert [row[:5] for row in shown] == [
        (PATH, 2, "Price", "at most 1000000", "2000000"),
        (PATH, 3, "Quantity", "a whole number", "many"),
    ]
    assert "13085" not in str(shown)
    assert rows(warehouse, load_contract("order_lines"), "another", 2) == []
    assert rows(warehouse, load_contract("chargebacks"), None, 2) == []


def test_a_replay_loads_what_is_valid_now_once(
    warehouse: Settings, file: Path, dearer: SourceContract
) -> None:
    assert replay(warehouse, "order_lines") == [ReplayedFile(PATH, 2, 1)]

    dear, good = "2000000.0000", "6.9500"
    after = state(warehouse)
    assert after == (
        [(1, good), (2, dear), (4, dear), (5, good)],
        [(3,)],
        [(5, 4, 1)],
    )
    reasons = query(warehouse, "select reason from ops.changed_days order by change_id")
    assert reasons == [(f"loaded {PATH}",), (f"replayed {PATH}",)]
    assert replay(warehouse, "order_lines", PATH) == [ReplayedFile(PATH, 0, 1)]
    assert state(warehouse) == after
    assert query(warehouse, "select count(*) from ops.changed_days") == [(2,)]


def test_with_the_same_contract_a_replay_changes_nothing(warehouse: Settings, file: Path) -> None:
    before = state(warehouse)

    assert replay(warehouse, "order_lines") == [ReplayedFile(PATH, 0, 3)]
    assert state(warehouse) == before


def test_a_replay_that_fails_changes_nothing(
    warehouse: Settings, file: Path, dearer: SourceContract
) -> None:
    before = state(warehouse)
    with connect(warehouse) as connection, connection.cursor() as cursor:
        cursor.execute("alter table raw.order_lines add check (_row_number <> 4)")

    with pytest.raises(Exception, match="violates check constraint"):
        replay(warehouse, "order_lines")

    assert state(warehouse) == before


def test_a_file_that_is_gone_or_has_changed_is_refused(warehouse: Settings, file: Path) -> None:
    content = file.read_text()
    file.unlink()
    with pytest.raises(NightshiftError, match=f"{PATH}: not a file"):
        replay(warehouse, "order_lines")
    file.write_text(content + GOOD)
    with pytest.raises(ContractError, match="has changed since it was loaded"):
        replay(warehouse, "order_lines")
    with pytest.raises(ContractError, match="no loaded file x of order_lines"):
        replay(warehouse, "order_lines", "x")
