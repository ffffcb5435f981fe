"""What is kept of a training makes it again, and one score is taken apart: on a real lake."""

import json
from collections.abc import Iterator
from datetime import date, timedelta
from typing import Any

import numpy as np
import payment_cases as payments
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xgboost as xgb
from psycopg2.extras import execute_values
from typer.testing import CliRunner, Result

from nightshift import pipeline, use_cases
from nightshift.cli import app
from nightshift.errors import NightshiftError
from nightshift.features.extract_run import extract
from nightshift.features.run import DatasetResult, build_features, build_training_set, replay
from nightshift.gates.run import promote
from nightshift.io import model_store
from nightshift.io.warehouse import connect, pseudonym
from nightshift.publishing.run import publish
from nightshift.scoring.run import score
from nightshift.settings import Settings
from nightshift.spec import Studies, UseCase
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


PAYMENT_CASES = (payments.FRAUD, payments.PAIRS)
PAYMENT_MARTS = """
create table marts.payments (payment_id text primary key, customer_id text, terminal_id text,
    amount numeric(18, 4), paid_at timestamp, landed_date date, is_fraud boolean, reported_on date,
    session_id text, region text);
create table marts.customers_history (customer_id text, valid_from timestamp, landed_date date,
    is_member boolean, plan text, version_id bigint generated always as identity)
"""


@pytest.fixture
def paid(tracked_warehouse: Settings, empty_mart: Settings) -> Settings:
    """Payments and customers of which some rows lack a key, in marts and lake, with a model."""
    settings = tracked_warehouse
    with connect(settings) as connection, connection.cursor() as cursor:
        cursor.execute(PAYMENT_MARTS)
        for source in (payments.PAYMENTS, payments.CUSTOMERS):
            rows = payments.TABLES[source.name].to_pylist()
            named = f"insert into {source.relation} ({', '.join(source.columns)}) values %s"
            execute_values(cursor, named, [tuple(row.values()) for row in rows])
            key = "set customer_id = predictions.pseudonym(customer_id)"
            cursor.execute(f"update {source.relation} {key} where customer_id is not null")
    extract(settings, PAYMENT_CASES, payments.AS_OF)
    for use_case in PAYMENT_CASES:
        register(settings, use_case)
    return settings


def register(settings: Settings, use_case: UseCase) -> None:
    """A small model as a new version."""
    names = list(use_case.feature_names)
    matrix = np.random.default_rng(1).uniform(0, 9, (200, len(names))).astype(np.float32)
    booster = xgb.train(
        {"objective": "binary:logistic", "max_depth": 2, "nthread": 1},
        xgb.DMatrix(matrix, matrix[:, 0] + matrix[:, -1] > 9, feature_names=names),
        num_boost_round=5,
    )
    client = model_store.client(settings)
    run_id = client.create_run(model_store.experiment_id(settings, use_case.name)).info.run_id
    folder = settings.state_dir / "made" / run_id
    model_store.write_model(folder, bytes(booster.save_raw("ubj")), {"features": names})
    client.log_artifacts(run_id, str(folder), model_store.MODEL)
    model_store.register(settings, use_case.name, run_id, payments.AS_OF.isoformat())


def in_order(rows: list[dict[str, Any]], use_case: UseCase) -> list[dict[str, Any]]:
    return sorted(rows, key=lambda row: [row[name] for name in use_case.vector_key])


def rows_of(night: DatasetResult) -> list[dict[str, Any]]:
    parts = [pq.read_table(part, partitioning=None) for part in night.folder.glob("part-*.parquet")]
    return pa.concat_tables(parts).to_pylist()


def test_events_and_candidates_are_replayed_to_the_bit_and_taken_apart(
    paid: Settings, logging_as_before: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(use_cases, "USE_CASES", PAYMENT_CASES)
    nights = build_features(paid, PAYMENT_CASES, payments.AS_OF)
    customers = [pseudonym(paid, f"c{number}") for number in range(20)]
    for use_case in PAYMENT_CASES:
        replayed = [
            row
            for customer in customers
            for row in replay(paid, use_case, customer, payments.AS_OF, 1).vectors.to_pylist()
        ]
        assert in_order(replayed, use_case) == in_order(rows_of(nights[use_case.name]), use_case)

        case = pipeline.explain(paid, use_case, "c3", payments.AS_OF, version="1", newest=2)
        assert case.entity == customers[3]
        own = [row for row in in_order(replayed, use_case) if row["customer_id"] == case.entity]
        names = [{name: row[name] for name in use_case.vector_key} for row in own]
        assert len(names) > 2
        explained = in_order([found.names for found in case.explained], use_case)
        if use_case.shown is None:
            assert explained == names
        else:  # of a list the rows that are shown
            assert len(explained) == use_case.shown
            assert [row for row in names if row in explained] == explained
        scores = [found.score for found in case.explained]
        assert scores == sorted(scores, reverse=True)
        for found in case.explained:
            odds = found.bias + sum(each.contribution for each in found.contributions)
            assert found.score == pytest.approx(1 / (1 + np.exp(-odds)), abs=1e-6)
            assert (found.published, len(found.contributions)) == (
                None, len(use_case.feature_names),
            )  # fmt: skip
        assert {name: rows.num_rows for name, rows in case.replayed.rows.items()} == {
            "payments": 2, "customers": 2,
        }  # fmt: skip

    asked = ("explain", "fraud", "c3", "--version", "1", "--as-of")
    shown = command(paid, *asked, str(payments.AS_OF))
    assert shown.exit_code == 0, shown.output
    assert names[0]["customer_id"] in shown.stdout
    assert "terminal_fraud_rate" in shown.stdout
    quiet = command(paid, *asked, str(payments.AS_OF - timedelta(days=10)))
    assert quiet.exit_code == 1
    assert "scored is each event of payments of the day before" in " ".join(quiet.stdout.split())
