"""Pictures of a run, kept under images/ by the SHA-256 of their file."""

from __future__ import annotations

import hashlib
from pathlib import Path

from sharpaudit.tables.files import Files, crash_point
from sharpaudit.tables.records import replace_file


def store_image(root: Path, data: bytes, files: Files | None = None) -> str:
    """Keep a PNG under its SHA-256 and return its path within the run; the same picture is kept once."""
    files = files or Files()
    sha256 = hashlib.sha256(data).hexdigest()
    path = root / "images" / sha256[:2] / f"{sha256}.png"
    if path.exists() and path.stat().st_size == len(data):
        # Whoever stored it may not have come to that yet.
        files.sync_folder(path.parent)
    else:
        files.make_folder(path.parent)
        replace_file(path, data, files)
        crash_point("image.stored")
    return path.relative_to(root).as_posix()


def is_whole(path: Path) -> bool:
    """Whether a picture is there and its content is that of its name."""
    return path.exists() and hashlib.sha256(path.read_bytes()).hexdigest() == path.stem


def sweep_images(root: Path, listed: set[str]) -> int:
    """Remove pictures and attempts under images/ that no manifest lists; return how many."""
    stray = [path for path in (root / "images").glob("*/*") if path.relative_to(root).as_posix() not in listed]
    for path in stray:
        path.unlink(missing_ok=True)
    return len(stray)
