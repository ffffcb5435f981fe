"""The files of a use case, on the sources that there are."""

from dataclasses import replace
from pathlib import Path

import pytest

from nightshift.errors import NightshiftError
from nightshift.feature_groups.order_lines import ORDER_LINES
from nightshift.scaffold import use_case
from nightshift.scaffold.run import REGISTRY, write_use_case
from nightshift.scaffold.use_case import Asked, declared_source, files, with_listed
from nightshift.settings import PROJECT_ROOT

RETURNS = Asked(
    name="will_return",
    entity="customer",
    key="customer_id",
    population="order_lines",
    active_days=90,
    label="any_event",
    label_source="order_lines",
    label_where="is_cancellation",
    horizon_days=30,
    reporting_delay_days=2,
    features=(
        "order_lines.line_amount",
        "order_lines.invoiced_at",
        "product_id:order_lines.quantity",
    ),
    windows=(30,),
    score_column="return_probability",
)
USE_CASE = Path("jobs/nightshift/use_cases/will_return.py")


def test_the_declaration_is_what_was_asked_for() -> None:
    made = files(RETURNS)

    assert "label=AnyEvent(" in made[USE_CASE]
    assert 'where="is_cancellation"' in made[USE_CASE]
    assert "reporting_delay_days=2" in made[USE_CASE]
    groups = made[Path("jobs/nightshift/feature_groups/will_return.py")]
    assert groups.index("PRODUCT_ORDER_LINES = ") < groups.index("CUSTOMER_ORDER_LINES = ")
    assert 'feature="product_quantity_mean_30d"' in groups
    assert (
        '"customer_line_amount_mean_30d"' in made[Path("tests/unit/use_cases/test_will_return.py")]
    )
    assert '"return_probability"' in made[Path("docs/schemas/will_return.json")]
    exposure = made[Path("dbt_project/models/predictions/will_return.yml")]
    assert "ref('fct_order_lines')" in exposure


SPENDING = replace(
    RETURNS,
    name="returned_amount",
    label="sum",
    label_column="line_amount",
    score_column="expected_returned",
    features=("order_lines.invoiced_at",),
    windows=(30, 90),
    bands=(50.0, 200.0),
    unit="pounds",
    every_days=30,
)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {},
            (
                "label=Sum(", 'column="line_amount"', 'Model(loss="squared_error")',
                'feature="customer_past_line_amount_sum_90d"', "scale=30 / 90", 'unit="pounds"',
                "ScoreInRange(low=-200000.0, high=200000.0)", "Nights(every_days=30)",
                'Band(name="high", from_score=200.0)', "Interval(share=0.8)",
                "StableSincePrevious()",
            ),
        ),
        (
            {"non_negative": True, "bands": None},
            ("non_negative=True", 'Model(loss="tweedie")', "ScoreInRange(low=0.0, high=1000000.0)"),
        ),
        (
            {"label": "count", "label_column": None, "bands": None, "every_days": 60},
            (
                "label=Count(", 'feature="customer_past_order_lines_count_90d"',
                'Model(loss="tweedie")', 'Band(name="medium", from_score=1.0)',
                "StableSincePrevious(within_days=60)",
            ),
        ),
        (
            {"label": "no_event", "label_column": None, "unit": "", "bands": (0.1, 0.9),
             "every_days": 60},
            (
                "label=NoEvent(", 'Band(name="high", from_score=0.9)', 'AtLeast(metric="auc"',
                "StableSincePrevious(within_days=60)", "ScoreInRange(),",
            ),
        ),
    ],
    ids=["sum", "non-negative", "count", "rare-nights"],
)  # fmt: skip
def test_an_amount_is_judged_as_one(changes: dict[str, object], words: tuple[str, ...]) -> None:
    made = files(replace(SPENDING, **changes))  # type: ignore[arg-type]

    declared = made[Path("jobs/nightshift/use_cases/returned_amount.py")]
    assert [each for each in words if each not in declared] == []
    groups = made[Path("jobs/nightshift/feature_groups/returned_amount.py")]
    is_amount = "Heuristic(" in declared and "past_rate" in declared
    # what the label counts, and nothing else
    assert ('where="is_cancellation"' in groups) == is_amount
    schema = made[Path("docs/schemas/returned_amount.json")]
    assert ('"expected_returned_low"' in schema) == is_amount


