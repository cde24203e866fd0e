"""`sharpaudit index add`: vectors of a further embedder for the references of an index that is there.

The pictures are read again from where they lie, and known by their SHA-256. The index is as it was until all of its
references have a vector; then the manifest names the new ones, in one step. Its digest is another from then on.

Shapes: D dimension.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from pipelines.indexing.build import Asked, described_units
from sharpaudit.config import RunConfig
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
from sharpaudit.matches.writing import profile_of
from sharpaudit.tables.files import IN_PROGRESS, Files
from sharpaudit.tables.records import replace_file

Found = dict[str, npt.NDArray[np.float32]]
"""The vector of each picture by its SHA-256."""


def add(place: Path, asked: Asked, run: RunConfig, dtype: str = "float32") -> str:
    """Add the vectors of one embedder to the index in `place`; returns the index's new digest.

    Raises UserError where the index has them already, is of an earlier format, or holds a reference whose picture is
    not among those given or cannot be described.
    """
    manifest = parse_manifest(place / MANIFEST, read_manifest(place))
    shown = printable(str(place))
    if manifest.format_version < FORMAT_VERSION:
        raise UserError(f"{shown}: is of an earlier format, to which nothing is added: build the index again")
    (name,) = asked.profiles
    if name in manifest.profiles:
        raise UserError(f"{shown}: holds vectors of {printable(name)} already; name another embedder with --profile")
    building = place.with_name(f".{place.name}-adding{IN_PROGRESS}")
    with described_units(building, asked, run) as ((card,), pieces):
        found: Found = {}
        for piece in pieces:
            if not isinstance(piece, NotLookedAt | Repeated):
                rows, (vectors_ND,) = piece
                digests = [row["image_sha256"] for row in rows if row["status"] == Status.OK]
                found |= dict(zip(digests, vectors_ND, strict=True))
        files = _write(place, building / "vectors", manifest, name, found, np.dtype(dtype))
        profiles = {**manifest.profiles, name: profile_of(card, dtype)}
        data = replace(manifest, profiles=profiles, sha256={**manifest.sha256, **files}).to_bytes()
        target = (place / vectors_name(name, 0)).parent
        shutil.rmtree(target, ignore_errors=True)  # of an addition that ended before the manifest named it
        Files().rename(building / "vectors", target)
        replace_file(place / MANIFEST, data)
    shutil.rmtree(building)
    return sha256_hex(data)


def _write(
    place: Path, folder: Path, manifest: IndexManifest, name: str, found: Found, dtype: np.dtype[np.floating]
) -> dict[str, str]:
    """The vectors of every part into `folder`, durable; the digests of the files as the manifest names them."""
    files = Files()
    shutil.rmtree(folder, ignore_errors=True)
    files.make_folder(folder)
    digests, lost = {}, list[str]()
    for number in range(len(manifest.parts)):
        rows = pq.read_table(place / manifest.table(number), columns=["image_sha256", "path", "status"]).to_pylist()
        wanted = [row for row in rows if row["status"] == Status.OK]
        lost += [row["path"] for row in wanted if row["image_sha256"] not in found]
        if lost:
            continue
        path = folder / Path(vectors_name(name, number)).name
        np.save(path, np.stack([found[row["image_sha256"]] for row in wanted]).astype(dtype))
        files.sync(path)
        digests[vectors_name(name, number)] = sha256_of(path)
    if lost:
        raise UserError(
            f"{printable(str(place))}: {len(lost):,} of its references have no picture among those given that "
            f"{printable(name)} can describe, the first is {printable(lost[0])}: give those that it was built from"
        )
    files.sync_folder(folder)
    return digests
