"""The contract that is shipped, and contracts that must be refused."""

from importlib.resources import files

import pytest

from nightshift.contracts import SOURCES, load_contract, parse_contract
from nightshift.errors import ContractError

TEXT = files("nightshift.contracts").joinpath("order_lines.odcs.yaml").read_text()


def test_every_source_has_a_contract() -> None:
    assert [load_contract(source).source for source in SOURCES] == ["order_lines"]


def test_order_lines_names_and_types() -> None:
    contract = load_contract("order_lines")

    assert [(c.landed_name, c.name, c.sql_type, c.required) for c in contract.columns] == [
        ("Invoice", "invoice", "text", True),
        ("StockCode", "stock_code", "text", True),
        ("Description", "description", "text", False),
        ("Quantity", "quantity", "integer", True),
        ("InvoiceDate", "invoice_date", "timestamp", True),
        ("Price", "price", "numeric(14,4)", True),
        ("Customer ID", "customer_id", "text", False),
        ("Country", "country", "text", True),
    ]
    assert contract.event_time == "invoice_date"


def test_ddl_is_derived() -> None:
    ddl = load_contract("order_lines").ddl()

    assert "create table if not exists raw.order_lines" in ddl
    assert "    price numeric(14,4) not null,\n" in ddl
    assert "    customer_id text,\n" in ddl
    assert "create table if not exists quarantine.order_lines" in ddl


@pytest.mark.parametrize(
    ("right", "wrong", "message"),
    [
        ("logicalType: integer", "logicalType: whole", "'quantity'.*logicalType is 'whole'"),
        ("physicalType: numeric(14,4)", "physicalType: float8", "'price'.*'float8' does not hold"),
        ("{maxLength: 64}", "{maxLen: 64}", "'stock_code'.*maxLen are not checked"),
        ("value: invoice_date", "value: price", "eventTime is 'price'"),
        ("name: country", "name: invoice", "share a name"),
        ("name: stock_code", "name: Stock Code", "'Stock Code'.*snake_case"),
        ("  - name: order_lines", "  - name: orders", "0 schema objects"),
        ("format: 'YYYY-MM-DD HH:MM:SS'", "format: 'DD/MM/YYYY'", "DD/MM/YYYY"),
        ("kind: DataContract", "kind: [", "order_lines.odcs.yaml"),
    ],
)
def test_a_wrong_contract_is_refused(right: str, wrong: str, message: str) -> None:
    assert right in TEXT

    with pytest.raises(ContractError, match=message):
        parse_contract("order_lines", TEXT.replace(right, wrong, 1))


def test_an_unknown_source_is_refused() -> None:
    with pytest.raises(ContractError, match="no contract for source 'orders'; known: order_lines"):
        load_contract("orders")
