"""What must hold after a fault, and after the run that follows it."""

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq

from chaos.worlds import PATIENCE, processes_of, query, temporary_of
from nightshift.io import lake
from nightshift.publishing import sql
from nightshift.settings import Settings
from nightshift.sources import SOURCES
from nightshift.spec import UseCase

Outcome = dict[str, Any]
SECONDS_TO_END = 15
OF_A_PUBLICATION = "^[a-z]+_p_"


def outcome_of(world: Settings, as_of: date, others: Sequence[UseCase] = ()) -> Outcome:
    """Everything that two nights for the same ``as_of`` must have in common.

    Args:
        others: use cases beside churn, with the sources that they read.

    Left out: what names a run or an instant (``scored_at``, ``_file_id``, which a file that is
    loaded at the second attempt gets anew).
    """
    url = world.warehouse_url
    landed = [name for name in SOURCES if name != "order_lines" and others]
    return {
        **{f"predictions of {each.name}": _rows_of(world, each, as_of) for each in others},
        **{f"raw.{name}": _landed_rows(world, f"raw.{name}", as_of) for name in landed},
        "predictions": query(
            world.reader_url,
            "select customer_id, as_of, churn_probability, band, reasons::text, model_version,"
            " publication_id from predictions.churn where as_of = %s order by customer_id",
            as_of,
        ),
        "raw": query(
            url,
            "select path, _row_number, invoice, stock_code, r.description, quantity, invoice_date,"
            " price, customer_id, country, _landed_date from raw.order_lines r"
            " join ops.landing_files on file_id = _file_id where _landed_date < %s order by 1, 2",
            as_of,
        ),
        "ledger": query(
            url,
            "select path, sha256, bytes, status, reason, rows_in, rows_loaded, rows_quarantined"
            " from ops.landing_files where landed_date < %s order by 1, 4",
            as_of,
        ),
        "quarantine": query(
            url,
            "select path, _row_number, column_name, rule, value, row_as_landed"
            " from quarantine.order_lines join ops.landing_files on file_id = _file_id"
            " where _landed_date < %s order by 1, 2, 3",
            as_of,
        ),
        "mart": query(
            url,
            "select path, split_part(order_line_id, ':', 2)::bigint, invoice_id, is_cancellation,"
            " product_id, is_product, quantity, unit_price, line_amount, invoiced_at, customer_id"
            " from marts.fct_order_lines"
            " join ops.landing_files on file_id = split_part(order_line_id, ':', 1)::bigint"
            " where fct_order_lines.landed_date < %s order by 1, 2",
            as_of,
        ),
    }


def _landed_rows(world: Settings, table: str, as_of: date) -> list[tuple[Any, ...]]:
    return query(
        world.warehouse_url,
        f"select path, _row_number, (to_jsonb(r) - '_file_id')::text from {table} as r"
        " join ops.landing_files on file_id = _file_id where _landed_date < %s order by 1, 2",
        as_of,
    )


def _rows_of(world: Settings, use_case: UseCase, as_of: date) -> list[tuple[Any, ...]]:
    columns = ", ".join(f'"{name}"' for name in sql.columns(use_case) if name != "scored_at")
    names = ", ".join(use_case.row_key)
    return query(
        world.reader_url,
        f"select {columns} from predictions.{use_case.name} where as_of = %s order by {names}",
        as_of,
    )


def assert_same(found: Outcome, expected: Outcome) -> None:
    """That two outcomes are equal, row by row."""
    for what, rows in expected.items():
        counts = len(found[what]), len(rows)
        assert counts[0] == counts[1], f"{what}: {counts[0]} rows, expected {counts[1]}"
        differing = [pair for pair in zip(found[what], rows, strict=True) if pair[0] != pair[1]]
        assert not differing, f"{what}: {len(differing)} rows differ, the first is {differing[0]}"


def published_of(world: Settings) -> dict[str, list[tuple[Any, ...]]]:
    """What was published and how often pointers moved, of all dates.

    Each move is a NOTIFY to applications, so a run that was disturbed may make no more of them.
    """
    return {
        "publications": query(
            world.warehouse_url,
            "select publication_id, use_case, as_of, model_version, rows, features_sha256"
            " from ops.publications order by 1",
        ),
        "pointer_moves": query(
            world.warehouse_url,
            "select use_case, as_of, from_publication_id, to_publication_id"
            " from ops.pointer_moves order by 1, 2, 3, 4",
        ),
        "promotions": query(
            world.warehouse_url,
            "select use_case, action, as_of from ops.promotions order by promotion_id",
        ),
        "thresholds": query(
            world.warehouse_url,
            "select use_case, as_of, threshold, previous, reason from ops.thresholds"
            " order by use_case, as_of, threshold",
        ),
    }


def datasets_of(world: Settings) -> dict[str, list[tuple[str, str]]]:
    """The bytes of every dataset that is made of rows: its parts, each with its SHA-256."""
    found = {}
    for kind in ("features", "outcomes", "scores", "training"):
        folders = sorted((world.lake_dir / kind).glob("*/as_of=*"))
        found[kind] = [
            (f"{folder.parent.name}/{folder.name}/{part.name}", lake.file_sha256(part))
            for folder in folders
            for part in lake.parts(folder)
        ]
    return found


