"""A ranking from its candidates' features to readers, a challenger and matured quality."""

from contextlib import closing
from datetime import date
from pathlib import Path

import numpy as np
import psycopg2
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_models import register, small_booster

from chaos.worlds import query
from nightshift.errors import AuditError
from nightshift.io import lake, model_store
from nightshift.io.lake import dataset_dir, parts, replacing, write_manifest
from nightshift.monitoring.run import measure_matured
from nightshift.publishing import sql
from nightshift.publishing.run import publish, top_rows
from nightshift.scoring.run import challenge, explain_rows, score
from nightshift.settings import Settings
from nightshift.use_cases.recommendations import RECOMMENDATIONS

AS_OF = date(2011, 9, 9)
NAMES = RECOMMENDATIONS.feature_names
CUSTOMERS, CANDIDATES = 40, 15
TOLD_BY = "product_buyer_distinct_28d"


def write_candidates(settings: Settings, kind: str) -> pa.Table:
    """Fifteen products of each of forty customers; of the last one four."""
    rows = (CUSTOMERS - 1) * CANDIDATES + 4
    values = np.random.default_rng(7).uniform(0, 200, (rows, len(NAMES)))
    values[:, NAMES.index("candidate_new_items_rank")] = np.nan
    told = values[:, NAMES.index(TOLD_BY)]
    columns = {
        "customer_id": pa.array([f"c{i // CANDIDATES:04}" for i in range(rows)]),
        "product_id": pa.array([f"P{i % CANDIDATES:02}" for i in range(rows)]),
        **{n: pa.array(values[:, i], from_pandas=True) for i, n in enumerate(NAMES)},
    }
    if kind == "matured":
        columns["label"] = pa.array((told > 150).astype(np.int32))
        columns["missed"] = pa.array(np.full(rows, 1, np.int32))
    table = pa.table(columns)
    if kind == "matured":  # customers who bought nothing have no labels
        table = table.slice(0, 30 * CANDIDATES)
    with replacing(dataset_dir(settings.lake_dir, kind, RECOMMENDATIONS.name, AS_OF)) as folder:
        pq.write_table(table, folder / "part-00000.parquet")
        write_manifest(folder, {"rows": table.num_rows, "sha256": kind})
    return table


def test_lists_are_scored_published_challenged_and_measured(
    tracked_warehouse: Settings, tmp_path: Path
) -> None:
    settings = tracked_warehouse
    champion = register(settings, RECOMMENDATIONS, tmp_path / "model", TOLD_BY)
    model_store.set_alias(settings, RECOMMENDATIONS.name, model_store.CHAMPION, champion)
    vectors = write_candidates(settings, "features")
    scored = score(settings, RECOMMENDATIONS, AS_OF)
    assert scored.rows == (CUSTOMERS - 1) * 10 + 4
    publish(settings, [RECOMMENDATIONS], AS_OF)

    listed = query(
        settings.warehouse_url,
        "select rank, product_id, generators, band, jsonb_array_length(reasons)"
        " from predictions.recommendations_latest where customer_id = 'c0007' order by rank",
    )
    assert [row[0] for row in listed] == list(range(1, 11))
    assert {row[2] for row in listed} == {
        "bought_before,bought_together,popular_lately,popular_within_country"
    }
    assert [row[3] for row in listed] == ["first"] * 3 + ["further"] * 7
    assert [row[4] for row in listed] == [3] * 3 + [0] * 7
    assert top_rows(settings, RECOMMENDATIONS, 1)[0]["rank"] == 1

    explained = explain_rows(
        settings, RECOMMENDATIONS, AS_OF, vectors.slice(7 * CANDIDATES, CANDIDATES), None
    )
    assert [each.names["product_id"] for each in explained] == [row[1] for row in listed]
    assert all(each.is_as_published for each in explained)

    other = register(
        settings, RECOMMENDATIONS, tmp_path / "other", NAMES[0],
        booster=small_booster(RECOMMENDATIONS, NAMES[0]),
    )  # fmt: skip
    with closing(psycopg2.connect(settings.warehouse_url)) as connection, connection:
        connection.cursor().execute(
            "insert into ops.gate_results (use_case, as_of, mlflow_run_id, model_version, gate,"
            " passed, detail) values (%s, %s, 'run', %s, 'at_least_ndcg_at_k', false, '')",
            (RECOMMENDATIONS.name, AS_OF, other),
        )
    compared = challenge(settings, RECOMMENDATIONS, AS_OF)
    assert compared is not None and compared.comparison.rows == scored.rows
    assert 0 < compared.comparison.agreement < 1

    write_candidates(settings, "matured")
    measured = measure_matured(settings, RECOMMENDATIONS, AS_OF)
    figures = measured.figures
    assert figures["champion"]["ndcg_at_k"].value > figures["most_bought"]["ndcg_at_k"].value + 0.2
    # one relevant product of each list is no candidate: nobody reaches 1
    assert figures["champion"]["recall_at_k"].value < 0.9
    assert {"map_at_k", "coverage_at_k", "novelty_at_k"} <= figures["champion"].keys()


def test_a_list_with_a_gap_is_refused(tracked_warehouse: Settings, tmp_path: Path) -> None:
    settings = tracked_warehouse
    champion = register(settings, RECOMMENDATIONS, tmp_path / "model", TOLD_BY)
    model_store.set_alias(settings, RECOMMENDATIONS.name, model_store.CHAMPION, champion)
    write_candidates(settings, "features")
    score(settings, RECOMMENDATIONS, AS_OF)
    folder = dataset_dir(settings.lake_dir, "scores", RECOMMENDATIONS.name, AS_OF)
    (part,) = parts(folder)
    rows = pq.read_table(part)
    at = rows.schema.get_field_index("rank")
    ranks = rows["rank"].to_pylist()
    ranks[9] = 11
    pq.write_table(rows.set_column(at, "rank", pa.array(ranks, pa.int32())), part)
    manifest = lake.read_manifest(folder) or {}
    write_manifest(folder, manifest | {"sha256": lake.digest([lake.file_sha256(part)])})
    with pytest.raises(AuditError, match=r"lists_in_order: observed 1 lists that break it"):
        publish(settings, [RECOMMENDATIONS], AS_OF)
    assert sql.view_names(RECOMMENDATIONS) == ("recommendations", "recommendations_latest")
