"""What a task's note in Airflow says of its result: one or two lines of Markdown.

Imported by DAG files: the results' types are for the type checker alone.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nightshift.backfill.plan import Plan
    from nightshift.features.extract_run import ExtractResult
    from nightshift.features.run import DatasetResult
    from nightshift.gates.run import Verdict
    from nightshift.ingest.run import IngestResult
    from nightshift.publishing.history_run import Pruned, RolledBack
    from nightshift.publishing.run import Publication, PublishResult
    from nightshift.quality.verdict import QualityResult
    from nightshift.scoring.comparison import Challenge
    from nightshift.scoring.run import ScoreResult
    from nightshift.training.run import TrainingResult
    from nightshift.transform.result import TransformResult

MAX_CHARACTERS = 1000
"""That Airflow keeps of a note."""
MAX_LINES = 5
_SLOWEST = 2
_SHOWN = {
    "auc": "AUC", "average_precision": "average precision", "log_loss": "log loss",
    "spearman": "Spearman", "mae": "MAE", "total_bias": "total bias",
    "interval_coverage": "interval coverage", "ndcg_at_k": "NDCG",
}  # fmt: skip
"""Metrics of a training's note, of the objectives that have them."""


def of_ingest(result: "IngestResult") -> str:
    """Rows and files that were loaded, rows in quarantine, sources that are held, warnings."""
    return _with_lines(
        f"**{result.rows_loaded:,} rows** loaded, {result.rows_quarantined:,} quarantined;"
        f" {result.files_loaded:,} of {result.files_seen:,} files were new",
        [
            *(f"{name} is held: {why.what.splitlines()[0]}" for name, why in result.held.items()),
            *result.warnings,
        ],
    )


def of_quality(result: "QualityResult | Sequence[QualityResult]") -> str:
    """How many rules hold, of which days; the warnings, by rule and day."""
    results = result if isinstance(result, Sequence) else [result]
    outcomes = [outcome for each in results for outcome in each.outcomes]
    warnings = [outcome for outcome in outcomes if not outcome.success]
    newest = {table: day for each in results for table, day in each.landed_dates.items()}
    days = ", ".join(f"{table} up to {day}" for table, day in sorted(newest.items()))
    return _with_lines(
        f"**{len(outcomes) - len(warnings)} of {len(outcomes)} rules hold** for {days or 'no day'}",
        [f"{o.table} landed {o.landed_date}: `{o.rule}`" for o in warnings],
    )


def of_source(result: None) -> str:
    """What a source's own task says where nothing is wrong."""
    return "no stage has refused it"


def of_transform(result: "TransformResult") -> str:
    """How many nodes dbt built, and the slowest of them."""
    slowest = sorted(result.seconds, key=lambda name: -result.seconds[name])[:_SLOWEST]
    named = ", ".join(f"`{name}` {result.seconds[name]:.1f} s" for name in slowest)
    scope = ", all of history" if result.is_full_refresh else ""
    return f"**{len(result.nodes)} dbt nodes** built{scope}; the slowest: {named or 'none'}"


def of_extract(result: "ExtractResult") -> str:
    """Rows and landed days that were brought to the lake."""
    return (
        f"**{result.rows:,} rows** of {result.days_changed:,} changed days extracted"
        f" ({result.days:,} days in all)"
    )


def of_datasets(results: "Mapping[str, DatasetResult]") -> str:
    """Vectors of each use case."""
    found = "; ".join(f"{name}: {of_dataset(each)}" for name, each in results.items())
    return found or "no use case is due"


def of_dataset(result: "DatasetResult") -> str:
    """Its rows, and whether they were there."""
    return f"**{result.rows:,} rows**{_already(not result.is_reused)}"


def of_datasets_of_nights(results: "Mapping[date, Mapping[str, DatasetResult]]") -> str:
    """Dates, and rows of all of them."""
    rows = sum(each.rows for of_night in results.values() for each in of_night.values())
    return f"**{rows:,} rows** of {len(results)} dates"


def of_score_nights(results: "Sequence[ScoreResult]") -> str:
    """Dates, rows of all of them, and versions."""
    rows, dates = sum(each.rows for each in results), {each.as_of for each in results}
    versions = {f"{each.use_case}/{each.model_version}" for each in results}
    return f"**{rows:,} rows** of {len(dates)} dates scored by {', '.join(sorted(versions))}"


def of_score(result: "ScoreResult") -> str:
    """Rows and version."""
    return (
        f"**{result.rows:,} rows** scored by version {result.model_version}"
        f"{_already(result.is_new)}"
        + (f"; alerts from {result.threshold.value:.4f} on" if result.threshold else "")
    )


def of_challenge(result: "Challenge | None") -> str:
    """How the challenger stands beside the champion."""
    if result is None:
        return "no challenger"
    found, correlation = result.comparison, result.comparison.rank_correlation
    return (
        f"**{found.rows:,} rows** scored by version {result.challenger_version} too:"
        f" {found.agreement:.1%} in the band that version {result.champion_version} gives"
        + ("" if correlation is None else f", rank correlation {correlation:.3f}")
    )


