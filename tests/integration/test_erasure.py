"""A person who is planted everywhere is erased, also when the erasure is killed on its way."""

import gzip
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xgboost as xgb

from nightshift import pipeline
from nightshift.erasure import run as erasure
from nightshift.errors import NightshiftError
from nightshift.io import lake, model_store
from nightshift.io.warehouse import connect
from nightshift.settings import PROJECT_ROOT, Settings
from nightshift.use_cases import USE_CASES
from nightshift.use_cases.churn import CHURN

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

AS_OF = date(2011, 6, 12)
DAY = "2011-06-09"
CANARY = "CANARY7"
HEADER = "Invoice,StockCode,Description,Quantity,InvoiceDate,Price,Customer ID,Country"
NAMES = HEADER.split(",")
OTHERS = [f"{17850 + n}" for n in range(12)] + [f"{CANARY}1"]


def line(invoice: int, customer: str, day: str = DAY, price: str = "2.55") -> str:
    return f'{invoice},85123A,"HEART, ""T""",2,{day} 08:30:00,{price},{customer},France'


def land(settings: Settings) -> dict[str, bytes]:
    """The canary in each format, once broken and once not to be split; files without it."""
    folder = Path(str(settings.landing)) / "order_lines"
    texts = {
        "ds=2011-06-07/a.csv": "\r\n".join(
            [HEADER, *(line(1000 + n, c, "2011-06-07") for n, c in enumerate(OTHERS)), ""]
        ),
        "ds=2011-06-08/a.csv.gz": "\n".join(
            [
                HEADER,
                *(line(1100 + n, c, "2011-06-08") for n, c in enumerate(OTHERS)),
                line(1200, f" {CANARY} ", "2011-06-08"),
                "",
            ]
        ),
        f"ds={DAY}/b.csv": "\r\n".join(
            [
                HEADER,
                line(1300, "17850"),
                line(1301, CANARY),
                line(1302, CANARY, price="cheap"),
                f"1303;85123A;{CANARY};2",
                line(1304, "17851", price="dear"),
                "",
            ]
        ),
    }
    rows = [
        dict(zip(NAMES, [str(n), "85123A", "HEART", 1, f"{DAY} 09:00:00", 2.5, who, "France"],
                 strict=True))
        for n, who in ((1400, CANARY), (1401, "17852"))
    ]  # fmt: skip
    texts[f"ds={DAY}/c.jsonl"] = "".join(f"{json.dumps(row)}\n" for row in rows)
    texts[f"ds={DAY}/d.jsonl.gz"] = json.dumps(rows[0] | {"Invoice": "1500"}) + "\n"
    for name, text in texts.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        content = text.encode()
        file.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    table = pa.table({name: [row[name] for row in rows] for name in NAMES})
    table = table.set_column(0, "Invoice", pa.array(["1600", "1601"]))
    pq.write_table(table, folder / f"ds={DAY}" / "e.parquet")
    cards = Path(str(settings.landing)) / "card_transactions" / f"ds={DAY}"
    cards.mkdir(parents=True)
    (cards / "t.csv").write_text(
        "transaction_id,transaction_at,customer_id,terminal_id,amount\n"
        f"1,{DAY} 10:00:00,{CANARY},31,5.00\n2,{DAY} 10:00:00,17850,31,6.00\n"
    )
    return {name: text.encode() for name, text in texts.items()}


def register_champion(settings: Settings, root: Path, pseudonym: str) -> None:
    """A small model, whose run has the canary among its test predictions."""
    names = CHURN.feature_names
    matrix = np.random.default_rng(1).uniform(0, 100, (200, len(names))).astype(np.float32)
    labels = (matrix[:, 0] > 50).astype(int)
    booster = xgb.train(
        {"objective": "binary:logistic", "max_depth": 2, "nthread": 1, "seed": 1},
        xgb.DMatrix(matrix, labels, feature_names=list(names)),
        num_boost_round=5,
    )
    model_store.write_model(
        root / "run" / "model", bytes(booster.save_raw("ubj")), {"features": list(names)}
    )
    (root / "run" / "evaluation").mkdir()
    pq.write_table(
        pa.table({"customer_id": [pseudonym, "somebody"], "label": [1, 0]}),
        root / "run" / "evaluation" / "test_predictions.parquet",
    )
    mlflow = model_store.client(settings)
    run = mlflow.create_run(model_store.experiment_id(settings, "churn"))
    mlflow.log_artifacts(run.info.run_id, str(root / "run"))
    version = model_store.register(settings, "churn", run.info.run_id, AS_OF.isoformat())
    model_store.set_alias(settings, "churn", model_store.CHAMPION, version.version)


