"""The analytic model, whose sharpness and copies are known, and a tiny network that attends to tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from sharpaudit.config import ModelConfig
from sharpaudit.denoisers.base import Denoiser
from sharpaudit.denoisers.load import load_denoiser
from sharpaudit.mitigation.base import Case
from sharpaudit.seeds import sample_latents
from tests.support.tiny_models import write_model
from tests.support.wrapped import analytic

PROMPTS = ("planted 0", "planted 1", "a cat")


@pytest.fixture(scope="session")
def exact() -> Denoiser:
    return analytic((0.95, 0.6))


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="session")
def tiny(tiny_folder: Path) -> Denoiser:
    return load_denoiser(ModelConfig(path=str(tiny_folder), dtype="float32", device="cpu"))


def case(denoiser: Denoiser, prompts: Sequence[str] = PROMPTS, steps: int = 6) -> Case:
    keys = [(prompt, i) for i, prompt in enumerate(prompts)]
    x_T = sample_latents(0, keys, denoiser.latent_shape)
    return Case(denoiser, list(prompts), x_T, list(range(len(prompts))), 5.0, steps)


@dataclass
class Counting:
    """Counts rows that are evaluated, and those that a gradient went back through."""

    inner: Denoiser
    rows: int = 0
    back: int = 0
    most_rows: int = 10**9
    batches: list[int] = field(default_factory=list)

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def predict(self, x, t, conditioning, **options):
        if len(x) > self.most_rows:
            raise torch.OutOfMemoryError
        self.rows += len(x)
        self.batches.append(len(x))
        found = self.inner.predict(x, t, conditioning, **options)
        if found.x0_hat.requires_grad:
            found.x0_hat.register_hook(lambda gradient: self._count(len(gradient)))
        return found

    def _count(self, rows: int) -> None:
        self.back += rows
