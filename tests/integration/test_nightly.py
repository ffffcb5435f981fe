"""The whole night through the command line: repeated, killed at every stage, and out of order.

One small demo shop, one champion and one night that nothing disturbed (``Night``) are shared by
the tests; a test that disturbs a night does so in a warehouse and a lake of its own.
"""

import csv
import gzip
import hashlib
import io
import json
import re
import shutil
import subprocess
from contextlib import closing
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import duckdb
import psycopg2
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from psycopg2.errors import InsufficientPrivilege
from psycopg2.extensions import connection as Connection
from rich.console import Console
from sklearn.metrics import roc_auc_score

from chaos.checks import (
    assert_nothing_is_half_done,
    assert_nothing_is_left_behind,
    assert_same,
    outcome_of,
)
from chaos.faults import (
    NOT_ON_THE_PUBLICATION,
    ON_RAW,
    held,
    locked,
    on_the_publication,
    rows_of_a_held_copy,
    waits_for,
)
from chaos.worlds import READER, WRITER, execute, nightshift, query, settings_of, victim
from nightshift import pipeline
from nightshift.demo_data.run import write_landing
from nightshift.errors import NightshiftError, RefusedAsOf
from nightshift.io import lake, model_store
from nightshift.monitoring.run import require_published
from nightshift.receipt.facts import Receipt
from nightshift.receipt.page import as_json, page
from nightshift.services.postgres import EmbeddedPostgres
from nightshift.settings import PROJECT_ROOT, Settings
from nightshift.spec import Nights
from nightshift.use_cases import CHURN

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

AS_OF = date(2025, 12, 16)
LATER = date(2025, 12, 31)
OF_CHURN = ("--use-case", "churn")


@dataclass(frozen=True)
class Night:
    """A night for ``AS_OF`` that nothing disturbed."""

    settings: Settings
    outcome: dict[str, Any]


class Warehouses:
    """Fresh warehouses on the test server, each with its own lake and state, sharing the rest."""

    def __init__(self, server: EmbeddedPostgres, template: str, root: Path, mlflow: str) -> None:
        self._server, self._template, self._root, self._mlflow = server, template, root, mlflow

    def make(self, name: str) -> Settings:
        self._server.ensure_database(name, WRITER, READER, template=self._template)
        return settings_of(self._server, name, self._root, self._root / "landing", self._mlflow)


