from __future__ import annotations

import csv
import gzip
import hashlib
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sharpaudit.corpus.check import check
from sharpaudit.corpus.formats import csv as csv_format
from sharpaudit.corpus.formats import lines as line_formats
from sharpaudit.corpus.formats import parquet as parquet_format
from sharpaudit.corpus.read import read_rows
from sharpaudit.corpus.rows import PromptRow, Source, count_and_hash
from sharpaudit.errors import Status, UserError
from tests.support.strategies import prompt_bytes, texts

FEW = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


def rows_of(path: Path, start: int = 0, stop: int | None = None, **how) -> list[PromptRow]:
    return list(read_rows(Source("audit:x", "audit", path, **how), start, stop))


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def quoted(cell: bytes) -> bytes:
    return b'"' + cell.replace(b'"', b'""') + b'"'


def text_column(values: list[bytes | None]) -> pa.Array:
    """A string column of any bytes: Arrow checks them as little as Parquet does."""
    binary = pa.array(values, pa.binary())
    return pa.Array.from_buffers(pa.string(), len(values), binary.buffers())


# Exactness


@FEW
@given(prompts=st.lists(prompt_bytes(), min_size=1, max_size=8), lone=st.booleans())
def test_csv_gives_back_every_byte(tmp_path, prompts, lone):
    header, lines = b"prompt\n", [quoted(p) for p in prompts]
    if not lone:
        header, lines = b"id,prompt\r\n", [b"%d,%s" % (i, line) for i, line in enumerate(lines)]
    path = written(tmp_path / "x.csv", header + b"\n".join(lines))
    assert [row.prompt for row in rows_of(path)] == prompts
    assert [row.source_row for row in rows_of(path)] == list(range(len(prompts)))


