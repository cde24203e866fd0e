"""Which files a path of prompts stands for: itself, the files of a folder, or those that match a pattern.

The files come in the order of their names. Those whose names begin with `.` or `_` are skipped, as Spark does with
its own (`_SUCCESS`, `.part-00000.crc`); every other one must be a prompt file, and all of one format, so that neither a
shard nor a file of notes beside the shards changes what is audited without a word.
"""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

from sharpaudit.corpus.formats.base import Format
from sharpaudit.errors import UserError, printable
from sharpaudit.plugs import FORMATS

PACKED = (".gz", ".zst")
_WILDCARDS = "*?["


def format_of(path: Path) -> Format:
    """The format that the end of a file's name tells, in any case. Raises UserError for a name that tells none."""
    found = _format_of(path)
    if found is None:
        raise UserError(
            f"{printable(str(path))}: a prompt file ends in {', '.join(map(printable, FORMATS))}, or in one of them "
            f"that may be compressed and {' or '.join(PACKED)}, as .csv.gz; rename or convert this one"
        )
    return found


def _format_of(path: Path) -> Format | None:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    packed = bool(suffixes) and suffixes[-1] in PACKED
    if packed:
        suffixes.pop()
    # The longest end that is known: a format may be called .prompts.toml.
    ends, known = ("".join(suffixes[i:]) for i in range(len(suffixes))), {name.lower(): name for name in FORMATS}
    found = next((FORMATS[known[end]] for end in ends if end in known), None)
    return None if found is None or (packed and not found.packed) else found


def files_of(path: Path) -> list[Path]:
    """The files that `path` stands for: one that is there or names nothing is itself.

    Raises UserError for a folder or a pattern without files, and for files among them that are no prompts.
    """
    name = printable(str(path))
    try:
        is_folder = path.is_dir()
        listed = list(path.iterdir()) if is_folder else []
    except OSError as error:
        raise UserError(f"{name}: cannot look into it: {error.strerror}") from error
    if is_folder:
        if (path / "_delta_log").is_dir():
            raise UserError(f"{name}: a Delta table, whose files hold rows that it has deleted: write it as Parquet")
        found = [entry for entry in listed if not entry.name.startswith((".", "_"))]
        what = "the folder"
    elif any(sign in str(path) for sign in _WILDCARDS) and not os.path.lexists(path):
        if "**" in path.parts:
            raise UserError(f"{name}: ** is not read; write one * for each level of folders, such as shards/*/*.csv")
        hidden = () if path.name.startswith("_") else ("_",)
        found = [Path(entry) for entry in glob.glob(str(path)) if not Path(entry).name.startswith(hidden)]
        what = "the pattern"
    else:
        return [path]
    if not found:
        raise UserError(f"{name}: {what} holds no file; name one with files of prompts")
    return _alike(sorted(found, key=str), f"{name}: {what}", path.parent if what == "the pattern" else path)


def _alike(found: list[Path], name: str, folder: Path) -> list[Path]:
    """The files, if all are prompts of one format."""
    fix = f"take them out, or name the others by a pattern such as {printable(str(folder))}/*.csv"
    folders = [path for path in found if path.is_dir()]
    others = [path for path in found if path not in folders and _format_of(path) is None]
    for strange, what in ((folders, "folders"), (others, "files of other formats")):
        if strange:
            raise UserError(f"{name} holds {len(strange)} {what}, for instance {printable(strange[0].name)}: {fix}")
    formats = {format_of(path).kind: path for path in reversed(found)}
    if len(formats) > 1:
        examples = " and ".join(sorted(printable(path.name) for path in formats.values()))
        raise UserError(f"{name} holds files of several formats, for instance {examples}: {fix}")
    return found


def names_of(files: Sequence[tuple[Path, int]], taken: Iterable[str] = ()) -> list[str]:
    """A name for each (file, least number of path parts): its last parts, as few as tell it from the others and from
    names that are `taken`. Raises UserError for a file that stands there twice."""
    parts = [Path(os.path.abspath(path)).parts for path, _ in files]
    held = set(taken)
    many = cache(lambda n: Counter(own[-n:] for own in parts))
    found = []
    for (path, least), own in zip(files, parts, strict=True):
        if many(len(own))[own] > 1:
            raise UserError(f"{printable(str(path))}: the file is named twice; name it once")
        tails = (own[-n:] for n in range(least, len(own) + 1) if many(n)[own[-n:]] == 1)
        found.append(next(name for tail in tails if (name := Path(*tail).as_posix()) not in held))
    return found