@pytest.fixture(scope="module")
def warehouses(
    postgres_server: EmbeddedPostgres,
    migrated_template: str,
    mlflow_template: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Warehouses:
    root = tmp_path_factory.mktemp("nightly")
    write_landing(
        root / "landing", customers=800, lines=45_000, start=date(2024, 7, 1),
    )  # fmt: skip
    land_late_lines(root / "landing")
    postgres_server.ensure_database("nightly_mlflow", WRITER, template=mlflow_template)
    return Warehouses(postgres_server, migrated_template, root, "nightly_mlflow")


@pytest.fixture(scope="module")
def night(warehouses: Warehouses) -> Night:
    settings = warehouses.make("nightly_undisturbed")
    trained = nightshift(settings, "train", "churn", "--as-of", str(AS_OF))
    assert trained.returncode == 0, trained.stdout + trained.stderr
    run_night(settings)
    return Night(settings, outcome_of(settings, AS_OF))


def land_late_lines(landing: Path) -> None:
    """Purchases from before ``AS_OF`` that land after it, of every customer of one day."""
    source = landing / "order_lines"
    with gzip.open(source / "ds=2025-12-01" / "order_lines.csv.gz", "rt") as file:
        header, *lines = file.read().splitlines()
    late = [line.replace(",2025-12-01 ", ",2025-12-15 ") for line in lines]
    late = ["99" + line[2:] for line in late if ",2025-12-15 " in line and line[0].isdigit()]
    assert len(late) > 20
    with gzip.open(source / "ds=2025-12-17" / "late.csv.gz", "wt") as file:
        file.write("\n".join([header, *late]) + "\n")


def run_night(settings: Settings, as_of: date = AS_OF) -> str:
    done = nightshift(settings, "nightly", "--as-of", str(as_of), *OF_CHURN)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def kill_when_it_says(settings: Settings, words: str) -> None:
    with victim(settings, "nightly", "--as-of", str(AS_OF), *OF_CHURN) as process:
        process.wait_for(lambda: process.says(words), words)
        process.kill()


def kill_in_the_copy(settings: Settings, server: EmbeddedPostgres, plant: str, unplant: str) -> int:
    """Kill the night while its COPY is in progress; the number of rows it had got to."""
    with (
        held(server, settings, plant, unplant),
        victim(settings, "nightly", "--as-of", str(AS_OF), *OF_CHURN) as process,
    ):
        process.wait_for(lambda: bool(rows_of_a_held_copy(settings)), "a COPY")
        (rows,) = rows_of_a_held_copy(settings)
        process.kill()
    return rows


def kill_while_it_waits_for(settings: Settings, table: str) -> None:
    """Kill the night at its write to ``table``: everything before that write is committed."""
    with (
        locked(settings, table),
        victim(settings, "publish", "--as-of", str(AS_OF), *OF_CHURN) as process,
    ):
        process.wait_for(lambda: waits_for(settings, table), f"a write to {table}")
        process.kill()


def staged_tables(settings: Settings) -> list[tuple[Any, ...]]:
    return query(
        settings.warehouse_url,
        "select relname, exists (select from pg_inherits where inhrelid = c.oid) from pg_class c"
        " where relkind = 'r' and relname ~ '^churn_p_'",
    )


def test_a_night_killed_again_and_again_ends_as_one_that_was_never_killed(
    night: Night, warehouses: Warehouses, postgres_server: EmbeddedPostgres
) -> None:
    settings = warehouses.make("nightly_killed")

    def still_sound() -> None:
        assert_nothing_is_half_done(settings, night.outcome)

    def ledger() -> int:
        return query(settings.warehouse_url, "select count(*) from ops.landing_files")[0][0]

    with victim(settings, "nightly", "--as-of", str(AS_OF), *OF_CHURN) as process:
        process.wait_for(lambda: ledger() > 30, "the 30th file")
        process.kill()
    still_sound()
    assert 30 < ledger() < len(night.outcome["ledger"])

    loaded = ledger()
    assert kill_in_the_copy(settings, postgres_server, ON_RAW, "") == 19
    still_sound()
    assert loaded <= ledger() < len(night.outcome["ledger"])

    # what each stage leaves that has just begun, `make chaos` goes through
    for words in ("stage transform: begins", "dbt: ", "stage features: begins"):
        kill_when_it_says(settings, words)
        still_sound()

    features = lake.dataset_dir(settings.lake_dir, "features", "churn", AS_OF)
    with victim(settings, "nightly", "--as-of", str(AS_OF), *OF_CHURN) as process:
        process.wait_for(lambda: any(features.parent.glob(f".{features.name}.*/part-*")), "a part")
        process.kill()
    still_sound()
    assert not features.exists()

    kill_when_it_says(settings, "stage publish: begins")
    still_sound()

    predictions = night.outcome["predictions"]
    middle = len(predictions) // 2
    plant = on_the_publication("churn", predictions[middle][0])
    copied = kill_in_the_copy(settings, postgres_server, plant, NOT_ON_THE_PUBLICATION)
    assert 0 <= copied < len(predictions)
    still_sound()
    publication = predictions[0][-1]
    assert staged_tables(settings) == [(f"churn_p_{publication}", False)]

    kill_while_it_waits_for(settings, "ops.publications")
    still_sound()
    assert staged_tables(settings) == [(f"churn_p_{publication}", False)]

    kill_while_it_waits_for(settings, "predictions.pointers")
    still_sound()
    assert staged_tables(settings) == [(f"churn_p_{publication}", True)]
    assert query(settings.reader_url, "select count(*) from predictions.churn") == [(0,)]

    run_night(settings)
    assert_same(outcome_of(settings, AS_OF), night.outcome)
    assert_nothing_is_left_behind(settings)
    still_sound()


def test_the_checks_after_a_kill_can_fail(warehouse: Settings) -> None:
    expected: dict[str, Any] = {"predictions": []}
    assert_nothing_is_half_done(warehouse, expected)
    assert_nothing_is_left_behind(warehouse)

    folder = lake.dataset_dir(warehouse.lake_dir, "features", "churn", AS_OF)
    folder.mkdir(parents=True)
    with pytest.raises(AssertionError, match="features"):
        assert_nothing_is_half_done(warehouse, expected)
    folder.rename(folder.with_name(f".{folder.name}.killed"))
    with pytest.raises(AssertionError, match="killed"):
        assert_nothing_is_left_behind(warehouse)

    assert_nothing_is_half_done(warehouse, expected)
    execute(
        warehouse.warehouse_url,
        "create table raw.order_lines (_file_id bigint); insert into raw.order_lines values (1)",
    )
    with pytest.raises(AssertionError, match="raw"):
        assert_nothing_is_half_done(warehouse, expected)


def test_the_same_night_again_changes_nothing(night: Night) -> None:
    pointers = "select * from predictions.pointers order by use_case, as_of"
    publications = "select * from ops.publications order by publication_id"
    url = night.settings.warehouse_url
    before = query(url, pointers), query(url, publications)

    shown = run_night(night.settings)

    assert "unchanged" in shown
    assert (query(url, pointers), query(url, publications)) == before
    assert_same(outcome_of(night.settings, AS_OF), night.outcome)


def test_a_night_on_which_it_is_not_due_publishes_nothing_and_succeeds(
    night: Night, caplog: pytest.LogCaptureFixture
) -> None:
    pointers = "select * from predictions.pointers order by use_case, as_of"
    before = query(night.settings.warehouse_url, pointers)
    nights = Nights(every_days=30, since=AS_OF + timedelta(days=1))
    rare = CHURN.model_copy(update={"nights": nights})

    with caplog.at_level("INFO"):
        assert pipeline.nightly(night.settings, [rare], AS_OF).publications == ()

    assert f"churn is not due on {AS_OF}: it is scored every 30 nights" in caplog.text
    assert "stage quality_marts: done" in caplog.text
    assert "stage features" not in caplog.text
    assert query(night.settings.warehouse_url, pointers) == before
    with pytest.raises(RefusedAsOf, match=r"churn is not due on .*; nothing is published"):
        require_published(night.settings, rare, AS_OF - timedelta(days=1))


def test_what_was_published_is_measured_on_what_then_happened(night: Night) -> None:
    settings = night.settings
    shown = nightshift(settings, "evaluate", "churn", "--as-of", str(AS_OF))
    assert shown.returncode == 0, shown.stdout + shown.stderr

    horizon = AS_OF + timedelta(days=90)
    bought = "select distinct customer_id from marts.fct_order_lines"
    bought += " where not is_cancellation and quantity > 0 and customer_id is not"
    bought += " null and invoiced_at >= %s and invoiced_at < %s and landed_date < %s"
    stayed = {row[0] for row in query(settings.warehouse_url, bought, AS_OF, horizon, horizon)}
    published = {row[0]: row[2] for row in night.outcome["predictions"]}
    assert 0.1 < len(stayed & published.keys()) / len(published) < 0.9
    expected = roc_auc_score([key not in stayed for key in published], list(published.values()))
    measured = {
        scorer: value
        for scorer, value in query(
            settings.warehouse_url,
            "select scorer, value from monitoring.matured_quality"
            " where metric = 'auc' and as_of = %s",
            AS_OF,
        )
    }
    assert measured["champion"] == pytest.approx(expected, abs=1e-9)
    assert measured.keys() == {"champion", "recency", "frequency", "linear"}
    assert f"{expected:.3f}" in shown.stdout


def test_what_was_not_published_is_not_measured(night: Night) -> None:
    refused = nightshift(night.settings, "evaluate", "churn", "--as-of", "2025-12-15")

    assert refused.returncode == 1
    assert "nothing is published in predictions.churn for 2025-12-15" in refused.stderr
    assert "nightshift nightly --as-of 2025-12-15" in refused.stderr


def test_what_lands_later_changes_no_earlier_night(night: Night, warehouses: Warehouses) -> None:
    settings = warehouses.make("nightly_later_first")
    run_night(settings, LATER)
    late = query(
        settings.warehouse_url,
        "select count(*) from marts.fct_order_lines where landed_date >= %s and invoiced_at < %s",
        AS_OF,
        AS_OF,
    )
    assert late[0][0] > 20, "nothing landed late, so this test shows nothing"

    run_night(settings, AS_OF)

    assert_same(outcome_of(settings, AS_OF), night.outcome)
    newest = query(settings.reader_url, "select distinct as_of from predictions.churn_latest")
    assert newest == [(LATER,)]

    # the guard can fail: had the same lines landed in time, other predictions would follow
    execute(
        settings.warehouse_url,
        "with late as (update ops.landing_files set landed_date = %s where path like"
        " '%%late.csv.gz' returning file_id, landed_date, old.landed_date as landed_before),"
        " moved as (update raw.order_lines set _landed_date = late.landed_date from late"
        " where _file_id = file_id)"
        " insert into ops.changed_days (source, landed_date, reason) select distinct"
        " 'order_lines', unnest(array[landed_date, landed_before]), 'moved' from late",
        AS_OF - timedelta(days=1),
    )
    run_night(settings, AS_OF)
    with pytest.raises(AssertionError, match=r"predictions: \d+ rows differ"):
        assert_same(
            {"predictions": outcome_of(settings, AS_OF)["predictions"]},
            {"predictions": night.outcome["predictions"]},
        )


def as_read(receipt: Receipt) -> str:
    """The page as a person sees it, on one line and without its lines."""
    console = Console(width=160, file=io.StringIO(), record=True)
    console.print(page(receipt))
    return " ".join(re.sub("[│┃]", " ", console.export_text()).split())


def lines_landed(settings: Settings, customer: str) -> dict[str, list[int]]:
    """File → numbers of the customer's rows that were known at ``AS_OF``, each distinct one once,
    read from the landing zone itself."""
    found: dict[str, list[int]] = {}
    seen = set()
    landing = Path(str(settings.landing))
    for file in sorted(landing.glob("order_lines/ds=*/*.csv.gz")):
        if file.parent.name.removeprefix("ds=") < str(AS_OF):
            with gzip.open(file, "rt", newline="") as rows:
                for number, row in enumerate(csv.DictReader(rows), 1):
                    content = tuple(row.values())
                    if row["Customer ID"] == customer and content not in seen:
                        seen.add(content)
                        found.setdefault(str(file.relative_to(landing)), []).append(number)
    return found


def test_a_receipt_follows_a_row_all_the_way_back(night: Night) -> None:
    settings = night.settings
    url = settings.warehouse_url
    # the one with most rows
    ((customer, key),) = query(
        url,
        "select trim(r.customer_id), c.customer_id from predictions.churn c join raw.order_lines r"
        " on predictions.pseudonym(r.customer_id) = c.customer_id where c.as_of = %s"
        " group by 1, 2 order by count(*) desc, 1 limit 1",
        AS_OF,
    )

    receipt = pipeline.receipt(settings, CHURN, customer)

    told = as_json(receipt)
    assert told["missing"] == []
    # the row, as readers see it
    columns = "customer_id, as_of::text, churn_probability, band, reasons, model_version,"
    columns += " publication_id"
    ((*row,),) = query(settings.reader_url, f"select {columns} from predictions.churn_latest"
                       " where customer_id = %s", key)  # fmt: skip
    assert [told["row"][name.split("::")[0]] for name in columns.split(", ")] == row
    publication, manifest = (
        told["publication"],
        lake.read_manifest(lake.dataset_dir(settings.lake_dir, "scores", "churn", AS_OF)),
    )
    assert manifest is not None
    assert (publication["publication_id"], publication["is_seen"]) == (row[-1], True)
    assert publication["rows"] == manifest["rows"]
    assert "failed" not in {each["outcome"] for each in told["audit"]}
    assert (
        len(told["audit"])
        == query(url, "select count(*) from ops.audit_results where %s", True)[0][0]
    )
    # who made the model champion, on what evidence
    ((promotion, run_id, gates),) = query(
        url, "select promotion_id, mlflow_run_id, cardinality(gate_result_ids) from ops.promotions"
        " where to_version = %s", row[-2],
    )  # fmt: skip
    assert told["decision"]["promotion_id"] == promotion
    assert (told["decision"]["actor"], told["decision"]["person"]) == ("gates", None)
    assert [each["passed"] for each in told["gates"]] == [True] * gates == [True] * len(CHURN.gates)
    # what it learnt from
    training = lake.dataset_dir(settings.lake_dir, "training", "churn", AS_OF)
    assert settings.lake_dir / told["made_from"]["training"]["path"] == training
    trained = lake.read_manifest(training)
    assert trained is not None
    assert told["made_from"]["training"]["dataset_sha256"] == trained["sha256"]
    assert (publication["mlflow_run_id"], told["training"]["is_dataset"]) == (run_id, True)
    kept = model_store.fetch(settings, run_id, "data_manifest.json").read_bytes()
    assert told["training"]["sha256"] == hashlib.sha256(kept).hexdigest()
    assert told["training"]["told"]["rows"] == json.loads(kept)["rows"] == trained["rows"]
    model = model_store.fetch(settings, run_id, "model/model.ubj").read_bytes()
    assert told["made_from"]["training"]["model_sha256"] == hashlib.sha256(model).hexdigest()
    # what it was given
    features = settings.lake_dir / told["made_from"]["features"]["path"]
    with duckdb.connect() as database:
        found = database.execute(
            "select * exclude (customer_id) from read_parquet(?, hive_partitioning = false)"
            " where customer_id = ?",
            [[str(part) for part in lake.parts(features)], key],
        )
        names = [column[0] for column in found.description]
        (values,) = found.fetchall()
    assert told["features"]["vector"] == dict(zip(names, values, strict=True))
    assert (told["features"]["is_scored"], told["features"]["remade"]) == (True, [])
    made = lake.read_manifest(features)
    assert made is not None
    assert told["made_from"]["features"]["sha256"] == made["sha256"]
    # which landed files that comes from, read from the files
    (source,) = told["sources"]
    files = {each["path"]: each for each in source["landed_files"]["files"]}
    expected = lines_landed(settings, customer)
    assert len(expected) > 3
    assert {path: each["row_numbers"] for path, each in files.items()} == expected
    for path, each in files.items():
        landed = (Path(str(settings.landing)) / path).read_bytes()
        assert each["sha256"] == hashlib.sha256(landed).hexdigest()
    # what was checked that night
    checks = "select run_id, checked, landed_date::text, rule from ops.quality_results where run_id"
    checks += " in (select max(run_id) from ops.runs where stage in ('quality', 'quality_marts')"
    checks += " and as_of = %s and ended_at <= (select max(published_at) from ops.publications)"
    checks += " group by stage) and source = 'order_lines' order by 2, 3, 4"
    fields = ("run_id", "checked", "landed_date", "rule")
    checked = [tuple(each[field] for field in fields) for each in told["quality"]]
    assert sorted(checked) == sorted(query(url, checks, AS_OF))
    assert {each[1] for each in checked} == {"order_lines", "fct_order_lines"}
    # by which code
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=PROJECT_ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()
    made = told["made_from"]
    commits = (made["code_commit"], made["features"]["code_commit"],
               told["training"]["told"]["code_commit"])  # fmt: skip
    assert {each.removesuffix("-dirty") for each in commits} == {head}

    read = as_read(receipt)
    for words in (
        key, row[-1], run_id, head, "the gates, by themselves", "the same bits",
        *sorted(expected)[-10:], "Nothing is missing",
    ):  # fmt: skip
        assert words in read, words


def test_a_receipt_of_what_is_not_there_says_so(night: Night) -> None:
    settings = night.settings
    nobody = pipeline.receipt(settings, CHURN, "nobody", AS_OF)
    assert nobody.told["row"] is None
    assert "has no row of this customer_id: not in the population then" in nobody.missing[0]
    assert "row none; see below" in as_read(nobody)
    for asked, words in (
        ((None, "0123456789abcdef"), "no such publication of churn with the id 0123456789abcdef"),
        ((date(2025, 12, 1), None), "there is no such publication of churn for 2025-12-01"),
    ):
        with pytest.raises(NightshiftError, match=words):
            pipeline.receipt(settings, CHURN, "nobody", *asked)

    shown = nightshift(settings, "receipt", "churn", "nobody", "--as-of", "2025-12-01", "--json")
    assert (shown.returncode, shown.stdout) == (1, "")
    assert "nightshift publications list churn" in shown.stderr
    assert "Traceback" not in shown.stderr


def test_a_receipt_is_for_auditors(night: Night, postgres_server: EmbeddedPostgres) -> None:
    key = night.outcome["predictions"][0][0]
    receipt = "select predictions.receipt('churn', %s) -> 'row' ->> 'customer_id'"
    with pytest.raises(InsufficientPrivilege, match="permission denied for function receipt"):
        query(night.settings.reader_url, receipt, key)
    try:
        with postgres_server.superuser() as connection, connection.cursor() as cursor:
            cursor.execute("grant nightshift_auditor to nightshift_reader")
        assert query(night.settings.reader_url, receipt, key) == [(key,)]
        for forbidden in ("ops.promotions", "marts.fct_order_lines"):
            with pytest.raises(InsufficientPrivilege, match="permission denied"):
                query(night.settings.reader_url, f"select %s from {forbidden}", 1)
        # a name of another relation, or of none, opens nothing
        for use_case in ("publications", "pointers; select 1", 'churn"'):
            asked = "select predictions.receipt(%s, %s) ->> 'publication'"
            assert query(night.settings.reader_url, asked, use_case, key) == [(None,)]
    finally:
        with postgres_server.superuser() as connection, connection.cursor() as cursor:
            cursor.execute("revoke nightshift_auditor from nightshift_reader")


def test_a_receipt_names_what_has_changed_or_is_no_longer_kept(
    night: Night, postgres_server: EmbeddedPostgres, tmp_path: Path
) -> None:
    name = "receipt_later"
    postgres_server.ensure_database(name, WRITER, READER, template="nightly_undisturbed")
    settings = night.settings.model_copy(
        update={
            "database_url": postgres_server.url(name, WRITER, postgres_server.password),
            "reader_database_url": postgres_server.url(name, READER, postgres_server.password),
            "lake": tmp_path / "lake",
        }
    )
    shutil.copytree(night.settings.lake_dir, tmp_path / "lake")
    key = night.outcome["predictions"][0][0]

    def missing() -> list[str]:
        receipt = pipeline.receipt(settings, CHURN, key)
        assert as_read(receipt)
        return receipt.missing

    assert missing() == []
    features = lake.dataset_dir(settings.lake_dir, "features", "churn", AS_OF)
    part = next(
        p for p in lake.parts(features) if key in pq.read_table(p)["customer_id"].to_pylist()
    )
    table = pq.read_table(part)
    at = table.column_names.index("customer_purchase_days_since_last_all")
    pq.write_table(table.set_column(at, table.field(at), pc.add(table.column(at), 1.0)), part)
    found = missing()
    assert f"{part} is damaged" in found[0]
    assert any(
        "1 features have other values: customer_purchase_days_since_last" in f for f in found
    )

    content = json.loads((features / "manifest.json").read_text())
    (features / "manifest.json").write_text(json.dumps(content | {"sha256": "another"}))
    assert "the features were written anew since" in missing()[0]
    shutil.rmtree(features)
    shutil.rmtree(settings.lake_dir / "events")
    execute(settings.warehouse_url, "drop table marts.fct_order_lines cascade")
    lost = settings.model_copy(update={"mlflow_tracking_uri": "http://127.0.0.1:1"})
    receipt = pipeline.receipt(lost, CHURN, key)
    words = as_read(receipt)
    assert len(receipt.missing) == 4, receipt.missing
    for part_of in (
        "as_of=2025-12-16 is no longer kept", "MLflow's store does not answer at 127.0.0.1:1",
        "there is no table marts.fct_order_lines", "there are no features to compare with",
    ):  # fmt: skip
        assert part_of in words


# What a role may do to anything of ours: (kind, name, privilege), from the catalogue, so that what
# is made tomorrow is looked at too.
RIGHTS = """
with ours as (select oid, nspname from pg_namespace
    where nspname !~ '^pg_' and nspname <> 'information_schema'),
relations as (select c.oid, c.relkind, nspname || '.' || relname as name
    from pg_class c join ours on ours.oid = relnamespace)
select 'database', 'this', p from unnest('{create,temporary}'::text[]) p
    where has_database_privilege(%(role)s, current_database(), p)
union all select 'schema', nspname, p from ours, unnest('{usage,create}'::text[]) p
    where has_schema_privilege(%(role)s, oid, p) and (nspname, p) <> ('public', 'usage')
union all select 'relation', name, p from relations,
    unnest('{insert,update,delete,truncate,references,trigger,maintain}'::text[]) p
    where relkind in ('r', 'v', 'm', 'p', 'f') and has_table_privilege(%(role)s, oid, p)
union all select 'relation', name, p from relations,
    unnest('{select,insert,update,references}'::text[]) p
    where relkind in ('r', 'v', 'm', 'p', 'f') and has_any_column_privilege(%(role)s, oid, p)
union all select 'sequence', name, p from relations, unnest('{usage,select,update}'::text[]) p
    where relkind = 'S' and has_sequence_privilege(%(role)s, oid, p)
union all select 'function', f.oid::regprocedure::text, 'execute'
    from pg_proc f join ours on ours.oid = pronamespace
    where has_function_privilege(%(role)s, f.oid, 'execute')
    and has_schema_privilege(%(role)s, ours.oid, 'usage')
union all select 'function', oid::regprocedure::text, 'execute' from pg_proc
    where (proname ~ 'advisory' or proname ~ '^lo_creat' or proname = 'lo_from_bytea')
    and has_function_privilege(%(role)s, oid, 'execute')
"""
OF_READERS = {
    ("schema", "predictions", "usage"),
    ("relation", "predictions.churn", "select"),
    ("relation", "predictions.churn_latest", "select"),
    ("relation", "predictions.publications", "select"),
    ("function", "predictions.pseudonym(text)", "execute"),
}
OF_AUDITORS = {
    ("schema", "predictions", "usage"),
    ("function", "predictions.pseudonym(text)", "execute"),
    ("function", "predictions.receipt(text,text,date,text,jsonb)", "execute"),
}


def rights(connection: Connection, role: str) -> set[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(RIGHTS, {"role": role})
        return set(cursor.fetchall())


def test_readers_may_read_what_is_published_and_nothing_else(night: Night) -> None:
    with closing(psycopg2.connect(night.settings.warehouse_url)) as connection:
        assert rights(connection, READER) == OF_READERS
        assert rights(connection, "nightshift_auditor") == OF_AUDITORS
        with connection.cursor() as cursor:
            # what a run makes tomorrow, in any schema or in one of its own; all rolled back
            cursor.execute("select count(*) from pg_default_acl")
            assert cursor.fetchone() == (0,)
            cursor.execute("create schema tomorrow")
            cursor.execute(
                "select nspname from pg_namespace where nspname !~ '^pg_'"
                " and nspname not in ('information_schema', 'public')"
            )
            schemas = {schema for (schema,) in cursor.fetchall()}
            assert {"raw", "quarantine", "ops", "staging", "marts", "studies"} < schemas
            for schema in schemas:
                cursor.execute(f"create table {schema}.tomorrow (id bigserial)")
            assert rights(connection, READER) == OF_READERS
            # the guard can fail
            cursor.execute("grant select (id) on marts.tomorrow to public")
            cursor.execute("create function predictions.slip() returns int return 1")
            assert rights(connection, READER) - OF_READERS == {
                ("relation", "marts.tomorrow", "select"),
                ("function", "predictions.slip()", "execute"),
            }


def test_a_reader_that_tries_is_refused(night: Night) -> None:
    relations = query(
        night.settings.warehouse_url,
        "select quote_ident(nspname) || '.' || quote_ident(relname) from pg_class c"
        " join pg_namespace n on n.oid = relnamespace where relkind in ('r', 'v', 'm', 'p', 'S')"
        " and nspname !~ '^pg_' and nspname <> %s",
        "information_schema",
    )
    seen = {name for kind, name, _ in OF_READERS if kind == "relation"}
    tried = [f"select 1 from {name}" for (name,) in relations if name not in seen]
    assert len(tried) > 30
    tried += [
        "delete from predictions.churn_latest", "update predictions.churn_latest set band = ''",
        "insert into predictions.churn_latest default values",
        "truncate predictions.churn_publications_data",
        "create table predictions.mine ()", "create table public.mine ()",
        "create temporary table mine ()", "create schema mine",
        "select pg_advisory_lock(1)", "select lo_create(0)",
        "select predictions.receipt('churn', '')", "select ops.pseudonym('', '', '')",
        "set role nightshift_writer", "set session authorization nightshift_writer",
        "copy (select 1) to program 'true'", "select pg_read_file('postgresql.conf')",
        "create role mine", "alter role nightshift_reader superuser",
        "comment on view predictions.churn is ''", "drop view predictions.churn",
    ]  # fmt: skip
    with closing(psycopg2.connect(night.settings.reader_url)) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            for statement in tried:
                with pytest.raises(InsufficientPrivilege):
                    cursor.execute(statement)


def test_the_roles_of_the_pipeline_are_ordinary_ones(night: Night) -> None:
    roles = query(
        night.settings.warehouse_url,
        "select rolname, rolcanlogin, rolsuper or rolcreaterole or rolcreatedb or rolreplication"
        " or rolbypassrls, (select count(*) from pg_auth_members where member = r.oid)"
        " from pg_roles r where rolname like %s order by 1",
        "nightshift%",
    )
    assert roles == [
        ("nightshift_auditor", False, False, 0),
        ("nightshift_reader", True, False, 0),
        ("nightshift_writer", True, False, 0),
    ]
    # what runs as its owner, whoever calls it, finds nothing by a search path that the caller sets
    assert query(
        night.settings.warehouse_url,
        "select oid::regprocedure::text, proconfig, proacl::text like %s from pg_proc"
        " where prosecdef and pronamespace::regnamespace::text !~ '^pg_' order by 1",
        "{nightshift_writer=X/%",
    ) == [
        ("predictions.pseudonym(text)", ["search_path=pg_catalog, pg_temp"], True),
        (
            "predictions.receipt(text,text,date,text,jsonb)",
            ["search_path=pg_catalog, pg_temp"],
            True,
        ),
    ]
