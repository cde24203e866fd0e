"""A family of models: everything that is asked of a model before it is one, in one declaration.

A model is a folder with an index file that names its family: `_class_name` of a model_index.json, as diffusers writes
it, or `kind` of a model.json. The family says which files make up the model, and loads them. Nothing else asks which
family a model is of: what follows sees a `Denoiser`.

`index` is the path of the index file everywhere below. Data is never code: a family reads numbers and settings, and
runs nothing that lies in the folder. What is amiss with a folder is a UserError of one line that names the file.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from sharpaudit.config import ModelConfig
from sharpaudit.denoisers.base import Denoiser, Tokenizer
from sharpaudit.denoisers.beside import Beside
from sharpaudit.denoisers.files import digest_of
from sharpaudit.devices import choose_device, choose_dtype
from sharpaudit.errors import UserError

Fetch = Callable[[Sequence[str]], Path]
"""Names and patterns of files of one revision of a repository to the local folder that holds them then, where there."""


class Family(ABC):
    """name: as index files have it. digest: of a plug (plugs.py); "" for ours.

    The denoiser's own digest is `content` of its index.
    """

    name: str
    digest: str = ""

    @abstractmethod
    def files(self, index: Path) -> list[str]:
        """All files that shape a result, relative to the index's folder, checked as far as that costs little."""

    @abstractmethod
    def tokenizer(self, index: Path) -> Tokenizer:
        """The tokenizer, without the model's weights."""

    @abstractmethod
    def load(self, index: Path, device: torch.device, dtype: torch.dtype) -> Denoiser:
        """The model on `device`, its network in `dtype`: what `placement` gave."""

    def content(self, index: Path) -> str:
        """Digest of the model's content, whatever its place, without loading it: by default that of its files."""
        return digest_of(index.parent, self.files(index))

    def beside(self, index: Path) -> Beside:
        """What lies in the folder and is not read, for people to know of; by default nothing is told."""
        return Beside([], [])

    def placement(self, config: ModelConfig, *, gpus_elsewhere: bool = False) -> tuple[torch.device, torch.dtype]:
        """Where and in which precision the model computes: what is asked for, or what of "auto" this machine bears.

        gpus_elsewhere: whether machines with GPUs compute for this one. Raises UserError for what cannot be had.
        """
        device = choose_device(config.device, gpus_elsewhere=gpus_elsewhere)
        return device, choose_dtype(config.dtype, device)

    def download(self, fetch: Fetch) -> Path:
        """The folder of a pinned hub revision, with the files that are read and no others. Most families have none."""
        raise UserError(f"model.repo: models of the family {self.name} are read from a folder: name it by model.path")
