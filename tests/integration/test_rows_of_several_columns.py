"""Rows that the key alone does not name, here events of a customer: from features to receipts."""

from contextlib import closing
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import psycopg2
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from jsonschema import Draft202012Validator
from payment_cases import FRAUD, PAYMENTS, TABLES
from psycopg2.errors import InsufficientPrivilege, InvalidParameterValue
from rich.console import Console
from small_models import register, small_booster

from chaos.worlds import query
from nightshift import pipeline
from nightshift.errors import AuditError, NightshiftError
from nightshift.features import extract
from nightshift.features import run as features
from nightshift.features.extract_run import events_dir
from nightshift.io import model_store
from nightshift.io.lake import dataset_dir, parts, replacing, write_manifest
from nightshift.monitoring.run import measure_matured, rule_figures
from nightshift.publishing import sql
from nightshift.publishing.history_run import diff
from nightshift.publishing.run import publish, top_rows
from nightshift.publishing.schema import json_schema
from nightshift.receipt.page import page
from nightshift.receipt.run import feature_values, recorded
from nightshift.scoring.parts import Threshold
from nightshift.scoring.run import challenge, explain_rows, score
from nightshift.settings import Settings
from nightshift.spec import AlertBudget, Alerts, Rule, UseCase

AS_OF = date(2012, 3, 1)
NAMES = FRAUD.feature_names
ROWS = 200


def write_events(settings: Settings, kind: str, changed: int = 0) -> pa.Table:
    """Two events of each of a hundred customers; ``changed`` rows have other features."""
    values = np.random.default_rng(7).uniform(0, 200, (ROWS, len(NAMES)))
    values[:changed] = 200 - values[:changed]
    columns = {
        "payment_id": pa.array([f"p{i:04}" for i in range(ROWS)]),
        "customer_id": pa.array([f"c{i // 2:04}" for i in range(ROWS)]),
        **{name: pa.array(values[:, i]) for i, name in enumerate(NAMES)},
    }
    if kind == "matured":
        columns["label"] = pa.array((values[:, 0] > 90).astype(np.int32))
    table = pa.table(columns)
    with replacing(dataset_dir(settings.lake_dir, kind, FRAUD.name, AS_OF)) as folder:
        pq.write_table(table, folder / "part-00000.parquet")
        write_manifest(folder, {"rows": ROWS, "sha256": f"{changed} changed"})
    return table


def test_events_are_scored_published_looked_up_compared_and_measured(
    tracked_warehouse: Settings, tmp_path: Path
) -> None:
    settings = tracked_warehouse
    champion = register(settings, FRAUD, tmp_path / "model", NAMES[0])
    model_store.set_alias(settings, FRAUD.name, model_store.CHAMPION, champion)
    vectors = write_events(settings, "features")
    first = score(settings, FRAUD, AS_OF).publication_id
    publish(settings, [FRAUD], AS_OF)

    view = f"predictions.{FRAUD.name}_latest"
    found = query(
        settings.warehouse_url,
        f"select payment_id from {view} where customer_id = 'c0007' order by 1",
    )
    assert found == [("p0014",), ("p0015",)]
    plan = query(
        settings.warehouse_url, f"explain select * from {view} where customer_id = 'c0007'"
    )
    table = f"predictions.{sql.partition(FRAUD, first)}"
    ((definition,),) = query(
        settings.warehouse_url,
        f"select pg_get_constraintdef(oid) from pg_constraint where contype = 'p'"
        f" and conrelid = '{table}'::regclass",
    )
    assert definition == "PRIMARY KEY (customer_id, payment_id)", plan
    top = top_rows(settings, FRAUD, 2)
    assert list(top[0])[:3] == ["customer_id", "payment_id", "as_of"]
    assert top[0]["churn_probability"] >= top[1]["churn_probability"]

    one = vectors.slice(14, 2)
    explained = explain_rows(settings, FRAUD, AS_OF, one, None)
    assert {each.names["payment_id"]: each.is_as_published for each in explained} == {
        "p0014": True, "p0015": True,
    }  # fmt: skip
    ask_scores = f"select payment_id from {view} where customer_id = 'c0007' order by"
    ask_scores += " churn_probability desc, 1"
    (highest,), (lower,) = query(settings.warehouse_url, ask_scores)
    for asked, named, expected, others in (
        ("c0007", {}, highest, [lower]),
        ("c0007", {"payment_id": lower}, lower, []),
        (None, {"payment_id": "p0015"}, "p0015", []),
        ("p0014", {}, "p0014", []),
    ):
        told = recorded(settings, FRAUD, asked, named=named)
        assert (told["row"]["customer_id"], told["row"]["payment_id"]) == ("c0007", expected)
        names = [{"customer_id": "c0007", "payment_id": each} for each in others]
        assert told["others"] == {"rows": len(others), "first": names}
        values = feature_values(settings, FRAUD, told)
        assert values.vector[NAMES[0]] == vectors[NAMES[0]][int(expected[1:])].as_py()
    assert recorded(settings, FRAUD, "c0008", named={"payment_id": "p0014"})["row"] is None
    for nothing in ({}, {"payment_id": "x' or true --"}, {"payment_id": "p0014' --"}):
        assert recorded(settings, FRAUD, None, named=nothing)["row"] is None
    asked_nothing = "select predictions.receipt(%s, null, named => null) -> 'row'"
    assert query(settings.warehouse_url, asked_nothing, FRAUD.name) == [(None,)]
    with pytest.raises(InvalidParameterValue, match=r"no column amount names a row.*payment_id"):
        recorded(settings, FRAUD, "c0007", named={"amount": "1 or true"})

    booster = small_booster(FRAUD, NAMES[1])
    other = register(settings, FRAUD, tmp_path / "other", NAMES[1], booster=booster)
    ask_rows = (
        f"select count(*), count(distinct payment_id) from monitoring.{FRAUD.name}_challenger"
    )
    judge(settings, other)
    assert challenge(settings, FRAUD, AS_OF) is not None
    assert query(settings.warehouse_url, ask_rows) == [(ROWS, ROWS)]

    write_events(settings, "matured")
    measured = measure_matured(settings, FRAUD, AS_OF)
    assert measured.figures["champion"]["auc"].value > 0.99

    write_events(settings, "features", changed=3)
    second = score(settings, FRAUD, AS_OF).publication_id
    publish(settings, [FRAUD], AS_OF)
    difference = diff(settings, [FRAUD], first, second)
    assert (difference.rows_in_both, difference.rows_changed) == (ROWS, 3)
    changed = {"c0000·p0000", "c0000·p0001", "c0001·p0002"}
    assert {row.key for row in difference.largest} == changed


