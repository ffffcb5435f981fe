import pyarrow as pa
import pytest

from nightshift.errors import NightshiftError
from nightshift.rules import hits
from nightshift.spec import AlertBudget, Alerts, Rule, UseCase
from nightshift.use_cases import FRAUD, USE_CASES

ROWS = pa.table({"amount": [5.0, 50.0, None], "count": [1.0, 9.0, 9.0]})


def rule(where: str, name: str = "large") -> Rule:
    return Rule(name=name, where=where, description="a large one")


def test_a_rule_hits_where_it_holds_and_not_where_it_is_null() -> None:
    found = hits([rule("amount > 10"), rule('"count" >= 9', "many")], ROWS)
    assert found.tolist() == [[False, False], [True, True], [False, True]]
    assert hits([], ROWS).shape == (3, 0)


def test_a_rule_that_errs_is_named() -> None:
    with pytest.raises(NightshiftError, match=r"rule large cannot be asked: .*nonsense"):
        hits([rule("nonsense(amount) > 1")], ROWS)


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("amount > (1", "is not one condition"),
        ("amount = 'x", "is not one condition"),
        ("amount > 1; drop table x", "is not one condition"),
        ("amount", "compares nothing"),
        ("1 = 1", "reads no feature"),
        ("", "at least 1 character"),
    ],
)
def test_nonsense_is_refused_where_it_is_declared(where: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rule(where)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rules": (rule("amount > 1"),)}, "reads amount, which is no feature"),
        ({"rules": (rule("payment_amount > 1"),) * 2}, "two rules of one name"),
        ({"score_column": "decision"}, "rename decision, which is a column of decisions"),
        ({"label": None}, "label"),
    ],
)
def test_rules_that_do_not_fit_the_use_case_are_refused(
    changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        UseCase(**(dict(FRAUD) | changes))


def test_alerts_have_guard_rails_that_make_sense() -> None:
    target = AlertBudget(entities=10)
    with pytest.raises(ValueError, match=r"low 0.9 is not below high 0.1"):
        Alerts(target=target, low=0.9, high=0.1, step=0.1, initial=0.5)
    with pytest.raises(ValueError, match=r"initial 0.95 is not between 0.1 and 0.9"):
        Alerts(target=target, low=0.1, high=0.9, step=0.1, initial=0.95)
    with pytest.raises(ValueError, match="min_nights 5 is more than nights 2"):
        Alerts(target=target, low=0.1, high=0.9, step=0.1, initial=0.5, nights=2, min_nights=5)


@pytest.mark.parametrize("use_case", USE_CASES, ids=lambda use_case: use_case.name)
def test_every_declared_rule_can_be_asked(use_case: UseCase) -> None:
    vectors = pa.table({name: pa.array([1.0]) for name in use_case.feature_names})
    assert hits(use_case.rules, vectors).shape == (1, len(use_case.rules))
