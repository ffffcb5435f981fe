"""Declared rules, asked of rows of features. Pure, and the same wherever rows are scored."""

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from nightshift.errors import NightshiftError
from nightshift.spec import Rule

if TYPE_CHECKING:
    import duckdb


def hits(rules: Sequence[Rule], rows: pa.Table | pa.RecordBatch) -> npt.NDArray[np.bool_]:
    """Which rows each rule hits, (rows, rules); a condition that is null does not.

    Raises:
        NightshiftError: naming the rule, when one of them cannot be asked.
    """
    found = np.zeros((rows.num_rows, len(rules)), dtype=np.bool_)
    table = pa.Table.from_batches([rows]) if isinstance(rows, pa.RecordBatch) else rows
    if not rules or not rows.num_rows:
        return found
    import duckdb  # 0.15 s, for use cases with rules only

    with _database().cursor() as database:  # a cursor sees no other's tables
        database.register("vectors", table)
        for position, rule in enumerate(rules):
            try:
                column = database.sql(f"select ({rule.where})::boolean from vectors")
                values = column.to_arrow_table().column(0).combine_chunks()
            except duckdb.Error as error:
                raise NightshiftError(
                    f"rule {rule.name} cannot be asked: {' '.join(str(error).split())}",
                    f"correct its condition, {rule.where!r}: SQL of DuckDB over the features",
                ) from error
            found[:, position] = np.asarray(pc.fill_null(values, False))
    return found


@cache
def _database() -> "duckdb.DuckDBPyConnection":
    """One a process, for it takes longer to open than most questions to answer."""
    import duckdb

    return duckdb.connect(config={"threads": 1})
