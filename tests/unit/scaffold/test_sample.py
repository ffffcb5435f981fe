"""What a sample tells, and samples that are refused."""

import gzip
from datetime import datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nightshift.errors import NightshiftError
from nightshift.scaffold.run import look_at_sample
from nightshift.scaffold.sample import Choices, Inferred, snake_case

READINGS = """\
Reading ID,MachineID,Read At,Temperature,Count,Comment,Operator e-mail
R1,007,2025-01-01 06:00:00,61.25,3,,a@example.com
R2,007,2025-01-01 18:00:00,-2.5,12,runs hot,b@example.com
R3,008,2025-01-01 06:00:00,60,1,,a@example.com
"""


def look(folder: Path, text: str, chosen: Choices | None = None, name: str = "s.csv") -> Inferred:
    sample = folder / name
    sample.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return look_at_sample("sensor_readings", sample, chosen or Choices())


@pytest.mark.parametrize("name", ["s.csv", "s.csv.gz"])
def test_names_types_key_event_time_and_personal_data(tmp_path: Path, name: str) -> None:
    found = look(tmp_path, READINGS, name=name)

    assert [(c.name, c.sql_type, c.required, c.is_pii) for c in found.columns] == [
        ("reading_id", "text", True, False),
        ("machine_id", "text", True, False),
        ("read_at", "timestamp", True, False),
        ("temperature", "numeric(18,4)", True, False),
        ("count", "integer", True, False),
        ("comment", "text", False, False),
        ("operator_e_mail", "text", True, True),
    ]
    assert (found.key, found.event_time, found.rows) == (("reading_id",), "read_at", 3)
    assert found.nulls["comment"] == 2
    assert found.ranges == {"temperature": (-2.5, 61.25), "count": (1, 12)}


def test_what_is_chosen_is_not_inferred(tmp_path: Path) -> None:
    chosen = Choices(
        key=("MachineID", "read_at"),
        pii=(),
        columns=("MachineID", "Read At", "Count"),
        names={"Count": "parts_made"},
    )
    found = look(tmp_path, READINGS, chosen)

    assert found.key == ("machine_id", "read_at")
    assert [column.name for column in found.columns] == ["machine_id", "read_at", "parts_made"]
    assert found.leaves_out == ("Reading ID", "Temperature", "Comment", "Operator e-mail")


def test_the_instant_is_part_of_the_key_of_attributes(tmp_path: Path) -> None:
    text = "machine_id,valid_from\nM1,2025-01-01 00:00:00\nM2,2025-01-01 00:00:00\n"

    assert look(tmp_path, text).key == ("machine_id",)
    assert look(tmp_path, text, Choices(has_versions=True)).key == ("machine_id", "valid_from")


def test_rows_without_an_id_have_no_key(tmp_path: Path) -> None:
    assert look(tmp_path, "read_at,heat\n2025-01-01 00:00:00,1\n2025-01-01 00:00:00,1\n").key == ()


def test_json_lines_and_parquet_are_read_as_they_land(tmp_path: Path) -> None:
    lines = (
        '{"id": "a", "at": "2025-01-01 00:00:00"}\n'
        '{"id": "b", "at": "2025-01-02 00:00:00", "heat": 1.5}\n'
    )
    found = look(tmp_path, lines, name="s.jsonl")
    assert [(c.name, c.kind, c.required) for c in found.columns] == [
        ("id", "string", True),
        ("at", "timestamp", True),
        ("heat", "number", False),
    ]

    pq.write_table(
        pa.table({"id": [1, 2], "at": [datetime(2025, 1, 1, 6), datetime(2025, 1, 2)]}),  # noqa: DTZ001
        tmp_path / "s.parquet",
    )
    found = look_at_sample("sensor_readings", tmp_path / "s.parquet", Choices())
    assert [(c.name, c.kind) for c in found.columns] == [("id", "string"), ("at", "timestamp")]


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (("1", "-20"), "integer"),
        (("1", "1234567890"), "bigint"),
        (("007", "12"), "text"),
        (("1.5", "2"), "numeric(18,4)"),
        (("1.123456", "2"), "numeric(30,16)"),
        (("1e5", "2"), "text"),
        (("true", "false"), "text"),
        (("", ""), "text"),
    ],
)
def test_types(tmp_path: Path, values: tuple[str, str], kind: str) -> None:
    rows = "".join(f"{n},2025-01-0{n} 00:00:00,{value}\n" for n, value in enumerate(values, 1))
    found = look(tmp_path, f"id,at,value\n{rows}")
    assert found.columns[2].sql_type == kind