def fetched(settings: Settings, query: str, *parameters: object) -> list[tuple[Any, ...]]:
    with connect(settings) as connection, connection.cursor() as cursor:
        cursor.execute(query, parameters)
        return cursor.fetchall()


def texts_of(settings: Settings) -> Iterator[tuple[str, str]]:
    """Every table of the warehouse and every file that Nightshift holds, as text."""
    tables = fetched(
        settings,
        "select c.oid::regclass::text from pg_class c join pg_namespace n on n.oid = relnamespace"
        " where relkind = 'r' and nspname !~ '^(pg_|information_schema)'",
    )
    for (table,) in tables:
        dump = fetched(settings, f"select coalesce(string_agg(t::text, e'\\n'), '') from {table} t")
        yield table, dump[0][0]
    for root in (Path(str(settings.landing)), settings.state_dir, settings.lake_dir):
        for file in root.rglob("*"):
            if file.is_file():
                yield str(file.relative_to(root.parent)), text_of(file)


def text_of(file: Path) -> str:
    if file.name.endswith(".parquet"):
        return str(pq.read_table(file, partitioning=None).to_pylist())
    content = file.read_bytes()
    return (gzip.decompress(content) if file.suffix == ".gz" else content).decode("latin-1")


def places(settings: Settings, *words: str) -> set[str]:
    """Where one of the words stands, and is not the beginning of a longer one."""
    return {
        place
        for place, text in texts_of(settings)
        for word in words
        if word in text.replace(f"{CANARY}1", "")
    }


def of_others(settings: Settings, pseudonym: str) -> dict[str, list[tuple[Any, ...]]]:
    """What is known of everybody else, without what names file and row."""
    return {
        query: fetched(settings, query, pseudonym)
        for query in (
            "select invoice, stock_code, quantity, invoice_date, price, customer_id, country,"
            f" _landed_date from raw.order_lines where trim(customer_id) <> '{CANARY}'"
            " and %s is not null order by 1",
            "select invoice_id, product_id, line_amount, customer_id, landed_date"
            " from marts.fct_order_lines where customer_id <> %s order by 1",
            "select * from marts.dim_customers where customer_id <> %s order by 1",
            "select transaction_id, customer_id, amount from marts.fct_card_transactions"
            " where customer_id <> %s order by 1",
            "select t::text from predictions.churn as t where customer_id <> %s order by 1",
            "select column_name, rule, value, row_as_landed from quarantine.order_lines"
            " where row_as_landed like '1304%%' and %s is not null",
        )
    }


