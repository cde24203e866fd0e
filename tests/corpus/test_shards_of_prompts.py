"""Folders and patterns stand for their files, none of which is left out or taken in without a word."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sharpaudit.corpus.files import files_of, format_of, names_of
from sharpaudit.corpus.read import read_rows
from sharpaudit.corpus.rows import Source
from sharpaudit.errors import UserError


def folder_of(place: Path, *names: str) -> Path:
    for name in names:
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("prompt\na\n")
    return place


def refused(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        files_of(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_a_folder_stands_for_its_files_in_the_order_of_their_names(tmp_path):
    shards = [f"part-{i:05d}.c000.csv{end}" for i, end in enumerate(["", ".gz", ".zst"])]
    of_spark = ["_SUCCESS", "_committed_17", ".part-00000.c000.csv.crc", "._SUCCESS.crc", "_metadata", ".DS_Store"]
    folder_of(tmp_path, *reversed(shards), *of_spark)
    (tmp_path / "_temporary").mkdir()
    assert [path.name for path in files_of(tmp_path)] == shards
    assert [path.name for path in files_of(tmp_path / "*")] == shards
    assert [path.name for path in files_of(tmp_path / "part-0000[01]*")] == shards[:2]
    assert files_of(tmp_path / "part-?0000*.csv") == [tmp_path / shards[0]]


def test_one_star_stands_for_each_level(tmp_path):
    folder_of(tmp_path, "look=oil/a.parquet", "look=pen/a.parquet", "b.parquet")
    assert [path.parent.name for path in files_of(tmp_path / "*" / "*.parquet")] == ["look=oil", "look=pen"]
    assert "write one * for each level" in refused(tmp_path / "**" / "*.parquet")


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(tmp_path):
    folder_of(tmp_path, "prompts[1].csv", "prompts1.csv")
    assert files_of(tmp_path / "prompts[1].csv") == [tmp_path / "prompts[1].csv"]
    assert files_of(tmp_path / "absent.csv") == [tmp_path / "absent.csv"]


def test_what_else_lies_in_a_folder_is_told(tmp_path):
    assert "holds no file" in refused(tmp_path)
    assert "holds no file" in refused(tmp_path / "*.csv")
    folder_of(tmp_path / "a", "x.csv", "README.md", "LICENSE")
    assert "holds 2 files of other formats, for instance LICENSE: take them out" in refused(tmp_path / "a")
    assert "files of other formats" in refused(tmp_path / "a" / "*")
    assert len(files_of(tmp_path / "a" / "*.csv")) == 1
    folder_of(tmp_path / "b", "x.csv", "more/y.csv")
    assert "holds 1 folders, for instance more" in refused(tmp_path / "b")
    folder_of(tmp_path / "c", "x.csv", "notes.txt")
    assert "of several formats, for instance notes.txt and x.csv" in refused(tmp_path / "c")
    folder_of(tmp_path / "e", "x.parquet", "_delta_log/0.json")
    assert "a Delta table" in refused(tmp_path / "e")
    folder_of(tmp_path / "d", "x.jsonl", "y.ndjson", "z.json.gz")
    assert len(files_of(tmp_path / "d")) == 3


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list every folder")
def test_a_folder_that_cannot_be_listed_is_one_line(tmp_path):
    (tmp_path / "shut").mkdir(0o000)
    assert "cannot look into it" in refused(tmp_path / "shut")


def test_a_shard_may_be_empty_and_a_file_may_not(tmp_path):
    for name, content in {"x.csv": b"", "y.csv": b"prompt\n", "z.txt": b"", "w.jsonl": b"\n"}.items():
        (tmp_path / name).write_bytes(content)
        assert list(read_rows(Source("audit:x", "audit", tmp_path / name, is_shard=True))) == []
        with pytest.raises(UserError, match="no row of data"):
            list(read_rows(Source("audit:x", "audit", tmp_path / name)))


@pytest.mark.parametrize("name", ["a", "a.xlsx", "a.gz", "a.parquet.gz", "a.csv.bz2", "a.csv.gz.gz", ".csv"])
def test_names_that_tell_no_format(name):
    with pytest.raises(UserError, match=r"a prompt file ends in \.csv, .*rename or convert"):
        format_of(Path(name))


def test_names_that_tell_a_format():
    told = {"a.CSV": ".csv", "a.b.json.GZ": ".jsonl", "a.ndjson": ".jsonl", "a.gz.parquet": ".parquet", "a.tsv": ".tsv"}
    assert {name: format_of(Path(name)).kind for name in told} == told


def test_files_are_named_by_as_little_of_their_paths_as_tells_them_apart():
    paths = [Path(text) for text in ("/x/en/p.csv", "/x/de/p.csv", "/y/de/p.csv", "/x/q.csv")]
    assert names_of([(path, 1) for path in paths]) == ["en/p.csv", "x/de/p.csv", "y/de/p.csv", "q.csv"]
    assert names_of([(path, 2) for path in paths[3:]]) == ["x/q.csv"]
    assert names_of([(paths[0], 1)], ["p.csv"]) == ["en/p.csv"]
    with pytest.raises(UserError, match=r"p\.csv: the file is named twice"):
        names_of([(paths[0], 1), (Path("/x/fr/../en/p.csv"), 1)])


@given(
    paths=st.lists(st.lists(st.sampled_from("abc"), min_size=1, max_size=4), min_size=1, max_size=8, unique_by=tuple)
)
def test_names_tell_files_apart_in_any_order(paths):
    files = [(Path("/", *parts), 1) for parts in paths]
    names = names_of(files)
    assert len(set(names)) == len(names)
    assert all(str(path).endswith(name) for (path, _), name in zip(files, names, strict=True))
    assert names_of(files[::-1]) == names[::-1]
