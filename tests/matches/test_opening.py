"""An index that was changed, cut or is of another making is refused by the file's name; older formats open."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from sharpaudit.embedders.pixels import PixelEmbedder
from sharpaudit.errors import UserError
from sharpaudit.images import sha256_hex
from sharpaudit.matches.build import build_index
from sharpaudit.matches.index import open_index
from sharpaudit.plugs import EMBEDDERS
from sharpaudit.tables.records import checksummed
from tests.support.reference_pictures import FILES, TABLE, VECTORS, broken_picture, flat_picture, picture


@pytest.fixture
def built(tmp_path):
    build_index(tmp_path / "index", "pixels-16", [picture(1), broken_picture(), picture(2), flat_picture(), picture(3)])
    return tmp_path / "index"


@pytest.mark.parametrize("counted", [True, False])
def test_an_index_of_format_1_opens(built, tmp_path, counted):
    """One of an earlier version still says that it did not count what was not looked at."""
    old = as_format_1(built, tmp_path / "old", {} if counted else {"not_looked_at": None, "training_size": None})
    index, new = open_index(old, "pixels-16"), open_index(built, "pixels-16")
    assert (index.holding is None) == (not counted)
    assert list(index.reference_ids()) == list(new.reference_ids())
    assert [index.thumbnail(row) for row in range(3)] == [new.thumbnail(row) for row in range(3)]
    assert np.array_equal(index.vectors.whole(), new.vectors.whole())
    (old / "vectors.npy").write_bytes(b"")
    with pytest.raises(UserError, match=r"vectors\.npy: not the file that was indexed"):
        open_index(old, "pixels-16")


def as_format_1(built, out, changes):
    """As versions before parts wrote it."""
    out.mkdir()
    for name, old in ((TABLE, "references.parquet"), (VECTORS, "vectors.npy")):
        shutil.copyfile(built / name, out / old)
    tree = json.loads((built / "manifest.json").read_bytes())
    kept = ("rows", "vectors", "duplicates", "statuses", "sources", "not_looked_at", "training_size")
    told = tree["profiles"]["pixels-16"]
    old = {name: tree[name] for name in kept} | {
        "format_version": 1,
        "profile": "pixels-16",
        "profile_version": told["version"],
        "profile_digest": told["digest"],
        "dimension": told["dimension"],
        "sha256": {"references.parquet": tree["sha256"][TABLE], "vectors.npy": tree["sha256"][VECTORS]},
    }
    old = {name: value for name, value in (old | changes).items() if value is not None or name not in changes}
    (out / "manifest.json").write_bytes(checksummed(old))
    return out


@pytest.mark.parametrize(
    "change",
    [{"training_size": "7"}, {"not_looked_at": [1]}, {"not_looked_at": {".txt": -1}}, {"not_looked_at": {"": "3"}}],
)
def test_counts_that_are_none_are_refused(built, change):
    rewrite_manifest(built, **change)
    with pytest.raises(UserError, match="not the manifest of an index"):
        open_index(built, "pixels-16")


@pytest.mark.parametrize("name", FILES)
def test_one_changed_byte_is_refused_by_the_file_name(built, name):
    data = (built / name).read_bytes()
    for place in np.linspace(0, len(data) - 1, 40).astype(int):
        for changed in {data[place] ^ 1, ord(" ")} - {data[place]}:
            (built / name).write_bytes(data[:place] + bytes([changed]) + data[place + 1 :])
            with pytest.raises(UserError, match=name):
                open_index(built, "pixels-16")
    (built / name).write_bytes(data)
    open_index(built, "pixels-16")


@pytest.mark.parametrize("name", FILES)
def test_cut_grown_and_missing_files_are_refused_by_name(built, name):
    data = (built / name).read_bytes()
    for changed in (b"", data[: len(data) // 2], data[:-1], data + b"\n"):
        (built / name).write_bytes(changed)
        with pytest.raises(UserError, match=name):
            open_index(built, "pixels-16")
    (built / name).unlink()
    with pytest.raises(UserError, match=name):
        open_index(built, "pixels-16")


@pytest.mark.parametrize("content", [b"[]", b"3", b"null", b'{"checksum": 1}', b"\xff", checksummed({"rows": 1})])
def test_a_foreign_manifest_is_refused(built, content):
    (built / "manifest.json").write_bytes(content)
    with pytest.raises(UserError, match=r"manifest\.json"):
        open_index(built, "pixels-16")


def rewrite_manifest(folder, **changes):
    tree = json.loads((folder / "manifest.json").read_bytes())
    del tree["checksum"]
    (folder / "manifest.json").write_bytes(checksummed(tree | changes))


def test_files_that_fit_their_hash_but_nothing_else_are_refused(built):
    (built / VECTORS).write_bytes(b"junk")
    parquet = sha256_hex((built / TABLE).read_bytes())
    rewrite_manifest(built, sha256={VECTORS: sha256_hex(b"junk"), TABLE: parquet})
    with pytest.raises(UserError, match=r"00000\.npy"):
        open_index(built, "pixels-16")


def test_pickled_vectors_are_never_loaded(built):
    np.save(built / VECTORS, np.array([{}], dtype=object))
    hashes = {name: sha256_hex((built / name).read_bytes()) for name in FILES[1:]}
    rewrite_manifest(built, sha256=hashes)
    with pytest.raises(UserError, match=r"00000\.npy"):
        open_index(built, "pixels-16")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"vectors": 2}, "not the manifest of an index"),
        ({"vectors": 2, "parts": [{"rows": 5, "vectors": 2}]}, "contradicts"),
        ({"profiles": {}}, "not the manifest of an index"),
        ({"parts": [{"rows": 5, "vectors": "3"}]}, "not the manifest of an index"),
        ({"rows": 6}, "not the manifest of an index"),
        ({"sha256": ["a"]}, "not the manifest of an index"),
        ({"parts": [{"rows": 5, "vectors": 3}, {"rows": 0, "vectors": 0}]}, r"references/00001\.parquet"),
    ],
)
def test_counts_that_do_not_agree_are_refused(built, change, says):
    rewrite_manifest(built, **change)
    with pytest.raises(UserError, match=says):
        open_index(built, "pixels-16")


@pytest.mark.parametrize("change", [{"dimension": 3}, {"dtype": "float16"}])
def test_a_profile_that_is_not_that_of_its_vectors_is_refused(built, change):
    rewrite_profile(built, **change)
    with pytest.raises(UserError, match="contradicts"):
        open_index(built, "pixels-16")


@pytest.mark.parametrize(
    "change", [{"dtype": "foo"}, {"dtype": "float64"}, {"dimension": 0}, {"version": "1"}, {"weights": {"file": "a"}}]
)
def test_a_profile_that_is_none_is_refused(built, change):
    rewrite_profile(built, **change)
    with pytest.raises(UserError, match="not the manifest of an index"):
        open_index(built, "pixels-16")


def rewrite_profile(built, **changes):
    told = json.loads((built / "manifest.json").read_bytes())["profiles"]["pixels-16"]
    rewrite_manifest(built, profiles={"pixels-16": told | changes})


def test_another_profile_is_refused_and_both_are_named(built, monkeypatch):
    monkeypatch.setattr(EMBEDDERS, "_added", {"pixels-8": PixelEmbedder(8)})
    with pytest.raises(UserError, match=r'"pixels-16" version 1.*"pixels-8" version 1'):
        open_index(built, "pixels-8")


@pytest.mark.parametrize("change", [{"version": 2}, {"digest": "0" * 64}])
def test_another_version_of_the_profile_is_refused(built, change):
    rewrite_profile(built, **change)
    with pytest.raises(UserError, match=r"version 2|00000000"):
        open_index(built, "pixels-16")


def test_another_format_is_refused(built):
    rewrite_manifest(built, format_version=99)
    with pytest.raises(UserError, match=r"format 99, this version reads 1 to 2"):
        open_index(built, "pixels-16")