def killed_at(settings: Settings, words: str) -> None:
    """The command line's erasure, killed as soon as it has said ``words``."""
    process = subprocess.Popen(
        [sys.executable, "-m", "nightshift.cli", "erase", "--subject", CANARY, "--yes"],
        env=os.environ
        | {
            "NIGHTSHIFT_STATE_DIR": str(settings.state_dir),
            "NIGHTSHIFT_LANDING": str(settings.landing),
            "NIGHTSHIFT_LAKE": str(settings.lake_dir),
            "NIGHTSHIFT_DATABASE_URL": settings.warehouse_url,
            "NIGHTSHIFT_READER_DATABASE_URL": settings.reader_url,
            "NIGHTSHIFT_MLFLOW_TRACKING_URI": settings.mlflow_uri,
            "PYTHONPATH": str(PROJECT_ROOT / "jobs"),
            "COLUMNS": "200",
        },
        stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stderr is not None
    with process.stderr as said:
        heard = []
        for text in said:
            heard.append(text)
            if words in text:
                break
        else:
            raise AssertionError("".join(heard))
        os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def test_a_canary_is_erased_from_everywhere_and_nobody_else_is_harmed(
    tracked_warehouse: Settings, tmp_path: Path
) -> None:
    settings = tracked_warehouse.model_copy(
        update={"spark_master": "local[1]", "spark_driver_memory": "1g"}
    )
    landed = land(settings)
    ((pseudonym,),) = fetched(settings, "select predictions.pseudonym(%s)", CANARY)
    register_champion(settings, tmp_path, pseudonym)
    pipeline.nightly(settings, [CHURN], AS_OF)
    plant_what_a_night_does_not_make(settings, pseudonym)

    require_lookup_by_index(settings)
    before = places(settings, CANARY, pseudonym)
    assert {
        *("raw.order_lines", "raw.card_transactions", "quarantine.order_lines", "ops.runs"),
        *("marts.fct_order_lines", "marts.dim_customers", "marts.dim_customers_history"),
        *("marts.fct_card_transactions", f"landing/order_lines/ds={DAY}/e.parquet"),
    } <= before
    for part in (
        *("predictions.churn_p_", "lake/events/", "lake/state/", "lake/features/"),
        "lake/training/",
        *("lake/scores/", "mlflow-artifacts/", "logs/task.log", "a.csv.gz", "d.jsonl.gz"),
    ):
        assert any(part in place for place in before), part
    others = of_others(settings, pseudonym)
    assert all(others.values())

    killed_at(settings, "stage ingest: begins")
    assert not [place for place in places(settings, CANARY) if place.startswith("landing/")]
    done = pipeline.erase(settings, USE_CASES, CANARY)

    assert places(settings, CANARY, pseudonym) == set()
    assert of_others(settings, pseudonym) == others
    folder = Path(str(settings.landing)) / "order_lines"
    for name, content in landed.items():
        kept = [row for row in content.splitlines(keepends=True) if CANARY.encode() not in row]
        kept += [row for row in content.splitlines(keepends=True) if f"{CANARY}1".encode() in row]
        file = folder / name
        if not kept:
            assert not file.exists()
            continue
        now = gzip.decompress(file.read_bytes()) if name.endswith(".gz") else file.read_bytes()
        assert now == b"".join(kept), name
    assert not [path for path in folder.rglob("*") if path.name.startswith((".", "_"))]
    assert fetched(
        settings,
        "select count(*) from ops.publications p where rows <> (select count(*) from"
        " predictions.churn_publications_data d where d.publication_id = p.publication_id)",
    ) == [(0,)]
    scores = lake.dataset_dir(settings.lake_dir, "scores", "churn", AS_OF)
    manifest = lake.read_manifest(scores)
    assert manifest is not None
    assert manifest["rows"] == len(others[next(q for q in others if "predictions" in q)])
    assert manifest["sha256"] == lake.parts_sha256(lake.parts(scores))
    assert done.models_to_retrain == ("churn version 1",)
    assert done.removed["predictions"] == done.removed["lake scores"] == 1
    # four order lines and a payment were loaded; the killed run may have replaced some of the files
    assert 1 <= done.removed["raw.order_lines"] <= 4
    assert done.removed["marts"] == 8
    assert fetched(
        settings, "select erasure_id, completed_at is null from ops.erasures order by 1"
    ) == [(1, True), (2, False)]

    receipt = pipeline.receipt(settings, CHURN, CANARY, AS_OF)
    assert (receipt.told["row"], receipt.features.vector) == (None, {})
    assert "or erased since: 2 erasures" in receipt.missing[0]

    again = pipeline.erase(settings, USE_CASES, CANARY)

    assert not any(again.removed.values())
    assert again.models_to_retrain == ()
    assert of_others(settings, pseudonym) == others


def require_lookup_by_index(settings: Settings) -> None:
    """By an id a row is looked up as by its key: the pseudonym is computed once a scan."""
    with connect(settings) as connection, connection.cursor() as cursor:
        cursor.execute("set local enable_seqscan = off")  # there are few rows
        cursor.execute(
            "explain select * from predictions.churn_latest"
            " where customer_id = predictions.pseudonym('17850')"
        )
        plan = "\n".join(text for (text,) in cursor.fetchall())
    assert "Index Cond: (customer_id = predictions.pseudonym('17850'::text))" in plan


def plant_what_a_night_does_not_make(settings: Settings, pseudonym: str) -> None:
    """A training set, a log, a quoted error, a row that slipped, and what a killed run left."""
    training = lake.dataset_dir(settings.lake_dir, "training", "churn", AS_OF)
    with lake.replacing(training) as folder:
        keys = {"customer_id": [pseudonym, "somebody"], "label": [1, 0]}
        pq.write_table(pa.table(keys), folder / "part-00000.parquet")
        lake.write_manifest(folder, {"rows": 2, "sha256": "of two rows"})
    left = training.with_name(f".{training.name}.0123")
    left.mkdir()
    pq.write_table(pa.table({"customer_id": [pseudonym]}), left / "part-00000.parquet")
    challenge = settings.lake_dir / lake.CHALLENGES / "of-killed"
    challenge.mkdir(parents=True)
    pq.write_table(pa.table({"customer_id": [pseudonym]}), challenge / "part-00000.parquet")
    (settings.state_dir / "logs").mkdir(exist_ok=True)
    (settings.state_dir / "logs" / "task.log").write_text(f"the score of '{pseudonym}' is nan\n")
    with connect(settings) as connection, connection.cursor() as cursor:
        cursor.execute(
            "insert into ops.runs (stage, as_of, status, error)"
            " values ('score', %s, 'failed', %s)", (AS_OF, f"the model gives '{pseudonym}' nan"),
        )  # fmt: skip
        # columns that are shifted leave the id where no contract expects it
        cursor.execute(
            "insert into quarantine.order_lines (_file_id, _landed_date, _row_number, rule,"
            f" row_as_landed) select file_id, landed_date, 99, 'shifted', '1,2,{CANARY},x'"
            " from ops.landing_files where status = 'loaded' and path like '%a.csv'"
        )
        cursor.execute(
            "update ops.landing_files set rows_in = rows_in + 1, rows_quarantined = 1"
            " where status = 'loaded' and path like '%a.csv'"
        )


def test_an_erasure_waits_for_a_running_ingest(warehouse: Settings) -> None:
    folder = Path(str(warehouse.landing)) / "order_lines" / f"ds={DAY}"
    folder.mkdir(parents=True)
    landed = "\n".join([HEADER, line(1, CANARY), line(2, "17850"), ""])
    (folder / "a.csv").write_text(landed)
    with connect(warehouse) as connection, connection.cursor() as cursor:
        cursor.execute(f"create table public.theirs as select '{CANARY}'::text as customer_id")
    opened = erasure.begin(warehouse, USE_CASES, CANARY)
    with connect(warehouse) as connection, connection.cursor() as cursor:
        cursor.execute(
            "select pg_advisory_lock(hashtextextended('nightshift.ingest.order_lines', 0))"
        )
        connection.commit()
        thread = threading.Thread(target=erasure.erase_landed, args=(warehouse, opened))
        thread.start()
        waiting: list[tuple[Any, ...]] = []
        while not waiting:
            cursor.execute("select 1 from pg_locks where locktype = 'advisory' and not granted")
            waiting = cursor.fetchall()
            connection.commit()
        assert (folder / "a.csv").read_text() == landed
    thread.join()

    assert (folder / "a.csv").read_text() == "\n".join([HEADER, line(2, "17850"), ""])
    assert opened.removed["landing order_lines"] == 1
    # a table in a schema that is not ours is somebody else's
    assert "public" not in opened.held


def test_a_damaged_file_is_named_on_the_certificate(tracked_warehouse: Settings) -> None:
    folder = Path(str(tracked_warehouse.landing)) / "order_lines" / f"ds={DAY}"
    folder.mkdir(parents=True)
    content = gzip.compress("\n".join([HEADER, line(1, CANARY)]).encode())
    (folder / "a.csv.gz").write_bytes(content[:-9])

    done = pipeline.erase(tracked_warehouse, USE_CASES, CANARY)

    assert done.not_reached[0] == f"order_lines/ds={DAY}/a.csv.gz, which is damaged: remove it"
    assert fetched(tracked_warehouse, "select not_reached[1] from ops.erasures") == [
        (done.not_reached[0],)
    ]
    assert CANARY not in repr(erasure.begin(tracked_warehouse, USE_CASES, CANARY))
    with pytest.raises(NightshiftError, match="the subject is empty"):
        pipeline.erase(tracked_warehouse, USE_CASES, "  ")
