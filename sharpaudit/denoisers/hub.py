"""The folder of a pinned hub revision, with the files that snapshot.py and weights.py look for and no others."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sharpaudit.denoisers.files import names_in
from sharpaudit.denoisers.snapshot import CONFIGS, INDEX, TOKENIZER_CONFIG, VOCABULARY, WEIGHTS
from sharpaudit.denoisers.weights import ADAPTER_CONFIG, INDEX_SUFFIX, STEMS, candidates, shard_names
from sharpaudit.errors import TransientError, UserError, printable


def download(repo: str, revision: str) -> Path:
    """The folder of a pinned hub revision, from the local cache where it is complete there; obeys HF_HUB_OFFLINE.

    Shards and variants are asked for only where the plain weights of a network are not there: they are as large.
    """
    # An adapter's configuration too, so that a repository that has one is refused as its folder would be.
    beside = [f"{part}/{name}" for part, stem in STEMS.items() for name in (stem + INDEX_SUFFIX, ADAPTER_CONFIG)]
    asked = [INDEX, TOKENIZER_CONFIG, *(f"tokenizer/{name}" for name in VOCABULARY), *CONFIGS, *WEIGHTS, *beside]
    folder = _fetched(repo, revision, asked)
    while more := [name for part in STEMS for name in _lacking(folder, part) if name not in asked]:
        folder = _fetched(repo, revision, more)
        asked += more
    return folder


def _lacking(folder: Path, part: str) -> list[str]:
    """The shards of what is there, and patterns of variants where a part's plain weights are not."""
    found, stem = candidates(part, names_in(folder / part)), f"{part}/{STEMS[part]}"
    read = [found[""]] if "" in found else found.values()
    indices = [name for named in read for name in named if name.endswith(".json")]
    shards = [f"{part}/{name}" for index in indices for name in shard_names(folder / part / index)]
    return shards if "" in found else [*shards, f"{stem}.*.safetensors", f"{stem}*.safetensors*index*.json"]


def _fetched(repo: str, revision: str, patterns: Sequence[str]) -> Path:
    # Costs half a second and opens the door to the network: only where a hub repository is audited.
    from huggingface_hub import constants, errors, snapshot_download
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]  # one name for every version's HTTP library

    name = f"model.repo = {printable(repo)} at {revision}"
    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=list(patterns)))
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
