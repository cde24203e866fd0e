"""An index built by units is that of one pass, whoever did them and however often the build was ended."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from copy import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.indexing import shards
from pipelines.indexing.build import Asked, build
from pipelines.indexing.shards import UNITS, picture_worker
from pipelines.stages.base import Work
from sharpaudit.config import RunConfig
from sharpaudit.embedders.base import Embedder
from sharpaudit.embedders.weights import Shelf
from sharpaudit.errors import UserError
from sharpaudit.images import encode_png, sha256_hex
from sharpaudit.matches.build import build_index
from sharpaudit.matches.checking import faults_of
from sharpaudit.matches.index import open_index
from sharpaudit.matches.sources import folder as module
from sharpaudit.matches.sources.folder import FolderLayout, pictures_in
from sharpaudit.matches.writing import Kept
from sharpaudit.plugs import EMBEDDERS
from sharpaudit.tables.lock import hold
from sharpaudit.tables.shards import Manifest
from tests.support.shells import bare
from tests.support.toys import EMBEDDER

LOCAL = RunConfig()


def png(seed: int) -> bytes:
    return encode_png(np.random.default_rng(seed).integers(0, 256, (24, 24, 3), dtype=np.uint8))


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Thirty files in units of four: pictures, some of them twice, damaged ones, and what is none."""
    monkeypatch.setattr(module, "UNIT_FILES", 4)
    place = tmp_path / "pictures"
    place.mkdir()
    for i in range(22):
        (place / f"{i:02d}.png").write_bytes(png(i % 17))
    for i in range(22, 26):
        (place / f"{i:02d}.png").write_bytes(b"damaged")
    for i in range(26, 30):
        (place / f"{i:02d}.txt").write_text("about")
    (place / "again").symlink_to(place)
    return place


def asked(place: Path, **changes: object) -> Asked:
    return replace(Asked("folder", {"folder": str(place)}, {}, ("pixels-16",)), **changes)


def content(index: Path) -> dict[str, bytes]:
    return {str(path.relative_to(index)): path.read_bytes() for path in sorted(index.rglob("*")) if path.is_file()}


def ids(index: Path) -> list[str]:
    return list(open_index(index, "pixels-16").reference_ids())


def test_units_make_the_index_of_one_pass(pictures: Path, tmp_path: Path) -> None:
    whole = build_index(tmp_path / "whole", "pixels-16", pictures_in(pictures))
    made = build(tmp_path / "units", asked(pictures), Kept(), LOCAL)
    assert replace(made, digest="") == replace(whole, digest="")
    assert made.not_looked_at == {".txt": 4}
    assert (made.duplicates, made.repeated, made.statuses) == (5, 1, {"ok": 17, "unreadable_image": 4})
    one, two = (open_index(tmp_path / name, "pixels-16") for name in ("whole", "units"))
    assert list(one.reference_ids()) == list(two.reference_ids())
    assert np.array_equal(one.vectors.whole(), two.vectors.whole())
    assert one.holding == two.holding
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pictures", "units", "whole"]


KILLED = """
import os, signal, sys
from pathlib import Path
from pipelines.indexing import shards
from pipelines.indexing.build import Asked, build
from sharpaudit.config import RunConfig
from sharpaudit.matches.writing import Kept
from sharpaudit.matches.sources import folder
folder.UNIT_FILES = 4
done, count = shards.PictureWorker.do, []
def dying(self, work):
    found = done(self, work)
    count.append(work)
    if len(count) == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return found
shards.PictureWorker.do = dying
build(Path(sys.argv[2]), Asked("folder", {"folder": sys.argv[1]}, {}, ("pixels-16",)), Kept(), RunConfig())
"""


@pytest.fixture
def killed(pictures: Path, tmp_path: Path) -> Path:
    """Where a build was killed after four of its units."""
    call = [sys.executable, "-c", KILLED, str(pictures), str(tmp_path / "index")]
    assert subprocess.run(call, env=bare(), capture_output=True, timeout=60).returncode == -9
    assert not (tmp_path / "index").exists()
    return tmp_path / "index"


