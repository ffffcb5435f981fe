"""The files of a source: they fit together, and are written whole or not at all."""

from pathlib import Path

import pytest

from nightshift.contracts import parse_contract
from nightshift.errors import NightshiftError
from nightshift.scaffold import run
from nightshift.scaffold.run import look_at_sample, write_source
from nightshift.scaffold.sample import Choices, Inferred
from nightshift.scaffold.source import files
from nightshift.spec import Source

CONTRACT = Path("jobs/nightshift/contracts/visits.odcs.yaml")


@pytest.fixture
def visits(tmp_path: Path) -> Inferred:
    """Of a table without a key, with a reserved word, personal data and a gap."""
    sample = tmp_path / "visits.csv"
    sample.write_text(
        "Visit At,Patient No,Order,Length\n"
        "2025-01-01 06:00:00,P1,3,2.123456\n"
        "2025-01-01 06:00:00,P1,3,\n"
    )
    return look_at_sample("visits", sample, Choices(names={"Order": "visit_order"}))


def test_the_contract_is_what_was_inferred(visits: Inferred) -> None:
    contract = parse_contract("visits", files(visits, "fct", "ward", "A visit.")[CONTRACT])

    assert [(c.name, c.landed_name, c.sql_type, c.required) for c in contract.columns] == [
        ("visit_at", "Visit At", "timestamp", True),
        ("patient_no", "Patient No", "text", True),
        ("visit_order", "Order", "integer", True),
        ("length", "Length", "numeric(30,16)", False),
    ]
    assert (contract.pii, contract.key, contract.owner) == (("patient_no",), (), "ward")
    assert not contract.ignores_unknown_columns


def test_the_declaration_is_of_the_mart(visits: Inferred) -> None:
    made = files(visits, "fct", "ward", "A visit.")
    namespace: dict[str, object] = {}
    exec(made[Path("jobs/nightshift/feature_groups/visits.py")], namespace)
    source = namespace["VISITS"]

    assert isinstance(source, Source)
    assert (source.relation, source.row_id) == ("marts.fct_visits", "visits_row_id")
    assert source.columns == {
        "visit_at": "timestamp",
        "patient_no": "string",
        "visit_order": "integer",
        "length": "double",
        "landed_date": "date",
    }
    mart = made[Path("dbt_project/models/marts/fct_visits.sql")]
    assert "set lookup = ['visit_at', 'patient_no', 'visit_order']" in mart
    assert "set nullable = ['length']" in mart
    assert "length::double precision as length" in mart


def test_it_is_written_once(visits: Inferred, tmp_path: Path) -> None:
    written = write_source(visits, "fct", "ward", "A visit.", tmp_path)

    assert written.new[-1] == CONTRACT  # which makes it a source: the last
    assert written.edited is None
    assert all((tmp_path / path).is_file() for path in written.new)
    with pytest.raises(NightshiftError, match="source visits is there already"):
        write_source(visits, "fct", "ward", "A visit.", tmp_path)


def test_nothing_is_overwritten(visits: Inferred, tmp_path: Path) -> None:
    own = tmp_path / "dbt_project/models/marts/fct_visits.sql"
    own.parent.mkdir(parents=True)
    own.write_text("select 1")

    with pytest.raises(NightshiftError, match=r"fct_visits.sql is there already, with another"):
        write_source(visits, "fct", "ward", "A visit.", tmp_path)

    assert own.read_text() == "select 1"
    assert [path for path in tmp_path.rglob("*visits*") if path.suffix != ".csv"] == [own]


def test_what_a_killed_run_left_is_completed(visits: Inferred, tmp_path: Path) -> None:
    made = files(visits, "fct", "ward", "A visit.")
    for path in list(made)[:4]:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(made[path])

    written = write_source(visits, "fct", "ward", "A visit.", tmp_path)

    assert written.new == tuple(made)[4:]


def test_a_full_disk_leaves_nothing(
    visits: Inferred, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, count = Path.write_text, 0

    def write_until_full(path: Path, text: str, **how: str) -> int:
        nonlocal count
        count += 1
        if count == 5:
            raise OSError(28, "No space left on device")
        return write(path, text, **how)

    monkeypatch.setattr(Path, "write_text", write_until_full)
    with pytest.raises(NightshiftError, match="No space left on device; nothing is left of it"):
        write_source(visits, "fct", "ward", "A visit.", tmp_path)

    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["visits.csv"]


def test_rows_beyond_the_most_are_not_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "MOST_ROWS", 2)
    sample = tmp_path / "s.csv"
    sample.write_text("id,at\n" + "".join(f"{n},2025-01-0{n} 00:00:00\n" for n in range(1, 5)))

    assert look_at_sample("visits", sample, Choices()).rows == 2
