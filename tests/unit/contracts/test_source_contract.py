"""The contract that is shipped, and contracts that must be refused."""

from datetime import date
from importlib.resources import files
from pathlib import Path

import pytest

from nightshift.contracts import SOURCES, dbt_sources, load_contract, parse_contract
from nightshift.errors import ContractError
from nightshift.settings import PROJECT_ROOT

TEXT = files("nightshift.contracts").joinpath("order_lines.odcs.yaml").read_text()


def test_every_source_has_a_contract() -> None:
    assert {"card_transactions", "chargebacks", "order_lines"} <= set(SOURCES)
    assert [load_contract(source).source for source in SOURCES] == list(SOURCES)


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


def test_classes_keys_and_calendar() -> None:
    orders, cards = load_contract("order_lines"), load_contract("card_transactions")

    assert (orders.pii, orders.key) == (("customer_id",), ())
    assert (cards.pii, cards.key) == (("customer_id",), ("transaction_id",))
    assert [orders.arrival.expects(date(2011, 6, day)) for day in (3, 4, 5)] == [True, False, True]
    assert not orders.arrival.expects(date(2011, 12, 26))
    assert cards.arrival.expects(date(2018, 4, 7))
    assert (orders.freshness.warn_days, orders.freshness.error_days) == (5, 21)


def test_the_generated_dbt_files_are_those_of_the_contracts() -> None:
    for source in SOURCES:
        for path, text in dbt_sources.generated(load_contract(source)).items():
            assert (PROJECT_ROOT / "dbt_project" / path).read_text() == text, "run `make contracts`"


def test_a_generated_file_that_has_drifted_is_written_again(tmp_path: Path) -> None:
    assert len(dbt_sources.write(tmp_path)) == 2 * len(SOURCES)
    drifted = tmp_path / "models" / "staging" / "order_lines" / "_order_lines__sources.yml"
    drifted.write_text(drifted.read_text().replace("days: 21", "days: 210"))

    assert dbt_sources.write(tmp_path) == [drifted]
    assert "days: 210" not in drifted.read_text()
    assert dbt_sources.write(tmp_path) == []


def test_a_column_that_is_newly_personal_is_pseudonymised_for_dbt() -> None:
    contract = load_contract("order_lines")
    assert "        country,\n" in dbt_sources.landed_macro(contract)

    columns = tuple(c.model_copy(update={"is_pii": True}) for c in contract.columns)
    after = dbt_sources.landed_macro(contract.model_copy(update={"columns": columns}))

    assert "        country,\n" not in after
    assert '{{ pseudonym("country") }} as country,' in after


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
        ("name: data-team", "description: us", "nobody owns"),
        ("classification: pii", "classification: secret", "'customer_id'.*is 'secret'"),
        ("    driver: error\n", "", "latency of order_lines._landed_date"),
        ("    value: 21\n", "    value: soon\n", "error_days"),
        ("[monday,", "[mon,", "no weekdays: mon"),
        ('"12-25"', '"12-32"', "arrivalCalendar"),
        ("value: 0.01", "value: 2", "quarantine_budget"),
        ("value: refuse", "value: drop", "unknownColumns is 'drop'"),
        ("property: unknownColumns", "property: unknownColums", "unknown customProperties"),
    ],
)
def test_a_wrong_contract_is_refused(right: str, wrong: str, message: str) -> None:
    assert right in TEXT

    with pytest.raises(ContractError, match=message):
        parse_contract("order_lines", TEXT.replace(right, wrong, 1))


def test_an_unknown_source_is_refused() -> None:
    with pytest.raises(ContractError, match="no contract for source 'orders'"):
        load_contract("orders")
