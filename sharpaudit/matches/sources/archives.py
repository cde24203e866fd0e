"""The pictures of tar archives, as WebDataset and img2dataset write them.

An archive is read once, from its beginning to its end, and nothing of it is unpacked. Files that stand side by side and
are called alike up to the first dot of their names are one sample: its pictures get the text of its .txt, else the
`caption` or `text` of its .json. Of an archive that img2dataset wrote, the table of the same name beside it says what
could not be downloaded: that is counted as "not downloaded", for it belongs to the training set.

Other files beside archives are counted by their kind. A damaged archive ends the build by its name, or, where that is
asked for, counts as "damaged archive" after what could be read of it.
"""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sharpaudit.errors import UserError, printable
from sharpaudit.images import MAX_BYTES, format_of, too_large
from sharpaudit.matches.sources.base import (
    STATUS,
    SUCCESS,
    SUFFIXES,
    Item,
    Layout,
    NotLookedAt,
    ReferencePicture,
    Unit,
    kind_of,
    state_of,
)

ENDS = (".tar", ".tar.gz", ".tgz")
TABLE, STATS = ".parquet", "_stats.json"
"""Ends of what img2dataset writes beside an archive."""


@dataclass(frozen=True)
class ArchiveLayout(Layout):
    """The archives under a folder, or one archive. allow_unreadable: count damaged ones, instead of refusing them.

    `units` raises UserError where there is none.
    """

    place: Path
    allow_unreadable: bool = False

    def units(self) -> Iterator[Unit]:
        files = [self.place] if self.place.is_file() else sorted(p for p in self.place.rglob("*") if p.is_file())
        archives = [path for path in files if path.name.endswith(ENDS)]
        if not archives:
            raise UserError(f"{printable(str(self.place))}: holds no archive ({', '.join(ENDS)})")
        return self._units(files, archives)

    def _units(self, files: Sequence[Path], archives: Sequence[Path]) -> Iterator[Unit]:
        for path in archives:
            shown = path.relative_to(self._root).as_posix()
            table = path.with_name(_stem(path) + TABLE)
            yield Unit({"archive": shown}, [shown, state_of(path), state_of(table)], _successes(table))
        beside = {path.with_name(_stem(path) + end) for path in archives for end in (TABLE, STATS)}
        others = [path.relative_to(self._root).as_posix() for path in files if path not in {*archives, *beside}]
        if others:
            yield Unit({"others": others}, others, 0)

    def items(self, payload: dict[str, Any]) -> Iterator[Item]:
        for other in payload.get("others", ()):
            yield NotLookedAt(other, kind_of(os.path.splitext(other)[1].lower()))
        if "archive" in payload:
            path = self._root / payload["archive"]
            yield from _pictures(path, payload["archive"], self._root.resolve().name, self.allow_unreadable)
            yield from _lost(path.with_name(_stem(path) + TABLE), payload["archive"])

    @property
    def _root(self) -> Path:
        return self.place.parent if self.place.is_file() else self.place


def _stem(path: Path) -> str:
    return path.name.partition(".")[0]


@dataclass
class _Sample:
    """Files of one name. texts: captions, the one that counts first."""

    key: str
    pictures: list[ReferencePicture]
    texts: list[str]
    others: list[Item]

    def items(self) -> Iterator[Item]:
        """The pictures with their caption, and what is none."""
        caption = next(iter(self.texts), None)
        yield from (replace(picture, caption=caption) for picture in self.pictures)
        yield from self.others


def _pictures(path: Path, shown: str, source: str, allow_unreadable: bool) -> Iterator[Item]:
    sample, last = _Sample("", [], [], []), "its beginning"
    try:
        with tarfile.open(path, "r|*") as archive:
            for member in archive:
                if member.isdir():
                    continue
                key = _key(member.name)
                if key != sample.key:
                    yield from sample.items()
                    sample = _Sample(key, [], [], [])
                _take(archive, member, f"{shown}/{member.name}", source, sample)
                last = member.name
    except (tarfile.TarError, OSError, EOFError) as error:
        if not allow_unreadable:
            raise UserError(
                f"{printable(str(path))}: damaged after {printable(last)}: {printable(str(error))}; fetch it again, or "
                "have it counted with --allow-unreadable"
            ) from error
        yield from sample.items()
        yield NotLookedAt(shown, "damaged archive")
        return
    yield from sample.items()


def _key(name: str) -> str:
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.partition(".")[0]


def _take(archive: tarfile.TarFile, member: tarfile.TarInfo, shown: str, source: str, sample: _Sample) -> None:
    """Put a member where it belongs in its sample."""
    base = member.name.rpartition("/")[2]
    suffix = os.path.splitext(base)[1].lower()
    stream = archive.extractfile(member) if member.isreg() else None
    if stream is None:
        sample.others.append(NotLookedAt(shown, "link or device in an archive"))
        return
    if member.size > MAX_BYTES:
        if suffix in SUFFIXES:
            sample.pictures.append(ReferencePicture(None, source, None, shown, None, too_large()))
        else:
            sample.others.append(NotLookedAt(shown, kind_of(suffix)))
        return
    data = stream.read()
    if suffix in SUFFIXES or format_of(data) is not None:
        sample.pictures.append(ReferencePicture(None, source, None, shown, data))
    elif suffix == ".txt":
        sample.texts.insert(0, data.decode("utf-8", "replace").strip())
    elif suffix == ".json":
        sample.texts += _of_json(data)
    else:
        sample.others.append(NotLookedAt(shown, kind_of(suffix)))


def _of_json(data: bytes) -> list[str]:
    try:
        told = json.loads(data)
    except (ValueError, RecursionError):
        return []
    named = [told.get(name) for name in ("caption", "text")] if isinstance(told, dict) else []
    return [text for text in named if isinstance(text, str)]


def _lost(table: Path, shown: str) -> Iterator[Item]:
    """What the table beside an archive lists as not downloaded."""
    rows = _states(table)
    if rows is not None:
        lost = rows.filter(pc.not_equal(rows[STATUS], SUCCESS))
        yield from (NotLookedAt(f"{shown}/{key}", "not downloaded") for key in lost["key"].to_pylist())


def _successes(table: Path) -> int:
    """How many pictures an archive holds by the table beside it; 1 where there is none."""
    rows = _states(table)
    return 1 if rows is None else pc.sum(pc.equal(rows[STATUS], SUCCESS)).as_py() or 0


def _states(table: Path) -> pa.Table | None:
    """The keys and states of img2dataset's table; None where there is no such table."""
    if not table.is_file():
        return None
    try:
        columns = pq.read_schema(table).names
        return pq.read_table(table, columns=["key", STATUS]) if {STATUS, "key"} <= set(columns) else None
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{printable(str(table))}: not a table of img2dataset: {printable(str(error))}") from error
