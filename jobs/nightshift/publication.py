"""What scoring hands to publishing: the manifest beside a night's scores."""

import hashlib
import json
from datetime import date, datetime

from pydantic import BaseModel, ConfigDict, Field

from nightshift.distribution import Distribution
from nightshift.spec import Band, UseCase


def publication_id(use_case: str, as_of: date, model_version: str, features_sha256: str) -> str:
    """16 hex digits that depend on nothing but what the scores are made from.

    A run that was killed and started again is therefore the same publication.
    """
    made_from = [use_case, as_of.isoformat(), model_version, features_sha256]
    return hashlib.sha256(json.dumps(made_from).encode()).hexdigest()[:16]


def reasons_per_row(use_case: UseCase) -> int:
    """How many reasons an explained row has: the spec's number, at most all features."""
    return min(use_case.reasons, len(use_case.feature_names))


def reasons_of(use_case: UseCase, band: Band) -> int:
    """How many reasons a row of the band has."""
    return 0 if band.reasons == "none" else reasons_per_row(use_case)


class _Recorded(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class FeaturesUsed(_Recorded):
    """The features dataset that was scored, as its manifest told; ``path`` is in the lake."""

    path: str
    sha256: str
    manifest_sha256: str
    rows: int
    spec_sha256: str | None = None
    code_sha256: str | None = None
    code_commit: str | None = None


class TrainingUsed(_Recorded):
    """The training set of the model, as the model's signature tells; ``path`` is in the lake."""

    as_of: date | None = None
    path: str | None = None
    dataset_sha256: str | None = None
    model_sha256: str | None = None


class SourceUsed(_Recorded):
    """A mart that the features read by a key: the use case's own, or that of another entity.

    ``landed`` is the source whose landed files its rows come from. ``joined`` are the other sources
    that it is made of, ``joined_dates`` its columns with the dates on which what is theirs landed.
    The key of another entity, where it does not name the published row, is that of the event
    ``event_id`` in ``event_relation``.
    """

    name: str
    landed: str
    relation: str
    key: str
    row_id: str
    event_time: str
    landed_date: str
    joined: tuple[str, ...] = ()
    joined_dates: tuple[str, ...] = ()
    event_relation: str | None = None
    event_id: str | None = None


class MadeFrom(_Recorded):
    """What a publication was made of: ``ops.publications.made_from``, which receipts read.

    ``code_commit`` is of the code that scored.
    """

    code_commit: str
    features: FeaturesUsed
    training: TrainingUsed
    sources: tuple[SourceUsed, ...]


class ScoresManifest(BaseModel):
    """``manifest.json`` of ``lake/scores/<use_case>/as_of=D``.

    ``rows`` are the rows of the parts, ``population_rows`` those of the features dataset they were
    made from; ``sha256`` is ``io.lake.parts_sha256`` of them. ``training_scores`` are those that
    the model gave the newest snapshots of its training; None where its signature does not tell.
    ``made_from`` is None of scores from before it was recorded.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    use_case: str
    as_of: date
    model_version: str = Field(min_length=1)
    mlflow_run_id: str
    publication_id: str = Field(pattern=r"^[0-9a-f]{16}$")
    rows: int = Field(ge=0)
    population_rows: int = Field(ge=0)
    features_sha256: str
    scored_at: datetime
    sha256: str
    training_scores: Distribution | None = None
    made_from: MadeFrom | None = None

    @property
    def expected_publication_id(self) -> str:
        """The id that the manifest's own parts give."""
        return publication_id(self.use_case, self.as_of, self.model_version, self.features_sha256)
