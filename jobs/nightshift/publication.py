"""What scoring hands to publishing: the manifest beside a night's scores."""

import hashlib
import json
from datetime import date, datetime

from pydantic import BaseModel, ConfigDict, Field

from nightshift.spec import UseCase


def publication_id(use_case: str, as_of: date, model_version: str, features_sha256: str) -> str:
    """16 hex digits that depend on nothing but what the scores are made from.

    A run that was killed and started again is therefore the same publication.
    """
    made_from = [use_case, as_of.isoformat(), model_version, features_sha256]
    return hashlib.sha256(json.dumps(made_from).encode()).hexdigest()[:16]


def reasons_per_row(use_case: UseCase) -> int:
    """How many reasons stand on every row: the spec's number, at most all features."""
    return min(use_case.reasons, len(use_case.feature_names))


class ScoresManifest(BaseModel):
    """``manifest.json`` of ``lake/scores/<use_case>/as_of=D``.

    ``rows`` are the rows of the part, ``population_rows`` those of the features dataset it was
    made from; ``sha256`` is the part's.
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

    @property
    def expected_publication_id(self) -> str:
        """The id that the manifest's own parts give."""
        return publication_id(self.use_case, self.as_of, self.model_version, self.features_sha256)
