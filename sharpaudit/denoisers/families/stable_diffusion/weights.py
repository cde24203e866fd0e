"""Which safetensors files hold the weights of a network: one whole file, or an index with all of its shards.

    unet/diffusion_pytorch_model.safetensors                    the whole file, read first
    unet/diffusion_pytorch_model.safetensors.index.json         or an index, with every shard that it names
    unet/diffusion_pytorch_model.fp16.safetensors               or the one variant there is, whole or as an index

A folder that leaves open what a loader would read is refused: an index beside the whole file (diffusers reads the
index, transformers the file), two variants and no plain file, an adapter in the folder (transformers applies it where
peft is installed). So is an index that does not name exactly the tensors of its shards. Only headers are read here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from sharpaudit.denoisers.files import names_in, read_json, reading, require_file
from sharpaudit.errors import UserError, printable

STEMS = {"text_encoder": "model", "unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model"}
"""The name of each network's weights before any suffix, as its library writes it."""
INDEX_SUFFIX = ".safetensors.index.json"
ADAPTER_CONFIG = "adapter_config.json"
FLOATS = {"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"}
POSITION_IDS = re.compile(r"(^|\.)position_ids$")
"""A buffer that text encoders of Stable Diffusion 1 and 2 hold beside their weights: 0, 1, 2 and so on."""
ONLY_SAFETENSORS = "; weights are read from safetensors files, never from .bin or .ckpt: loading a pickle can run code"
LFS_POINTER = b"version https://git-lfs"

