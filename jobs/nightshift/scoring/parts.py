"""A part of the features in, a part of the scores out: what a thread or a Spark task does.

The same part and model give the same bytes, wherever they are scored.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from nightshift.booster import (
    Matrix,
    Vector,
    contributions,
    double,
    intervals,
    predict,
    to_matrix,
)
from nightshift.columns import of_integers, of_numbers, of_texts, texts_at
from nightshift.errors import NightshiftError
from nightshift.io import lake
from nightshift.rules import hits
from nightshift.scoring import lists
from nightshift.scoring.bands import assign
from nightshift.scoring.reasons import NONE, explain
from nightshift.spec import DECISIONS, UseCase
from nightshift.xgboost_core import xgb

BATCH_ROWS = 2**15
"""Rows that are in memory at once, in each thread or task."""


@dataclass(frozen=True)
class Scored:
    """What was written; ``low`` and ``high`` are the least and the greatest score, if there is one.

    Attributes:
        part: the file's name, which is that of the features' part.
        sha256: of the file's bytes.
    """

    part: str
    rows: int
    sha256: str
    low: float
    high: float


@dataclass(frozen=True)
class Threshold:
    """From which score on a row is alerted of, and which choice that was."""

    value: float
    version: str


@dataclass(frozen=True)
class Refused:
    """Why a Spark task did nothing, as a :class:`NightshiftError` says it."""

    what: str
    remedy: str


def score_part(
    use_case: UseCase,
    booster: xgb.Booster,
    doubled: xgb.Booster | None,
    part: Path,
    target: Path,
    threshold: Threshold | None = None,
) -> Scored:
    """Write key, score, interval, band, decision and reasons of a part's rows, in their order, into
    ``target``; the key with what else names a row.

    Of a ranking the rows that are shown are written, list by list and best first, with the place
    of each and who has proposed it.

    Args:
        doubled: what ``nightshift.booster.double`` makes of the booster.
        threshold: from which score on a row is alerted of; None where the use case has none.

    Raises:
        NightshiftError: when a feature is infinite, a score is none, or the model has no interval
            where the use case publishes one.
    """
    there = pq.read_schema(part)
    schema = pa.schema(
        {
            **{name: there.field(name).type for name in use_case.row_key},
            use_case.score_column: pa.float64(),
            **{name: pa.float64() for name in use_case.interval_columns},
            **dict(zip(use_case.list_columns, (pa.int32(), pa.string()), strict=False)),
            "band": pa.string(),
            "reasons": pa.string(),
            **dict.fromkeys(use_case.decision_columns, pa.string()),
        }
    )
    rows, low, high = 0, np.inf, -np.inf
    features = use_case.feature_names  # made anew each time it is asked for
    file = target / part.name
    repeated = [name for name in schema.names if name not in use_case.row_key]
    with pq.ParquetWriter(file, schema, compression="zstd", use_dictionary=repeated) as writer:
        for batch in _batches(part, use_case.key if use_case.shown else None):
            keys = [batch.column(name) for name in use_case.row_key]
            matrix = to_matrix(batch, features)
            _require_finite(use_case, part, keys, matrix)
            scores = predict(booster, matrix, doubled)
            _require_probabilities(use_case, part, keys, scores)
            ranks: lists.Places | None = None
            of_list: tuple[pa.Array, ...] = ()
            if use_case.shown is not None:
                chosen, ranks = lists.shown(keys[0], scores, use_case.shown)
                keys = [key.take(of_integers(chosen)) for key in keys]
                matrix, scores = matrix[chosen], scores[chosen]
                of_list = (
                    of_integers(ranks).cast(pa.int32()),
                    lists.generators(use_case, features, matrix),
                )
            ends = _interval_columns(use_case, booster, matrix, scores)
            bands = assign(scores, use_case.bands, ranks)
            columns = [
                *keys,
                of_numbers(scores),
                *map(of_numbers, ends),
                *of_list,
                texts_at(bands, [band.name for band in use_case.bands]),
                _reasons(use_case, features, booster, matrix, bands),
                *_decisions(use_case, batch, scores, threshold),
            ]
            writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=schema))
            rows += len(scores)
            low, high = min(low, float(scores.min())), max(high, float(scores.max()))
    return Scored(file.name, rows, lake.file_sha256(file), low, high)


def score_on_spark(
    use_case: UseCase, model: bytes, part: Path, target: Path, threshold: Threshold | None = None
) -> Scored | Refused:
    """``score_part`` as a task; ``model`` is the booster's UBJSON."""
    try:
        return score_part(use_case, *_boosters(model), part, target, threshold)
    except NightshiftError as error:
        return Refused(error.what, error.remedy)


@cache
def _boosters(model: bytes) -> tuple[xgb.Booster, xgb.Booster | None]:
    booster = xgb.Booster({"nthread": 1})
    booster.load_model(bytearray(model))
    return booster, double(booster)