def with_a_champion(settings: Settings, root: Path) -> None:
    """A model that scores, and events for it to score."""
    champion = register(settings, FRAUD, root / "model", NAMES[0])
    model_store.set_alias(settings, FRAUD.name, model_store.CHAMPION, champion)
    write_events(settings, "features")


def test_a_receipt_takes_what_names_a_row_as_it_lands(
    tracked_warehouse: Settings, tmp_path: Path
) -> None:
    settings = tracked_warehouse
    with_a_champion(settings, tmp_path)
    score(settings, FRAUD, AS_OF)
    publish(settings, [FRAUD], AS_OF)
    # a customer's id lands in the clear; here the pseudonym is what the rows have
    with psycopg2.connect(settings.warehouse_url) as connection, connection.cursor() as cursor:
        cursor.execute(
            f"update predictions.{FRAUD.name}_publications_data"
            " set customer_id = predictions.pseudonym('7') where customer_id = 'c0007'"
        )

    def shown(*arguments: str | None, **named: str) -> tuple[str, int]:
        told = pipeline.receipt(settings, FRAUD, *arguments, named=named).told
        return told["row"] and told["row"]["payment_id"], told["others"]["rows"]

    assert shown("7")[1] == 1
    assert shown("p0015") == shown("7", payment_id="p0015") == ("p0015", 0)
    assert shown("c0007") == (None, 0)
    # of a row that was not published no other row's features are told
    for asked, named in ((None, {"payment_id": "nope"}), ("7", {"payment_id": "p0001"})):
        told = pipeline.receipt(settings, FRAUD, asked, named=named)
        assert (told.told["row"], told.features.vector, told.remade) == (None, {}, None)
        Console().print(page(told))
    with pytest.raises(NightshiftError, match="no column amount names a row") as refusal:
        shown("7", amount="1")
    assert refusal.value.remedy == "the columns are customer_id, payment_id"