_VARIANT = r"(?:\.(?P<{0}>[^.]+))?"
_PART = r"-\d+-of-\d+"
_WHOLE = re.compile(rf"{_VARIANT.format('a')}\.safetensors")
_INDEX = re.compile(rf"{_VARIANT.format('a')}\.safetensors{_VARIANT.format('b')}\.index{_VARIANT.format('c')}\.json")
_SHARD = re.compile(rf"(?:\.(?P<a>[^.]+?))?{_PART}{_VARIANT.format('b')}\.safetensors")
_DISTRIBUTED = re.compile(r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors")
"""What transformers prefers to a whole file: the checkpoint of a distributed training."""


@dataclass(frozen=True)
class Weights:
    """The files of one network's weights, by their names in the folder of `part`.

    name: the whole file or the index. shards: what the index names. keys: of all tensors but position ids.
    """

    part: str
    name: str
    shards: tuple[str, ...]
    keys: tuple[str, ...]

    @property
    def files(self) -> list[str]:
        """Relative to the model's folder."""
        return [f"{self.part}/{name}" for name in (self.name, *self.shards)]

    @property
    def links(self) -> dict[str, str]:
        """Each file under the name by which a loader looks for it: without its variant."""
        plain = STEMS[self.part] + (INDEX_SUFFIX if self.shards else ".safetensors")
        return {plain: f"{self.part}/{self.name}"} | {name: f"{self.part}/{name}" for name in self.shards}


def weights_of(folder: Path, part: str) -> Weights:
    """The weights of a part of a model, their headers checked. Raises UserError naming the file that is amiss."""
    names = names_in(folder / part)
    _refuse_what_is_applied(folder, part, names)
    variant, name = _chosen(folder, part, names)
    require_file(folder, f"{part}/{name}", ONLY_SAFETENSORS)
    if name.endswith(".json"):
        weight_map = _weight_map(folder / part / name)
        shards = _shards(folder, part, name, weight_map, _of_variant(part, names, variant))
        keys: Iterable[str] = weight_map
    else:
        shards, keys = (), _tensors(folder / part / name)
    return Weights(part, name, shards, tuple(key for key in keys if not POSITION_IDS.search(key)))


def candidates(part: str, names: Iterable[str]) -> dict[str, list[str]]:
    """Whole files and indices among the names in a part's folder, by variant; "" is none."""
    found: dict[str, list[str]] = {}
    for name in names:
        match = _after_stem(_INDEX, part, name) or _after_stem(_WHOLE, part, name)
        if match is None or _after_stem(_SHARD, part, name):
            continue
        variants = [value for value in match.groupdict().values() if value]
        if len(variants) <= 1:
            found.setdefault("".join(variants), []).append(name)
    return found


def shard_names(path: Path) -> list[str]:
    """The files that an index names, sorted. Raises UserError, also for one that would lie elsewhere."""
    return sorted(set(_weight_map(path).values()))


def _after_stem(pattern: re.Pattern[str], part: str, name: str) -> re.Match[str] | None:
    stem = STEMS[part]
    return pattern.fullmatch(name, len(stem)) if name.startswith(stem) else None


def _refuse_what_is_applied(folder: Path, part: str, names: list[str]) -> None:
    for name in names:
        where = f"{printable(str(folder))}: {part}/{printable(name)}"
        if name.casefold() == ADAPTER_CONFIG:
            raise UserError(
                f"{where}: an adapter, which some loaders apply to the weights beside it and others do not; merge it "
                "into the weights (merge_and_unload, then save_pretrained), or move it out of this folder"
            )
        if _DISTRIBUTED.fullmatch(name):
            raise UserError(
                f"{where}: the checkpoint of a distributed training, which some loaders prefer to the weights beside "
                "it; move it out of this folder, or write the weights with save_pretrained"
            )


def _chosen(folder: Path, part: str, names: list[str]) -> tuple[str, str]:
    """Variant and name of the whole file or index to read."""
    found = candidates(part, names)
    where = printable(str(folder))
    if not found:
        plain = f"{part}/{STEMS[part]}.safetensors"
        there = f"; {part} holds {', '.join(map(printable, names[:8]))}" if names else ""
        raise UserError(f"{where}: {plain} is missing{ONLY_SAFETENSORS}{there}")
    if "" not in found and len(found) > 1:
        shown = ", ".join(f"{part}/{printable(name)}" for named in found.values() for name in named)
        raise UserError(
            f"{where}: {shown}: which of these variants is the model? Leave one of them there, or rename it to "
            f"{STEMS[part]}.safetensors"
        )
    variant = "" if "" in found else next(iter(found))
    if len(found[variant]) > 1:
        shown = " and ".join(f"{part}/{printable(name)}" for name in found[variant])
        raise UserError(
            f"{where}: {shown}: an index of shards beside other weights, of which some loaders read the one and some "
            "the other; leave only the one that is the model"
        )
    return variant, found[variant][0]


def _of_variant(part: str, names: list[str], variant: str) -> list[str]:
    """Names of shards of this variant, as libraries number them."""
    matches = {name: _after_stem(_SHARD, part, name) for name in names}
    return [name for name, match in matches.items() if match and (match["a"] or match["b"] or "") == variant]


def _weight_map(path: Path) -> dict[str, str]:
    """The file of each tensor in an index."""
    tree, shown = read_json(path), printable(str(path))
    found = tree.get("weight_map")
    if not isinstance(tree.get("metadata"), dict) or not isinstance(found, dict) or not found:
        raise UserError(f'{shown}: not an index of shards: "metadata" and "weight_map" are expected in it')
    for key, shard in found.items():
        # The index itself must not send a loader to a file outside of the folder, nor to a pickle.
        if not isinstance(shard, str) or re.search(r"[/\\\0]", shard) or not shard.endswith(".safetensors"):
            raise UserError(
                f"{shown}: weight_map names {printable(repr(shard))} for {printable(key)}; the name of a safetensors "
                "file in the same folder is expected"
            )
    return found


def _shards(folder: Path, part: str, index: str, weight_map: dict[str, str], numbered: list[str]) -> tuple[str, ...]:
    """The shards of an index, which together hold exactly the tensors that it names. numbered: those of its variant."""
    shards = sorted(set(weight_map.values()))
    for shard in shards:
        require_file(folder, f"{part}/{shard}", f", and {part}/{index} names it")
    where = printable(str(folder))
    for extra in sorted(set(numbered) - set(shards)):
        raise UserError(
            f"{where}: {part}/{printable(extra)} is a shard that {part}/{index} does not name; they are of two "
            "different models: leave one of them there"
        )
    for shard in shards:
        held = _tensors(folder / part / shard).keys()
        named = {key for key, file in weight_map.items() if file == shard}
        for key in sorted(held ^ named):
            what = "lacks" if key in named else "holds"
            said = f"gives it to {weight_map[key]}" if key in weight_map else "does not name it"
            said = "names it there" if key in named else said
            raise UserError(f"{where}: {part}/{printable(shard)} {what} {printable(key)}, and {part}/{index} {said}")
    return tuple(shards)


def _tensors(path: Path) -> dict[str, str]:
    """Keys and types in a file's header: a renamed pickle, a truncated file and a git-lfs pointer all fail here."""
    shown = printable(str(path))
    try:
        # Opened by Python first: the library says of a file that may not be read that it is not there.
        with reading(path), path.open("rb"), safe_open(path, framework="pt") as file:
            found = {key: str(file.get_slice(key).get_dtype()) for key in file.keys()}  # noqa: SIM118  no dict
    except SafetensorError as error:
        with reading(path), path.open("rb") as stream:
            pointer = stream.read(len(LFS_POINTER)) == LFS_POINTER
        hint = "; it is a git-lfs pointer: run `git lfs pull` in the model's folder" if pointer else ""
        raise UserError(
            f"{shown}: not a whole safetensors file, whatever its name says: {printable(str(error))}{hint}"
        ) from error
    for key, kind in found.items():
        if kind not in FLOATS and not POSITION_IDS.search(key):
            raise UserError(
                f"{shown}: {printable(key)} is of type {kind}; weights are floating-point numbers, and quantized ones "
                "are not read: audit the model from which they were made"
            )
    return found
