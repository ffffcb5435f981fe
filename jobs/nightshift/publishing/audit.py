"""The rules that scores must meet before a reader may see them."""

from dataclasses import dataclass

from nightshift.publication import ScoresManifest, reasons_per_row
from nightshift.spec import UseCase


@dataclass(frozen=True)
class Figures:
    """What one scan of the staging table found; each a number of rows."""

    rows: int
    scores_out_of_range: int
    unknown_bands: int
    misplaced_bands: int
    without_reasons: int
    other_model_versions: int
    keys_missing: int
    keys_repeated: int


@dataclass(frozen=True)
class Finding:
    """A broken rule."""

    rule: str
    observed: str
    expected: str

    def __str__(self) -> str:
        return f"{self.rule}: observed {self.observed}, expected {self.expected}"


def judge(use_case: UseCase, manifest: ScoresManifest, figures: Figures) -> tuple[Finding, ...]:
    """Every rule that the figures break; none means that the scores may be published."""
    bands = [band.name for band in use_case.bands]
    findings: list[Finding] = []
    if manifest.publication_id != manifest.expected_publication_id:
        findings.append(
            Finding("publication_id", manifest.publication_id, manifest.expected_publication_id)
        )
    for rule, expected in (
        ("rows_as_in_manifest", manifest.rows),
        ("rows_as_in_population", manifest.population_rows),
    ):
        if figures.rows != expected:
            findings.append(Finding(rule, f"{figures.rows} rows", str(expected)))
    if figures.rows == 0:
        findings.append(Finding("not_empty", "0 rows", "at least 1"))
    for rule, count, expectation in (
        ("key_not_null", figures.keys_missing, f"a {use_case.key} on every row"),
        ("key_unique", figures.keys_repeated, f"each {use_case.key} once"),
        (
            "score_in_range",
            figures.scores_out_of_range,
            f"every {use_case.score_column} a number in [0, 1]",
        ),
        ("band_known", figures.unknown_bands, f"one of {', '.join(bands)}"),
        ("band_fits_score", figures.misplaced_bands, "the band that the spec gives the score"),
        (
            "reasons_present",
            figures.without_reasons,
            f"{reasons_per_row(use_case)} reasons on every row",
        ),
        ("one_model_version", figures.other_model_versions, manifest.model_version),
    ):
        if count:
            findings.append(Finding(rule, f"{count} rows that break it", expectation))
    return tuple(findings)