def of_publish(result: "PublishResult") -> str:
    """Each use case's rows, version and stability."""
    found = "; ".join(f"{each.use_case}: {_published(each)}" for each in result.publications)
    return found or "nothing to publish: no use case that is due was scored"


def of_publish_nights(results: "Sequence[PublishResult]") -> str:
    """Dates and rows of a backfill."""
    rows = sum(each.rows for result in results for each in result.publications)
    days = [result.as_of for result in results]
    return f"**{rows:,} rows** of {len(days)} dates published at once, {min(days)} to {max(days)}"


def of_prune(result: "Pruned") -> str:
    """How many publications went where."""
    counts = {
        word: sum(map(len, found.values()))
        for word, found in (
            ("dropped", result.dropped), ("discarded", result.discarded),
            ("archived", result.archived), ("waiting", result.waiting),
        )
    }  # fmt: skip
    return ", ".join(f"{count} {word}" for word, count in counts.items() if count) or "all are kept"


def of_rollback(result: "RolledBack") -> str:
    """How many dates of each use case show what they showed before, and which do not."""
    names = dict.fromkeys(each.use_case for each in (*result.shown, *result.stayed))
    lines = []
    for name in names:
        shown = [each.as_of for each in result.shown if each.use_case == name]
        stayed = [each.as_of for each in result.stayed if each.use_case == name]
        forward = [each.as_of for each in result.forward if each.use_case == name]
        found = []
        if shown:
            found.append(f"**{_dates(shown)}** as before")
        if forward:
            found.append(f"{_dates(forward)} of them had been rolled back, and go forward again")
        if stayed:
            found.append(f"{_dates(stayed)} as they are, for nothing before them is kept")
        lines.append(f"{name}: {'; '.join(found)}")
    if len(lines) == 1:
        return lines[0]
    return _with_lines(f"**{len(result.shown)} publications** as before", lines)


def _dates(dates: Sequence[date]) -> str:
    if len(dates) == 1:
        return f"1 date, {dates[0]},"
    return f"{len(dates)} dates, {min(dates)} to {max(dates)},"


def of_models(versions: Mapping[str, str]) -> str:
    """Which versions are champion again."""
    return "; ".join(
        f"{name}: **version {version}** is champion again, and scores the next night"
        for name, version in versions.items()
    )


def of_training(result: "TrainingResult") -> str:
    """Version, its test figures, rows and trees."""
    figures = [
        f"{word} {result.metrics[f'test_{metric}']:.4f}"
        for metric, word in _SHOWN.items()
        if f"test_{metric}" in result.metrics
    ]
    return (
        f"**version {result.version}**: {', '.join([*figures, f'{result.trees} trees'])},"
        f" of {result.rows:,} rows"
    )


def of_verdict(verdict: "Verdict") -> str:
    """What the judgement led to, and each gate that failed."""
    passed = sum(each.passed for each in verdict.results)
    return _with_lines(
        f"**version {verdict.candidate_version}: {verdict.outcome}**;"
        f" {passed} of {len(verdict.results)} gates passed",
        [f"`{each.gate}`: {each.detail}" for each in verdict.failures],
    )


def of_plan(plan: "Plan") -> str:
    """What a backfill will do; what is left out, time and consumers before the details, which may
    be cut off."""
    first, *rest = [*plan.changes[:1], *plan.outlook, *plan.changes[1:]]
    return "\n".join([f"**{first}**", "", *(f"- {line.strip()}" for line in rest)])


def of_missing(missing: Sequence[str]) -> str:
    """What had not landed when the wait ended."""
    if not missing:
        return "everything that was expected has landed"
    return _with_lines("not landed by the deadline", missing)


def finished(note: str, seconds: float) -> str:
    """A note with the time that the task took, in the length that Airflow keeps."""
    tail = f" · {seconds:.1f} s"
    first, _, rest = note.partition("\n")
    return shortened(f"{first}{tail}" + (f"\n{rest}" if rest else ""))


def shortened(note: str) -> str:
    """A note in the length that Airflow keeps."""
    return note if len(note) <= MAX_CHARACTERS else note[: MAX_CHARACTERS - 1] + "…"


def _published(publication: "Publication") -> str:
    stability = "".join(
        f", PSI {index:.3f} ({rule.removeprefix('stable_').replace('_', ' ')})"
        for rule, index in publication.stability.items()
    )
    return (
        f"**{publication.rows:,} rows** of version {publication.model_version}{stability}"
        f"{_already(publication.is_new)}"
    )


def _already(is_new: bool) -> str:
    return "" if is_new else ", there already"


def _with_lines(text: str, lines: Iterable[str]) -> str:
    found = list(lines)
    if not found:
        return text
    more = [f"and {len(found) - MAX_LINES} more"] if len(found) > MAX_LINES else []
    return "\n".join([text, "", *(f"- {line}" for line in [*found[:MAX_LINES], *more])])
