"""Pictures of a run, kept under images/ by the SHA-256 of their file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from sharpaudit.errors import IntegrityError
from sharpaudit.tables.files import Files, crash_point
from sharpaudit.tables.records import replace_file

IMAGES = "images"
MEND = "sharpaudit run --repair makes its shard again"


def store_image(root: Path, data: bytes, files: Files | None = None) -> str:
    """Keep a PNG under its SHA-256 and return its path within the run; the same picture is kept once."""
    files = files or Files()
    sha256 = hashlib.sha256(data).hexdigest()
    path = root / IMAGES / sha256[:2] / f"{sha256}.png"
    if path.exists() and path.stat().st_size == len(data):
        # Whoever stored it may not have come to that yet.
        files.sync_folder(path.parent)
    else:
        files.make_folder(path.parent)
        replace_file(path, data, files)
        crash_point("image.stored")
    return path.relative_to(root).as_posix()


def read_image(root: Path, name: str) -> bytes:
    """The file of a stored picture, by its path within the run. Raises IntegrityError where it is not what it was."""
    path = root / name
    require_images(root, [name])
    data = path.read_bytes()
    require_own_name(path, hashlib.sha256(data).hexdigest())
    return data


def require_images(root: Path, names: Iterable[str]) -> None:
    """Raise IntegrityError for the first picture that is not there."""
    for name in names:
        if not (root / name).exists():
            raise IntegrityError(f"{root / name}: this picture is missing; {MEND}")


def require_own_name(path: Path, sha256: str) -> None:
    """Raise IntegrityError for a picture whose content, of that digest, is not that of its name."""
    if path.stem != sha256:
        raise IntegrityError(f"{path}: this picture was changed after it was stored; {MEND}")


def is_whole(path: Path) -> bool:
    """Whether a picture is there and its content is that of its name."""
    return path.exists() and hashlib.sha256(path.read_bytes()).hexdigest() == path.stem


def sweep_images(root: Path, listed: set[str]) -> int:
    """Remove pictures and attempts under images/ that no manifest lists; return how many."""
    stray = [path for path in (root / IMAGES).glob("*/*") if path.relative_to(root).as_posix() not in listed]
    for path in stray:
        path.unlink(missing_ok=True)
    return len(stray)