def test_a_relation_over_attributes_is_the_one_of_now(monkeypatch: pytest.MonkeyPatch) -> None:
    attributes = ORDER_LINES.model_copy(
        update={"name": "customers", "relation": "marts.dim_customers_history"}
    )
    known = {"order_lines": ORDER_LINES, "customers": attributes}
    monkeypatch.setattr(use_case, "declared_source", known.__getitem__)
    monkeypatch.setattr(use_case, "declared_sources", lambda: list(known))
    features = ("order_lines.invoiced_at", "product_id:order_lines.quantity")
    groups, own = use_case._groups(replace(RETURNS, features=features))[::2]

    assert (groups.key, own.source) == ("product_id", "customers")
    assert {each.aggregates for each in own.measures} == {((("last",), (None,)),)}


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"label": "sum"}, "--label sum: of which column?"),
        ({"label_column": "quantity"}, "--label any_event: takes no --label-column"),
        ({"label": "sum", "label_column": "price"}, "order_lines has no such number"),
        ({"label": "sum", "label_column": "country"}, "country: order_lines has no such"),
        ({"non_negative": True}, "--non-negative says something of a sum"),
        ({"unit": "pounds"}, "--unit pounds: a probability has none"),
        ({"bands": (0.5, 0.2)}, "--bands 0.5,0.2: not two rising numbers"),
        ({"bands": (0.5,)}, "--bands 0.5: not two rising numbers"),
        ({"bands": (0.5, 7.0)}, "bands of probabilities end at 1"),
        ({"name": "Will return"}, "'Will return' is not lower-case"),
        ({"name": "order_lines"}, "'order_lines' is the name of a source"),
        ({"name": "x" * 41}, "41 characters"),
        ({"key": "user"}, "'user' is a reserved word of SQL"),
        ({"key": "person_id"}, "order_lines has no column 'person_id'"),
        ({"label": "sometimes"}, "there is no such label"),
        ({"population": "orders"}, "there is no source 'orders'"),
        ({"population": "../orders"}, "there is no source '../orders'"),
        ({"features": ()}, "no features"),
        ({"features": ("line_amount",)}, "not <source>.<column>"),
        ({"features": ("order_lines.price",)}, "order_lines has no column 'price'"),
        ({"features": ("order_lines.is_product", "order_lines.is_product")}, "share a name"),
        ({"label_where": "amount > 1"}, "reads 'amount', which is not a column"),
        ({"score_column": "as_of"}, "'as_of' is another published column"),
    ],
)
def test_what_makes_no_sense_is_refused(changes: dict[str, object], what: str) -> None:
    with pytest.raises(NightshiftError) as refused:
        files(replace(RETURNS, **changes))  # type: ignore[arg-type]

    assert what in str(refused.value)
    assert refused.value.remedy


def test_the_registry_gets_one_line() -> None:
    before = (PROJECT_ROOT / REGISTRY).read_text()
    after = with_listed(before, "aaa")

    assert after is not None
    line = "from nightshift.use_cases.aaa import AAA as AAA"
    assert after.replace(f"{line}\n", "", 1) == before
    assert after.index(line) < after.index("from nightshift.use_cases.churn")
    assert with_listed(after, "aaa") is None
    last = with_listed(before, "zzz")
    assert last is not None
    assert last.index("use_cases.zzz") > last.index("use_cases.churn")
    with pytest.raises(NightshiftError, match="imports no use case"):
        with_listed("", "aaa")


def test_it_is_listed_last_and_once(tmp_path: Path) -> None:
    registry = tmp_path / REGISTRY
    registry.parent.mkdir(parents=True)
    before = (PROJECT_ROOT / REGISTRY).read_text()
    registry.write_text(before)

    written = write_use_case(RETURNS, tmp_path)
    assert (written.new[-1], written.edited) == (USE_CASE, REGISTRY)

    # killed before the registry: run again, it does what is left
    registry.write_text(before)
    again = write_use_case(RETURNS, tmp_path)
    assert (again.new, again.edited) == ((), REGISTRY)

    with pytest.raises(NightshiftError, match="use case will_return is there already, as this"):
        write_use_case(RETURNS, tmp_path)
    with pytest.raises(NightshiftError, match="with another content"):
        write_use_case(replace(RETURNS, horizon_days=31), tmp_path)


def test_sources_are_found_by_name() -> None:
    assert declared_source("order_lines").relation == "marts.fct_order_lines"
