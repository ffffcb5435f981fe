"""The rules that scores must meet before a reader may see them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Literal

from nightshift.distribution import Distribution, by_chance, stability_index
from nightshift.publication import ScoresManifest, reasons_of, reasons_per_row
from nightshift.spec import (
    Audit,
    BandShare,
    KeyKnown,
    ListsFull,
    ReasonsPresent,
    RowsAsInPopulation,
    ScoreInRange,
    StableSincePrevious,
    StableSinceTraining,
    UseCase,
    audit_name,
)

# What two roundings of the same figure may differ by: equal to a bound passes.
ROUNDING = 1e-9


@dataclass(frozen=True)
class Figures:
    """What one scan of the staging table found; each a number of rows, or of lists."""

    rows: int
    scores_out_of_range: int
    unknown_bands: int
    misplaced_bands: int
    without_reasons: int
    other_model_versions: int
    broken_intervals: int
    keys_missing: int
    keys_repeated: int
    band_rows: Mapping[str, int]
    lists: int = 0
    full_lists: int = 0
    broken_lists: int = 0


@dataclass(frozen=True)
class Compared:
    """Scores against a reference: ``counts`` are theirs, over the reference's bins."""

    reference: Distribution
    counts: Sequence[int]


@dataclass(frozen=True)
class Previous:
    """The publication before; ``compared`` is None where it kept no distribution."""

    publication_id: str
    as_of: date
    model_version: str
    compared: Compared | None


@dataclass(frozen=True)
class Evidence:
    """What the audit judges.

    Attributes:
        figures: of the staging table.
        keys_unknown: keys that the features do not have; None where the features that were scored
            are no longer in the lake.
        previous: None where nothing was published for this date or an earlier one.
        training: None where the model's signature tells no distribution.
    """

    figures: Figures
    keys_unknown: int | None
    previous: Previous | None
    training: Compared | None


@dataclass(frozen=True)
class AuditResult:
    """One rule's outcome; ``observed`` and ``bound`` are None where there is no figure."""

    rule: str
    outcome: Literal["passed", "failed", "not_applied"]
    observed: float | None
    bound: float | None
    detail: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.detail}"


def judge(
    use_case: UseCase, manifest: ScoresManifest, evidence: Evidence
) -> tuple[AuditResult, ...]:
    """The outcome of every rule: those that hold for every publication, then those of the spec."""
    figures = evidence.figures
    bands = ", ".join(band.name for band in use_case.bands)
    named = " and ".join(use_case.row_key)
    is_its_id = manifest.publication_id == manifest.expected_publication_id
    return (
        AuditResult(
            "publication_id", "passed" if is_its_id else "failed", None, None,
            f"observed {manifest.publication_id}, expected {manifest.expected_publication_id}",
        ),
        AuditResult(
            "rows_as_in_manifest", _outcome(figures.rows == manifest.rows),
            figures.rows, manifest.rows,
            f"observed {figures.rows} rows, expected {manifest.rows}",
        ),
        AuditResult(
            "not_empty", _outcome(figures.rows > 0), figures.rows, 1,
            f"observed {figures.rows} rows, expected at least 1",
        ),
        _no_rows("key_not_null", figures.keys_missing, f"a {named} on every row"),
        _no_rows("key_unique", figures.keys_repeated, f"each {named} once"),
        _no_rows("band_known", figures.unknown_bands, f"one of {bands}"),
        _no_rows(
            "band_fits_score", figures.misplaced_bands, "the band that the spec gives the score"
        ),
        _no_rows("one_model_version", figures.other_model_versions, manifest.model_version),
        *_interval(use_case, figures),
        *_lists(use_case, figures),
        *(_judge(audit, use_case, manifest, evidence) for audit in use_case.audits),
    )  # fmt: skip


def _interval(use_case: UseCase, figures: Figures) -> tuple[AuditResult, ...]:
    """The rule of use cases that publish an interval."""
    if use_case.interval is None:
        return ()
    low, high = use_case.interval_columns
    return (
        _no_rows("interval_in_order", figures.broken_intervals, f"numbers, {low} at most {high}"),
    )


def _lists(use_case: UseCase, figures: Figures) -> tuple[AuditResult, ...]:
    """The rule of rankings."""
    if use_case.shown is None:
        return ()
    what = f"lists of at most {use_case.shown} with places 1, 2, 3 and so on, scores falling"
    return (_no_rows("lists_in_order", figures.broken_lists, what, "lists"),)


