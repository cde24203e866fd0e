"""The folder in which an index is built: beside its place, and renamed to it when it is whole.

An index is there whole or not at all. The builder holds an advisory lock on its folder, so that a later build of the
same index tells what a terminated one has left, which it removes, from what another is at work on, which it leaves
alone and gives way to.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sharpaudit.errors import UserError, printable
from sharpaudit.tables.files import IN_PROGRESS, Files


@contextmanager
def published(out: Path, files: Files) -> Iterator[Path]:
    """A new folder, which becomes `out` with all that is in it where the block ends well, durable.

    Raises UserError where `out` is there by then.
    """
    with _attempt(out) as attempt:
        yield attempt
        for path in sorted(attempt.rglob("*")):
            (files.sync_folder if path.is_dir() else files.sync)(path)
        files.sync_folder(attempt)
        refuse_existing(out)
        files.rename(attempt, out)
        files.sync_folder(out.parent)


@contextmanager
def _attempt(out: Path) -> Iterator[Path]:
    """A new folder beside `out`, locked; removed where the block does not end well."""
    attempt = out.with_name(f".{out.name}-{uuid.uuid4().hex}{IN_PROGRESS}")
    lock = None
    try:
        attempt.mkdir(mode=0o700)
        lock = os.open(attempt, os.O_RDONLY | os.O_DIRECTORY)
        _locked(lock)
        yield attempt
    except BaseException:
        shutil.rmtree(attempt, ignore_errors=True)
        raise
    finally:
        if lock is not None:
            os.close(lock)


def _locked(descriptor: int) -> bool:
    """Take the lock of an open folder, unless another process has it; True also where the file system knows none."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def remove_left(out: Path) -> list[str]:
    """Remove what terminated builds of `out` have left. Raises UserError where one is at work."""
    ours = re.compile(rf"\.{re.escape(out.name)}-[0-9a-f]{{32}}{re.escape(IN_PROGRESS)}")
    removed = []
    for path in sorted(path for path in out.parent.iterdir() if ours.fullmatch(path.name)):
        try:
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:
            continue  # another user's, or gone meanwhile
        try:
            if not _locked(lock):
                raise UserError(
                    f"{printable(str(out))}: another build of this index is at work ({printable(path.name)}); "
                    "wait for it, or name another folder with --out"
                )
            shutil.rmtree(path)
            removed.append(str(path))
        finally:
            os.close(lock)
    return removed


def refuse_existing(out: Path) -> None:
    if os.path.lexists(out):
        raise UserError(f"{printable(str(out))}: exists already; an index is never overwritten: name another folder")
