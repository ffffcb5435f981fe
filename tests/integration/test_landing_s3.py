"""The landing zone in a bucket, against a real S3 API: moto's server."""

import contextlib
import csv
import gzip
import io
import os
import socket
import socketserver
import threading
import urllib.request
from collections.abc import Iterator
from datetime import date
from typing import TYPE_CHECKING, Any

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from moto.core import DEFAULT_ACCOUNT_ID
from moto.s3.models import s3_backends
from moto.server import ThreadedMotoServer

from nightshift import doctor
from nightshift.erasure.run import begin, erase_landed
from nightshift.errors import ContractError, SettingError
from nightshift.ingest.run import ingest
from nightshift.io.landing import Entry, S3LandingZone, zone_at
from nightshift.io.warehouse import connect
from nightshift.orchestration import missing_landings
from nightshift.services.postgres import free_port
from nightshift.settings import Settings, load_settings

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

BUCKET, URL = "landing", "s3://landing/shop/files"
FOLDER = "shop/files/order_lines"
HEADER = "Invoice,StockCode,Description,Quantity,InvoiceDate,Price,Customer ID,Country\n"
AS_OF = date(2024, 1, 10)
ERASED = "9,85048,BALL,12,2024-01-01 07:45:00,6.95,777,EIRE\n"


