from dataclasses import replace
from datetime import UTC, date, datetime

import pytest

from nightshift.publication import ScoresManifest, publication_id
from nightshift.publishing.audit import Figures, judge
from nightshift.use_cases.churn import CHURN

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
SOUND = Figures(
    rows=100,
    scores_out_of_range=0,
    unknown_bands=0,
    misplaced_bands=0,
    without_reasons=0,
    other_model_versions=0,
    keys_missing=0,
    keys_repeated=0,
)


def test_sound_scores_break_no_rule() -> None:
    assert judge(CHURN, MANIFEST, SOUND) == ()


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
def test_each_rule_can_fail(figures: Figures, finding: str) -> None:
    assert [str(found) for found in judge(CHURN, MANIFEST, figures)] == [finding]


def test_rows_are_those_of_the_manifest_and_of_the_population() -> None:
    assert [str(f) for f in judge(CHURN, MANIFEST, replace(SOUND, rows=99))] == [
        "rows_as_in_manifest: observed 99 rows, expected 100",
        "rows_as_in_population: observed 99 rows, expected 100",
    ]


def test_an_unscored_part_of_the_population_is_a_finding() -> None:
    manifest = MANIFEST.model_copy(update={"population_rows": 101})

    assert [f.rule for f in judge(CHURN, manifest, SOUND)] == ["rows_as_in_population"]


def test_no_rows_at_all_are_never_published() -> None:
    manifest = MANIFEST.model_copy(update={"rows": 0, "population_rows": 0})

    assert [f.rule for f in judge(CHURN, manifest, replace(SOUND, rows=0))] == ["not_empty"]


def test_an_id_that_its_parts_do_not_give_is_a_finding() -> None:
    manifest = MANIFEST.model_copy(update={"model_version": "4"})

    assert [f.rule for f in judge(CHURN, manifest, SOUND)] == ["publication_id"]
