"""The command line: its help, and its refusals, which exit with 1 and never show a traceback."""

import gzip
from datetime import date, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from nightshift.cli import app
from nightshift.settings import Settings

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("logging_as_before")]

HEADER = "Invoice,StockCode,Description,Quantity,InvoiceDate,Price,Customer ID,Country"
COMMANDS = (
    "up", "down", "status", "reset", "doctor", "demo-data", "ingest", "nightly", "train", "score",
    "publish", "evaluate", "demo", "promote", "rollback", "history",
    "backfill", "receipt", "rules", "new-source", "new-use-case",
)  # fmt: skip


def nightshift(*arguments: str, **variables: str) -> Result:
    return CliRunner().invoke(app, arguments, env={"COLUMNS": "200", "TERM": "dumb"} | variables)


def variables_of(settings: Settings) -> dict[str, str]:
    return {
        "NIGHTSHIFT_STATE_DIR": str(settings.state_dir),
        "NIGHTSHIFT_LANDING": str(settings.landing),
        "NIGHTSHIFT_LAKE": str(settings.lake_dir),
        "NIGHTSHIFT_DATABASE_URL": settings.warehouse_url,
        "NIGHTSHIFT_READER_DATABASE_URL": settings.reader_url,
        "NIGHTSHIFT_MLFLOW_TRACKING_URI": settings.mlflow_tracking_uri or "postgresql://none/none",
    }


def assert_refused(result: Result, *words: str) -> None:
    """Exit code 1, every one of the words, and the error's remedy instead of a traceback."""
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit), result.exception
    shown = " ".join(result.stderr.split())
    assert "refused: " in shown
    assert "→" in shown
    assert "Traceback" not in result.output
    for each in words:
        assert each in shown


def land(settings: Settings, landed_date: date, lines: int = 20) -> None:
    folder = settings.landing / "order_lines" / f"ds={landed_date}"
    folder.mkdir(parents=True)
    rows = [
        f"{536365 + n},85123A,HEART,{1 + n % 5},{landed_date} 08:{n:02d}:00,2.55,{17850 + n},France"
        for n in range(lines)
    ]
    with gzip.open(folder / "order_lines.csv.gz", "wt") as file:
        file.write("\n".join([HEADER, *rows]) + "\n")


def test_help_lists_every_command() -> None:
    shown = nightshift("--help")

    assert shown.exit_code == 0
    for command in COMMANDS:
        assert command in shown.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str) -> None:
    shown = nightshift(command, "--help")

    assert shown.exit_code == 0
    assert f"{command} [OPTIONS]" in " ".join(shown.stdout.split())


@pytest.mark.parametrize("command", ["ingest", "nightly"])
def test_an_as_of_in_the_future(warehouse: Settings, command: str) -> None:
    land(warehouse, date(2010, 12, 1))

    refused = nightshift(command, "--as-of", "2999-01-01", **variables_of(warehouse))

    assert_refused(refused, "as_of 2999-01-01 is in the future", "or earlier")


@pytest.mark.parametrize("command", [("nightly",), ("train", "churn")], ids=["nightly", "train"])
def test_an_as_of_before_any_data(warehouse: Settings, command: tuple[str, ...]) -> None:
    land(warehouse, date(2010, 12, 1))

    refused = nightshift(*command, "--as-of", "2010-12-01", **variables_of(warehouse))

    assert_refused(
        refused,
        "no order_lines landed before as_of 2010-12-01",
        "the earliest folder is ds=2010-12-01",
        "choose an as_of after that date",
    )


def test_a_landing_zone_that_is_not_there(warehouse: Settings, tmp_path: Path) -> None:
    variables = variables_of(warehouse) | {"NIGHTSHIFT_LANDING": str(tmp_path / "nowhere")}

    refused = nightshift("nightly", "--as-of", "2010-12-03", **variables)

    assert_refused(refused, str(tmp_path / "nowhere"), "set NIGHTSHIFT_LANDING")


def test_a_warehouse_that_does_not_answer(tmp_path: Path) -> None:
    refused = nightshift(
        "nightly", "--as-of", "2010-12-03",
        NIGHTSHIFT_STATE_DIR=str(tmp_path),
        NIGHTSHIFT_DATABASE_URL="postgresql://nobody:nothing@127.0.0.1:1/none",
    )  # fmt: skip

    assert_refused(refused, "the warehouse does not answer", "make up", "NIGHTSHIFT_DATABASE_URL")


def test_a_warehouse_that_was_never_set_up(tmp_path: Path) -> None:
    refused = nightshift(
        "nightly", "--as-of", "2010-12-03", NIGHTSHIFT_STATE_DIR=str(tmp_path / "state")
    )

    assert_refused(refused, "NIGHTSHIFT_DATABASE_URL is not set", "make up")


@pytest.mark.parametrize("command", ["train", "score", "evaluate"])
def test_a_use_case_that_does_not_exist(warehouse: Settings, command: str) -> None:
    refused = nightshift(command, "chrun", "--as-of", "2010-12-03", **variables_of(warehouse))

    assert_refused(refused, "there is no use case 'chrun'; there are: churn")


