"""File interfaces: one that fails its N-th operation, one that records the order, one whose power fails."""

from __future__ import annotations

import os
import shutil
import threading
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from sharpaudit.tables.files import Files

OPERATIONS = ("write", "sync", "sync_folder", "rename", "link")
REAL: dict[str, Callable[..., Any]] = {name: getattr(Files, name) for name in (*OPERATIONS, "remove")}
"""As they are before a test puts others in their place."""


class InOrder(Files):
    """One operation after another, always the same way."""

    def at_once(self, operation: Callable[[Path], object], paths: Iterable[Path]) -> None:
        for path in paths:
            operation(path)


class FaultyFiles(InOrder):
    """Fails the n-th operation with `code`; a failing write leaves half of its bytes behind."""

    def __init__(self, n: int, code: int) -> None:
        self.n, self.code, self.count = n, code, 0

    def _step(self, path: Path) -> None:
        self.count += 1
        if self.count == self.n:
            raise OSError(self.code, os.strerror(self.code), str(path))

    def write(self, path: Path, data: bytes, mode: int = 0o600) -> None:
        try:
            self._step(path)
        except OSError:
            super().write(path, data[: len(data) // 2], mode)
            raise
        super().write(path, data, mode)

    def sync(self, path: Path) -> None:
        self._step(path)
        super().sync(path)

    def sync_folder(self, path: Path) -> None:
        self._step(path)
        super().sync_folder(path)

    def rename(self, source: Path, target: Path) -> None:
        # As the system names it.
        self._step(source)
        super().rename(source, target)

    def link(self, source: Path, target: Path) -> None:
        self._step(target)
        super().link(source, target)


class RecordingFiles(InOrder):
    """Keeps (operation, kind of file) in order."""

    def __init__(self) -> None:
        self.log: list[tuple[str, str]] = []

    def _kind(self, path: Path) -> str:
        return "manifest" if "manifest" in path.name or path.parent.name == "manifests" else "data"

    def write(self, path: Path, data: bytes, mode: int = 0o600) -> None:
        self.log.append(("write", self._kind(path)))
        super().write(path, data, mode)

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


class PowerLossError(Exception):
    """The machine is off."""


class LosingFiles(InOrder):
    """The power fails at the n-th operation (never, for 0); `lose` then takes from the disk what was not synced.

    The content of a file lasts from its sync on, whoever wrote it. A name that was made, moved or taken away lasts from
    the sync of its folder on; before that it may be there after the loss, or be as it was.

    names: of which folders unsynced names are lost, "all", "none" or "half". root: with it the loss happens at once,
    and the folder is taken aside, so that nothing that this process still does reaches it.
    """

    def __init__(self, n: int = 0, names: str = "all", root: Path | None = None) -> None:
        self.n, self.count, self.names, self.root = n, 0, names, root
        self.lasting: set[Path] = set()
        """Manifests that were durable when the power failed."""
        self._synced: set[int] = set()
        self._undo: list[tuple[Path, Callable[[], object]]] = []

    def durable(self, root: Path) -> None:
        """Take everything below `root` as synced."""
        self._synced |= {path.stat().st_ino for path in root.rglob("*") if path.is_file()}
        self.lasting |= set(root.rglob("manifests/*.json"))

    def write(self, path: Path, data: bytes, mode: int = 0o600) -> None:
        self._step()
        REAL["write"](self, path, data, mode)
        self._synced.discard(path.stat().st_ino)
        self._undo.append((path.parent, lambda: path.unlink(missing_ok=True)))

    def sync(self, path: Path) -> None:
        self._step()
        self._synced.add(path.stat().st_ino)

    def sync_folder(self, path: Path) -> None:
        self._step()
        self._undo = [(folder, undo) for folder, undo in self._undo if folder != path]
        self.lasting |= set(path.glob("*.json")) if path.name == "manifests" else set()

    def rename(self, source: Path, target: Path) -> None:
        self._step()
        put_back = self._keeper(target)
        REAL["rename"](self, source, target)

        def undo() -> None:
            os.replace(target, source)
            put_back()

        self._undo.append((target.parent, undo))

    def link(self, source: Path, target: Path) -> None:
        self._step()
        REAL["link"](self, source, target)
        self._undo.append((target.parent, lambda: target.unlink(missing_ok=True)))

    def remove(self, path: Path) -> None:
        self._step()
        put_back = self._keeper(path)
        REAL["remove"](self, path)
        self.lasting.discard(path)
        self._undo.append((path.parent, put_back))

    def add_folder(self, path: Path, mode: int = 0o777) -> None:
        if not path.is_dir():
            self._step()
            path.mkdir(mode)
            self._undo.append((path.parent, lambda: shutil.rmtree(path, ignore_errors=True)))

    def lose(self, root: Path) -> None:
        """What of the files below `root` was not durable."""
        for path in root.rglob("*"):
            if path.is_file() and path.stat().st_ino not in self._synced:
                path.write_bytes(b"")
        for folder, undo in reversed(self._undo):
            if self.names == "all" or (self.names == "half" and zlib.crc32(folder.name.encode()) % 2):
                undo()

    def _keeper(self, path: Path) -> Callable[[], object]:
        """What brings a file back that is about to go; nothing for one that is not there."""
        if not path.is_file():
            return lambda: None
        number, data = path.stat().st_ino, path.read_bytes()
        durable = number in self._synced
        last_name = path.stat().st_nlink == 1
        if last_name:
            # The number may come again, for another file.
            self._synced.discard(number)

        def put_back() -> None:
            # Whole folders that go are not put back: no name lasts without its folder.
            if path.parent.is_dir():
                path.write_bytes(data if (durable if last_name else number in self._synced) else b"")

        return put_back

    def _step(self) -> None:
        # Beats come as time passes: counted, they would make the n-th operation another one each time.
        beats = threading.current_thread().name == "heartbeat"
        self.count += not beats
        if self.n and self.count == self.n and not beats and self.root is not None:
            self.lose(self.root)
            self.root.rename(self.root.with_name("aside"))
        if self.n and self.count >= self.n:
            raise PowerLossError
