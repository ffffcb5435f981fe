import math
from dataclasses import replace
from datetime import UTC, date, datetime

import pytest

from nightshift.distribution import Distribution
from nightshift.publication import ScoresManifest, publication_id
from nightshift.publishing.audit import Compared, Evidence, Figures, Previous, judge
from nightshift.spec import Audit, BandShare, RowsAsInPopulation, ScoreInRange, UseCase, audit_name
from nightshift.use_cases.churn import CHURN
from nightshift.use_cases.spend import SPEND

AS_OF = date(2011, 6, 12)
MANIFEST = ScoresManifest(
    use_case="churn",
    as_of=AS_OF,
    model_version="3",
    mlflow_run_id="run",
    publication_id=publication_id("churn", AS_OF, "3", "features"),
    rows=100,
    population_rows=100,
    features_sha256="features",
    scored_at=datetime(2011, 6, 12, 3, 0, tzinfo=UTC),
    sha256="part",
)
OF_SPEND = MANIFEST.model_copy(
    update={
        "use_case": "spend",
        "publication_id": publication_id("spend", AS_OF, "3", "features"),
    }
)
SOUND = Figures(
    rows=100,
    scores_out_of_range=0,
    unknown_bands=0,
    misplaced_bands=0,
    without_reasons=0,
    other_model_versions=0,
    broken_intervals=0,
    keys_missing=0,
    keys_repeated=0,
    band_rows={"low": 60, "medium": 30, "high": 10},
)
REFERENCE = Distribution(edges=(0.5,), counts=(500_000, 500_000))
SAME = Compared(REFERENCE, (500_000, 500_000))
MOVED = Compared(REFERENCE, (800_000, 200_000))  # PSI 0.416
BEFORE = Previous("0123456789abcdef", date(2011, 6, 11), "3", SAME)
EVIDENCE = Evidence(SOUND, keys_unknown=0, previous=BEFORE, training=SAME)


def auditing(*audits: Audit) -> UseCase:
    return CHURN.model_copy(update={"audits": audits})


def failed(
    evidence: Evidence, use_case: UseCase = CHURN, manifest: ScoresManifest = MANIFEST
) -> list[str]:
    results = judge(use_case, manifest, evidence)
    return [str(result) for result in results if result.outcome == "failed"]


def test_sound_scores_pass_every_rule() -> None:
    results = judge(CHURN, MANIFEST, EVIDENCE)

    assert {result.outcome for result in results} == {"passed"}
    assert [result.rule for result in results[8:]] == [audit_name(each) for each in CHURN.audits]


@pytest.mark.parametrize(
    ("figures", "finding"),
    [
        (
            replace(SOUND, keys_missing=1),
            "key_not_null: observed 1 rows that break it, expected a customer_id on every row",
        ),
        (
            replace(SOUND, keys_repeated=2),
            "key_unique: observed 2 rows that break it, expected each customer_id once",
        ),
        (
            replace(SOUND, scores_out_of_range=3),
            "score_in_range: observed 3 rows that break it, expected every churn_probability a "
            "number in [0, 1]",
        ),
        (
            replace(SOUND, unknown_bands=4),
            "band_known: observed 4 rows that break it, expected one of low, medium, high",
        ),
        (
            replace(SOUND, misplaced_bands=5),
            "band_fits_score: observed 5 rows that break it, expected the band that the spec "
            "gives the score",
        ),
        (
            replace(SOUND, without_reasons=6),
            "reasons_present: observed 6 rows that break it, expected 3 reasons on every row",
        ),
        (
            replace(SOUND, other_model_versions=7),
            "one_model_version: observed 7 rows that break it, expected 3",
        ),
    ],
)
def test_each_rule_of_the_rows_can_fail(figures: Figures, finding: str) -> None:
    assert failed(replace(EVIDENCE, figures=figures)) == [finding]


def test_rows_are_those_of_the_manifest_and_of_the_population() -> None:
    assert failed(replace(EVIDENCE, figures=replace(SOUND, rows=99))) == [
        "rows_as_in_manifest: observed 99 rows, expected 100",
        "rows_as_in_population: observed 99 rows, expected 100",
    ]


@pytest.mark.parametrize(
    ("rows", "finding"),
    [
        (89, ["rows_as_in_population: observed 89 rows, expected 90 to 100"]),
        (90, []),
        (100, []),
        (101, ["rows_as_in_population: observed 101 rows, expected 90 to 100"]),
    ],
)
def test_a_share_of_the_population_may_be_enough(rows: int, finding: list[str]) -> None:
    manifest = MANIFEST.model_copy(update={"rows": rows})
    evidence = replace(EVIDENCE, figures=replace(SOUND, rows=rows))

    assert failed(evidence, auditing(RowsAsInPopulation(at_least=0.9)), manifest) == finding


def test_no_rows_at_all_are_never_published() -> None:
    manifest = MANIFEST.model_copy(update={"rows": 0, "population_rows": 0})
    none = replace(EVIDENCE, figures=replace(SOUND, rows=0))

    assert failed(none, auditing(), manifest) == ["not_empty: observed 0 rows, expected at least 1"]


