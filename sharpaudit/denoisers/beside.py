"""What lies in a model's folder and is not part of it: listed, and told where it looks like a change of the model.

A LoRA or a textual inversion beside the model is applied by no loader unless it is asked to, so it is not applied
here either, and the audit is of the model without it. That must be said: whoever put it there may use the model with
it. Of files that are not read only the headers of safetensors files are looked at.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError, safe_open

from sharpaudit.denoisers.files import INDEX
from sharpaudit.errors import printable

NOT_APPLIED = "not applied: the audit is of the model without it"
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
LORA = re.compile(r"(?<![a-z])lora|lora(?![a-z])|lokr|loha|hada_|adapter_model", re.IGNORECASE)
EMBEDDING = re.compile(r"learned_embed|textual_inversion|embeddings?(?![a-z])", re.IGNORECASE)


class Beside(NamedTuple):
    """What is not read, relative to the model's folder, and a sentence for each LoRA and textual inversion among it.

    Of a folder of which nothing is read only its name stands there, with how many files it holds.
    """

    ignored: list[str]
    not_applied: list[str]


def beside(folder: Path, files: Sequence[str]) -> Beside:
    """What lies in a model's folder beside `files`, which are read."""
    read = {INDEX, *files}
    used = {Path(name).parts[0] for name in read}
    ignored, others = [], []
    for top in _entries(folder):
        names = list(_below(folder, top)) if top.is_dir() else [top.name]
        unread = [name for name in names if name not in read]
        others += unread
        # A part may be a link to a folder elsewhere, which is followed as loaders follow it; others are not.
        if top.is_dir() and top.name not in used:
            what = "a link" if top.is_symlink() else f"{len(names):,} file{'' if len(names) == 1 else 's'}"
            ignored.append(f"{top.name}/ ({what})")
        else:
            ignored += unread
    kinds = {name: _kind(folder, name) for name in others if name.endswith(WEIGHT_SUFFIXES)}
    return Beside(ignored, [f"{printable(name)} is {kind} and {NOT_APPLIED}" for name, kind in kinds.items() if kind])


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _below(root: Path, folder: Path) -> Iterator[str]:
    """Names of all files below `folder`, relative to `root`; links to folders below it are not followed."""
    for here, inner, names in os.walk(folder):
        inner.sort()
        links = [name for name in inner if (Path(here) / name).is_symlink()]
        yield from ((Path(here) / name).relative_to(root).as_posix() for name in sorted([*names, *links]))


def _kind(folder: Path, name: str) -> str:
    """What weights that are not read are: "a LoRA", "a textual inversion", or "" for others."""
    if LORA.search(name):
        return "a LoRA"
    keys = _shapes(folder / name) if name.endswith(".safetensors") else {}
    if any(LORA.search(key) for key in keys):
        return "a LoRA"
    # The embeddings of a few words: one matrix or vector for each text encoder.
    small = 0 < len(keys) <= 2 and all(len(shape) <= 2 for shape in keys.values())
    return "a textual inversion" if EMBEDDING.search(name) or small else ""


def _shapes(path: Path) -> dict[str, list[int]]:
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118  no dict
    except (SafetensorError, OSError):
        return {}  # nothing that anybody could apply, and not read here
