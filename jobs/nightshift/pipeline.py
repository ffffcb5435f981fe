"""The stages in order: what a night, a training and an evaluation consist of.

The command line runs these; Airflow runs the same stage functions as tasks of their own.
"""

import logging
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, timedelta

from nightshift.contracts import SOURCES, load_contract
from nightshift.erasure import run as erasure
from nightshift.errors import NightshiftError
from nightshift.features import run as features
from nightshift.features.extract_run import extract
from nightshift.gates import run as gates
from nightshift.ingest import run as ingest
from nightshift.io import model_store
from nightshift.io.warehouse import pseudonym
from nightshift.monitoring import run as monitoring
from nightshift.publishing import run as publishing
from nightshift.quality import run as quality
from nightshift.scoring import run as scoring
from nightshift.settings import Settings
from nightshift.spec import UseCase
from nightshift.training import run as training
from nightshift.transform import run as transform

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
    """One night: prepare, features, score, publish. Running it again changes nothing."""
    prepare(settings, use_cases, as_of)
    with stage("features"):
        features.build_features(settings, use_cases, as_of)
    with stage("score"):
        for use_case in use_cases:
            scoring.score(settings, use_case, as_of)
    with stage("publish"):
        return publishing.publish(settings, use_cases, as_of)


def train(
    settings: Settings,
    use_case: UseCase,
    as_of: date,
    *,
    trials: int | None = None,
    minutes: float | None = None,
    may_promote: bool = True,
) -> gates.Verdict:
    """Prepare, build the training set, train, judge; the champion moves if every gate passes.

    ``trials`` and ``minutes`` replace the budget of the spec's search. Without ``may_promote``, a
    dry run, the champion stays in any case.
    """
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
    is_personal = any(use_case.key in load_contract(source).pii for source in SOURCES)
    is_pseudonym = re.fullmatch(r"[0-9a-f]{32}", entity) is not None
    key = pseudonym(settings, entity) if is_personal and not is_pseudonym else entity
    replayed = features.replay(settings, use_case, key, as_of, newest)
    explained = []
    if replayed.vectors.num_rows:
        explained = scoring.explain_rows(settings, use_case, as_of, replayed.vectors, version)
    return Case(use_case, as_of, key, replayed, tuple(explained))


def evaluate(settings: Settings, use_case: UseCase, as_of: date) -> monitoring.MaturedQuality:
    """Measure what was published for ``as_of`` against its labels, which have landed since."""
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
    with stage("erase_derived"):
        erasure.erase_derived(settings, use_cases, opened)
    return erasure.complete(settings, use_cases, opened)
