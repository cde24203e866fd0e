"""Files of a pinned hub revision, those that a family asks for and no others."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sharpaudit.errors import TransientError, UserError, printable


def fetched(repo: str, revision: str, patterns: Sequence[str]) -> Path:
    """The local folder with what there is of these files, from the cache where they are there; obeys HF_HUB_OFFLINE."""
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
