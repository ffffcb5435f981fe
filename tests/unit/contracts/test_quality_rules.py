"""The quality rules of the contracts that are shipped, and rules that must be refused."""

from importlib.resources import files

import pytest

from nightshift.contracts import SOURCES, load_contract, parse_contract
from nightshift.contracts.quality import MARTS, load_mart, parse_mart
from nightshift.errors import ContractError

TEXT = files("nightshift.contracts").joinpath("order_lines.odcs.yaml").read_text()
MART = files("nightshift.contracts.marts").joinpath("fct_order_lines.odcs.yaml").read_text()


def test_every_contract_is_checked_for_volume_and_against_its_budget() -> None:
    for source in SOURCES:
        rules = {rule.name: rule for rule in load_contract(source).quality.rules}
        assert rules["rows_are_usual"].severity == "error"
        assert rules["quarantine_within_budget"].parameters == {"rows_within_budget"}


def test_every_mart_is_of_a_source() -> None:
    assert {source for mart in MARTS for source in load_mart(mart).reads} <= set(SOURCES)
    assert load_mart("fct_payments").reads == ("card_transactions", "chargebacks")


def test_a_rule_is_read_with_its_column_implied_and_its_limits_as_written() -> None:
    rules = {rule.name: rule for rule in load_contract("order_lines").quality.rules}

    price = rules["price_is_usual"]
    assert (price.column, price.severity, price.dimension) == ("price", "error", "accuracy")
    assert price.expectation == "expect_column_median_to_be_between"
    assert price.arguments["min_value"] == {"$PARAMETER": "recent_median_price * 0.3"}
    assert price.parameters == {"recent_median_price"}


def test_a_key_is_a_rule_of_its_own() -> None:
    unique = load_contract("card_transactions").quality.rules[0]

    assert unique.expectation == "expect_column_values_to_be_unique"
    assert unique.arguments == {"column": "transaction_id"}


def test_a_key_of_two_columns_is_unique_together() -> None:
    text = TEXT.replace("required: true", "required: true\n        primaryKey: true", 2)

    unique = parse_contract("order_lines", text).quality.rules[0]

    assert unique.expectation == "expect_compound_columns_to_be_unique"
    assert unique.arguments == {"column_list": ["invoice", "stock_code"]}


def test_a_relationship_makes_a_column() -> None:
    (reference,) = load_contract("chargebacks").quality.references

    assert reference.to_table == "raw.card_transactions"
    assert (reference.is_known, reference.to_day) == ("transaction_id_is_known", "_landed_date")


@pytest.mark.parametrize(
    ("right", "wrong", "message"),
    [
        ("engine: greatExpectations", "engine: soda", "rule not_empty: .*engine 'soda'"),
        ("type: custom", "type: sql", "rule not_empty: type is 'sql'"),
        ("severity: error", "severity: fatal", r"rule not_empty: (.|\n)*severity"),
        ("- name: not_empty", "- description: x", r"\(without a name\)"),
        ("- name: price_in_range", "- name: price_is_usual", "two rules are named price_is_usual"),
        ("type: expect_table_row_count_to_be_between", "type: count", "expectation"),
        ("kwargs: {min_value: 1}", "arguments: {min_value: 1}", "write {type: expect_…"),
        ("{column: invoice_has_one_customer,", "{column: invoise,", "no column 'invoise'"),
        ("usual_rows * 0.08", "usual_row * 0.08", "no parameter 'usual_row'"),
        ("recent_median_price * 0.3", "recent_median_cost * 0.3", "'recent_median_cost'"),
        ("recent_values_country", "recent_values_customer_id", "would show personal data"),
        ("{column: invoice_has_one_customer,", "{column: customer_id,", "values of customer_id"),
        ("      invoice_has_one_customer: >-", "      Has One: >-", "batchColumns"),
    ],
)
def test_a_wrong_rule_is_refused(right: str, wrong: str, message: str) -> None:
    assert right in TEXT

    with pytest.raises(ContractError, match=message):
        parse_contract("order_lines", TEXT.replace(right, wrong, 1))


@pytest.mark.parametrize(
    ("right", "wrong", "message"),
    [
        ("property: rowId", "property: rowid", "customProperties are missing or unknown"),
        ("  - name: fct_order_lines", "  - name: fct_orders", "name the object fct_order_lines"),
        ("to: marts.dim_products.product_id", "to: dim_products", "relationships go to"),
        ("kind: DataContract", "kind: [", "fct_order_lines.odcs.yaml"),
        (
            "  - property: rowId",
            "  - property: alsoReads\n    value: chargebacks\n  - property: rowId",
            "alsoReads is 'chargebacks'",
        ),
    ],
)
def test_a_wrong_mart_contract_is_refused(right: str, wrong: str, message: str) -> None:
    assert right in MART

    with pytest.raises(ContractError, match=message):
        parse_mart("fct_order_lines", MART.replace(right, wrong, 1))
