"""Everything that lies under a folder, each once: links are followed, and nothing goes unmentioned.

Each folder is read once: by its own path where it lies under the folder, else by the first of the links that lead to
it. Whatever else leads to it, and a link to a folder above, is *repeated*. Unfinished indexes of this program
(tables.files.IN_PROGRESS) are passed over.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sharpaudit.errors import UserError, printable
from sharpaudit.matches.sources.base import Item, NotLookedAt, ReferencePicture, Repeated, kind_of
from sharpaudit.tables.files import IN_PROGRESS

_SPECIAL = {stat.S_IFIFO: "fifo", stat.S_IFSOCK: "socket", stat.S_IFCHR: "device", stat.S_IFBLK: "device"}


class Entry(NamedTuple):
    """What a name in a folder stands for. kind: file, lost (with its problem), repeated, or a kind not looked at."""

    path: str
    kind: str
    problem: str | None = None


def walk(folder: Path, allow_unreadable: bool) -> Iterator[Entry]:
    """Everything under the folder but folders, in the order of paths.

    Raises UserError for a folder that cannot be listed, unless allow_unreadable, which gives it as an entry.
    """
    root, seen = folder.resolve(), set[tuple[int, int]]()
    left = [Entry("", "folder")]
    while left:
        entry = left.pop()
        if entry.kind not in ("folder", "linked folder"):
            yield entry
            continue
        place = folder / entry.path
        try:
            if entry.kind == "linked folder" and _is_above_or_below(place.resolve(), root):
                yield Entry(entry.path, "repeated")
                continue
            state = place.stat()
            if (state.st_dev, state.st_ino) in seen:
                yield Entry(entry.path, "repeated")
                continue
            seen.add((state.st_dev, state.st_ino))
            left += reversed(_listed(place, entry.path))
        except OSError as error:
            if not allow_unreadable:
                raise UserError(
                    f"{printable(str(place))}: cannot list this folder of training pictures: {error.strerror}; "
                    "make it readable, or have it counted with --allow-unreadable"
                ) from error
            yield Entry(entry.path, "unreadable folder")


def _is_above_or_below(place: Path, root: Path) -> bool:
    return place.is_relative_to(root) or root.is_relative_to(place)


def _listed(place: Path, path: str) -> list[Entry]:
    """The names of one folder, in the order in which their paths come: that of a sub-folder goes on with a slash."""
    with os.scandir(place) as entries:
        told = [_told(entry, f"{path}/{entry.name}" if path else entry.name) for entry in entries]
    found = [entry for entry in told if entry is not None]
    return sorted(found, key=lambda entry: entry.path + "/" * entry.kind.endswith("folder"))


def _told(entry: os.DirEntry[str], path: str) -> Entry | None:
    try:
        if entry.is_file():
            return Entry(path, "file")
        if entry.is_dir():
            ours = entry.name.startswith(".") and entry.name.endswith(IN_PROGRESS)
            return None if ours else Entry(path, "linked folder" if entry.is_symlink() else "folder")
        return Entry(path, _SPECIAL.get(stat.S_IFMT(entry.stat().st_mode), "device"))
    except OSError as error:
        what = "a link that leads nowhere" if entry.is_symlink() else "cannot be read"
        return Entry(path, "lost", f"{what}: {error.strerror}")


def told(entries: Iterable[Entry]) -> list[list[Any]]:
    """Entries as JSON, for `beside`."""
    return [[entry.path, entry.kind, entry.problem] for entry in entries]


def beside(entries: Iterable[Sequence[Any]], source: str) -> Iterator[Item]:
    """What stands beside that which is read: files by their suffix, what is lost as a picture that cannot be had."""
    for path, kind, problem in entries:
        if kind == "lost":
            yield ReferencePicture(None, source, None, path, None, problem)
        elif kind == "repeated":
            yield Repeated(path)
        else:
            yield NotLookedAt(path, kind_of(os.path.splitext(path)[1].lower()) if kind == "file" else kind)
