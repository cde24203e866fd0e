"""The id of a row comes back as it stands in the file; what is no id is refused."""

from __future__ import annotations

import json
import math
import uuid
from datetime import date, datetime
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sharpaudit.corpus.rows import number_text
from tests.corpus.test_read import refused, rows_of, written

UUIDS = [uuid.UUID(int=5), uuid.UUID("c0ffee00-1234-4abc-8def-0123456789ab")]


def ids_in_jsonl(tmp_path, *values: str) -> list[str | None]:
    lines = [f'{{"prompt": "p{i}", "id": {value}}}' for i, value in enumerate(values)]
    return [
        row.external_id for row in rows_of(written(tmp_path / "x.jsonl", "\n".join(lines).encode()), id_column="id")
    ]


NAMES = [str(name) for name in UUIDS]
BYTES = pa.array([name.bytes for name in UUIDS], pa.binary(16))
COLUMNS = {
    "doubles": (pa.array([2.06e12, -0.0, 2.0**53 - 1, None, math.nan]), "2060000000000 0 9007199254740991 - -"),
    "floats": (pa.array([16777215.0, 3.0, 0.1], pa.float32()), "16777215 3 0.1"),
    "halves": (pa.array([2047.0, 1.5], pa.float16()), "2047 1.5"),
    "dictionary": (pa.array([1e15, 2.0]).dictionary_encode(), "1000000000000000 2"),
    "integers": (pa.array([2**53 + 1, -(2**63), None]), "9007199254740993 -9223372036854775808 -"),
    "unsigned": (pa.array([2**64 - 1], pa.uint64()), "18446744073709551615"),
    "decimals": (pa.array([Decimal("12345678901234567890.50"), Decimal("7.00")]), "12345678901234567890.50 7.00"),
    "whole decimals": (pa.array([Decimal(10**37)], pa.decimal128(38, 0)), str(10**37)),
    "UUIDs": (pa.ExtensionArray.from_storage(pa.uuid(), BYTES), " ".join(NAMES)),
    "16 bytes": (BYTES, " ".join(NAMES)),
    "3 bytes": (pa.array([b"\x00\xffa", None], pa.binary(3)), "00ff61 -"),
    "strings": (pa.array(["007", "1e3", "5.0"], pa.large_string()), "007 1e3 5.0"),
    "views": (pa.array(["007"], pa.string_view()), "007"),
    "dates": (pa.array([date(2024, 2, 29)]), "2024-02-29"),
    "times": (pa.array([datetime(2024, 1, 2, 3, 4, 5)], pa.timestamp("s")), "2024-01-02_03:04:05.000"),
    "json": (pa.ExtensionArray.from_storage(pa.json_(), pa.array(['"a"'])), '"a"'),
}  # fmt: skip


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """All of the columns in one file, each filled up with nulls."""
    n, path = max(len(column) for column, _ in COLUMNS.values()), tmp_path_factory.mktemp("ids") / "x.parquet"
    filled = {
        name: pa.concat_arrays([column, pa.nulls(n - len(column), column.type)])
        for name, (column, _) in COLUMNS.items()
    }
    pq.write_table(pa.table(filled | {"prompt": [f"p{i}" for i in range(n)]}), path)
    return path


def test_numbers_times_and_bytes_beside_a_prompt_as_text(table):
    rows = rows_of(table, labels=tuple(COLUMNS))
    for name, (_, expected) in COLUMNS.items():
        texts = [row.labels.get(name, "-").replace(" ", "_") for row in rows]
        assert texts == expected.split() + ["-"] * (len(rows) - len(expected.split())), name


@pytest.mark.parametrize("name", ["doubles", "UUIDs", "dictionary"])
def test_ids_of_parquet_as_text(table, name):
    rows = rows_of(table, id_column=name, family_column=name, labels=(name,))
    assert [row.external_id for row in rows] == [row.labels.get(name) for row in rows] == [row.family for row in rows]


def test_ids_of_jsonl_as_text(tmp_path):
    values = ["2060000000000.0", "5.0", "1e3", "9007199254740993", "-7", '"007"', '"5.0"', "0.5", "null", "NaN", '""']
    expected = ["2060000000000", "5", "1000", "9007199254740993", "-7", "007", "5.0", "0.5", None, None, None]
    assert ids_in_jsonl(tmp_path, *values) == expected


def test_ids_of_csv_are_left_alone(tmp_path):
    content = b'prompt,id\na,5.0\nb,2.06e+12\nc,007\nd," x "\ne,9007199254740993\n'
    rows = rows_of(written(tmp_path / "x.csv", content), id_column="id")
    assert [row.external_id for row in rows] == ["5.0", "2.06e+12", "007", " x ", "9007199254740993"]


@given(number=st.integers(-(2**53) + 1, 2**53 - 1))
def test_a_whole_number_survives_a_table_that_took_it_for_a_double(number):
    assert number_text(float(number)) == str(number)
    assert number_text(json.loads(json.dumps(float(number)))) == str(number)


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("2.06e18", "row 1: column \"id\" holds 2.06e+18, a floating-point number that stands for several whole ones"),
        ("9007199254740992.0", "stands for several whole ones"),
        ("-Infinity", "stands for several whole ones"),
        ("true", "a value of type bool, which is no id"),
        ('{"$oid": "5"}', "a value of type dict, which is no id"),
        ("[1, 2]", "a value of type list, which is no id"),
    ],
)  # fmt: skip
def test_what_is_no_id_in_jsonl_is_refused(tmp_path, value, told):
    path = written(tmp_path / "x.jsonl", f'{{"prompt": "a", "id": 1}}\n{{"prompt": "b", "id": {value}}}'.encode())
    message = refused(path, id_column="id")
    assert told in message
    assert "store ids as text or as integers" in message
    assert len(rows_of(path, labels=("id",))) == 2


@pytest.mark.parametrize(
    ("column", "told"),
    [
        (pa.array([1.0, 2.0**53]), 'row 1: column "id" holds 9007199254740992.0, a floating-point number'),
        (pa.array([2.0**24], pa.float32()), "row 0"),
        (pa.array([True]), "found bool"),
        (pa.array([[1]]), "found list"),
        (pa.array([{"a": 1}]), "found struct"),
    ],
    ids=lambda value: str(getattr(value, "type", "")),
)
def test_what_is_no_id_in_parquet_is_refused(tmp_path, column, told):
    pq.write_table(pa.table({"prompt": ["a"] * len(column), "id": column}), tmp_path / "x.parquet")
    assert told in refused(tmp_path / "x.parquet", id_column="id")
