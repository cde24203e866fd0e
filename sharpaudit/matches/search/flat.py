"""Exact search by inner product: no neighbour is missed, and the answer depends on nothing but its query.

Engines (search/engines.py) rank in float32, with kernels and rounding that change with the batch. So their list is
taken as candidates only: their similarities are computed again, correctly rounded in float64, and sorted by
(-similarity, row). Completeness is proved per query: a row that was left out has a float32 similarity no
larger than that of the last candidate, and any summation order errs by at most gamma_D |q| |v|, with
gamma_D = D u / (1 - D u) and u = 2^-24 (Higham, Accuracy and Stability of Numerical Algorithms, 3.1). As long
as last + error reaches the k-th exact similarity, twice as many candidates are asked for. The result is
therefore bit-identical for any batch, engine and number of threads, and ties go to the lowest row, also
where more vectors are equal than an engine was asked for.

The vectors are read a slice at a time, and the candidates of the slices are merged: a set that is larger than the
memory is searched as exactly as a small one. Rows that are not unit float32 are refused before an engine sees them:
faiss never returns a NaN row and says nothing, a NaN query gets row -1, a zero row matches at 0.

Shapes: N vectors, M queries, D dimension, C candidates, K = min(k, N) neighbours.
"""

from __future__ import annotations

import numpy as np

from sharpaudit.matches.search.engines import ByFaiss, Engine
from sharpaudit.matches.search.order import Best, Rows, Similarities, exact_order, rounding
from sharpaudit.matches.search.vectors import Floats, Vectors, check_unit_rows

QUERIES_AT_ONCE = 1024
_SPARE_CANDIDATES = 8


def search(
    vectors: Vectors | Floats, queries_MD: Floats, k: int, engine: Engine | None = None
) -> tuple[Similarities, Rows]:
    """The k nearest vectors of each query: similarities (M, K), falling, and their rows (M, K).

    vectors: those of an index, or an array (N, D). engine: who looks for candidates, by default faiss on one thread; it
    changes nothing of the answer. Raises ValueError for input that is not unit float32 rows of one dimension, UserError
    where faiss is asked for and not there.
    """
    if not isinstance(vectors, Vectors):
        vectors = Vectors([require_rows("vectors", vectors)], vectors.shape[1])
    require_queries(queries_MD, vectors.dimension, k)
    engine = engine or ByFaiss()
    firsts = range(0, max(1, len(queries_MD)), QUERIES_AT_ONCE)
    found = [_nearest(vectors, queries_MD[first : first + QUERIES_AT_ONCE], k, engine) for first in firsts]
    return np.concatenate([part for part, _ in found]), np.concatenate([part for _, part in found])


def _nearest(vectors: Vectors, queries_MD: Floats, k: int, engine: Engine) -> tuple[Similarities, Rows]:
    """Of so many queries that an engine may hold their similarities to a slice."""
    n_found = min(k, len(vectors))
    similarities_MK = np.empty((len(queries_MD), n_found), dtype=np.float64)
    rows_MK = np.empty((len(queries_MD), n_found), dtype=np.int64)
    pending = np.arange(len(queries_MD)) if n_found else np.arange(0)
    n_candidates = n_found + _SPARE_CANDIDATES
    while len(pending):
        n_candidates = min(n_candidates, len(vectors))
        rough_MC, rows_MC = _candidates(vectors, queries_MD[pending], n_candidates, engine)
        similarities_MK[pending], rows_MK[pending] = exact_order(vectors, queries_MD[pending], rows_MC, n_found)
        reach_M = rough_MC.min(axis=1).astype(np.float64) + rounding(vectors.dimension)
        complete_M = (n_candidates == len(vectors)) | (reach_M < similarities_MK[pending, -1])
        pending = pending[~complete_M]
        n_candidates *= 2
    return similarities_MK, rows_MK


def require_queries(queries_MD: Floats, dimension: int, k: int) -> None:
    """Raise ValueError for queries that are not unit float32 rows of that dimension, or for k below 1."""
    if k < 1:
        raise ValueError(f"k = {k}: it is at least 1")
    check_unit_rows("queries", require_rows("queries", queries_MD))
    if dimension != queries_MD.shape[1]:
        raise ValueError(f"vectors have dimension {dimension}, queries {queries_MD.shape[1]}")


def require_rows(name: str, rows: Floats) -> Floats:
    """`rows`. Raises ValueError where they are not float32 of shape (rows, dimension)."""
    if rows.dtype != np.float32 or rows.ndim != 2:
        raise ValueError(f"{name}: expected float32 of shape (rows, dimension), got {rows.dtype} {rows.shape}")
    return rows


def _candidates(vectors: Vectors, queries_MD: Floats, n: int, engine: Engine) -> tuple[Floats, Rows]:
    """The n rows of each query that are nearest by the engine's arithmetic, in no order: both (M, n)."""
    found = Best(len(queries_MD), n)
    for first, placed in vectors.slices(engine.place):
        rough_MC, rows_MC = engine.best(placed, queries_MD, min(n, len(placed)))
        found.add(rough_MC, rows_MC + first)
    return found.rough_MC, found.rows_MC
