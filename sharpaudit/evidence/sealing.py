"""When a run is sealed: as a call that wrote something ends.

A sealed file that changed before that call is no work of ours: the call refuses to seal over it. A call that is cut
off leaves a mark with what it found, so that the next one seals what both wrote and nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from securesystemslib.signer import Signer

from sharpaudit.errors import IntegrityError
from sharpaudit.evidence.attest import attest, signed_by
from sharpaudit.evidence.seal import MANIFEST, evidence, seal
from sharpaudit.tables.files import Files
from sharpaudit.tables.records import replace_file
from sharpaudit.tables.runs import UNSEALED


@contextmanager
def resealed(
    root: Path,
    *,
    whole: bool = True,
    signer: Signer | None = None,
    guard: Callable[[], None] = lambda: None,
    files: Files | None = None,
) -> Iterator[None]:
    """Seal and attest at the end of the block what it wrote.

    Nothing is touched where it wrote nothing and the run is sealed, but for a signature that is new. whole: whether the
    block ends with a complete run; otherwise the mark stays where it wrote anything. guard: raises when this process
    no longer works for the driver that holds the run.
    """
    mark = root / UNSEALED
    # Of the first call since the last seal: calls that were cut off do not blur what they found.
    before = _read_mark(mark)
    if before is None:
        before = _states(root)
        replace_file(mark, json.dumps(before).encode(), files)
    try:
        yield
    except BaseException:
        with suppress(OSError, IntegrityError):
            if _states(root) == before:
                mark.unlink(missing_ok=True)
        raise
    after = _states(root)
    guard()
    if after != before or (whole and not (root / MANIFEST).exists()):
        if not whole:
            return
        seal(root, [name for name, state in after.items() if before.get(name) == state], files)
        attest(root, signer, files)
    elif whole and signer is not None and not signed_by(root, signer.public_key):
        attest(root, signer, files)
    mark.unlink(missing_ok=True)


def _states(root: Path) -> dict[str, list[int]]:
    """What tells that a file was written: inode, size and time of change."""
    found = {}
    for name in evidence(root):
        state = (root / name).stat()
        found[name] = [state.st_ino, state.st_size, state.st_mtime_ns]
    return found


def _read_mark(mark: Path) -> dict[str, list[int]] | None:
    """The states that a call at work or cut off began with; none of them known where the mark cannot be read."""
    if not mark.exists():
        return None
    try:
        found = json.loads(mark.read_bytes())
    except ValueError:
        found = {}
    return found if isinstance(found, dict) else {}
