"""Scoring with a real model from a real registry, on a features dataset as the lake holds it."""

import hashlib
import json
import math
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import psycopg2
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xgboost as xgb

from nightshift import model_card
from nightshift.errors import NightshiftError, RefusedAsOf
from nightshift.io import lake, model_store
from nightshift.publishing.run import publish
from nightshift.scoring import run as scoring
from nightshift.scoring.run import challenge, score
from nightshift.settings import Settings
from nightshift.use_cases.churn import CHURN

pytestmark = pytest.mark.integration

AS_OF = date(2011, 6, 12)
NAMES = CHURN.feature_names
RECENCY = "customer_purchase_days_since_last_all"


def register_champion(settings: Settings, root: Path, *, flip: bool = False) -> str:
    """Train on a synthetic truth (long ago = churn; the reverse if ``flip``), register, promote."""
    generator = np.random.default_rng(1)
    matrix = generator.uniform(0, 100, (500, len(NAMES))).astype(np.float32)
    labels = ((matrix[:, NAMES.index(RECENCY)] > 50) != flip).astype(int)
    booster = xgb.train(
        {"objective": "binary:logistic", "max_depth": 2, "nthread": 1, "seed": 1},
        xgb.DMatrix(matrix, labels, feature_names=list(NAMES)),
        num_boost_round=20,
    )
    model_store.write_model(
        root / "model", bytes(booster.save_raw("ubj")), {"features": list(NAMES)}
    )
    mlflow = model_store.client(settings)
    run = mlflow.create_run(model_store.experiment_id(settings, "churn"))
    mlflow.log_artifacts(run.info.run_id, str(root / "model"), model_store.MODEL)
    version = model_store.register(settings, "churn", run.info.run_id, AS_OF.isoformat())
    model_store.set_alias(settings, "churn", model_store.CHAMPION, version.version)
    return version.version


def feature_rows(count: int) -> pa.Table:
    """Customers c0003, c0002, …: unsorted; recency 0, 1, …; every fifth value of the rest null."""
    columns: dict[str, Any] = {"customer_id": [f"c{i:04d}" for i in reversed(range(count))]}
    for position, name in enumerate(NAMES):
        values = [None if (i + position) % 5 == 0 else float(i % 97) for i in range(count)]
        columns[name] = pa.array(values, pa.float64())
    columns[RECENCY] = pa.array([float(count - 1 - i) for i in range(count)], pa.float64())
    return pa.table(columns)


def write_features(settings: Settings, table: pa.Table, parts: int = 2) -> None:
    folder = lake.dataset_dir(settings.lake_dir, "features", "churn", AS_OF)
    size = math.ceil(max(table.num_rows, 1) / parts)
    with lake.replacing(folder) as target:
        for part in range(parts):
            pq.write_table(table.slice(part * size, size), target / f"part-{part:05d}.parquet")
        identity = hashlib.sha256(repr(table.to_pydict()).encode()).hexdigest()
        lake.write_manifest(
            target,
            {"use_case": "churn", "as_of": AS_OF, "rows": table.num_rows, "sha256": identity},
        )


def scores_dir(settings: Settings) -> Path:
    return lake.dataset_dir(settings.lake_dir, "scores", "churn", AS_OF)


def test_no_champion_is_a_refusal_with_the_command_that_makes_one(
    tracked_warehouse: Settings,
) -> None:
    write_features(tracked_warehouse, feature_rows(10))

    with pytest.raises(RefusedAsOf, match="no champion yet for churn") as refusal:
        score(tracked_warehouse, CHURN, AS_OF)
    assert "nightshift train churn --as-of 2011-06-12" in refusal.value.remedy
    assert not scores_dir(tracked_warehouse).exists()


