"""Which files a run sees, by the names of folders alone."""

from datetime import date
from pathlib import Path

import pytest

from nightshift.errors import NightshiftError, RefusedAsOf, SettingError
from nightshift.ingest.folders import Found
from nightshift.ingest.folders import discover as discover_in
from nightshift.io.landing import LocalLandingZone


def discover(landing: Path, source: str, as_of: date) -> Found:
    return discover_in(LocalLandingZone(landing), source, as_of)


def land(landing: Path, *paths: str) -> None:
    for path in paths:
        file = landing / "order_lines" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()


def test_only_folders_before_as_of_are_seen(tmp_path: Path) -> None:
    land(tmp_path, "ds=2024-01-03/b.csv", "ds=2024-01-01/a.csv", "ds=2024-01-02/_SUCCESS")
    land(tmp_path, "ds=2024-01-02/x.csv.gz", ".ds=2024-01-01.tmp/a.csv", "_staging/a.csv")

    found = discover(tmp_path, "order_lines", date(2024, 1, 3))

    assert [file.path for file in found.files] == [
        "order_lines/ds=2024-01-01/a.csv",
        "order_lines/ds=2024-01-02/x.csv.gz",
    ]
    assert (found.refusals, found.warnings) == ([], [])


@pytest.mark.parametrize(
    "path", ["ds=2011-13-45/a.csv", "2024-01-01/a.csv", "ds=2024-1-1/a.csv", "ds=2024-01-01/a.xlsx"]
)
def test_what_is_no_landing_is_refused_by_name(tmp_path: Path, path: str) -> None:
    land(tmp_path, "ds=2024-01-02/good.csv", path)

    found = discover(tmp_path, "order_lines", date(2024, 1, 3))

    assert [file.path for file in found.files] == ["order_lines/ds=2024-01-02/good.csv"]
    (refusal,) = found.refusals
    assert path.split("/")[0] in refusal.what


def test_a_name_with_control_characters_is_refused_and_shown(tmp_path: Path) -> None:
    land(tmp_path, "ds=2024-01-02/good.csv", "ds=2024-01-02/\x1b[2J\n.csv", "ds=2024-01-01\n/a.csv")

    found = discover(tmp_path, "order_lines", date(2024, 1, 3))

    assert [file.path for file in found.files] == ["order_lines/ds=2024-01-02/good.csv"]
    assert len(found.refusals) == 2
    assert not any(character in str(found.refusals) for character in "\x1b\n")


def test_sql_and_quotes_in_a_name_are_a_name(tmp_path: Path) -> None:
    name = "'; drop table raw.order_lines; --.csv"
    land(tmp_path, f"ds=2024-01-02/{name}")

    (file,) = discover(tmp_path, "order_lines", date(2024, 1, 3)).files

    assert file.path.endswith(name)


def test_the_version_of_a_file_changes_with_its_content(tmp_path: Path) -> None:
    land(tmp_path, "ds=2024-01-02/a.csv")
    (before,) = discover(tmp_path, "order_lines", date(2024, 1, 3)).files
    (tmp_path / "order_lines/ds=2024-01-02/a.csv").write_text("x")

    (after,) = discover(tmp_path, "order_lines", date(2024, 1, 3)).files

    assert before.version != after.version
    assert (before.size, after.size) == (0, 1)


def test_a_link_out_of_the_zone_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    zone = tmp_path / "zone"
    land(zone, "ds=2024-01-02/a.csv")
    (zone / "order_lines/ds=2024-01-02/b.csv").symlink_to(tmp_path / "secret")

    with (
        pytest.raises(NightshiftError, match="leads out of the landing zone"),
        LocalLandingZone(zone).fetched("order_lines/ds=2024-01-02/b.csv"),
    ):
        pass


def test_an_empty_folder_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "order_lines" / "ds=2024-01-01").mkdir(parents=True)

    found = discover(tmp_path, "order_lines", date(2024, 1, 2))

    assert found == Found([], [], ["order_lines/ds=2024-01-01 holds no file"])


def test_nothing_before_as_of_names_the_earliest_folder(tmp_path: Path) -> None:
    land(tmp_path, "ds=2024-01-02/a.csv", "ds=2024-01-01/a.csv")

    with pytest.raises(RefusedAsOf, match=r"before as_of 2024-01-01.*ds=2024-01-01"):
        discover(tmp_path, "order_lines", date(2024, 1, 1))


def test_a_source_without_a_folder(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"no folder .*order_lines"):
        discover(tmp_path, "order_lines", date(2024, 1, 1))
