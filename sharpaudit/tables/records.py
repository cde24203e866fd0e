"""Small records of a run: JSON that carries its own checksum, and files that are replaced in one step."""

from __future__ import annotations

import hashlib
import json
import uuid
from pathlib import Path
from typing import Any

from sharpaudit.errors import IntegrityError
from sharpaudit.tables.files import IN_PROGRESS, Files


def canonical(tree: Any) -> bytes:
    """JSON of one form per value, for hashing; NaN is refused."""
    return json.dumps(tree, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()


def digest_of(tree: Any) -> str:
    """SHA-256 of the canonical form, hex."""
    return hashlib.sha256(canonical(tree)).hexdigest()


def sealed(tree: dict[str, Any]) -> bytes:
    """JSON that carries its own checksum, so that no changed bit of it is believed."""
    return json.dumps(tree | {"checksum": digest_of(tree)}, sort_keys=True, indent=1, allow_nan=False).encode() + b"\n"


def unseal(path: Path) -> dict[str, Any]:
    """The tree of a sealed JSON file. Raises IntegrityError naming the file."""
    try:
        tree = json.loads(path.read_bytes())
        checksum = tree.pop("checksum")
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise IntegrityError(f"{path}: not a whole record; the file was changed after it was written") from error
    if digest_of(tree) != checksum:
        raise IntegrityError(f"{path}: its checksum does not fit; the file was changed after it was written")
    return dict(tree)


def replace_file(path: Path, data: bytes, files: Files | None = None) -> None:
    """Write `data` to `path` so that a reader sees the old file or the new one, whole and durable."""
    files = files or Files()
    attempt = path.with_name(f".{path.name}-{uuid.uuid4().hex}{IN_PROGRESS}")
    try:
        files.write(attempt, data)
        files.sync(attempt)
        files.rename(attempt, path)
    except BaseException:
        files.remove(attempt)
        raise
    files.sync_folder(path.parent)
