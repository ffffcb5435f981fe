"""Amounts and rankings through a training on the real MLflow store, amounts up to their readers."""

from collections.abc import Sequence
from contextlib import closing
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import psycopg2
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_models import register, small_booster

from nightshift import amounts
from nightshift.errors import NightshiftError
from nightshift.feature_groups.order_lines import IS_PURCHASE, ORDER_LINES
from nightshift.io import model_store
from nightshift.io.lake import dataset_dir, replacing, write_manifest
from nightshift.io.warehouse import connect
from nightshift.monitoring.run import measure_matured
from nightshift.publishing.run import publish
from nightshift.scoring.run import score
from nightshift.settings import Settings
from nightshift.spec import (
    AnyEvent,
    Band,
    BeatsBaseline,
    BoughtBefore,
    Candidates,
    TopItems,
    UseCase,
)
from nightshift.training.run import rebuild, train
from nightshift.use_cases.churn import CHURN
from nightshift.use_cases.spend import SPEND

AS_OF = date(2011, 6, 12)
DATES = tuple(AS_OF - timedelta(days=90 + 14 * back) for back in reversed(range(20)))
PAIR = ("customer_id", "product_id")
NEXT_BUY = UseCase.model_validate(
    CHURN.model_dump()
    | {
        "population": Candidates(
            source=ORDER_LINES,
            key=PAIR,
            where=IS_PURCHASE,
            active_days=365,
            sold_days=28,
            generators=(BoughtBefore(days=365, limit=10),),
        ),
        "label": AnyEvent(source=ORDER_LINES, key=PAIR, where=IS_PURCHASE, horizon_days=90),
        "working_point": TopItems(k=3),
        "bands": (Band(name="first", from_rank=1),),
        "audits": (),
        "gates": (BeatsBaseline(metric="ndcg_at_k", baseline="recency", by=0.01),),
        "slices": (),
    }
)


