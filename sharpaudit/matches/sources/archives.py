"""The pictures of tar archives, as WebDataset and img2dataset write them.

An archive is read once, from its beginning to its end, and nothing of it is unpacked. Files that stand side by side and
are called alike up to the first dot of their names are one sample: its pictures get the text of its .txt, else the
`caption` or `text` of its .json. Of an archive that img2dataset wrote, the table of the same name beside it says what
could not be downloaded: that is counted as "not downloaded", for it belongs to the training set. Texts that stand
beside no picture are counted by their kind, and so tell of an archive that is sorted otherwise.

Other files beside archives are counted by their kind. A damaged archive ends the build by its name, or, where that is
asked for, counts as "damaged archive" after what could be read of it.
"""

from __future__ import annotations

import json
import os
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sharpaudit.errors import UserError, printable
from sharpaudit.images import MAX_BYTES, format_of, too_large
from sharpaudit.matches.sources.base import (
    APPLE_DOUBLE,
    STATUS,
    SUCCESS,
    SUFFIXES,
    Item,
    NotLookedAt,
    ReferencePicture,
    Unit,
    kind_of,
    state_of,
)
from sharpaudit.matches.sources.containers import ContainerLayout, others
from sharpaudit.matches.sources.walk import Entry

ENDS = (".tar", ".tar.gz", ".tgz")
TABLE, STATS = ".parquet", "_stats.json"
"""Ends of what img2dataset writes beside an archive."""


@dataclass(frozen=True)
class ArchiveLayout(ContainerLayout):
    """Archives. allow_unreadable: count damaged ones too.

    `units` raises UserError where there is none.
    """

    def units(self) -> Iterator[Unit]:
        entries = self.listed()
        archives = [e.path for e in entries if e.kind == "file" and e.path.endswith(ENDS)]
        if not archives:
            raise UserError(f"{printable(str(self.place))}: holds no archive ({', '.join(ENDS)})")
        return self._units(entries, archives)

    def _units(self, entries: Sequence[Entry], archives: Sequence[str]) -> Iterator[Unit]:
        for shown in archives:
            path = self.root / shown
            table = path.with_name(_stem(path.name) + TABLE)
            yield Unit({"archive": shown}, [shown, state_of(path), state_of(table)], _successes(table))
        yield from others(entries, {*archives, *(_stem(shown) + end for shown in archives for end in (TABLE, STATS))})

    def held(self, payload: dict[str, Any], source: str) -> Iterator[Item]:
        path = self.root / payload["archive"]
        yield from _pictures(path, payload["archive"], source, self.allow_unreadable)
        yield from _lost(path.with_name(_stem(path.name) + TABLE), payload["archive"])


def _stem(name: str) -> str:
    return name.removesuffix(next(end for end in ENDS if name.endswith(end)))


class _Strict(tarfile.TarInfo):
    """tarfile takes a header that is damaged or cut, and a missing end, for the end of the archive."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"a header is damaged, or the end is missing: {error}") from error


def _require_end(stream: Any) -> None:
    """After its end mark an archive holds zeros alone; more would be an archive that was joined to it, and not read."""
    while chunk := stream.read(2**16):
        if chunk.strip(b"\0"):
            raise tarfile.ReadError("something follows its end")


@dataclass
class _Sample:
    """Files of one name. texts: captions, the one that counts first. told: the files that they are from."""

    key: str
    pictures: list[ReferencePicture] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    told: list[Item] = field(default_factory=list)
    others: list[Item] = field(default_factory=list)

    def items(self) -> Iterator[Item]:
        """The pictures with their caption, and what is none; so are texts that stand beside no picture."""
        caption = next(iter(self.texts), None)
        yield from (replace(picture, caption=caption) for picture in self.pictures)
        yield from self.others
        if not self.pictures:
            yield from self.told


def _pictures(path: Path, shown: str, source: str, allow_unreadable: bool) -> Iterator[Item]:
    sample, last = _Sample(""), "its beginning"
    try:
        with tarfile.open(path, "r|*", tarinfo=_Strict) as archive:
            for member in archive:
                archive.members = []  # type: ignore[attr-defined]  # of millions all would be kept
                if member.isdir():
                    continue
                data = _read(archive, member)
                if data is not None and _is_apple_double(member.name, data):
                    yield NotLookedAt(f"{shown}/{member.name}", "AppleDouble")
                    continue
                key = _key(member.name)
                if key != sample.key:
                    yield from sample.items()
                    sample = _Sample(key)
                _take(member, data, f"{shown}/{member.name}", source, sample)
                last = member.name
            _require_end(archive.fileobj)
    except (tarfile.TarError, OSError, EOFError, ValueError, zlib.error) as error:
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


def _read(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes | None:
    """The bytes of a file; None for what is none, or is too large."""
    stream = archive.extractfile(member) if member.isreg() and member.size <= MAX_BYTES else None
    return None if stream is None else stream.read()


def _is_apple_double(name: str, data: bytes) -> bool:
    return name.rpartition("/")[2].startswith("._") and data.startswith(APPLE_DOUBLE)


def _take(member: tarfile.TarInfo, data: bytes | None, shown: str, source: str, sample: _Sample) -> None:
    """Put a member where it belongs in its sample."""
    suffix = os.path.splitext(member.name.rpartition("/")[2])[1].lower()
    if not member.isreg():
        sample.others.append(NotLookedAt(shown, "link or device in an archive"))
    elif suffix in SUFFIXES or (data is not None and format_of(data) is not None):
        problem = too_large() if data is None else None
        sample.pictures.append(ReferencePicture(None, source, None, shown, data, problem))
    elif suffix in (".txt", ".json") and data is not None:
        sample.told.append(NotLookedAt(shown, suffix))
        if suffix == ".txt":
            sample.texts.insert(0, data.decode("utf-8", "replace").strip())
        else:
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
