"""From a `[model]` section to a model: an analytic model.json, a diffusers folder or a pinned hub revision.

The libraries of real models take seconds to import, so an analytic audit does not import them. A process keeps
the model that it used last, so that a worker holds it across shards and stages; two never share the memory.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import torch

from sharpaudit.config import ModelConfig
from sharpaudit.denoisers import hub, snapshot
from sharpaudit.denoisers.base import Denoiser, Tokenizer
from sharpaudit.denoisers.beside import Beside, beside
from sharpaudit.denoisers.devices import choose_device, choose_dtype
from sharpaudit.denoisers.files import names_in, read_json, reading
from sharpaudit.denoisers.gaussian import GaussianDenoiser, GaussianTokenizer, digest_of_spec, read_spec
from sharpaudit.errors import UserError, printable

Kind = Literal["gaussian", "diffusion"]
SINGLE_FILE = (".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".gguf")
_held: dict[tuple[str, torch.device, torch.dtype], Denoiser] = {}


def model_digest(config: ModelConfig) -> str:
    """The digest of the model's content, equal to its denoiser's, without loading its weights."""
    return _digest(*_locate(config))


def model_files(config: ModelConfig) -> list[str]:
    """The files that are read and hashed, relative to the model's folder: they say which variant it is."""
    kind, path = _locate(config)
    return [path.name] if kind == "gaussian" else snapshot.model_files(path)


def beside_model(config: ModelConfig) -> Beside:
    """What lies in the model's folder and is not read; nothing, for an analytic model."""
    kind, path = _locate(config)
    return Beside([], []) if kind == "gaussian" else beside(path, snapshot.model_files(path))


def load_tokenizer(config: ModelConfig) -> Tokenizer:
    """The model's tokenizer, without its weights, held against what its text encoder says to take."""
    kind, path = _locate(config)
    if kind == "gaussian":
        return GaussianTokenizer()
    from sharpaudit.denoisers.diffusion import fitting_tokenizer

    return fitting_tokenizer(path)


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
        return "diffusion", hub.download(str(config.repo), str(config.revision))
    path = Path(config.path)
    with reading(path):
        # Also where it is a link to nothing or a folder, to be named as that.
        if os.path.lexists(path / snapshot.INDEX):
            return "diffusion", path
        file = path / "model.json" if path.is_dir() else path
        if file.suffix == ".json" and file.is_file() and read_json(file).get("kind") == "gaussian":
            return "gaussian", file
        hint = _hint(path)
    raise UserError(
        f"model.path = {printable(str(path))}: no model there; a model is a diffusers folder with model_index.json, "
        f'or a model.json of kind "gaussian"{hint}'
    )


def _hint(path: Path) -> str:
    """What somebody may have meant by a path where no model is."""
    if (path.absolute().parent / snapshot.INDEX).is_file():
        return "; it is a part of the model in the folder above, which is the path to give"
    names = [path.name] if path.is_file() else names_in(path) if path.is_dir() else []
    whole = [name for name in names if name.lower().endswith(SINGLE_FILE)]
    if whole:
        return (
            f"; {printable(whole[0])} looks like a checkpoint in one file: make a folder of it with diffusers, "
            "StableDiffusionPipeline.from_single_file(FILE).save_pretrained(FOLDER)"
        )
    return ""
