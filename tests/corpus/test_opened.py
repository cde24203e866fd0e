"""Files of prompts as other programs leave them: encodings, compression, line ends, names that lie."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import tarfile
import zipfile
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sharpaudit.corpus import opened
from sharpaudit.corpus.rows import count_and_hash
from tests.corpus.test_read import refused, rows_of, written

PROMPTS = ["a red boat", "a blue hat, old", "three green birds"]
TEXTS = {
    ".txt": "".join(f"{prompt}\n" for prompt in PROMPTS),
    ".csv": "id,prompt\n" + "".join(f'{i},"{prompt}"\n' for i, prompt in enumerate(PROMPTS)),
    ".tsv": "id\tprompt\n" + "".join(f"{i}\t{prompt}\n" for i, prompt in enumerate(PROMPTS)),
    ".jsonl": "".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS),
}
TEXTS |= {".ndjson": TEXTS[".jsonl"], ".json": TEXTS[".jsonl"]}


def zstd(data: bytes) -> bytes:
    return pa.compress(data, codec="zstd", asbytes=True)


PACKERS = {".gz": gzip.compress, ".zst": zstd}


def prompts_of(path: Path, **how) -> list[str]:
    return [row.prompt.decode() for row in rows_of(path, **how)]


@pytest.mark.parametrize("suffix", TEXTS)
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le"])
def test_other_unicode_is_refused_in_every_format(tmp_path, suffix, encoding):
    content = TEXTS[suffix].encode(encoding)
    for name, data in ((f"x{suffix}", content), (f"x{suffix}.gz", gzip.compress(content))):
        assert f"the text is in {encoding[:6].upper()}" in refused(written(tmp_path / name, data))


@pytest.mark.parametrize("suffix", [".txt", ".csv"])
def test_utf16_appended_to_another_file_is_found(tmp_path, suffix):
    """As `>>` of Windows PowerShell does."""
    more = "a dog with a hat\n" if suffix == ".txt" else "7,a dog with a hat\n"
    path = written(tmp_path / f"x{suffix}", TEXTS[suffix].encode() + more.encode("utf-16-le"))
    assert "row 3: letters and NULs take turns" in refused(path)


def test_utf16_as_bytes_of_a_table_is_found(tmp_path):
    pq.write_table(pa.table({"prompt": ["a red boat".encode("utf-16-le")]}), tmp_path / "x.parquet")
    assert "row 0: letters and NULs take turns" in refused(tmp_path / "x.parquet")
    line = json.dumps({"prompt": "a red boat".encode("utf-16-be").decode("latin-1")}).encode()
    assert "row 0: letters and NULs take turns" in refused(written(tmp_path / "x.jsonl", line))


def test_a_nul_alone_is_content(tmp_path):
    assert prompts_of(written(tmp_path / "x.txt", b"a cat\0; a dog\n\0b\n")) == ["a cat\0; a dog", "\0b"]


@pytest.mark.parametrize("suffix", TEXTS)
def test_a_byte_order_mark_is_no_part_of_the_first_prompt(tmp_path, suffix):
    marked = b"\xef\xbb\xbf" + TEXTS[suffix].encode()
    assert prompts_of(written(tmp_path / f"x{suffix}", marked)) == PROMPTS
    assert prompts_of(written(tmp_path / f"x{suffix}.gz", gzip.compress(marked))) == PROMPTS


@pytest.mark.parametrize("suffix", TEXTS)
@pytest.mark.parametrize("packed", PACKERS)
def test_compressed_files_are_read(tmp_path, suffix, packed):
    content, pack = TEXTS[suffix].encode(), PACKERS[packed]
    half = content.index(b"\n") + 1
    for i, data in enumerate((pack(content), pack(content[:half]) + pack(content[half:]))):
        path = written(tmp_path / f"{i}{suffix}{packed.upper()}", data)
        assert prompts_of(path) == PROMPTS
        assert [row.source_row for row in rows_of(path, 1)] == [1, 2]
        assert rows_of(path, 0, 2) + rows_of(path, 2) == rows_of(path)
        assert count_and_hash(path)[1] == len(data)


def test_what_is_compressed_is_seen_by_the_content(tmp_path):
    """A browser unpacks what it loads and keeps the name; others leave the name away."""
    assert prompts_of(written(tmp_path / "x.txt.gz", TEXTS[".txt"].encode())) == PROMPTS
    assert prompts_of(written(tmp_path / "x.txt", gzip.compress(TEXTS[".txt"].encode()))) == PROMPTS
    assert prompts_of(written(tmp_path / "x.csv.gz", zstd(TEXTS[".csv"].encode()))) == PROMPTS


@pytest.mark.parametrize("packed", PACKERS)
def test_a_cut_or_damaged_archive_is_one_line(tmp_path, packed):
    data = PACKERS[packed]("".join(f"prompt {i * i}\n" for i in range(20_000)).encode())
    for i, bad in enumerate((data[:-3], data[: len(data) // 2], data[:12], data + b"garbage behind it")):
        assert "cannot be unpacked" in refused(written(tmp_path / f"{i}.txt{packed}", bad))


def test_a_flipped_bit_in_gzip_is_found(tmp_path):
    data = bytearray(gzip.compress("".join(f"prompt {i * i}\n" for i in range(20_000)).encode()))
    data[len(data) // 2] ^= 16
    assert "cannot be unpacked" in refused(written(tmp_path / "x.txt.gz", bytes(data)))


@pytest.mark.parametrize("packed", PACKERS)
def test_what_unpacks_without_end_is_refused(tmp_path, monkeypatch, packed):
    monkeypatch.setattr(opened, "MAX_EXPANDED", 1 << 17)
    within = b"a\n" * (1 << 16)
    assert len(rows_of(written(tmp_path / f"a.txt{packed}", PACKERS[packed](within)))) == 1 << 16
    path = written(tmp_path / f"b.txt{packed}", PACKERS[packed](within + b"\n"))
    assert "unpacks to more than 131,072 bytes" in refused(path)
    assert len(rows_of(path, 0, 5)) == 5


def test_a_bomb_takes_no_memory(tmp_path):
    path = written(tmp_path / "x.txt.gz", gzip.compress(b"a\n" + b"\0" * (100 << 20), 1))
    before = psutil.Process().memory_info().rss
    first, bomb = rows_of(path)
    assert (first.prompt, bomb.problem) == (b"a", "too_long")
    assert psutil.Process().memory_info().rss - before < 60 << 20


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".csv"])
@pytest.mark.parametrize("end", ["", "\r", "\n", "\r\n"])
def test_lines_that_end_in_cr_alone_are_lines(tmp_path, suffix, end):
    text = TEXTS[suffix].rstrip("\n").replace("\n", "\r") + end
    assert prompts_of(written(tmp_path / f"x{suffix}", text.encode())) == PROMPTS
    assert prompts_of(written(tmp_path / f"x{suffix}.gz", gzip.compress(text.encode()))) == PROMPTS


def test_a_cr_within_a_file_of_lines_is_content(tmp_path):
    assert prompts_of(written(tmp_path / "x.txt", b"one\rtwo\nthree\n")) == ["one\rtwo", "three"]
    far = b"x" * 100_000
    assert len(rows_of(written(tmp_path / "y.txt", far + b"\r" + far + b"\n" + far))) == 2


# Names that lie


def archives() -> dict[str, tuple[bytes, str]]:
    tar, archive = io.BytesIO(), io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as file:
        file.addfile(tarfile.TarInfo("prompts.txt"), io.BytesIO())
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("[Content_Types].xml", "")
    table, sink = pa.table({"prompt": ["a"]}), io.BytesIO()
    pq.write_table(table, sink)
    arrow = io.BytesIO()
    with pa.ipc.new_file(arrow, table.schema) as out:
        out.write_table(table)
    text = TEXTS[".txt"].encode()
    return {
        "workbook": (archive.getvalue(), "a zip archive, as .xlsx"),
        "old workbook": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an .xls workbook: export"),
        "tar": (tar.getvalue(), "a tar archive: unpack"),
        "tar.gz": (gzip.compress(tar.getvalue()), "a tar archive: unpack"),
        "Parquet": (sink.getvalue(), "a Parquet file: rename"),
        "Parquet.gz": (gzip.compress(sink.getvalue()), "a Parquet file: rename"),
        "Arrow": (arrow.getvalue(), "an Arrow file: write"),
        "bzip2": (bz2.compress(text), "compressed by bzip2: unpack"),
        "xz": (lzma.compress(text), "compressed by xz: unpack"),
        "gzip twice": (gzip.compress(gzip.compress(text)), "compressed by gzip twice"),
        "database": (b"SQLite format 3\0" + bytes(80), "a SQLite database: export"),
        "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n", "`git lfs pull`"),
    }


@pytest.mark.parametrize("kind", archives())
@pytest.mark.parametrize("suffix", [".csv", ".txt"])
def test_what_is_no_text_is_named_with_the_remedy(tmp_path, kind, suffix):
    content, told = archives()[kind]
    assert told in refused(written(tmp_path / f"x{suffix}", content))


def test_words_that_begin_as_other_formats_do_are_prompts(tmp_path):
    prompts = ["PAR1 cup", "BZh a word", "ORC warrior", "PK fight", "Obj on a table", "ARROW1 in flight"]
    for prompt in prompts:
        assert prompts_of(written(tmp_path / "x.txt", prompt.encode())) == [prompt]


def test_tables_called_txt_are_no_prompts(tmp_path):
    for content in (TEXTS[".csv"], "prompt\na\n", '"prompt";"n"\r\n"a";1\r\n', TEXTS[".tsv"]):
        assert "the first one names columns: name a csv .csv" in refused(written(tmp_path / "x.txt", content.encode()))
    assert "is a JSON object: name such a file .jsonl" in refused(written(tmp_path / "x.txt", TEXTS[".jsonl"].encode()))
    words = ["best quality, prompt, a sign", "a prompt reply", '{"a": 1}']
    for word in words:
        assert prompts_of(written(tmp_path / "x.txt", word.encode())) == [word]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (TEXTS[".csv"], "no line is a JSON object, the first for instance: Not valid JSON"),
        (TEXTS[".txt"], "no line is a JSON object"),
        (json.dumps([{"prompt": "a"}]), "one JSON document"),
        (json.dumps([{"prompt": "a"}, {"prompt": "b"}], indent=2), "one JSON document"),
        (json.dumps({"prompt": "a"}, indent=2), "one JSON document"),
        ('[{"prompt": "a"},\n{"prompt": "b"}\n]\n', "one JSON document"),
        ('[\n{"prompt": "a"},\n{"prompt": "b"}\n]\n', "one JSON document"),
    ],
)
def test_json_that_is_not_an_object_a_line_is_told_with_the_remedy(tmp_path, content, told):
    for suffix in (".jsonl", ".json"):
        assert told in refused(written(tmp_path / f"x{suffix}", content.encode()))


# What spreadsheets and Spark write


@pytest.mark.parametrize("first", ["sep=;", '"sep=;"', "SEP=;", "\ufeffsep=;"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_the_line_by_which_spreadsheets_name_the_delimiter(tmp_path, first, end):
    content = end.join([first, "id;prompt", "1;a red boat, big", '2;"a; b"', ""])
    rows = rows_of(written(tmp_path / "x.csv", content.encode()), id_column="id")
    assert [(row.source_row, row.external_id, row.prompt) for row in rows] == [
        (0, "1", b"a red boat, big"),
        (1, "2", b"a; b"),
    ]


def test_a_line_that_names_the_tab(tmp_path):
    for tab in (b"\t", b"\\t"):
        path = written(tmp_path / "x.csv", b"sep=" + tab + b"\nid\tprompt\n1\ta, b\n")
        assert prompts_of(path, id_column="id") == ["a, b"]


def spark(cell: str) -> str:
    """A cell as Spark writes it by default: a quote, and a backslash before one, escaped by a backslash."""
    if not any(sign in cell for sign in '",\n'):
        return cell
    out = ""
    for i, sign in enumerate(cell):
        rest = cell[i:].lstrip("\\")
        out += "\\" + sign if sign == '"' or (sign == "\\" and rest[:1] in ("", '"')) else sign
    return f'"{out}"'


QUOTED = [
    'he said "no", twice',
    'a 5" pipe',
    '"all of it"',
    'ends in "it"',
    "C:\\temp, and more",
    "a\\",
    'x\\"y',
    "plain",
]


def test_quotes_as_spark_escapes_them(tmp_path):
    lines = [f"{i},{spark(cell)}" for i, cell in enumerate(QUOTED * 3)]
    rows = rows_of(written(tmp_path / "x.csv", "\n".join(["n,prompt", *lines]).encode()))
    assert [row.problem for row in rows] == [None] * len(lines)
    assert [row.prompt.decode() for row in rows] == QUOTED * 3


def test_backslashes_before_doubled_quotes_stay_what_they_are(tmp_path):
    doubled = ['"' + cell.replace('"', '""') + '"' for cell in QUOTED]
    content = "\n".join(["n,prompt", *(f"{i},{cell}" for i, cell in enumerate(doubled))])
    assert prompts_of(written(tmp_path / "x.csv", content.encode())) == QUOTED
    # One row that only Spark could have written is broken, among rows that it could not.
    broken = content + '\n9,"a \\"b\\" c"\n'
    rows = rows_of(written(tmp_path / "y.csv", broken.encode()))
    assert [row.prompt.decode() for row in rows if row.prompt] == QUOTED
    assert rows[-1].problem == "malformed_row"


def test_a_tsv_has_tabs_and_says_so_where_it_has_not(tmp_path):
    assert prompts_of(written(tmp_path / "x.tsv", TEXTS[".tsv"].encode()), delimiter=";") == PROMPTS
    told = refused(written(tmp_path / "y.tsv", b"id;prompt\n1;a\n"))
    assert 'called .csv, and with delimiter = ";" the file has that column' in told
