"""`sharpaudit index add`: vectors of a further embedder for the references of an index that is there.

The pictures are read again from where they lie, and known by their SHA-256. The index is as it was until all of its
references have a vector; then the manifest names the new ones, in one step. Its digest is another from then on.

Shapes: D dimension.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from pipelines.indexing.build import Asked, described_units
from sharpaudit.config import RunConfig
from sharpaudit.embedders.base import Embedder
from sharpaudit.errors import Status, UserError, printable
from sharpaudit.images import sha256_hex
from sharpaudit.matches.index import sha256_of
from sharpaudit.matches.manifest import (
    FORMAT_VERSION,
    MANIFEST,
    IndexManifest,
    parse_manifest,
    read_manifest,
    vectors_name,
)
from sharpaudit.matches.sources.base import NotLookedAt, Repeated
from sharpaudit.matches.writing import Piece, profile_of
from sharpaudit.tables.files import IN_PROGRESS, Files
from sharpaudit.tables.records import replace_file


def add(place: Path, asked: Asked, run: RunConfig, dtype: str = "float32") -> str:
    """Add the vectors of one embedder to the index in `place`; returns the index's new digest.

    Raises UserError where the index has them already, is of an earlier format, or holds a reference whose picture is
    not among those given or cannot be described.
    """
    place = place.resolve()
    building = place.with_name(f".{place.name}-adding{IN_PROGRESS}")
    _parsed(place, asked.profiles[0])
    with described_units(building, asked, run) as ((card,), pieces):
        # Now that nobody else adds to it.
        manifest = _parsed(place, card.name)
        rows_of = _gather(building / "vectors.raw", pieces)
        files = _write(place, building, manifest, card, rows_of, np.dtype(dtype))
        profiles = {**manifest.profiles, card.name: profile_of(card, dtype)}
        data = replace(manifest, profiles=profiles, sha256={**manifest.sha256, **files}).to_bytes()
        target = (place / vectors_name(card.name, 0)).parent
        shutil.rmtree(target, ignore_errors=True)  # of an addition that ended before the manifest named it
        Files().rename(building / "vectors", target)
        Files().sync_folder(target.parent)
        replace_file(place / MANIFEST, data)
    shutil.rmtree(building)
    return sha256_hex(data)


def _parsed(place: Path, name: str) -> IndexManifest:
    """The manifest, to which an embedder of that name can be added."""
    manifest, shown = parse_manifest(place / MANIFEST, read_manifest(place)), printable(str(place))
    if manifest.format_version < FORMAT_VERSION:
        raise UserError(f"{shown}: is of an earlier format, to which nothing is added: build the index again")
    if name in manifest.profiles:
        raise UserError(f"{shown}: holds vectors of {printable(name)} already; name another embedder with --profile")
    if vectors_name(name, 0) in manifest.files():
        raise UserError(f"{shown}: the vectors of {printable(name)} would lie where those of another embedder do")
    return manifest


def _gather(path: Path, pieces: Iterator[Piece]) -> dict[str, int]:
    """Write all vectors into a file of float32, and tell in which row that of each picture stands, by its SHA-256."""
    rows_of: dict[str, int] = {}
    with path.open("wb") as stream:
        for piece in pieces:
            if isinstance(piece, NotLookedAt | Repeated):
                continue
            rows, (vectors_ND,) = piece
            digests = [row["image_sha256"] for row in rows if row["status"] == Status.OK]
            for digest, vector_D in zip(digests, vectors_ND, strict=True):
                if digest not in rows_of:
                    rows_of[digest] = len(rows_of)
                    stream.write(vector_D.tobytes())
    return rows_of


def _write(
    place: Path,
    building: Path,
    manifest: IndexManifest,
    card: Embedder,
    rows_of: dict[str, int],
    dtype: np.dtype[np.floating],
) -> dict[str, str]:
    """The vectors of every part into a folder "vectors", durable; digests of the files as the manifest names them."""
    files, folder = Files(), building / "vectors"
    shutil.rmtree(folder, ignore_errors=True)
    files.make_folder(folder)
    raw = np.memmap(building / "vectors.raw", np.float32, "r") if rows_of else np.empty(0, np.float32)
    every_ND = raw.reshape(-1, card.dimension)
    digests, lost = {}, list[str]()
    for number in range(len(manifest.parts)):
        rows = pq.read_table(place / manifest.table(number), columns=["image_sha256", "path", "status"]).to_pylist()
        wanted = [row for row in rows if row["status"] == Status.OK]
        lost += [row["path"] for row in wanted if row["image_sha256"] not in rows_of]
        if lost:
            continue
        path = folder / Path(vectors_name(card.name, number)).name
        np.save(path, every_ND[np.array([rows_of[row["image_sha256"]] for row in wanted], np.int64)].astype(dtype))
        files.sync(path)
        digests[vectors_name(card.name, number)] = sha256_of(path)
    if lost:
        raise UserError(
            f"{printable(str(place))}: {len(lost):,} of its references have no picture among those given that "
            f"{printable(card.name)} can describe, the first is {printable(lost[0])}: give those that it was built from"
        )
    files.sync_folder(folder)
    return digests