def test_the_population_is_scored_banded_and_explained(
    tracked_warehouse: Settings, tmp_path: Path
) -> None:
    version = register_champion(tracked_warehouse, tmp_path)
    write_features(tracked_warehouse, feature_rows(100))

    result = score(tracked_warehouse, CHURN, AS_OF)

    assert (result.rows, result.model_version, result.is_new) == (100, version, True)
    parts = lake.parts(scores_dir(tracked_warehouse))
    assert [pq.read_metadata(part).num_rows for part in parts] == [50, 50]
    table = pa.concat_tables([pq.read_table(part) for part in parts]).sort_by("customer_id")
    assert table.column_names == ["customer_id", "churn_probability", "band", "reasons"]
    rows = table.to_pylist()
    assert [row["customer_id"] for row in rows] == [f"c{i:04d}" for i in range(100)]
    assert (rows[0]["band"], rows[99]["band"]) == ("low", "high")
    reasons = json.loads(rows[99]["reasons"])
    assert len(reasons) == 3
    assert (reasons[0]["feature"], reasons[0]["value"], reasons[0]["direction"]) == (
        RECENCY,
        99,
        "raises",
    )
    strengths = [abs(reason["contribution"]) for reason in reasons]
    assert strengths == sorted(strengths, reverse=True)


def test_threads_and_sparks_workers_write_the_same_bytes(
    tracked_warehouse: Settings, tmp_path: Path
) -> None:
    register_champion(tracked_warehouse, tmp_path)
    write_features(tracked_warehouse, feature_rows(100))
    first = score(tracked_warehouse, CHURN, AS_OF)
    before = [part.read_bytes() for part in lake.parts(scores_dir(tracked_warehouse))]
    lake.parts(scores_dir(tracked_warehouse))[1].unlink()
    on_spark = tracked_warehouse.model_copy(update={"scoring": "spark", "spark_master": "local[2]"})

    second = score(on_spark, CHURN, AS_OF)

    assert (second.publication_id, second.is_new) == (first.publication_id, True)
    assert [part.read_bytes() for part in lake.parts(scores_dir(on_spark))] == before

    table = feature_rows(10).set_column(1, RECENCY, pa.array([math.inf] * 10))
    write_features(on_spark, table.select(feature_rows(1).column_names))
    with pytest.raises(NightshiftError, match=f"feature {RECENCY} of customer_id 'c0009' in part"):
        score(on_spark, CHURN, AS_OF)


def test_bands_are_explained_as_they_ask(tracked_warehouse: Settings, tmp_path: Path) -> None:
    register_champion(tracked_warehouse, tmp_path)
    write_features(tracked_warehouse, feature_rows(100))
    methods = ("none", "approximate", "exact")
    bands = tuple(
        band.model_copy(update={"reasons": method})
        for band, method in zip(CHURN.bands, methods, strict=True)
    )
    score(tracked_warehouse, CHURN, AS_OF)
    exact = explained(tracked_warehouse)
    lake.parts(scores_dir(tracked_warehouse))[0].unlink()

    asked = CHURN.model_copy(update={"bands": bands})
    score(tracked_warehouse, asked, AS_OF)
    found = explained(tracked_warehouse)

    assert {band for band, _ in exact.values()} >= {"low", "high"}
    for key, (band, reasons) in found.items():
        assert (reasons == []) == (band == "low")
        assert (reasons == exact[key][1]) == (band == "high")
    publish(tracked_warehouse, [asked], AS_OF)


def explained(settings: Settings) -> dict[str, tuple[str, list[Any]]]:
    """Key → band and reasons."""
    tables = [pq.read_table(part) for part in lake.parts(scores_dir(settings))]
    return {
        row["customer_id"]: (row["band"], json.loads(row["reasons"]))
        for row in pa.concat_tables(tables).to_pylist()
    }


def test_scores_that_are_there_are_not_computed_again(
    tracked_warehouse: Settings, tmp_path: Path
) -> None:
    register_champion(tracked_warehouse, tmp_path)
    write_features(tracked_warehouse, feature_rows(20))
    score(tracked_warehouse, CHURN, AS_OF)
    before = lake.read_manifest(scores_dir(tracked_warehouse))

    again = score(tracked_warehouse, CHURN, AS_OF)

    assert not again.is_new
    assert lake.read_manifest(scores_dir(tracked_warehouse)) == before


