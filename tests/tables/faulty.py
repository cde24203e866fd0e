"""A file interface that fails its N-th operation, and one that records the order of operations."""

from __future__ import annotations

import os
from pathlib import Path

from sharpaudit.tables.files import Files

OPERATIONS = ("write", "sync", "sync_folder", "rename", "link")


class FaultyFiles(Files):
    """Fails the n-th operation with `code`; a failing write leaves half of its bytes behind."""

    def __init__(self, n: int, code: int) -> None:
        self.n, self.code, self.count = n, code, 0

    def _step(self, path: Path) -> None:
        self.count += 1
        if self.count == self.n:
            raise OSError(self.code, os.strerror(self.code), str(path))

    def write(self, path: Path, data: bytes) -> None:
        try:
            self._step(path)
        except OSError:
            super().write(path, data[: len(data) // 2])
            raise
        super().write(path, data)

    def sync(self, path: Path) -> None:
        self._step(path)
        super().sync(path)

    def sync_folder(self, path: Path) -> None:
        self._step(path)
        super().sync_folder(path)

    def rename(self, source: Path, target: Path) -> None:
        self._step(target)
        super().rename(source, target)

    def link(self, source: Path, target: Path) -> None:
        self._step(target)
        super().link(source, target)


class RecordingFiles(Files):
    """Keeps (operation, kind of file) in order."""

    def __init__(self) -> None:
        self.log: list[tuple[str, str]] = []

    def _kind(self, path: Path) -> str:
        return "manifest" if "manifest" in path.name or path.parent.name == "manifests" else "data"

    def write(self, path: Path, data: bytes) -> None:
        self.log.append(("write", self._kind(path)))
        super().write(path, data)

    def sync(self, path: Path) -> None:
        self.log.append(("sync", self._kind(path)))
        super().sync(path)

    def sync_folder(self, path: Path) -> None:
        self.log.append(("sync_folder", self._kind(path)))
        super().sync_folder(path)

    def rename(self, source: Path, target: Path) -> None:
        self.log.append(("rename", self._kind(target)))
        super().rename(source, target)

    def link(self, source: Path, target: Path) -> None:
        self.log.append(("link", self._kind(target)))
        super().link(source, target)
