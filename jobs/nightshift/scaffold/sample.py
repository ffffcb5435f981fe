"""What a sample of a source's rows tells: names, types, key, event time, personal data. Pure."""

import keyword
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nightshift.contracts import Column
from nightshift.errors import NightshiftError
from nightshift.identifiers import identifier

MOST_COLUMNS = 200
"""Of a source: an export of more is a wide table that somebody has joined, or no table."""
LONGEST_NAME = 40
"""Of a source or a column: names are made longer by the tables and features named after them."""

_INSTANT = r"^\d{4}-\d{2}-\d{2} \d{2}:\d{2}:\d{2}$"
_ALMOST_INSTANT = r"^\d{4}-\d{2}-\d{2}([T ].*)?$|^\d{1,2}[/.]\d{1,2}[/.]\d{2,4}"
_INTEGER = r"^-?(0|[1-9][0-9]{0,17})$"
_NUMBER = r"^-?(0|[1-9][0-9]{0,13})(\.[0-9]{1,16})?$"
TYPES = {"text": "", "integer": _INTEGER, "number": _NUMBER, "timestamp": _INSTANT}
"""Types of columns, and what their values look like."""
_CODE = "^[0-9A-Za-z._-]{1,64}$"
_IDS = ("id", "key", "code", "no", "number")
_STAMPS = {"landed_date", "file_id", "row_number"}
_PEOPLE = {
    *("account", "card", "cardholder", "client", "customer", "driver", "employee", "member"),
    *("patient", "person", "user"),
}
_CONTACTS = {
    *("address", "email", "firstname", "iban", "lastname", "mail", "mobile", "name", "phone"),
    "surname",
}


@dataclass(frozen=True)
class Choices:
    """What the author of a source has decided; None is inferred.

    Attributes:
        key: columns that together name a row; () where rows may repeat.
        event_time: the column with the instant of the event.
        pii: columns with personal data.
        columns: those that are taken, by landed name; None for all.
        names: landed name → name.
        types: column → one of ``TYPES``, where what the sample shows is not what later days bring.
        has_versions: a row holds from its instant on, so that the instant is part of its key.
    """

    key: tuple[str, ...] | None = None
    event_time: str | None = None
    pii: tuple[str, ...] | None = None
    columns: tuple[str, ...] | None = None
    names: Mapping[str, str] = field(default_factory=dict)
    types: Mapping[str, str] = field(default_factory=dict)
    has_versions: bool = False


@dataclass(frozen=True)
class Inferred:
    """A source as its sample shows it.

    Attributes:
        source: its name.
        columns: those of the contract, key and personal data marked.
        event_time: name of the column with the instant of the event.
        leaves_out: landed names of columns that are not taken.
        rows: of the sample.
        nulls: rows without a value, by column.
        ranges: least and greatest value, by column of numbers.
    """

    source: str
    columns: tuple[Column, ...]
    event_time: str
    leaves_out: tuple[str, ...]
    rows: int
    nulls: Mapping[str, int]
    ranges: Mapping[str, tuple[float, float]]

    @property
    def key(self) -> tuple[str, ...]:
        """The columns that together name a row; () where rows may repeat."""
        return tuple(column.name for column in self.columns if column.is_key)

    @property
    def pii(self) -> tuple[str, ...]:
        """The columns with personal data."""
        return tuple(column.name for column in self.columns if column.is_pii)


def require_name(what: str, name: str) -> str:
    """``name``, where a table, a Python module and their tests can bear it.

    Raises:
        NightshiftError: saying what is wrong with it.
    """
    try:
        identifier(name)
        if keyword.iskeyword(name):
            raise ValueError(f"{name!r} is a reserved word of Python: choose another name")
        if len(name) > LONGEST_NAME:
            raise ValueError(f"{name!r} has {len(name)} characters, at most {LONGEST_NAME} fit")
    except ValueError as error:
        raise NightshiftError(
            f"{what}: {error}", "use lower-case letters, digits and _, as sensor_readings"
        ) from error
    return name