@pytest.fixture
def did(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """First files of the units that are described."""
    first: list[str] = []

    def counting(root: Path, guard: object) -> object:
        worker = picture_worker(root, guard)
        do = worker.do

        def counted(work: Work) -> Manifest:
            with (root / UNITS).open("rb") as stream:
                stream.seek(work.payload["at"])
                first.append(json.loads(stream.readline())["entries"][0][0])
            return do(work)

        worker.do = counted
        return worker

    monkeypatch.setattr("pipelines.indexing.build.picture_worker", counting)
    return first


def test_a_killed_build_goes_on_and_nothing_is_described_twice(
    killed: Path, pictures: Path, tmp_path: Path, did: list[str]
) -> None:
    build(killed, asked(pictures), Kept(), LOCAL)
    assert did == ["16.png", "20.png", "24.png", "28.txt"]
    build(tmp_path / "undisturbed", asked(pictures), Kept(), LOCAL)
    assert content(killed) == content(tmp_path / "undisturbed")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index", "pictures", "undisturbed"]


def test_what_changed_meanwhile_is_described_again(killed: Path, pictures: Path, did: list[str]) -> None:
    (pictures / "05.png").write_bytes(png(99) + b"")
    os.utime(pictures / "05.png", ns=(0, 1))
    build(killed, asked(pictures), Kept(), LOCAL)
    assert did == ["04.png", "16.png", "20.png", "24.png", "28.txt"]
    place = killed.parent / "whole"
    build_index(place, "pixels-16", pictures_in(pictures))
    assert ids(killed) == ids(place)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"options": {"allow_unreadable": True}}, r"begun with other settings \(source\)"),
        ({"paths": {"folder": "elsewhere"}}, "not a folder of training pictures"),
    ],
)
def test_another_build_is_not_gone_on_with(killed: Path, pictures: Path, changes: dict[str, object], says: str) -> None:
    with pytest.raises(UserError, match=says):
        build(killed, asked(pictures, **changes), Kept(), LOCAL)
    build(killed, asked(pictures, batch_size=3), Kept(), LOCAL)


def test_vectors_may_be_half_as_large_and_pictures_stay_away(pictures: Path, tmp_path: Path) -> None:
    build(tmp_path / "whole", asked(pictures), Kept(), LOCAL)
    build(tmp_path / "small", asked(pictures), Kept("float16", thumbnails=False), LOCAL)
    whole, small = (open_index(tmp_path / name, "pixels-16") for name in ("whole", "small"))
    assert list(whole.reference_ids()) == list(small.reference_ids())
    assert np.abs(whole.vectors.whole() - small.vectors.whole()).max() < 1e-3
    assert small.thumbnail(0) is None
    assert small.manifest.profiles["pixels-16"].dtype == "float16"


def test_one_index_holds_the_vectors_of_several_embedders(pictures: Path, tmp_path: Path) -> None:
    EMBEDDERS.add(EMBEDDER)
    try:
        build(tmp_path / "both", asked(pictures, profiles=("pixels-16", "mean-colour")), Kept(), LOCAL)
        for name in ("pixels-16", "mean-colour"):
            build(tmp_path / name, asked(pictures, profiles=(name,)), Kept(), LOCAL)
            both, alone = open_index(tmp_path / "both", name), open_index(tmp_path / name, name)
            assert np.array_equal(both.vectors.whole(), alone.vectors.whole())
            assert list(both.reference_ids()) == list(alone.reference_ids())
        assert list(faults_of(tmp_path / "both")) == []
        with pytest.raises(UserError, match=r'made with profile "mean-colour" .* and "pixels-16" .*, but "sscd'):
            open_index(tmp_path / "both", "sscd-disc-mixup-320", vouched(tmp_path))
    finally:
        EMBEDDERS.remove("mean-colour")


def vouched(folder: Path) -> Shelf:
    """Weights that are none; nobody opens them to compare cards."""
    (folder / "sscd_disc_mixup.onnx").write_bytes(b"none")
    return Shelf(folder, (sha256_hex(b"none"),))


