"""The stages in order: what a night, a training and an evaluation consist of.

The command line runs these; Airflow runs the same stage functions as tasks of their own. Training
and monitoring are imported where they run: a night need not pay for scikit-learn and its plots.
"""

import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, timedelta
from typing import TYPE_CHECKING

from nightshift.backfill import run as backfills
from nightshift.contracts import SOURCES, load_contract
from nightshift.erasure import run as erasure
from nightshift.errors import NightshiftError, joined
from nightshift.features import run as features
from nightshift.features.extract_run import extract
from nightshift.gates import run as gates
from nightshift.ingest import run as ingest
from nightshift.io import model_store
from nightshift.io.held_sources import free, held_sources, require_all_free
from nightshift.io.warehouse import pseudonym
from nightshift.publishing import run as publishing
from nightshift.publishing.history_run import prune
from nightshift.quality import run as quality
from nightshift.quality.verdict import QualityResult
from nightshift.receipt import run as receipts
from nightshift.receipt.facts import Receipt
from nightshift.scoring import run as scoring
from nightshift.settings import Settings
from nightshift.spec import UseCase
from nightshift.transform import run as transform

if TYPE_CHECKING:
    from nightshift.monitoring.run import MaturedQuality

log = logging.getLogger(__name__)


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Say that a stage begins, and how long it took once it has ended well."""
    log.info("stage %s: begins", name)
    started = time.monotonic()
    yield
    log.info("stage %s: done in %.1f s", name, time.monotonic() - started)


def prepare(settings: Settings, use_cases: Sequence[UseCase], as_of: date) -> None:
    """Landing zone → raw → checked → marts → lake: what every run stands on."""
    with stage("ingest"):
        ingest.ingest(settings, as_of)
    with stage("quality"):
        quality.check_landed(settings, as_of)
    with stage("transform"):
        transform.build(settings, as_of)
    with stage("quality_marts"):
        quality.check_marts(settings, as_of)
    with stage("extract"):
        extract(settings, use_cases, as_of)


def nightly(
    settings: Settings, use_cases: Sequence[UseCase], as_of: date
) -> publishing.PublishResult:
    """One night: prepare, features, score, publish. Running it again changes nothing.

    Of use cases that are not due nothing is made, and readers keep what they have.

    Raises:
        NightshiftError: also when a single use case failed, or a source was refused, once what
            that does not hold is published.
    """
    prepare(settings, use_cases, as_of)
    read = {source for use_case in use_cases for source in use_case.landings}
    refusals = [why for source, why in held_sources(settings, as_of).items() if source in read]
    due = [use_case for use_case in use_cases if use_case.is_due(as_of)]
    for use_case in use_cases:
        if use_case not in due:
            log.info("%s is %s", use_case.name, use_case.why_not_due(as_of))
    if not due:
        if refusals:
            raise joined(refusals)
        return publishing.PublishResult(as_of, ())
    with stage("features"):
        features.build_features(settings, due, as_of)
    scored: list[UseCase] = []
    with stage("score"):
        for use_case in free(settings, due, as_of):
            try:
                scoring.score(settings, use_case, as_of)
                scored.append(use_case)
            except NightshiftError as refusal:
                log.error("%s is not scored: %s", use_case.name, refusal)
                refusals.append(refusal)
    if not scored:
        raise joined(refusals)
    with stage("publish"):
        try:
            published = publishing.publish(settings, scored, as_of)
        except NightshiftError as refusal:
            refusals.append(refusal)
    with stage("prune"):
        prune(settings, use_cases, as_of)
    with stage("challenge"):
        for use_case in scored:
            try:
                scoring.challenge(settings, use_case, as_of)
            except NightshiftError as error:
                # what readers see is the champion's, and is published
                log.error("no challenge of %s: %s", use_case.name, error)
    if refusals:
        raise joined(refusals)
    return published


def backfill(
    settings: Settings, request: backfills.Request
) -> tuple[publishing.PublishResult, ...]:
    """Many nights for the price of few: prepare and features once for all, score, and publish them
    in one instant. Run again after a kill, it goes on from what is complete.

    Raises:
        RefusedAsOf: when the dates, or the champions of them, are not there.
    """
    with stage("plan"):
        log.info("%s", backfills.plan(settings, request).text)
    with stage("ingest"):
        ingest.ingest(settings, request.last)
    with stage("quality"):
        check_landed_of_nights(settings, request)
    with stage("transform"):
        transform.build(settings, request.last)
    with stage("quality_marts"):
        check_marts_of_nights(settings, request)
    with stage("extract"):
        extract(settings, request.use_cases, request.last)
    with stage("features"):
        build_features_of_nights(settings, request)
    with stage("score"):
        score_nights(settings, request)
    with stage("publish"):
        published = publish_nights(settings, request)
    with stage("prune"):
        prune(settings, request.use_cases, request.last)
    return published


def check_landed_of_nights(settings: Settings, request: backfills.Request) -> list[QualityResult]:
    """Check every landed day that the nights would check, each once.

    Raises:
        NightshiftError: when any of the use cases is held: a backfill is all or nothing.
    """
    return _checked(settings, request, quality.check_landed)


def check_marts_of_nights(settings: Settings, request: backfills.Request) -> list[QualityResult]:
    """The same of the marts."""
    return _checked(settings, request, quality.check_marts)


def _checked(
    settings: Settings,
    request: backfills.Request,
    check: Callable[[Settings, date], QualityResult],
) -> list[QualityResult]:
    results = []
    for as_of in request.dates[:: -quality.FOLDERS_CHECKED]:
        results.append(check(settings, as_of))
        require_all_free(settings, request.use_cases, as_of)
    return results


def build_features_of_nights(
    settings: Settings, request: backfills.Request
) -> dict[date, dict[str, features.DatasetResult]]:
    """The vectors of a backfill's nights, in one Spark job."""
    require_all_free(settings, request.use_cases, request.last)
    nights = backfills.choose_nights(settings, request)
    return features.build_features_of_nights(settings, backfills.by_date(nights))


