"""Train, judge and promote on the real MLflow registry and the real warehouse."""

import asyncio
import hashlib
import json
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import date, timedelta
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psycopg2
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fastapi import HTTPException
from starlette.applications import Starlette
from starlette.routing import Mount

from nightshift.booster import predict
from nightshift.distribution import Distribution
from nightshift.errors import NightshiftError
from nightshift.gates.run import judge
from nightshift.io import model_store, registry
from nightshift.io.lake import dataset_dir, replacing, write_manifest
from nightshift.settings import PROJECT_ROOT, Settings
from nightshift.spec import (
    AtLeast,
    AtMost,
    BeatsBaseline,
    CalibrationWithin,
    GainShareAtMost,
    LoadsAndScores,
    Model,
    ParityWithin,
    Reproducible,
    Slice,
    SliceAtLeast,
    Studies,
)
from nightshift.training import dataset
from nightshift.training.run import train
from nightshift.use_cases.churn import CHURN

pytestmark = pytest.mark.timeout(600)  # Spark's, on a machine of a third of the usual speed

AS_OF = date(2011, 6, 12)
LATER = date(2011, 6, 26)


ONE_ORIGIN = CHURN.model_copy(
    update={
        "snapshots": CHURN.snapshots.model_copy(update={"origins": 1, "staleness_weeks": ()}),
        "studies": Studies(learning_curve=(), ablation=False),
    }
)