@FEW
@given(prompts=st.lists(texts(), min_size=1, max_size=8), delimiter=st.sampled_from(",;\t|"))
def test_csv_written_by_python_comes_back(tmp_path, prompts, delimiter):
    with (tmp_path / "x.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=delimiter).writerows([["prompt", "n"], *([p, 1] for p in prompts)])
    assert [row.prompt for row in rows_of(tmp_path / "x.csv", delimiter=delimiter)] == [p.encode() for p in prompts]


@FEW
@given(prompts=st.lists(texts(), min_size=1, max_size=8), ascii_only=st.booleans())
def test_jsonl_gives_back_every_prompt(tmp_path, prompts, ascii_only):
    lines = [json.dumps({"prompt": p}, ensure_ascii=ascii_only).encode() for p in prompts]
    path = written(tmp_path / "x.jsonl", b"\n".join(lines))
    assert [row.prompt for row in rows_of(path)] == [p.encode() for p in prompts]


@settings(FEW, max_examples=12)  # each is read by a process of its own
@given(prompts=st.lists(st.none() | prompt_bytes(), min_size=1, max_size=8), as_text=st.booleans())
def test_parquet_gives_back_every_byte(tmp_path, prompts, as_text):
    column = text_column(prompts) if as_text else pa.array(prompts, pa.large_binary())
    pq.write_table(pa.table({"prompt": column}), tmp_path / "x.parquet")
    rows = rows_of(tmp_path / "x.parquet")
    assert [row.prompt for row in rows] == prompts
    assert [row.problem for row in rows] == [Status.MISSING if p is None else None for p in prompts]


@FEW
@given(prompts=st.lists(prompt_bytes().filter(lambda p: b"\n" not in p and p[-1:] not in (b"", b"\r")), min_size=1))
def test_txt_gives_back_every_line(tmp_path, prompts):
    # A file without any LF is one whose lines end in CR: the last line is not the only one.
    path = written(tmp_path / "x.txt", b"\xef\xbb\xbf" + b"\r\n".join([*prompts, b"last"]))
    assert [row.prompt for row in rows_of(path)] == [*prompts, b"last"]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet", ".txt"])
def test_a_prompt_of_100_kilobytes(tmp_path, suffix):
    prompt = "naïve " * 15_000
    path = tmp_path / f"x{suffix}"
    if suffix == ".parquet":
        pq.write_table(pa.table({"prompt": [prompt]}), path)
    else:
        written(
            path, {".csv": "prompt\n{}\n", ".jsonl": '{{"prompt": "{}"}}', ".txt": "{}"}[suffix].format(prompt).encode()
        )
    assert [row.prompt for row in rows_of(path)] == [prompt.encode()]


# Bad rows stay rows, and stay alone

GARBAGE = {
    "too few": b"only",
    "too many": b"a,b,c",
    "text after a quote": b'"a"b,c',
    "open quote": b'"a,b',
    "blank": b"",
}


@pytest.mark.parametrize("bad", GARBAGE.values(), ids=GARBAGE.keys())
@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_bad_csv_row_costs_itself_only(tmp_path, bad, at):
    good = [b'"one, 1",x', b"two,y"]
    lines = [*good[:at], bad, *good[at:], b"last,z"]
    rows = rows_of(written(tmp_path / "x.csv", b"prompt,n\n" + b"\n".join(lines) + b"\n"))
    assert [r.problem for r in rows] == [Status.MALFORMED_ROW if i == at else None for i in range(4)]
    assert [r.prompt for r in rows if r.prompt is not None] == [b"one, 1", b"two", b"last"]
    assert rows[at].detail


@FEW
@given(content=st.binary(max_size=60))
def test_any_bytes_after_the_header_are_rows_or_rejected(tmp_path, content):
    whole = written(tmp_path / "x.csv", b"prompt,n\nfirst,1\n" + content)
    rows = rows_of(whole)
    assert rows[0] == PromptRow(0, b"first")
    assert all((row.prompt is None) == (row.problem is not None) for row in rows)


@FEW
@given(lines=st.lists(st.binary(max_size=20).filter(lambda line: b"\n" not in line), max_size=5))
def test_a_broken_json_line_costs_itself_only(tmp_path, lines):
    rows = rows_of(written(tmp_path / "x.jsonl", b"\n".join([b'{"prompt": "a"}', *lines, b'{"prompt": "b"}'])))
    assert len(rows) == len(lines) + 2
    assert (rows[0].prompt, rows[-1].prompt) == (b"a", b"b")
    assert all(row.problem is not None and row.detail for row in rows[1:-1])


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b'{"prompt": null}', Status.MISSING),
        (b'{"other": 1}', Status.MISSING),
        (b'{"prompt": 7}', Status.MALFORMED_ROW),
        (b'{"prompt": ["a"]}', Status.MALFORMED_ROW),
        (b'["a"]', Status.MALFORMED_ROW),
        (b"[" * 100_000, Status.MALFORMED_ROW),
        (b'{"prompt": "\\ud800"}', Status.INVALID_UTF8),
        (b'{"prompt": "caf\xe9"}', Status.INVALID_UTF8),
        (b'{"prompt": "a", "label": "caf\xe9"}', None),
    ],
)
def test_outcomes_of_a_json_line(tmp_path, line, problem):
    rows = rows_of(written(tmp_path / "x.jsonl", line + b'\n{"prompt": "a"}\n'))
    assert [row.problem for row in rows] == [problem, None]


def test_deeply_nested_labels_end_no_file(tmp_path):
    lines = [b'{"prompt": "a", "l": %s}' % (b'{"a":' * n + b"1" + b"}" * n) for n in range(1, 1100)]
    assert len(rows_of(written(tmp_path / "x.jsonl", b"\n".join(lines)), labels=("l",))) == len(lines)


def test_a_line_without_end_is_skipped_in_bounded_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(line_formats, "MAX_LINE", 50)
    rows = rows_of(written(tmp_path / "x.txt", b"a\n" + b"x" * 160 + b"\nb\n" + b"y" * 51))
    assert [(row.prompt, row.problem) for row in rows] == [
        (b"a", None),
        (None, Status.TOO_LONG),
        (b"b", None),
        (None, Status.TOO_LONG),
    ]


