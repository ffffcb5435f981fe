"""The stack that the tests on a running Airflow share: a landing zone, champions, REST."""

import csv
import gzip
import io
import time
import urllib.error
import urllib.request
from contextlib import closing
from dataclasses import dataclass
from datetime import date
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from small_models import ABOVE, TOLD_BY, register

from nightshift.demo_data.run import write_landing
from nightshift.io import model_store
from nightshift.services import airflow
from nightshift.services import run as services
from nightshift.settings import Settings
from nightshift.use_cases import CHURN, USE_CASES

TRAINED = "2025-12-31"
BAD_DAYS = ("2026-01-08", "2026-01-22")
"""On which prices and amounts land a hundred times too high: no use case has what it reads."""
SPOILED = {"order_lines": "Price", "card_transactions": "amount"}
"""Source → the column that is spoiled on bad days."""
RUN_SECONDS = 600


@dataclass(frozen=True)
class Stack:
    """A running stack with a landing zone and a champion; ``call`` is one REST call.

    ``right_files`` are what should have landed on the bad days: by path in the landing zone.
    """

    settings: Settings
    url: str
    token: str
    right_files: dict[str, bytes]

    def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        status, answer = airflow.request(self.url, method, f"/api/v2{path}", body, self.token)
        return status, answer

    def page(self, url: str, token: str) -> tuple[int, str]:
        """A page of a plugin."""
        request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, ""

    def trigger(self, run_id: str, dag_id: str = "nightly", **body: Any) -> tuple[int, Any]:
        """Start a run; ``body`` is what the request says beside its id."""
        given = {"dag_run_id": run_id, "logical_date": None, **body}
        status, answer = self.call("POST", f"/dags/{dag_id}/dagRuns", given)
        return status, answer

    def notes(self, run_id: str, dag_id: str = "nightly") -> dict[str, str]:
        """Each task's note, once all that have run have theirs: they are written after the end."""
        deadline = time.monotonic() + 30
        while True:
            _, answer = self.call("GET", f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances")
            tasks = [t for t in answer["task_instances"] if t["state"] in ("success", "failed")]
            if all(task["note"] for task in tasks) or time.monotonic() > deadline:
                return {task["task_id"]: task["note"] for task in tasks}
            time.sleep(0.2)

    def published(self) -> dict[str, int]:
        """Rows a date, as the reader's role sees them; {} before the first publication."""
        with (
            closing(psycopg2.connect(self.settings.reader_url)) as connection,
            connection.cursor() as cursor,
        ):
            cursor.execute("select to_regclass('predictions.churn')")
            if cursor.fetchone() == (None,):
                return {}
            cursor.execute("select as_of::text, count(*) from predictions.churn group by 1")
            return dict(cursor.fetchall())

    def tasks(self, run_id: str, dag_id: str = "nightly") -> dict[str, str]:
        _, answer = self.call("GET", f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances")
        return {task["task_id"]: task["state"] for task in answer["task_instances"]}

    def wait(self, run_id: str, dag_id: str = "nightly") -> str:
        """The state in which the run ended."""
        deadline = time.monotonic() + RUN_SECONDS
        while time.monotonic() < deadline:
            _, answer = self.call("GET", f"/dags/{dag_id}/dagRuns/{run_id}")
            if answer["state"] in ("success", "failed"):
                return str(answer["state"])
            time.sleep(0.5)
        raise AssertionError(f"{run_id} has not ended: {self.tasks(run_id, dag_id)}")

    def query(self, sql: str, *values: object) -> list[tuple[Any, ...]]:
        """Rows of the warehouse, as its writer sees them."""
        with (
            closing(psycopg2.connect(self.settings.warehouse_url)) as connection,
            connection.cursor() as cursor,
        ):
            cursor.execute(sql, values)
            return cursor.fetchall()

    def register(self, root: Path) -> str:
        """Register one more small model. Its version."""
        return register(self.settings, CHURN, root, TOLD_BY["churn"], TRAINED)


def spoil(path: Path, column: str) -> bytes:
    """Land values 100 times too high; the answer is the file as it should have been."""
    right = path.read_bytes()
    rows = list(csv.DictReader(io.StringIO(gzip.decompress(right).decode())))
    assert len(rows) >= 50  # fewer, and chance alone moves the median
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({**row, column: times_100(row[column])} for row in rows)
    path.write_bytes(gzip.compress(out.getvalue().encode()))
    return right


def times_100(price: str) -> str:
    try:
        return str(Decimal(price) * 100)
    except InvalidOperation:
        return price  # one of the lines that are broken on purpose


@pytest.fixture(scope="session")
def stack(airflow_stack: Settings, tmp_path_factory: pytest.TempPathFactory) -> Stack:
    write_landing(
        airflow_stack.landing,
        customers=400,
        start=date(2025, 6, 1),
        end=date(2026, 3, 31),
        lines=18_000,
        card_holders=200,
    )
    right = {
        path: spoil(airflow_stack.landing_folder / path, column)
        for day in BAD_DAYS
        for source, column in SPOILED.items()
        for path in [f"{source}/ds={day}/{source}.csv.gz"]
    }
    for use_case in USE_CASES:
        version = register(
            airflow_stack, use_case, tmp_path_factory.mktemp("model"), TOLD_BY[use_case.name],
            TRAINED, above=ABOVE.get(use_case.name, 90),
        )  # fmt: skip
        model_store.set_alias(airflow_stack, use_case.name, model_store.CHAMPION, version)
    url, username, password = services.airflow_login(airflow_stack)
    assert password is not None
    token = airflow.log_in(url, username, password)
    assert token is not None
    found = Stack(airflow_stack, url, token, right)
    deadline = time.monotonic() + 120
    for dag_id in ("nightly", "nightly_of_two", "train__asked"):
        while found.call("GET", f"/dags/{dag_id}")[0] != 200:
            assert time.monotonic() < deadline, f"the DAG processor has not loaded {dag_id}"
            time.sleep(0.5)
    return found