def score_nights(settings: Settings, request: backfills.Request) -> list[scoring.ScoreResult]:
    """The scores of a backfill's nights, each by its model."""
    nights = backfills.choose_nights(settings, request)
    results = []
    for use_case in request.use_cases:
        models = {night.as_of: night.model for night in nights if night.use_case == use_case}
        results += scoring.score_nights(settings, use_case, models)
    return results


def publish_nights(
    settings: Settings, request: backfills.Request
) -> tuple[publishing.PublishResult, ...]:
    """What readers see of a backfill's nights, all of them moved at once."""
    nights = backfills.choose_nights(settings, request)
    return publishing.publish_nights(settings, backfills.by_date(nights))


def train(
    settings: Settings,
    use_case: UseCase,
    as_of: date,
    *,
    trials: int | None = None,
    minutes: float | None = None,
    may_promote: bool = True,
    is_prepared: bool = False,
) -> gates.Verdict:
    """Prepare, build the training set, train, judge; the champion moves if every gate passes.

    ``trials`` and ``minutes`` replace the budget of the spec's search. Without ``may_promote``, a
    dry run, the champion stays in any case. Where it ``is_prepared``, for several use cases at
    once, that is not done again.
    """
    from nightshift.training import run as training

    if not is_prepared:
        prepare(settings, [use_case], as_of)
    with stage("training_set"):
        features.build_training_set(settings, use_case, as_of)
    with stage("training"):
        training.train(settings, use_case, as_of, trials=trials, minutes=minutes)
    with stage("gates"):
        return gates.judge(settings, use_case, as_of, may_promote=may_promote)


@dataclass(frozen=True)
class Reproduction:
    """A training done again from what it left.

    Attributes:
        run_id: its MLflow run.
        dataset: SHA-256 of the training set, then and now.
        model: SHA-256 of the model's bytes, then and now; None where the training set is another.
        differences: what is known to be other than then, in words.
    """

    run_id: str
    dataset: tuple[str, str]
    model: tuple[str, str | None]
    differences: tuple[str, ...]

    @property
    def is_same(self) -> bool:
        """Whether the same training set gave the same bytes."""
        return self.dataset[0] == self.dataset[1] and self.model[0] == self.model[1]


def reproduce(settings: Settings, named: str) -> Reproduction:
    """Make a run's training set and model again, from the lake, as its manifest tells.

    Args:
        named: an MLflow run by its id, or a version as ``churn/3``.

    Raises:
        NightshiftError: when the run, its files or the lake's rows are gone.
    """
    from nightshift.training import run as training

    kept = training.kept(settings, model_store.run_id_of(settings, named))
    then = str(kept.manifest["sha256"])
    with (
        stage("training_set"),
        features.training_set_again(settings, kept.use_case, kept.manifest) as (folder, now, found),
    ):
        model = None
        if now["sha256"] == then:
            model = training.rebuild(settings, kept.model, folder)
    return Reproduction(
        kept.run_id,
        (then, str(now["sha256"])),
        (kept.model_sha256, model),
        (*found, *training.changed_libraries(kept.manifest)),
    )


@dataclass(frozen=True)
class Case:
    """One entity at one date: what was known of it, and its scores; none outside the population.

    Attributes:
        entity: its key, as in marts and predictions.
    """

    use_case: UseCase
    as_of: date
    entity: str
    replayed: features.Replayed
    explained: tuple[scoring.Explained, ...]


