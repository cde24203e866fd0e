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
    NotLookedAt,
    ReferencePicture,
    kind_of,
)

ENDS = (".tar", ".tar.gz", ".tgz")
STATES = (".parquet", "_stats.json")
"""Ends of what img2dataset writes beside an archive."""


def pictures_of_archives(place: Path, *, allow_unreadable: bool = False) -> Iterator[Item]:
    """What the archives hold that lie under a folder, or the one archive at `place`, in the order of their paths.

    Raises UserError where there is none, and as it meets a damaged one unless allow_unreadable.
    """
    files = [place] if place.is_file() else sorted(path for path in place.rglob("*") if path.is_file())
    archives = [path for path in files if path.name.endswith(ENDS)]
    if not archives:
        raise UserError(f"{printable(str(place))}: holds no archive ({', '.join(ENDS)})")
    return _read(place, files, allow_unreadable)


def _read(place: Path, files: Sequence[Path], allow_unreadable: bool) -> Iterator[Item]:
    root = place if place.is_dir() else place.parent
    archives = [path for path in files if path.name.endswith(ENDS)]
    states = {path.with_name(path.name.split(".")[0] + end) for path in archives for end in STATES}
    for path in files:
        shown = path.relative_to(root).as_posix()
        if path.name.endswith(ENDS):
            yield from _pictures(path, shown, root.resolve().name, allow_unreadable)
            yield from _lost(path, shown)
        elif path not in states:
            yield NotLookedAt(shown, kind_of(path.suffix.lower()))


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


def _lost(path: Path, shown: str) -> Iterator[Item]:
    """What the table beside an archive lists as not downloaded."""
    table = path.with_name(path.name.split(".")[0] + ".parquet")
    if not table.is_file():
        return
    try:
        columns = pq.read_schema(table).names
        if STATUS not in columns or "key" not in columns:
            return
        rows = pq.read_table(table, columns=["key", STATUS])
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{printable(str(table))}: not a table of img2dataset: {printable(str(error))}") from error
    lost = rows.filter(pc.not_equal(rows[STATUS], SUCCESS))
    yield from (NotLookedAt(f"{shown}/{key}", "not downloaded") for key in lost["key"].to_pylist())
