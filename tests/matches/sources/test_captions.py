"""Captions: what a csv or jsonl names is what the file system has, or is refused at once."""

from __future__ import annotations

import json
import unicodedata

import pytest

from sharpaudit.errors import UserError
from sharpaudit.matches.sources.folder import pictures_in

COMPOSED, DECOMPOSED = (unicodedata.normalize(form, "é/né.png") for form in ("NFC", "NFD"))


@pytest.fixture
def folder(tmp_path):
    for name in ("b.png", "a/z.JPG", "a/y.jpeg", "c.webp"):
        path = tmp_path / "training" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return tmp_path / "training"


def captions(folder, text: str | bytes, name: str = "../captions.csv"):
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def told(folder, table):
    return {p.path: p.caption for p in pictures_in(folder, table) if getattr(p, "caption", None) is not None}


def test_captions_are_kept_exactly(folder):
    table = captions(folder, '\ufefffile,more,caption\r\nb.png,1,"a ""red"", cat\nunder 🌳"\r\na/z.JPG,2,\r\n')
    assert told(folder, table) == {"b.png": 'a "red", cat\nunder 🌳', "a/z.JPG": ""}


@pytest.mark.parametrize("columns", ["file,caption", "file_name,text", "file_name,label,caption", "file,text"])
def test_the_columns_of_imagefolder_are_known(folder, columns):
    row = "a/z.JPG,1,a cat" if columns.count(",") == 2 else "a/z.JPG,a cat"
    assert told(folder, captions(folder, f"{columns}\n{row}\n")) == {"a/z.JPG": "a cat"}


@pytest.mark.parametrize("name", ["metadata.jsonl", "../elsewhere.jsonl", "../elsewhere.ndjson"])
def test_lines_of_json_are_read(folder, name):
    rows = [{"file_name": "b.png", "text": "one\n🌳"}, {"file_name": "./a/z.JPG", "text": "", "n": 3}]
    text = "\ufeff" + "\n\n".join(map(json.dumps, rows))
    assert told(folder, captions(folder, text, name)) == {"b.png": "one\n🌳", "a/z.JPG": ""}


@pytest.mark.parametrize("name", ["a/metadata.csv", "a/metadata.jsonl"])
def test_a_file_name_is_relative_to_its_captions_file_as_imagefolder_has_it(folder, name):
    text = "file_name,text\nz.JPG,x\n" if name.endswith("csv") else '{"file_name": "z.JPG", "text": "x"}\n'
    assert told(folder, captions(folder, text, name)) == {"a/z.JPG": "x"}
    if name.endswith("csv"):
        assert told(folder, captions(folder, "file,caption\na/z.JPG,x\n", name)) == {"a/z.JPG": "x"}


@pytest.mark.parametrize(("named", "there"), [(COMPOSED, DECOMPOSED), (DECOMPOSED, COMPOSED), (COMPOSED, COMPOSED)])
def test_a_name_is_found_in_either_unicode_form(tmp_path, named, there):
    assert COMPOSED != DECOMPOSED
    path = tmp_path / "training" / there
    path.parent.mkdir(parents=True)
    path.write_bytes(b"x")
    table = captions(tmp_path / "training", f"file,caption\n{named},x\n")
    assert told(tmp_path / "training", table) == {there: "x"}


def test_where_both_forms_are_there_each_has_its_own_caption(tmp_path):
    for name in (COMPOSED, DECOMPOSED):
        path = tmp_path / "training" / name
        path.parent.mkdir(parents=True)
        path.write_bytes(b"x")
    folder = tmp_path / "training"
    table = captions(folder, f"file,caption\n{COMPOSED},c\n{DECOMPOSED},d\n")
    assert told(folder, table) == {COMPOSED: "c", DECOMPOSED: "d"}
    assert told(folder, captions(folder, f"file,caption\n{COMPOSED},c\n")) == {COMPOSED: "c"}
    mixed = COMPOSED[0] + DECOMPOSED[2:]
    with pytest.raises(UserError, match="has several pictures like"):
        pictures_in(folder, captions(folder, f"file,caption\n{mixed},c\n"))


def test_a_name_through_a_link_within_the_folder_is_its_file(folder):
    (folder / "A").symlink_to("a")
    assert told(folder, captions(folder, "file,caption\nA/z.JPG,x\n")) == {"a/z.JPG": "x"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,text\nb.png,x\n", r"needs the columns file .* has path, text"),
        ("file,prompt\n", r"needs the columns file .* has file, prompt"),
        ("", "needs the columns.*has none"),
        ("file,caption\nmissing.png,x\n", 'no picture "missing.png"'),
        ("file,caption\n../captions.csv,x\n", "no picture"),
        ("file,caption\nb.png,x\n./b.png,y\n", "line 3.*twice"),
        ("file,caption\nb.png\n", "line 2"),
        (b"file,caption\nb.png,\xff\n", "cannot read captions"),
        ("file,caption\nb.png,x\n".encode("utf-16"), "cannot read captions"),
        ("file,caption\nb.png,x\n".encode("utf-16-le"), "needs the columns"),
        ('file,caption\nb.png,"open\n', "cannot read captions"),
        ("file,caption\nb.png," + "x" * 200_000, "cannot read captions"),
    ],
)
def test_captions_that_cannot_be_right_are_refused_at_once(folder, text, message):
    with pytest.raises(UserError, match=message) as caught:
        pictures_in(folder, captions(folder, text))
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"file_name": "b.png"}', "needs the columns.*has file_name"),
        ('{"file_name": "b.png", "text": null}', "line 1.*empty, cut"),
        ('{"file_name": 3, "text": "x"}', "line 1.*empty, cut"),
        ('["b.png", "x"]', "line 1 is no JSON object"),
        ('{"file_name": "b.png", "text": "x"', "cannot read captions"),
        ("[" * 100_000, "cannot read captions"),
    ],
)
def test_lines_of_json_that_cannot_be_right_are_refused_at_once(folder, text, message):
    with pytest.raises(UserError, match=message):
        pictures_in(folder, captions(folder, text, "../captions.jsonl"))