def _batches(part: Path, key: str | None = None) -> Iterator[pa.RecordBatch]:
    """Batches of a part's rows; with a key the rows of one are in one batch."""
    left: list[pa.RecordBatch] = []
    # buffered before, all of the file would be held from the first batch on
    with pq.ParquetFile(part, pre_buffer=False) as file:
        for batch in file.iter_batches(BATCH_ROWS, use_threads=False):  # each part has one
            if key is None or not batch.num_rows:
                yield from (batch,) if batch.num_rows else ()
                continue
            column = batch.column(key)
            is_last = pc.equal(column, column[-1])
            until = pc.index(is_last, True).as_py()
            # a list that began in a batch before ends in this one, unless it goes on through it
            if until:
                yield from _joined([*left, batch.slice(0, until)])
                left = []
            elif left and left[-1].column(key)[-1] != column[0]:
                yield from _joined(left)
                left = []
            left.append(batch.slice(until))
    yield from _joined(left)


def _joined(batches: Sequence[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    if batches:
        table = pa.Table.from_batches(batches).unify_dictionaries().combine_chunks()
        yield from table.to_batches()


def _reasons(
    use_case: UseCase,
    names: Sequence[str],
    booster: xgb.Booster,
    matrix: Matrix,
    bands: npt.NDArray[np.intp],
) -> pa.Array:
    """Each row's reasons, as its band asks for them; ``[]`` where it asks for none."""
    found, places = [NONE], np.zeros(len(matrix), dtype=np.intp)
    for method in ("exact", "approximate"):
        asking = [n for n, band in enumerate(use_case.bands) if band.reasons == method]
        chosen = np.flatnonzero(np.isin(bands, asking))
        if len(chosen):
            some = matrix[chosen]
            parts = contributions(booster, some, is_exact=method == "exact")[:, : len(names)]
            places[chosen] = sum(map(len, found)) + np.arange(len(chosen))
            found.append(explain(some, parts, names, use_case.reasons))
    return pa.concat_arrays(found).take(of_integers(places))


def _interval_columns(
    use_case: UseCase, booster: xgb.Booster, matrix: Matrix, scores: Vector
) -> Sequence[Vector]:
    """Low and high, each (rows,); nothing where the use case has no interval."""
    if use_case.interval is None:
        return ()
    found = intervals(booster, matrix, scores)
    if found is None:
        raise NightshiftError(
            f"{use_case.name} publishes an interval, and the model carries none: it was trained "
            "before that was declared",
            f"train again with `nightshift train {use_case.name}`",
        )
    return tuple(found.T)


def _decisions(
    use_case: UseCase, batch: pa.RecordBatch, scores: Vector, threshold: Threshold | None
) -> list[pa.Array]:
    """The use case's ``decision_columns``."""
    if not use_case.decision_columns:
        return []
    found = hits(use_case.rules, batch)
    gravest = np.zeros(len(scores), dtype=np.intp)
    if threshold is not None:
        gravest[scores >= threshold.value] = DECISIONS.index("review")
    for position, rule in enumerate(use_case.rules):
        hit = found[:, position]
        gravest[hit] = np.maximum(gravest[hit], DECISIONS.index(rule.action))
    columns = {"decision": texts_at(gravest, DECISIONS)}
    if use_case.rules:
        names = [rule.name for rule in use_case.rules]
        columns["rule_hits"] = of_texts(
            [json.dumps([names[i] for i in np.flatnonzero(row)]) for row in found]
        )
    if threshold is not None:
        columns["threshold_version"] = of_texts([threshold.version] * len(scores))
    return [columns[name] for name in use_case.decision_columns]


def _named(use_case: UseCase, keys: Sequence[pa.Array], row: int) -> str:
    """A row, as an error tells it."""
    named = zip(use_case.row_key, keys, strict=True)
    return " · ".join(f"{name} {values[row].as_py()!r}" for name, values in named)


def _require_finite(
    use_case: UseCase, part: Path, keys: Sequence[pa.Array], matrix: Matrix
) -> None:
    """Refuse infinite features: the model has learned from none."""
    is_infinite = np.isinf(matrix)
    if is_infinite.any():
        infinite = np.argwhere(is_infinite)
        row, column = (int(place) for place in infinite[0])
        raise NightshiftError(
            f"{use_case.name}: feature {use_case.feature_names[column]} of "
            f"{_named(use_case, keys, row)} in {part.name} is {matrix[row, column]}; "
            f"{len(infinite)} values of {matrix.shape[0]:,} rows are infinite",
            "mend what the mart holds, or the declaration that divides by it, and run the night "
            "again",
        )


def _require_probabilities(
    use_case: UseCase, part: Path, keys: Sequence[pa.Array], scores: Vector
) -> None:
    outside = np.flatnonzero(~((scores >= 0) & (scores <= 1)))
    if use_case.objective == "binary" and len(outside):
        first = int(outside[0])
        raise NightshiftError(
            f"{use_case.name}: the model gives {_named(use_case, keys, first)} the score "
            f"{scores[first]}, and {len(outside) - 1} more of {part.name} are no probability "
            "either",
            f"train again with `nightshift train {use_case.name}`",
        )
