"""A diffusers folder as files: which of them make up the model, whether they are there, and their digest.

Layout of the Stable Diffusion 1 and 2 families (weights.py: variants and shards):

    model_index.json
    tokenizer/      tokenizer_config.json, and tokenizer.json or vocab.json with merges.txt
    text_encoder/   config.json  model.safetensors
    unet/           config.json  diffusion_pytorch_model.safetensors
    vae/            config.json  diffusion_pytorch_model.safetensors
    scheduler/      scheduler_config.json

Pickled weights are never read, nor is any code in the folder: model_index.json is only compared with the classes
that we load by name. The digest is the SHA-256 over the sorted relative paths, sizes and contents of exactly the
files that shape a result, so it follows the content of a model and not its place. Loaders see these files and no
others (loading.py); a file by which a loader elsewhere would make another model of them is refused.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sharpaudit.denoisers.families.stable_diffusion.weights import STEMS, Weights, weights_of
from sharpaudit.denoisers.files import INDEX, digest_of, names_in, read_json, reading, require_file
from sharpaudit.errors import UserError, printable

PIPELINE = "StableDiffusionPipeline"
digest = digest_of
"""Of files of the folder."""
CLASSES = {
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "text_encoder": ("CLIPTextModel",),
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL",),
}
VOCABULARY = ("tokenizer.json", "vocab.json", "merges.txt", "special_tokens_map.json", "added_tokens.json")
TOKENIZER_CONFIG = "tokenizer/tokenizer_config.json"
SCHEDULER_CONFIG = "scheduler/scheduler_config.json"
WEIGHTS = tuple(f"{part}/{stem}.safetensors" for part, stem in STEMS.items())
CONFIGS = ("text_encoder/config.json", "unet/config.json", "vae/config.json", SCHEDULER_CONFIG)
ELSEWHERE = {
    TOKENIZER_CONFIG: ("vocab", "merges", "init_inputs", "fast_tokenizer_files", "gguf_file", "tokenizer_object"),
    "text_encoder/config.json": ("transformers_weights", "quantization_config"),
    "unet/config.json": ("quantization_config",),
    "vae/config.json": ("quantization_config",),
}
"""Settings by which a loader would take a vocabulary or weights from other files, or other weights from these."""
OTHER_VOCABULARY = re.compile(r"tekken\.json|.*tokenizer\.model.*|tiktoken\.model")
"""What transformers reads in place of vocab.json where there is no tokenizer.json."""


@dataclass(frozen=True)
class Snapshot:
    """A model's folder, looked through: the files of the tokenizer and of each network's weights."""

    folder: Path
    tokenizer: tuple[str, ...]
    weights: dict[str, Weights]

    @property
    def files(self) -> list[str]:
        """All files that shape a result, relative to the folder: what is hashed and what is loaded."""
        return [*self.tokenizer, *CONFIGS, *(name for held in self.weights.values() for name in held.files)]


def snapshot(folder: Path) -> Snapshot:
    """The files of a model, checked. Raises UserError naming one that is missing, unreadable or leaves it open."""
    require_file(folder, INDEX)
    _check_classes(folder / INDEX)
    tokenizer = tokenizer_files(folder)
    for name in CONFIGS:
        require_file(folder, name)
        _refuse_elsewhere(folder, name)
    return Snapshot(folder, tuple(tokenizer), {part: weights_of(folder, part) for part in STEMS})


def tokenizer_files(folder: Path) -> list[str]:
    """The files of the tokenizer, relative to `folder`. Raises UserError naming one that is missing."""
    require_file(folder, TOKENIZER_CONFIG)
    _refuse_elsewhere(folder, TOKENIZER_CONFIG)
    there = names_in(folder / "tokenizer")
    found = [name for name in VOCABULARY if name in there]
    if "tokenizer.json" not in found:
        found = list(dict.fromkeys([*found, "vocab.json", "merges.txt"]))
        for name in filter(OTHER_VOCABULARY.fullmatch, there):
            raise UserError(
                f"{printable(str(folder))}: tokenizer/{printable(name)}: some loaders read it in place of vocab.json; "
                "move it out of this folder"
            )
    for name in found:
        require_file(folder, f"tokenizer/{name}")
        with reading(folder / "tokenizer" / name):
            if not (folder / "tokenizer" / name).stat().st_size:
                raise UserError(f"{printable(str(folder))}: tokenizer/{name} is empty")
    return [TOKENIZER_CONFIG, *(f"tokenizer/{name}" for name in found)]


def model_files(folder: Path) -> list[str]:
    """All files that shape a result, relative to `folder`, checked. Raises UserError."""
    return snapshot(folder).files


def _check_classes(path: Path) -> None:
    """Refuse a folder that asks for other classes than ours: they would be loaded as what they are not."""
    index, shown = read_json(path), printable(str(path))
    if index.get("_class_name") != PIPELINE:
        named = printable(json.dumps(index.get("_class_name")))
        raise UserError(f'{shown}: _class_name = {named}: only "{PIPELINE}" (Stable Diffusion 1 and 2) is audited')
    for part, allowed in CLASSES.items():
        wanted: Any = index.get(part)
        if not (
            isinstance(wanted, list)
            and len(wanted) == 2
            and wanted[1] in allowed
            and wanted[0] in ("transformers", "diffusers")
        ):
            raise UserError(
                f"{shown}: {part} = {printable(json.dumps(wanted))}: only {allowed[0]} is loaded, no code of a model"
            )


def _refuse_elsewhere(folder: Path, name: str) -> None:
    tree = read_json(folder / name) if name in ELSEWHERE else {}
    for key in ELSEWHERE.get(name, ()):
        if tree.get(key):
            raise UserError(
                f"{printable(str(folder / name))}: {key} = {printable(json.dumps(tree[key]), 80)}: it names other "
                "files or another form of the weights, which are not read; remove it, or audit the model without it"
            )
