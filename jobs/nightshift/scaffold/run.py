"""Read a sample, and write the files of a source or a use case into the project: all or nothing."""

import csv
import gzip
import io
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from nightshift.contracts import Column, SourceContract
from nightshift.errors import NightshiftError
from nightshift.ingest import formats
from nightshift.scaffold.sample import Choices, Inferred, infer, require_header, require_name
from nightshift.scaffold.source import files as files_of_source
from nightshift.scaffold.use_case import Asked, with_listed
from nightshift.scaffold.use_case import files as files_of_use_case
from nightshift.settings import PROJECT_ROOT

log = logging.getLogger(__name__)

MOST_ROWS = 500_000
"""Of a sample that are looked at."""
LINES_FOR_KEYS = 1_000
"""Of JSON Lines that are looked through for keys."""
REGISTRY = Path("jobs", "nightshift", "use_cases", "__init__.py")


@dataclass(frozen=True)
class Written:
    """What was written: new files, and the one that got a line more, if one did."""

    new: tuple[Path, ...]
    edited: Path | None = None


def look_at_sample(source: str, sample: Path, chosen: Choices) -> Inferred:
    """What a landed file tells of a new source.

    Args:
        source: name of the new source.
        sample: a file as it will land.
        chosen: what is not to be inferred.

    Raises:
        NightshiftError: naming the file, the row and the column at fault.
        ContractError: when the file cannot be read as ingest will read it.
    """
    require_name("source", source)
    if not sample.is_file():
        raise NightshiftError(f"{sample}: there is no such file", "give a file as it lands")
    if not sample.name.endswith(formats.SUFFIXES):
        raise NightshiftError(
            f"{sample}: its name ends in none of {', '.join(formats.SUFFIXES)}",
            "land one of these formats, and name the file so",
        )
    path = str(sample)
    header = _header(sample)
    require_header(path, header, chosen.columns)
    taken = [name for name in header if chosen.columns is None or name in chosen.columns]
    return infer(path, source, _rows(source, sample, taken), header, chosen)


def write_source(
    inferred: Inferred, mart: str, owner: str, description: str, root: Path = PROJECT_ROOT
) -> Written:
    """Write the files of a source.

    Run again after a kill, it completes what it began.

    Raises:
        NightshiftError: when a file of another content is there already; nothing is written then.
    """
    made = files_of_source(inferred, mart, owner, description)
    return Written(_write_new(root, f"source {inferred.source}", made))


def write_use_case(asked: Asked, root: Path = PROJECT_ROOT) -> Written:
    """Write the files of a use case, and list it in the registry.

    Run again after a kill, it completes what it began.

    Raises:
        NightshiftError: when the declaration makes no sense, or a file of another content is there
            already; nothing is written then.
    """
    made = files_of_use_case(asked)
    registry = root / REGISTRY
    listed = with_listed(registry.read_text(), asked.name)
    new = _write_new(root, f"use case {asked.name}", made, is_listed=listed is None)
    # the last of all: until then nothing imports what is there of it
    if listed is not None:
        _replace(registry, listed)
    return Written(new, REGISTRY if listed is not None else None)


def _write_new(
    root: Path, what: str, made: Mapping[Path, str], *, is_listed: bool = True
) -> tuple[Path, ...]:
    """The paths that were missing; what is there as it is to be was written by a run before."""
    there = [path for path in made if (root / path).exists()]
    for path in there:
        if (root / path).read_text() != made[path]:
            raise NightshiftError(
                f"{what}: {path} is there already, with another content; nothing is written",
                "choose another name, or edit that file by hand",
            )
    if is_listed and len(there) == len(made):
        raise NightshiftError(
            f"{what} is there already, as this command writes it; nothing is written",
            f"edit its files, beginning with {list(made)[-1]}",
        )
    written: list[Path] = []
    try:
        for path, text in made.items():
            if path not in there:
                (root / path).parent.mkdir(parents=True, exist_ok=True)
                _replace(root / path, text)
                written.append(path)
    except OSError as error:
        for path in written:
            (root / path).unlink(missing_ok=True)
        raise NightshiftError(
            f"{what}: cannot be written: {error}; nothing is left of it",
            "make room, or make the project's folder writable, and run it again",
        ) from error
    return tuple(written)


def _replace(path: Path, text: str) -> None:
    """Write a file so that it is there whole or as before."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _header(sample: Path) -> list[str]:
    """Names of the columns; [] of an empty file."""
    if sample.suffix == ".parquet":
        try:
            return list(pq.read_schema(sample).names)
        except (pa.ArrowException, OSError) as error:
            raise NightshiftError(
                f"{sample}: not readable as Parquet: {error}", "take another file"
            ) from error
    try:
        how = gzip.open if sample.suffix == ".gz" else io.open
        with how(sample, "rt", encoding="utf-8-sig", newline="") as text:
            if sample.name.removesuffix(".gz").endswith(".csv"):
                line = text.readline(1 << 20)
                return next(csv.reader([line]), [])
            keys: dict[str, None] = {}
            for number, line in enumerate(islice(text, LINES_FOR_KEYS), start=1):
                if line.strip():
                    row = json.loads(line)
                    if not isinstance(row, dict):
                        raise NightshiftError(
                            f"{sample}, line {number}: no JSON object",
                            "have its sender land one object a line",
                        )
                    keys |= dict.fromkeys(row)
            return list(keys)
    except (OSError, EOFError, ValueError, csv.Error) as error:
        raise NightshiftError(
            f"{sample}: not readable: {error}", "take another file, of UTF-8 text"
        ) from error


def _rows(source: str, sample: Path, taken: Sequence[str]) -> pa.Table:
    """The sample's rows as ingest reads them, as text, by landed name."""
    columns = tuple(
        Column(
            name=f"column_{number}", landed_name=landed, kind="string", sql_type="text",
            description="", required=False,
        )
        for number, landed in enumerate(taken)
    )  # fmt: skip
    # all that a reader asks of a contract: there is none yet
    asked: dict[str, Any] = {
        "source": source, "columns": columns, "ignores_unknown_columns": True
    }  # fmt: skip
    loose = SourceContract.model_construct(**asked)
    tables: list[pa.Table] = []
    rows = 0
    for batch in formats.read(loose, str(sample), sample, log.debug):
        for row in batch.unread:
            raise NightshiftError(
                f"{sample}, row {row.number}: expected {row.rule}", "correct or remove that row"
            )
        tables.append(batch.rows)
        rows += batch.rows.num_rows
        if rows >= MOST_ROWS:
            log.warning("%s: the first %d rows are looked at", sample, rows)
            break
    none = pa.table({name: pa.array([], pa.string()) for name in taken})
    return pa.concat_tables([none, *tables]).slice(0, MOST_ROWS)
