"""The files of a folder of training pictures: none goes unmentioned, and the walk ends."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sharpaudit.errors import UserError
from sharpaudit.images import encode_png, too_large
from sharpaudit.matches.sources import folder as module
from sharpaudit.matches.sources.base import NotLookedAt, ReferencePicture, Repeated
from sharpaudit.matches.sources.folder import pictures_in


@pytest.fixture
def folder(tmp_path):
    for name in ("b.png", "a/z.JPG", "a/y.jpeg", "c.webp", "notes.txt", "d.gif"):
        path = tmp_path / "training" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return tmp_path / "training"


def everything(folder, allow_unreadable=False):
    return list(pictures_in(folder, allow_unreadable=allow_unreadable))


def pictures(folder):
    return [item for item in pictures_in(folder) if isinstance(item, ReferencePicture)]


def test_pictures_come_sorted_from_all_depths(folder):
    found = pictures(folder)
    assert [p.path for p in found] == ["a/y.jpeg", "a/z.JPG", "b.png", "c.webp", "d.gif"]
    assert [p.data for p in found] == [p.path.encode() for p in found]
    assert {(p.source, p.caption, p.reference_id) for p in found} == {("training", None, None)}


def test_what_is_no_picture_is_counted_by_its_kind(folder):
    for name in ("a/b.TAR", "README", "notes.md", ".hidden", "x.tar.gz", "x.~1~", "._c.webp", "._d.png", "Thumbs.db"):
        (folder / name).write_bytes(b"\0\5\26\7\0\2" if name == "._c.webp" else b"text")
    kinds = {item.path: item.kind for item in everything(folder) if isinstance(item, NotLookedAt)}
    assert kinds == {
        "._c.webp": "AppleDouble",
        ".hidden": "no suffix",
        "README": "no suffix",
        "Thumbs.db": ".db",
        "a/b.TAR": ".tar",
        "notes.md": ".md",
        "notes.txt": ".txt",
        "x.tar.gz": ".gz",
        "x.~1~": "other suffix",
    }
    assert len(everything(folder)) == 5 + 10


@pytest.mark.parametrize("name", ["noname", "caption.txt", "picture.PNG.bak", ".hidden", "a.7f3c"])
def test_a_picture_is_told_by_its_bytes_whatever_its_name(tmp_path, name):
    data = encode_png(np.zeros((4, 4, 3), np.uint8))
    (tmp_path / name).write_bytes(data)
    assert [(p.path, p.data) for p in pictures_in(tmp_path)] == [(name, data)]


@pytest.mark.parametrize("suffix", [".jfif", ".JPE", ".jp2", ".heic", ".avif", ".tif", ".apng", ".jxl", ".bmp"])
def test_no_suffix_of_pictures_is_passed_over(tmp_path, suffix):
    (tmp_path / f"a{suffix}").write_bytes(b"")
    assert [(p.path, p.data) for p in pictures_in(tmp_path)] == [(f"a{suffix}", b"")]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sets(st.text("aB.-/~é\n", min_size=1, max_size=8), max_size=12))
def test_the_order_is_that_of_paths_as_strings(tmp_path, names):
    """The oracle: sorting all of them at once."""
    root = Path(tempfile.mkdtemp(dir=tmp_path))
    for name in sorted(names):
        with contextlib.suppress(OSError):
            path = root / f"{name.strip('/')}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"x")
    files = sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file())
    if files:
        assert [item.path for item in pictures_in(root)] == files


def test_links_to_files_and_folders_are_followed(folder, tmp_path):
    outside = tmp_path / "outside"
    (outside / "deep").mkdir(parents=True)
    for name in ("o.png", "deep/p.png", "note.txt"):
        (outside / name).write_bytes(name.encode())
    (folder / "linked").symlink_to(outside)
    (folder / "one.png").symlink_to(outside / "o.png")
    found = {item.path: item for item in everything(folder)}
    assert found["linked/o.png"].data == found["one.png"].data == b"o.png"
    assert found["linked/deep/p.png"].data == b"deep/p.png"
    assert found["linked/note.txt"].kind == ".txt"


def test_every_folder_is_read_once_however_links_run(folder, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "o.png").write_bytes(b"o")
    links = {
        "a/up": "..",  # a loop
        "a/above": tmp_path,  # above the folder: this would be a loop too
        "A": "a",  # sorted before the folder it leads to, whose own path stays
        "one": outside,
        "two": outside,
    }
    for name, target in links.items():
        (folder / name).symlink_to(target)
    (outside / "back").symlink_to(folder)
    items = everything(folder)
    repeated = {item.path for item in items if isinstance(item, Repeated)}
    assert repeated == {"A", "a/above", "a/up", "one/back", "two"}
    assert [p.path for p in pictures(folder)] == ["a/y.jpeg", "a/z.JPG", "b.png", "c.webp", "d.gif", "one/o.png"]


def test_as_many_links_as_there_are_paths_through_them_end(tmp_path):
    outside = tmp_path / "outside"
    for i in range(12):
        (outside / str(i)).mkdir(parents=True)
        (outside / str(i) / f"{i}.png").write_bytes(b"x")
        for j in range(12):
            (outside / str(i) / f"to{j}").symlink_to(outside / str(j))
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "link").symlink_to(outside / "0")
    assert len(pictures(tmp_path / "in")) == 12


def test_a_folder_given_by_a_link_is_that_folder(folder, tmp_path):
    (tmp_path / "alias").symlink_to(folder)
    assert [(p.path, p.source) for p in pictures(tmp_path / "alias")] == [(p.path, p.source) for p in pictures(folder)]


@pytest.mark.parametrize(("target", "name"), [("gone.png", "a.jpg"), ("itself.png", "itself.png"), ("gone", "folder")])
def test_a_link_that_leads_nowhere_is_a_picture_that_cannot_be_read(tmp_path, target, name):
    (tmp_path / name).symlink_to(target)
    (found,) = pictures_in(tmp_path)
    assert (found.path, found.data) == (name, None)
    assert found.problem.startswith("a link that leads nowhere: ")


def test_what_is_no_file_is_never_opened(tmp_path):
    """A pipe without a writer would not be opened before the end of time."""
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "null.png").symlink_to("/dev/null")
    with socket.socket(socket.AF_UNIX) as listening:
        before = os.getcwd()
        os.chdir(tmp_path)  # a socket's path is short
        try:
            listening.bind("s.png")
        finally:
            os.chdir(before)
        assert {item.path: item.kind for item in pictures_in(tmp_path)} == {
            "pipe.png": "fifo",
            "null.png": "device",
            "s.png": "socket",
        }


def test_a_pipe_that_takes_the_place_of_a_file_is_not_waited_for(tmp_path):
    (tmp_path / "a.png").write_bytes(b"x")
    items = pictures_in(tmp_path)
    (tmp_path / "b.png").write_bytes(b"x")
    first = next(items)
    (tmp_path / "b.png").unlink()
    os.mkfifo(tmp_path / "b.png")
    assert [first.path, *((p.path, p.data) for p in items)] == ["a.png", ("b.png", b"")]


def test_a_file_that_cannot_be_read_is_a_picture_with_its_problem(folder, monkeypatch):
    opened = os.open

    def refusing(path, *arguments, **options):
        if str(path).endswith(("b.png", "notes.txt")):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return opened(path, *arguments, **options)

    monkeypatch.setattr(module.os, "open", refusing)
    assert {p.path: p.problem for p in pictures(folder) if p.data is None} == {
        "b.png": "cannot be read: Permission denied",
        "notes.txt": "cannot be read: Permission denied",
    }


def test_a_folder_that_cannot_be_listed_ends_it_at_once_or_is_counted(folder, monkeypatch):
    listed = os.scandir

    def refusing(path):
        if str(path).endswith("/a"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return listed(path)

    monkeypatch.setattr(module.os, "scandir", refusing)
    with pytest.raises(UserError, match=r"training/a: cannot list .*Permission denied.*--allow-unreadable"):
        pictures_in(folder)
    kinds = {item.path: item.kind for item in everything(folder, True) if isinstance(item, NotLookedAt)}
    assert kinds == {"a": "unreadable folder", "notes.txt": ".txt"}


def test_names_that_no_text_holds_come_through(tmp_path):
    names = [b"\xff.png", b"new\nline.png", b"\x1b[2J.png", "\u202e.png".encode(), b" .png"]
    for name in names:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).write_bytes(name)
    assert sorted(p.data for p in pictures_in(tmp_path)) == sorted(names)


def test_unfinished_indexes_are_passed_over(folder):
    left = folder / f".index-{'0' * 32}.inprogress"
    left.mkdir()
    (left / "vectors.npy").write_bytes(b"x")
    assert len(everything(folder)) == 6


def test_a_deep_folder_needs_no_recursion(tmp_path):
    places = [f"{tmp_path}/" + "d/" * n for n in range(1, 1501)]
    for place in places:
        os.mkdir(place)
    picture = Path(f"{places[-1]}/a.png")
    picture.write_bytes(b"x")
    try:
        (found,) = pictures_in(tmp_path)
        assert found.path == "d/" * 1500 + "a.png"
    finally:  # whoever clears up after the tests recurses
        picture.unlink()
        for place in reversed(places):
            os.rmdir(place)


def test_a_file_whose_size_is_not_said_is_read_whole(folder, monkeypatch):
    told = os.fstat
    monkeypatch.setattr(module.os, "fstat", lambda place: SimpleNamespace(st_size=0, st_mode=told(place).st_mode))
    assert [p.data for p in pictures(folder)] == [p.path.encode() for p in pictures(folder)]


def test_a_huge_file_is_not_read(folder, monkeypatch):
    monkeypatch.setattr(module, "MAX_BYTES", 5)
    found = {p.path: (p.data, p.problem) for p in pictures(folder)}
    assert found["b.png"] == (b"b.png", None)
    assert found["c.webp"] == (None, too_large())
