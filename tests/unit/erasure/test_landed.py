"""Files without one person's rows; the other rows byte for byte."""

import gzip
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nightshift.erasure.landed import mentions, write_parquet_without, write_without

HEADER = b"id,who,note\n"


def rewritten(tmp_path: Path, name: str, content: bytes, subject: str = "7") -> tuple[int, bytes]:
    file, target = tmp_path / name, tmp_path / "target"
    file.write_bytes(content)
    assert mentions(name, file, subject)
    removed, _ = write_without(name, file, target, ["who"], subject)
    return removed, target.read_bytes()


@pytest.mark.parametrize(
    ("rows", "left"),
    [
        pytest.param(b"1,7,\n2,17,7\n", b"2,17,7\n", id="only where the column holds it"),
        pytest.param(b"1, 7 ,a\r\n2,8,b\r\n", b"2,8,b\r\n", id="spaces and CRLF"),
        pytest.param(b"1,7,a\r2,8,b\r", b"2,8,b\r", id="CR"),
        pytest.param(b'1,7,"a\nb"\n2,8,"c\nd"\n', b'2,8,"c\nd"\n', id="newline in a field"),
        pytest.param(b'1,"7",a\n2,8,""""\n', b'2,8,""""\n', id="quotes"),
        pytest.param(b"1,7,\xe9\n2,8,\xff\x85 \x00\n", b"2,8,\xff\x85 \x00\n", id="no UTF-8"),
        pytest.param(b"1;7;a\n7\n2,8\n", b"2,8\n", id="rows that cannot be split"),
        pytest.param(b'1,8,"a\n2,7,b\n3,9,7\n', b'1,8,"a\n3,9,7\n', id="a quote left open"),
        pytest.param(b"\n1,7,a\n\n2,8,b", b"\n\n2,8,b", id="blank lines, no last line end"),
    ],
)
def test_csv_keeps_the_bytes_of_the_other_rows(tmp_path: Path, rows: bytes, left: bytes) -> None:
    for bom in (b"", b"\xef\xbb\xbf"):
        removed, content = rewritten(tmp_path, "a.csv", bom + HEADER + rows)

        assert content == bom + HEADER + left
        assert removed >= 1


def test_a_file_without_the_column_loses_the_rows_with_the_id_as_a_piece(tmp_path: Path) -> None:
    assert rewritten(tmp_path, "a.csv", b"x;y\n1;7\n1;77\n") == (1, b"x;y\n1;77\n")


def test_gzip_is_written_the_same_each_time(tmp_path: Path) -> None:
    content = gzip.compress(HEADER + b"1,7,a\n2,8,b\n")

    first = rewritten(tmp_path, "a.csv.gz", content)

    assert gzip.decompress(first[1]) == HEADER + b"2,8,b\n"
    assert rewritten(tmp_path, "a.csv.gz", content) == first


def test_json_lines(tmp_path: Path) -> None:
    lines = [
        b'{"who": "7", "note": 1}\n',
        b'{"who": 7}\r\n',
        b'{"who": 7.0}\n',
        b'{"note": 1, "x": ["7"]}\n',
        b'{"who": "7", "broken\n',
    ]
    kept = [
        b'{"who":  "17", "note": "7"}\n',
        b'{"who": null}\n',
        b'{"who": "8", "broken: 77\n',
        b"\n",
    ]

    assert rewritten(tmp_path, "a.jsonl", b"".join(lines + kept)) == (5, b"".join(kept))


def test_a_name_that_is_no_ascii_is_found_however_it_is_written(tmp_path: Path) -> None:
    content = '{"who": "Zo\\u00eb"}\n{"who": "Zoë"}\n{"who": "Zoe"}\n'.encode()

    assert rewritten(tmp_path, "a.jsonl", content, "Zoë") == (2, b'{"who": "Zoe"}\n')
    content = HEADER + "1,à,x\n2,Ã,x\n".encode()
    assert rewritten(tmp_path, "a.csv", content, "à") == (1, HEADER + "2,Ã,x\n".encode())


def test_a_dictionary_does_not_keep_the_value(tmp_path: Path) -> None:
    file, target = tmp_path / "a.parquet", tmp_path / "target"
    who = pa.array(["canary", "somebody", "somebody"]).dictionary_encode()
    pq.write_table(pa.table({"who": who}), file, compression="none")

    assert write_parquet_without(file, target, ["who"], ["canary"]) == (1, 2)

    assert b"canary" in file.read_bytes()
    assert b"canary" not in target.read_bytes()


@pytest.mark.parametrize(
    "who",
    [
        pa.array(["7", "8", None, "77"]),
        pa.array(["7", "8", None, "77"]).dictionary_encode(),
        pa.array([7, 8, None, 77]),
        pa.array([7.0, 8.0, None, 77.0]),
    ],
    ids=lambda array: str(array.type),
)
def test_parquet_of_any_type(tmp_path: Path, who: pa.Array) -> None:
    file, target = tmp_path / "a.parquet", tmp_path / "target"
    table = pa.table({"who": who, "note": ["a", "b", "7", "d"]})
    pq.write_table(table, file, row_group_size=2, compression="zstd")

    assert write_without("a.parquet", file, target, ["who"], "7") == (1, 3)

    left = pq.read_table(target)
    assert left["note"].to_pylist() == ["b", "7", "d"]
    assert left.schema.field("who").type == table.schema.field("who").type


def test_a_file_that_never_says_the_id_is_not_parsed(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_bytes(b"x" * (1 << 20) + b"12" + b"34")

    assert not mentions("a.csv", file, "124")
    assert mentions("a.csv", file, "x1234")  # across two chunks


def test_a_damaged_file_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "a.csv.gz"
    file.write_bytes(gzip.compress(HEADER * 100)[:-9])

    with pytest.raises(EOFError):
        mentions("a.csv.gz", file, "7")