def test_an_id_that_its_parts_do_not_give_is_refused() -> None:
    manifest = MANIFEST.model_copy(update={"model_version": "4"})

    assert failed(EVIDENCE, auditing(), manifest)[0].startswith("publication_id: observed")


def test_keys_that_nobody_asked_for_are_refused() -> None:
    assert failed(replace(EVIDENCE, keys_unknown=2)) == [
        "key_known: observed 2 rows that break it, expected keys of the features that were scored"
    ]


@pytest.mark.parametrize(
    ("at_least", "at_most", "finding"),
    [
        (0.1, 1.0, []),
        (0.0, 0.1, []),
        (0.11, 1.0, "expected 11.0% to 100.0%"),
        (0.0, 0.09, "expected 0.0% to 9.0%"),
    ],
)
def test_the_share_of_a_band(at_least: float, at_most: float, finding: str) -> None:
    asked = BandShare(band="high", at_least=at_least, at_most=at_most)

    assert failed(EVIDENCE, auditing(asked)) == (
        [f"band_share_high: observed 10.0% of the rows in band high, {finding}"] if finding else []
    )


def test_scores_that_have_moved_since_the_publication_before_are_refused() -> None:
    moved = replace(EVIDENCE, previous=replace(BEFORE, compared=MOVED))

    assert failed(moved) == [
        "stable_since_previous: observed PSI 0.416 against publication 0123456789abcdef of "
        "2011-06-11, expected at most 0.25 and 0.000 for chance"
    ]


def test_scores_unlike_those_of_the_training_are_refused() -> None:
    assert failed(replace(EVIDENCE, training=MOVED)) == [
        "stable_since_training: observed PSI 0.416 against the model's training, expected at most "
        f"{next(a.psi for a in CHURN.audits if a.kind == 'stable_since_training'):g} and 0.000 for "
        "chance"
    ]


def test_few_rows_that_differ_by_chance_pass_and_none_at_all_do_not() -> None:
    few = Compared(REFERENCE, (8, 2))
    none = Compared(Distribution(edges=(), counts=(0,)), (10,))

    assert failed(replace(EVIDENCE, training=few)) == []
    (result,) = [
        each
        for each in judge(CHURN, MANIFEST, replace(EVIDENCE, training=none))
        if each.outcome == "failed"
    ]
    assert (result.rule, result.observed) == ("stable_since_training", None)
    assert math.isfinite(result.bound or math.nan)


@pytest.mark.parametrize(
    ("evidence", "rule", "why"),
    [
        (replace(EVIDENCE, keys_unknown=None), "key_known", "no longer in the lake"),
        (replace(EVIDENCE, training=None), "stable_since_training", "of an older Nightshift"),
        (replace(EVIDENCE, previous=None), "stable_since_previous", "nothing was published"),
        (
            replace(EVIDENCE, previous=replace(BEFORE, compared=MOVED, model_version="2")),
            "stable_since_previous",
            "is of version 2 of the model, this one of 3",
        ),
        (
            replace(EVIDENCE, previous=replace(BEFORE, compared=MOVED, as_of=date(2011, 5, 11))),
            "stable_since_previous",
            "more than 31 days older",
        ),
        (
            replace(EVIDENCE, previous=replace(BEFORE, compared=None)),
            "stable_since_previous",
            "does not tell how its scores are distributed",
        ),
    ],
)
def test_what_cannot_be_compared_is_not_applied_and_says_why(
    evidence: Evidence, rule: str, why: str
) -> None:
    (result,) = [each for each in judge(CHURN, MANIFEST, evidence) if each.outcome == "not_applied"]
    assert result.rule == rule
    assert why in result.detail


def test_an_audit_that_makes_no_sense_is_refused_where_it_is_declared() -> None:
    for audits, why in (
        ((BandShare(band="hgih"),), "'hgih' is none of the bands"),
        ((ScoreInRange(), ScoreInRange(high=2)), "the same audit twice"),
    ):
        with pytest.raises(ValueError, match=why):
            UseCase.model_validate({**dict(CHURN), "audits": audits})
    with pytest.raises(ValueError, match="low 1 is not below high 0"):
        ScoreInRange(low=1, high=0)
    with pytest.raises(ValueError, match=r"at_least 0\.5 is not below at_most 0\.4"):
        BandShare(band="high", at_least=0.5, at_most=0.4)


def test_an_interval_that_is_none_is_refused_where_one_is_published() -> None:
    broken = replace(SOUND, broken_intervals=3)
    finding = (
        "interval_in_order: observed 3 rows that break it, expected numbers, expected_spend_low at "
        "most expected_spend_high"
    )
    spend = SPEND.model_copy(update={"audits": ()})

    assert failed(replace(EVIDENCE, figures=broken), spend, OF_SPEND) == [finding]
    assert failed(EVIDENCE, spend, OF_SPEND) == []
    assert failed(replace(EVIDENCE, figures=broken), auditing()) == []
