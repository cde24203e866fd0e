"""The reference index: training pictures as vectors, in a folder of its own.

    manifest.json                    embedders, parts, counts, SHA-256 of every file, and its own checksum
    references/00000.parquet ...     one row per picture (tables.schemas.REFERENCES), rejected ones with their reason
    vectors/<embedder>/00000.npy ... float32 or float16 (n, D), one row per reference of status ok, in the order of
                                     the table of the same number

Its digest, which a match records, is the SHA-256 of manifest.json. Opening hashes every file, so an index that was cut
or changed is refused by the file's name. Vectors of another embedder are refused as well: they would give similarities
that mean nothing. An index may be without thumbnails: whoever owns the pictures can hand it to whoever owns the model.
matches/writing.py makes one. An index of format 1 had one part, references.parquet and vectors.npy.

Shapes: N references with a vector, D dimension.
"""

from __future__ import annotations

import errno
import hashlib
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sharpaudit.embedders.base import NOWHERE, Embedder, embedder
from sharpaudit.embedders.weights import Shelf
from sharpaudit.errors import Status, UserError, printable
from sharpaudit.images import sha256_hex
from sharpaudit.matches.manifest import MANIFEST, IndexManifest, parse_manifest, read_manifest
from sharpaudit.matches.search.vectors import Vectors

Identity = tuple[int, int, int]
PARTS_KEPT = 64
"""Parts whose identifiers stay in memory."""


@dataclass(frozen=True)
class ReferenceIndex:
    """An open index. Row i of `vectors` (N, D), mapped from files, belongs to the i-th reference that has a vector.

    embedder: its card; nothing of it is loaded. tables: of the parts, which hold rejected pictures as well, and stay
    open. opened: what the data files were then.
    """

    path: Path
    embedder: Embedder
    manifest: IndexManifest
    digest: str
    vectors: Vectors = field(repr=False)
    tables: list[pq.ParquetFile] = field(repr=False, compare=False)
    opened: dict[str, Identity] = field(repr=False)

    def __len__(self) -> int:
        return self.manifest.vectors

    @property
    def holding(self) -> dict[str, Any] | None:
        """What part of the training set it holds."""
        return self.manifest.holding()

    @property
    def weights(self) -> dict[str, str] | None:
        """Of its embedder."""
        return self.manifest.profiles[self.embedder.name].weights

    def require_unchanged(self) -> None:
        """Raise UserError where a data file is no longer the one that was opened: what was read may be another's."""
        if identities(self.path, self.opened) != self.opened:
            raise UserError(
                f"{printable(str(self.path))}: the index changed while it was in use; nothing was made with the new "
                "one: put the old one back and give the same command, or name a new folder with --out"
            )

    def reference_id(self, row: int) -> str:
        """Of the reference whose vector is in this row."""
        part, within = self._place(row)
        return str(self._held(part)[0][within])

    def reference_ids(self) -> Iterator[str]:
        """Of all of them, in the order of their vectors."""
        for part in range(len(self.tables)):
            yield from self._held(part)[0].to_pylist()

    def thumbnail(self, row: int) -> bytes | None:
        """The PNG thumbnail of the reference whose vector is in this row; None in an index without pictures."""
        part, within = self._place(row)
        at, group = int(self._held(part)[1][within]), 0
        table = self.tables[part]
        while at >= table.metadata.row_group(group).num_rows:
            at -= table.metadata.row_group(group).num_rows
            group += 1
        with self.unchanged():
            held = table.read_row_group(group, columns=["thumbnail"]).column(0)[at].as_py()
        return None if held is None else bytes(held)

    @cached_property
    def _starts(self) -> list[int]:
        return [0, *accumulate(part.vectors for part in self.manifest.parts)]

    def _place(self, row: int) -> tuple[int, int]:
        part = bisect_right(self._starts, row) - 1
        return part, row - self._starts[part]

    def _held(self, part: int) -> tuple[pa.Array, npt.NDArray[np.int64]]:
        """Of the references of a part that have a vector: identifiers, and where in the table they stand."""
        if part not in self._kept:
            with self.unchanged():
                held = self.tables[part].read(columns=["reference_id", "status"])
            ok = pc.equal(held["status"], Status.OK.value)
            if len(self._kept) >= PARTS_KEPT:
                del self._kept[next(iter(self._kept))]
            self._kept[part] = held.filter(ok)["reference_id"].combine_chunks(), np.flatnonzero(ok.to_numpy())
        return self._kept[part]

    @cached_property
    def _kept(self) -> dict[int, tuple[pa.Array, npt.NDArray[np.int64]]]:
        return {}

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """Of files that cannot be read any more, say so where they were changed."""
        try:
            yield
        except (OSError, pa.ArrowException):
            self.require_unchanged()
            raise


