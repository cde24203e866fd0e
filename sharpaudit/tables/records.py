"""Small records of a run: JSON that carries its own checksum, and files that are replaced in one step."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sharpaudit.errors import IntegrityError, UserError
from sharpaudit.tables.files import IN_PROGRESS, Files, naming

DESCRIPTOR = re.compile(r"/dev/(fd/\d+|std(in|out|err))|/proc/.+/fd/\d+")


def canonical(tree: Any) -> bytes:
    """JSON of one form per value, for hashing; NaN is refused."""
    return json.dumps(tree, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()


def digest_of(tree: Any) -> str:
    """SHA-256 of the canonical form, hex."""
    return hashlib.sha256(canonical(tree)).hexdigest()


def checksummed(tree: dict[str, Any]) -> bytes:
    """JSON that carries its own checksum, so that no changed bit of it is believed."""
    return json.dumps(tree | {"checksum": digest_of(tree)}, sort_keys=True, indent=1, allow_nan=False).encode() + b"\n"


def read_checksummed(path: Path) -> dict[str, Any]:
    """The tree of a JSON file with its own checksum. Raises IntegrityError naming the file."""
    try:
        tree = json.loads(path.read_bytes())
        checksum, digest = tree.pop("checksum"), digest_of(tree)
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise IntegrityError(f"{path}: not a whole record; the file was changed after it was written") from error
    if digest != checksum:
        raise IntegrityError(f"{path}: its checksum does not fit; the file was changed after it was written")
    return dict(tree)


def replace_file(path: Path, data: bytes, files: Files | None = None) -> None:
    """Write `data` to `path` so that a reader sees the old file or the new one, whole and durable."""
    _replace(path, data, files or Files(), 0o600)


def export_file(path: Path, data: bytes) -> None:
    """Write `data` where the user asks for it, outside of a run: as `replace_file`, but for what a shell expects.

    A link is followed, and the file that it leads to is replaced. What is no regular file, as a pipe or a terminal, is
    written to and stays; so does the file that the shell has opened as /dev/stdout. A new file has the mode that the
    umask leaves, one that is replaced keeps its own. Raises UserError for a disk.
    """
    target = Path(os.path.realpath(path))
    try:
        there = path.stat()
    except FileNotFoundError:
        _replace(target, data, Files(), 0o666)
        return
    if stat.S_ISBLK(there.st_mode):
        raise UserError(f"{path}: is a disk; name a file")
    if stat.S_ISDIR(there.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if stat.S_ISREG(there.st_mode) and not _is_opened(path):
        _replace(target, data, Files(), 0o666, like=there)
        return
    with naming(path), open(os.open(path, os.O_WRONLY | os.O_APPEND), "wb") as stream:
        stream.write(data)


def _is_opened(path: Path) -> bool:
    """Whether a name, or a link on its way, is that of a descriptor: what was written to it before must stay."""
    while not DESCRIPTOR.fullmatch(os.path.abspath(path)):
        if not path.is_symlink():
            return False
        path = path.parent / path.readlink()
    return True


def _replace(path: Path, data: bytes, files: Files, mode: int, like: os.stat_result | None = None) -> None:
    """like: the file that is replaced, whose mode and, as far as this user may, owner are kept."""
    attempt = attempt_at(path)
    try:
        with called(path, attempt):
            files.write(attempt, data, mode)
            if like is not None:
                with suppress(PermissionError):
                    os.chown(attempt, like.st_uid, like.st_gid)
                attempt.chmod(stat.S_IMODE(like.st_mode))
            files.sync(attempt)
            files.rename(attempt, path)
    except BaseException:
        files.remove(attempt)
        raise
    files.sync_folder(path.parent)


def attempt_at(path: Path) -> Path:
    """A new name beside a file, for what will be that file."""
    return path.with_name(f".{path.name}-{uuid.uuid4().hex}{IN_PROGRESS}")


@contextmanager
def called(path: Path, attempt: Path) -> Iterator[None]:
    """Let an error name the file that somebody knows, and not the attempt that nobody has seen."""
    try:
        yield
    except OSError as error:
        if error.filename == str(attempt):
            error.filename = str(path)
        raise
