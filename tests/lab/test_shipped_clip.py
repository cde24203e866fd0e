"""The CLIP that ships: small, the one that its log tells of, and it sees what is said that it sees."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest

from pipelines.research.lab import clip
from pipelines.research.lab.build import read_recipe
from sharpaudit.config import LAB
from sharpaudit.embedders.base import embedder, open_embedder
from sharpaudit.embedders.open_clip import LISTED
from sharpaudit.embedders.weights import Shelf
from sharpaudit.images import sha256_hex

WEIGHTS = LAB / "weights"
MAX_BYTES = 4_000_000


def test_it_is_small_and_the_one_of_its_log() -> None:
    assert sum(file.stat().st_size for file in WEIGHTS.rglob("*") if file.is_file()) <= MAX_BYTES
    told = json.loads((WEIGHTS / "training.json").read_text())
    assert told["training"] == asdict(clip.Training())
    digest = sha256_hex((WEIGHTS / "open_clip/lab/open_clip_model.safetensors").read_bytes())
    assert digest == told["sha256"]
    assert digest in LISTED


def test_it_sees_what_its_log_says() -> None:
    told = json.loads((WEIGHTS / "training.json").read_text())["held out"]
    _, held = clip.pairs(read_recipe(LAB / "emoji")[0], clip.Training())
    describer = open_embedder(embedder("open_clip:lab", Shelf(WEIGHTS)), device="cpu")
    found = clip.told_apart(describer, held, clip.Training().held_out)
    for of in ("retrieval", "one part changed"):
        assert found[of] == pytest.approx(told[of], abs=0.02)
