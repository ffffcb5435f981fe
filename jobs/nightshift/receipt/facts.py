"""What a receipt is made of. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from nightshift.spec import UseCase


@dataclass(frozen=True)
class FeatureValues:
    """What the model was given.

    Attributes:
        folder: of the dataset in the lake.
        part: the file that holds the row; None where none does.
        vector: feature → value, None for null; empty where the row is not there.
        is_scored: whether the file has the bytes that were scored.
        problem: in words; None where there is none.
    """

    folder: Path
    part: Path | None
    vector: Mapping[str, Any]
    is_scored: bool
    problem: str | None


@dataclass(frozen=True)
class TrainingManifest:
    """What the model learnt from.

    Attributes:
        where: its ``data_manifest.json`` is.
        sha256: of the bytes of that file.
        told: what it says, without the use case's declaration.
        is_dataset: whether it names the training set that scoring recorded; None where that is not
            recorded, or the file is not there.
        problem: in words; None where there is none.
    """

    where: str
    sha256: str | None
    told: Mapping[str, Any]
    is_dataset: bool | None
    problem: str | None


@dataclass(frozen=True)
class Receipt:
    """Where one published row comes from.

    Attributes:
        told: what the SQL function ``predictions.receipt`` tells.
        remade: the features whose value is another when they are made again from the rows that
            the lake holds now; None where they cannot be compared.
        remade_problem: why not, in words.
    """

    use_case: UseCase
    told: Mapping[str, Any]
    features: FeatureValues
    training: TrainingManifest
    remade: tuple[str, ...] | None
    remade_problem: str | None

    @property
    def missing(self) -> list[str]:
        """All that is not there, or not as it was, in words."""
        found = [*self.told["missing"]]
        for problem in (self.features.problem, self.training.problem):
            found += [problem] if problem else []
        if self.training.is_dataset is False:
            found.append(f"{self.training.where} names another training set than the scored model")
        if other := disagreeing_reasons(self):
            found.append(f"the published reasons have other values of {', '.join(other)}")
        if self.remade_problem:
            found.append(f"the features cannot be made again: {self.remade_problem}")
        elif self.remade:
            found.append(
                f"made again from the rows of today, {len(self.remade)} features have other values:"
                f" {', '.join(self.remade[:3])}; rows were corrected or the code has changed since,"
                f" `nightshift features parity {self.use_case.name} --as-of {self.told['as_of']}`"
                " says which"
            )
        for source in self.told["sources"]:
            if source["landed_files"] is None:
                found.append(f"there is no table {source['relation']} to find its rows in")
            elif source["value"] is None and self.told["row"] is not None:
                found.append(
                    f"{source['event_relation']} no longer has the event, and so not its"
                    f" {source['key']}"
                )
        return found


def disagreeing_reasons(receipt: Receipt) -> list[str]:
    """The features whose value in the published reasons is another than in the vector."""
    vector = receipt.features.vector
    reasons = (receipt.told["row"] or {}).get("reasons") or ()
    return [
        reason["feature"]
        for reason in reasons
        if vector and _as_published(vector.get(reason["feature"])) != reason["value"]
    ]


def _as_published(value: float | None) -> float | None:
    """As reasons tell it: six digits of the float32 that the model was given."""
    if value is None or value != value:
        return None
    return float(f"{pa.scalar(float(value), pa.float32()).as_py():.6g}")
