"""A publication's parts into its table: what a connection of this process or a Spark task does."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import psycopg2
import pyarrow as pa
import pyarrow.parquet as pq

from nightshift.io.copy import copy_batches
from nightshift.io.warehouse import connect
from nightshift.publishing import sql
from nightshift.settings import Settings
from nightshift.spec import UseCase

BATCH_ROWS = 65_536


JSON = ("reasons", "rule_hits")


def copy_parts(
    settings: Settings,
    use_case: UseCase,
    publication_id: str,
    parts: Iterable[Path],
    *,
    alone: bool = False,
) -> None:
    """Append the rows of the parts of a scores dataset, by one COPY in a transaction of its own.

    Args:
        alone: nobody else loads the table, so it is emptied in the same transaction, and its rows
            are frozen: no vacuum has to visit them, and where ``wal_level`` is minimal, none is
            logged.

    Raises:
        psycopg2.DataError, pyarrow.ArrowException: when they do not fit the table.
    """
    schema = sql.copied_schema(use_case)

    def batches() -> Iterator[pa.RecordBatch]:
        for part in parts:
            with pq.ParquetFile(part, pre_buffer=False) as file:
                for batch in file.iter_batches(BATCH_ROWS, columns=schema.names, use_threads=False):
                    yield batch.select(schema.names).cast(schema)

    table = sql.partition(use_case, publication_id)
    with connect(settings) as connection:
        if alone:
            with connection.cursor() as cursor:
                cursor.execute(f"truncate {sql.SCHEMA}.{sql.quoted(table)}")
        copy_batches(
            connection, f"{sql.SCHEMA}.{table}", schema, batches(), jsonb=JSON, frozen=alone
        )


def copy_part_on_spark(
    settings: Settings, use_case: UseCase, publication_id: str, part: Path
) -> str | None:
    """``copy_parts`` of one part as a task; what did not fit, or None."""
    try:
        copy_parts(settings, use_case, publication_id, [part])
    except (psycopg2.DataError, pa.ArrowException) as error:
        return str(error).strip()
    return None
