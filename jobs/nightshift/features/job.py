"""The Spark side of the kernel: from an extract to a table of feature vectors. Pure plans."""

from collections.abc import Callable, Iterator, Sequence
from datetime import date

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import (
    DateType,
    DoubleType,
    IntegerType,
    StringType,
    StructField,
    StructType,
)

from nightshift.features import kernel
from nightshift.spec import UseCase

SNAPSHOT = "snapshot"
LABEL = "label"


def output_schema(use_case: UseCase, with_label: bool) -> StructType:
    """Key, snapshot, label where asked for, then the features as nullable doubles."""
    fields = [
        StructField(use_case.key, StringType(), False),
        StructField(SNAPSHOT, DateType(), False),
    ]
    if with_label:
        fields.append(StructField(LABEL, IntegerType(), False))
    fields += [StructField(name, DoubleType(), True) for name in use_case.feature_names]
    return StructType(fields)


def conditions(use_case: UseCase) -> tuple[str, ...]:
    """Each ``where`` of the declarations, once."""
    found = [use_case.population.where, use_case.label.where]
    found += [m.where for group in use_case.feature_groups for m in group.measures]
    return tuple(dict.fromkeys(where for where in found if where is not None))


def measured_columns(use_case: UseCase) -> tuple[str, ...]:
    """Each column that a measure reads, once."""
    return tuple(
        dict.fromkeys(m.value for group in use_case.feature_groups for m in group.measures)
    )


def _as_integer(column: str, kind: str) -> Column:
    """A number for the kernel: decimals in 1/10,000, times in microseconds, text as it is."""
    value = F.col(column)
    if kind == "decimal":
        return (value * kernel.DECIMAL_SCALE).cast("bigint")
    if kind == "timestamp":
        return F.expr(f"unix_micros(cast(`{column}` as timestamp))")
    if kind == "date":
        return F.unix_date(value).cast("bigint")
    return value if kind == "string" else value.cast("bigint")


def vectors(
    events: DataFrame,
    use_case: UseCase,
    snapshots: Sequence[date],
    label_known_as_of: date | None,
    partitions: int,
) -> DataFrame:
    """Feature vectors of ``use_case`` at every snapshot: one row an entity and snapshot.

    Args:
        events: the extract of the use case's source.
        use_case: the declaration.
        snapshots: the ``as_of`` dates.
        label_known_as_of: adds the column ``label`` when given.
        partitions: how many parts the entities are hashed into.
    """
    source = use_case.source
    flags = conditions(use_case)
    columns = measured_columns(use_case)
    prepared = (
        events.where(F.col(use_case.key).isNotNull())
        .select(
            F.col(use_case.key).alias("__key"),
            _as_integer(source.event_time, "timestamp").alias("__time"),
            _as_integer(source.landed_date, "date").alias("__landed"),
            *(F.coalesce(F.expr(w), F.lit(False)).alias(f"__f{i}") for i, w in enumerate(flags)),
            *(_as_integer(c, source.columns[c]).alias(f"__v{i}") for i, c in enumerate(columns)),
        )
        .repartition(partitions, "__key")
    )
    schema = output_schema(use_case, label_known_as_of is not None)
    return prepared.mapInArrow(
        _partition_function(use_case, flags, columns, tuple(snapshots), label_known_as_of), schema
    )


def _partition_function(
    use_case: UseCase,
    flags: tuple[str, ...],
    columns: tuple[str, ...],
    snapshots: tuple[date, ...],
    label_known_as_of: date | None,
) -> Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    def compute_partition(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        received = list(batches)
        if not received:
            return
        table = pa.Table.from_batches(received)
        keys, events = events_of(table, flags, columns)
        for as_of, result in kernel.compute(use_case, events, snapshots, label_known_as_of):
            members = result.pop("entity")
            arrays: list[pa.Array] = [
                keys.take(pa.array(members)),
                pa.array(np.full(len(members), np.datetime64(as_of, "D"))),
            ]
            names = [use_case.key, SNAPSHOT]
            if label_known_as_of is not None:
                arrays.append(pa.array(result.pop(LABEL)))
                names.append(LABEL)
            for name in use_case.feature_names:
                arrays.append(pa.array(result[name], from_pandas=True))
                names.append(name)
            if len(members):
                yield pa.RecordBatch.from_arrays(arrays, names=names)

    return compute_partition


def events_of(
    table: pa.Table, flags: tuple[str, ...], columns: tuple[str, ...]
) -> tuple[pa.Array, kernel.Events]:
    """The kernel's arrays from a partition's table, and the keys by entity code, ascending."""
    found = table["__key"].combine_chunks()
    keys = pc.unique(found)
    keys = keys.take(pc.sort_indices(keys))
    values, valid = {}, {}
    for i, name in enumerate(columns):
        column = table[f"__v{i}"].combine_chunks()
        valid[name] = np.asarray(column.is_valid())
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            column = column.dictionary_encode().indices
        values[name] = pc.fill_null(column, 0).cast(pa.int64()).to_numpy()
    return keys, kernel.Events(
        entity=pc.index_in(found, value_set=keys).cast(pa.int64()).to_numpy(),
        entities=len(keys),
        time_us=table["__time"].combine_chunks().to_numpy(),
        landed_day=table["__landed"].combine_chunks().to_numpy(),
        flags={
            where: np.asarray(table[f"__f{i}"].combine_chunks()) for i, where in enumerate(flags)
        },
        values=values,
        valid=valid,
    )
