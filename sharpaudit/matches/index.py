"""The reference index: training pictures as vectors, in a folder of its own.

    vectors.npy           float32 (N, D), one row per reference of status ok, in the order of the table
    references.parquet    one row per picture (tables.schemas.REFERENCES), rejected ones with their reason
    manifest.json         descriptor profile, counts, SHA-256 of both files, and its own checksum

An index is built in a temporary folder beside its place, synced and renamed: it is there whole or not at
all. Its digest, which a match records, is the SHA-256 of manifest.json. Opening hashes every file, so an
index that was cut or changed is refused by the file's name. Vectors of another profile are refused as well:
they would give similarities that mean nothing.

Shapes: N references with a vector, D dimension.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sharpaudit.embedders.profiles import Profile, profile
from sharpaudit.errors import Status, UserError, printable
from sharpaudit.images import MAX_BYTES, Pixels, UnreadableImage, decode, sha256_hex, thumbnail
from sharpaudit.matches.pictures import Picture, pictures_in
from sharpaudit.tables.files import IN_PROGRESS, Files, naming
from sharpaudit.tables.records import sealed
from sharpaudit.tables.schemas import REFERENCES

__all__ = ["IndexSummary", "Picture", "ReferenceIndex", "build_index", "open_index", "pictures_in"]

FORMAT_VERSION = 1
VECTORS, ROWS, MANIFEST = "vectors.npy", "references.parquet", "manifest.json"
_ROWS_AT_ONCE = 64  # pictures described together and written as one row group
_MAX_MANIFEST_BYTES = 2**24


@dataclass(frozen=True)
class IndexSummary:
    """What became of the pictures: pictures = duplicates + the sum of statuses."""

    pictures: int
    duplicates: int
    statuses: dict[str, int]
    digest: str


@dataclass(frozen=True)
class IndexManifest:
    """What manifest.json says. sources: rows of each data set. rows counts rejected references, vectors not."""

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


@dataclass(frozen=True)
class ReferenceIndex:
    """An open index. Row i of `vectors` (N, D), mapped from the file, belongs to reference_ids[i].

    table_rows: where reference i stands in `table`, which holds rejected pictures as well and stays open. opened: what
    the data files were then.
    """

    path: Path
    profile: Profile
    vectors: npt.NDArray[np.float32]
    reference_ids: list[str]
    table_rows: npt.NDArray[np.int64]
    table: pq.ParquetFile = field(repr=False, compare=False)
    digest: str
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


def build_index(out: Path, profile_name: str, pictures: Iterable[Picture]) -> IndexSummary:
    """Describe the pictures and publish them as the index `out`, which must not exist.

    Of several pictures with one id the first is kept and the others are counted. Pictures that cannot be read
    or described become rows with a reason.
    """
    descriptor, files = profile(profile_name), Files()
    _refuse_existing(out)
    files.make_folder(out.parent)
    attempt = out.with_name(f".{out.name}-{uuid.uuid4().hex}{IN_PROGRESS}")
    attempt.mkdir(mode=0o700)
    try:
        build = _write_rows(attempt, descriptor, pictures)
        manifest = _manifest_bytes(attempt, descriptor, build)
        files.write(attempt / MANIFEST, manifest)
        for name in (VECTORS, ROWS, MANIFEST):
            files.sync(attempt / name)
        files.sync_folder(attempt)
        _refuse_existing(out)
        files.rename(attempt, out)
        files.sync_folder(out.parent)
    except BaseException:
        shutil.rmtree(attempt, ignore_errors=True)
        raise
    statuses = dict(sorted(build.statuses.items()))
    return IndexSummary(build.duplicates + build.statuses.total(), build.duplicates, statuses, sha256_hex(manifest))


def open_index(path: Path, profile_name: str) -> ReferenceIndex:
    """The index at `path`, every file checked. Raises UserError naming the file or the profiles at odds."""
    data = _bytes_of(path / MANIFEST)
    manifest = _parse_manifest(path / MANIFEST, data)
    wanted = profile(profile_name)
    ours = (wanted.name, wanted.version, wanted.digest)
    theirs = (manifest.profile, manifest.profile_version, manifest.profile_digest)
    if ours != theirs:
        raise UserError(
            f"{path}: made with profile {_profile_name(theirs)}, but {_profile_name(ours)} is asked for; "
            "similarities between profiles mean nothing: build the index again, or ask for its profile"
        )
    hashed = _identities(path)
    for name in (VECTORS, ROWS):
        if _sha256_of(path / name) != manifest.sha256.get(name):
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
    return ReferenceIndex(path, wanted, vectors_ND, reference_ids, table_rows, table, sha256_hex(data), hashed)


@dataclass
class _Build:
    """The counts of an index that is being written."""

    statuses: Counter[str] = field(default_factory=Counter)
    sources: Counter[str] = field(default_factory=Counter)
    duplicates: int = 0
    seen: set[str] = field(default_factory=set)
    first_reason: str | None = None


def _write_rows(folder: Path, descriptor: Profile, pictures: Iterable[Picture]) -> _Build:
    """Stream vectors and references into `folder`, so that an index may be larger than the memory."""
    build, arriving = _Build(), iter(pictures)
    options = {"compression": "zstd", "write_page_checksum": True}
    with (
        naming(folder),
        (folder / VECTORS).open("wb") as vectors,
        pq.ParquetWriter(folder / ROWS, REFERENCES.schema, **options) as table,
    ):
        _write_header(vectors, 0, descriptor.dimension)
        while batch := list(islice(arriving, _ROWS_AT_ONCE)):
            rows, vectors_ND = _describe(batch, descriptor, build)
            if rows:
                table.write_table(pa.Table.from_pylist(rows, schema=REFERENCES.schema))
            vectors.write(vectors_ND.tobytes())
        n_ok = build.statuses[Status.OK]
        if n_ok == 0:
            reason = f"; the first was refused: {build.first_reason}" if build.first_reason else ""
            raise UserError(
                f"none of {build.statuses.total()} pictures can be described, so there is nothing to index{reason}"
            )
        vectors.seek(0)
        _write_header(vectors, n_ok, descriptor.dimension)
    return build


def _write_header(stream: BinaryIO, n_rows: int, dimension: int) -> None:
    """The npy header; numpy pads it so that the number of rows can be put in afterwards."""
    header = {"descr": "<f4", "fortran_order": False, "shape": (n_rows, dimension)}
    np.lib.format.write_array_header_1_0(stream, header)


def _describe(
    batch: list[Picture], descriptor: Profile, build: _Build
) -> tuple[list[dict[str, Any]], npt.NDArray[np.float32]]:
    """The rows of a batch and the vectors of those that are ok, in the same order."""
    rows, images = [], []
    for picture in batch:
        row, image = _row(picture)
        if row["reference_id"] in build.seen:
            build.duplicates += 1
            continue
        build.seen.add(row["reference_id"])
        rows.append(row)
        images.append(image)
    readable = [i for i, image in enumerate(images) if image is not None]
    vectors_ND = descriptor.describe([image for image in images if image is not None])
    usable_N = np.logical_and.reduce(np.isfinite(vectors_ND), axis=1)
    for i, usable in zip(readable, usable_N.tolist(), strict=True):
        if not usable:
            rows[i] |= {"status": Status.NO_DESCRIPTOR.value, "reason": Status.NO_DESCRIPTOR.describe()}
    for row in rows:
        build.statuses[row["status"]] += 1
        build.sources[row["source"]] += 1
        build.first_reason = build.first_reason or (row["reason"] and f"{printable(row['path'])}: {row['reason']}")
    return rows, vectors_ND[usable_N]


def _row(picture: Picture) -> tuple[dict[str, Any], Pixels | None]:
    sha256 = sha256_hex(picture.data)
    row: dict[str, Any] = {
        "reference_id": _text(picture.reference_id) if picture.reference_id else sha256[:32],
        "source": _text(picture.source),
        "caption": None if picture.caption is None else _text(picture.caption),
        "path": _text(picture.path),
        "image_sha256": sha256 if len(picture.data) <= MAX_BYTES else None,
        "status": Status.OK.value,
    }
    try:
        image = decode(picture.data)
    except UnreadableImage as error:
        return row | {"status": Status.UNREADABLE_IMAGE.value, "reason": str(error)}, None
    row |= {"height_px": image.shape[0], "width_px": image.shape[1], "thumbnail": thumbnail(image), "reason": None}
    return row, image


def _text(text: str) -> str:
    """Valid Unicode: a file name may hold bytes that are none, and one of them would fail its whole batch."""
    return text.encode("utf-8", "backslashreplace").decode()


def _manifest_bytes(folder: Path, descriptor: Profile, build: _Build) -> bytes:
    manifest = IndexManifest(
        format_version=FORMAT_VERSION,
        profile=descriptor.name,
        profile_version=descriptor.version,
        profile_digest=descriptor.digest,
        dimension=descriptor.dimension,
        rows=build.statuses.total(),
        vectors=build.statuses[Status.OK],
        duplicates=build.duplicates,
        statuses=dict(build.statuses),
        sources=dict(build.sources),
        sha256={name: _sha256_of(folder / name) for name in (VECTORS, ROWS)},
    )
    return sealed(asdict(manifest))


def _parse_manifest(path: Path, data: bytes) -> IndexManifest:
    try:
        tree = json.loads(data)
        del tree["checksum"]
        whole = sealed(tree) == data
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: not the manifest of an index; give the folder that an index was built in") from error
    if not whole:
        raise UserError(f"{path}: changed after the index was built; build the index again")
    if tree.get("format_version") != FORMAT_VERSION:
        raise UserError(
            f"{path}: format {tree.get('format_version')}, this version reads {FORMAT_VERSION}; build it again"
        )
    try:
        return IndexManifest(**tree)
    except TypeError as error:
        raise UserError(f"{path}: not the manifest of an index; give the folder that an index was built in") from error


def _profile_name(identity: tuple[str, int, str]) -> str:
    name, version, digest = identity
    return f'"{printable(str(name))}" version {version} ({str(digest)[:8]})'


def _refuse_existing(out: Path) -> None:
    if os.path.lexists(out):
        raise UserError(f"{printable(str(out))}: exists already; an index is never overwritten: name another folder")


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


def _sha256_of(path: Path) -> str:
    with _readable(path), path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{printable(str(path))}: cannot read this file of the index: {error.strerror}") from error
