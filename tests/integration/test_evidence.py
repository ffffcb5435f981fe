"""What is kept of a training makes it again, and one score is taken apart: on a real lake."""

import json
from collections.abc import Iterator
from datetime import date

import pytest
from typer.testing import CliRunner, Result

from nightshift import pipeline
from nightshift.cli import app
from nightshift.errors import NightshiftError
from nightshift.features.extract_run import extract
from nightshift.features.run import build_features, build_training_set
from nightshift.gates.run import promote
from nightshift.io import model_store
from nightshift.io.warehouse import connect
from nightshift.publishing.run import publish
from nightshift.scoring.run import score
from nightshift.settings import Settings
from nightshift.spec import Studies
from nightshift.training.run import train
from nightshift.use_cases import CHURN

AS_OF = date(2011, 6, 1)
BRIEF = CHURN.model_copy(
    update={
        "snapshots": CHURN.snapshots.model_copy(update={"origins": 1, "staleness_weeks": ()}),
        "studies": Studies(learning_curve=(), ablation=False),
    }
)
PURCHASES = """
insert into marts.fct_order_lines (order_line_id, invoice_id, is_cancellation, product_id,
    is_product, quantity, unit_price, line_amount, invoiced_at, invoiced_date, customer_id, country,
    landed_date)
select 'L' || c || '-' || n, 'I' || c || '-' || n, false, 'P' || n % 5, true, 2, 2.55, 5.10,
    day + time '10:00', day, predictions.pseudonym('c' || c), 'France', day
from generate_series(1, 160) as c, generate_series(0, 100) as n,
    lateral (select date '2010-01-01' + c * 7 % 60 + n * (5 + c % 23) as day) as bought
where day < date '2011-06-20' and (c % 3 > 0 or n < 4 + c % 11);
"""
LANDED = """
delete from marts.fct_landed_days;
insert into marts.fct_landed_days (source, landed_date, rows_kept, build_id)
select 'order_lines', landed_date, count(*), md5(array_agg(lines::text order by lines::text)::text)
from marts.fct_order_lines as lines group by 2;
"""


def change(settings: Settings, statement: str) -> None:
    """Change the mart as a dbt run does, and copy what has changed to the lake."""
    with connect(settings) as connection:
        connection.cursor().execute(statement + LANDED)
    extract(settings, [CHURN], AS_OF)


@pytest.fixture
def trained(tracked_warehouse: Settings, empty_mart: Settings) -> Iterator[Settings]:
    """A shop of 160 customers, some of whom stop to buy, and a model of them."""
    change(tracked_warehouse, PURCHASES)
    build_training_set(tracked_warehouse, BRIEF, AS_OF)
    train(tracked_warehouse, BRIEF, AS_OF)
    yield tracked_warehouse


def test_a_training_is_done_again_from_its_manifest(
    trained: Settings, logging_as_before: None
) -> None:
    # what has landed since, and is gone again, was not known to it
    change(trained, "delete from marts.fct_order_lines where landed_date > '2011-06-05';")
    found = pipeline.reproduce(trained, "churn/1")
    assert (found.is_same, found.differences) == (True, ())
    assert (len(found.dataset[1]), found.model[0]) == (64, found.model[1])
    file = model_store.fetch(trained, found.run_id, "data_manifest.json")
    manifest = json.loads(file.read_text())
    assert manifest["label_window"]["landed_before"] == "2011-06-01"
    assert manifest["rows"] == sum(each["rows"] for each in manifest["rows_by_snapshot"].values())
    assert manifest["rows"] == sum(each["rows"] for each in manifest["parts"].values())
    assert {"spec", "spec_sha256", "code_commit"} <= set(manifest)

    change(trained, "update marts.fct_order_lines set quantity = 9 where order_line_id = 'L2-3';")
    file.write_text(json.dumps(manifest | {"libraries": {"xgboost": "0.1"}}))
    other = command(trained, "train", "reproduce", found.run_id)
    assert (other.exit_code, other.stdout.count("DIFFERS")) == (1, 2)
    assert found.dataset[0] in other.stdout
    assert "days of order_lines were built anew: 2010-0" in other.stdout
    assert "xgboost was 0.1 and is" in other.stdout

    file.write_text(json.dumps({name: manifest[name] for name in manifest if name != "spec"}))
    for named, message in (
        (found.run_id, r"data_manifest\.json cannot be read: KeyError"),
        ("churn/7", "there is no version 7 of churn; there are 1"),
        ("nothing", "MLflow has no run nothing"),
    ):
        with pytest.raises(NightshiftError, match=message):
            pipeline.reproduce(trained, named)


