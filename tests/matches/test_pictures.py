"""Training pictures of a folder, with their captions."""

from __future__ import annotations

import pytest

from sharpaudit.errors import UserError
from sharpaudit.images import MAX_BYTES
from sharpaudit.matches import pictures
from sharpaudit.matches.pictures import pictures_in


@pytest.fixture
def folder(tmp_path):
    for name in ("b.png", "a/z.JPG", "a/y.jpeg", "c.webp", "notes.txt", "d.gif"):
        path = tmp_path / "training" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return tmp_path / "training"


def captions(folder, text: str | bytes):
    path = folder.parent / "captions.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_pictures_come_sorted_from_all_depths(folder):
    found = list(pictures_in(folder))
    assert [p.path for p in found] == ["a/y.jpeg", "a/z.JPG", "b.png", "c.webp", "d.gif"]
    assert [p.data for p in found] == [p.path.encode() for p in found]
    assert {(p.source, p.caption, p.reference_id) for p in found} == {("training", None, None)}


def test_captions_are_kept_exactly(folder):
    table = captions(folder, '\ufefffile,more,caption\r\nb.png,1,"a ""red"", cat\nunder 🌳"\r\na/z.JPG,2,\r\n')
    found = {p.path: p.caption for p in pictures_in(folder, table)}
    assert found == {"b.png": 'a "red", cat\nunder 🌳', "a/z.JPG": "", "a/y.jpeg": None, "c.webp": None, "d.gif": None}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,text\nb.png,x\n", "needs the columns file and caption, has file, text"),
        ("", "needs the columns"),
        ("file,caption\nmissing.png,x\n", 'no picture "missing.png"'),
        ("file,caption\nb.png,x\nb.png,y\n", "line 3.*twice"),
        ("file,caption\nb.png\n", "line 2"),
        (b"file,caption\nb.png,\xff\n", "cannot read captions"),
        ('file,caption\nb.png,"open\n', "cannot read captions"),
        ("file,caption\nb.png," + "x" * 200_000, "cannot read captions"),
    ],
)
def test_captions_that_cannot_be_right_are_refused_at_once(folder, text, message):
    with pytest.raises(UserError, match=message):
        pictures_in(folder, captions(folder, text))


def test_missing_or_empty_folders_and_captions_are_refused_at_once(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    for arguments in ((tmp_path / "none",), (tmp_path / "empty",), (folder / "b.png",), (folder, tmp_path / "no.csv")):
        with pytest.raises(UserError, match=str(arguments[-1])):
            pictures_in(*arguments)


def test_a_huge_file_is_read_only_so_far_as_to_be_refused(folder, monkeypatch):
    monkeypatch.setattr(pictures, "MAX_BYTES", 4)
    assert {len(p.data) for p in pictures_in(folder)} == {5}
    assert MAX_BYTES > 4
