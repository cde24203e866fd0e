"""Weights of embedders: files that a user has, under the names that their makers give them, and who vouches for them.

None ship. A file is used only where its SHA-256 stands in the embedder's list or was named by the user: vectors of
other weights under one name would be compared with these, and weights in TorchScript are a program. No digest is
invented; a list says where each of its digests is from.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from sharpaudit.errors import UserError, printable

LISTED, NAMED = "the embedder's list", "the user"
"""Who vouches for a digest."""


@dataclass(frozen=True)
class Shelf:
    """folder: where weights lie; None where nobody named one. sha256: digests that the user vouches for, hex."""

    folder: Path | None = None
    sha256: tuple[str, ...] = ()


@dataclass(frozen=True)
class Weights:
    """A file of weights. vouched_by: LISTED or NAMED."""

    path: Path
    sha256: str
    vouched_by: str

    def told(self) -> dict[str, str]:
        """What an index and a report say of them."""
        return {"file": self.path.name, "sha256": self.sha256, "vouched_by": self.vouched_by}


def find_weights(embedder: str, files: Sequence[str], listed: Mapping[str, str], shelf: Shelf) -> Weights:
    """The first of these files on the shelf that somebody vouches for.

    listed: digests of the embedder's list, with where each is from. Raises UserError where there is none.
    """
    what, names = f'embedder "{printable(embedder)}"', " or ".join(files)
    if shelf.folder is None:
        raise UserError(
            f"{what} needs weights: put {names} into a folder and name it by matches.weights, of `sharpaudit index "
            "build` by --weights"
        )
    there = [shelf.folder / name for name in files if (shelf.folder / name).is_file()]
    if not there:
        raise UserError(f"{printable(str(shelf.folder))}: holds no {names}, the weights of {what}; put one there")
    digests = [(path, sha256_of_file(path)) for path in there]
    for path, digest in digests:
        if digest in listed or digest in map(str.lower, shelf.sha256):
            return Weights(path, digest, LISTED if digest in listed else NAMED)
    path, digest = digests[0]
    raise UserError(
        f"{printable(str(path))}: has SHA-256 {digest}, which stands in no list; if you know that these are the "
        f"weights of {what}, vouch for them by matches.weights_sha256, of `sharpaudit index build` by --weights-sha256"
    )


def sha256_of_file(path: Path) -> str:
    """SHA-256 of a file, hex; hashed again only where it changed. Raises UserError for one that cannot be read."""
    try:
        stat = path.stat()
        return _hashed(path, stat.st_ino, stat.st_size, stat.st_mtime_ns)
    except OSError as error:
        raise UserError(f"{printable(str(path))}: cannot read these weights: {error.strerror}") from error


@lru_cache(maxsize=64)
def _hashed(path: Path, *_: int) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
