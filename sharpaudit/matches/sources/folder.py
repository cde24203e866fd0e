"""The files of a folder as training pictures, none of which goes unmentioned.

Every file under the folder comes out as one item. A *picture* is a file whose name ends in one of SUFFIXES or whose
first bytes are a picture's (images.format_of), whatever it is called; where it cannot be read, it comes with the
problem in place of its bytes. So does every other file that cannot be opened, since nobody knows what it is, and a link
that leads nowhere. What is left is *not looked at* and comes with its kind: its suffix in lower case, "no suffix",
"other suffix" (of more than a few letters and digits), "AppleDouble" (the ._ files of macOS), "fifo", "socket",
"device" (never opened) or "unreadable folder".

Links are followed, and each folder is read once (walk.py).

Items come in the order of their paths, as strings. The names of one folder and of one unit are held in memory.
"""

from __future__ import annotations

import io
import os
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from sharpaudit.errors import UserError, printable
from sharpaudit.images import MAX_BYTES, SIGN_BYTES, format_of, too_large
from sharpaudit.matches.sources.base import (
    APPLE_DOUBLE,
    SUFFIXES,
    Item,
    Layout,
    NotLookedAt,
    ReferencePicture,
    Repeated,
    Unit,
    kind_of,
    state_of,
)
from sharpaudit.matches.sources.captions import captions_of
from sharpaudit.matches.sources.walk import walk

UNIT_FILES = 1024


@dataclass(frozen=True)
class FolderLayout(Layout):
    """Files. captions: a csv or jsonl file (captions.captions_of).

    allow_unreadable: count folders that cannot be listed, instead of refusing them.

    `units` raises UserError at once, before any picture is read: for a folder that is none, is empty, or holds one that
    cannot be listed (unless allow_unreadable), and for captions that name no file of it.
    """

    folder: Path
    captions: Path | None = None
    allow_unreadable: bool = False

    def units(self) -> Iterator[Unit]:
        if not self.folder.is_dir():
            raise UserError(f"{printable(str(self.folder))}: not a folder of training pictures")
        # Listed as a whole before anything is read: an unreadable folder must not end a build of hours.
        paths = _paths(self.folder, self.allow_unreadable)
        texts = captions_of(self.captions, self.folder, paths) if self.captions is not None else {}
        deque(paths, maxlen=0)
        return self._units(texts)

    def _units(self, texts: dict[str, str]) -> Iterator[Unit]:
        every = walk(self.folder, self.allow_unreadable)
        while entries := list(islice(every, UNIT_FILES)):
            told = [[e.path, e.kind, e.problem, texts.get(e.path)] for e in entries]
            states = [state_of(self.folder / e.path) if e.kind == "file" else None for e in entries]
            yield Unit({"entries": told}, [told, states], sum(e.kind in ("file", "lost") for e in entries))

    def items(self, payload: dict[str, Any]) -> Iterator[Item]:
        source = self.folder.resolve().name
        for path, kind, problem, caption in payload["entries"]:
            if kind == "file":
                yield _opened(str(self.folder), path, source, caption)
            elif kind == "repeated":
                yield Repeated(path)
            elif kind == "lost":
                yield ReferencePicture(None, source, caption, path, None, problem)
            else:
                yield NotLookedAt(path, kind)


def pictures_in(folder: Path, captions: Path | None = None, *, allow_unreadable: bool = False) -> Iterator[Item]:
    """What the folder holds, one after another; see FolderLayout."""
    return FolderLayout(folder, captions, allow_unreadable).everything()


def _paths(folder: Path, allow_unreadable: bool) -> Iterator[str]:
    """The paths of what may be a picture. Raises UserError where the folder is empty."""
    entry = None
    for entry in walk(folder, allow_unreadable):
        if entry.kind in ("file", "lost"):
            yield entry.path
    if entry is None:
        raise UserError(f"{printable(str(folder))}: holds no picture, nor any other file")


def _opened(folder: str, path: str, source: str, caption: str | None) -> ReferencePicture | NotLookedAt:
    """The file, read only so far as to be told for what it is."""
    name = path.rpartition("/")[2]
    suffix = os.path.splitext(name)[1].lower()
    try:
        # Not to wait, should a pipe have taken the file's place.
        descriptor = os.open(os.path.join(folder, path), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb", buffering=0) as stream:
            size = os.fstat(descriptor).st_size
            named = suffix in SUFFIXES and size <= MAX_BYTES and not name.startswith("._")
            data = _up_to(size + 1 if named else SIGN_BYTES, stream)
            if name.startswith("._") and data.startswith(APPLE_DOUBLE):
                return NotLookedAt(path, "AppleDouble")
            if suffix not in SUFFIXES and format_of(data) is None:
                return NotLookedAt(path, kind_of(suffix))
            if size > MAX_BYTES:
                return ReferencePicture(None, source, caption, path, None, too_large())
            if not named:
                data += _up_to(size + 1 - len(data), stream)
            if len(data) > size:  # it grows, or its file system does not say how large it is
                data += _up_to(MAX_BYTES + 1 - len(data), stream)
    except OSError as error:
        return ReferencePicture(None, source, caption, path, None, f"cannot be read: {error.strerror}")
    return ReferencePicture(None, source, caption, path, data)


def _up_to(n: int, stream: io.FileIO) -> bytes:
    """The next n bytes, fewer at the end of the file."""
    data = stream.read(n)
    while len(data) < n and (more := stream.read(n - len(data))):
        data += more
    return data