def write_labelled(
    settings: Settings, use_case: UseCase, kind: str = "training", dates: Sequence[date] = DATES
) -> None:
    """Labels that one feature tells, with noise; ten items a customer in a ranking."""
    random = np.random.default_rng(7)
    rows = len(dates) * 200
    values = random.gamma(1.0, 20.0, size=(rows, len(use_case.feature_names)))
    told = values[:, use_case.feature_names.index("customer_purchase_amount_sum_90d")]
    labels = told * random.gamma(2.0, 1.0, rows)
    columns = {
        "customer_id": pa.array(
            [
                f"{i % 200 // 10 if len(use_case.vector_key) > 1 else i % 200:05d}"
                for i in range(rows)
            ]
        ),
    }
    if kind != "features":
        columns["label"] = pa.array(labels)
    if kind == "training":
        columns["snapshot"] = pa.array([dates[i // 200] for i in range(rows)], pa.date32())
    if len(use_case.vector_key) > 1:
        columns["product_id"] = pa.array([f"P{i % 10}" for i in range(rows)])
        columns["label"] = pa.array((labels > 60).astype(np.float64))
        columns["missed"] = pa.array(np.zeros(rows, np.int32))
    columns |= {n: pa.array(values[:, i]) for i, n in enumerate(use_case.feature_names)}
    folder = dataset_dir(settings.lake_dir, kind, use_case.name, AS_OF)
    with replacing(folder) as part:
        pq.write_table(pa.table(columns), part / "part-00000.parquet")
        write_manifest(
            part, {"use_case": use_case.name, "as_of": AS_OF, "rows": rows, "sha256": "d"}
        )


def test_a_ranking_is_trained_and_has_a_card(tracked_warehouse: Settings) -> None:
    write_labelled(tracked_warehouse, NEXT_BUY)
    done = train(tracked_warehouse, NEXT_BUY, AS_OF)
    assert done.metrics["test_ndcg_at_k"] > done.metrics["test_ndcg_at_k_recency"] + 0.1
    card = model_store.fetch(tracked_warehouse, done.mlflow_run_id, "card.html").read_text()
    assert "It is better than recency alone by " in card
    assert "purchase_amount" in card
    assert ("Calibration, lift" in card) is False


def read(settings: Settings, query: str) -> list[tuple[Any, ...]]:
    """Rows as a reader's application sees them."""
    with closing(psycopg2.connect(settings.reader_url)) as connection:
        cursor = connection.cursor()
        cursor.execute(query)
        return cursor.fetchall()


def test_amounts_are_trained_published_with_their_interval_and_measured(
    tracked_warehouse: Settings,
) -> None:
    settings = tracked_warehouse
    write_labelled(settings, SPEND)
    done = train(settings, SPEND, AS_OF)

    assert done.metrics["test_mae"] < done.metrics["test_mae_past_year"]
    assert abs(done.metrics["test_total_bias"]) < 0.2
    assert 0.72 < done.metrics["test_interval_coverage"] < 0.88
    card = model_store.fetch(settings, done.mlflow_run_id, "card.html").read_text()
    for words in (
        "It is better than past_year alone by ",
        "It foretells a total of ",
        "Its intervals, made to hold 80% of what happens, held 0.",
        "in the multiple of customer_net_amount_sum_365d",
    ):
        assert words in card, words
    model = model_store.fetch(settings, done.mlflow_run_id, model_store.MODEL)
    training_set = dataset_dir(settings.lake_dir, "training", "spend", AS_OF)
    assert rebuild(settings, model, training_set) == done.model_sha256
    _, signature = model_store.read_model(model)
    assert model_store.score_sample(model) == signature["sample_scores_sha256"]

    model_store.set_alias(settings, "spend", model_store.CHAMPION, done.version)
    write_labelled(settings, SPEND, "features", [AS_OF])
    score(settings, SPEND, AS_OF)
    publish(settings, [SPEND], AS_OF)
    published = read(
        settings,
        "select expected_spend_low <= expected_spend_high, band, expected_spend"
        " from predictions.spend_latest",
    )
    assert len(published) == 200
    assert {is_in_order for is_in_order, *_ in published} == {True}
    assert all(
        band == ("low" if amount < 100 else "medium" if amount < 500 else "high")
        for *_, band, amount in published
    )
    assert {band for _, band, _ in published} == {"low", "medium"}

    write_labelled(settings, SPEND, "matured", [AS_OF])
    measured = measure_matured(settings, SPEND, AS_OF)
    assert measured.metrics == ("mae", "interval_coverage", "spearman", "total_bias")
    assert measured.figures.keys() == {"champion", "past_year", "last_season", "linear"}
    assert measured.figures["champion"]["mae"].value < measured.figures["past_year"]["mae"].value
    assert 0.7 < measured.figures["champion"]["interval_coverage"].value < 0.9
    assert "interval_coverage" not in measured.figures["linear"]
    with connect(settings) as connection, connection.cursor() as cursor:
        cursor.execute(
            "select metric from monitoring.matured_quality where scorer = 'champion' and"
            " metric in ('mae', 'interval_coverage', 'total_bias') order by 1"
        )
        assert cursor.fetchall() == [("interval_coverage",), ("mae",), ("total_bias",)]


def test_a_model_without_an_interval_is_refused_where_one_is_published(
    tracked_warehouse: Settings, tmp_path: Path
) -> None:
    settings, told_by = tracked_warehouse, "customer_purchase_amount_sum_90d"
    booster = small_booster(SPEND, told_by)
    amounts.attach(booster, amounts.Amounts(1.0))
    version = register(settings, SPEND, tmp_path / "model", told_by, booster=booster)
    model_store.set_alias(settings, "spend", model_store.CHAMPION, version)
    write_labelled(settings, SPEND, "features", [AS_OF])

    with pytest.raises(NightshiftError, match="publishes an interval, and the model carries none"):
        score(settings, SPEND, AS_OF)
