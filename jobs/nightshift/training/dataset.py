"""The labelled rows that a model learns from: read, put in order, and refused when unfit."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from nightshift.booster import Matrix, row_order, to_matrix
from nightshift.errors import NightshiftError
from nightshift.io.lake import read_manifest
from nightshift.spec import Loss, Objective, UseCase
from nightshift.training.split import Split

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Dataset:
    """The rows by snapshot: ``keys``, ``snapshots``, ``labels`` and ``items`` are (rows,),
    ``matrix`` is (rows, features) float32 with NaN for null. ``labels``: int32 of two classes,
    float64 of amounts and relevances. ``items``: what is ranked, else None.
    """

    manifest: dict[str, Any]
    feature_names: tuple[str, ...]
    keys: npt.NDArray[Any]
    snapshots: npt.NDArray[Any]
    labels: npt.NDArray[Any]
    matrix: Matrix
    items: npt.NDArray[Any] | None

    def rows_of(self, snapshots: tuple[date, ...]) -> npt.NDArray[np.bool_]:
        """Which rows are of these snapshots, (rows,)."""
        return np.isin(self.snapshots, np.array(snapshots, dtype="datetime64[D]"))

    @property
    def rates(self) -> dict[date, tuple[int, float]]:
        """Snapshot → its rows and their mean label, oldest first."""
        days, codes, rows = np.unique(self.snapshots, return_inverse=True, return_counts=True)
        sums = np.bincount(codes, weights=self.labels)
        return {
            date.fromisoformat(str(day)): (int(count), float(total / count))
            for day, count, total in zip(days, rows, sums, strict=True)
        }

    def only(self, rows: npt.NDArray[np.bool_]) -> "Dataset":
        """The dataset of some of its rows, (rows,)."""
        return Dataset(
            self.manifest,
            self.feature_names,
            self.keys[rows],
            self.snapshots[rows],
            self.labels[rows],
            self.matrix[rows],
            None if self.items is None else self.items[rows],
        )


def read_dataset(folder: Path, use_case: UseCase, as_of: date) -> Dataset:
    """Read the training dataset in ``folder``, which knows what was known at ``as_of``.

    Raises:
        NightshiftError: when there is none, it is of another version of the use case, or its labels
            are not what the objective asks for or were not known yet.
    """
    if read_manifest(folder) is None:
        raise NightshiftError(
            f"there is no training dataset of {use_case.name} as of {as_of} in {folder}",
            f"run `nightshift train {use_case.name} --as-of {as_of}`: it builds the features first",
        )
    manifest, table = read_table(folder, use_case.key, use_case.feature_names)
    latest = table.column("snapshot")[-1].as_py() if table.num_rows else as_of
    matures = latest + timedelta(days=use_case.label.maturity_days)
    if table.num_rows and matures > as_of:
        raise NightshiftError(
            f"the training dataset in {folder} has snapshot {latest}, whose labels are known on "
            f"{matures} only, after as_of {as_of}",
            "build the training dataset again; training on it would leak the future",
        )
    _check_labels(folder, use_case.objective, use_case.loss, table.column("label"))
    return to_dataset(
        manifest, table, use_case.objective, use_case.vector_key, use_case.feature_names
    )


def to_dataset(
    manifest: dict[str, Any],
    table: pa.Table,
    objective: Objective,
    vector_key: Sequence[str],
    feature_names: Sequence[str],
) -> Dataset:
    """What ``read_table`` read, as arrays; of a ranking ``vector_key`` is the key and the item."""
    key, *more = vector_key if objective == "ranking" else vector_key[-1:]
    label_type = pa.int32() if objective == "binary" else pa.float64()
    snapshots = table.column("snapshot").combine_chunks().to_numpy(zero_copy_only=False)
    return Dataset(
        manifest=manifest,
        feature_names=tuple(feature_names),
        keys=np.asarray(table.column(key).to_pylist(), dtype=str),
        snapshots=np.asarray(snapshots, dtype="datetime64[D]"),
        labels=table.column("label").cast(label_type).to_numpy(),
        matrix=to_matrix(table, feature_names),
        items=np.asarray(table.column(more[0]).to_pylist(), dtype=str) if more else None,
    )


def _check_labels(folder: Path, objective: Objective, loss: Loss, label: pa.ChunkedArray) -> None:
    remedy = "check the label's condition and column, and build the training dataset again"
    if label.null_count:
        raise NightshiftError(f"column label of {folder} has {label.null_count} nulls", remedy)
    values = label.cast(pa.float64()).to_numpy()
    if objective == "binary":
        wrong, asked = ~np.isin(values, (0, 1)), "0 or 1"
    elif objective == "ranking" or loss == "tweedie":
        wrong, asked = ~(np.isfinite(values) & (values >= 0)), "finite and at least 0"
    else:
        wrong, asked = ~np.isfinite(values), "finite"
    if wrong.any():
        raise NightshiftError(
            f"column label of {folder} has {wrong.sum()} values of {len(values)} that are not "
            f"{asked}, such as {values[wrong][0]:g}; a {objective} objective with the loss {loss} "
            "asks for it",
            remedy,
        )


def read_table(
    folder: Path, key: str, feature_names: Sequence[str]
) -> tuple[dict[str, Any], pa.Table]:
    """The manifest of a dataset, and its rows in the order in which models learn them.

    Raises:
        NightshiftError: when files, columns or rows are missing.
    """
    manifest = read_manifest(folder)
    files = sorted(folder.glob("part-*.parquet"))
    if manifest is None or not files:
        lacking = "manifest" if manifest is None else "part-*.parquet"
        raise NightshiftError(f"{folder} has no {lacking}", "build the training dataset again")
    table = pa.concat_tables([pq.ParquetFile(file).read() for file in files])
    wanted = {key, "snapshot", "label", *feature_names}
    if missing := sorted(wanted - set(table.column_names)):
        raise NightshiftError(
            f"the training dataset in {folder} lacks {', '.join(missing)}",
            "it was built for another version of the use case: build it again",
        )
    if table.num_rows != manifest["rows"]:
        raise NightshiftError(
            f"the training dataset in {folder} has {table.num_rows} rows, its manifest says "
            f"{manifest['rows']}",
            "build the training dataset again",
        )
    return manifest, table.sort_by(row_order(feature_names, key))


def check_classes(use_case: UseCase, dataset: Dataset, parts: Split) -> None:
    """Refuse a part whose labels are all of one class, or one amount.

    Raises:
        NightshiftError: naming the part, its dates and its only label.
    """
    for name in ("train", "validation", "test"):
        labels = dataset.labels[dataset.rows_of(getattr(parts, name))]
        if len(np.unique(labels)) < 2:
            dates = getattr(parts, name)
            raise NightshiftError(
                f"the {name} snapshots ({dates[0]} … {dates[-1]}) of {use_case.name} hold "
                f"{len(labels)} rows, all with label {labels[0] if len(labels) else 'none'}",
                "nothing can be learned from one class: check the label's condition and the "
                "landings of its horizon",
            )


def has_both_classes(dataset: Dataset, parts: Split) -> bool:
    """Whether an earlier model can be fitted and measured; one that cannot is left out."""
    labels = [
        dataset.labels[dataset.rows_of(days)]
        for days in (parts.train, parts.validation, parts.test)
        if days
    ]
    if all(len(np.unique(found)) > 1 for found in labels):
        return True
    last = (parts.test or parts.validation)[-1]
    log.warning("no model of %s … %s: a part has one class", parts.train[0], last)
    return False


def check_features(use_case: UseCase, dataset: Dataset, parts: Split) -> None:
    """Refuse infinite values, and features that are all null; warn of one that is.

    Raises:
        NightshiftError: naming the feature, the row and its value.
    """
    names = np.array(use_case.feature_names)
    # Reductions that pass over NaN, without a copy of the matrix.
    extremes = np.fmax.reduce(dataset.matrix), np.fmin.reduce(dataset.matrix)
    infinite = np.flatnonzero(np.isinf(extremes).any(axis=0))
    if len(infinite):
        values = dataset.matrix[:, infinite[0]]
        rows = np.flatnonzero(np.isinf(values))
        raise NightshiftError(
            f"feature {names[infinite[0]]} of {dataset.keys[rows[0]]} at snapshot "
            f"{dataset.snapshots[rows[0]]} is {values[rows[0]]}; {len(rows)} of its values are "
            f"infinite, and of {len(infinite)} features some are",
            "mend what the mart holds, or the declaration that divides by it, and build the "
            "training dataset again",
        )
    learned = dataset.rows_of(parts.train)
    greatest = np.fmax.reduce(dataset.matrix, where=learned[:, None], initial=np.float32(np.nan))
    is_null = np.isnan(greatest)
    if is_null.all():
        raise NightshiftError(
            f"all {len(names)} features of {use_case.name} are null in the {learned.sum()} rows of "
            f"the train snapshots ({parts.train[0]} … {parts.train[-1]})",
            "nothing can be learned from them: check the marts that the feature groups read",
        )
    if is_null.any():
        log.warning(
            "null in every row of the train snapshots, so that nothing is learned from it: %s",
            ", ".join(names[is_null]),
        )
