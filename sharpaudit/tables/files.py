"""The few file operations that a commit is made of, and the places where a test may end the process.

`Files` is the whole interface: a test injects one that fails the N-th operation, drops unsynced writes or
records the order. `crash_point("name")` does nothing unless SHARPAUDIT_CRASH says so:

    SHARPAUDIT_CRASH="name:k:action"          at the k-th passage of that point (1 is the first), in each process
    SHARPAUDIT_CRASH="name:k:action@FILE"     once in all: whoever creates FILE acts

with action kill (SIGKILL to itself), exit, segfault, raise, enospc, transient (the errors of a bug, of a full disk and
of what may pass), stall or slow (.7 s). k = 0 means every passage.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir

from sharpaudit.errors import TransientError

IN_PROGRESS = ".inprogress"
PLAIN = re.compile(r"[\w./ @+,=:~-]*")
CRASH = "SHARPAUDIT_CRASH"
WAITING_AT_ONCE = 16
"""Threads that wait for a disk; more gain nothing on a local one."""
_passages: Counter[str] = Counter()


class Files:
    """The operating system's files. Every OSError names its file."""

    def make_folder(self, path: Path, mode: int = 0o777) -> None:
        """Create a folder, and those above it, their names durable; nothing if it is there."""
        if path.is_dir():
            return
        self.make_folder(path.parent)
        self.add_folder(path, mode)
        self.sync_folder(path.parent)

    def add_folder(self, path: Path, mode: int = 0o777) -> None:
        """Create a folder if it is not there; its name lasts once the one above it is synced."""
        path.mkdir(mode, exist_ok=True)

    def write(self, path: Path, data: bytes, mode: int = 0o600) -> None:
        """Create `path`, which must not exist, with this mode less the umask."""
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
        with naming(path), os.fdopen(descriptor, "wb") as stream:
            stream.write(data)

    def append(self, path: Path, data: bytes) -> None:
        """Add to a file whose content need not last: a log."""
        with naming(path), path.open("ab") as stream:
            stream.write(data)

    def sync(self, path: Path) -> None:
        """Make the content of a file durable."""
        self._fsync(path, os.O_RDONLY)

    def sync_folder(self, path: Path) -> None:
        """Make the names in a folder durable."""
        self._fsync(path, os.O_RDONLY | os.O_DIRECTORY)

    def at_once(self, operation: Callable[[Path], object], paths: Iterable[Path]) -> None:
        """Do what waits for the disk for many paths side by side, which a disk does nearly as fast as one."""
        with ThreadPoolExecutor(WAITING_AT_ONCE) as pool:
            for _ in pool.map(operation, paths):
                pass

    def rename(self, source: Path, target: Path) -> None:
        """Replace `target` by `source` in one step."""
        os.replace(source, target)

    def link(self, source: Path, target: Path) -> None:
        """Give `source` the second name `target`; FileExistsError if that name is taken."""
        os.link(source, target)

    def remove(self, path: Path) -> None:
        """Remove a file, which may be gone already."""
        path.unlink(missing_ok=True)

    @staticmethod
    def _fsync(path: Path, flags: int) -> None:
        descriptor = os.open(path, flags)
        try:
            with naming(path):
                os.fsync(descriptor)
        finally:
            os.close(descriptor)


class PlainName:
    """A folder by a name that DuckDB takes as it stands: `path`, a link where its own name would mean something else.

    In DuckDB's paths ?, * and [ match other names, and of a \\ or ? it makes another path without a word. The link goes
    with `close`, or with the last reference to this object.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self.path = folder, folder
        self._place: TemporaryDirectory[str] | None = None
        if not is_plain(folder):
            self._place = plain_folder()
            self.path = Path(self._place.name) / "run"
            self.path.symlink_to(folder.absolute(), target_is_directory=True)

    def of(self, path: Path) -> Path:
        """The path of something in the folder."""
        return self.path / path.relative_to(self._folder) if path.is_relative_to(self._folder) else path

    def close(self) -> None:
        """Remove the link."""
        if self._place is not None:
            self._place.cleanup()


def is_plain(path: Path) -> bool:
    """Whether DuckDB takes the path as it stands."""
    return PLAIN.fullmatch(str(path)) is not None


def plain_folder() -> TemporaryDirectory[str]:
    """A temporary folder with a plain name. A database must lie in one: DuckDB sees through links to it."""
    return TemporaryDirectory(prefix="run-", dir=None if PLAIN.fullmatch(gettempdir()) else "/tmp")  # noqa: S108


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Put a file's name into an error of its descriptor, which says only what happened."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def crash_point(name: str, detail: str = "") -> None:
    """A named place where a fault may be injected; `detail` (a shard, say) narrows it to "name/detail"."""
    spec = os.environ.get(CRASH)
    if not spec:
        return
    order, _, marker = spec.partition("@")
    wanted, k, action = order.rsplit(":", 2)
    if wanted not in (name, f"{name}/{detail}"):
        return
    _passages[wanted] += 1
    if (int(k) and _passages[wanted] != int(k)) or (marker and not _first(marker)):
        return
    _act(action, name)


def _first(marker: str) -> bool:
    try:
        os.close(os.open(marker, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except FileExistsError:
        return False
    return True


def _act(action: str, name: str) -> None:
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif action == "exit":
        os._exit(70)
    elif action == "segfault":
        ctypes.string_at(0)
    elif action == "stall":
        time.sleep(3600)
    elif action == "slow":
        time.sleep(0.7)
    elif action == "enospc":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), name)
    elif action == "transient":
        raise TransientError(f"injected at {name}")
    else:
        raise RuntimeError(f"injected at {name}")
