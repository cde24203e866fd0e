"""The reference index: training pictures as vectors, in a folder of its own.

    vectors.npy           float32 (N, D), one row per reference of status ok, in the order of the table
    references.parquet    one row per picture (tables.schemas.REFERENCES), rejected ones with their reason
    manifest.json         descriptor profile, counts, SHA-256 of both files, and its own checksum

Its digest, which a match records, is the SHA-256 of manifest.json. Opening hashes every file, so an index that was cut
or changed is refused by the file's name. Vectors of another profile are refused as well: they would give similarities
that mean nothing. matches/build.py makes one.

Shapes: N references with a vector, D dimension.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sharpaudit.embedders.base import NOWHERE, Embedder, embedder
from sharpaudit.embedders.weights import Shelf
from sharpaudit.errors import Status, UserError, printable
from sharpaudit.images import sha256_hex
from sharpaudit.tables.records import checksummed

FORMAT_VERSION = 1
VECTORS, ROWS, MANIFEST = "vectors.npy", "references.parquet", "manifest.json"
_MAX_MANIFEST_BYTES = 2**24


@dataclass(frozen=True)
class IndexManifest:
    """What manifest.json says. sources: rows of each data set. rows counts rejected references, vectors not.

    not_looked_at: files that were taken for no picture, by kind; None in an index of a version that did not count them.
    training_size: of how many pictures the training set is said to consist. weights: the embedder's, for one that has
    some: file, sha256 and who vouched for it when the index was built.
    """

    format_version: int
    profile: str
    profile_version: int
    profile_digest: str
    dimension: int
    rows: int
    vectors: int
    duplicates: int
    statuses: dict[str, int]
    sources: dict[str, int]
    sha256: dict[str, str]
    not_looked_at: dict[str, int] | None = None
    training_size: int | None = None
    weights: dict[str, str] | None = None

    def holding(self) -> dict[str, Any] | None:
        """What part of the training set the index holds, in counts; None where that was not recorded."""
        if self.not_looked_at is None:
            return None
        return {
            "references": self.vectors,
            "duplicates": self.duplicates,
            "rejected": self.rows - self.vectors,
            "not_looked_at": self.not_looked_at,
            "training_size": self.training_size,
        }


@dataclass(frozen=True)
class ReferenceIndex:
    """An open index. Row i of `vectors` (N, D), mapped from the file, belongs to reference_ids[i].

    embedder: its card; nothing of it is loaded. table_rows: where reference i stands in `table`, which holds rejected
    pictures as well and stays open. holding, weights: of the manifest. opened: what the data files were then.
    """

    path: Path
    embedder: Embedder
    vectors: npt.NDArray[np.float32]
    reference_ids: list[str]
    table_rows: npt.NDArray[np.int64]
    table: pq.ParquetFile = field(repr=False, compare=False)
    digest: str
    holding: dict[str, Any] | None
    weights: dict[str, str] | None
    opened: list[tuple[int, int, int]] = field(repr=False)

    def require_unchanged(self) -> None:
        """Raise UserError where a data file is no longer the one that was opened: what was read may be another's."""
        if _identities(self.path) != self.opened:
            raise UserError(
                f"{printable(str(self.path))}: the index changed while it was in use; nothing was made with the new "
                "one: put the old one back and give the same command, or name a new folder with --out"
            )

    def thumbnail(self, reference_id: str) -> bytes:
        """The PNG thumbnail of a reference that has a vector. Raises ValueError if there is no such one."""
        row = int(self.table_rows[self.reference_ids.index(reference_id)])
        group = 0
        while row >= self.table.metadata.row_group(group).num_rows:
            row -= self.table.metadata.row_group(group).num_rows
            group += 1
        try:
            return bytes(self.table.read_row_group(group, columns=["thumbnail"]).column(0)[row].as_py())
        except OSError:
            self.require_unchanged()
            raise


