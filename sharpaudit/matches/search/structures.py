"""Building an approximate structure over the vectors of an index, and measuring what it finds (search/approximate.py).

What faiss learns (ranges, centroids, codebooks) it learns from a sample of the vectors, drawn by a fixed seed. How many
lists are looked through is measured: twice as many, until the share of nearest neighbours that are found reaches the
aim. Queries are references that are disturbed in a random direction, to a cosine drawn evenly between two bounds: as
far from the picture that they are of as copies are. Random vectors would tell nothing of that.

Shapes: N vectors, M queries, D dimension.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from sharpaudit.errors import UserError
from sharpaudit.matches.search.approximate import (
    CHUNK_ROWS,
    KINDS,
    ApproximateSearch,
    Chunk,
    Recall,
    Structure,
    recall_of,
)
from sharpaudit.matches.search.engines import ByFaiss, load_faiss
from sharpaudit.matches.search.flat import search
from sharpaudit.matches.search.vectors import Floats, Vectors
from sharpaudit.seeds import generator

LEAST_ROWS = 10_000
"""Fewer are searched exactly before a structure is read."""
QUERIES = 1000
AIM = 0.99
"""Recall@1 that an inverted structure is built for."""
DISTURBED = (0.6, 0.95)
_SAMPLES_A_LIST, _LEAST_SAMPLES = 40, 2**16
Tell = Callable[[str], None]


def build_structure(
    folder: Path, kind: str, vectors: Vectors, of: str, *, aim: float, threads: int, tell: Tell = lambda _: None
) -> Structure:
    """Write the files of a structure into `folder`, and return its record, whose files have no SHA-256 yet.

    of: digest of the vectors' files. aim: recall@1 that an inverted kind is to reach. tell: called with lines on what
    is done. Raises UserError where there are fewer than LEAST_ROWS vectors.
    """
    if len(vectors) < LEAST_ROWS:
        raise UserError(
            f"the index holds {len(vectors):,} vectors: below {LEAST_ROWS:,} exact search is as quick; leave "
            'matches.search at "exact"'
        )
    load_faiss().omp_set_num_threads(threads)
    chunks = []
    for chunk in _chunks(folder, kind, vectors):
        chunks.append(chunk)
        tell(f"{chunk.factory} over {sum(c.rows for c in chunks):,} of {len(vectors):,} vectors")
    made = Structure(kind, of, vectors.dimension, chunks, 1, Recall(0, 0), DISTURBED)
    queries_MD = disturbed(vectors, QUERIES)
    exact, _ = search(vectors, queries_MD, 1, ByFaiss(threads))
    searcher = ApproximateSearch(folder, made, vectors, threads)
    while True:
        found, _ = searcher(queries_MD, 1)
        made = replace(searcher.structure, recall=recall_of(found, exact))
        lists = f"{made.probes} lists: " if KINDS[kind].inverted else ""
        tell(f"{lists}found the nearest of {made.recall.found:,} of {made.recall.n:,} queries")
        most = lists_of(min(CHUNK_ROWS, len(vectors)))
        if not KINDS[kind].inverted or made.probes >= most or made.recall.found >= aim * made.recall.n:
            return made
        searcher.structure = replace(made, probes=min(most, 2 * made.probes))


def disturbed(vectors: Vectors, n: int) -> Floats:
    """n unit queries (M, D): rows of the vectors, turned in a random direction to a cosine between DISTURBED."""
    draws = generator("disturbed", len(vectors), n)
    rows_MD = vectors.rows(np.sort(draws.choice(len(vectors), min(n, len(vectors)), replace=False))).astype(np.float64)
    rows_MD /= np.linalg.norm(rows_MD, axis=1, keepdims=True)
    noise_MD = draws.standard_normal(rows_MD.shape)
    noise_MD -= (noise_MD * rows_MD).sum(axis=1, keepdims=True) * rows_MD
    noise_MD /= np.linalg.norm(noise_MD, axis=1, keepdims=True)
    cosines_M1 = draws.uniform(*DISTURBED, (len(rows_MD), 1))
    turned: Floats = (cosines_M1 * rows_MD + np.sqrt(1 - cosines_M1**2) * noise_MD).astype(np.float32)
    return turned


def lists_of(n: int) -> int:
    """Of an inverted structure over n vectors: a power of two near 4 sqrt(n), as autofaiss takes."""
    return int(2 ** round(math.log2(4 * math.sqrt(n))))


def factory_of(kind: str, n: int, dimension: int) -> str:
    """faiss's name for a structure of that kind over n vectors."""
    n_bytes = next(m for m in range(max(1, dimension // 8), 0, -1) if dimension % m == 0)
    return KINDS[kind].factory.format(lists=lists_of(n), bytes=n_bytes)


def _chunks(folder: Path, kind: str, vectors: Vectors) -> Iterator[Chunk]:
    """Files over CHUNK_ROWS vectors each, by one pass over these."""
    faiss, index, ends = load_faiss(), None, _ends(len(vectors))
    begin = 0
    for first, rows_ND in vectors.slices():
        while len(rows_ND):
            end = ends[0]
            index = _trained(kind, vectors, begin, end - begin) if index is None else index
            take = min(len(rows_ND), end - first)
            index.add(rows_ND[:take])
            first, rows_ND = first + take, rows_ND[take:]
            if first == end:
                name = f"{begin:012d}.faiss"
                faiss.write_index(index, str(folder / name))
                yield Chunk(name, end - begin, factory_of(kind, end - begin, vectors.dimension), "")
                index, begin = None, ends.pop(0)


def _ends(n: int) -> list[int]:
    """Where chunks of n vectors end: as few as may be, and all but equally large, so that none is too small."""
    many = -(-n // CHUNK_ROWS)
    return [n * (number + 1) // many for number in range(many)]


def _trained(kind: str, vectors: Vectors, begin: int, size: int) -> Any:
    """An empty structure for these vectors, which has learned from a sample of them."""
    faiss = load_faiss()
    index = faiss.index_factory(
        vectors.dimension, factory_of(kind, size, vectors.dimension), faiss.METRIC_INNER_PRODUCT
    )
    wanted = max(_LEAST_SAMPLES, _SAMPLES_A_LIST * lists_of(size) if KINDS[kind].inverted else 0)
    sample = generator("structure", begin, size).choice(size, min(size, wanted), replace=False)
    index.train(vectors.rows(begin + np.sort(sample)))
    return index
