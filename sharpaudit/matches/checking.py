"""Whether an index is what its manifest says: every file by its bytes, and what they hold against the counts.

Nothing of an embedder is needed for it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sharpaudit.errors import Status, UserError, printable
from sharpaudit.matches.approximation import faults_of_structures, structures_of
from sharpaudit.matches.index import sha256_of
from sharpaudit.matches.manifest import MANIFEST, IndexManifest, parse_manifest, read_manifest
from sharpaudit.matches.search.vectors import Vectors
from sharpaudit.tables.schemas import REFERENCES


def faults_of(path: Path) -> Iterator[str]:
    """A sentence for each thing that is not as the manifest of the index in `path` says; none where all is."""
    try:
        manifest = parse_manifest(path / MANIFEST, read_manifest(path))
    except UserError as error:
        yield str(error)
        return
    changed = list(_changed(path, manifest))
    yield from changed
    structures = {file for _, place in structures_of(path, manifest) for file in place.rglob("*")}
    there = {file.relative_to(path).as_posix() for file in set(path.rglob("*")) - structures if file.is_file()}
    strays = sorted(there - {MANIFEST, *manifest.files()})
    yield from (f"{printable(name)}: is no file of this index" for name in strays)
    if not changed:
        yield from _contents(path, manifest)
    yield from faults_of_structures(path, manifest)


def _changed(path: Path, manifest: IndexManifest) -> Iterator[str]:
    for name in manifest.files():
        try:
            if sha256_of(path / name) != manifest.sha256.get(name):
                yield f"{name}: changed or cut"
        except UserError as error:
            yield str(error)


def _contents(path: Path, manifest: IndexManifest) -> Iterator[str]:
    """Of files that are byte for byte those of the manifest."""
    statuses, sources, seen, again = Counter[str](), Counter[str](), set[str](), 0
    for number, part in enumerate(manifest.parts):
        name = manifest.table(number)
        try:
            table = pq.ParquetFile(path / name, page_checksum_verification=True)
            if table.schema_arrow.names != REFERENCES.schema.names:
                yield f"{name}: has other columns than references have"
                continue
            rows = table.read(["reference_id", "source", "status"])
            pictures = 0 if manifest.thumbnails else _pictures(table)
        except (pa.ArrowException, OSError) as error:
            yield f"{name}: cannot be read: {printable(str(error))}"
            continue
        here = Counter(rows["status"].to_pylist())
        statuses, sources = statuses + here, sources + Counter(rows["source"].to_pylist())
        ids = rows["reference_id"].to_pylist()
        again += len(ids) - len(set(ids) - seen)
        seen.update(ids)
        if (len(ids), here[Status.OK]) != (part.rows, part.vectors):
            told = f"the manifest says {part.rows} and {part.vectors}"
            yield f"{name}: {len(ids)} rows, {here[Status.OK]} of them ok; {told}"
        if pictures:
            yield f"{name}: holds pictures, where the manifest says that there are none"
    if again:
        yield f"{again} references have the id of another"
    if (dict(statuses), dict(sources), statuses.total()) != (manifest.statuses, manifest.sources, manifest.rows):
        yield f"{MANIFEST}: its counts are not those of the tables"
    for profile in manifest.profiles:
        yield from _vectors(path, manifest, profile)


def _pictures(table: pq.ParquetFile) -> int:
    """How many thumbnails a table holds, not all of which are in memory at once."""
    return sum(len(batch) - batch["thumbnail"].null_count for batch in table.iter_batches(1024, columns=["thumbnail"]))


def _vectors(path: Path, manifest: IndexManifest, profile: str) -> Iterator[str]:
    told = manifest.profiles[profile]
    for number, part in enumerate(manifest.parts):
        name = manifest.vector_file(profile, number)
        try:
            block = np.load(path / name, mmap_mode="r", allow_pickle=False)
            if (block.dtype.name, block.shape) != (told.dtype, (part.vectors, told.dimension)):
                wanted = f"{told.dtype} {(part.vectors, told.dimension)}"
                yield f"{name}: {block.dtype.name} {block.shape}, where {wanted} is expected"
                continue
            for _ in Vectors([block], told.dimension).slices():
                pass
        except (ValueError, EOFError, OSError) as error:
            yield f"{name}: {printable(str(error))}"
