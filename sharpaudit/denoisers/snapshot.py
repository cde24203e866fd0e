"""A diffusers folder as files: which of them make up the model, whether they are there, and their digest.

Layout of the Stable Diffusion 1 and 2 families, one unsharded safetensors file per network:

    model_index.json
    tokenizer/      tokenizer_config.json, and tokenizer.json or vocab.json with merges.txt
    text_encoder/   config.json  model.safetensors
    unet/           config.json  diffusion_pytorch_model.safetensors
    vae/            config.json  diffusion_pytorch_model.safetensors
    scheduler/      scheduler_config.json

Pickled weights are never read, nor is any code in the folder: model_index.json is only compared with the classes
that we load by name. The digest is the SHA-256 over the sorted relative paths, sizes and contents of exactly the
files that shape a result, so it follows the content of a model and not its place.
"""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from sharpaudit.errors import TransientError, UserError, printable

INDEX = "model_index.json"
PIPELINE = "StableDiffusionPipeline"
CLASSES = {
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "text_encoder": ("CLIPTextModel",),
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL",),
}
VOCABULARY = ("tokenizer.json", "vocab.json", "merges.txt", "special_tokens_map.json", "added_tokens.json")
TOKENIZER_CONFIG = "tokenizer/tokenizer_config.json"
SCHEDULER_CONFIG = "scheduler/scheduler_config.json"
WEIGHTS = (
    "text_encoder/model.safetensors",
    "unet/diffusion_pytorch_model.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
)
CONFIGS = ("text_encoder/config.json", "unet/config.json", "vae/config.json", SCHEDULER_CONFIG)
ONLY_SAFETENSORS = (
    "; weights are read from one unsharded safetensors file, never from .bin or .ckpt: loading a pickle can run code"
)
CHUNK_BYTES = 2**20


def tokenizer_files(folder: Path) -> list[str]:
    """The files of the tokenizer, relative to `folder`. Raises UserError naming one that is missing."""
    _require(folder, TOKENIZER_CONFIG)
    found = [f"tokenizer/{name}" for name in VOCABULARY if (folder / "tokenizer" / name).is_file()]
    if "tokenizer/tokenizer.json" not in found:
        _require(folder, "tokenizer/vocab.json", "tokenizer/merges.txt")
    return [TOKENIZER_CONFIG, *found]


def model_files(folder: Path) -> list[str]:
    """All files that shape a result, relative to `folder`, checked. Raises UserError."""
    _require(folder, INDEX)
    _check_classes(folder / INDEX)
    files = [*tokenizer_files(folder), *CONFIGS, *WEIGHTS]
    _require(folder, *CONFIGS, *WEIGHTS)
    for name in WEIGHTS:
        _check_weights(folder / name)
    return files


def digest(folder: Path, files: list[str]) -> str:
    """SHA-256 over `files` of `folder`, hex. Read once per process, as long as sizes and times stay."""
    stats = [(name, (folder / name).stat()) for name in sorted(files)]
    return _digest(folder, tuple((name, s.st_ino, s.st_size, s.st_mtime_ns) for name, s in stats))


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises UserError."""
    try:
        tree = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON: {printable(str(error))}") from error
    if not isinstance(tree, dict):
        raise UserError(f"{path}: holds a JSON {type(tree).__name__}, an object is expected")
    return tree


def download(repo: str, revision: str) -> Path:
    """The folder of a pinned hub revision, from the local cache where it is complete there; obeys HF_HUB_OFFLINE."""
    # Costs half a second and opens the door to the network: only where a hub repository is audited.
    from huggingface_hub import constants, errors, snapshot_download
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]  # one name for every version's HTTP library

    wanted = [INDEX, TOKENIZER_CONFIG, *(f"tokenizer/{name}" for name in VOCABULARY), *CONFIGS, *WEIGHTS]
    name = f"model.repo = {printable(repo)} at {revision}"
    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=wanted))
    except errors.LocalEntryNotFoundError as error:
        if constants.HF_HUB_OFFLINE:
            raise UserError(f"{name}: not in the local cache, and HF_HUB_OFFLINE forbids a download") from error
        raise TransientError(f"{name}: the hub cannot be reached: {printable(str(error))}") from error
    except errors.HfHubHTTPError as error:
        if error.response.status_code in (408, 429) or error.response.status_code >= 500:
            raise TransientError(f"{name}: the hub is busy: {printable(str(error))}") from error
        raise UserError(f"{name}: no such repository or revision, or no access to it") from error
    except errors.HFValidationError as error:
        raise UserError(f'{name}: not the name of a hub repository; write "owner/name"') from error
    except (httpx.TransportError, OSError) as error:
        raise TransientError(f"{name}: the download broke off: {printable(str(error))}") from error


@lru_cache(maxsize=8)
def _digest(folder: Path, stamps: tuple[tuple[str, int, int, int], ...]) -> str:
    total = hashlib.sha256()
    for name, _, size, _ in stamps:
        total.update(f"{name}\0{size}\0".encode())
        with (folder / name).open("rb") as stream:
            while chunk := stream.read(CHUNK_BYTES):
                total.update(chunk)
    return total.hexdigest()


def _require(folder: Path, *names: str) -> None:
    for name in names:
        if not (folder / name).is_file():
            raise UserError(f"{printable(str(folder))}: {name} is missing{ONLY_SAFETENSORS if name in WEIGHTS else ''}")


def _check_classes(path: Path) -> None:
    """Refuse a folder that asks for other classes than ours: they would be loaded as what they are not."""
    index = read_json(path)
    if index.get("_class_name") != PIPELINE:
        shown = printable(json.dumps(index.get("_class_name")))
        raise UserError(f'{path}: _class_name = {shown}: only "{PIPELINE}" (Stable Diffusion 1 and 2) is audited')
    for part, allowed in CLASSES.items():
        named = index.get(part)
        if not (
            isinstance(named, list)
            and len(named) == 2
            and named[1] in allowed
            and named[0] in ("transformers", "diffusers")
        ):
            raise UserError(
                f"{path}: {part} = {printable(json.dumps(named))}: only {allowed[0]} is loaded, no code of a model"
            )


def _check_weights(path: Path) -> None:
    """Parse the header: a renamed pickle, a truncated file and a git-lfs pointer all fail here."""
    try:
        with safe_open(path, framework="pt"):
            pass
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path}: not a whole safetensors file, whatever its name says: {printable(str(error))}"
        ) from error