def test_a_new_champion_is_a_new_publication(tracked_warehouse: Settings, tmp_path: Path) -> None:
    published = "select distinct model_version, count(*) over () from predictions.churn_latest"
    write_features(tracked_warehouse, feature_rows(100))
    for flip in (False, True):
        version = register_champion(tracked_warehouse, tmp_path, flip=flip)
        scored = score(tracked_warehouse, CHURN, AS_OF)
        publish(tracked_warehouse, [CHURN], AS_OF)
        with psycopg2.connect(tracked_warehouse.reader_url) as connection:
            cursor = connection.cursor()
            cursor.execute(published)
            assert cursor.fetchall() == [(version, 100)]
        connection.close()
        assert scored.is_new


def test_features_that_do_not_fit_the_spec_are_named(
    tracked_warehouse: Settings, tmp_path: Path
) -> None:
    register_champion(tracked_warehouse, tmp_path)
    table = feature_rows(10).rename_columns(
        ["customer_id", *("moon_phase" if n == RECENCY else n for n in NAMES)]
    )
    write_features(tracked_warehouse, table)

    with pytest.raises(NightshiftError, match=f"lacks {RECENCY}, has the unknown moon_phase"):
        score(tracked_warehouse, CHURN, AS_OF)


def test_a_model_of_other_features_is_refused(tracked_warehouse: Settings, tmp_path: Path) -> None:
    model_store.experiment_id(tracked_warehouse, "churn")
    booster = xgb.train(
        {"objective": "binary:logistic"},
        xgb.DMatrix(np.ones((4, 1)), [0, 1, 0, 1], feature_names=["moon_phase"]),
        num_boost_round=1,
    )
    model_store.write_model(
        tmp_path / "model", bytes(booster.save_raw("ubj")), {"features": ["moon_phase"]}
    )
    mlflow = model_store.client(tracked_warehouse)
    run = mlflow.create_run(model_store.experiment_id(tracked_warehouse, "churn"))
    mlflow.log_artifacts(run.info.run_id, str(tmp_path / "model"), model_store.MODEL)
    version = model_store.register(tracked_warehouse, "churn", run.info.run_id, "2011-06-12")
    model_store.set_alias(tracked_warehouse, "churn", model_store.CHAMPION, version.version)
    write_features(tracked_warehouse, feature_rows(10))

    with pytest.raises(NightshiftError, match="moon_phase"):
        score(tracked_warehouse, CHURN, AS_OF)
    assert not scores_dir(tracked_warehouse).exists()


@pytest.mark.parametrize("rows", [None, 0])
def test_no_features_or_nobody_to_score_is_a_clear_error(
    tracked_warehouse: Settings, tmp_path: Path, rows: int | None
) -> None:
    register_champion(tracked_warehouse, tmp_path)
    if rows is not None:
        write_features(tracked_warehouse, feature_rows(rows), parts=1)

    with pytest.raises(NightshiftError, match=r"no features for 2011-06-12|has no row"):
        score(tracked_warehouse, CHURN, AS_OF)


def test_infinite_features_and_equal_scores_are_refused(
    tracked_warehouse: Settings, tmp_path: Path
) -> None:
    register_champion(tracked_warehouse, tmp_path)
    table = feature_rows(150)
    place = table.column_names.index(RECENCY)
    values = table.column(RECENCY).to_pylist()
    values[7] = math.inf
    write_features(tracked_warehouse, table.set_column(place, RECENCY, pa.array(values)))
    with pytest.raises(NightshiftError, match=f"feature {RECENCY} of customer_id 'c0142' in part"):
        score(tracked_warehouse, CHURN, AS_OF)
    assert not scores_dir(tracked_warehouse).exists()

    nulls = pa.nulls(150, pa.float64())
    for name in NAMES:
        table = table.set_column(table.column_names.index(name), name, nulls)
    write_features(tracked_warehouse, table)
    with pytest.raises(NightshiftError, match="gives all 150 rows the same score, 0"):
        score(tracked_warehouse, CHURN, AS_OF)
    # Few rows may well be of one leaf.
    write_features(tracked_warehouse, table.slice(0, 20))
    assert score(tracked_warehouse, CHURN, AS_OF).rows == 20


