"""Captions of training pictures: a csv or jsonl file that names files of a folder.

Columns or fields are file (or file_name) and caption (or text). A `file` is a path within the folder. A `file_name` is
one within the folder that the captions file lies in, as Hugging Face's imagefolder writes it, or within the folder of
pictures where the captions file lies outside of it. A name fits a file whose path is the same, or else the only one
that is the same in Unicode's composed form (NFC): file systems and csv files differ in how they write an é.
"""

from __future__ import annotations

import csv
import json
import posixpath
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from sharpaudit.errors import UserError, printable

MAX_CAPTION = 131_072
NAMES, TEXTS = ("file", "file_name"), ("caption", "text")


def captions_of(captions: Path, folder: Path, paths: Iterable[str]) -> dict[str, str]:
    """The caption of each path that has one. Raises UserError for a caption whose file is not among the paths."""
    texts = _texts(captions, folder)
    composed = _composed(texts)
    found: dict[str, str] = {}
    near: dict[str, list[str]] = {}
    for path in paths:
        if path in texts:
            found[path] = texts[path]
        elif name := composed.get(unicodedata.normalize("NFC", path)):
            near.setdefault(name, []).append(path)
    stray = []
    for name in sorted(texts.keys() - found.keys()):
        places = near.get(name) or _by_a_link(folder, name)
        if len(places) != 1:
            stray.append(f'{"several pictures like" if places else "no picture"} "{printable(name)}"')
        found |= {place: texts[name] for place in places if place not in found}
    if stray:
        raise UserError(
            f"{printable(str(captions))}: the folder {printable(str(folder))} has {stray[0]} ({len(stray)} such rows); "
            "correct the name, or leave the row out"
        )
    return found


def _composed(names: Iterable[str]) -> dict[str, str | None]:
    """The name of each composed form; None where two share it."""
    forms: dict[str, str | None] = {}
    for name in names:
        form = unicodedata.normalize("NFC", name)
        forms[form] = None if form in forms else name
    return forms


def _by_a_link(folder: Path, name: str) -> list[str]:
    """Where a name that goes through a link to another part of the folder really lies."""
    root, place = folder.resolve(), (folder / name).resolve()
    return [place.relative_to(root).as_posix()] if place.is_file() and place.is_relative_to(root) else []


def _texts(captions: Path, folder: Path) -> dict[str, str]:
    shown = printable(str(captions))
    read = _jsonl if captions.suffix.lower() in (".jsonl", ".ndjson") else _csv
    place = _place(captions, folder)
    texts: dict[str, str] = {}
    try:
        for line, name, text in read(captions, place):
            if name is None or text is None or name in texts:
                raise UserError(f'{shown}: line {line}: "{printable(name or "")}" is empty, cut or named twice')
            texts[name] = text
    except (OSError, ValueError, csv.Error, RecursionError) as error:
        raise UserError(f"{shown}: cannot read captions: {printable(str(error))}") from error
    return texts


Line = tuple[int, str | None, str | None]
"""Number of the line, path within the folder of pictures, caption; None for what is not there or no text."""


def _csv(captions: Path, place: str) -> Iterator[Line]:
    # The limit is the process's: a reader of prompt files may have set another.
    before = csv.field_size_limit(MAX_CAPTION)
    try:
        with captions.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, strict=True)
            columns = _columns(captions, reader.fieldnames or ())
            for row in reader:
                yield reader.line_num, *_told(row, columns, place)
    finally:
        csv.field_size_limit(before)


def _jsonl(captions: Path, place: str) -> Iterator[Line]:
    with captions.open(encoding="utf-8-sig") as stream:
        for line, text in enumerate(stream, 1):
            if text.strip():
                row = json.loads(text)
                if not isinstance(row, dict):
                    raise ValueError(f"line {line} is no JSON object")
                yield line, *_told(row, _columns(captions, row), place)


def _columns(captions: Path, names: Iterable[str]) -> tuple[str, str]:
    there = list(names)
    name = next((column for column in NAMES if column in there), None)
    text = next((column for column in TEXTS if column in there), None)
    if name is None or text is None:
        raise UserError(
            f"{printable(str(captions))}: needs the columns file (or file_name) and caption (or text), "
            f"has {printable(', '.join(there) or 'none')}"
        )
    return name, text


def _told(row: dict[str, Any], columns: tuple[str, str], place: str) -> tuple[str | None, str | None]:
    name, text = (row[column] if isinstance(row[column], str) else None for column in columns)
    if not name:
        return None, text
    return posixpath.normpath(posixpath.join(place, name) if columns[0] == "file_name" else name), text


def _place(captions: Path, folder: Path) -> str:
    """What a file_name is relative to, as a path within the folder of pictures."""
    own, root = captions.resolve().parent, folder.resolve()
    return own.relative_to(root).as_posix() if own.is_relative_to(root) else "."
