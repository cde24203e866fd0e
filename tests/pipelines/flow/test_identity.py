"""Every foreign plug that a configuration names is part of what its run stands on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.flow.identity import identities, named_plugs
from pipelines.stages.base import Inputs
from sharpaudit import plugs
from sharpaudit.config import AuditConfig, parse
from sharpaudit.plugs import EMBEDDERS, FAMILIES, HERE
from tests.support.toys import EMBEDDER, FAMILY

TOYS = {FAMILIES: FAMILY, EMBEDDERS: EMBEDDER}
FIRST = {
    "model family": ["ingest", "fit_unconditional", "sample"],
    "embedder": ["bands"],
}
"""The stages whose own rows a plug of a kind shapes; those after them follow by their fingerprints."""


@pytest.fixture
def config(tmp_path: Path) -> Iterator[AuditConfig]:
    """An audit by the toys, of files that need not be there but for the model's index."""
    (tmp_path / "model.json").write_text(json.dumps({"kind": "mirrored"}))
    tree = {
        "model": {"path": str(tmp_path / "model.json")},
        "corpus": {"audit": "audit.csv"},
        "calibration": {"file": "harmless.csv"},
        "matches": {"index": "index", "profiles": ["mean-colour"]},
    }
    for kind, toy in TOYS.items():
        kind.add(toy)
    yield parse(tree, "test")
    for kind, toy in TOYS.items():
        kind.remove(toy.name)


def test_foreign_plugs_are_named_and_ours_are_not(config: AuditConfig) -> None:
    found = plugs.foreign(named_plugs(config))
    assert {entry["kind"]: entry["name"] for entry in found} == {kind.kind: toy.name for kind, toy in TOYS.items()}
    assert {(entry["distribution"], entry["digest"]) for entry in found} == {(HERE, "1"), (HERE, EMBEDDER.digest)}
    plugs.require(found, same=True)


@pytest.mark.parametrize("kind", FIRST)
def test_another_digest_of_a_plug_redoes_what_it_shapes(config: AuditConfig, kind: str) -> None:
    inputs = Inputs("m", "t", "i", "cpu", "float32", plugs=plugs.foreign(named_plugs(config)))
    changed = [{**entry, "digest": "2"} if entry["kind"] == kind else entry for entry in inputs.plugs]
    before, after = identities(config, inputs), identities(config, replace(inputs, plugs=changed))
    own = [name for name in before if before[name].fields != after[name].fields]
    assert own == FIRST[kind]
    redone = {name for name in before if before[name].fingerprint != after[name].fingerprint}
    assert redone == {"model family": set(before), "embedder": {"bands", "match", "corroborate"}}[kind]
