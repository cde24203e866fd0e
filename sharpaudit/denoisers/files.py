"""Files of a model at the border: what is missing or cannot be read is one line that names the file."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from sharpaudit.errors import UserError, printable

INDEX = "model_index.json"
"""The index of a folder as diffusers writes it."""
CHUNK_BYTES = 2**20


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """What the system refuses of `path`, or of what lies below it, is a UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{printable(str(path))}: cannot be read: {error.strerror or printable(str(error))}") from error


def names_in(folder: Path) -> list[str]:
    """The names in a folder, sorted; none where it does not exist. Raises UserError for one that cannot be listed."""
    with reading(folder):
        try:
            return sorted(os.listdir(folder))
        except FileNotFoundError:
            return []


def require_file(folder: Path, name: str, hint: str = "") -> None:
    """Raise UserError where `name` of `folder` is no regular file: missing, a folder, a pipe, a link to nothing."""
    path = folder / name
    try:
        with reading(path):
            mode = path.stat().st_mode
    except UserError as error:
        if not isinstance(error.__cause__, FileNotFoundError | NotADirectoryError):
            raise
        what = "is a link to a file that is not there" if path.is_symlink() else "is missing"
        raise UserError(f"{printable(str(folder))}: {name} {what}{hint}") from error
    if not stat.S_ISREG(mode):
        raise UserError(f"{printable(str(folder))}: {name} is no file{hint}")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises UserError."""
    shown = printable(str(path))
    try:
        with reading(path):
            tree = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{shown}: not JSON: {printable(str(error))}") from error
    if not isinstance(tree, dict):
        raise UserError(f"{shown}: holds a JSON {type(tree).__name__}, an object is expected")
    return tree


def digest_of(folder: Path, files: Sequence[str]) -> str:
    """SHA-256 over `files` of `folder`, hex. Read once per process, as long as sizes and times stay."""
    stamps = []
    for name in sorted(files):
        with reading(folder / name):
            found = (folder / name).stat()
        stamps.append((name, found.st_ino, found.st_size, found.st_mtime_ns))
    return _digest(folder, tuple(stamps))


@lru_cache(maxsize=8)
def _digest(folder: Path, stamps: tuple[tuple[str, int, int, int], ...]) -> str:
    total = hashlib.sha256()
    for name, _, size, _ in stamps:
        total.update(f"{name}\0{size}\0".encode())
        with reading(folder / name), (folder / name).open("rb") as stream:
            while chunk := stream.read(CHUNK_BYTES):
                total.update(chunk)
    return total.hexdigest()
