import json

import pytest
from jsonschema import Draft202012Validator

from nightshift.publishing.schema import json_schema
from nightshift.settings import PROJECT_ROOT
from nightshift.spec import Band, UseCase
from nightshift.use_cases import USE_CASES
from nightshift.use_cases.churn import CHURN


@pytest.mark.parametrize("use_case", USE_CASES, ids=lambda use_case: use_case.name)
def test_the_schema_in_docs_is_current(use_case: UseCase) -> None:
    """`nightshift publications schema <use case>` prints it."""
    kept = json.loads((PROJECT_ROOT / "docs" / "schemas" / f"{use_case.name}.json").read_text())

    assert kept == json_schema(use_case)
    Draft202012Validator.check_schema(kept)


def test_a_band_without_reasons_makes_them_fewer() -> None:
    bands = (Band(name="low", from_score=0, reasons="none"), Band(name="high", from_score=0.5))
    reasons = json_schema(CHURN.model_copy(update={"bands": bands}))["properties"]["reasons"]

    assert (reasons["minItems"], reasons["maxItems"]) == (0, 3)
