"""Training pictures as they come in: the files of a folder, with captions from a csv."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sharpaudit.errors import UserError, printable
from sharpaudit.images import MAX_BYTES

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic")
"""What is taken for a picture; formats that images.py refuses become rejected rows, so that none is passed over."""
MAX_CAPTION = 131_072


@dataclass(frozen=True)
class Picture:
    """A training picture as it comes in. reference_id: by default the first half of its SHA-256.

    source: name of the data set; path: where in it the picture lies, for people to find it again.
    """

    reference_id: str | None
    source: str
    caption: str | None
    path: str
    data: bytes


def pictures_in(folder: Path, captions: Path | None = None) -> Iterator[Picture]:
    """The picture files under a folder, sorted by path, with captions from a csv of columns file and caption.

    `file` is the path within the folder. A file over the byte limit is read only so far as to be refused.
    """
    if not folder.is_dir():
        raise UserError(f"{printable(str(folder))}: not a folder of training pictures")
    found = {
        p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file()
    }
    if not found:
        raise UserError(f"{printable(str(folder))}: holds no picture; files ending in {', '.join(SUFFIXES)} are read")
    source = folder.resolve().name
    texts = _captions(captions) if captions is not None else {}
    stray = sorted(texts.keys() - found.keys())
    if stray:
        raise UserError(
            f'{captions}: the folder {folder} has no picture "{printable(stray[0])}" ({len(stray)} such rows)'
        )
    return (Picture(None, source, texts.get(name), name, _read(found[name])) for name in sorted(found))


def _captions(path: Path) -> dict[str, str]:
    texts: dict[str, str] = {}
    # The limit is the process's: a reader of prompt files may have set another.
    before = csv.field_size_limit(MAX_CAPTION)
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, strict=True)
            if not {"file", "caption"} <= set(reader.fieldnames or ()):
                raise UserError(
                    f"{path}: needs the columns file and caption, has {', '.join(reader.fieldnames or ['none'])}"
                )
            for line in reader:
                name, caption = line["file"], line["caption"]
                if not name or caption is None or name in texts:
                    raise UserError(
                        f'{path}: line {reader.line_num}: "{printable(name or "")}" is empty, cut or named twice'
                    )
                texts[name] = caption
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{printable(str(path))}: cannot read captions: {printable(str(error))}") from error
    finally:
        csv.field_size_limit(before)
    return texts


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            return stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise UserError(f"{printable(str(path))}: cannot read this training picture: {error.strerror}") from error
