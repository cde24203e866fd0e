"""The seal: MANIFEST.sha256, the digest of every file that a run holds as evidence.

`sha256sum -c MANIFEST.sha256` checks it without this program. Outside the seal are what changes while a run works or
is looked at: locks, progress, logs, the workers' scratch and attempts.

A run is sealed when a call of `run` ends (`resealed`). A sealed file that changed before that call is no work of ours:
the call refuses to seal over it. A call that is cut off leaves a mark, so that the next one seals what both wrote.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from sharpaudit.errors import IntegrityError
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
        if name.split("/")[0] in OUTSIDE or name.endswith(IN_PROGRESS):
            continue
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
            raise IntegrityError(f"{root / name}: changed since the run was sealed, and not by this program")
    replace_file(root / MANIFEST, "".join(f"{d}  {name}\n" for name, d in digests.items()).encode(), files)
    crash_point("sealed")


@contextmanager
def resealed(root: Path, files: Files | None = None) -> Iterator[None]:
    """Seal at the end of the block what it wrote; nothing is touched where it wrote nothing and the run is sealed."""
    mark = root / UNSEALED
    cut_off = mark.exists()
    mark.touch(mode=0o600)
    before = _states(root)
    try:
        yield
    except BaseException:
        if not cut_off and _states(root) == before:
            mark.unlink()
        raise
    after = _states(root)
    if cut_off or after != before or not (root / MANIFEST).exists():
        same = [] if cut_off else [name for name, state in after.items() if before.get(name) == state]
        seal(root, same, files)
    mark.unlink()


def _states(root: Path) -> dict[str, tuple[int, int, int]]:
    """What tells that a file was written: inode, size and time of change."""
    found = {}
    for name in evidence(root):
        state = (root / name).stat()
        found[name] = (state.st_ino, state.st_size, state.st_mtime_ns)
    return found


def read_seal(root: Path) -> dict[str, str]:
    """Digest of each sealed file. Raises IntegrityError without a whole manifest."""
    path = root / MANIFEST
    if not path.is_file():
        raise IntegrityError(f"{path}: missing; the run was not finished, or its seal was removed")
    found: dict[str, str] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        match = LINE.fullmatch(line)
        if not match or match[2] in found:
            raise IntegrityError(f"{path}: line {number} is not a digest and a new name")
        found[match[2]] = match[1]
    return found
