"""The job on a Spark cluster, one worker of which is killed: the same bytes as on one machine."""

import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import psutil
import pyspark
import pytest

from nightshift.errors import SettingError
from nightshift.features.extract_run import extract
from nightshift.features.run import build_training_set
from nightshift.io import lake
from nightshift.io.spark import spark_session
from nightshift.io.warehouse import connect
from nightshift.settings import Settings
from nightshift.use_cases import CHURN

AS_OF = date(2011, 12, 1)
WORKER_MEMORY = ("600m", "1g")
WAIT_SECONDS = 60


@dataclass(frozen=True)
class Cluster:
    """A running Spark standalone cluster: its URL, and the process of each worker."""

    url: str
    workers: tuple[psutil.Process, ...]


def spark_process(folder: Path, name: str, *arguments: str) -> psutil.Process:
    """Start one of Spark's own servers on loopback; its output goes to ``<folder>/<name>.log``."""
    environment = os.environ | {
        "SPARK_LOCAL_IP": "127.0.0.1",
        "SPARK_DAEMON_MEMORY": "128m",
        "SPARK_MASTER_OPTS": "-Dspark.master.rest.enabled=false",
    }
    command = [str(Path(pyspark.__file__).parent / "bin" / "spark-class"), *arguments]
    with (folder / f"{name}.log").open("wb") as log:
        return psutil.Popen(
            command, env=environment, cwd=folder, stdout=log, stderr=subprocess.STDOUT
        )


def waited_for(file: Path, words: str) -> str:
    """The rest of the line in which the log says ``words``."""
    deadline = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < deadline:
        _, found, rest = file.read_text(errors="replace").partition(words)
        if found and "\n" in rest:
            return rest.splitlines()[0].strip()
        time.sleep(0.05)
    raise AssertionError(f"{file.name} does not say {words!r}: {file.read_text()[-2_000:]}")


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """A master and two workers of one core each, with different memory, on free ports."""
    deploy = "org.apache.spark.deploy"
    loopback = ("--host", "127.0.0.1", "--port", "0", "--webui-port", "0")
    started = [spark_process(tmp_path, "master", f"{deploy}.master.Master", *loopback)]
    try:
        url = waited_for(tmp_path / "master.log", "Starting Spark master at ")
        for number, memory in enumerate(WORKER_MEMORY):
            worker = (f"{deploy}.worker.Worker", *loopback, "--cores", "1", "--memory", memory)
            folder = ("--work-dir", str(tmp_path / f"worker-{number}"))
            started.append(spark_process(tmp_path, f"worker-{number}", *worker, *folder, url))
        for number in range(len(WORKER_MEMORY)):
            waited_for(tmp_path / f"worker-{number}.log", "Successfully registered with master")
        yield Cluster(url, tuple(started[1:]))
    finally:
        for process in started:
            with suppress(psutil.NoSuchProcess):
                family = [*process.children(recursive=True), process]
                for each in family:
                    with suppress(psutil.NoSuchProcess):
                        each.kill()
                psutil.wait_procs(family, timeout=10)


def killed_while_writing(worker: psutil.Process) -> bool:
    """SIGKILL to a worker, its executor and all, if a Python worker has begun a part just now."""
    family = [worker, *worker.children(recursive=True)]
    writers = [process for process in family if process.name().startswith("python")]
    with suppress(psutil.NoSuchProcess):
        for writer in writers:
            writer.suspend()
        is_writing = any(
            Path(file.path).name.startswith(".part-") for w in writers for file in w.open_files()
        )
        for process in family if is_writing else ():
            process.kill()
        for writer in () if is_writing else writers:
            writer.resume()
        return is_writing
    return False


@pytest.fixture
def mart(empty_mart: Settings) -> Settings:
    """30,000 lines of 1,000 customers, from all days of 15 months."""
    with connect(empty_mart) as connection:
        connection.cursor().execute(
            "insert into marts.fct_order_lines select '1:' || n, 'I' || n / 3, n % 11 = 0,"
            " 'P' || n % 37, true, 'x', 1 + n % 5, 2.55, 2.55 * (1 + n % 5), at, at::date,"
            " 'C' || n * 7919 % 1009, 'France', at::date from (select n, timestamp '2010-09-01' +"
            " n * interval '1308 s' as at from generate_series(0, 29999) as n) as lines;"
            " insert into marts.fct_landed_days select 'order_lines', landed_date, count(*), '1'"
            " from marts.fct_order_lines group by landed_date"
        )
    return empty_mart


def test_a_master_that_there_is_not_is_named(warehouse: Settings) -> None:
    nowhere = warehouse.model_copy(update={"spark_master": "nonsense://nowhere:7077"})
    with spark_session(warehouse, "somewhere"):
        pass  # where Spark has not run before, PySpark would leave a pipe open

    with (
        pytest.raises(SettingError, match="NIGHTSHIFT_SPARK_MASTER=nonsense://nowhere:7077"),
        spark_session(nowhere, "nowhere"),
    ):
        raise AssertionError("there is no such session")


def test_a_worker_killed_in_mid_job_changes_no_byte(mart: Settings, cluster: Cluster) -> None:
    extract(mart, [CHURN], AS_OF)
    alone = mart.model_copy(update={"spark_master": "local[2]", "lake": mart.lake_dir / "alone"})
    shutil.copytree(mart.lake_dir / "events", alone.lake_dir / "events")
    reference = build_training_set(alone, CHURN, AS_OF)
    many = mart.model_copy(
        update={
            "spark_master": cluster.url,
            "spark_driver_host": "127.0.0.1",
            "spark_executor_memory": "512m",
        }
    )
    folder = lake.dataset_dir(many.lake_dir, "training", CHURN.name, AS_OF)
    parts_at_kill: list[str] = []

    def kill_a_worker() -> None:
        deadline = time.monotonic() + WAIT_SECONDS
        while time.monotonic() < deadline:
            parts = [part.name for part in folder.parent.glob(".as_of=*/part-*")]
            if parts and killed_while_writing(cluster.workers[1]):
                parts_at_kill.extend(parts)
                return
            time.sleep(0.005)

    killer = threading.Thread(target=kill_a_worker)
    killer.start()
    result = build_training_set(many, CHURN, AS_OF)
    killer.join()

    expected, found = (lake.read_manifest(each.folder) or {} for each in (reference, result))
    assert 0 < len(parts_at_kill) < len(found["parts"])
    assert {name: found[name] for name in ("sha256", "parts", "rows", "key")} == {
        name: expected[name] for name in ("sha256", "parts", "rows", "key")
    }
    assert {file.name for file in folder.iterdir()} == {lake.MANIFEST, *found["parts"]}
    for name in found["parts"]:
        assert (folder / name).read_bytes() == (reference.folder / name).read_bytes()