def require_header(path: str, header: Sequence[str], columns: Collection[str] | None) -> None:
    """Refuse a first row that names no columns, or too many.

    Raises:
        NightshiftError: naming the column at fault.
    """
    if not header:
        raise NightshiftError(
            f"{path}: the file is empty, without even a header",
            "take a file with a header and some days of rows",
        )
    for number, name in enumerate(header, start=1):
        is_value = re.match(rf"{_NUMBER}|{_ALMOST_INSTANT}", name.strip())
        if not name.strip() or is_value:
            raise NightshiftError(
                f"{path}: the first row is no header: column {number} is {name[:60]!r}",
                "have its sender put the columns' names into the first row",
            )
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise NightshiftError(
            f"{path}: the header names {', '.join(map(repr, twice[:5]))} twice",
            "have its sender give each column a name of its own",
        )
    if len(columns if columns is not None else header) > MOST_COLUMNS:
        raise NightshiftError(
            f"{path}: {len(header)} columns, from {header[0]!r} to {header[-1]!r}; a source has"
            f" {MOST_COLUMNS} at most",
            "name those that features need: --columns a,b,c",
        )
    unknown = [name for name in columns or () if name not in header]
    if unknown:
        raise NightshiftError(
            f"{path}: there is no column {unknown[0]!r}", f"the header is {_listed(header)}"
        )


def infer(
    path: str, source: str, rows: pa.Table, header: Sequence[str], chosen: Choices
) -> Inferred:
    """Names and types of the columns, the key and the event time.

    Args:
        path: of the sample, for messages.
        source: its name.
        rows: the columns that are taken, by landed name, as text; null or blank where a value is
            missing.
        header: every column of the file.
        chosen: what is not to be inferred.

    Raises:
        NightshiftError: naming the column, and the rows where there are some, at fault.
    """
    if rows.num_rows == 0:
        raise NightshiftError(
            f"{path}: a header and no rows: nothing tells the types of the columns",
            "take a file with some days of rows",
        )
    names = _names(path, source, rows.column_names, chosen.names)
    text = {name: _trimmed(rows[landed]) for landed, name in names.items()}
    pii = _known(path, "--pii", chosen.pii, names) if chosen.pii is not None else None
    wanted = dict(
        zip(_known(path, "--type", list(chosen.types), names), chosen.types.values(), strict=True)
    )
    for name, kind in wanted.items():
        _require_type(path, name, kind, text[name])
        if kind != "text" and (_is_personal(name) if pii is None else name in pii):
            raise NightshiftError(
                f"{path}: --type {name}={kind}: personal data is text, as a pseudonym is",
                f"leave {name} out of --pii, or its --type",
            )
    columns = {
        name: _column(
            landed,
            name,
            text[name],
            _is_personal(name) if pii is None else name in pii,
            wanted.get(name),
        )
        for landed, name in names.items()
    }
    event_time = _event_time(path, columns, text, chosen.event_time)
    key = _key(path, columns, text, event_time, chosen)
    return Inferred(
        source=source,
        columns=tuple(
            column.model_copy(
                update={
                    "is_key": name in key,
                    "required": column.required or name in {event_time, *key},
                }
            )
            for name, column in columns.items()
        ),
        event_time=event_time,
        leaves_out=tuple(landed for landed in header if landed not in names),
        rows=rows.num_rows,
        nulls={name: values.null_count for name, values in text.items()},
        ranges={
            name: (bounds["min"].as_py(), bounds["max"].as_py())
            for name, column in columns.items()
            if column.kind in ("integer", "number")
            for bounds in [pc.min_max(text[name].cast(pa.float64()))]
        },
    )


def snake_case(landed: str) -> str:
    """``CustomerID 2`` as ``customer_id_2``."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", landed)
    return re.sub(r"[^a-z0-9]+", "_", spaced.lower()).strip("_")


def _names(
    path: str, source: str, header: Sequence[str], given: Mapping[str, str]
) -> dict[str, str]:
    """Landed name → name."""
    for landed in given:
        if landed not in header:
            raise NightshiftError(
                f"{path}: --rename {landed}={given[landed]}: there is no column {landed!r}",
                f"the header is {_listed(header)}",
            )
    names: dict[str, str] = {}
    taken = {*_STAMPS, row_id_of(source)}
    for landed in header:
        name = given.get(landed, snake_case(landed))
        try:
            require_name(f"{path}: column {landed!r}", name)
        except NightshiftError as error:
            raise NightshiftError(
                error.what, f"name it: --rename '{landed}=…', in lower-case snake_case"
            ) from error
        if name in taken or name in names.values():
            owner = "the engine's own" if name in taken else "another column's"
            raise NightshiftError(
                f"{path}: column {landed!r}: the name {name!r} is {owner}",
                f"name it: --rename '{landed}=…'",
            )
        names[landed] = name
    return names


def row_id_of(source: str) -> str:
    """The mart's column that names a row, where no single landed column does."""
    return f"{source}_row_id"


