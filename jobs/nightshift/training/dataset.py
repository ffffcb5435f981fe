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
from nightshift.spec import UseCase
from nightshift.training.split import Split

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Dataset:
    """The rows by snapshot: ``keys``, ``snapshots``, ``labels`` and ``items`` are (rows,),
    ``matrix`` is (rows, features) float32 with NaN for null. ``items``: what is ranked, else None.
    """

    manifest: dict[str, Any]
    keys: npt.NDArray[Any]
    snapshots: npt.NDArray[Any]
    labels: npt.NDArray[np.int32]
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
            are not 0 and 1 or were not known yet.
    """
    if read_manifest(folder) is None:
        raise NightshiftError(
            f"there is no training dataset of {use_case.name} as of {as_of} in {folder}",
            f"run `nightshift train {use_case.name} --as-of {as_of}`: it builds the features first",
        )
    manifest, table = read_table(folder, use_case.key, use_case.feature_names)
    newest = table.column("snapshot").combine_chunks()
    latest = newest[-1].as_py() if len(newest) else as_of
    matures = latest + timedelta(days=use_case.label.maturity_days)
    if len(newest) and matures > as_of:
        raise NightshiftError(
            f"the training dataset in {folder} has snapshot {latest}, whose labels are known on "
            f"{matures} only, after as_of {as_of}",
            "build the training dataset again; training on it would leak the future",
        )
    label_column = table.column("label")
    unfit = label_column.null_count or not set(label_column.unique().to_pylist()) <= {0, 1}
    if unfit:
        raise NightshiftError(
            f"column label of {folder} has values other than 0 and 1: "
            f"{label_column.unique().to_pylist()[:10]}",
            "build the training dataset again",
        )
    items = use_case.vector_key[1:] if use_case.objective == "ranking" else ()
    return Dataset(
        manifest=manifest,
        keys=np.asarray(table.column(use_case.key).to_pylist(), dtype=str),
        snapshots=np.asarray(newest.to_numpy(zero_copy_only=False), dtype="datetime64[D]"),
        labels=label_column.cast(pa.int32()).to_numpy(),
        matrix=to_matrix(table, use_case.feature_names),
        items=np.asarray(table.column(items[0]).to_pylist(), dtype=str) if items else None,
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
    """Refuse a part with one class.

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
    ]
    if all(len(np.unique(found)) == 2 for found in labels):
        return True
    log.warning("no model of %s … %s: a part has one class", parts.train[0], parts.test[-1])
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