def write_training_set(
    settings: Settings,
    as_of: date = AS_OF,
    *,
    snapshots: int = 20,
    customers: int = 300,
    shuffled: bool = False,
    one_class: bool = False,
    planted: str = "",
    renamed: bool = False,
    newest_days_ago: int = 90,
    leave_out: str = "",
) -> None:
    """A lake dataset whose label depends on recency and one more feature that recency hides."""
    random = np.random.default_rng(7)
    dates = [
        as_of - timedelta(days=newest_days_ago + 14 * back) for back in reversed(range(snapshots))
    ]
    rows = snapshots * customers
    values = random.gamma(1.0, 20.0, size=(rows, len(CHURN.feature_names)))
    values[random.random(values.shape) < 0.05] = np.nan
    recency = CHURN.feature_names.index("customer_purchase_days_since_last_all")
    other = 0 if recency != 0 else 1
    logit = 0.08 * (np.nan_to_num(values[:, recency], nan=20) - 20) - 0.10 * (
        np.nan_to_num(values[:, other], nan=20) - 20
    )
    labels = (random.random(rows) < 1 / (1 + np.exp(-logit))).astype(np.int32)
    # The test snapshots stay true: a champion is right about them, a model of noise is not.
    learned = np.arange(rows) < rows - 2 * customers
    if shuffled:
        labels[learned] = random.permutation(labels[learned])
    if one_class:
        labels[:] = 1
    if planted == "leaked feature":
        values[:, CHURN.feature_names.index("customer_return_amount_sum_90d")] = labels
    elif planted == "biased slice":
        # Of those who bought dear things nothing is known, and most are called churned.
        price = values[:, CHURN.feature_names.index("customer_purchase_price_max_365d")]
        labels = np.where(price >= 20, random.random(rows) < 0.85, labels).astype(np.int32)
    elif planted == "other base rate":
        labels[learned & (random.random(rows) < 0.5)] = 1
    elif planted == "one class at first":
        labels[: 2 * customers] = 1
    elif planted == "all null":
        values[:] = np.nan
    elif planted == "infinite":
        values[3, 5] = np.inf
    columns: dict[str, Any] = {
        "customer_id": pa.array(
            [f"{99_999 - i % customers if renamed else i % customers:05d}" for i in range(rows)]
        ),
        "snapshot": pa.array([dates[i // customers] for i in range(rows)], pa.date32()),
        "label": pa.array(labels, pa.int32()),
    }
    for position, name in enumerate(CHURN.feature_names):
        column = values[:, position]
        columns[name] = pa.array(column, pa.float64(), mask=np.isnan(column))
    table = pa.table(columns)
    # The order of rows in the lake is arbitrary, and must not matter.
    table = table.take(pa.array(random.permutation(rows)))
    if leave_out:
        table = table.drop_columns([leave_out])
    folder = dataset_dir(settings.lake_dir, "training", "churn", as_of)
    with replacing(folder) as part:
        half = rows // 2
        pq.write_table(table.slice(0, half), part / "part-00000.parquet")
        pq.write_table(table.slice(half), part / "part-00001.parquet")
        write_manifest(part, {"use_case": "churn", "as_of": as_of, "rows": rows, "sha256": "d"})


def query(settings: Settings, sql: str) -> list[tuple[Any, ...]]:
    connection = psycopg2.connect(settings.warehouse_url)
    try:
        with connection.cursor() as cursor:
            cursor.execute(sql)
            return cursor.fetchall()
    finally:
        connection.close()


def artifact(settings: Settings, run_id: str, path: str) -> Path:
    return model_store.fetch(settings, run_id, path)


def test_a_good_model_becomes_champion_and_a_shuffled_one_leaves_it(
    tracked_warehouse: Settings,
) -> None:
    settings = tracked_warehouse
    assert registry.champion(settings, "churn") is None
    write_training_set(settings)
    trained = train(settings, ONE_ORIGIN, AS_OF)
    assert trained.version == "1"
    assert registry.champion(settings, "churn") is None

    dry = judge(settings, CHURN, AS_OF, may_promote=False)
    assert (dry.outcome, registry.champion(settings, "churn")) == ("challenger", None)
    assert model_store.aliases(settings, "churn") == {model_store.CHALLENGER: "1"}

    verdict = judge(settings, CHURN, AS_OF)
    assert [result.detail for result in verdict.failures] == []
    assert verdict.promoted_version == "1"
    champion = registry.champion(settings, "churn")
    assert champion is not None
    assert (champion.version, champion.run_id) == ("1", trained.mlflow_run_id)
    promotions = "select from_version, to_version, mlflow_run_id from ops.promotions"
    assert query(settings, promotions) == [(None, "1", trained.mlflow_run_id)]

    # Judged again, the champion stands against itself: nothing moves, nothing doubles.
    again = judge(settings, CHURN, AS_OF)
    assert (again.passed, again.promoted_version) == (True, None)
    assert query(settings, promotions) == [(None, "1", trained.mlflow_run_id)]
    assert query(settings, "select count(*) from ops.gate_results") == [(3 * len(CHURN.gates),)]

    write_training_set(settings, LATER, shuffled=True)
    worse = train(settings, ONE_ORIGIN, LATER)
    refused = judge(settings, CHURN, LATER)
    assert (refused.passed, refused.promoted_version) == (False, None)
    failures = {result.gate for result in refused.failures}
    assert {"at_least_auc", "beats_baseline_auc_recency", "beats_champion_auc"} <= failures
    assert registry.champion(settings, "churn") == champion
    assert query(settings, promotions) == [(None, "1", trained.mlflow_run_id)]
    failed = query(
        settings,
        "select count(*) from ops.gate_results where not passed and mlflow_run_id = "
        f"'{worse.mlflow_run_id}'",
    )
    assert failed == [(len(refused.failures),)]
    assert query(settings, "select stage, status from ops.runs order by run_id") == [
        ("training", "succeeded"),
        ("gates", "succeeded"),
        ("gates", "succeeded"),
        ("gates", "succeeded"),
        ("training", "succeeded"),
        ("gates", "succeeded"),
    ]


def test_the_same_inputs_give_the_same_model_bytes(tracked_warehouse: Settings) -> None:
    """Whatever the customers are called: their pseudonyms are others in each warehouse."""
    settings = tracked_warehouse
    write_training_set(settings)
    first = train(settings, ONE_ORIGIN, AS_OF)
    write_training_set(settings, renamed=True)
    second = train(settings, ONE_ORIGIN, AS_OF)
    assert first.mlflow_run_id != second.mlflow_run_id
    assert (first.version, second.version) == ("1", "2")
    for path in ("model/model.ubj", "evaluation/model.ubj"):
        digests = {
            hashlib.sha256(artifact(settings, run.mlflow_run_id, path).read_bytes()).hexdigest()
            for run in (first, second)
        }
        assert len(digests) == 1, path
    assert first.metrics == second.metrics

    run = model_store.client(settings).get_run(first.mlflow_run_id)
    assert run.data.tags["nightshift.as_of"] == "2011-06-12"
    assert run.data.params["test_snapshots"] == "2: 2011-02-28 … 2011-03-14"
    assert run.data.params["validation_snapshots"] == "2: 2010-11-08 … 2010-11-22"
    assert run.data.params["train_snapshots"] == "4: 2010-06-21 … 2010-08-02"
    assert run.data.metrics["test_auc"] > run.data.metrics["test_auc_recency"]
    for path in (
        "card.html",
        "data_manifest.json",
        "evaluation/test_predictions.parquet",
    ):
        assert artifact(settings, first.mlflow_run_id, path).stat().st_size > 0


def test_a_training_that_is_repeated_moves_no_champion_unless_its_files_are_damaged(
    tracked_warehouse: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    """As after a kill between the promotion and the end of `nightshift train`."""
    settings = tracked_warehouse
    write_training_set(settings)
    first = train(settings, ONE_ORIGIN, AS_OF)
    assert judge(settings, CHURN, AS_OF).outcome == "promoted"
    second = train(settings, ONE_ORIGIN, AS_OF)
    assert (first.version, second.version) == ("1", "2")

    assert judge(settings, CHURN, AS_OF).outcome == "unchanged"
    promotions = "select from_version, to_version from ops.promotions order by promotion_id"
    assert query(settings, promotions) == [(None, "1")]
    assert model_store.aliases(settings, "churn") == {model_store.CHAMPION: "1"}
    assert registry.challenger(settings, "churn") is None, "nor is it scored beside itself"

    artifact(settings, first.mlflow_run_id, "model/model.ubj").write_bytes(b"damaged")
    assert judge(settings, CHURN, AS_OF).outcome == "promoted"
    assert "champion version 1 cannot be read" in caplog.text
    assert query(settings, promotions) == [(None, "1"), ("1", "2")]
    score_model, _ = model_store.load_model(settings, registry.champion(settings, "churn"))
    assert score_model.num_boosted_rounds() == second.trees


def test_a_damaged_model_is_refused_by_the_gate_and_by_loading(
    tracked_warehouse: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    settings = tracked_warehouse
    write_training_set(settings)
    run_id = train(settings, ONE_ORIGIN, AS_OF).mlflow_run_id
    version = model_store.newest_version(settings, "churn", AS_OF)
    assert version is not None
    booster, signature = model_store.load_model(settings, version)
    assert signature["features"] == list(CHURN.feature_names)
    kept = Distribution.model_validate(signature["training_scores"])
    assert kept.rows == 600, "the newest two snapshots of 300 customers each"
    assert len(kept.edges) > 5
    assert "training_scores" not in model_store.load_evaluation(settings, run_id)[1]
    assert predict(booster, np.zeros((2, len(CHURN.feature_names)), np.float32)).shape == (2,)

    file = artifact(settings, run_id, "model/model.ubj")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(NightshiftError, match=r"model\.ubj is damaged: its SHA-256 is"):
        model_store.load_model(settings, version)
    artifact(settings, run_id, "card.html").write_text("torn")
    verdict = judge(settings, CHURN, AS_OF)
    assert "does not show the verdict: the card has no place for the verdict" in caplog.text
    assert [result.gate for result in verdict.failures] == ["reproducible", "loads_and_scores"]
    for failure in verdict.failures:
        assert "is damaged" in failure.detail
    assert registry.champion(settings, "churn") is None


SUSPICIOUS = ONE_ORIGIN.model_copy(
    update={
        "slices": (Slice(name="price", feature="customer_purchase_price_max_365d", cuts=(20,)),),
        "gates": (
            AtLeast(metric="auc", value=0.65),
            AtMost(metric="auc", value=0.97),
            BeatsBaseline(metric="auc", baseline="recency", by=0.01),
            SliceAtLeast(slice="price", metric="auc", value=0.6),
            ParityWithin(slice="price", metric="selection_rate", value=0.3),
            CalibrationWithin(value=0.15),
            GainShareAtMost(share=0.6),
        ),
    }
)


@pytest.mark.parametrize(
    ("planted", "refused_by"),
    [
        ("", set()),
        ("leaked feature", {"at_most_auc", "gain_share_at_most"}),
        (
            "biased slice",
            {"slice_at_least_price_auc", "parity_within_price_selection_rate"},
        ),
        ("other base rate", {"calibration_within"}),
    ],
)
def test_a_planted_bad_model_is_refused_by_the_gate_that_is_for_it(
    tracked_warehouse: Settings, planted: str, refused_by: set[str]
) -> None:
    """Shuffled labels: test_a_good_model_becomes_champion_and_a_shuffled_one_leaves_it."""
    settings = tracked_warehouse
    write_training_set(settings, planted=planted)
    train(settings, SUSPICIOUS, AS_OF)
    verdict = judge(settings, SUSPICIOUS, AS_OF)
    assert {result.gate for result in verdict.failures} == refused_by, verdict.results
    champion = registry.champion(settings, "churn")
    assert (champion is None) == bool(refused_by)


def test_a_model_that_another_seed_made_is_not_reproducible(tracked_warehouse: Settings) -> None:
    settings = tracked_warehouse
    write_training_set(settings)
    reproducible = ONE_ORIGIN.model_copy(update={"gates": (Reproducible(),)})
    run_id = train(settings, reproducible, AS_OF).mlflow_run_id
    file = artifact(settings, run_id, "model/signature.json")
    signature = json.loads(file.read_text())
    told = signature["fit"]
    other = told | {"parameters": told["parameters"] | {"seed": 1}}
    file.write_text(json.dumps(signature | {"fit": other}))
    verdict = judge(settings, reproducible, AS_OF)
    assert [result.gate for result in verdict.failures] == ["reproducible"]
    assert "of the same dataset and seed, training" in verdict.failures[0].detail

    file.write_text(json.dumps(signature | {"dataset_sha256": "another"}))
    verdict = judge(settings, reproducible, AS_OF)
    assert [result.gate for result in verdict.failures] == ["reproducible"]
    assert "is d, the model was trained on another" in verdict.failures[0].detail


def test_a_model_of_other_features_is_refused(tracked_warehouse: Settings) -> None:
    settings = tracked_warehouse
    write_training_set(settings)
    run_id = train(settings, ONE_ORIGIN, AS_OF).mlflow_run_id
    version = model_store.newest_version(settings, "churn", AS_OF)
    assert version is not None
    folder = artifact(settings, run_id, "model")
    booster, signature = model_store.read_model(folder)
    renamed = ["customer_shoe_size", *CHURN.feature_names[1:]]
    booster.feature_names = renamed
    model = bytes(booster.save_raw("ubj"))
    model_store.write_model(folder, model, signature | {"features": renamed})
    with pytest.raises(NightshiftError) as error:
        model_store.load_model(settings, version)
    assert f"it lacks {CHURN.feature_names[0]}" in error.value.what
    assert "it has customer_shoe_size, which nobody declares" in error.value.what


def test_what_cannot_be_measured_again_fails_and_the_champion_stays(
    tracked_warehouse: Settings,
) -> None:
    settings = tracked_warehouse
    write_training_set(settings)
    run_id = train(settings, ONE_ORIGIN, AS_OF).mlflow_run_id
    assert judge(settings, CHURN, AS_OF).promoted_version == "1"
    champion = registry.champion(settings, "churn")
    write_training_set(settings, customers=200)
    verdict = judge(settings, CHURN, AS_OF)
    assert [result.gate for result in verdict.failures] == ["beats_champion_auc", "reproducible"]
    assert "has changed since version 1 was trained" in verdict.failures[0].detail

    (artifact(settings, run_id, "evaluation") / "metrics.json").write_text("{")
    verdict = judge(settings, CHURN, AS_OF)
    assert {result.gate for result in verdict.results if result.passed} == {"loads_and_scores"}
    assert "cannot be read: JSONDecodeError" in verdict.failures[0].detail
    assert registry.champion(settings, "churn") == champion


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (None, "there is no training dataset of churn as of 2011-06-12"),
        ({"snapshots": 1}, "1 mature snapshots .* are too few to split"),
        ({"one_class": True}, "all with label 1"),
        ({"newest_days_ago": 89}, "known on 2011-06-13 only, after as_of 2011-06-12"),
        ({"planted": "all null"}, "all 51 features of churn are null in the .* train snapshots"),
        (
            {"planted": "infinite"},
            f"feature {CHURN.feature_names[5]} of 00003 at snapshot .* is inf; 1 of its",
        ),
        ({"leave_out": CHURN.feature_names[3]}, f"lacks {CHURN.feature_names[3]}"),
    ],
    ids=[
        "missing",
        "one snapshot",
        "one class",
        "immature label",
        "all null",
        "infinite",
        "missing column",
    ],
)
def test_a_dataset_that_is_unfit_is_refused(
    warehouse: Settings, dataset: dict[str, Any] | None, message: str
) -> None:
    if dataset is not None:
        write_training_set(warehouse, **dataset)
    with pytest.raises(NightshiftError, match=message) as error:
        train(warehouse, CHURN, AS_OF)
    assert error.value.remedy
    assert query(warehouse, "select stage, status from ops.runs") == [("training", "failed")]


def test_an_origin_whose_labels_are_of_one_class_is_left_out(tracked_warehouse: Settings) -> None:
    settings = tracked_warehouse
    write_training_set(settings, planted="one class at first")
    plan = CHURN.snapshots.model_copy(update={"origins": 2, "staleness_weeks": (4,)})
    use_case = CHURN.model_copy(update={"snapshots": plan})
    run_id = train(settings, use_case, AS_OF).mlflow_run_id
    figures = json.loads(artifact(settings, run_id, "evaluation/metrics.json").read_text())
    assert [parts["test"] for parts, _ in figures["origins"]] == [["2011-02-28", "2011-03-14"]]
    assert figures["staleness"] is None


def test_judging_before_training_is_refused(tracked_warehouse: Settings) -> None:
    with pytest.raises(NightshiftError, match="no finished training run of churn as of 2011-06-12"):
        judge(tracked_warehouse, CHURN, AS_OF)


def pages(settings: Settings, access: Callable[[], None], *urls: str) -> list[httpx.Response]:
    """GET each of the plugin's pages, from an app that is mounted as Airflow mounts it."""
    file = PROJECT_ROOT / "plugins" / "model_cards.py"
    spec = spec_from_file_location("model_cards", file)
    assert spec is not None and spec.loader is not None
    plugin = module_from_spec(spec)
    spec.loader.exec_module(plugin)
    (mounted,) = plugin.ModelCards.fastapi_apps
    app = Starlette(routes=[Mount(mounted["url_prefix"], plugin.build_app(settings, access))])

    async def get() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://airflow") as client:
            return [await client.get(url) for url in urls]

    return asyncio.run(get())


def test_the_model_card_tells_all_that_a_person_needs(tracked_warehouse: Settings) -> None:
    settings = tracked_warehouse
    write_training_set(settings)
    run_id = train(settings, CHURN, AS_OF).mlflow_run_id
    card = artifact(settings, run_id, "card.html")
    assert "The gates have not judged it yet." in card.read_text()
    assert judge(settings, CHURN, AS_OF).promoted_version == "1"
    text = card.read_text()
    for said in (
        "passed, and promoted to champion",
        "<code>gain_share_at_most</code>",
        "It is better than recency alone by ",
        "model minus linear",
        "180 to 365 (0 rows): 0 entities, too few to measure: 100 are asked",
        "Rolling origins",
        "Staleness",
        "More customers",
        "<td>ratios and trends</td>",
        f"<code>{run_id}</code>",
    ):
        assert said in text, said
    assert "not judged it yet" not in text
    # self-contained, and about nobody
    assert re.findall(r'(?:src|href)="(?!data:image/svg|#)', text) == []
    assert not re.search(r"\b00\d{3}\b", text)

    judge(settings, CHURN, AS_OF)
    assert card.read_text().count("Later moves of the champion") == 1
    assert "passed, and was decided on before" in card.read_text()
    note = model_store.client(settings).get_run(run_id).data.tags["mlflow.note.content"]
    assert "- On 600 rows of 2011-02-28 … 2011-03-14, which it has not seen, the model" in note

    shown, unknown, other = pages(
        settings,
        lambda: None,
        f"/model-cards/train__churn?as_of={AS_OF}",
        f"/model-cards/train__churn?as_of={LATER}",
        f"/model-cards/nightly?as_of={AS_OF}",
    )
    assert "passed, and was decided on before" in shown.text
    assert "default-src 'none'" in shown.headers["content-security-policy"]
    assert (unknown.status_code, other.status_code) == (404, 404)

    def nobody() -> None:
        raise HTTPException(401)

    (hidden,) = pages(settings, nobody, f"/model-cards/train__churn?as_of={AS_OF}")
    assert hidden.status_code == 401

    logged = model_store.client(settings).get_run(run_id).data.metrics
    assert logged["slice/value/band 1/auc_low"] < logged["slice/value/band 1/auc"]
    assert {"origin/2011-01-31/auc", "staleness/4 weeks/log_loss"} <= set(logged)
    assert logged["learning_curve/0.125/rows"] < logged["learning_curve/1/rows"]
    assert logged["ablation/customer_orders/ratios and trends/auc_worth"] < 0.1
    figures = json.loads(artifact(settings, run_id, "evaluation/metrics.json").read_text())
    assert figures["test"]["slices"]["value"]["band 4"]["estimates"]["recall"]["value"] >= 0
    assert len(figures["origins"]) == 2
    gates = json.loads(artifact(settings, run_id, "gates.json").read_text())
    assert [r["gate"] for r in gates["results"]][-1] == "loads_and_scores"


def test_a_search_is_kept_with_the_run_trial_by_trial(tracked_warehouse: Settings) -> None:
    settings = tracked_warehouse
    write_training_set(settings)
    run_id = train(settings, ONE_ORIGIN, AS_OF, trials=3).mlflow_run_id
    searched = json.loads(artifact(settings, run_id, "search.json").read_text())
    client = model_store.client(settings)
    values = [(m.step, m.value) for m in client.get_metric_history(run_id, "search/value")]
    depths = [m.value for m in client.get_metric_history(run_id, "search/max_depth")]
    params = client.get_run(run_id).data.params

    tried = searched["trials"]
    assert len(tried) == 3
    assert sorted(values) == [
        (step, trial["value"])
        for step, trial in enumerate(tried, start=1)
        if trial["value"] is not None
    ]
    assert sorted(depths) == sorted(trial["parameters"]["max_depth"] for trial in tried)
    chosen = tried[int(params["search/chosen_trial"]) - 1]
    assert chosen["value"] == max(value for _, value in values)
    assert params["max_depth"] == str(chosen["parameters"]["max_depth"])
    assert (params["search/metric"], params["search/trials"]) == ("auc", "3")
    assert params["search/study"] == searched["study"]


def test_a_training_on_spark_is_as_good_and_passes_its_gates(
    tracked_warehouse: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tracked_warehouse.model_copy(update={"spark_master": "local[2]"})
    # the fresh process of the gate reads its settings from here
    monkeypatch.setenv("NIGHTSHIFT_SPARK_MASTER", settings.spark_master)
    monkeypatch.setenv("NIGHTSHIFT_STATE_DIR", str(settings.state_dir))
    write_training_set(settings)
    few_trees = Model(parameters={"eta": 0.4, "max_depth": 2})
    gates = (Reproducible(), LoadsAndScores())
    use_case = ONE_ORIGIN.model_copy(update={"model": few_trees, "gates": gates})
    in_memory = train(settings, use_case, AS_OF)
    on_spark = settings.model_copy(update={"training_memory": "spark"})
    found = train(on_spark, use_case, AS_OF)

    assert (found.version, found.rows) == ("2", in_memory.rows)
    auc, low = in_memory.metrics["test_auc"], in_memory.metrics["test_auc_low"]
    assert found.metrics["test_auc"] == pytest.approx(auc, abs=(auc - low) / 2)
    signature = artifact(settings, found.mlflow_run_id, "model/signature.json").read_text()
    assert json.loads(signature)["fit"]["memory"] == "spark"
    verdict = judge(on_spark, use_case, AS_OF)
    assert [(r.gate, r.passed) for r in verdict.results] == [
        ("reproducible", True), ("loads_and_scores", True),
    ], verdict.results  # fmt: skip
    assert verdict.promoted_version == "2"


def test_two_trainings_of_many_rows_are_in_files_and_make_the_model_of_one_in_memory(
    tracked_warehouse: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tracked_warehouse
    write_training_set(settings)
    in_memory = train(settings, ONE_ORIGIN, AS_OF)
    monkeypatch.setattr(dataset, "MOST_IN_MEMORY", 2**16)
    with ThreadPoolExecutor() as pool:
        both = list(pool.map(lambda _: train(settings, ONE_ORIGIN, AS_OF), range(2)))
    assert {found.model_sha256 for found in both} == {in_memory.model_sha256}
    assert both[0].metrics == both[1].metrics == in_memory.metrics
    assert {found.version for found in both} == {"2", "3"}
    signature = json.loads(
        (artifact(settings, both[0].mlflow_run_id, "model") / "signature.json").read_text()
    )
    assert signature["fit"]["memory"] == "external"
    verdict = judge(settings, CHURN, AS_OF)
    assert "reproducible" in {result.gate for result in verdict.results if result.passed}
    champion = registry.champion(settings, "churn")
    assert champion is not None
    assert champion.version == verdict.promoted_version == "3"
    folder = dataset_dir(settings.lake_dir, "training", "churn", AS_OF)
    assert [left.name for left in (folder.parent / ".fits").iterdir()] == ["lock"]