def _trimmed(column: pa.ChunkedArray) -> pa.Array:
    text = pc.utf8_trim_whitespace(pa.concat_arrays(column.chunks).cast(pa.string()))
    return pc.if_else(pc.equal(text, ""), pa.scalar(None, pa.string()), text)


def _require_type(path: str, name: str, kind: str, text: pa.Array) -> None:
    if kind not in TYPES:
        raise NightshiftError(
            f"{path}: --type {name}={kind}: there is no such type", f"use one of {', '.join(TYPES)}"
        )
    wrong = pc.invert(pc.fill_null(pc.match_substring_regex(text, TYPES[kind]), True))
    if pc.any(wrong).as_py():
        row = _first(wrong)
        raise NightshiftError(
            f"{path}, row {row}, column {name!r}: {text[row - 1].as_py()[:40]!r} is no {kind}",
            "choose text, or have its sender export it so",
        )


def _column(
    landed: str, name: str, text: pa.Array, is_pii: bool, wanted: str | None = None
) -> Column:
    """A column of the contract; ``wanted`` is its type, None to infer it."""
    values = text.drop_null()
    shown = wanted or _type_shown(name, values, is_pii)
    kind, sql_type = "string", "text"
    pattern = max_length = None
    if shown == "timestamp":
        kind = sql_type = "timestamp"
    elif shown == "integer":
        # room for what later days bring: nine digits are all that an integer takes
        digits = pc.max(pc.utf8_length(values)).as_py()
        kind, sql_type = "integer", "integer" if digits is not None and digits <= 6 else "bigint"
    elif shown == "number":
        places = pc.max(
            pc.utf8_length(pc.replace_substring_regex(values, r"^[^.]*\.?", ""))
        ).as_py()
        kind, sql_type = "number", "numeric(18,4)" if (places or 0) <= 4 else "numeric(30,16)"
    elif len(values) and _is_id(name) and _all(values, _CODE):
        pattern = _CODE
    else:
        longest = pc.max(pc.utf8_length(values)).as_py() or 0
        max_length = next(most for most in (100, 1_000, 10_000, 1 << 20) if 2 * longest <= most)
    return Column.model_validate(
        {
            "name": name,
            "landed_name": landed,
            "kind": kind,
            "sql_type": sql_type,
            "description": f"{name.replace('_', ' ').capitalize()}.",
            "required": text.null_count == 0,
            "is_pii": is_pii,
            "pattern": pattern,
            "max_length": max_length,
        }
    )


def _type_shown(name: str, values: pa.Array, is_pii: bool) -> str:
    """The type of a column, by all of its values."""
    if len(values) and _all(values, _INSTANT):
        return "timestamp"
    if len(values) and not is_pii and not _is_id(name):
        return next((kind for kind in ("integer", "number") if _all(values, TYPES[kind])), "text")
    return "text"


def _all(values: pa.Array, pattern: str) -> bool:
    return bool(pc.all(pc.match_substring_regex(values, pattern)).as_py())


def _is_id(name: str) -> bool:
    return name.split("_")[-1] in _IDS


def _is_personal(name: str) -> bool:
    """A guess, which is shown for confirmation: a name errs on the side of a pseudonym."""
    words = set(name.split("_"))
    return bool(words & _CONTACTS) or (_is_id(name) and bool(words & _PEOPLE))


def _known(
    path: str, option: str, chosen: Sequence[str], names: Mapping[str, str]
) -> tuple[str, ...]:
    """Names as they were given, whether landed or not."""
    for name in chosen:
        if name not in names and name not in names.values():
            raise NightshiftError(
                f"{path}: {option} {name}: there is no such column",
                f"there are {_listed(list(names.values()))}",
            )
    return tuple(names.get(name, name) for name in chosen)


