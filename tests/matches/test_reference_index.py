"""An index is whole or absent, refuses what was changed, and loses no picture without a reason."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from sharpaudit.embedders.base import embedder, open_embedder
from sharpaudit.embedders.pixels import PixelDescriber
from sharpaudit.errors import Status, UserError
from sharpaudit.images import decode, sha256_hex, thumbnail
from sharpaudit.matches import build as build_module
from sharpaudit.matches import writing
from sharpaudit.matches.build import build_index, described, write_index
from sharpaudit.matches.index import open_index
from sharpaudit.matches.search import vectors as vectors_module
from sharpaudit.matches.search.flat import search
from sharpaudit.matches.sources.base import NotLookedAt, Repeated
from sharpaudit.matches.sources.folder import pictures_in
from sharpaudit.matches.writing import Kept
from sharpaudit.tables.schemas import REFERENCES
from tests.support.reference_pictures import FILES, TABLE, broken_picture, flat_picture, picture, pixels
from tests.support.shells import bare


@pytest.fixture
def built(tmp_path):
    build_index(tmp_path / "index", "pixels-16", [picture(1), broken_picture(), picture(2), flat_picture(), picture(3)])
    return tmp_path / "index"


def test_every_picture_has_one_outcome(tmp_path):
    pictures = [picture(1), broken_picture(), picture(1, path="again.png"), flat_picture(), picture(2)]
    summary = build_index(tmp_path / "index", "pixels-16", pictures)
    assert summary.pictures == len(pictures)
    assert summary.duplicates == 1
    assert summary.statuses == {"ok": 2, "unreadable_image": 1, "no_descriptor": 1}
    rows = pq.read_table(tmp_path / "index" / TABLE)
    assert rows.schema == REFERENCES.schema
    assert rows.column("path").to_pylist() == ["1.png", "broken.png", "flat.png", "2.png"]
    assert [reason is None for reason in rows.column("reason").to_pylist()] == [True, False, False, True]


def test_each_of_many_pictures_that_cannot_be_had_is_a_row_of_its_own(tmp_path, monkeypatch):
    """Of a thousand empty files none is a copy of another: each is a picture that is missing."""
    monkeypatch.setattr(build_module, "_ROWS_AT_ONCE", 3)
    lost = {"data": None, "problem": "cannot be read: Permission denied"}
    pictures = [picture(1), picture(1, path="again.png")]
    pictures += [picture(0, path=f"empty-{i}", data=b"") for i in range(5)]
    pictures += [picture(0, path=f"flat-{i}", data=flat_picture().data) for i in range(4)]
    pictures += [picture(0, path=f"lost-{i}", **lost) for i in range(3)]
    summary = build_index(tmp_path / "index", "pixels-16", pictures, batch_size=1)
    assert summary.duplicates == 1
    assert summary.statuses == {"ok": 1, "no_descriptor": 4, "unreadable_image": 8}
    assert summary.rejected_share == 12 / 13
    told = {(reason.text, reason.count, reason.example) for reason in summary.reasons}
    assert told == {
        ("an empty file", 5, "empty-0"),
        ("cannot be read: Permission denied", 3, "lost-0"),
        (Status.NO_DESCRIPTOR.describe(), 4, "flat-0"),
    }
    ids = pq.read_table(tmp_path / "index" / TABLE).column("reference_id").to_pylist()
    assert len(ids) == len(set(ids)) == 13


def test_reasons_that_differ_in_numbers_are_one_and_their_number_is_bounded(tmp_path):
    problems = [f"{i}x{i} pixels" for i in range(30)] + [
        f"reason {chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(60)
    ]
    pictures = [picture(0, path=str(i), data=None, problem=text) for i, text in enumerate(problems)]
    summary = build_index(tmp_path / "index", "pixels-16", [picture(1), *pictures])
    assert sum(reason.count for reason in summary.reasons) == 90
    assert ("0x0 pixels", 30, "0") in [(reason.text, reason.count, reason.example) for reason in summary.reasons]
    assert len(summary.reasons) == 21
    assert max(summary.reasons, key=lambda reason: reason.count).text == "other reasons"


def test_what_is_no_picture_is_counted_in_the_manifest(tmp_path):
    items = [
        picture(1),
        NotLookedAt("a.tar", ".tar"),
        Repeated("b"),
        NotLookedAt("c", "fifo"),
        NotLookedAt("d.tar", ".tar"),
    ]
    summary = build_index(tmp_path / "index", "pixels-16", items, training_size=7)
    assert (summary.not_looked_at, summary.repeated, summary.pictures) == ({".tar": 2, "fifo": 1}, 1, 1)
    assert open_index(tmp_path / "index", "pixels-16").holding == {
        "references": 1,
        "duplicates": 0,
        "rejected": 0,
        "not_looked_at": {".tar": 2, "fifo": 1},
        "training_size": 7,
    }


def test_the_number_of_kinds_is_bounded(tmp_path):
    items = [NotLookedAt(str(i), f".{i}") for i in range(5000)]
    counts = build_index(tmp_path / "index", "pixels-16", [*items, picture(1)]).not_looked_at
    assert sum(counts.values()) == 5000
    assert len(counts) == 101


def test_a_training_size_below_what_is_there_is_refused_as_soon_as_it_shows(tmp_path, monkeypatch):
    monkeypatch.setattr(build_module, "_ROWS_AT_ONCE", 2)
    taken = []

    def pictures():
        for seed in range(20):
            taken.append(seed)
            yield picture(seed)

    with pytest.raises(UserError, match=r"--training-size 3: .*hold more"):
        build_index(tmp_path / "index", "pixels-16", pictures(), training_size=3, batch_size=1)
    assert len(taken) < 6
    assert list(tmp_path.iterdir()) == []
    repeated = [picture(seed % 3, path=str(seed)) for seed in range(20)]
    assert build_index(tmp_path / "index", "pixels-16", repeated, training_size=3).statuses == {"ok": 3}


def test_large_pictures_are_described_few_at_a_time(tmp_path, monkeypatch):
    """Else 64 photographs would be held at once."""
    sizes = []
    describe = PixelDescriber.describe
    monkeypatch.setattr(
        PixelDescriber, "describe", lambda self, images: sizes.append(len(images)) or describe(self, images)
    )
    monkeypatch.setattr(build_module, "_PIXELS_AT_ONCE", 4 * 24 * 24)
    build_index(tmp_path / "index", "pixels-16", (picture(seed) for seed in range(10)))
    assert sizes == [4, 4, 2]


def test_vectors_and_ids_belong_together(built):
    index = open_index(built, "pixels-16")
    assert list(index.reference_ids()) == [sha256_hex(picture(seed).data)[:32] for seed in (1, 2, 3)]
    assert index.vectors.whole().dtype == np.float32
    describer = open_embedder(index.embedder)
    assert np.array_equal(index.vectors.whole(), describer.describe([pixels(seed) for seed in (1, 2, 3)]))
    similarities, rows = search(index.vectors, describer.describe([pixels(3)]), 1)
    assert rows.tolist() == [[2]]
    assert similarities[0, 0] == pytest.approx(1, abs=1e-6)


def test_thumbnails_are_those_of_their_reference(built):
    index = open_index(built, "pixels-16")
    for row, seed in enumerate((1, 2, 3)):
        assert index.thumbnail(row) == thumbnail(pixels(seed))
    assert decode(index.thumbnail(0)).shape == (24, 24, 3)


def test_more_pictures_than_one_batch(tmp_path, monkeypatch):
    pictures = [broken_picture(), *(picture(i % 9, path=str(i)) for i in range(20)), flat_picture(), picture(50)]
    whole = build_index(tmp_path / "whole", "pixels-16", pictures)
    monkeypatch.setattr(build_module, "_ROWS_AT_ONCE", 3)
    pieces = build_index(tmp_path / "pieces", "pixels-16", iter(pictures), batch_size=1)
    assert (whole.pictures, whole.duplicates, whole.statuses) == (pieces.pictures, pieces.duplicates, pieces.statuses)
    one, two = open_index(tmp_path / "whole", "pixels-16"), open_index(tmp_path / "pieces", "pixels-16")
    assert np.array_equal(one.vectors.whole(), two.vectors.whole())
    assert list(one.reference_ids()) == list(two.reference_ids())
    assert [one.thumbnail(row) for row in range(len(one))] == [two.thumbnail(row) for row in range(len(two))]


def test_the_same_pictures_give_the_same_digest(tmp_path):
    first = build_index(tmp_path / "a", "pixels-16", [picture(1), picture(2)])
    second = build_index(tmp_path / "b", "pixels-16", [picture(1), picture(2)])
    other = build_index(tmp_path / "c", "pixels-16", [picture(1), picture(3)])
    assert first.digest == second.digest != other.digest
    assert open_index(tmp_path / "a", "pixels-16").digest == first.digest
    assert sha256_hex((tmp_path / "a" / "manifest.json").read_bytes()) == first.digest


def test_of_one_given_id_the_first_picture_stays(tmp_path):
    pictures = [picture(1, reference_id="a"), picture(2, reference_id="a"), picture(3, reference_id="b")]
    assert build_index(tmp_path / "index", "pixels-16", pictures).duplicates == 1
    index = open_index(tmp_path / "index", "pixels-16")
    assert list(index.reference_ids()) == ["a", "b"]
    assert index.thumbnail(0) == thumbnail(pixels(1))


def test_text_that_is_no_unicode_fails_no_batch(tmp_path):
    odd = picture(1, caption="a \ud800 lone surrogate", path=os.fsdecode(b"\xff.png"))
    build_index(tmp_path / "index", "pixels-16", [odd, picture(2)])
    rows = pq.read_table(tmp_path / "index" / TABLE)
    rows.validate(full=True)
    assert rows.column("path").to_pylist() == ["\\udcff.png", "2.png"]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_an_index_of_many_parts_is_searched_as_one_of_one(tmp_path, monkeypatch, dtype):
    items = [picture(i % 31, path=str(i)) for i in range(40)] + [broken_picture(), flat_picture(), picture(99)]
    whole = build_index(tmp_path / "whole", "pixels-16", items)
    monkeypatch.setattr(writing, "PART_ROWS", 5)
    monkeypatch.setattr(build_module, "_ROWS_AT_ONCE", 2)
    monkeypatch.setattr(vectors_module, "SLICE_BYTES", 4 * 768 * 3)
    card = embedder("pixels-16")

    def write(writer):
        for rows, vectors in described(items, [open_embedder(card)], writer.knows):
            writer.add(rows, vectors)

    parts = write_index(tmp_path / "parts", [card], Kept(dtype), write)
    assert (parts.statuses, parts.duplicates) == (whole.statuses, whole.duplicates)
    one, many = (open_index(tmp_path / name, "pixels-16") for name in ("whole", "parts"))
    assert len(many.manifest.parts) == 6
    assert list(one.reference_ids()) == list(many.reference_ids()) == [many.reference_id(i) for i in range(len(many))]
    assert [one.thumbnail(row) for row in range(len(one))] == [many.thumbnail(row) for row in range(len(many))]
    queries = one.vectors.whole()[::3]
    stored = one.vectors.whole().astype(dtype).astype(np.float32)
    assert np.array_equal(many.vectors.whole(), stored)
    found = search(many.vectors, queries, 4)
    assert all(np.array_equal(a, b) for a, b in zip(found, search(stored, queries, 4), strict=True))


def test_an_index_without_pictures_holds_none(tmp_path):
    def write(writer):
        for piece in described([picture(1), picture(2)], [open_embedder(embedder("pixels-16"))]):
            writer.add(*piece)

    write_index(tmp_path / "index", [embedder("pixels-16")], Kept(thumbnails=False), write)
    index = open_index(tmp_path / "index", "pixels-16")
    assert (index.thumbnail(0), index.manifest.thumbnails) == (None, False)
    for seed in (1, 2):
        held = b"".join(path.read_bytes() for path in (tmp_path / "index").rglob("*.parquet"))
        assert thumbnail(pixels(seed)) not in held


@pytest.mark.parametrize("make", [lambda path: path.mkdir(), lambda path: path.write_text("kept")])
def test_nothing_is_overwritten(tmp_path, make):
    make(tmp_path / "index")
    with pytest.raises(UserError, match="exists already"):
        build_index(tmp_path / "index", "pixels-16", [picture(1)])
    assert [p.name for p in tmp_path.iterdir()] == ["index"]


def test_an_index_of_nothing_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"none of 2 pictures.*broken\.png"):
        build_index(tmp_path / "index", "pixels-16", [broken_picture(), flat_picture()])
    with pytest.raises(UserError, match="none of 0 pictures"):
        build_index(tmp_path / "index", "pixels-16", [])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt, UserError])
def test_an_interrupted_build_leaves_nothing(tmp_path, failure, monkeypatch):
    monkeypatch.setattr(build_module, "_ROWS_AT_ONCE", 2)

    def interrupted():
        yield from (picture(i) for i in range(5))
        raise failure

    with pytest.raises(failure):
        build_index(tmp_path / "index", "pixels-16", interrupted(), batch_size=1)
    assert list(tmp_path.iterdir()) == []


def test_a_killed_build_leaves_no_index_and_can_be_repeated(tmp_path):
    script = """