def _judge(
    audit: Audit, use_case: UseCase, manifest: ScoresManifest, evidence: Evidence
) -> AuditResult:
    rule, figures = audit_name(audit), evidence.figures
    match audit:
        case RowsAsInPopulation():
            return _rows_as_in_population(audit, manifest, figures)
        case KeyKnown():
            if evidence.keys_unknown is None:
                return _not_applied(rule, "the features that were scored are no longer in the lake")
            return _no_rows(rule, evidence.keys_unknown, "keys of the features that were scored")
        case ScoreInRange():
            return _no_rows(
                rule, figures.scores_out_of_range,
                f"every {use_case.score_column} a number in [{audit.low:g}, {audit.high:g}]",
            )  # fmt: skip
        case ReasonsPresent():
            silent = [band.name for band in use_case.bands if not reasons_of(use_case, band)]
            where = f"every row, none in {', '.join(silent)}" if silent else "every row"
            return _no_rows(
                rule, figures.without_reasons, f"{reasons_per_row(use_case)} reasons on {where}"
            )
        case ListsFull():
            share = figures.full_lists / figures.lists if figures.lists else 0.0
            return AuditResult(
                rule, _outcome(share >= audit.at_least - ROUNDING), share, audit.at_least,
                f"observed {share:.1%} of {figures.lists} lists with {use_case.shown} items,"
                f" expected {audit.at_least:.1%}",
            )  # fmt: skip
        case BandShare():
            return _band_share(audit, figures)
        case StableSincePrevious():
            return _stable_since_previous(audit, manifest, evidence.previous)
        case StableSinceTraining():
            if use_case.shown is not None:
                return _not_applied(rule, "a training tells the scores of whole lists")
            if evidence.training is None:
                return _not_applied(
                    rule,
                    f"version {manifest.model_version} of the model does not tell how its scores "
                    "were distributed at its training: it is of an older Nightshift",
                )
            return _stable(rule, audit.psi, evidence.training, "the model's training")


def _rows_as_in_population(
    audit: RowsAsInPopulation, manifest: ScoresManifest, figures: Figures
) -> AuditResult:
    fewest = math.ceil(audit.at_least * manifest.population_rows - ROUNDING)
    asked = f"{fewest} to " if fewest < manifest.population_rows else ""
    return AuditResult(
        audit_name(audit),
        _outcome(fewest <= figures.rows <= manifest.population_rows),
        figures.rows,
        fewest if figures.rows <= manifest.population_rows else manifest.population_rows,
        f"observed {figures.rows} rows, expected {asked}{manifest.population_rows}",
    )


def _band_share(audit: BandShare, figures: Figures) -> AuditResult:
    share = figures.band_rows.get(audit.band, 0) / figures.rows if figures.rows else 0.0
    is_low = share < audit.at_least - ROUNDING
    return AuditResult(
        audit_name(audit),
        _outcome(not is_low and share <= audit.at_most + ROUNDING),
        share,
        audit.at_least if is_low else audit.at_most,
        f"observed {share:.1%} of the rows in band {audit.band}, expected {audit.at_least:.1%} to "
        f"{audit.at_most:.1%}",
    )


def _stable_since_previous(
    audit: StableSincePrevious, manifest: ScoresManifest, previous: Previous | None
) -> AuditResult:
    rule = audit_name(audit)
    if previous is None:
        return _not_applied(rule, "nothing was published for this as_of or an earlier one")
    which = f"publication {previous.publication_id} of {previous.as_of}"
    if previous.model_version != manifest.model_version:
        return _not_applied(
            rule,
            f"{which} is of version {previous.model_version} of the model, this one of "
            f"{manifest.model_version}",
        )
    if (manifest.as_of - previous.as_of).days > audit.within_days:
        return _not_applied(rule, f"{which} is more than {audit.within_days} days older")
    if previous.compared is None:
        return _not_applied(rule, f"{which} does not tell how its scores are distributed")
    return _stable(rule, audit.psi, previous.compared, which)


def _stable(rule: str, most: float, compared: Compared, since: str) -> AuditResult:
    index = stability_index(compared.reference, compared.counts)
    chance = by_chance(compared.reference, sum(compared.counts))
    is_stable = index <= most + chance + ROUNDING  # not of NaN
    return AuditResult(
        rule,
        _outcome(is_stable),
        index if math.isfinite(index) else None,
        most + chance,
        f"observed PSI {index:.3f} against {since}, expected at most {most:g} and {chance:.3f} for "
        "chance",
    )


def _no_rows(rule: str, rows: int, expected: str, what: str = "rows") -> AuditResult:
    return AuditResult(
        rule, _outcome(rows == 0), rows, 0,
        f"observed {rows} {what} that break it, expected {expected}",
    )  # fmt: skip


def _not_applied(rule: str, why: str) -> AuditResult:
    return AuditResult(rule, "not_applied", None, None, why)


def _outcome(passed: bool) -> Literal["passed", "failed"]:
    return "passed" if passed else "failed"