@pytest.mark.parametrize(
    ("landed", "name"),
    [("Customer ID", "customer_id"), ("StockCode", "stock_code"), ("°C (max)", "c_max")],
)
def test_names_are_made_snake_case(landed: str, name: str) -> None:
    assert snake_case(landed) == name


WIDE = ",".join(f"c{n}" for n in range(1000))


@pytest.mark.parametrize(
    ("text", "chosen", "what", "remedy"),
    [
        ("", {}, "the file is empty, without even a header", "a header and some days of rows"),
        ("id,at\n", {}, "a header and no rows", "some days of rows"),
        (
            "M1,2025-01-01 00:00:00\nM2,2025-01-02 00:00:00\n", {},
            "no header: column 2 is '2025-01-01 00:00:00'", "names into the first row",
        ),
        ("id,17.5\nM1,2\n", {}, "no header: column 2 is '17.5'", "names into the first row"),
        ("id,at,id\n1,2,3\n", {}, "the header names 'id' twice", "a name of its own"),
        (f"{WIDE}\n{WIDE}\n", {}, "1000 columns, from 'c0' to 'c999'", "--columns a,b,c"),
        ("id,Order\n1,2\n", {}, "column 'Order': 'order' is a reserved word", "--rename 'Order=…'"),
        ("id,温度\n1,2\n", {}, "column '温度': '' is not lower-case", "--rename '温度=…'"),
        ("id,class\n1,2\n", {}, "'class' is a reserved word of Python", "--rename 'class=…'"),
        ("id,A b,a_b\n1,2,3\n", {}, "the name 'a_b' is another column's", "--rename 'a_b=…'"),
        ("id,landed_date\n1,2\n", {}, "'landed_date' is the engine's own", "--rename"),
        (READINGS, {"names": {"Heat": "heat"}}, "there is no column 'Heat'", "Reading ID"),
        (READINGS, {"columns": ("Heat",)}, "there is no column 'Heat'", "Reading ID"),
        (READINGS, {"key": ("machine_id",)}, "rows 1 and 2 have the same key", "--without-key"),
        (READINGS, {"key": ("comment",)}, "row 1, column 'Comment': a column of the key is empty",
         "--key"),
        (READINGS, {"key": ("heat",)}, "--key heat: there is no such column", "reading_id"),
        (READINGS, {"event_time": "comment"}, "row 1, column 'Comment': no instant", "--event"),
        ("id,day\n1,2025-01-01\n", {}, "HH:MM:SS; 'day' holds '2025-01-01'", "in that form"),
        ("id,at\n1,2025-01-01 00:00:00\n2,\n", {}, "'at' is empty in row 2", "that form"),
        ("id,at\n1,2\n1\n", {}, "row 2: expected 2 fields, found 1", "correct or remove that row"),
        ('id,at\n1,"2\n', {}, "is never closed", "correct the quoting"),
    ],
)  # fmt: skip
def test_a_sample_that_is_refused(
    tmp_path: Path, text: str, chosen: dict[str, object], what: str, remedy: str
) -> None:
    with pytest.raises(NightshiftError) as refused:
        look(tmp_path, text, Choices(**chosen))  # type: ignore[arg-type]

    assert what in refused.value.what
    assert remedy in refused.value.remedy
    assert "s.csv" in refused.value.what


@pytest.mark.parametrize("name", ["Order", "select", "import", "a-b", "1st", "x" * 41, "", "../a"])
def test_a_name_of_a_source_that_is_none(tmp_path: Path, name: str) -> None:
    with pytest.raises(NightshiftError, match="source: "):
        look_at_sample(name, tmp_path / "s.csv", Choices())


def test_a_file_that_is_not_there_or_of_no_known_format(tmp_path: Path) -> None:
    with pytest.raises(NightshiftError, match="no such file"):
        look_at_sample("readings", tmp_path / "s.csv", Choices())
    (tmp_path / "s.xlsx").write_text("x")
    with pytest.raises(NightshiftError, match="ends in none of"):
        look_at_sample("readings", tmp_path / "s.xlsx", Choices())
    (tmp_path / "s.csv.gz").write_text("not compressed")
    with pytest.raises(NightshiftError, match="not readable"):
        look_at_sample("readings", tmp_path / "s.csv.gz", Choices())
