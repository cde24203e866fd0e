"""Pictures of a run, kept under images/ by the SHA-256 of their file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

from sharpaudit.errors import IntegrityError
from sharpaudit.tables.files import Files, crash_point
from sharpaudit.tables.records import attempt_at, called

IMAGES = "images"
MEND = "sharpaudit run --repair makes its shard again"


class ImageStore:
    """Puts the pictures of a shard away, each under its SHA-256, the same one once.

    `put` writes what is not there yet beside its place. When the `with` block ends, all are made durable, get their
    names, and their folders are synced, side by side: a disk takes as long for one picture as for many. A block that
    raises leaves whole pictures or nothing, and nothing that nobody knows.
    """

    def __init__(self, root: Path, files: Files | None = None) -> None:
        self._root, self._files = root, files or Files()
        self._attempts: dict[Path, Path] = {}
        self._folders: dict[Path, None] = {}

    def put(self, data: bytes) -> str:
        """The path within the run that the PNG has once the block has ended."""
        sha256 = hashlib.sha256(data).hexdigest()
        path = self._root / IMAGES / sha256[:2] / f"{sha256}.png"
        # Whoever stored it, or made its folder, may not have come to syncing that yet.
        self._folders |= {path.parent: None}
        if path not in self._attempts and not (path.exists() and path.stat().st_size == len(data)):
            self._files.make_folder(self._root / IMAGES)
            self._files.add_folder(path.parent)
            self._attempts[path] = attempt_at(path)
            with called(path, self._attempts[path]):
                self._files.write(self._attempts[path], data)
        return path.relative_to(self._root).as_posix()

    def __enter__(self) -> ImageStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._keep()
        finally:
            for attempt in self._attempts.values():
                self._files.remove(attempt)
            self._attempts, self._folders = {}, {}

    def _keep(self) -> None:
        self._files.at_once(self._sync, list(self._attempts))
        for path, attempt in list(self._attempts.items()):
            with called(path, attempt):
                self._files.rename(attempt, path)
            del self._attempts[path]
            crash_point("image.stored")
        self._files.at_once(self._files.sync_folder, list(self._folders))
        if self._folders:
            self._files.sync_folder(self._root / IMAGES)

    def _sync(self, path: Path) -> None:
        with called(path, self._attempts[path]):
            self._files.sync(self._attempts[path])


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
