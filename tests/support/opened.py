"""Which files the process opens, as the kernel saw it: also those of libraries that are no Python (Linux only)."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

IN_OPEN, IN_ISDIR = 0x20, 0x40000000
HEADER = struct.Struct("iIII")


@contextmanager
def opened_below(*roots: Path) -> Iterator[set[Path]]:
    """The files in these folders, at any depth, that are opened in the block, by whatever path; filled at its end."""
    libc = ctypes.CDLL(None, use_errno=True)
    queue = libc.inotify_init1(os.O_NONBLOCK)
    assert queue >= 0, os.strerror(ctypes.get_errno())
    found: set[Path] = set()
    try:
        watched = {}
        for folder in (Path(here) for root in roots for here, _, _ in os.walk(root)):
            watched[libc.inotify_add_watch(queue, bytes(folder), IN_OPEN)] = folder
        yield found
        found |= {watched[watch] / name for watch, name in _events(queue)}
    finally:
        os.close(queue)


def _events(queue: int) -> Iterator[tuple[int, str]]:
    while True:
        try:
            data = os.read(queue, 2**16)
        except BlockingIOError:
            return
        while data:
            watch, mask, _, length = HEADER.unpack_from(data)
            name, data = data[HEADER.size :][:length].rstrip(b"\0"), data[HEADER.size + length :]
            assert watch >= 0, "the kernel's queue ran over"
            if name and not mask & IN_ISDIR:
                yield watch, os.fsdecode(name)
