"""What lies in the quarantine."""

from dataclasses import dataclass
from typing import Any

from nightshift.contracts import SOURCES, SourceContract, load_contract
from nightshift.io.warehouse import connect
from nightshift.settings import Settings


@dataclass(frozen=True)
class BrokenRule:
    """Rows of a file that broke the same rule; ``column`` is None where no one column did."""

    source: str
    path: str
    column: str | None
    rule: str
    rows: int


def summary(settings: Settings) -> list[BrokenRule]:
    """Every rule that quarantined rows broke, by source and file."""
    found = []
    with connect(settings) as connection, connection.cursor() as cursor:
        for source in SOURCES:
            table = load_contract(source).quarantine_table
            cursor.execute("select to_regclass(%s)", (table,))
            if cursor.fetchone() == (None,):
                continue
            cursor.execute(
                f"select path, column_name, rule, count(*) from {table}"
                " join ops.landing_files on file_id = _file_id group by 1, 2, 3 order by 1, 2, 3"
            )
            found += [BrokenRule(source, *row) for row in cursor.fetchall()]
    return found


def rows(
    settings: Settings, contract: SourceContract, path: str | None, limit: int
) -> list[tuple[Any, ...]]:
    """Quarantined rows: path, row number, column, rule, value, the row as it landed."""
    with connect(settings) as connection, connection.cursor() as cursor:
        cursor.execute("select to_regclass(%s)", (contract.quarantine_table,))
        if cursor.fetchone() == (None,):
            return []
        cursor.execute(
            "select path, _row_number, coalesce(column_name, '(all)'), rule, coalesce(value, ''),"
            f" row_as_landed from {contract.quarantine_table}"
            " join ops.landing_files on file_id = _file_id"
            " where path = coalesce(%s, path) order by landed_date desc, path, 2 limit %s",
            (path, limit),
        )
        return cursor.fetchall()
