"""Approximate search for sets of tens of millions: structures of faiss find candidates, and the vectors decide.

A structure lies in a folder of its own within the index, `approximate/<embedder>/<kind>/`: files of faiss, each over at
most CHUNK_ROWS references, and structure.json, which says of which vectors they were made, how large a share of nearest
neighbours they found when they were made, and their SHA-256. It is no part of the index, whose digest stays the same,
and can be removed or built anew at any time (search/structures.py builds one).

What is found is computed again from the vectors of the index and ordered as by exact search: a similarity is never that
of a compressed vector. What a structure does not find is missed. The share of queries whose nearest reference it finds
is its recall@1: measured against exact search when it is built, and by an audit on pictures of its own model.

Shapes: N vectors, M queries, D dimension, C candidates, K = min(k, N) neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sharpaudit.errors import IntegrityError, UserError, printable
from sharpaudit.images import sha256_hex
from sharpaudit.matches.search.engines import ByFaiss, load_faiss
from sharpaudit.matches.search.flat import QUERIES_AT_ONCE, require_queries, search
from sharpaudit.matches.search.order import NOBODY, Best, Rows, Similarities, exact_order
from sharpaudit.matches.search.vectors import Floats, Vectors
from sharpaudit.tables.records import checksummed, read_checksummed

FORMAT_VERSION = 1
RECORD = "structure.json"
CHUNK_ROWS = 2**22
_AGAIN = "remove its folder and build it again with `sharpaudit index approximate`"


@dataclass(frozen=True)
class Kind:
    """factory: faiss's name for a structure over N vectors of D dimensions, with {lists} and {bytes} to be filled in;
    without "np" its codebooks would be sorted for hours, for a trick that is not used here. spare: candidates beside k
    that are computed anew; the coarser the codes, the more. inverted: whether it has lists, of which only some are
    looked through.
    """

    factory: str
    spare: int
    inverted: bool


KINDS = {
    "fp16": Kind("SQfp16", 8, False),
    "sq8": Kind("SQ8", 8, False),
    "ivf-sq8": Kind("IVF{lists},SQ8", 8, True),
    "ivf-pq": Kind("IVF{lists},PQ{bytes}x8np", 248, True),
}


@dataclass(frozen=True)
class Chunk:
    """A file of faiss over successive references. sha256: of the file."""

    file: str
    rows: int
    factory: str
    sha256: str


@dataclass(frozen=True)
class Recall:
    """found of n queries had the nearest reference that exact search finds, or one as similar."""

    found: int
    n: int


@dataclass(frozen=True)
class Structure:
    """What structure.json says. of: digest of the vectors' files.

    probes: lists that are looked through, of an inverted kind. recall: on references that were disturbed to cosines
    between the two bounds of `disturbed`.
    """

    kind: str
    of: str
    dimension: int
    chunks: Sequence[Chunk]
    probes: int
    recall: Recall
    disturbed: Sequence[float]
    format_version: int = FORMAT_VERSION

    def to_bytes(self) -> bytes:
        """The file."""
        return checksummed(asdict(self))


def described(made: Structure) -> str:
    """What a structure is and what it found when it was built, for people."""
    lists = f", {made.probes} lists looked through" if KINDS[made.kind].inverted else ""
    low, high = made.disturbed
    return (
        f"{made.kind} over {sum(chunk.rows for chunk in made.chunks):,} vectors{lists}: found the nearest of "
        f"{made.recall.found:,} of {made.recall.n:,} references that were disturbed to a cosine of {low:g} to {high:g}"
    )


def read_structure(folder: Path) -> tuple[Structure, str]:
    """What the structure in a folder says, and the SHA-256 of its record. Raises UserError for one that is damaged."""
    path = folder / RECORD
    try:
        tree, digest = read_checksummed(path), sha256_hex(path.read_bytes())
        if tree["format_version"] != FORMAT_VERSION:
            raise UserError(f"{path}: format {tree['format_version']}, this version reads {FORMAT_VERSION}; {_AGAIN}")
        tree["chunks"], tree["recall"] = [Chunk(**chunk) for chunk in tree["chunks"]], Recall(**tree["recall"])
        return Structure(**tree), digest
    except (OSError, IntegrityError, TypeError, KeyError) as error:
        raise UserError(f"{printable(str(path))}: cannot be read as the record of a structure; {_AGAIN}") from error


class ApproximateSearch:
    """An open structure. vectors: those that it was made of.

    Its files are mapped, so that all processes of a machine share them. Raises UserError for one that faiss cannot read
    or that does not fit the vectors.
    """

    def __init__(self, folder: Path, structure: Structure, vectors: Vectors, threads: int = 1) -> None:
        self.structure, self._vectors, self._threads = structure, vectors, threads
        self._kind = KINDS[structure.kind]
        self._chunks = [_opened(folder / chunk.file, chunk, vectors.dimension) for chunk in structure.chunks]
        if sum(chunk.rows for chunk in structure.chunks) != len(vectors):
            raise UserError(f"{printable(str(folder))}: was made of other vectors; {_AGAIN}")

    def __call__(self, queries_MD: Floats, k: int) -> tuple[Similarities, Rows]:
        """As `flat.search`, but that a nearer vector may be missed."""
        require_queries(queries_MD, self._vectors.dimension, k)
        firsts = range(0, max(1, len(queries_MD)), QUERIES_AT_ONCE)
        found = [self._nearest(queries_MD[first : first + QUERIES_AT_ONCE], k) for first in firsts]
        return np.concatenate([part for part, _ in found]), np.concatenate([part for _, part in found])

    def _nearest(self, queries_MD: Floats, k: int) -> tuple[Similarities, Rows]:
        n = min(k, len(self._vectors))
        rows_MC = self._candidates(queries_MD, n + self._kind.spare)
        # Lists that are looked through may hold fewer than are wanted.
        short_M = (rows_MC != NOBODY).sum(axis=1) < n
        similarities_MK, rows_MK = np.empty((len(queries_MD), n)), np.empty((len(queries_MD), n), np.int64)
        similarities_MK[~short_M], rows_MK[~short_M] = exact_order(
            self._vectors, queries_MD[~short_M], rows_MC[~short_M], n
        )
        if short_M.any():
            similarities_MK[short_M], rows_MK[short_M] = search(
                self._vectors, queries_MD[short_M], n, ByFaiss(self._threads)
            )
        return similarities_MK, rows_MK

    def _candidates(self, queries_MD: Floats, n: int) -> Rows:
        load_faiss().omp_set_num_threads(self._threads)
        found, first = Best(len(queries_MD), n), 0
        for chunk in self._chunks:
            if self._kind.inverted:
                chunk.nprobe = self.structure.probes
            rough_MC, rows_MC = chunk.search(np.ascontiguousarray(queries_MD), min(n, chunk.ntotal))
            nobody_MC = rows_MC < 0
            rough_MC[nobody_MC] = -np.inf
            found.add(rough_MC, np.where(nobody_MC, NOBODY, rows_MC + first))
            first += chunk.ntotal
        return found.rows_MC


def _opened(path: Path, chunk: Chunk, dimension: int) -> Any:
    faiss = load_faiss()
    try:
        # Of its two ways to map a file the other one reads lists a fifth slower.
        index = faiss.read_index(str(path), faiss.IO_FLAG_READ_ONLY | faiss.IO_FLAG_MMAP_IFC)
    except RuntimeError as error:
        raise UserError(f"{printable(str(path))}: faiss cannot read it; {_AGAIN}") from error
    if (index.d, index.ntotal) != (dimension, chunk.rows):
        raise UserError(f"{printable(str(path))}: holds {index.ntotal} x {index.d} vectors; {_AGAIN}")
    return index


def recall_of(found: Similarities, exact: Similarities) -> Recall:
    """Of queries, by the similarity (M, K) of what was found and of what there is; equally similar is as good."""
    return Recall(int((found[:, 0] >= exact[:, 0]).sum()), len(exact))