import os, signal, sys
from pathlib import Path
from sharpaudit.matches.sources import folder as pictures
from sharpaudit.matches import build
synced = build.Files.sync
def dying(self, path):
    synced(self, path)
    if path.name == "manifest.json":
        os.kill(os.getpid(), signal.SIGKILL)
build.Files.sync = dying
build.build_index(Path(sys.argv[2]), "pixels-16", pictures.pictures_in(Path(sys.argv[1])))
"""
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(picture(1).data)
    out = tmp_path / "index"
    child = subprocess.run([sys.executable, "-c", script, str(tmp_path / "pictures"), str(out)], env=bare(), timeout=60)
    assert child.returncode == -9
    assert not out.exists()
    (left,) = tmp_path.glob(".index-*.inprogress")
    others = [tmp_path / f".index{part}.inprogress" for part in ("-short", f"2-{'0' * 32}", "")]
    for folder in others:
        folder.mkdir()
    assert build_index(out, "pixels-16", pictures_in(tmp_path / "pictures")).removed == [str(left)]
    assert not left.exists()
    assert all(folder.exists() for folder in others)
    assert len(open_index(out, "pixels-16")) == 1


def test_what_another_build_is_at_work_on_is_left_to_it(tmp_path):
    def pictures():
        yield picture(1)
        with pytest.raises(UserError, match=r"another build of this index is at work \(\.index-"):
            build_index(tmp_path / "index", "pixels-16", [picture(2)])
        yield picture(3)

    assert build_index(tmp_path / "index", "pixels-16", pictures()).statuses == {"ok": 2}
    assert [path.name for path in tmp_path.iterdir()] == ["index"]


def test_everything_is_synced_before_the_index_gets_its_name(tmp_path, monkeypatch):
    events = []
    for name in ("sync", "sync_folder", "rename"):
        original = getattr(build_module.Files, name)
        monkeypatch.setattr(
            build_module.Files,
            name,
            lambda self, *paths, _original=original, _name=name: (
                events.append((_name, paths[-1].name)),
                _original(self, *paths),
            ),
        )
    build_index(tmp_path / "index", "pixels-16", [picture(1)])
    renamed = events.index(("rename", "index"))
    assert {name for kind, name in events[:renamed] if kind == "sync"} == {Path(name).name for name in FILES}
    assert [kind for kind, _ in events[renamed - 1 :]] == ["sync_folder", "rename", "sync_folder"]
