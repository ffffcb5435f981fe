"""Which files of a source landed before ``as_of``, by the names in the landing zone."""

import re
from dataclasses import dataclass, field
from datetime import date

from nightshift.errors import ContractError, RefusedAsOf, SettingError
from nightshift.ingest.formats import SUFFIXES
from nightshift.io.landing import Entry, LandingZone

_FOLDER = re.compile(r"ds=([0-9]{4}-[0-9]{2}-[0-9]{2})")


class NothingLanded(SettingError):
    """The landing zone has no folder of the source."""


@dataclass(frozen=True)
class LandedFile:
    """A file in the landing zone.

    Attributes:
        path: relative to the zone.
        size: bytes.
        version: changes whenever the content does.
    """

    source: str
    landed_date: date
    path: str
    size: int
    version: str


@dataclass
class Found:
    """The files, in order; refusals of what lies beside them; what a person should know."""

    files: list[LandedFile] = field(default_factory=list)
    refusals: list[ContractError] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def discover(zone: LandingZone, source: str, as_of: date) -> Found:
    """The files of ``source`` that landed before ``as_of``.

    Names that begin with ``.`` or ``_`` are ignored, so that a sender can write and then rename.

    Raises:
        NothingLanded: when the landing zone has no folder of the source.
        RefusedAsOf: when the source has folders, but none is dated before ``as_of``.
    """
    entries = zone.entries(source)
    if not entries and source not in {entry.name for entry in zone.entries("")}:
        raise NothingLanded(
            f"the landing zone has no folder {zone.url}/{source}",
            f"set NIGHTSHIFT_LANDING to the folder that holds {source}/ds=YYYY-MM-DD/,"
            " or write demo data with `nightshift demo-data`",
        )
    found = Found()
    dates: list[date] = []
    for entry in entries:
        if entry.is_hidden and not _is_odd(entry.name):
            continue
        landed_date = _folder_date(entry)
        if landed_date is None:
            found.refusals.append(
                ContractError(
                    f"{source}/{_shown(entry.name)}: not a landing folder named ds=YYYY-MM-DD with"
                    " a date of the calendar",
                    "rename or remove it",
                )
            )
            continue
        dates.append(landed_date)
        if landed_date < as_of:
            _look_into(zone, source, entry.name, landed_date, found)
    if not any(landed_date < as_of for landed_date in dates) and (dates or not found.refusals):
        earliest = f"the earliest folder is ds={min(dates)}" if dates else "there is no folder"
        raise RefusedAsOf(
            f"no {source} landed before as_of {as_of}: {earliest} in {zone.url}/{source}",
            "choose an as_of after that date" if dates else "land a folder ds=YYYY-MM-DD",
        )
    return found


def _look_into(
    zone: LandingZone, source: str, folder: str, landed_date: date, found: Found
) -> None:
    before = len(found.files)
    for entry in zone.entries(f"{source}/{folder}"):
        if entry.is_hidden and not _is_odd(entry.name):
            continue
        path = f"{source}/{folder}/{entry.name}"
        if entry.is_folder or not entry.name.endswith(SUFFIXES) or _is_odd(entry.name):
            found.refusals.append(
                ContractError(
                    f"{source}/{folder}/{_shown(entry.name)}: not a file that ends with"
                    f" {', '.join(SUFFIXES)}",
                    "rename or remove it",
                )
            )
            continue
        found.files.append(LandedFile(source, landed_date, path, entry.size, entry.version))
    if len(found.files) == before:
        found.warnings.append(f"{source}/{folder} holds no file")


def _is_odd(name: str) -> bool:
    """Whether it is no name of a file: empty, a way to another folder, or not to be seen.

    Not to be seen are control characters, those that turn the direction of writing, and bytes that
    are no UTF-8, which no ledger could hold.
    """
    return name in ("", ".", "..") or not name.isprintable() or bool(set(name) & set("/\\"))


def _shown(name: str) -> str:
    """A name as it is, or with what is odd about it made visible."""
    return ascii(name) if _is_odd(name) else name


def _folder_date(entry: Entry) -> date | None:
    match = _FOLDER.fullmatch(entry.name)
    if match is None or not entry.is_folder:
        return None
    try:
        return date.fromisoformat(match[1])
    except ValueError:
        return None