def test_an_unknown_setting_is_named_with_the_one_that_was_meant() -> None:
    refused = nightshift("nightly", "--as-of", "2010-12-03", NIGHTSHIFT_LANDNIG="landing")

    assert_refused(
        refused, "unknown setting NIGHTSHIFT_LANDNIG", "did you mean NIGHTSHIFT_LANDING?"
    )


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("NIGHTSHIFT_POSTGRES_PORT", "many", "valid integer"),
        ("NIGHTSHIFT_TIMEZONE", "Mars/Olympus", "not a time zone"),
        ("NIGHTSHIFT_LANDING_DEADLINE", "late", "time"),
        ("NIGHTSHIFT_DATABASE_URL", "mysql://localhost/x", "expected postgresql://"),
    ],
)
def test_a_malformed_setting_is_named_with_its_value(name: str, value: str, words: str) -> None:
    refused = nightshift("nightly", "--as-of", "2010-12-03", **{name: value})

    assert_refused(refused, f"{name}='{value}'", words)


def test_a_date_that_is_none_is_a_wrong_use() -> None:
    wrong = nightshift("nightly", "--as-of", "2011-02-30")

    assert wrong.exit_code == 2
    assert "2011-02-30" in wrong.stderr


@pytest.mark.parametrize("command", ["nightly", "ingest", "train", "score", "publish", "evaluate"])
def test_no_as_of_is_a_wrong_use(command: str) -> None:
    wrong = nightshift(command)

    assert wrong.exit_code == 2
    assert "Traceback" not in wrong.output


def test_publishing_what_was_never_scored(warehouse: Settings) -> None:
    refused = nightshift("publish", "--as-of", "2010-12-03", **variables_of(warehouse))

    assert_refused(
        refused, "churn has no scores for 2010-12-03", "nightshift score churn --as-of 2010-12-03"
    )


def test_scoring_without_a_champion(tracked_warehouse: Settings) -> None:
    refused = nightshift(
        "score", "churn", "--as-of", "2010-12-03", **variables_of(tracked_warehouse)
    )

    assert_refused(refused, "no champion yet", "nightshift train churn --as-of 2010-12-03")


def test_training_on_too_short_a_history(tracked_warehouse: Settings) -> None:
    for day in range(30):
        land(tracked_warehouse, date(2010, 12, 1) + timedelta(days=day))

    refused = nightshift(
        "train", "churn", "--as-of", "2010-12-31", **variables_of(tracked_warehouse)
    )

    assert_refused(
        refused,
        "churn cannot be trained as of 2010-12-31",
        "the first snapshot with 90 days of history is 2011-03-01",
        "choose an as_of from 2011-06-27 on",
    )


@pytest.mark.usefixtures("registry_of_churn")
def test_the_quarantine_is_listed_shown_and_replayed(warehouse: Settings) -> None:
    land(warehouse, date(2010, 12, 1))
    folder = warehouse.landing_folder / "order_lines" / "ds=2010-12-01"
    (folder / "broken.csv").write_text(
        "Invoice,StockCode,Description,Quantity,InvoiceDate,Price,Customer ID,Country\n"
        "1,A,,many,2010-12-01 08:00:00,1,13085,EIRE\n"
    )
    variables = variables_of(warehouse)
    assert nightshift("ingest", "--as-of", "2010-12-02", **variables).exit_code == 0

    listed = nightshift("quarantine", "list", **variables)
    shown = nightshift("quarantine", "show", "--source", "order_lines", **variables)
    replayed = nightshift("quarantine", "replay", "--source", "order_lines", **variables)
    unknown = nightshift("quarantine", "replay", "--source", "orders", **variables)

    assert "a whole number" in listed.stdout
    assert "many" in shown.stdout
    assert "13085" not in listed.stdout + shown.stdout
    assert "1 files: 0 rows loaded, 1 are broken still" in replayed.stdout
    assert_refused(unknown, "no contract for source 'orders'", "card_transactions")


@pytest.mark.usefixtures("registry_of_churn")
def test_ingest_says_what_it_did(warehouse: Settings) -> None:
    land(warehouse, date(2010, 12, 1))

    first = nightshift("ingest", "--as-of", "2010-12-02", **variables_of(warehouse))
    again = nightshift("ingest", "--as-of", "2010-12-02", **variables_of(warehouse))

    assert (first.exit_code, again.exit_code) == (0, 0)
    assert "1 files loaded (1 seen): 20 rows in = 20 loaded + 0 quarantined" in first.stdout
    assert "0 files loaded (1 seen): 0 rows in = 0 loaded + 0 quarantined" in again.stdout


def test_publications_are_listed_compared_and_rolled_back(warehouse: Settings) -> None:
    variables = variables_of(warehouse)

    listed = nightshift("publications", "list", **variables)
    unknown = nightshift("publications", "diff", "0123", "4567", **variables)
    nothing = nightshift("rollback", "churn", "--as-of", "2010-12-03", **variables)
    no_date = nightshift("rollback", "churn", "--to", "0123", **variables)

    assert listed.exit_code == 0
    assert_refused(unknown, "no publications have an id that begins with '0123'")
    assert_refused(nothing, "nothing of churn is published for 2010-12-03", "publications list")
    assert_refused(no_date, "--to 0123 names a publication, and no date")
