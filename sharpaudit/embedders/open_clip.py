"""Image and text towers of CLIP models as open_clip has them: `open_clip:<architecture>`, from a folder.

The folder `open_clip/<architecture>` of the weights is one as the hub has them: open_clip_config.json, which says how
the model is built and how pictures are prepared, and open_clip_model.safetensors. Nothing of it is guessed: a config
that does not say how pictures are prepared is refused.

Shapes: N pictures or texts, D dimension.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from sharpaudit.devices import forbid_tf32
from sharpaudit.embedders.base import Describer, Embedder, Needs
from sharpaudit.embedders.network import NetworkDescriber, unit
from sharpaudit.embedders.weights import Shelf, Weights, find_weights, sha256_of_file
from sharpaudit.errors import UserError, printable
from sharpaudit.images import Pixels
from sharpaudit.tables.records import digest_of

FOLDER, CONFIG, WEIGHTS = "open_clip", "open_clip_config.json", "open_clip_model.safetensors"
PREPARED = ("mean", "std", "interpolation", "resize_mode")
"""What a config must say of pictures."""
LISTED: Mapping[str, str] = {
    "a2bbb24d4723b3c61c9a3790198b679274bb6fcb6f962b3ee1d6fa34eb85d1a0": "the lab's, which ships (docs/lab.md)",
}
"""SHA-256 of weights, and where they are from."""


@dataclass(frozen=True)
class OpenClip(Embedder):
    """architecture: the folder's name. config: what open_clip_config.json says. config_sha256: of that file."""

    architecture: str = ""
    weights: Weights | None = None
    config_sha256: str = ""
    dimension: int = 0

    version = 1
    licence = "the terms of its weights are those of whoever published them"
    texts = True
    needs = Needs(memory_bytes=2**32)

    @property
    def name(self) -> str:  # type: ignore[override]
        """open_clip:<architecture>; without one the name of all of them."""
        return f"open_clip:{self.architecture}" if self.architecture else "open_clip"

    @property
    def digest(self) -> str:  # type: ignore[override]
        """Covers the config and the weights, once they are known."""
        return digest_of(["open_clip", self.version, self.config_sha256, self.weights and self.weights.sha256])

    def form(self, which: str) -> OpenClip:
        """The card of an architecture."""
        if not re.fullmatch(r"\w[\w.+-]*", which, re.ASCII):
            named = f'embedder "open_clip:{printable(which)}"'
            raise UserError(f'{named}: name the folder of a model after the colon, for instance "open_clip:ViT-B-32"')
        return replace(self, architecture=which)

    def with_weights(self, shelf: Shelf) -> OpenClip:
        """The card of the model in the shelf's folder. Raises UserError."""
        weights = find_weights(self.name, [f"{FOLDER}/{self.architecture}/{WEIGHTS}"], LISTED, shelf)
        config = weights.path.with_name(CONFIG)
        told = _config(config)
        return replace(
            self, weights=weights, config_sha256=sha256_of_file(config), dimension=told["model_cfg"]["embed_dim"]
        )

    def open(self, device: torch.device, batch_size: int) -> Describer:
        """Both towers. Raises UserError for a folder that open_clip cannot read."""
        import open_clip

        if self.weights is None:
            raise ValueError(f"{self.name}: with_weights comes first")
        forbid_tf32()
        folder = self.weights.path.parent
        try:
            model, prepare = open_clip.create_model_from_pretrained(f"local-dir:{folder}", device=device)
            tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
        except Exception as error:
            # Of a folder that holds something else, it raises whatever it meets.
            told = printable(" ".join(str(error).split())[:200] or type(error).__name__)
            raise UserError(f"{printable(str(folder))}: open_clip cannot read this model: {told}") from error
        return _Towers(self, model.eval(), prepare, tokenizer, device, batch_size)


class _Towers(Describer):
    """An open model. prepare: a picture of Pillow to (3, H, W)."""

    def __init__(
        self, card: OpenClip, model: Any, prepare: Any, tokenizer: Any, device: torch.device, batch_size: int
    ) -> None:
        from torchvision.transforms.functional import to_pil_image

        def network(pictures: Sequence[Pixels]) -> torch.Tensor:
            stacked = torch.stack([prepare(to_pil_image(picture)) for picture in pictures])
            return model.encode_image(stacked.to(device))  # type: ignore[no-any-return]

        self._pictures = NetworkDescriber(card.name, card.dimension, network, batch_size, one_size=True)
        self._card, self._model, self._tokenizer = card, model, tokenizer
        self._device, self._batch_size = device, batch_size

    def describe(self, images: Sequence[Pixels]) -> npt.NDArray[np.float32]:
        return self._pictures.describe(images)

    @torch.no_grad()
    def describe_texts(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        rows_ND = np.empty((len(texts), self._card.dimension), dtype=np.float32)
        for first in range(0, len(texts), self._batch_size):
            some = slice(first, first + self._batch_size)
            tokens = self._tokenizer(list(texts[some])).to(self._device)
            rows_ND[some] = unit(self._model.encode_text(tokens))
        return rows_ND


def _config(path: Path) -> dict[str, Any]:
    """What the config says. Raises UserError where it does not say how the model and its pictures are made."""
    try:
        told = json.loads(path.read_bytes())
        dimension, prepared = told["model_cfg"]["embed_dim"], told["preprocess_cfg"]
        missing = [name for name in PREPARED if name not in prepared]
    except OSError as error:
        raise UserError(f"{printable(str(path))}: cannot read the config of this model: {error.strerror}") from error
    except (ValueError, LookupError, TypeError) as error:
        raise UserError(
            f"{printable(str(path))}: not a config of open_clip, which has model_cfg with embed_dim, and preprocess_cfg"
        ) from error
    if missing or not isinstance(dimension, int):
        what = f"preprocess_cfg without {' and '.join(missing)}" if missing else "an embed_dim that is no number"
        raise UserError(
            f"{printable(str(path))}: {what}; nothing of it is guessed: take the config that its makers give"
        )
    return dict(told)


OPEN_CLIP = OpenClip()