def test_a_receipt_tells_the_files_of_what_was_joined_and_of_other_entities(
    tracked_warehouse: Settings, tmp_path: Path
) -> None:
    settings = tracked_warehouse
    with_a_champion(settings, tmp_path)
    rows = (  # payment, customer, terminal, day, known to be a fraud on
        ("p0014", "c0007", "t1", "2012-02-29", None),
        ("early", "c0007", "t2", "2012-02-10", "2012-02-20"),
        ("late", "c0007", "t2", "2012-02-11", "2012-03-02"),
        ("other", "c0001", "t1", "2012-02-12", "2012-02-21"),
        ("future", "c0001", "t1", "2012-03-01", None),
    )
    days = {(source, day) for _, _, _, day, known in rows for source, day in
            (("payments", day), ("chargebacks", known)) if day}  # fmt: skip
    score(settings, FRAUD, AS_OF)
    with psycopg2.connect(settings.warehouse_url) as connection, connection.cursor() as cursor:
        cursor.execute(
            "create schema marts; create table marts.payments (payment_id text, customer_id text,"
            " terminal_id text, paid_at timestamp, landed_date date, reported_on date)"
        )
        for payment, customer, terminal, day, known in rows:
            values = (payment, customer, terminal, day, day, known)
            cursor.execute("insert into marts.payments values (%s, %s, %s, %s, %s, %s)", values)
        for source, day in days:
            cursor.execute(
                "insert into ops.landing_files (source, landed_date, path, sha256, bytes, status,"
                " rows_in, rows_loaded, rows_quarantined)"
                " values (%s, %s, %s, '', 1, 'loaded', 1, 1, 0)",
                (source, day, f"{source}/{day}.csv"),
            )
        cursor.execute(
            "insert into ops.quality_results (run_id, as_of, source, checked, landed_date, rule,"
            " severity, success, examples, checked_at) select (select min(run_id) from ops.runs),"
            " '2012-03-01', s, s, '2012-02-28', 'rows', 'error', true, '{}', '2012-03-01'"
            " from unnest(array['payments', 'chargebacks', 'order_lines']) as s"
        )
    publish(settings, [FRAUD], AS_OF)

    told = recorded(settings, FRAUD, "p0014")

    found = {
        each["key"]: [(f["path"], f["is_joined"]) for f in each["landed_files"]["files"]]
        for each in told["sources"]
        if each["relation"] == "marts.payments"
    }
    assert found == {
        "customer_id": [
            ("payments/2012-02-10.csv", False), ("payments/2012-02-11.csv", False),
            ("chargebacks/2012-02-20.csv", True), ("payments/2012-02-29.csv", False),
        ],
        "terminal_id": [
            ("payments/2012-02-12.csv", False), ("chargebacks/2012-02-21.csv", True),
            ("payments/2012-02-29.csv", False),
        ],
    }  # fmt: skip
    assert {each["key"]: each["value"] for each in told["sources"]}["terminal_id"] == "t1"
    assert {each["checked"] for each in told["quality"]} == {"payments", "chargebacks"}

    # an event that the mart has lost, as by a correction, has no terminal any more
    unknown = recorded(settings, FRAUD, "p0015")
    assert {each["key"]: each["value"] for each in unknown["sources"]}["terminal_id"] is None


def test_decisions_rest_on_rules_and_on_a_threshold_that_a_rerun_keeps(
    tracked_warehouse: Settings, tmp_path: Path
) -> None:
    settings = tracked_warehouse
    rule = Rule(name="large", where=f"{NAMES[1]} > 190", description="very large", action="block")
    alerts = Alerts(target=AlertBudget(entities=5), low=0.2, high=0.9, step=0.1, initial=0.6)
    decided = UseCase(**(dict(FRAUD) | {"rules": (rule,), "alerts": alerts}))
    champion = register(settings, decided, tmp_path / "model", NAMES[0])
    model_store.set_alias(settings, FRAUD.name, model_store.CHAMPION, champion)
    vectors = write_events(settings, "features")

    assert score(settings, decided, AS_OF).threshold == Threshold(0.6, "2012-03-01/1")
    publish(settings, [decided], AS_OF)

    rows = query(
        settings.warehouse_url,
        "select payment_id, churn_probability, decision, rule_hits, threshold_version"
        f" from predictions.{FRAUD.name}_latest order by 1",
    )
    large = vectors[NAMES[1]].to_numpy() > 190
    for (_, probability, decision, hits, version), is_large in zip(rows, large, strict=True):
        alerted = "review" if probability >= 0.6 else "pass"
        assert (decision, hits) == (("block", ["large"]) if is_large else (alerted, []))
        assert version == "2012-03-01/1"
    validator = Draft202012Validator(json_schema(decided))
    for (row,) in query(
        settings.warehouse_url, f"select row_to_json(f) from predictions.{FRAUD.name}_latest f"
    ):
        validator.validate(row)
        assert not validator.is_valid(row | {"decision": "perhaps"})

    chosen = "select threshold, previous, reason from ops.thresholds"
    assert query(settings.warehouse_url, chosen) == [
        (0.6, None, "no outcome is known yet: the initial one")
    ]
    write_events(settings, "features", changed=3)
    score(settings, decided, AS_OF)
    assert len(query(settings.warehouse_url, chosen)) == 1, "a night that is run again keeps it"
    with pytest.raises(InsufficientPrivilege, match="append-only"):
        query(settings.warehouse_url, "update ops.thresholds set threshold = 0 returning 1")

    write_events(settings, "matured")
    measure_matured(settings, decided, AS_OF)
    figures = {each.rule: each for each in rule_figures(settings, decided, 30)}
    labels = vectors[NAMES[0]].to_numpy() > 90
    assert figures["large"].hits == int(large.sum())
    assert figures["large"].precision == pytest.approx(labels[large].mean())
    assert figures["large"].recall == pytest.approx((large & labels).sum() / labels.sum())
    assert set(figures) == {"large", "threshold", "decision"}

    # the next week knows what came of that night: one step towards what keeps the budget
    later = AS_OF + timedelta(days=7)
    for kind in ("features", "outcomes"):
        with replacing(dataset_dir(settings.lake_dir, kind, FRAUD.name, later)) as folder:
            found = vectors if kind == "features" else reported(vectors.filter(pa.array(labels)))
            pq.write_table(found, folder / "part-00000.parquet")
            write_manifest(folder, {"rows": ROWS, "sha256": "x", "nights": [AS_OF.isoformat()]})
    one_night = alerts.model_copy(update={"min_nights": 1})
    again = decided.model_copy(update={"alerts": one_night})
    found_threshold = score(settings, again, later).threshold
    assert found_threshold == Threshold(0.7, "2012-03-08/1")
    assert (
        "1 published nights from 2012-03-01"
        in query(settings.warehouse_url, f"{chosen} order by as_of")[1][2]
    )