def command(settings: Settings, *arguments: str) -> Result:
    """Run a command of the command line on these settings."""
    names = ("database_url", "mlflow_tracking_uri", "lake", "state_dir", "landing")
    env = {f"NIGHTSHIFT_{name.upper()}": str(getattr(settings, name)) for name in names}
    return CliRunner().invoke(app, arguments, env=env)


def test_a_score_is_taken_apart_and_is_the_published_one(
    trained: Settings, logging_as_before: None
) -> None:
    promote(trained, CHURN, "1", "Ann", "for the test", despite_gates=True)
    build_features(trained, [CHURN], AS_OF)
    score(trained, CHURN, AS_OF)
    publish(trained, [CHURN], AS_OF)

    case = pipeline.explain(trained, CHURN, "c4", AS_OF, newest=2)
    (found,) = case.explained
    assert found.is_as_published is True
    rows = case.replayed.rows["order_lines"]
    assert (rows.num_rows, case.replayed.known["order_lines"] > 20) == (2, True)
    assert max(rows["landed_date"].to_pylist()) < AS_OF
    assert len(found.contributions) == len(CHURN.feature_names)
    sizes = [abs(each.contribution) for each in found.contributions]
    assert sizes == sorted(sizes, reverse=True)
    with connect(trained) as connection, connection.cursor() as cursor:
        cursor.execute(
            "select churn_probability, band, reasons from predictions.churn"
            " where customer_id = predictions.pseudonym('c4')"
        )
        probability, band, reasons = cursor.fetchone()
    assert (found.score, found.band) == (probability, band)
    assert [(r["feature"], r["direction"]) for r in reasons] == [
        (each.feature, each.direction) for each in found.contributions[:3]
    ]
    # by its pseudonym too; and other bits are seen
    assert pipeline.explain(trained, CHURN, case.entity, AS_OF).explained == case.explained
    with connect(trained) as connection, connection.cursor() as cursor:
        cursor.execute(
            "update predictions.churn_publications_data set churn_probability ="
            " churn_probability + 1e-15 where customer_id = %s",
            (case.entity,),
        )
    (moved,) = pipeline.explain(trained, CHURN, "c4", AS_OF).explained
    assert moved.is_as_published is False

    gone = pipeline.explain(trained, CHURN, "c3", date(2011, 6, 20))
    assert (gone.explained, gone.replayed.known["order_lines"] > 0) == ((), True)
    with pytest.raises(NightshiftError, match="no row with this customer_id had happened and"):
        pipeline.explain(trained, CHURN, "nobody", AS_OF)
    with pytest.raises(NightshiftError, match="churn has no version 9; there are 1"):
        pipeline.explain(trained, CHURN, "c4", AS_OF, version="9")

    asked = ("explain", "churn", "c4", "--as-of", str(AS_OF))
    shown = command(trained, *asked, "--json")
    assert json.loads(shown.stdout)["scores"][0]["score"] == found.score
    read = command(trained, *asked)
    assert found.contributions[0].feature in read.stdout
    assert "OTHER bits" in read.stdout
    absent = command(trained, "explain", "churn", "c3", "--as-of", "2011-06-20")
    assert (absent.exit_code, "not in the population" in absent.stdout) == (1, True)