def model_of(world: Settings) -> str | None:
    """SHA-256 of the model that was trained last, as its training has recorded it."""
    found = query(
        world.warehouse_url,
        "select result ->> 'model_sha256' from ops.runs where stage = 'training' and status ="
        " 'succeeded' order by run_id desc limit 1",
    )
    return found[0][0] if found else None


def wait_until_alone(world: Settings) -> None:
    """Until the server has noticed that its clients are dead, and has rolled back."""
    deadline = time.monotonic() + PATIENCE
    others = (
        "select pid, state, query from pg_stat_activity"
        " where datname = current_database() and pid <> pg_backend_pid()"
        " and usename = current_user and backend_type = 'client backend'"
    )
    while left := query(world.warehouse_url, others):
        assert time.monotonic() < deadline, left
        time.sleep(0.02)


def assert_nothing_is_half_done(
    world: Settings, reference: Mapping[str, Any] | None = None
) -> None:
    """What holds after any kill, before anything is run again.

    Args:
        reference: the outcome of the only night that is published, where there is but one.
    """
    wait_until_alone(world)
    for source in SOURCES:
        for schema, column in (("raw", "rows_loaded"), ("quarantine", "rows_quarantined")):
            table = f"{schema}.{source}"
            if query(world.warehouse_url, "select to_regclass(%s)", table) == [(None,)]:
                continue
            wrong = query(
                world.warehouse_url,
                f"select path, {column}, n from"
                " (select * from ops.landing_files where source = %s) as f full join"
                f" (select _file_id, count(*) as n from {table} group by 1) as t"
                f" on _file_id = file_id where coalesce(n, 0) is distinct from {column}",
                source,
            )
            assert wrong == [], f"{table}: {wrong[:10]}"
    assert_datasets_are_whole(world.lake_dir)
    view = query(world.warehouse_url, "select to_regclass('predictions.churn') is not null")
    if view == [(True,)] and reference is not None:
        published = query(world.reader_url, "select count(*) from predictions.churn")[0][0]
        assert published in (0, len(reference["predictions"]))


def assert_datasets_are_whole(root: Path) -> None:
    """Each folder that a reader would take for a dataset has a manifest that fits its rows."""
    for folder in [*root.rglob("as_of=*"), *root.rglob("month=*")]:
        if any(part.startswith(".") for part in folder.relative_to(root).parts):
            continue
        if not folder.is_dir():
            continue
        manifest = lake.read_manifest(folder)
        assert manifest is not None, f"{folder} has no manifest"
        rows = sum(pq.read_metadata(part).num_rows for part in folder.glob("part-*.parquet"))
        assert rows == manifest["rows"], f"{folder}: {rows} rows, its manifest says otherwise"


def assert_nothing_is_left_behind(world: Settings) -> None:
    """What a killed run had begun is gone once a run has ended."""
    left = query(
        world.warehouse_url,
        "select relnamespace::regnamespace || '.' || relname from pg_class c where relkind in"
        " ('r', 'v') and (relname like '%%\\_\\_dbt\\_%%' or relname ~ %s and not exists"
        " (select from pg_inherits where inhrelid = c.oid and not inhdetachpending))",
        OF_A_PUBLICATION,
    )
    assert left == [], f"tables: {left}"
    unknown = query(
        world.warehouse_url,
        "select relname from pg_class where relkind = 'r' and relname ~ %s"
        " and substring(relname, '_p_(.*)$') not in (select publication_id from ops.publications)",
        OF_A_PUBLICATION,
    )
    assert unknown == [], f"partitions of no publication: {unknown}"
    locks = query(
        world.warehouse_url,
        "select objid, mode from pg_locks where locktype = 'advisory'"
        " and database = (select oid from pg_database where datname = current_database())",
    )
    assert locks == [], f"locks: {locks}"
    assert_no_process_is_left(world)
    files = files_left(world)
    assert files == [], f"temporary files: {files}"


def assert_no_process_is_left(world: Settings, seconds: float = SECONDS_TO_END) -> None:
    """Whatever ran with the world's settings has ended, some seconds after its parent at most."""
    _, alive = psutil.wait_procs(processes_of(world), timeout=seconds)
    left = []
    for process in alive:
        with suppress(psutil.Error):
            left.append(" ".join(process.cmdline())[:200])
            process.kill()  # not to be found again
    assert left == [], f"processes: {left}"


def files_left(world: Settings) -> list[str]:
    """Hidden files of the lake, workspaces, and whatever is in the folder for temporary files."""
    temporary = temporary_of(world)
    found = [*world.lake_dir.rglob(".*"), *world.lake_dir.rglob("of-*")]
    found = [path for path in found if path.name not in (lake.CHALLENGES, ".fits")]
    found += [path for path in temporary.glob("*") if not path.name.startswith("nightshift-")]
    return sorted(map(str, [*found, *temporary.glob("nightshift-*/of-*")]))
