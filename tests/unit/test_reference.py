"""docs/reference.md is what the declarations say of themselves."""

import runpy
from pathlib import Path

import pytest

from nightshift import spec
from nightshift.settings import PROJECT_ROOT

REFERENCE = runpy.run_path(str(PROJECT_ROOT / "scripts" / "reference.py"))


def test_the_reference_is_current() -> None:
    kept = (PROJECT_ROOT / "docs" / "reference.md").read_text()
    assert kept == REFERENCE["page"](), "run `make reference`"


def test_every_field_and_docstring_is_in_it() -> None:
    page: str = REFERENCE["page"]()
    for declared in (spec.UseCase, spec.FeatureGroup, spec.Snapshots, spec.Reported):
        section = page.split(f"## {declared.__name__}\n")[1].split("\n## ")[0]
        assert all(f"| `{name}` |" in section for name in declared.model_fields if name != "kind")
    assert "| `slope` |" in page.split("## Aggregations\n")[1]


def test_a_reference_that_has_drifted_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spec.Retention, "__doc__", "Kept for ever.")
    assert "Kept for ever." in REFERENCE["page"]()
    assert "Kept for ever." not in Path(REFERENCE["PAGE"]).read_text()
