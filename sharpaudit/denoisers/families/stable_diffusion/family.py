"""Stable Diffusion 1 and 2 (model.py) as a family: a folder as diffusers writes it (snapshot.py).

The libraries of networks take seconds to import: only a tokenizer and a denoiser need them.
"""

from __future__ import annotations

from pathlib import Path

import torch

from sharpaudit.denoisers.base import Denoiser, Tokenizer
from sharpaudit.denoisers.beside import Beside, beside
from sharpaudit.denoisers.families.base import Family, Fetch
from sharpaudit.denoisers.families.stable_diffusion.snapshot import (
    CONFIGS,
    PIPELINE,
    TOKENIZER_CONFIG,
    VOCABULARY,
    WEIGHTS,
    model_files,
)
from sharpaudit.denoisers.families.stable_diffusion.weights import (
    ADAPTER_CONFIG,
    INDEX_SUFFIX,
    STEMS,
    candidates,
    shard_names,
)
from sharpaudit.denoisers.files import INDEX, names_in


class StableDiffusionFamily(Family):
    """Models of a CLIP text encoder, a UNet of epsilon or v prediction, and an autoencoder."""

    name = PIPELINE

    def files(self, index: Path) -> list[str]:
        """Tokenizer, configurations and weights; the index itself is only compared."""
        return model_files(index.parent)

    def beside(self, index: Path) -> Beside:
        """Other files, and a LoRA or textual inversion among them."""
        return beside(index.parent, self.files(index))

    def tokenizer(self, index: Path) -> Tokenizer:
        """The CLIP tokenizer, held against what the text encoder says to take."""
        from sharpaudit.denoisers.families.stable_diffusion.model import fitting_tokenizer

        return fitting_tokenizer(index.parent)

    def load(self, index: Path, device: torch.device, dtype: torch.dtype) -> Denoiser:
        """The three networks."""
        from sharpaudit.denoisers.families.stable_diffusion.model import DiffusionDenoiser

        return DiffusionDenoiser(index.parent, device, dtype)

    def download(self, fetch: Fetch) -> Path:
        """Shards and variants are asked for only where a network's plain weights are not there: they are as large."""
        # An adapter's configuration too, so that a repository that has one is refused as its folder would be.
        more = [f"{part}/{name}" for part, stem in STEMS.items() for name in (stem + INDEX_SUFFIX, ADAPTER_CONFIG)]
        asked = [INDEX, TOKENIZER_CONFIG, *(f"tokenizer/{name}" for name in VOCABULARY), *CONFIGS, *WEIGHTS, *more]
        folder = fetch(asked)
        while more := [name for part in STEMS for name in _lacking(folder, part) if name not in asked]:
            folder = fetch(more)
            asked += more
        return folder


def _lacking(folder: Path, part: str) -> list[str]:
    """The shards of what is there, and patterns of variants where a part's plain weights are not."""
    found, stem = candidates(part, names_in(folder / part)), f"{part}/{STEMS[part]}"
    read = [found[""]] if "" in found else found.values()
    indices = [name for named in read for name in named if name.endswith(".json")]
    shards = [f"{part}/{name}" for index in indices for name in shard_names(folder / part / index)]
    return shards if "" in found else [*shards, f"{stem}.*.safetensors", f"{stem}*.safetensors*index*.json"]


STABLE_DIFFUSION = StableDiffusionFamily()
