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

import math

import numpy as np
import numpy.typing as npt

from sharpaudit.matches.search.engines import Engine, Rows, by_faiss
from sharpaudit.matches.search.vectors import UNIT_TOLERANCE, Floats, Vectors, check_unit_rows

Similarities = npt.NDArray[np.float64]

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
    if k < 1:
        raise ValueError(f"k = {k}: it is at least 1")
    if not isinstance(vectors, Vectors):
        vectors = Vectors([_rows("vectors", vectors)], vectors.shape[1])
    check_unit_rows("queries", _rows("queries", queries_MD))
    if vectors.dimension != queries_MD.shape[1]:
        raise ValueError(f"vectors have dimension {vectors.dimension}, queries {queries_MD.shape[1]}")
    engine = engine or by_faiss(1)
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
        complete = np.zeros(len(pending), dtype=bool)
        for i, m in enumerate(pending):
            similarities_MK[m], rows_MK[m] = _exact_order(vectors, queries_MD[m], rows_MC[i], n_found)
            reach = float(rough_MC[i].min()) + _rounding(vectors.dimension)
            complete[i] = n_candidates == len(vectors) or reach < similarities_MK[m, -1]
        pending = pending[~complete]
        n_candidates *= 2
    return similarities_MK, rows_MK


def _rows(name: str, rows: Floats) -> Floats:
    if rows.dtype != np.float32 or rows.ndim != 2:
        raise ValueError(f"{name}: expected float32 of shape (rows, dimension), got {rows.dtype} {rows.shape}")
    return rows


def _candidates(vectors: Vectors, queries_MD: Floats, n: int, engine: Engine) -> tuple[Floats, Rows]:
    """The n rows of each query that are nearest by the engine's arithmetic, in no order: both (M, n)."""
    rough_MC: Floats = np.empty((len(queries_MD), 0), np.float32)
    rows_MC: Rows = np.empty((len(queries_MD), 0), np.int64)
    for first, slice_ND in vectors.slices():
        rough, rows = engine(slice_ND, queries_MD, min(n, len(slice_ND)))
        rough_MC, rows_MC = np.hstack([rough_MC, rough]), np.hstack([rows_MC, rows + first])
        if rough_MC.shape[1] > n:
            best = np.argpartition(-rough_MC, n - 1, axis=1)[:, :n]
            rough_MC, rows_MC = np.take_along_axis(rough_MC, best, 1), np.take_along_axis(rows_MC, best, 1)
    return rough_MC, rows_MC


def _exact_order(
    vectors: Vectors, query_D: npt.NDArray[np.floating], candidates: Rows, k: int
) -> tuple[Similarities, Rows]:
    """The best k candidates by (-similarity, row); a product of two float32 is exact in float64."""
    products = vectors.rows(candidates) * query_D.astype(np.float64)
    similarities = np.array([math.fsum(row) for row in products.tolist()])
    order = np.lexsort((candidates, -similarities))[:k]
    return similarities[order], candidates[order]


def _rounding(dimension: int) -> float:
    """The most by which a float32 inner product of two almost unit vectors differs from the true one."""
    relative = dimension * 2.0**-24
    return relative / (1 - relative) * (1 + UNIT_TOLERANCE) ** 2
