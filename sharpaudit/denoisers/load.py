"""From a `[model]` section to a model: an analytic model.json, a diffusers folder or a pinned hub revision.

The libraries of real models take seconds to import, so an analytic audit does not import them. A process keeps
the model that it used last, so that a worker holds it across shards and stages; two never share the memory.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch

from sharpaudit.config import ModelConfig
from sharpaudit.denoisers import snapshot
from sharpaudit.denoisers.base import Denoiser, Tokenizer
from sharpaudit.denoisers.devices import choose_device, choose_dtype
from sharpaudit.denoisers.gaussian import GaussianDenoiser, GaussianTokenizer, digest_of_spec, read_spec
from sharpaudit.errors import UserError, printable

Kind = Literal["gaussian", "diffusion"]
_held: dict[tuple[str, torch.device, torch.dtype], Denoiser] = {}


def model_digest(config: ModelConfig) -> str:
    """The digest of the model's content, equal to its denoiser's, without loading its weights."""
    return _digest(*_locate(config))


def load_tokenizer(config: ModelConfig) -> Tokenizer:
    """The model's tokenizer, without its weights."""
    kind, path = _locate(config)
    if kind == "gaussian":
        return GaussianTokenizer()
    from sharpaudit.denoisers.diffusion import DiffusionTokenizer

    return DiffusionTokenizer(path)


def load_denoiser(config: ModelConfig) -> Denoiser:
    """The model on the device and in the precision that the section asks for."""
    kind, path = _locate(config)
    device, dtype = _placement(config, kind)
    key = (_digest(kind, path), device, dtype)
    if key not in _held:
        _held.clear()
        loaded = _load(kind, path, device, dtype)
        if _digest(kind, path) != key[0]:
            raise UserError(f"{printable(str(path))}: changed while it was read; give the same command again")
        _held[key] = loaded
    return _held[key]


def placement(config: ModelConfig, *, gpus_elsewhere: bool = False) -> tuple[torch.device, torch.dtype]:
    """Where and in which precision the model computes. Raises UserError for what cannot be had.

    gpus_elsewhere: whether machines with GPUs compute for this one, which may have none.
    """
    return _placement(config, _locate(config)[0], gpus_elsewhere)


def _placement(config: ModelConfig, kind: Kind, gpus_elsewhere: bool = False) -> tuple[torch.device, torch.dtype]:
    if kind == "gaussian":
        # The analytic model knows one place and one precision, whatever the machine has.
        return torch.device("cpu"), torch.float32
    device = choose_device(config.device, gpus_elsewhere=gpus_elsewhere)
    return device, choose_dtype(config.dtype, device)


def _digest(kind: Kind, path: Path) -> str:
    return digest_of_spec(read_spec(path)) if kind == "gaussian" else snapshot.digest(path, snapshot.model_files(path))


def _load(kind: Kind, path: Path, device: torch.device, dtype: torch.dtype) -> Denoiser:
    if kind == "gaussian":
        return GaussianDenoiser.from_file(path)
    from sharpaudit.denoisers.diffusion import DiffusionDenoiser

    return DiffusionDenoiser(path, device, dtype)


def _locate(config: ModelConfig) -> tuple[Kind, Path]:
    """What sort of model it is, and its file or folder."""
    if config.path is None:
        # The config has exactly one of path and repo, and no repo without a revision.
        return "diffusion", snapshot.download(str(config.repo), str(config.revision))
    path = Path(config.path)
    if (path / snapshot.INDEX).is_file():
        return "diffusion", path
    file = path / "model.json" if path.is_dir() else path
    if file.suffix == ".json" and file.is_file() and snapshot.read_json(file).get("kind") == "gaussian":
        return "gaussian", file
    raise UserError(
        f"model.path = {printable(str(path))}: no model there; a model is a diffusers folder with model_index.json, "
        'or a model.json of kind "gaussian"'
    )
