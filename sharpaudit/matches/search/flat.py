"""Exact search by inner product: no neighbour is missed, and the answer depends on nothing but its query.

faiss ranks in float32, with kernels and rounding that change with the batch. So its list is taken as
candidates only: their similarities are computed again, correctly rounded in float64, and sorted by
(-similarity, row). Completeness is proved per query: a row that faiss left out has a float32 similarity no
larger than that of the last candidate, and any summation order errs by at most gamma_D |q| |v|, with
gamma_D = D u / (1 - D u) and u = 2^-24 (Higham, Accuracy and Stability of Numerical Algorithms, 3.1). As long
as last + error reaches the k-th exact similarity, twice as many candidates are asked for. The result is
therefore bit-identical for any batch and any number of threads, and ties go to the lowest row, also
where more vectors are equal than faiss was asked for.

Vectors are unit rows in float32, as descriptor profiles give them. Anything else is refused before faiss
sees it: faiss never returns a NaN row and says nothing, a NaN query gets row -1, a zero row matches at 0.

Shapes: N vectors, M queries, D dimension, K = min(k, N) neighbours.
"""

from __future__ import annotations

import importlib
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from sharpaudit.errors import UserError

Floats = npt.NDArray[np.float32]
Similarities = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]

_SPARE_CANDIDATES = 8
_UNIT_TOLERANCE = 1e-3
_CHECKED_AT_ONCE = 65_536


def search(vectors_ND: Floats, queries_MD: Floats, k: int, threads: int = 1) -> tuple[Similarities, Rows]:
    """The k nearest vectors of each query: similarities (M, K), falling, and their rows (M, K).

    Raises ValueError for input that is not unit float32 rows of one dimension, UserError without faiss.
    """
    if k < 1 or threads < 1:
        raise ValueError(f"k = {k} and threads = {threads}: both are at least 1")
    _check_unit_rows("vectors", vectors_ND)
    _check_unit_rows("queries", queries_MD)
    if vectors_ND.shape[1] != queries_MD.shape[1]:
        raise ValueError(f"vectors have dimension {vectors_ND.shape[1]}, queries {queries_MD.shape[1]}")
    n_found = min(k, len(vectors_ND))
    similarities_MK = np.empty((len(queries_MD), n_found), dtype=np.float64)
    rows_MK = np.empty((len(queries_MD), n_found), dtype=np.int64)
    pending = np.arange(len(queries_MD)) if n_found else np.arange(0)
    n_candidates = n_found + _SPARE_CANDIDATES
    while len(pending):
        n_candidates = min(n_candidates, len(vectors_ND))
        rough, candidates = _faiss_knn(vectors_ND, queries_MD[pending], n_candidates, threads)
        complete = np.zeros(len(pending), dtype=bool)
        for i, m in enumerate(pending):
            similarities_MK[m], rows_MK[m] = _exact_order(vectors_ND, queries_MD[m], candidates[i], n_found)
            reach = float(rough[i, -1]) + _rounding(vectors_ND.shape[1])
            complete[i] = n_candidates == len(vectors_ND) or reach < similarities_MK[m, -1]
        pending = pending[~complete]
        n_candidates *= 2
    return similarities_MK, rows_MK


def _exact_order(
    vectors_ND: Floats, query_D: npt.NDArray[np.floating], candidates: Rows, k: int
) -> tuple[Similarities, Rows]:
    """The best k candidates by (-similarity, row); a product of two float32 is exact in float64."""
    query_D = query_D.astype(np.float64)
    similarities = np.array([math.fsum((vectors_ND[row] * query_D).tolist()) for row in candidates])
    order = np.lexsort((candidates, -similarities))[:k]
    return similarities[order], candidates[order]


def _rounding(dimension: int) -> float:
    """The most by which a float32 inner product of two almost unit vectors differs from the true one."""
    relative = dimension * 2.0**-24
    return relative / (1 - relative) * (1 + _UNIT_TOLERANCE) ** 2


def _check_unit_rows(name: str, rows: Floats) -> None:
    if rows.dtype != np.float32 or rows.ndim != 2 or rows.shape[1] == 0:
        raise ValueError(f"{name}: expected float32 of shape (rows, dimension), got {rows.dtype} {rows.shape}")
    for start in range(0, len(rows), _CHECKED_AT_ONCE):
        block = rows[start : start + _CHECKED_AT_ONCE]
        with np.errstate(over="ignore", invalid="ignore"):
            squares = np.einsum("nd,nd->n", block, block)
        bad = np.flatnonzero(~(np.abs(np.sqrt(squares) - 1) <= _UNIT_TOLERANCE))  # also where it is NaN
        if len(bad):
            length = math.sqrt(squares[bad[0]])
            raise ValueError(
                f"{name}: row {start + bad[0]} has length {length:g}; every row must be finite and of length 1"
            )


def _faiss_knn(vectors: Floats, queries: Floats, k: int, threads: int) -> tuple[Floats, Rows]:
    faiss = _faiss()
    faiss.omp_set_num_threads(threads)
    rough, rows = faiss.knn(np.ascontiguousarray(queries), np.ascontiguousarray(vectors), k, faiss.METRIC_INNER_PRODUCT)
    if rows.min() < 0:
        raise RuntimeError("faiss returned fewer neighbours than there are vectors")
    return rough, rows


def _faiss() -> Any:
    try:
        return importlib.import_module("faiss")
    except ImportError as error:
        raise UserError(
            'search needs faiss: install it with `pip install "sharpaudit[cpu]"`, or `pip install "sharpaudit[gpu]"` '
            "on a machine with CUDA; never both, since they fill the same package"
        ) from error