def _event_time(
    path: str, columns: Mapping[str, Column], text: Mapping[str, pa.Array], chosen: str | None
) -> str:
    times = [
        name
        for name, column in columns.items()
        if column.kind == "timestamp" and not text[name].null_count
    ]
    if chosen is not None:
        (name,) = _known(path, "--event-time", [chosen], _by_landed(columns))
        if name not in times:
            row = _first(
                pc.invert(pc.fill_null(pc.match_substring_regex(text[name], _INSTANT), False))
            )
            raise NightshiftError(
                f"{path}, row {row}, column {columns[name].landed_name!r}: no instant as YYYY-MM-DD"
                " HH:MM:SS, which the event time is in every row",
                "choose another --event-time, or have its sender export it so",
            )
        return name
    if times:
        return times[0]
    almost = [
        f"{columns[name].landed_name!r} holds {values.drop_null()[0].as_py()[:40]!r}"
        for name, values in text.items()
        if columns[name].kind == "string"
        and not columns[name].is_pii
        and len(values.drop_null())
        and _all(values.drop_null(), _ALMOST_INSTANT)
    ]
    missing = [
        f"{column.landed_name!r} is empty in row {_first(pc.is_null(text[name]))}"
        for name, column in columns.items()
        if column.kind == "timestamp"
    ]
    raise NightshiftError(
        f"{path}: no column says in every row when the event happened, as YYYY-MM-DD HH:MM:SS"
        + "".join(f"; {each}" for each in (*almost, *missing)[:3]),
        "have its sender export the instant of each row in that form",
    )


def _key(
    path: str,
    columns: Mapping[str, Column],
    text: Mapping[str, pa.Array],
    event_time: str,
    chosen: Choices,
) -> tuple[str, ...]:
    if chosen.key is not None:
        key = _known(path, "--key", chosen.key, _by_landed(columns))
        for name in key:
            if text[name].null_count:
                raise NightshiftError(
                    f"{path}, row {_first(pc.is_null(text[name]))}, column"
                    f" {columns[name].landed_name!r}: a column of the key is empty",
                    "choose another --key, or --without-key where rows may repeat",
                )
        twice = _first_twice(key, text) if key else None
        if twice is not None:
            raise NightshiftError(
                f"{path}: rows {twice[0]} and {twice[1]} have the same key {', '.join(key)}",
                "choose more columns: --key a,b; or --without-key where rows may repeat",
            )
        return key
    whole = [name for name, values in text.items() if not values.null_count]
    ids = [name for name in whole if _is_id(name)]
    alone = [] if chosen.has_versions else [(name,) for name in ids]
    candidates = [*alone, *((name, event_time) for name in ids)]
    return next((key for key in candidates if _first_twice(key, text) is None), ())


def _first_twice(key: Sequence[str], text: Mapping[str, pa.Array]) -> tuple[int, int] | None:
    """The first two rows, counted from 1, that agree in the key; None where none do."""
    rows = pa.table([text[name] for name in key], names=list(key))
    rows = rows.append_column("row ", pa.array(np.arange(1, rows.num_rows + 1)))
    found = rows.group_by(list(key)).aggregate([("row ", "min"), ("row ", "count")])
    found = found.filter(pc.greater(found["row _count"], 1))
    if not found.num_rows:
        return None
    first = pc.min(found["row _min"]).as_py()
    same = np.ones(rows.num_rows, bool)
    for name in key:
        same &= pc.equal(text[name], text[name][first - 1]).to_numpy(zero_copy_only=False)
    return first, int(np.flatnonzero(same)[1]) + 1


def _first(is_at_fault: pa.Array) -> int:
    """Number of the first such row, 1 = first data row."""
    return int(pc.indices_nonzero(pc.fill_null(is_at_fault, False))[0].as_py()) + 1


def _by_landed(columns: Mapping[str, Column]) -> dict[str, str]:
    return {column.landed_name: name for name, column in columns.items()}


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 12} more" if len(names) > 12 else ""
    return ", ".join(names[:12]) + more