def test_outcomes_are_what_was_reported_and_known_by_then(warehouse: Settings) -> None:
    rows = TABLES["payments"].to_pylist()
    alerts = Alerts(target=AlertBudget(entities=5), low=0.2, high=0.9, step=0.1, initial=0.6)
    decided = UseCase(**(dict(FRAUD) | {"alerts": alerts}))
    for month in sorted({f"{row['landed_date']:%Y-%m}" for row in rows}):
        landed = [f"{row['landed_date']:%Y-%m}" == month for row in rows]
        folder = events_dir(warehouse, PAYMENTS, "customer_id") / f"month={month}-01"
        with replacing(folder) as place:
            file, table = place / extract.FILE, TABLES["payments"].filter(pa.array(landed))
            extract.write(file, table, PAYMENTS, "customer_id", warehouse.lake_buckets)
            size = file.stat().st_size
            told = {"buckets": warehouse.lake_buckets, "bytes": size, "signature": month}
            write_manifest(place, told)

    features._write_outcomes(warehouse, decided, AS_OF)

    folder = dataset_dir(warehouse.lake_dir, "outcomes", FRAUD.name, AS_OF)
    found = pa.concat_tables(pq.read_table(part, partitioning=None) for part in parts(folder))
    last = AS_OF - timedelta(days=8)
    assert {(row["payment_id"], row["as_of"]) for row in found.to_pylist()} == {
        (row["payment_id"], row["landed_date"] + timedelta(days=1))
        for row in rows
        if row["is_fraud"] and row["reported_on"] < AS_OF and row["customer_id"]
        and (row["amount"] or 0) > 0 and row["landed_date"] == row["paid_at"].date()
        and last - timedelta(days=13) <= row["landed_date"] <= last
    }  # fmt: skip
    assert found.num_rows > 3


def reported(rows: pa.Table) -> pa.Table:
    """Which events were reported, as the features stage tells it."""
    night = pa.array([AS_OF] * rows.num_rows, pa.date32())
    return rows.select(["customer_id", "payment_id"]).append_column("as_of", night)


def judge(settings: Settings, version: str) -> None:
    """The version was judged last, and is not champion: the registry calls it the challenger."""
    with closing(psycopg2.connect(settings.warehouse_url)) as connection, connection:
        connection.cursor().execute(
            "insert into ops.gate_results (use_case, as_of, mlflow_run_id, model_version, gate,"
            " passed, detail) values (%s, %s, 'run', %s, 'at_least_auc', false, '')",
            (FRAUD.name, AS_OF, version),
        )


def test_a_row_that_is_there_twice_is_refused(tracked_warehouse: Settings, tmp_path: Path) -> None:
    settings = tracked_warehouse
    with_a_champion(settings, tmp_path)
    (part,) = parts(dataset_dir(settings.lake_dir, "features", FRAUD.name, AS_OF))
    rows = pq.read_table(part)
    pq.write_table(pa.concat_tables([rows.slice(0, ROWS - 1), rows.slice(0, 1)]), part)
    score(settings, FRAUD, AS_OF)
    with pytest.raises(
        AuditError, match=r"observed 1 rows .* each customer_id and payment_id once"
    ):
        publish(settings, [FRAUD], AS_OF)
