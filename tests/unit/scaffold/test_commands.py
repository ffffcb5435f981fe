"""The two commands: what they show and ask, and that without a yes nothing is written."""

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from nightshift.cli import app
from nightshift.scaffold import run
from nightshift.settings import PROJECT_ROOT

pytestmark = pytest.mark.usefixtures("logging_as_before")

READINGS = "reading_id,machine_id,read_at,heat\nR1,M1,2025-01-01 06:00:00,1.5\n"


@pytest.fixture
def sample(tmp_path: Path) -> str:
    file = tmp_path / "readings.csv"
    file.write_text(READINGS)
    return str(file)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty project with a registry, in the place of this one."""
    (tmp_path / run.REGISTRY).parent.mkdir(parents=True)
    (tmp_path / run.REGISTRY).write_text((PROJECT_ROOT / run.REGISTRY).read_text())
    for write in (run.write_source, run.write_use_case):
        assert write.__defaults__ == (PROJECT_ROOT,)
        monkeypatch.setattr(write, "__defaults__", (tmp_path,))
    return tmp_path


def nightshift(*arguments: str, answers: str = "") -> Result:
    environment = {"COLUMNS": "200", "TERM": "dumb"}
    return CliRunner().invoke(app, arguments, input=answers, env=environment)


def test_what_is_inferred_is_shown_and_can_be_corrected(project: Path, sample: str) -> None:
    answers = "machine_id,read_at\nheat=text\nmachine_id\nread_at\ny\n"
    done = nightshift("new-source", "readings", "--sample", sample, answers=answers)

    assert done.exit_code == 0, done.output
    assert "numeric(18,4)" in done.output
    assert "Key, with commas between; - for none [reading_id]" in done.output
    contract = (project / "jobs/nightshift/contracts/readings.odcs.yaml").read_text()
    assert contract.count("classification: pii") == 1
    assert "numeric" not in contract  # as was answered
    # its rule would show which machines have two rows of one instant
    assert "primaryKey:" not in contract
    assert "partition by _landed_date, machine_id, read_at" in contract


@pytest.mark.parametrize("answers", ["\n\n\n\nn\n", ""])
def test_without_a_yes_nothing_is_written(project: Path, sample: str, answers: str) -> None:
    done = nightshift("new-source", "readings", "--sample", sample, answers=answers)

    assert done.exit_code == 1
    assert not (project / "jobs/nightshift/contracts").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--key", "a", "--without-key"), "give one of them"),
        (("--rename", "heat"), "write --rename"),
        (("--type", "heat"), "write --type"),
        (("--type", "cold=text"), "--type cold: there is no such column"),
        (("--type", "heat=money"), "use one of text, integer, number, timestamp"),
        (("--type", "heat=integer"), "row 1, column 'heat': '1.5' is no integer"),
        (("--type", "heat=number", "--pii", "heat"), "personal data is text, as"),
        (("--key", "heat,read"), "--key read: there is no such column"),
    ],
)
def test_options_that_make_no_sense(
    project: Path, sample: str, arguments: tuple[str, ...], words: str
) -> None:
    done = nightshift("new-source", "readings", "--sample", sample, "--yes", *arguments)

    assert done.exit_code == 1
    assert words in " ".join(done.stderr.split())
    assert "Traceback" not in done.output


def test_a_use_case_is_asked_for(project: Path) -> None:
    answers = (
        "customer\n\norder_lines\n60\n\norder_lines\n14\n"
        "order_lines.line_amount order_lines.invoiced_at\n\n\ny\n"
    )
    done = nightshift("new-use-case", "will_buy", answers=answers)

    assert done.exit_code == 0, done.output
    declared = (project / "jobs/nightshift/use_cases/will_buy.py").read_text()
    assert 'score_column="will_buy_probability"' in declared
    assert "active_days=60" in declared
    assert "WILL_BUY as WILL_BUY" in (project / run.REGISTRY).read_text()


def test_an_amount_is_asked_for(project: Path) -> None:
    answers = (
        "customer\n\norder_lines\n60\nsum\norder_lines\nline_amount\nn\n14\n"
        "order_lines.invoiced_at\n20,200\n\n\ny\n"
    )
    done = nightshift("new-use-case", "basket", "--unit", "pounds", answers=answers)

    assert done.exit_code == 0, done.output
    assert "the sum of (" in done.output
    assert "From which amounts it is medium, and high [100,1000]" in done.output
    declared = (project / "jobs/nightshift/use_cases/basket.py").read_text()
    assert 'score_column="expected_line_amount"' in declared
    assert 'Band(name="medium", from_score=20.0)' in declared
    assert "non_negative" not in declared


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "--entity is left out"),
        (("--entity", "customer", "--key", "customer_id"), "--population is left out"),
        (
            (
                "--entity",
                "customer",
                "--key",
                "customer_id",
                "--population",
                "order_lines",
                "--active-days",
                "9",
                "--label",
                "sum",
                "--label-source",
                "order_lines",
            ),
            "--label-column is left out",
        ),
    ],
)
def test_what_is_left_out_with_yes(project: Path, arguments: tuple[str, ...], words: str) -> None:
    done = nightshift("new-use-case", "will_buy", "--yes", *arguments)

    assert done.exit_code == 1
    assert words in done.stderr
