"""Vectors of a further embedder are those that a build with both would have; without all of them nothing changes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from pipelines.cli import cli
from pipelines.indexing import adding
from pipelines.indexing.adding import add
from pipelines.indexing.build import Asked
from sharpaudit.config import RunConfig
from sharpaudit.errors import UserError
from sharpaudit.images import encode_png
from sharpaudit.matches import build as build_module
from sharpaudit.matches import writing
from sharpaudit.matches.build import build_index
from sharpaudit.matches.checking import faults_of
from sharpaudit.matches.index import open_index
from sharpaudit.matches.sources.folder import pictures_in
from sharpaudit.plugs import EMBEDDERS
from tests.support.golden import FIRST, unpacked
from tests.support.toys import EMBEDDER

LOCAL = RunConfig()


def png(seed: int) -> bytes:
    return encode_png(np.random.default_rng(seed).integers(0, 256, (24, 24, 3), dtype=np.uint8))


@pytest.fixture(autouse=True)
def _toy() -> Iterator[None]:
    EMBEDDERS.add(EMBEDDER)
    yield
    EMBEDDERS.remove(EMBEDDER.name)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    place = tmp_path / "pictures"
    place.mkdir()
    for i in range(9):
        (place / f"{i}.png").write_bytes(png(i % 7))
    (place / "damaged.png").write_bytes(b"damaged")
    return place


@pytest.fixture
def index(pictures: Path, tmp_path: Path) -> Path:
    build_index(tmp_path / "index", "pixels-16", pictures_in(pictures))
    return tmp_path / "index"


def asked(place: Path, profile: str = "mean-colour") -> Asked:
    return Asked("folder", {"folder": str(place)}, {}, (profile,))


def test_what_is_added_is_what_a_build_with_both_has(index: Path, pictures: Path, tmp_path: Path) -> None:
    before = open_index(index, "pixels-16")
    digest = add(index, asked(pictures), LOCAL)
    build_index(tmp_path / "both", ["pixels-16", "mean-colour"], pictures_in(pictures))
    for name in ("pixels-16", "mean-colour"):
        added, both = open_index(index, name), open_index(tmp_path / "both", name)
        assert np.array_equal(added.vectors.whole(), both.vectors.whole())
        assert list(added.reference_ids()) == list(both.reference_ids())
        assert added.digest == digest != before.digest
    assert list(faults_of(index)) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["both", "index", "pictures"]


def test_pictures_that_moved_are_known_by_their_bytes(index: Path, pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "moved").mkdir()
    for i, path in enumerate(sorted(pictures.iterdir(), reverse=True)):
        path.rename(tmp_path / f"moved/{i}-{path.name}")
    add(index, asked(tmp_path / "moved"), LOCAL, "float16")
    assert open_index(index, "mean-colour").manifest.profiles["mean-colour"].dtype == "float16"
    assert list(faults_of(index)) == []


def test_without_a_picture_the_index_stays_as_it_was(index: Path, pictures: Path) -> None:
    before = {path: path.read_bytes() for path in index.rglob("*") if path.is_file()}
    whole = (pictures / "3.png").read_bytes()
    (pictures / "3.png").unlink()
    with pytest.raises(UserError, match=r"1 of its references have no picture .* the first is 3\.png"):
        add(index, asked(pictures), LOCAL)
    assert {path: path.read_bytes() for path in index.rglob("*") if path.is_file()} == before
    (pictures / "3.png").write_bytes(whole)
    add(index, asked(pictures), LOCAL)


def test_what_ended_before_the_manifest_named_it_is_done_again(
    index: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(adding, "replace_file", lambda *given: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            add(index, asked(pictures), LOCAL)
    open_index(index, "pixels-16")
    add(index, asked(pictures), LOCAL)
    assert list(faults_of(index)) == []


def test_what_is_there_and_an_earlier_format_are_refused(index: Path, pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds vectors of pixels-16 already"):
        add(index, asked(pictures, "pixels-16"), LOCAL)
    with pytest.raises(UserError, match="is of an earlier format, to which nothing is added"):
        add(unpacked(FIRST, tmp_path) / "testbed/index", asked(pictures), LOCAL)


def test_a_part_without_vectors_is_no_obstacle(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (pictures / "zz.png").write_bytes(b"damaged as well")
    monkeypatch.setattr(writing, "PART_ROWS", 1)
    monkeypatch.setattr(build_module, "_ROWS_AT_ONCE", 1)
    build_index(tmp_path / "index", "pixels-16", pictures_in(pictures), batch_size=1)
    assert open_index(tmp_path / "index", "pixels-16").manifest.parts[-1].vectors == 0
    add(tmp_path / "index", asked(pictures), LOCAL)
    assert list(faults_of(tmp_path / "index")) == []
    assert len(open_index(tmp_path / "index", "mean-colour").vectors.whole()) == 7


def test_the_command_says_what_it_did(index: Path, pictures: Path) -> None:
    call = ["index", "add", str(index), str(pictures), "--profile", "mean-colour"]
    done = CliRunner().invoke(cli, call)
    assert done.exit_code == 0, done.output
    assert (
        f"{index}: holds vectors of mean-colour too, digest {open_index(index, 'mean-colour').digest[:16]}"
        in done.output
    )
