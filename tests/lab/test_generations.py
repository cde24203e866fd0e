"""Which prompts get generations, and that a prompt's depend on no other; on the analytic model, for speed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipelines.research.lab import labels as truth
from pipelines.research.lab.captions import families
from pipelines.research.lab.trainingset import Prompt
from sharpaudit.config import ModelConfig
from sharpaudit.denoisers.base import Denoiser
from sharpaudit.denoisers.load import load_denoiser


def prompts_of(captions: list[str], kind: str) -> list[Prompt]:
    """Prompts with these captions; the families only name their files."""
    every = families(colour=kind != "exact")
    return [
        Prompt(caption, replace(every[i], thing="owl", place=f"{kind} {i}"), kind, 0)
        for i, caption in enumerate(captions)
    ]


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = {"kind": "gaussian", "version": 1, "seed": 0, "latent_shape": [3, 8, 8]}
    model |= {"planted": [{"prompt": f"planted {i}", "share": 0.97} for i in range(3)]}
    path = tmp_path_factory.mktemp("lab") / "model.json"
    path.write_text(json.dumps(model))
    return path


@pytest.fixture(scope="module")
def denoiser(model_file: Path) -> Denoiser:
    return load_denoiser(ModelConfig(path=str(model_file)))


def test_planted_prompts_and_the_top_of_the_others_are_generated(
    denoiser: Denoiser, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts that the model memorises under a harmless name are among those that get generations."""
    monkeypatch.setattr(truth, "N_OTHERS", 10)
    planted = prompts_of(["planted 0"], "exact")
    hidden = ["planted 1", "planted 2"]
    others = prompts_of([f"a harmless caption {i}" for i in range(70)] + hidden, "seen")
    chosen = truth.to_generate(denoiser, [*planted, *others], seed=0)
    captions = list(chosen)
    assert (captions[0], chosen["planted 0"]) == ("planted 0", "planted")
    assert {chosen.get(caption) for caption in hidden} == {"ranked"}
    assert list(chosen.values()).count("drawn") == 10
    # Top 5% of 72 by each of three metrics, which agree in part, 10 more and the planted one.
    assert 1 + 4 + 10 <= len(captions) <= 1 + 3 * 4 + 10


def test_generations_are_the_same_whatever_else_is_generated(denoiser: Denoiser) -> None:
    prompts = prompts_of([f"a caption {i}" for i in range(6)], "seen")
    whole = list(truth.generations(denoiser, prompts, 0, truth.GUIDANCE))
    assert [prompt for some, _ in whole for prompt in some] == prompts
    pictures = np.concatenate([made for _, made in whole])
    assert pictures.shape == (6, truth.N_GENERATIONS, *pictures.shape[2:4], 3)
    ((_, alone),) = truth.generations(denoiser, prompts[4:5], 0, truth.GUIDANCE)
    assert (alone[0] == pictures[4]).all()
    assert len({picture.tobytes() for picture in np.concatenate(list(pictures))}) == 6 * truth.N_GENERATIONS
    ((_, other),) = truth.generations(denoiser, prompts[4:5], 0, truth.UNGUIDED)
    assert (other != alone).any()
