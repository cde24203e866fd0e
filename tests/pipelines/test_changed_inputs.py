"""The model or the reference index changes between two calls of a run, or while one is at work."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipelines.stages import ingest
from sharpaudit.config import ModelConfig
from sharpaudit.denoisers.families.gaussian.model import GaussianDenoiser
from sharpaudit.denoisers.load import load_denoiser
from sharpaudit.errors import UserError
from sharpaudit.lab.analytic import Sizes, write
from sharpaudit.matches import index as index_module
from sharpaudit.matches.index import open_index
from sharpaudit.matches.search import flat
from tests.support.audits import audit, tables


@pytest.fixture
def own(config_path: Path, clean: Path, tmp_path: Path) -> Path:
    """The small audit with inputs that a test may change, and its finished run beside it."""
    folder = Path(shutil.copytree(config_path.parent, tmp_path / "own"))
    shutil.copytree(clean, tmp_path / "own" / "run")
    return folder / config_path.name


def other_model(config_path: Path) -> None:
    """Another model under the same name: one planted prompt means its picture less often."""
    path = config_path.parent / "testbed/model.json"
    model = json.loads(path.read_text())
    model["planted"][0]["share"] /= 2
    path.write_text(json.dumps(model))


def other_index(config_path: Path) -> None:
    """Another index under the same name: fewer training pictures."""
    shutil.rmtree(config_path.parent / "testbed/index")
    write(config_path.parent / "other", Sizes(strong=6, weak=3, audited_harmless=40, harmless=240, other_references=5))
    shutil.move(config_path.parent / "other/index", config_path.parent / "testbed/index")


CHANGES: dict[str, tuple[Callable[[Path], None], set[str]]] = {
    "model": (other_model, {"corpus", "origins"}),
    "index": (other_index, {"corpus", "origins", "scores", "triage", "samples"}),
}
"""What is changed, and the tables that stay as they were when the change is wanted."""


@pytest.mark.parametrize("what", CHANGES)
def test_a_finished_run_meets_another_model_or_index(own: Path, clean: Path, what: str) -> None:
    change, stays = CHANGES[what]
    root = own.parent / "run"
    change(own)
    with pytest.raises(UserError, match=rf"{what} digest = \w+ \(now \w+\); add --update"):
        audit(own, root)
    assert tables(root) == tables(clean)
    outcome = audit(own, root, update=True)
    made, before = tables(root), tables(clean)
    same = {name for name in made if made[name] == before[name]}
    assert stays <= same
    assert "matches" not in same
    assert outcome.facts["reconciles"]
    # As if the run had begun with it.
    audit(own, own.parent / "direct")
    assert tables(own.parent / "direct") == made


@pytest.mark.parametrize("what", CHANGES)
def test_what_changes_under_a_run_is_refused_and_nothing_is_mixed(
    own: Path, clean: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    root, kept, real = tmp_path / "run", tmp_path / "kept", ingest.ingest

    def meanwhile(*given: object) -> int:
        """The run is bound and no worker has begun: now the files change."""
        shutil.copytree(own.parent / "testbed", kept)
        CHANGES[what][0](own)
        return real(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(ingest, "ingest", meanwhile)
    with pytest.raises(UserError, match=rf"{what} .*testbed/{what}.*: changed while the run was at work"):
        audit(own, root)
    monkeypatch.undo()
    assert not list(root.glob("fit/unconditional/*/part-*") if what == "model" else root.glob("matches/*/part-*"))
    shutil.rmtree(own.parent / "testbed")
    shutil.move(kept, own.parent / "testbed")
    audit(own, root)
    assert tables(root) == tables(clean)


def test_an_index_that_seems_unchanged_is_hashed_on_demand_only(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place, hashed = own.parent / "testbed/index", list[str]()
    real = index_module.sha256_of
    monkeypatch.setattr(index_module, "sha256_of", lambda path: hashed.append(path.name) or real(path))
    root = own.parent / "other"
    audit(own, root)
    files = ["00000.parquet", "00000.npy"]
    assert hashed[:2] == files
    del hashed[:]
    audit(own, root)
    assert hashed == []
    audit(own, root, verify_index=True)
    assert hashed == files
    del hashed[:]
    os.utime(place / "vectors/pixels-16/00000.npy")
    audit(own, root)
    assert hashed == files[1:]


def test_an_index_put_in_the_place_of_an_open_one_lends_it_no_pictures(own: Path) -> None:
    place = own.parent / "testbed/index"
    index = open_index(place, "pixels-16")
    before = {row: index.thumbnail(row) for row in range(len(index))}
    other_index(own)
    assert {row: index.thumbnail(row) for row in range(len(index))} == before
    with pytest.raises(UserError, match=r"testbed/index: the index changed while it was in use; nothing was made"):
        index.require_unchanged()
    assert open_index(place, "pixels-16").digest != index.digest


def test_an_index_written_over_while_it_is_searched_is_refused(
    own: Path, clean: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, real, place = tmp_path / "run", flat.search, own.parent / "testbed/index"

    def meanwhile(*given: object) -> object:
        """The same files, other bytes: what is mapped changes under the search."""
        found = real(*given)  # type: ignore[arg-type]
        with (place / "vectors/pixels-16/00000.npy").open("r+b") as stream:
            stream.seek(-4, os.SEEK_END)
            stream.write(b"\0\0\0\0")
        return found

    whole = (place / "vectors/pixels-16/00000.npy").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr("pipelines.stages.search.search", meanwhile)
        with pytest.raises(UserError, match="the index changed while it was in use"):
            audit(own, root)
    assert not list(root.glob("matches/*/part-*"))
    (place / "vectors/pixels-16/00000.npy").write_bytes(whole)
    audit(own, root)
    assert tables(root) == tables(clean)


def test_weights_or_an_index_that_change_while_they_are_read_are_refused(
    own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are hashed and then read: what is read must be what was hashed."""
    real = pq.ParquetFile

    def meanwhile(path: Path, **options: object) -> pq.ParquetFile:
        found = real(path, **options)
        os.utime(path)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(pq, "ParquetFile", meanwhile)
        with pytest.raises(UserError, match=r"testbed/index: changed while it was opened; give the same command again"):
            open_index(own.parent / "testbed/index", "pixels-16")

    read = GaussianDenoiser.from_file

    def changing(path: Path) -> GaussianDenoiser:
        denoiser = read(path)
        other_model(own)
        return denoiser

    other_model(own)  # one that this process does not hold yet
    config = ModelConfig(path=str(own.parent / "testbed/model.json"))
    with monkeypatch.context() as patch:
        patch.setattr(GaussianDenoiser, "from_file", changing)
        with pytest.raises(UserError, match=r"model\.json: changed while it was read; give the same command again"):
            load_denoiser(config)
    assert load_denoiser(config).digest
