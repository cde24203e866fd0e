"""`run --repair`: what was damaged is made again, and nothing else; a corpus is read once."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.operations.verify import faults
from sharpaudit.errors import IntegrityError, UserError
from sharpaudit.evidence.seal import MANIFEST
from sharpaudit.tables.runs import RunFolder
from sharpaudit.tables.schemas import CORPUS, MATCHES, SAMPLES, SCORES, SUBSPACE, TRIAGE
from sharpaudit.tables.shards import Manifest, TableFolder
from tests.support.audits import audit, tables


@pytest.fixture
def damaged(clean: Path, tmp_path: Path) -> Path:
    """A copy of a finished run."""
    return Path(shutil.copytree(clean, tmp_path / "run"))


def first(root: Path, table: object) -> tuple[TableFolder, Manifest]:
    folder = RunFolder.open(root).table(table)  # type: ignore[arg-type]
    return folder, folder.manifests()[0]


def test_damaged_shards_are_made_again_and_no_others(config_path: Path, clean: Path, damaged: Path) -> None:
    """A file cut, one missing, one changed, a manifest and a list of shards spoiled."""
    folder, cut = first(damaged, SCORES)
    folder.path(cut).write_bytes(folder.path(cut).read_bytes()[:100])
    folder, gone = first(damaged, SUBSPACE)
    folder.path(gone).unlink()
    folder, changed = first(damaged, TRIAGE)
    data = bytearray(folder.path(changed).read_bytes())
    data[len(data) // 2] ^= 1
    folder.path(changed).write_bytes(data)
    folder, spoiled = first(damaged, MATCHES)
    (folder.manifests_folder / f"{spoiled.shard}.json").write_text("{}")
    folder, whole = first(damaged, SAMPLES)
    (folder.folder / "table.json").write_text("[")
    kept = folder.path(whole).stat().st_mtime_ns
    assert len(faults(damaged)) >= 5
    with pytest.raises(IntegrityError):
        audit(config_path, damaged)
    audit(config_path, damaged, repaired=True)
    assert tables(damaged) == tables(clean)
    assert faults(damaged) == []
    assert folder.path(whole).stat().st_mtime_ns == kept
    assert audit(config_path, damaged, repaired=True).evaluations == 0


@pytest.mark.parametrize("how", ["missing", "another of the same size"])
def test_a_damaged_picture_is_made_again(config_path: Path, clean: Path, damaged: Path, how: str) -> None:
    _, manifest = first(damaged, SAMPLES)
    picture = damaged / manifest.images[0]
    good = picture.read_bytes()
    picture.unlink()
    if how != "missing":
        picture.write_bytes(bytes(len(good)))
    assert faults(damaged)
    audit(config_path, damaged, repaired=True)
    assert picture.read_bytes() == good
    assert tables(damaged) == tables(clean)
    assert faults(damaged) == []


def cut(picture: Path, _: Path) -> None:
    picture.write_bytes(picture.read_bytes()[:-20])


def swapped(picture: Path, other: Path) -> None:
    picture.write_bytes(other.read_bytes())


def gone(picture: Path, _: Path) -> None:
    picture.unlink()


@pytest.mark.parametrize(
    ("until", "spoil"),
    [
        ("sample", swapped),
        ("match", cut),
        *(pytest.param("sample", spoil, marks=pytest.mark.chaos) for spoil in (cut, gone)),
        *(pytest.param("match", spoil, marks=pytest.mark.chaos) for spoil in (swapped, gone)),
    ],
)
def test_a_picture_that_is_not_what_was_stored_is_neither_matched_nor_sealed(
    config_path: Path, clean: Path, tmp_path: Path, until: str, spoil: Callable[[Path, Path], None]
) -> None:
    root = tmp_path / "run"
    audit(config_path, root, until=until)
    _, manifest = first(root, SAMPLES)
    one, other = (root / image for image in manifest.images[:2])
    spoil(one, other)
    for _ in range(2):
        with pytest.raises(IntegrityError, match=rf"^{one}: this picture .*--repair makes its shard again$"):
            audit(config_path, root)
    assert not (root / MANIFEST).exists()
    audit(config_path, root, repaired=True)
    assert tables(root) == tables(clean)
    assert faults(root) == []


def test_a_damaged_corpus_is_said_and_nothing_is_forgotten(config_path: Path, damaged: Path) -> None:
    folder, manifest = first(damaged, CORPUS)
    folder.path(manifest).write_bytes(b"PAR1")
    before = sorted(path for path in damaged.rglob("manifests/*.json"))
    with pytest.raises(UserError, match="the corpus of a run is read once: begin a new run"):
        audit(config_path, damaged, repaired=True)
    assert sorted(path for path in damaged.rglob("manifests/*.json")) == before
