"""A name that SQL would not take as it is, is refused where it is declared."""

from importlib.resources import files

import pytest
from pydantic import ValidationError

from nightshift.contracts import parse_contract
from nightshift.errors import ContractError
from nightshift.feature_groups.order_lines import ORDER_LINES
from nightshift.identifiers import identifier, qualified
from nightshift.spec import Source, UseCase
from nightshift.use_cases import CHURN

WRONG = ["Churn", "my churn", "a$b", 'a"b', "a'b", "a;b", "a.b", "", "1a", "_a", "ä", "a\n", "user"]


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_identifier_is_refused_with_its_name(name: str) -> None:
    with pytest.raises(ValueError, match=r"snake_case|reserved word") as refused:
        identifier(name)
    assert repr(name) in str(refused.value)


@pytest.mark.parametrize("name", ["churn", "a1_", "users", "date", "name", "value"])
def test_what_is_one_stays_as_it_is(name: str) -> None:
    assert identifier(name) == name


@pytest.mark.parametrize("relation", ["churn", "marts.a.b", "marts.order", 'marts."a"', "Marts.a"])
def test_a_relation_is_a_schema_and_a_table(relation: str) -> None:
    with pytest.raises(ValueError, match=r"snake_case|reserved word|<schema>"):
        qualified(relation)


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("field", ["name", "key", "score_column"])
def test_a_use_case_is_refused_when_it_is_declared(field: str, name: str) -> None:
    declared = CHURN.model_dump() | {field: name}
    with pytest.raises(ValidationError, match=field):
        UseCase.model_validate(declared)


@pytest.mark.parametrize("name", WRONG)
def test_a_source_is_refused_when_it_is_declared(name: str) -> None:
    declared = ORDER_LINES.model_dump()
    for wrong in (
        {"relation": f"marts.{name}"},
        {"row_id": name},
        {"event_time": name, "columns": declared["columns"] | {name: "timestamp"}},
    ):
        with pytest.raises(ValidationError, match=next(iter(wrong))):
            Source.model_validate(declared | wrong)


@pytest.mark.parametrize("name", [each for each in WRONG if each])
def test_a_contract_is_refused_when_it_is_read(name: str) -> None:
    text = files("nightshift.contracts").joinpath("order_lines.odcs.yaml").read_text()
    quoted = name.replace("'", "''")
    for right in ("name: stock_code", "name: invoice"):
        wrong = text.replace(f"{right}\n", f"name: '{quoted}'\n", 1)
        assert wrong != text
        with pytest.raises(ContractError, match=r"snake_case|reserved word|column"):
            parse_contract("order_lines", wrong)
    with pytest.raises(ContractError, match=r"snake_case|reserved word"):
        parse_contract(name, text)
