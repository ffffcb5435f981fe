"""The labelled rows that a model learns from: read, put in order, and refused when unfit."""

import logging
import mmap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from nightshift import factors
from nightshift.booster import Matrix, content_hashes, row_order, to_matrix
from nightshift.errors import NightshiftError
from nightshift.io import lake
from nightshift.settings import TrainingMemory
from nightshift.spec import Objective, UseCase
from nightshift.training.split import Split

log = logging.getLogger(__name__)

BATCH_ROWS = 2**14
# Of the float32 matrix: a training that is all in memory takes about four times that.
MOST_IN_MEMORY = 2**28
MISSED = "missed"
LABEL_REMEDY = "check the label's condition and column, and build the training dataset again"


@dataclass(frozen=True)
class Dataset:
    """The rows by snapshot: ``keys``, ``snapshots``, ``labels`` and ``items`` are (rows,),
    ``matrix`` is (rows, features) float32 with NaN for null. ``labels``: int32 of two classes,
    float64 of amounts and relevances. ``items``: what is ranked, else None. ``memory``: where
    models are fitted to them; outside memory ``matrix`` is a file in ``workspace``. ``missed``: of
    candidates, how many relevant items the row's list lacks. ``factorised``: scores of the
    factorisation, NaN at snapshots that have none.
    """

    manifest: dict[str, Any]
    feature_names: tuple[str, ...]
    keys: npt.NDArray[Any]
    snapshots: npt.NDArray[Any]
    labels: npt.NDArray[Any]
    matrix: Matrix
    items: npt.NDArray[Any] | None
    memory: TrainingMemory = "in_memory"
    workspace: Path | None = None
    missed: npt.NDArray[Any] | None = None
    factorised: npt.NDArray[np.float64] | None = None

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

    def vectors(self, rows: npt.NDArray[Any]) -> Matrix:
        """A copy of some rows of the matrix, by a mask or by positions."""
        found = np.asarray(self.matrix[rows])
        release(self.matrix)
        return found

    def only(self, rows: npt.NDArray[np.bool_]) -> "Dataset":
        """The dataset of some of its rows, (rows,), in memory."""
        return Dataset(
            self.manifest,
            self.feature_names,
            self.keys[rows],
            self.snapshots[rows],
            self.labels[rows],
            self.vectors(rows),
            None if self.items is None else self.items[rows],
            missed=None if self.missed is None else self.missed[rows],
            factorised=None if self.factorised is None else self.factorised[rows],
        )


def memory_for(
    folder: Path, features: int, wanted: TrainingMemory | Literal["auto"]
) -> TrainingMemory:
    """Where the rows of the dataset in ``folder`` are to be: in files once they are many.

    In memory and in files the model is the same, bit by bit.
    """
    if wanted != "auto":
        return wanted
    rows = (lake.read_manifest(folder) or {}).get("rows", 0)
    matrix = np.dtype(np.float32).itemsize * rows * features
    return "external" if matrix > MOST_IN_MEMORY else "in_memory"


def read_dataset(
    folder: Path,
    use_case: UseCase,
    as_of: date,
    memory: TrainingMemory = "in_memory",
    workspace: Path | None = None,
) -> Dataset:
    """Read the training dataset in ``folder``, which knows what was known at ``as_of``.

    Raises:
        NightshiftError: when there is none, it is of another version of the use case, or its labels
            are not what the objective asks for or were not known yet.
    """
    if lake.read_manifest(folder) is None:
        raise NightshiftError(
            f"there is no training dataset of {use_case.name} as of {as_of} in {folder}",
            f"run `nightshift train {use_case.name} --as-of {as_of}`: it builds the features first",
        )
    dataset = read_rows(
        folder, use_case.objective, use_case.vector_key, use_case.feature_names, memory, workspace
    )
    if len(dataset.snapshots):
        latest = date.fromisoformat(str(dataset.snapshots[-1]))
        matures = latest + timedelta(days=use_case.label.maturity_days)
        if matures > as_of:
            raise NightshiftError(
                f"the training dataset in {folder} has snapshot {latest}, whose labels are known "
                f"on {matures} only, after as_of {as_of}",
                "build the training dataset again; training on it would leak the future",
            )
    if use_case.objective == "ranking":
        asked = f"finite and at least 0, as the loss {use_case.loss} asks"
        _check_labels(folder, dataset.labels, np.less(dataset.labels, 0), asked)
    if use_case.is_non_negative:
        asked = "at least 0, as the label is declared (non_negative)"
        _check_labels(folder, dataset.labels, np.less(dataset.labels, 0), asked)
    return dataset


