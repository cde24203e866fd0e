"""What engines give, merged and put in order: by similarities that are computed anew, the row deciding between equals.

A product of two float32 is exact in float64, and the sum of D of them can be rounded correctly (math.fsum). In float32
it errs by at most `rounding`: whoever is within twice that of the k-th may stand before it, and of these alone the sums
are needed.

Shapes: M queries, D dimension, C candidates, K neighbours.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from sharpaudit.matches.search.vectors import UNIT_TOLERANCE, Floats, Vectors

Rows = npt.NDArray[np.int64]
Similarities = npt.NDArray[np.float64]

NOBODY = -1
"""In place of a row where an engine knows of no further candidate."""
_BYTES_AT_ONCE = 2**26


class Best:
    """The n best candidates of M queries so far, in no order: similarities by an engine, and rows, both (M, <= n)."""

    def __init__(self, n_queries: int, n: int) -> None:
        self._n = n
        self.rough_MC: Floats = np.empty((n_queries, 0), np.float32)
        self.rows_MC: Rows = np.empty((n_queries, 0), np.int64)

    def add(self, rough_MC: Floats, rows_MC: Rows) -> None:
        """Candidates of a further slice."""
        self.rough_MC, self.rows_MC = np.hstack([self.rough_MC, rough_MC]), np.hstack([self.rows_MC, rows_MC])
        if self.rough_MC.shape[1] > self._n:
            best = np.argpartition(-self.rough_MC, self._n - 1, axis=1)[:, : self._n]
            self.rough_MC = np.take_along_axis(self.rough_MC, best, 1)
            self.rows_MC = np.take_along_axis(self.rows_MC, best, 1)


def exact_order(vectors: Vectors, queries_MD: Floats, rows_MC: Rows, k: int) -> tuple[Similarities, Rows]:
    """The best k candidates of each query by (-similarity, row): both (M, k).

    rows_MC: k or more of each query that are not NOBODY, none of them twice.
    """
    similarities_MK = np.empty((len(queries_MD), k), dtype=np.float64)
    rows_MK = np.empty((len(queries_MD), k), dtype=np.int64)
    at_once = max(1, _BYTES_AT_ONCE // (4 * vectors.dimension * max(1, rows_MC.shape[1])))
    for first in range(0, len(queries_MD), at_once):
        rows, queries = rows_MC[first : first + at_once], queries_MD[first : first + at_once]
        held_MCD = vectors.rows(rows.clip(0).ravel()).reshape(*rows.shape, vectors.dimension)
        rough_MC = np.einsum("mcd,md->mc", held_MCD, queries)
        rough_MC[rows == NOBODY] = -np.inf
        last_M1 = np.partition(rough_MC, -k, axis=1)[:, [-k]]
        near_MC = rough_MC >= last_M1 - 2 * rounding(vectors.dimension)
        for m, near in enumerate(near_MC):
            products = held_MCD[m, near].astype(np.float64) * queries[m]
            exact = np.array([math.fsum(row) for row in products.tolist()])
            order = np.lexsort((rows[m, near], -exact))[:k]
            similarities_MK[first + m], rows_MK[first + m] = exact[order], rows[m, near][order]
    return similarities_MK, rows_MK


def similarities(vectors: Vectors, queries_MD: Floats, rows_MK: Rows) -> Similarities:
    """Of each query and some rows, (M, K), rounded once."""
    held_MKD = vectors.rows(rows_MK.ravel()).reshape(*rows_MK.shape, vectors.dimension)
    products_MKD = held_MKD.astype(np.float64) * queries_MD[:, None, :]
    return np.array([[math.fsum(row) for row in rows] for rows in products_MKD.tolist()]).reshape(rows_MK.shape)


def rounding(dimension: int) -> float:
    """The most by which a float32 inner product of two almost unit vectors differs from the true one."""
    relative = dimension * 2.0**-24
    return relative / (1 - relative) * (1 + UNIT_TOLERANCE) ** 2