def explain(
    settings: Settings,
    use_case: UseCase,
    entity: str,
    as_of: date,
    *,
    version: str | None = None,
    newest: int = 10,
) -> Case:
    """Replay one case from the lake: rows, features, contributions, score.

    Args:
        entity: its key, as it lands; a pseudonym is taken as well.
        version: of the model; None for the champion.
        newest: how many rows of each source are shown at most.

    Raises:
        NightshiftError: when nothing was known of the entity, or there is no such model.
    """
    key = _stored(settings, use_case.key, entity)
    replayed = features.replay(settings, use_case, key, as_of, newest)
    explained = []
    if replayed.vectors.num_rows:
        explained = scoring.explain_rows(settings, use_case, as_of, replayed.vectors, version)
    return Case(use_case, as_of, key, replayed, tuple(explained))


def receipt(
    settings: Settings,
    use_case: UseCase,
    entity: str | None,
    as_of: date | None = None,
    publication: str | None = None,
    named: Mapping[str, str] | None = None,
) -> Receipt:
    """Follow a published row back to features, files, model, gates, training and code.

    Args:
        entity: its key, as it lands; a pseudonym is taken as well, and where no row has this key,
            the value of another column that names a row. None where ``named`` is enough.
        as_of: None for the newest date on which readers see a row of it.
        publication: an id, also of one that readers no longer see.
        named: column that names a row → its value, as it lands, where rows have the same key.

    Raises:
        NightshiftError: when there is no such publication, or no such column.
    """
    named = {} if named is None else named
    for column in named:
        if column not in use_case.row_key:
            raise NightshiftError(
                f"no column {column} names a row of {use_case.name}",
                f"the columns are {', '.join(use_case.row_key)}",
            )
    names = {column: _stored(settings, column, value) for column, value in named.items()}
    key = None if entity is None else _stored(settings, use_case.key, entity)
    told = receipts.recorded(settings, use_case, key, as_of, publication, names)
    if told["row"] is None and entity != key:
        other = receipts.recorded(settings, use_case, entity, as_of, publication, names)
        told = other if other["row"] is not None else told
    values = receipts.feature_values(settings, use_case, told)
    training_set = receipts.training_manifest(settings, told)
    remade, problem = None, None if values.vector else "there are no features to compare with"
    if values.vector:
        try:
            row = receipts.named(use_case, told)
            replayed = features.replay(
                settings, use_case, row[use_case.key], date.fromisoformat(told["as_of"]), newest=0
            )
            now = (each for each in replayed.vectors.to_pylist() if row.items() <= each.items())
            again: dict[str, object] = next(now, {})
            # repr tells the bits of a number
            remade = tuple(
                name
                for name, value in values.vector.items()
                if repr(again.get(name, "none")) != repr(value)
            )
        except NightshiftError as error:
            problem = error.what
    return Receipt(use_case, told, values, training_set, remade, problem)


def _stored(settings: Settings, column: str, value: str) -> str:
    """What stands for a value in marts and predictions; it is given as it lands, or so."""
    is_personal = any(column in load_contract(source).pii for source in SOURCES)
    is_pseudonym = re.fullmatch(r"[0-9a-f]{32}", value) is not None
    return pseudonym(settings, value) if is_personal and not is_pseudonym else value


def evaluate(settings: Settings, use_case: UseCase, as_of: date) -> "MaturedQuality":
    """Measure what was published for ``as_of`` against its labels, which have landed since."""
    from nightshift.monitoring import run as monitoring

    monitoring.require_published(settings, use_case, as_of)
    prepare(settings, [use_case], as_of + timedelta(days=use_case.label.maturity_days))
    with stage("labels"):
        features.build_labels(settings, use_case, as_of)
    with stage("evaluation"):
        return monitoring.measure_matured(settings, use_case, as_of)


def erase(
    settings: Settings, use_cases: Sequence[UseCase], subject: str, as_of: date | None = None
) -> erasure.Certificate:
    """Remove a person from everything that Nightshift holds. Running it again completes it.

    Args:
        subject: the person's id, as it lands in the columns that contracts classify as personal.
        as_of: to which the marts are brought; None for that of their newest build.

    Raises:
        NightshiftError: when the marts cannot be rebuilt. What was erased before stays erased.
    """
    opened = erasure.begin(settings, use_cases, subject)
    as_of = as_of or erasure.last_as_of(settings)
    with stage("erase_landed"):
        erasure.erase_landed(settings, opened)
    if as_of is not None:
        with stage("ingest"):
            try:
                ingest.ingest(settings, as_of)
            except NightshiftError as refusal:
                # a damaged file of somebody else is no reason to keep this person's rows
                log.warning("%s", refusal)
    with stage("erase_loaded"):
        erasure.erase_loaded(settings, opened)
    if as_of is not None:
        with stage("transform"):
            transform.build(settings, as_of)
            held = held_sources(settings, as_of, ["transform"])
            if held:
                raise joined(list(held.values()))
    with stage("erase_derived"):
        erasure.erase_derived(settings, use_cases, opened)
    return erasure.complete(settings, use_cases, opened)