def read_rows(
    folder: Path,
    objective: Objective,
    vector_key: Sequence[str],
    feature_names: Sequence[str],
    memory: TrainingMemory = "in_memory",
    workspace: Path | None = None,
) -> Dataset:
    """The rows of a dataset, in the order in which models learn them.

    The parts are read twice, some rows at a time: for what orders them, and into their places in
    the matrix, of which there is no copy.

    Args:
        vector_key: of a ranking the key and the item.
        workspace: an empty folder for what is not kept in memory; None where everything is.

    Raises:
        NightshiftError: when files, columns or rows are missing or damaged, or a label is not a
            finite number, or of two classes not 0 or 1.
    """
    key, *more = vector_key if objective == "ranking" else vector_key[-1:]
    manifest, files = _parts(folder, {key, *more, "snapshot", "label", *feature_names})
    strings = (key, *more)
    kept: dict[str, list[pa.Array]] = {name: [] for name in (*strings, "snapshot", "label")}
    if all(MISSED in pq.read_schema(file).names for file in files):
        kept[MISSED] = []
    hashes = []
    for batch in _batches(files, (*kept, *feature_names)):
        for name, columns in kept.items():
            column = batch.column(name)
            columns.append(column.dictionary_encode() if name in strings else column)
        labels = batch.column("label").cast(pa.float64())
        if labels.null_count == 0:
            hashes.append(content_hashes(to_matrix(batch, feature_names), labels.to_numpy()))
    rows = sum(map(len, kept["label"]))
    if rows != manifest["rows"]:
        raise NightshiftError(
            f"the training dataset in {folder} has {rows} rows, its manifest says "
            f"{manifest['rows']}",
            "build the training dataset again",
        )
    if not rows:
        raise NightshiftError(
            f"the training dataset in {folder} has no rows",
            "check that the population has members at its snapshots, and build it again",
        )
    if nulls := sum(column.null_count for column in kept["label"]):
        raise NightshiftError(f"column label of {folder} has {nulls} nulls", LABEL_REMEDY)
    labels = pa.chunked_array(kept["label"], kept["label"][0].type).cast(pa.float64()).to_numpy()
    snapshots = np.asarray(pa.chunked_array(kept["snapshot"]).to_numpy(), dtype="datetime64[D]")
    if objective == "binary":
        _check_labels(folder, labels, ~np.isin(labels, (0, 1)), "0 or 1")
        labels = labels.astype(np.int32)
    else:
        _check_labels(folder, labels, ~np.isfinite(labels), "finite")
    codes, entities = _coded(kept[key])
    order = row_order(snapshots, np.concatenate(hashes), codes)
    place = np.empty(rows, dtype=np.intp)
    place[order] = np.arange(rows)
    shape = rows, len(feature_names)
    if workspace is None:
        matrix: Matrix = np.empty(shape, dtype=np.float32)
    else:
        matrix = np.memmap(workspace / "matrix.float32", np.float32, "w+", shape=shape)
    at = 0
    for batch in _batches(files, feature_names):
        matrix[place[at : at + batch.num_rows]] = to_matrix(batch, feature_names)
        at += batch.num_rows
        release(matrix)
    pa.default_memory_pool().release_unused()
    items = None
    if more:
        numbers, names = _coded(kept[more[0]])
        items = names[numbers[order]]
    missed = None
    if MISSED in kept:
        missed = pa.chunked_array(kept[MISSED], pa.int32()).to_numpy()[order]
    keys, factorised = entities[codes[order]], None
    if items is not None:
        named = dict(zip(vector_key, (keys, items), strict=True))
        factorised = factors.scores(folder, named, snapshots[order])
    return Dataset(
        manifest=manifest,
        feature_names=tuple(feature_names),
        keys=keys,
        snapshots=snapshots[order],
        labels=labels[order],
        matrix=matrix,
        items=items,
        memory=memory,
        workspace=workspace,
        missed=missed,
        factorised=factorised,
    )


def release(matrix: Matrix) -> None:
    """Give back the memory in which a file's rows were seen; they stay in the file."""
    if isinstance(matrix.base, mmap.mmap):
        matrix.base.madvise(mmap.MADV_DONTNEED)


def _parts(folder: Path, wanted: set[str]) -> tuple[dict[str, Any], list[Path]]:
    manifest = lake.read_manifest(folder)
    files = lake.parts(folder)
    if manifest is None or not files:
        lacking = "manifest" if manifest is None else "part-*.parquet"
        raise NightshiftError(f"{folder} has no {lacking}", "build the training dataset again")
    for file in files:
        with _readable(file):
            there = pq.read_schema(file).names
        if missing := sorted(wanted - set(there)):
            raise NightshiftError(
                f"the training dataset in {folder} lacks {', '.join(missing)}",
                "it was built for another version of the use case: build it again",
            )
    return manifest, files


def _batches(files: Sequence[Path], columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    for file in files:
        with (
            _readable(file),
            pq.ParquetFile(file, page_checksum_verification=True, pre_buffer=False) as parquet,
        ):
            yield from parquet.iter_batches(BATCH_ROWS, columns=list(columns))


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise NightshiftError(
            f"{file} cannot be read: {error}", "build the training dataset again"
        ) from error


def _coded(columns: Sequence[pa.DictionaryArray]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Each row's position among the distinct strings, and these, sorted, as objects.

    So each string is in memory once, however many rows have it.
    """
    column = pa.chunked_array(columns).unify_dictionaries().combine_chunks()
    strings = np.array(column.dictionary.cast(pa.string()).to_pylist(), dtype=object)
    order = np.argsort(strings)
    rank = np.empty(len(order), dtype=np.int32)
    rank[order] = np.arange(len(order))
    return rank[column.indices.to_numpy()], strings[order]


def _check_labels(
    folder: Path, labels: npt.NDArray[Any], is_wrong: npt.NDArray[np.bool_], asked: str
) -> None:
    if is_wrong.any():
        raise NightshiftError(
            f"column label of {folder} has {is_wrong.sum()} values of {len(labels)} that are not "
            f"{asked}, such as {labels[is_wrong][0]:g}",
            LABEL_REMEDY,
        )


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