def test_blank_lines_count_inside_and_not_at_the_end(tmp_path):
    assert [r.prompt for r in rows_of(written(tmp_path / "x.txt", b"a\n\nb\n\r\n\n"))] == [b"a", b"", b"b"]
    assert [r.prompt for r in rows_of(written(tmp_path / "x.csv", b"prompt\na\n\nb\n\n\n"))] == [b"a", b"", b"b"]


# Windows, columns beside the prompt


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet", ".txt"])
def test_windows_join_to_the_whole(tmp_path, suffix, monkeypatch):
    monkeypatch.setattr(parquet_format, "BATCH_ROWS", 3)
    prompts = [f"prompt {i}" for i in range(10)]
    path = tmp_path / f"x{suffix}"
    if suffix == ".parquet":
        pq.write_table(pa.table({"prompt": prompts}), path, row_group_size=4)
    else:
        lines = [json.dumps({"prompt": p}) for p in prompts] if suffix == ".jsonl" else prompts
        written(path, "\n".join(["prompt"] * (suffix == ".csv") + lines).encode())
    whole = rows_of(path)
    assert [row.source_row for row in whole] == list(range(10))
    for cut in (0, 1, 4, 10):
        assert rows_of(path, 0, cut) + rows_of(path, cut) == whole
    assert rows_of(path, 12) == []


def test_the_index_column_of_a_pandas_file(tmp_path):
    path = written(tmp_path / "x.csv", b'\xef\xbb\xbf;Caption;URL\n0;"a; b";http://x\n1;c\xff;\n')
    first, second = rows_of(path, column="Caption", delimiter=";", id_column="", labels=("URL",))
    assert first == PromptRow(0, b"a; b", external_id="0", labels={"URL": "http://x"})
    assert (second.prompt, second.labels) == (b"c\xff", {"URL": ""})


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_labels_are_text_whatever_the_file_holds(tmp_path, suffix):
    path = tmp_path / f"x{suffix}"
    if suffix == ".csv":
        written(path, b"prompt,n,l,f\na,7,caf\xe9,x\n")
    elif suffix == ".jsonl":
        written(path, b'{"prompt": "a", "n": 7, "l": "caf\xe9", "f": "x"}')
    else:
        odd = text_column([b"caf\xe9"])
        pq.write_table(pa.table({"prompt": ["a"], "n": [7], "l": odd.dictionary_encode(), "f": ["x"]}), path)
    (row,) = rows_of(path, id_column="n", family_column="f", labels=("l", "n"))
    assert (row.external_id, row.family, row.labels["n"]) == ("7", "x", "7")
    pa.array([row.labels["l"]]).validate(full=True)
    assert row.labels["l"].startswith("caf\\")


# Bad files are one line that names the fix


def refused(path: Path, **how) -> str:
    with pytest.raises(UserError) as caught:
        rows_of(path, **how)
    message = str(caught.value)
    assert "\n" not in message
    assert path.name in message
    return message


def test_unknown_columns_name_the_nearest_and_all(tmp_path):
    path = written(tmp_path / "x.csv", b"id,Prompts\n1,a\n")
    assert all(word in refused(path) for word in ('"prompt"', 'mean "Prompts"', '"id", "Prompts"'))
    assert 'mean "Prompts"' in refused(path, column="PROMPTS")
    assert '"lang"' in refused(path, column="Prompts", labels=("lang",))
    pq.write_table(pa.table({"caption": ["a"]}), tmp_path / "x.parquet")
    assert 'mean "caption"' in refused(tmp_path / "x.parquet", column="Caption")
    assert "2 times" in refused(written(tmp_path / "y.csv", b"prompt,prompt\na,b\n"))