def test_what_one_embedder_cannot_describe_is_not_in_the_index(pictures: Path, tmp_path: Path) -> None:
    """A plain picture has a colour, and no contrast."""
    (pictures / "plain.png").write_bytes(encode_png(np.full((8, 8, 3), 99, np.uint8)))
    EMBEDDERS.add(EMBEDDER)
    try:
        made = build(tmp_path / "both", asked(pictures, profiles=("mean-colour", "pixels-16")), Kept(), LOCAL)
    finally:
        EMBEDDERS.remove("mean-colour")
    assert made.statuses == {"no_descriptor": 1, "ok": 17, "unreadable_image": 4}


def test_what_is_described_is_not_removed_where_something_else_has_the_name(killed: Path, pictures: Path) -> None:
    killed.mkdir()
    with pytest.raises(UserError, match=r"index: exists already, and .*-building\.inprogress holds what a build"):
        build(killed, asked(pictures), Kept(), LOCAL)
    killed.rmdir()
    build(killed, asked(pictures), Kept(), LOCAL)
    assert sorted(path.name for path in killed.parent.iterdir()) == ["index", "pictures"]


def test_a_worker_with_other_weights_describes_nothing(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On its machine lie weights that somebody vouches for as well, and which are others."""
    real = shards.cards_of
    monkeypatch.setattr(shards, "cards_of", lambda told: [replace_digest(card) for card in real(told)])
    with pytest.raises(UserError, match="the weights of an embedder are not those that the build began with"):
        build(tmp_path / "index", asked(pictures), Kept(), LOCAL)


def replace_digest(card: Embedder) -> Embedder:
    other = copy(card)
    other.digest = "other weights"
    return other


def test_two_builds_of_one_index_give_way(pictures: Path, tmp_path: Path) -> None:
    place = tmp_path / ".index-building.inprogress"
    place.mkdir()
    with hold(place), pytest.raises(UserError, match="already running"):
        build(tmp_path / "index", asked(pictures, batch_size=7), Kept(), LOCAL)
    assert not (place / "build.json").exists()
    build(tmp_path / "index", asked(pictures), Kept(), LOCAL)


@pytest.mark.parametrize(("layout", "name"), [("webdataset", "set.tar"), ("parquet", "set.parquet")])
def test_archives_and_tables_are_gone_on_with(
    pictures: Path, tmp_path: Path, layout: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "set").mkdir()
    files = sorted(pictures.glob("*.png"))[:12]
    for half in range(2):
        some = files[half * 6 : half * 6 + 6]
        if layout == "webdataset":
            with tarfile.open(tmp_path / f"set/{half}-{name}", "w") as archive:
                for path in some:
                    archive.add(path, path.name)
        else:
            pq.write_table(pa.table({"image": [p.read_bytes() for p in some]}), tmp_path / f"set/{half}-{name}")
    one = Asked(layout, {"place": str(tmp_path / "set")}, {}, ("pixels-16",))
    real, done = shards.PictureWorker.do, []

    def dying(self: shards.PictureWorker, work: Work) -> Manifest:
        done.append(work)
        if len(done) == 2:
            raise KeyboardInterrupt
        return real(self, work)

    monkeypatch.setattr(shards.PictureWorker, "do", dying)
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "index", one, Kept(), LOCAL)
    assert build(tmp_path / "index", one, Kept(), LOCAL).statuses == {"ok": 12}
    assert len(done) == 3


def test_names_that_are_no_unicode_come_through(pictures: Path, tmp_path: Path) -> None:
    (pictures / os.fsdecode(b"\xff.png")).write_bytes(png(50))
    assert build(tmp_path / "index", asked(pictures), Kept(), LOCAL).statuses["ok"] == 18


def test_units_and_their_states_are_json(pictures: Path) -> None:
    units = list(FolderLayout(pictures).units())
    assert json.loads(json.dumps([unit.payload for unit in units])) == [unit.payload for unit in units]
    assert [unit.pictures for unit in units][:3] == [4, 4, 4]


@pytest.mark.ray
def test_workers_of_ray_make_the_same_index(pictures: Path, tmp_path: Path, ray_cluster: None) -> None:
    build(tmp_path / "local", asked(pictures), Kept(), LOCAL)
    build(tmp_path / "ray", asked(pictures), Kept(), RunConfig(executor="ray", workers=2))
    assert content(tmp_path / "ray") == content(tmp_path / "local")