def line(invoice: int, day: str = "01") -> str:
    return f"{invoice},85048,BALL,12,2024-01-{day} 07:45:00,6.95,13085,EIRE\n"


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The endpoint of a running S3 server, for the session."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator["S3Client"]:
    """A client of the server with an empty bucket; boto3's settings lead there."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in {
        "AWS_ENDPOINT_URL_S3": s3_server,
        "AWS_ACCESS_KEY_ID": "only",
        "AWS_SECRET_ACCESS_KEY": "for-tests",
        "AWS_DEFAULT_REGION": "eu-west-1",
        "AWS_MAX_ATTEMPTS": "2",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }.items():
        monkeypatch.setenv(name, value)
    reset(s3_server, "reset")
    client = boto3.client("s3")
    client.create_bucket(
        Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": "eu-west-1"}
    )
    yield client
    client.close()
    reset(s3_server, "reset-auth", b"inf")


def reset(server: str, what: str, body: bytes = b"") -> None:
    request = urllib.request.Request(
        f"{server}/moto-api/{what}", body, {"Content-Type": "text/plain"}
    )
    urllib.request.urlopen(request).close()


def put(s3: "S3Client", key: str, content: str | bytes) -> None:
    body = content.encode() if isinstance(content, str) else content
    s3.put_object(Bucket=BUCKET, Key=key, Body=body)


def on_s3(warehouse: Settings, landing: str = URL) -> Settings:
    return warehouse.model_copy(update={"landing": landing})


def query(settings: Settings, sql: str) -> list[tuple[Any, ...]]:
    with connect(settings) as connection, connection.cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchall()


def test_ingest_from_a_bucket(warehouse: Settings, s3: "S3Client") -> None:
    settings = on_s3(warehouse)
    sink = pa.BufferOutputStream()
    columns = HEADER.strip().split(",")
    values = [pa.array([value]) for value in line(4).strip().split(",")]
    pq.write_table(pa.table(values, names=columns), sink)
    put(s3, f"{FOLDER}/ds=2024-01-01/a.csv", HEADER + line(1) + "broken\n")
    put(s3, f"{FOLDER}/ds=2024-01-01/b.csv.gz", gzip.compress((HEADER + line(2)).encode()))
    put(s3, f"{FOLDER}/ds=2024-01-01/c.jsonl", '{"Invoice": 1}\n')
    put(s3, f"{FOLDER}/ds=2024-01-01/d.parquet", bytes(sink.getvalue()))
    put(s3, f"{FOLDER}/ds=2024-01-02/", b"")
    put(s3, f"{FOLDER}/ds=2024-01-02/it's 100%25 a+b ünï.csv", HEADER + line(5))
    put(s3, f"{FOLDER}/ds=2024-01-02/_part.csv", "half a fi")
    put(s3, f"{FOLDER}/ds=2024-01-10/later.csv", HEADER + line(6))
    put(s3, "elsewhere/order_lines/ds=2024-01-01/x.csv", HEADER + line(7))

    result = ingest(settings, AS_OF)

    assert (result.files_loaded, result.rows_loaded, result.rows_quarantined) == (5, 4, 2)
    invoices = "select invoice from raw.order_lines order by 1"
    assert query(settings, invoices) == [("1",), ("2",), ("4",), ("5",)]
    assert ("order_lines/ds=2024-01-02/it's 100%25 a+b ünï.csv", 1) in query(
        settings, "select path, rows_loaded from ops.landing_files"
    )
    assert ingest(settings, AS_OF).files_loaded == 0

    put(s3, f"{FOLDER}/ds=2024-01-01/a.csv", HEADER + line(8))
    assert ingest(settings, AS_OF).rows_loaded == 1
    assert query(settings, invoices) == [("2",), ("4",), ("5",), ("8",)]
    statuses = "select status from ops.landing_files where path like '%/a.csv' order by file_id"
    assert query(settings, statuses) == [("replaced",), ("loaded",)]

    (check,) = [each for each in doctor.check(settings) if each.name == "landing zone"]
    assert (check.is_ok, check.detail) == (True, f"3 landed days in {URL}")
    sources = ("order_lines", "chargebacks")
    assert missing_landings(URL, sources, AS_OF) == [f"{s}/ds=2024-01-09" for s in sources]
    put(s3, f"{FOLDER}/ds=2024-01-09/_part.csv", "half a fi")
    put(s3, "shop/files/chargebacks/ds=2024-01-09/a.csv", "")
    assert missing_landings(URL, sources, AS_OF) == ["order_lines/ds=2024-01-09"]


@pytest.mark.usefixtures("registry_of_churn")
def test_keys_lead_nowhere(warehouse: Settings, s3: "S3Client") -> None:
    put(s3, f"{FOLDER}/ds=2024-01-01/good.csv", HEADER + line(1))
    put(s3, f"{FOLDER}/ds=2024-01-01/%2e%2e%2fa.csv", HEADER + line(2))
    for number, key in enumerate(
        ("ds=2024-01-01/../x.csv", "../ds=2024-01-02/x.csv", "/x.csv", "ds=2024-01-01//x.csv",
         "ds=2024-01-01/..\\x.csv", "ds=2024-01-01/x\u202ev.csv", "ds=2024-01-01/deep/x.csv",
         "ds=2024-01-03", "x.csv")
    ):  # fmt: skip
        put(s3, f"{FOLDER}/{key}", HEADER + line(10 + number))

    with pytest.raises(ContractError) as refusal:
        ingest(on_s3(warehouse), AS_OF)

    assert query(warehouse, "select invoice from raw.order_lines order by 1") == [("1",), ("2",)]
    assert refusal.value.what.startswith("9 of what landed before 2024-01-10 is refused")
    for shown in ("ds=2024-01-01/'..':", "ds=2024-01-01/'':", "order_lines/'':", "x\\u202ev"):
        assert shown in refusal.value.what


def test_over_a_page_of_keys(s3: "S3Client") -> None:
    # put past HTTP, which would take seconds; read over it
    bucket = s3_backends[DEFAULT_ACCOUNT_ID]["aws"]
    for number in range(1005):
        bucket.put_object(BUCKET, f"many/order_lines/ds=2024-01-01/{number:04}.csv", b"")

    entries = zone_at(f"s3://{BUCKET}/many").entries("order_lines/ds=2024-01-01")

    assert [entry.name for entry in entries] == [f"{number:04}.csv" for number in range(1005)]


class CuttingProxy(socketserver.ThreadingTCPServer):
    """Before the S3 server: breaks the first connections off in the middle of what they answer."""

    daemon_threads = True

    def __init__(self, endpoint: str, cuts: int, after_bytes: int) -> None:
        super().__init__(("127.0.0.1", 0), _Forward)
        host, port = endpoint.removeprefix("http://").split(":")
        self.target = (host, int(port))
        self.cuts_left, self.after_bytes = cuts, after_bytes
        self.lock = threading.Lock()


class _Forward(socketserver.BaseRequestHandler):
    server: CuttingProxy

    def handle(self) -> None:
        with socket.create_connection(self.server.target) as upstream:
            back = threading.Thread(target=self._answer, args=(upstream,), daemon=True)
            back.start()
            with contextlib.suppress(OSError):
                while sent := self.request.recv(65_536):
                    upstream.sendall(sent)
            with contextlib.suppress(OSError):
                upstream.shutdown(socket.SHUT_RDWR)
            back.join()

    def _answer(self, upstream: socket.socket) -> None:
        passed = 0
        with contextlib.suppress(OSError):
            while got := upstream.recv(65_536):
                passed += len(got)
                with self.server.lock:
                    is_cut = passed > self.server.after_bytes and self.server.cuts_left > 0
                    self.server.cuts_left -= is_cut
                if is_cut:
                    break
                self.request.sendall(got)
            self.request.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("mebibytes", [2, 20])
def test_a_download_that_breaks_off_is_taken_up_again(
    s3: "S3Client", s3_server: str, monkeypatch: pytest.MonkeyPatch, mebibytes: int
) -> None:
    """20 MiB come in parts, 2 MiB in one."""
    content = os.urandom(1 << 20) * mebibytes
    put(s3, f"{FOLDER}/ds=2024-01-01/a.csv", content)
    proxy = CuttingProxy(s3_server, cuts=2, after_bytes=1 << 20)
    thread = threading.Thread(target=proxy.serve_forever)
    thread.start()
    host, port = proxy.server_address[:2]
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://{host!s}:{port}")
    try:
        with S3LandingZone(URL).fetched("order_lines/ds=2024-01-01/a.csv") as file:
            assert file.read_bytes() == content
    finally:
        proxy.shutdown()
        thread.join()
        proxy.server_close()

    assert proxy.cuts_left == 0
    assert not file.exists()


def test_a_large_object_is_ingested_in_parts(warehouse: Settings, s3: "S3Client") -> None:
    text = io.StringIO()
    csv.writer(text).writerow(HEADER.strip().split(","))
    text.write("".join(line(1).replace("BALL", "x" * 900) for _ in range(18_000)))
    put(s3, f"{FOLDER}/ds=2024-01-01/a.csv", text.getvalue())
    assert len(text.getvalue()) > 16 << 20

    assert ingest(on_s3(warehouse), AS_OF).rows_loaded == 18_000


def test_an_object_that_is_gone_is_refused_alone(s3: "S3Client") -> None:
    with (
        pytest.raises(ContractError, match=r"order_lines/x\.csv: it is gone"),
        S3LandingZone(URL).fetched("order_lines/x.csv"),
    ):
        pass


def test_a_bucket_that_is_not_there(warehouse: Settings, s3: "S3Client") -> None:
    settings = on_s3(warehouse, "s3://no-such-bucket/x")

    with pytest.raises(SettingError, match="s3://no-such-bucket/x does not answer") as refusal:
        ingest(settings, AS_OF)

    assert "NIGHTSHIFT_LANDING" in refusal.value.remedy
    (check,) = [each for each in doctor.check(settings) if each.name == "landing zone"]
    assert (check.is_ok, "NIGHTSHIFT_LANDING" in check.remedy) == (False, True)


def test_wrong_credentials(warehouse: Settings, s3: "S3Client", s3_server: str) -> None:
    put(s3, f"{FOLDER}/ds=2024-01-01/a.csv", HEADER + line(1))
    reset(s3_server, "reset-auth", b"0")

    with pytest.raises(SettingError, match="InvalidAccessKeyId") as refusal:
        ingest(on_s3(warehouse), AS_OF)

    assert "AWS_ACCESS_KEY_ID" in refusal.value.remedy
    assert query(warehouse, "select count(*) from ops.landing_files") == [(0,)]


def test_no_credentials(s3: "S3Client", monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")

    with pytest.raises(SettingError, match="credentials"):
        zone_at(URL).entries("order_lines")


def test_an_endpoint_that_is_down(s3: "S3Client", monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{free_port(17000)}")

    with pytest.raises(SettingError, match="does not answer: Could not connect") as refusal:
        zone_at(URL).entries("order_lines")

    assert "AWS_ENDPOINT_URL_S3" in refusal.value.remedy


def test_an_empty_bucket_has_no_folder(warehouse: Settings, s3: "S3Client") -> None:
    with pytest.raises(SettingError, match=f"no folder {URL}/order_lines"):
        ingest(on_s3(warehouse), AS_OF)

    put(s3, "order_lines/ds=2024-01-01/a.csv", HEADER + line(1))
    assert zone_at("s3://landing").entries("") == [Entry("order_lines", is_folder=True)]
    assert ingest(on_s3(warehouse, "s3://landing"), AS_OF).rows_loaded == 1


@pytest.mark.parametrize(
    "landing", ["s3://", "s3://UPPER/x", "s3:///x", "S3://bucket/x", "s3:/bucket/x", "gs://b/x"]
)
def test_what_is_no_bucket_is_refused_by_the_setting(landing: str) -> None:
    with pytest.raises(SettingError, match=r"NIGHTSHIFT_LANDING.*expected a folder, or s3://"):
        load_settings(_env_file=None, landing=landing)


def test_a_bucket_as_setting() -> None:
    assert load_settings(_env_file=None, landing="s3://bucket/a/b/").landing == "s3://bucket/a/b"
    assert load_settings(_env_file=None, landing="s3://bucket").landing == "s3://bucket"


def test_a_person_is_erased_from_the_bucket(warehouse: Settings, s3: "S3Client") -> None:
    """Objects are replaced whole; one that holds nobody else is removed."""
    in_bucket = warehouse.model_copy(update={"landing": URL})
    put = s3.put_object
    put(Bucket=BUCKET, Key=f"{FOLDER}/ds=2024-01-01/a.csv", Body=HEADER + line(1) + ERASED)
    put(Bucket=BUCKET, Key=f"{FOLDER}/ds=2024-01-02/a.csv", Body=HEADER + line(2, "02"))
    put(Bucket=BUCKET, Key=f"{FOLDER}/ds=2024-01-02/b.jsonl", Body='{"Customer ID": "777"}\n')
    untouched = s3.head_object(Bucket=BUCKET, Key=f"{FOLDER}/ds=2024-01-02/a.csv")["LastModified"]

    erasure = begin(in_bucket, [], "777")
    erase_landed(in_bucket, erasure)

    assert erasure.removed["landing order_lines"] == 2
    body = s3.get_object(Bucket=BUCKET, Key=f"{FOLDER}/ds=2024-01-01/a.csv")["Body"].read()
    assert body.decode() == HEADER + line(1)
    keys = [item["Key"] for item in s3.list_objects_v2(Bucket=BUCKET)["Contents"]]
    assert keys == [f"{FOLDER}/ds=2024-01-01/a.csv", f"{FOLDER}/ds=2024-01-02/a.csv"]
    head = s3.head_object(Bucket=BUCKET, Key=f"{FOLDER}/ds=2024-01-02/a.csv")
    assert head["LastModified"] == untouched
