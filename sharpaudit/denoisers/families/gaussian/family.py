"""The analytic model (model.py) as a family: a model.json and nothing else, wherever it lies."""

from __future__ import annotations

from pathlib import Path

import torch

from sharpaudit.config import ModelConfig
from sharpaudit.denoisers.base import Denoiser, Tokenizer
from sharpaudit.denoisers.families.base import Family
from sharpaudit.denoisers.families.gaussian.model import GaussianDenoiser, GaussianTokenizer, digest_of_spec, read_spec


class GaussianFamily(Family):
    """A mixture of Gaussians."""

    name = "gaussian"

    def files(self, index: Path) -> list[str]:
        """The specification is the model."""
        return [index.name]

    def content(self, index: Path) -> str:
        """Of what the specification says, however it is written."""
        return digest_of_spec(read_spec(index))

    def tokenizer(self, index: Path) -> Tokenizer:
        """One for all of them."""
        return GaussianTokenizer()

    def placement(self, config: ModelConfig, *, gpus_elsewhere: bool = False) -> tuple[torch.device, torch.dtype]:
        """One place and one precision, whatever is asked for and the machine has."""
        return torch.device("cpu"), torch.float32

    def load(self, index: Path, device: torch.device, dtype: torch.dtype) -> Denoiser:
        """The mixture."""
        return GaussianDenoiser.from_file(index)


GAUSSIAN = GaussianFamily()
