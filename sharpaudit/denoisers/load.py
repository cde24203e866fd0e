"""From a `[model]` section to a model: its index file names the family, which does the rest (families/base.py).

A process keeps the model that it used last, so that a worker holds it across shards and stages; two never share the
memory.
"""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path

import torch

from sharpaudit.config import ModelConfig
from sharpaudit.denoisers.base import Denoiser, Tokenizer
from sharpaudit.denoisers.beside import Beside
from sharpaudit.denoisers.families.base import Family
from sharpaudit.denoisers.files import INDEX, names_in, read_json, reading, require_file
from sharpaudit.denoisers.hub import fetched
from sharpaudit.errors import UserError, nearest, printable
from sharpaudit.plugs import FAMILIES

SPEC = "model.json"
"""The index of families that diffusers does not know; any other name that ends in .json is one as good."""
SINGLE_FILE = (".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".gguf")
_held: dict[tuple[str, str, torch.device, torch.dtype], Denoiser] = {}


def family_of(config: ModelConfig) -> str:
    """The name of the model's family (plugs.FAMILIES)."""
    return _locate(config)[0].name


def model_digest(config: ModelConfig) -> str:
    """The digest of the model's content, equal to its denoiser's, without loading its weights."""
    family, index = _locate(config)
    return family.content(index)


def model_files(config: ModelConfig) -> list[str]:
    """The files that are read and hashed, relative to the model's folder: they say which variant it is."""
    family, index = _locate(config)
    return family.files(index)


def beside_model(config: ModelConfig) -> Beside:
    """What lies in the model's folder and is not read."""
    family, index = _locate(config)
    return family.beside(index)


def load_tokenizer(config: ModelConfig) -> Tokenizer:
    """The model's tokenizer, without its weights."""
    family, index = _locate(config)
    return family.tokenizer(index)


def placement(config: ModelConfig, *, gpus_elsewhere: bool = False) -> tuple[torch.device, torch.dtype]:
    """Where and in which precision the model computes. Raises UserError for what cannot be had.

    gpus_elsewhere: whether machines with GPUs compute for this one, which may have none.
    """
    return _locate(config)[0].placement(config, gpus_elsewhere=gpus_elsewhere)


def load_denoiser(config: ModelConfig) -> Denoiser:
    """The model on the device and in the precision that the section asks for."""
    family, index = _locate(config)
    device, dtype = family.placement(config)
    key = (family.name, family.content(index), device, dtype)
    if key not in _held:
        _held.clear()
        loaded = family.load(index, device, dtype)
        if family.content(index) != key[1]:
            where = config.path or index.parent
            raise UserError(f"{printable(str(where))}: changed while it was read; give the same command again")
        if loaded.digest != key[1]:
            raise UserError(
                f"model family {family.name}: its denoiser has the digest {printable(loaded.digest, 16)}, its content "
                f"{printable(key[1], 16)}; the two must be one"
            )
        _held[key] = loaded
    return _held[key]


def load_anew(config: ModelConfig, device: torch.device, dtype: torch.dtype) -> Denoiser:
    """A model of its own that nobody else holds, past the choice of device and precision."""
    family, index = _locate(config)
    return family.load(index, device, dtype)


def _locate(config: ModelConfig) -> tuple[Family, Path]:
    """The model's family, and its index file."""
    if config.path is not None:
        return _at(Path(config.path))
    # The config has exactly one of path and repo, and no repo without a revision.
    fetch = partial(fetched, str(config.repo), str(config.revision))
    folder = fetch([INDEX, SPEC])
    family, index = _at(folder)
    return family, family.download(fetch) / index.relative_to(folder)


def _at(path: Path) -> tuple[Family, Path]:
    with reading(path):
        # Also where it is a link to nothing or a folder, to be named as that.
        if os.path.lexists(path / INDEX):
            require_file(path, INDEX)
            return _family(path / INDEX, "_class_name"), path / INDEX
        file = path / SPEC if path.is_dir() else path
        if file.suffix == ".json" and file.is_file() and "kind" in read_json(file):
            return _family(file, "kind"), file
        hint = _hint(path)
    raise UserError(
        f"model.path = {printable(str(path))}: no model there; a model is a diffusers folder with {INDEX}, "
        f'or a {SPEC} that names its kind, such as "gaussian"{hint}'
    )


def _family(index: Path, key: str) -> Family:
    """The family that an index file names."""
    name = read_json(index).get(key)
    if isinstance(name, str) and name in FAMILIES:
        return FAMILIES[name]
    hint = nearest(name, FAMILIES) if isinstance(name, str) else ""
    raise UserError(
        f"{printable(str(index))}: {key} = {printable(json.dumps(name), 80)}: no such family of models{hint}; only "
        f"{', '.join(map(printable, FAMILIES))} are audited"
    )


def _hint(path: Path) -> str:
    """What somebody may have meant by a path where no model is."""
    if (path.absolute().parent / INDEX).is_file():
        return "; it is a part of the model in the folder above, which is the path to give"
    names = [path.name] if path.is_file() else names_in(path) if path.is_dir() else []
    whole = [name for name in names if name.lower().endswith(SINGLE_FILE)]
    if whole:
        return (
            f"; {printable(whole[0])} looks like a checkpoint in one file: make a folder of it with diffusers, "
            "StableDiffusionPipeline.from_single_file(FILE).save_pretrained(FOLDER)"
        )
    return ""