@dataclass(frozen=True)
class Hashed:
    """The files of an index whose bytes were found to be those of the manifest with this digest, as they were then."""

    digest: str
    files: Mapping[str, Sequence[int]]


def open_index(path: Path, name: str, shelf: Shelf = NOWHERE, known: Hashed | None = None) -> ReferenceIndex:
    """The index at `path`, every file checked, made with the embedder of that name and the weights on the shelf.

    known: files that are the same still by size, time and place on the disk are not hashed again. Raises UserError
    naming the file or the embedders at odds.
    """
    data = read_manifest(path)
    manifest = parse_manifest(path / MANIFEST, data)
    wanted = embedder(name, shelf)
    _require_profile(path, manifest, wanted)
    files = manifest.files_of(wanted.name)
    before = identities(path, files)
    told = known.files if known is not None and known.digest == sha256_hex(data) else {}
    for file in (file for file in files if list(told.get(file, ())) != list(before[file])):
        if sha256_of(path / file) != manifest.sha256.get(file):
            raise UserError(f"{path / file}: not the file that was indexed (changed or cut); build the index again")
    blocks, tables = [], []
    for number in range(len(manifest.parts)):
        with _known_format(path / (file := manifest.table(number))):
            tables.append(pq.ParquetFile(path / file, page_checksum_verification=True))
            n_ok = pc.sum(pc.equal(tables[-1].read(columns=["status"])["status"], Status.OK.value)).as_py() or 0
        with _known_format(path / (file := manifest.vector_file(wanted.name, number))):
            held = np.load(path / file, mmap_mode="r", allow_pickle=False)
        part, dtype = manifest.parts[number], np.dtype(manifest.profiles[wanted.name].dtype)
        if (held.dtype, held.shape, n_ok) != (dtype, (part.vectors, wanted.dimension), part.vectors):
            raise UserError(f"{path / MANIFEST}: contradicts {file} or its table; build the index again")
        blocks.append(path / file)
    if identities(path, files) != before:
        raise UserError(f"{path}: changed while it was opened; give the same command again")
    vectors = Vectors(blocks, wanted.dimension)
    return ReferenceIndex(path, wanted, manifest, sha256_hex(data), vectors, tables, before)


def _require_profile(path: Path, manifest: IndexManifest, wanted: Embedder) -> None:
    held = manifest.profiles.get(wanted.name)
    if held is not None and (held.version, held.digest) == (wanted.version, wanted.digest):
        if held.dimension != wanted.dimension:
            raise UserError(f"{path / MANIFEST}: contradicts the embedder's dimension; build the index again")
        return
    ours = _profile_name(wanted.name, wanted.version, wanted.digest)
    there = {name: _profile_name(name, told.version, told.digest) for name, told in manifest.profiles.items()}
    told = there.get(wanted.name) or " and ".join(there.values())
    raise UserError(
        f"{path}: made with profile {told}, but {ours} is asked for; "
        "similarities between profiles mean nothing: build the index again, or ask for its profile"
    )


def _profile_name(name: str, version: int, digest: str) -> str:
    return f'"{printable(name)}" version {version} ({digest[:8]})'


@contextmanager
def _known_format(path: Path) -> Iterator[None]:
    try:
        yield
    except (ValueError, LookupError, EOFError, OSError, pa.ArrowException) as error:
        if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
            raise UserError(
                f"{path}: too many files are open: an index keeps one open for each of its parts; raise the limit "
                "(ulimit -n)"
            ) from error
        raise UserError(f"{path}: is in no known format; build the index again") from error


def identities(folder: Path, files: Any) -> dict[str, Identity]:
    """What changes when a data file of an index is replaced or written to."""
    found = {}
    for name in files:
        with _readable(folder / name):
            stat = (folder / name).stat()
        found[name] = (stat.st_ino, stat.st_size, stat.st_mtime_ns)
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