def test_a_challenger_scores_beside_the_champion_and_readers_see_nothing_of_it(
    tracked_warehouse: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    champion = register_champion(tracked_warehouse, tmp_path)
    write_features(tracked_warehouse, feature_rows(100))
    assert challenge(tracked_warehouse, CHURN, AS_OF) is None

    version = register_champion(tracked_warehouse, tmp_path, flip=True)
    model_store.set_alias(tracked_warehouse, "churn", model_store.CHAMPION, champion)
    judged(tracked_warehouse, version)
    with pytest.raises(NightshiftError, match="churn has no scores of these features") as refused:
        challenge(tracked_warehouse, CHURN, AS_OF)
    assert "nightshift score churn" in refused.value.remedy
    score(tracked_warehouse, CHURN, AS_OF)
    publish(tracked_warehouse, [CHURN], AS_OF)

    monkeypatch.setattr(scoring, "BATCH_ROWS", 7)
    for _ in range(2):
        found = challenge(tracked_warehouse, CHURN, AS_OF)
        assert found is not None
        assert (found.champion_version, found.challenger_version) == (champion, version)
        assert found.comparison.rows == 100
        assert found.comparison.agreement < 0.2
        assert (found.comparison.rank_correlation or 0) < -0.8
    assert "does not show the nights beside the champion" in caplog.text, "it has no card yet"
    run_id = model_store.registered(tracked_warehouse, "churn")[version].run_id
    (tmp_path / "card.html").write_text(f"<p>{model_card.place(model_card.NIGHTS, '')}</p>")
    client = model_store.client(tracked_warehouse)
    client.log_artifact(run_id, str(tmp_path / "card.html"))
    for _ in range(2):
        challenge(tracked_warehouse, CHURN, AS_OF)
        card = model_store.fetch(tracked_warehouse, run_id, model_card.ARTIFACT).read_text()
        row = f"<tr><td>{AS_OF}</td><td>version {champion}</td><td>100</td><td>"
        assert card.count(row) == 1
        assert f"{100 * found.comparison.agreement:.1f} %</td><td>-" in card
    with psycopg2.connect(tracked_warehouse.warehouse_url) as connection:
        cursor = connection.cursor()
        cursor.execute(
            "select count(*), avg((c.champion_score = p.churn_probability)::int),"
            " avg((c.champion_band = p.band)::int), avg((c.challenger_band = p.band)::int)"
            " from monitoring.churn_challenger c"
            " join predictions.churn p using (customer_id, as_of)"
        )
        assert cursor.fetchone() == (100, 1, 1, pytest.approx(found.comparison.agreement))
        cursor.execute("select rows, agreement, rank_correlation from monitoring.challenges")
        assert cursor.fetchall() == [
            (100, found.comparison.agreement, found.comparison.rank_correlation)
        ]
        cursor.execute("select count(*) from predictions.churn where model_version <> %s", "1")
        assert cursor.fetchone() == (0,)
        cursor.execute(
            "select has_table_privilege('nightshift_reader', 'monitoring.churn_challenger',"
            " 'select')"
        )
        assert cursor.fetchone() == (False,)
    connection.close()


def judged(settings: Settings, version: str) -> None:
    """The version was judged last, and is not champion: the registry calls it the challenger."""
    with psycopg2.connect(settings.warehouse_url) as connection:
        connection.cursor().execute(
            "insert into ops.gate_results (mlflow_run_id, model_version, use_case, as_of, gate,"
            " passed, detail) values ('r', %s, 'churn', %s, 'auc', true, '')",
            (version, AS_OF),
        )
    connection.close()
