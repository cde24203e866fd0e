"""A format is found by the end of a file's name, ours or another package's, and read as ours are."""

from __future__ import annotations

import gzip
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.stages import ingest
from sharpaudit import plugs
from sharpaudit.config import parse
from sharpaudit.corpus.assign import assign
from sharpaudit.corpus.files import files_of, format_of
from sharpaudit.corpus.read import read_rows
from sharpaudit.corpus.rows import Source
from sharpaudit.corpus.scratch import scratch
from sharpaudit.denoisers.families.gaussian.model import GaussianTokenizer
from sharpaudit.errors import UserError
from sharpaudit.plugs import FORMATS
from tests.support.toys import FORMAT

LIST = "# Prompts\n\n- a red boat\n- a blue hat\nno prompt\n"


@pytest.fixture
def added():
    FORMATS.add(FORMAT)
    yield FORMAT
    FORMATS.remove(FORMAT.name)


def prompts(path: Path) -> list[bytes | None]:
    return [row.prompt for row in read_rows(Source("audit:x", "audit", path))]


def test_a_format_of_another_package_is_one_declaration(tmp_path, added):
    (tmp_path / "a.MD-list").write_text(LIST)
    (tmp_path / "b.md-list.gz").write_bytes(gzip.compress(b"- a green cat\n"))
    assert [prompts(path) for path in files_of(tmp_path)] == [[b"a red boat", b"a blue hat"], [b"a green cat"]]
    assert [row.source_row for row in read_rows(Source("x", "audit", tmp_path / "a.MD-list"), 1)] == [1]
    (tmp_path / "none.md-list").write_text("no prompt\n")
    with pytest.raises(UserError, match=r"none\.md-list: the file has no row of data"):
        prompts(tmp_path / "none.md-list")
    (tmp_path / "c.csv").write_text("prompt\na\n")
    with pytest.raises(UserError, match=r"of several formats, for instance a\.MD-list and c\.csv"):
        files_of(tmp_path)


def test_it_is_ingested_and_named_as_what_the_audit_stands_on(tmp_path, added):
    (tmp_path / "audit.md-list").write_text(LIST)
    (tmp_path / "harmless.ndjson").write_text("".join(f'{{"prompt": "large hat {i}"}}\n' for i in range(40)))
    tree = {
        "model": {"path": "model.json"},
        "corpus": {"audit": str(tmp_path / "audit.md-list")},
        "calibration": {"file": str(tmp_path / "harmless.ndjson")},
        "matches": {"index": "index"},
    }
    config = parse(tree, "test")
    assert ingest.formats(config) == [".md-list", ".ndjson"]
    with scratch(tmp_path / "work") as rows:
        made = assign([(source, 0, None) for source in ingest.sources(config)], (), GaussianTokenizer(), 0, rows)
        audited = [prompt for part in made.corpus("audit", 10) for prompt in part["prompt"].to_pylist()]
    assert sorted(audited) == ["a blue hat", "a red boat"]


def test_a_format_that_is_not_installed_is_told_as_an_unknown_name(tmp_path):
    with pytest.raises(UserError, match=r"a\.md-list: a prompt file ends in \.csv, .*, \.txt, or in one of them"):
        format_of(tmp_path / "a.md-list")


def test_the_longest_end_that_is_known_is_the_format(added):
    FORMATS.add(replace(FORMAT, name=".notes.csv", packed=False))
    try:
        told = {"a.notes.csv": ".notes.csv", "a.b.csv": ".csv", "notes.csv": ".csv", "a.notes.csv.tsv": ".tsv"}
        assert {name: format_of(Path(name)).name for name in told} == told
        with pytest.raises(UserError, match="that may be compressed"):
            format_of(Path("a.notes.csv.gz"))
    finally:
        FORMATS.remove(".notes.csv")


def test_one_is_imported_when_a_file_has_it(tmp_path, monkeypatch):
    code = "from tests.support.toys import read_list\nfrom sharpaudit.corpus.formats.base import Format\n"
    (tmp_path / "a_list_format.py").write_text(f"{code}LIST = Format('.list', read_list, digest='2')\n")
    info = tmp_path / "list_format-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: list-format\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[sharpaudit.formats]\n.list = a_list_format:LIST\n")
    monkeypatch.syspath_prepend(tmp_path)
    plugs._offered.cache_clear()
    try:
        assert format_of(Path("a.csv")).name == ".csv"
        assert "a_list_format" not in sys.modules
        (tmp_path / "x.list").write_text(LIST)
        assert prompts(tmp_path / "x.list") == [b"a red boat", b"a blue hat"]
        assert FORMATS.origin(".list") == plugs.Origin("list-format", "1.0", "2")
    finally:
        plugs._offered.cache_clear()
        FORMATS._loaded.pop(".list", None)
