import pytest

from nightshift.errors import NightshiftError
from nightshift.publishing import sql
from nightshift.use_cases.churn import CHURN
from nightshift.use_cases.recommendations import RECOMMENDATIONS
from nightshift.use_cases.spend import SPEND


def test_the_published_columns_are_a_contract() -> None:
    assert {name: kind for name, (kind, _) in sql.columns(CHURN).items()} == {
        "customer_id": "text",
        "as_of": "date",
        "churn_probability": "double precision",
        "band": "text",
        "reasons": "jsonb",
        "model_version": "text",
        "publication_id": "text",
        "scored_at": "timestamp with time zone",
    }


def test_amounts_have_their_unit_and_the_interval_beside_them() -> None:
    found = sql.columns(SPEND)

    assert list(found)[2:6] == [
        "expected_spend", "expected_spend_low", "expected_spend_high", "band"
    ]  # fmt: skip
    assert found["expected_spend"][1].endswith("net of cancellations. In pounds.")
    assert found["expected_spend_low"] == (
        "double precision",
        "The lower end of the interval that holds 80% of what happens: at most 10% are below it."
        " In pounds.",
    )
    assert (
        "contribution (SHAP, in the multiple of customer_net_amount_sum_365d)"
        in found["reasons"][1]
    )
    assert "Between 0 and 1." in sql.columns(CHURN)["churn_probability"][1]


def test_another_use_case_has_tables_of_its_own() -> None:
    ordered = CHURN.population.model_copy(update={"key": "order"})
    other = CHURN.model_copy(update={"name": "lapse", "key": "order", "population": ordered})

    assert sql.data_table(other) == "lapse_publications_data"
    assert sql.partition(other, "0123456789abcdef") == "lapse_p_0123456789abcdef"
    assert sql.view_names(other) == ("lapse", "lapse_latest")
    assert sql.add_unique_index(other, "0123456789abcdef") == (
        'create unique index "key_0123456789abcdef" on predictions."lapse_p_0123456789abcdef"'
        ' ("order")'
    )


def test_an_index_a_band_and_none_of_a_ranking() -> None:
    made = sql.add_band_indexes(CHURN, "0123456789abcdef")

    assert [line.rpartition(" where ")[2] for line in made] == [
        f"band = '{band.name}'" for band in CHURN.bands
    ]
    assert sql.add_band_indexes(RECOMMENDATIONS, "0123456789abcdef") == []


def test_the_fingerprint_changes_with_the_definition_only() -> None:
    same = sql.view_comments(CHURN.model_copy(update={"owner": "someone else"}))
    changed = sql.view_comments(CHURN.model_copy(update={"score_column": "risk"}))

    assert same == sql.view_comments(CHURN)
    assert changed["churn"] != same["churn"]


@pytest.mark.parametrize(("length", "is_refused"), [(44, False), (45, True)])
def test_a_name_that_postgres_would_cut_is_refused(length: int, is_refused: bool) -> None:
    use_case = CHURN.model_copy(update={"name": "x" * length})

    if is_refused:
        with pytest.raises(NightshiftError, match="45 characters"):
            sql.check_name(use_case)
    else:
        sql.check_name(use_case)
        assert len(sql.partition(use_case, "0" * 16)) == 63
