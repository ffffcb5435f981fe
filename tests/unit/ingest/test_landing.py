"""Which files a run sees, by the names of folders alone."""

from datetime import date
from pathlib import Path

import pytest

from nightshift.errors import RefusedAsOf, SettingError
from nightshift.ingest.run import discover


def land(landing: Path, *paths: str) -> None:
    for path in paths:
        file = landing / "order_lines" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()


def test_only_folders_before_as_of_are_seen(tmp_path: Path) -> None:
    land(tmp_path, "ds=2024-01-03/b.csv", "ds=2024-01-01/a.csv", "ds=2024-01-02/_SUCCESS")
    land(tmp_path, "ds=2024-01-02/x.csv.gz", ".ds=2024-01-01.tmp/a.csv", "_staging/a.csv")

    files, refusals, warnings = discover(tmp_path, "order_lines", date(2024, 1, 3))

    assert [file.path for file in files] == [
        "order_lines/ds=2024-01-01/a.csv",
        "order_lines/ds=2024-01-02/x.csv.gz",
    ]
    assert (refusals, warnings) == ([], [])


@pytest.mark.parametrize(
    "path", ["ds=2011-13-45/a.csv", "2024-01-01/a.csv", "ds=2024-1-1/a.csv", "ds=2024-01-01/a.xlsx"]
)
def test_what_is_no_landing_is_refused_by_name(tmp_path: Path, path: str) -> None:
    land(tmp_path, "ds=2024-01-02/good.csv", path)

    files, refusals, _ = discover(tmp_path, "order_lines", date(2024, 1, 3))

    assert [file.path for file in files] == ["order_lines/ds=2024-01-02/good.csv"]
    assert len(refusals) == 1
    assert path.split("/")[0] in refusals[0].what


def test_an_empty_folder_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "order_lines" / "ds=2024-01-01").mkdir(parents=True)

    assert discover(tmp_path, "order_lines", date(2024, 1, 2)) == (
        [],
        [],
        ["order_lines/ds=2024-01-01 holds no file"],
    )


def test_nothing_before_as_of_names_the_earliest_folder(tmp_path: Path) -> None:
    land(tmp_path, "ds=2024-01-02/a.csv", "ds=2024-01-01/a.csv")

    with pytest.raises(RefusedAsOf, match=r"before as_of 2024-01-01.*ds=2024-01-01"):
        discover(tmp_path, "order_lines", date(2024, 1, 1))


def test_a_source_without_a_folder(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"no folder .*order_lines"):
        discover(tmp_path, "order_lines", date(2024, 1, 1))