def test_another_delimiter_is_proposed(tmp_path):
    path = written(tmp_path / "x.csv", b";Caption;URL\n0;a;b\n")
    assert 'delimiter = ";" the file has that column' in refused(path, column="Caption")
    assert 'delimiter = ";" the file has the columns "", "Caption", "URL"' in refused(path)
    assert "UTF-16" in refused(written(tmp_path / "y.csv", "prompt\na\n".encode("utf-16")))


def test_a_json_column_is_unknown_only_if_no_line_has_it(tmp_path):
    lines = b'{"prompts": "a"}\n' * 3
    assert 'mean "prompts"' in refused(written(tmp_path / "x.jsonl", lines))
    rows = rows_of(written(tmp_path / "y.jsonl", lines + b'{"prompt": "b"}'))
    assert [row.problem for row in rows] == [Status.MISSING] * 3 + [None]


@pytest.mark.parametrize("column", [pa.array([1]), pa.array([["a"]]), pa.array([None], pa.null())])
def test_parquet_prompts_must_be_text(tmp_path, column):
    pq.write_table(pa.table({"prompt": column}), tmp_path / "x.parquet")
    kind = str(column.type).split("<")[0]
    assert f"expected string or binary, found {kind}" in refused(tmp_path / "x.parquet")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.csv", b""),
        ("x.csv", b"prompt\n"),
        ("x.csv", b"\n\n"),
        ("x.txt", b"\n\n"),
        ("x.jsonl", b""),
        ("x.parquet", b"PAR1 no"),
        ("x.xlsx", b"PK"),
        ("x", b"a"),
        ("x.gz", gzip.compress(b"a", mtime=0)),
        ("x.parquet.gz", b"PAR1"),
        ("x.csv.gz", gzip.compress(b"", mtime=0)),
        ("x.jsonl.zst", b"\x28\xb5\x2f\xfd"),
        ("x.zip", b"PK\x03\x04"),
    ],
    ids=lambda value: repr(value[:12]),
)
def test_unusable_files(tmp_path, name, content):
    refused(written(tmp_path / name, content))


def test_paths_that_are_no_files(tmp_path):
    (tmp_path / "x.csv").mkdir()
    refused(tmp_path / "x.csv")
    refused(tmp_path / "absent.csv")
    with pytest.raises(UserError):
        count_and_hash(tmp_path / "absent.csv")


def test_a_flipped_bit_in_parquet_is_found(tmp_path):
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"prompt": ["unmistakable"] * 3}), path, write_page_checksum=True, compression="none")
    data = path.read_bytes()
    at = data.index(b"unmistakable")
    path.write_bytes(data[:at] + b"U" + data[at + 1 :])
    assert "row 0" in refused(path)


def test_a_field_beyond_the_limit_names_its_row(tmp_path, monkeypatch):
    monkeypatch.setattr(csv_format, "MAX_FIELD", 100)
    path = written(tmp_path / "x.csv", b'prompt\na\n"' + b"x\n" * 60 + b'"\n')
    assert "row 1: a field" in refused(path)


@pytest.mark.parametrize("row", [b"x" * 201, b'"\n",' * 60, b'"' + b"x\n" * 150])
def test_a_row_beyond_the_limit_is_named_too(tmp_path, monkeypatch, row):
    monkeypatch.setattr(csv_format, "MAX_LINE", 200)
    assert "row 1: a row" in refused(written(tmp_path / "x.csv", b"prompt\na\n" + row + b"\n"))


def test_hash_and_size(tmp_path):
    data = bytes(range(256)) * 999
    assert count_and_hash(written(tmp_path / "x", data)) == (hashlib.sha256(data).hexdigest(), len(data))


@FEW
@given(raw=prompt_bytes())
def test_what_check_accepts_is_unchanged(raw):
    text, status = check(raw)
    assert (text is not None) == (status is Status.OK)
    assert text is None or text.encode() == raw
