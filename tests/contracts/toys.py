"""Toy plugs as a stranger's package would declare them: of each kind the smallest that does something of its own."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from sharpaudit.corpus.formats.base import Format
from sharpaudit.corpus.opened import open_text
from sharpaudit.corpus.rows import Row, Source, make_row
from sharpaudit.denoisers.base import Denoiser, Tokenizer
from sharpaudit.denoisers.families.base import Family
from sharpaudit.denoisers.gaussian import GaussianDenoiser, GaussianSpec, GaussianTokenizer
from sharpaudit.embedders.base import Describer, Embedder
from sharpaudit.images import Pixels


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


class MeanColour(Describer):
    def describe(self, images: Sequence[Pixels]) -> np.ndarray:
        return self._rows([image.mean(axis=(0, 1)) for image in images])

    def describe_texts(self, texts: Sequence[str]) -> np.ndarray:
        return self._rows([[255.0 * (word in text) for word in ("red", "green", "blue")] for text in texts])

    def _rows(self, colours_N3: Sequence[Sequence[float]]) -> np.ndarray:
        rows_N4 = np.array([[*colour, 64.0] for colour in colours_N3], np.float64).reshape(-1, 4)
        return (rows_N4 / np.linalg.norm(rows_N4, axis=1, keepdims=True)).astype(np.float32)


class MeanColourEmbedder(Embedder):
    """A picture is its mean colour, a text the colours that it names."""

    name, version, dimension, digest = "mean-colour", 1, 4, "mean colour, 64 beside it"
    texts = True

    def open(self, device: torch.device, batch_size: int) -> Describer:
        return MeanColour()


def read_list(source: Source) -> Iterator[Row]:
    """A prompt in each line that begins with a dash."""
    with open_text(source.path, lines=True) as file:
        dashed = (line[2:].rstrip(b"\r\n") for line in file if line.startswith(b"- "))
        yield from (make_row(source, i, prompt, {}) for i, prompt in enumerate(dashed))


FAMILY = MirroredFamily()
EMBEDDER = MeanColourEmbedder()
FORMAT = Format(".md-list", read_list, packed=True, digest="1")