def open_index(path: Path, name: str, shelf: Shelf = NOWHERE) -> ReferenceIndex:
    """The index at `path`, every file checked, made with the embedder of that name and the weights on the shelf.

    Raises UserError naming the file or the profiles at odds.
    """
    data = _bytes_of(path / MANIFEST)
    manifest = _parse_manifest(path / MANIFEST, data)
    wanted = embedder(name, shelf)
    ours = (wanted.name, wanted.version, wanted.digest)
    theirs = (manifest.profile, manifest.profile_version, manifest.profile_digest)
    if ours != theirs:
        raise UserError(
            f"{path}: made with profile {_profile_name(theirs)}, but {_profile_name(ours)} is asked for; "
            "similarities between profiles mean nothing: build the index again, or ask for its profile"
        )
    hashed = _identities(path)
    for name in (VECTORS, ROWS):
        if sha256_of(path / name) != manifest.sha256.get(name):
            raise UserError(f"{path / name}: not the file that was indexed (changed or cut); build the index again")
    try:
        vectors_ND = np.load(path / VECTORS, mmap_mode="r", allow_pickle=False)
        table = pq.ParquetFile(path / ROWS, page_checksum_verification=True)
        rows = table.read(columns=["reference_id", "status"])
    except (ValueError, LookupError, EOFError, OSError) as error:
        raise UserError(f"{path}: {VECTORS} or {ROWS} is in no known format; build the index again") from error
    if _identities(path) != hashed:
        raise UserError(f"{path}: changed while it was opened; give the same command again")
    table_rows = np.flatnonzero(pc.equal(rows.column("status"), Status.OK.value).to_numpy())
    expected = (np.dtype(np.float32), (manifest.vectors, manifest.dimension), manifest.vectors)
    if (vectors_ND.dtype, vectors_ND.shape, len(table_rows)) != expected:
        raise UserError(f"{path / MANIFEST}: contradicts {VECTORS} or {ROWS}; build the index again")
    reference_ids = rows.column("reference_id").take(table_rows).to_pylist()
    told = manifest.holding(), manifest.weights
    return ReferenceIndex(path, wanted, vectors_ND, reference_ids, table_rows, table, sha256_hex(data), *told, hashed)


def _parse_manifest(path: Path, data: bytes) -> IndexManifest:
    try:
        tree = json.loads(data)
        del tree["checksum"]
        whole = checksummed(tree) == data
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: not the manifest of an index; give the folder that an index was built in") from error
    if not whole:
        raise UserError(f"{path}: changed after the index was built; build the index again")
    if tree.get("format_version") != FORMAT_VERSION:
        raise UserError(
            f"{path}: format {tree.get('format_version')}, this version reads {FORMAT_VERSION}; build it again"
        )
    try:
        manifest = IndexManifest(**tree)
        counts: list[object] = [*(manifest.not_looked_at or {}).values(), manifest.training_size or 0]
        if not all(isinstance(count, int) and count >= 0 for count in counts):
            raise TypeError
        if not all(isinstance(text, str) for text in (manifest.weights or {}).values()):
            raise TypeError
    except (TypeError, AttributeError) as error:
        raise UserError(f"{path}: not the manifest of an index; give the folder that an index was built in") from error
    return manifest


def _profile_name(identity: tuple[str, int, str]) -> str:
    name, version, digest = identity
    return f'"{printable(str(name))}" version {version} ({str(digest)[:8]})'


def _bytes_of(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            return stream.read(_MAX_MANIFEST_BYTES)
    except OSError as error:
        raise UserError(f"{printable(str(path))}: cannot read this file of the index: {error.strerror}") from error


def _identities(folder: Path) -> list[tuple[int, int, int]]:
    """What changes when a data file of an index is replaced or written to."""
    found = []
    for path in (folder / VECTORS, folder / ROWS):
        with _readable(path):
            stat = path.stat()
        found.append((stat.st_ino, stat.st_size, stat.st_mtime_ns))
    return found


def sha256_of(path: Path) -> str:
    """SHA-256 of a file of an index, hex. Raises UserError for one that cannot be read."""
    with _readable(path), path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{printable(str(path))}: cannot read this file of the index: {error.strerror}") from error
