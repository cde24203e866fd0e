"""Toy plugs as a stranger's package would declare them: of each kind the smallest that does something of its own."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from sharpaudit.denoisers.base import Denoiser, Tokenizer
from sharpaudit.denoisers.families.base import Family
from sharpaudit.denoisers.gaussian import GaussianDenoiser, GaussianSpec, GaussianTokenizer


class MirroredDenoiser(GaussianDenoiser):
    """The analytic model, its pictures turned around. digest: of the file that it was read from."""

    digest = ""

    def decode(self, latents_BCHW: torch.Tensor) -> torch.Tensor:
        return super().decode(latents_BCHW).flip(-1)


class MirroredFamily(Family):
    """{"kind": "mirrored"} and what else a model.json of the analytic model says."""

    name = "mirrored"
    digest = "1"

    def files(self, index: Path) -> list[str]:
        return [index.name]

    def tokenizer(self, index: Path) -> Tokenizer:
        return GaussianTokenizer()

    def load(self, index: Path, device: torch.device, dtype: torch.dtype) -> Denoiser:
        denoiser = MirroredDenoiser(GaussianSpec.model_validate(json.loads(index.read_bytes()) | {"kind": "gaussian"}))
        denoiser.digest = self.content(index)
        return denoiser


FAMILY = MirroredFamily()
