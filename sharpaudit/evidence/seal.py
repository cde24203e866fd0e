"""The seal: MANIFEST.sha256, the digest of every file that a run holds as evidence.

`sha256sum -c MANIFEST.sha256` checks it without this program. Outside the seal are what changes while a run works or
is looked at: locks, progress, logs, the workers' scratch and attempts, and the attestation, which names the seal.

Sealing again makes the next revision: seal.json, itself under the seal, names its number and the digest of the seal
before, which is kept as seals/NNNN.sha256. So what an earlier seal named, and a file that has gone since, stays on
record.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sharpaudit.errors import IntegrityError, printable
from sharpaudit.tables.files import IN_PROGRESS, Files, crash_point
from sharpaudit.tables.image_store import IMAGES, require_own_name
from sharpaudit.tables.records import checksummed, read_checksummed, replace_file
from sharpaudit.tables.runs import OWN_NAMES

MANIFEST = "MANIFEST.sha256"
ATTESTATION = "attestation.dsse.json"
REVISION = "seal.json"
EARLIER = "seals"
OUTSIDE = (OWN_NAMES | {MANIFEST, ATTESTATION}) - {"config.toml", "inputs.json"}
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
    that seal names, or a picture not what its own name says; the old seal stays.
    """
    before = read_seal(root) if (root / MANIFEST).exists() else {}
    digests = {name: sha256_of(root / name) for name in evidence(root)}
    for name in foreign:
        if before.get(name, digests[name]) != digests[name]:
            raise IntegrityError(
                f"{root / name}: changed since the run was sealed, and not by this program; put the sealed file back, "
                f"or remove {MANIFEST} to give up the seal"
            )
    for name, digest in digests.items():
        if name.startswith(f"{IMAGES}/"):
            require_own_name(root / name, digest)
    _keep(root, files)
    write_revision(root, files)
    # A loss of power may have left a half-written one there, which the next run removes.
    kept = (path for path in (root / EARLIER).glob("*") if not path.name.endswith(IN_PROGRESS))
    for path in [root / REVISION, *kept]:
        digests[path.relative_to(root).as_posix()] = sha256_of(path)
    lines = "".join(f"{digests[name]}  {name}\n" for name in sorted(digests))
    replace_file(root / MANIFEST, lines.encode(), files)
    crash_point("sealed")


def _keep(root: Path, files: Files | None) -> None:
    """Put the present seal, and its attestation, among the earlier ones, unless a call that was cut off already did."""
    kept = earlier(root)
    present = (root / MANIFEST).read_bytes() if (root / MANIFEST).exists() else None
    if present is None or (kept and kept[-1].read_bytes() == present):
        return
    (files or Files()).make_folder(root / EARLIER, 0o700)
    number = f"{len(kept) + 1:04d}"
    if (root / ATTESTATION).exists():
        replace_file(root / EARLIER / f"{number}.dsse.json", (root / ATTESTATION).read_bytes(), files)
    replace_file(root / EARLIER / f"{number}.sha256", present, files)


def write_revision(root: Path, files: Files | None = None) -> None:
    """seal.json of the revision that follows the earlier ones."""
    kept = earlier(root)
    told = {
        "revision": len(kept) + 1,
        "previous": sha256_of(kept[-1]) if kept else None,
        "sealed_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    replace_file(root / REVISION, checksummed(told), files)


def revision(root: Path) -> dict[str, Any]:
    """revision (from 1), previous (digest of the seal before, null for the first), sealed_at of the present seal."""
    return read_checksummed(root / REVISION)


def earlier(root: Path) -> list[Path]:
    """The seals before the present one, first to last."""
    return sorted((root / EARLIER).glob("[0-9][0-9][0-9][0-9].sha256"))


def read_seal(root: Path, name: str = MANIFEST) -> dict[str, str]:
    """Digest of each sealed file. Raises IntegrityError without a whole manifest."""
    path = root / name
    if not path.is_file():
        raise IntegrityError(f"{path}: missing; the run was not finished, or its seal was removed")
    found: dict[str, str] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1], 1):
        match = LINE.fullmatch(line)
        if not match or match[2] in found:
            raise IntegrityError(f"{path}: line {number} is not a digest and a new name")
        found[match[2]] = match[1]
    return found
