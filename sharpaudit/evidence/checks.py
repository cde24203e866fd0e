"""Checks of a run that stand each by itself: its seal, its tables, its pictures and its identities.

Every fault is one line that names the file; none hides another. A seal can be written anew by whoever changes a file,
so tables, pictures and identities are also held against what they say of themselves.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from securesystemslib.exceptions import VerificationError
from securesystemslib.signer import Key

from sharpaudit.errors import IntegrityError
from sharpaudit.evidence.attest import PAYLOAD_TYPE, read_attestation, statement
from sharpaudit.evidence.seal import (
    ATTESTATION,
    EARLIER,
    MANIFEST,
    REVISION,
    earlier,
    evidence,
    read_seal,
    revision,
    sha256_of,
)
from sharpaudit.tables.records import canonical
from sharpaudit.tables.runs import UNSEALED, Identity, RunFolder
from sharpaudit.tables.shards import Manifest, TableFolder, keys_digest


def seal_faults(root: Path) -> Iterator[str]:
    """Sealed files that are missing or changed, and files that the seal does not know."""
    if (root / UNSEALED).exists():
        yield f"{root}: a call of `run` is at work here or was cut off; run the same command again, then verify"
    try:
        sealed, there = read_seal(root), set(evidence(root))
    except IntegrityError as error:
        yield str(error)
        return
    for name, digest in sealed.items():
        if name not in there:
            yield f"{root / name}: sealed in {MANIFEST} and missing"
        elif sha256_of(root / name) != digest:
            yield f"{root / name}: not the bytes that {MANIFEST} names"
    yield from (f"{root / name}: not in {MANIFEST}" for name in sorted(there - set(sealed)))


def revision_faults(root: Path) -> Iterator[str]:
    """A seal that does not follow from the one before, which is kept."""
    kept = earlier(root)
    for number, path in enumerate(kept, 1):
        if path.name != f"{number:04d}.sha256":
            yield f"{root / EARLIER}: seal {number} of {len(kept)} earlier ones is missing"
            return
        try:
            read_seal(root, path.relative_to(root).as_posix())
        except IntegrityError as error:
            yield str(error)
    told = revision(root)
    if told["revision"] != len(kept) + 1:
        yield f"{root / REVISION}: revision {told['revision']}, and {len(kept)} earlier seals are there"
    elif told["previous"] != (sha256_of(kept[-1]) if kept else None):
        yield f"{root / REVISION}: does not name the seal before, {kept[-1] if kept else 'of which there is none'}"


def attestation_faults(root: Path, key: Key | None = None) -> Iterator[str]:
    """An attestation that is not of this run as it is sealed, or that `key` did not sign."""
    path = root / ATTESTATION
    envelope = read_attestation(root)
    if envelope.payload_type != PAYLOAD_TYPE:
        yield f"{path}: not an in-toto statement"
    elif envelope.payload != canonical(statement(root)):
        yield f"{path}: states something else than the sealed run"
    if key is None:
        return
    try:
        envelope.verify([key], 1)
    except VerificationError:
        signed = ", ".join(sorted(envelope.signatures)) or "nobody"
        yield f"{path}: not signed by the key {key.keyid}; signed by {signed}"


def table_faults(run: RunFolder) -> Iterator[str]:
    """Shards whose file, rows, schema, keys or statuses are not those of their manifest."""
    try:
        folders = run.every_folder()
    except IntegrityError as error:
        yield str(error)
        return
    for folder in folders:
        for path in sorted(folder.manifests_folder.glob("*.json")):
            try:
                manifest = folder.manifest(path.stem)
                if manifest is not None:
                    yield from _shard_faults(folder, manifest)
            except (IntegrityError, TypeError) as error:
                yield str(error) if isinstance(error, IntegrityError) else f"{path}: not a manifest of this version"
        try:
            folder.current()
        except IntegrityError as error:
            yield str(error)


def _shard_faults(folder: TableFolder, manifest: Manifest) -> Iterator[str]:
    rows, path = folder.read(manifest), folder.path(manifest)
    if keys_digest(rows, folder.table.key) != manifest.keys_digest:
        yield f"{path}: its keys are not those of its manifest"
    columns = [name for name in ("image_path", "thumbnail_path") if name in rows.column_names]
    if {image for name in columns for image in rows[name].to_pylist()} - {None} != set(manifest.images):
        yield f"{path}: its pictures are not those of its manifest"
    if dict(Counter(rows["status"].to_pylist())) != manifest.statuses:
        yield f"{path}: its statuses are not those of its manifest"
    if manifest.schema_version != folder.table.version:
        yield f"{path}: version {manifest.schema_version} of its table; run.json records {folder.table.version}"


def picture_faults(run: RunFolder) -> Iterator[str]:
    """Pictures that are missing, or whose content is not the one that their name is the digest of."""
    listed: set[str] = set()
    for folder in run.every_folder():
        for path in folder.manifests_folder.glob("*.json"):
            # A manifest that cannot be read is named by the check of tables.
            with suppress(IntegrityError, TypeError):
                manifest = folder.manifest(path.stem)
                listed.update(manifest.images if manifest else ())
    for name in sorted(listed):
        picture = run.root / name
        if not picture.is_file():
            yield f"{picture}: a listed picture is missing"
        elif sha256_of(picture) != picture.stem:
            yield f"{picture}: not the picture that its name is the digest of"


def identity_faults(run: RunFolder) -> Iterator[str]:
    """Stages whose fingerprint does not follow from what run.json says of them."""
    stages = (run.record() or {}).get("stages", {})
    for name, entry in stages.items():
        made = Identity(name, entry["fields"], entry["versions"], entry["upstream"])
        if made.fingerprint != entry["fingerprint"]:
            yield f"{run.root / 'run.json'}: the fingerprint of {name} is not that of its fields"
        for before, fingerprint in entry["upstream"].items():
            if stages.get(before, {}).get("fingerprint") != fingerprint:
                yield f"{run.root / 'run.json'}: {name} follows another {before} than the one recorded"
