"""An audit whose second instrument verifies what the first finds, from the configuration to the page and back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipelines.operations.replay import replay_prompt
from pipelines.stages.search import SampleSearch
from sharpaudit.errors import UserError
from sharpaudit.matches.build import build_index
from sharpaudit.matches.sources.base import ReferencePicture
from sharpaudit.plugs import EMBEDDERS
from tests.support.audits import audit, tables
from tests.support.toys import EMBEDDER

BOTH = 'matches.profiles=["pixels-16", "mean-colour"]'


@pytest.fixture(scope="module", autouse=True)
def _mean_colour() -> Iterator[None]:
    EMBEDDERS.add(EMBEDDER)
    yield
    EMBEDDERS.remove(EMBEDDER.name)


@pytest.fixture(scope="module")
def twice(config_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The testbed's index, described by both."""
    rows = pq.read_table(config_path.parent / "testbed/index/references/00000.parquet").to_pylist()
    pictures = [ReferencePicture(row["reference_id"], "set", None, row["path"], row["thumbnail"]) for row in rows]
    folder = tmp_path_factory.mktemp("twice") / "index"
    build_index(folder, ["pixels-16", "mean-colour"], pictures)
    return folder


@pytest.fixture(scope="module")
def run(config_path: Path, twice: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("both") / "run"
    audit(config_path, root, f"matches.index={twice}", BOTH)
    return root


def test_every_copy_lies_above_both_lines_and_every_finding_is_one(run: Path, clean: Path) -> None:
    found = tables(run)
    (band,) = found["bands"]
    assert (band["profile"], band["verified_by"]) == ("pixels-16", "mean-colour")
    for row in found["matches"]:
        above = row["similarity"] > band["copy_above"] and row["verified_similarity"] > band["verified_above"]
        assert (row["band"] == "copy") == above
    facts = json.loads((run / "report/facts.json").read_bytes())
    copied = {row["prompt_id"] for row in found["matches"] if row["band"] == "copy"}
    assert {row["prompt_id"] for row in facts["findings"]["rows"]} <= copied
    assert facts["findings"]["rows"]
    assert [row["profile"] for row in facts["bands"]["alone"]] == ["pixels-16", "mean-colour"]
    # The first instrument by itself finds what an audit with it alone finds.
    alone = json.loads((clean / "report/facts.json").read_bytes())
    assert facts["bands"]["alone"][0]["copy_above"] == pytest.approx(alone["bands"]["copy_above"], abs=1e-9)
    assert facts["bands"]["alone"][0]["flagged"] == alone["copies"]["flagged"]["copied"]


def test_a_finding_is_replayed_with_both(run: Path) -> None:
    found = json.loads((run / "report/facts.json").read_bytes())["findings"]["rows"]
    assert replay_prompt(run, found[0]["prompt_id"]).same


def test_a_replay_sees_another_verdict_of_the_second(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = json.loads((run / "report/facts.json").read_bytes())["findings"]["rows"]
    whole = SampleSearch._verified
    monkeypatch.setattr(SampleSearch, "_verified", lambda *given: [[v - 0.01 for v in row] for row in whole(*given)])
    assert not replay_prompt(run, found[0]["prompt_id"]).same


def test_an_index_without_the_second_is_refused(config_path: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r'made with profile "pixels-16" .* but "mean-colour"'):
        audit(config_path, tmp_path / "run", BOTH)


def test_an_instrument_does_not_verify_itself(config_path: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="pixels-16 cannot verify itself"):
        audit(config_path, tmp_path / "run", 'matches.profiles=["pixels-16", "pixels-16"]')


def test_the_key_of_before_is_refused_with_the_name_of_today(config_path: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r'unknown key "matches.profile": it is matches.profiles now'):
        audit(config_path, tmp_path / "run", "matches.profile=pixels-16")
