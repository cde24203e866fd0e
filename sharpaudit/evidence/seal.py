"""The seal: MANIFEST.sha256, the digest of every file that a run holds as evidence.

`sha256sum -c MANIFEST.sha256` checks it without this program. Outside the seal are what changes while a run works or
is looked at: locks, progress, logs, the workers' scratch and attempts.

A run is sealed when a call of `run` ends (`resealed`). A sealed file that changed before that call is no work of ours:
the call refuses to seal over it. A call that is cut off leaves a mark with what it found, so that the next one seals
what both wrote and nothing else.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sharpaudit.errors import IntegrityError, printable
from sharpaudit.tables.files import IN_PROGRESS, Files, crash_point
from sharpaudit.tables.records import replace_file
from sharpaudit.tables.runs import OWN_NAMES, UNSEALED

MANIFEST = "MANIFEST.sha256"
OUTSIDE = (OWN_NAMES | {MANIFEST}) - {"config.toml", "inputs.json"}
CHUNK = 2**20
LINE = re.compile(r"([0-9a-f]{64})  (\S.*)")


def evidence(root: Path) -> Iterator[str]:
    """Every file of a run that belongs under its seal, relative to `root`, sorted.

    Raises IntegrityError for a link: what it leads to could change without a trace.
    """
    for path in sorted(root.rglob("*"), key=lambda path: path.relative_to(root).as_posix()):
        name = path.relative_to(root).as_posix()
        if name.split("/")[0] in OUTSIDE or IN_PROGRESS in name:
            continue
        if not name.isprintable() or "  " in name:
            raise IntegrityError(f"{printable(str(path))}: a name that a seal cannot hold; a run holds none such")
        if path.is_symlink():
            raise IntegrityError(f"{path}: a link; a run holds plain files only")
        if path.is_file():
            yield name


def sha256_of(path: Path) -> str:
    """The file's SHA-256, hex, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(CHUNK):
            digest.update(piece)
    return digest.hexdigest()


def seal(root: Path, foreign: Collection[str] = (), files: Files | None = None) -> None:
    """Write MANIFEST.sha256.

    foreign: files that were not written since the last seal. Raises IntegrityError where one of them is no longer what
    that seal names; the old seal stays.
    """
    before = read_seal(root) if (root / MANIFEST).exists() else {}
    digests = {name: sha256_of(root / name) for name in evidence(root)}
    for name in foreign:
        if before.get(name, digests[name]) != digests[name]:
            raise IntegrityError(
                f"{root / name}: changed since the run was sealed, and not by this program; put the sealed file back, "
                f"or remove {MANIFEST} to give up the seal"
            )
    replace_file(root / MANIFEST, "".join(f"{d}  {name}\n" for name, d in digests.items()).encode(), files)
    crash_point("sealed")


@contextmanager
def resealed(
    root: Path, *, whole: bool = True, guard: Callable[[], None] = lambda: None, files: Files | None = None
) -> Iterator[None]:
    """Seal at the end of the block what it wrote; nothing is touched where it wrote nothing and the run is sealed.

    whole: whether the block ends with a complete run; otherwise the mark stays where it wrote anything. guard: raises
    when this process no longer works for the driver that holds the run.
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


def read_seal(root: Path) -> dict[str, str]:
    """Digest of each sealed file. Raises IntegrityError without a whole manifest."""
    path = root / MANIFEST
    if not path.is_file():
        raise IntegrityError(f"{path}: missing; the run was not finished, or its seal was removed")
    found: dict[str, str] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1], 1):
        match = LINE.fullmatch(line)
        if not match or match[2] in found:
            raise IntegrityError(f"{path}: line {number} is not a digest and a new name")
        found[match[2]] = match[1]
    return found
