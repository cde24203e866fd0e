"""The plainest exact search there is, against which every other one is judged.

Shapes: N vectors, M queries, D dimension, K neighbours.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]


def nearest(vectors_ND: Floats, queries_MD: Floats, k: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Similarities (M, K) and rows (M, K) by a full float64 product, sorted by (-similarity, row)."""
    all_MN = queries_MD.astype(np.float64) @ vectors_ND.astype(np.float64).T
    rows_MK = np.argsort(-all_MN, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(all_MN, rows_MK, axis=1), rows_MK


def agrees(
    found: tuple[Floats, npt.NDArray[np.int64]],
    vectors_ND: Floats,
    queries_MD: Floats,
    k: int,
    tolerance: float = 1e-12,
) -> bool:
    """Whether `found` is a right answer, where rows that are equally similar within `tolerance` may swap."""
    similarities_MK, rows_MK = found
    best_MK, _ = nearest(vectors_ND, queries_MD, k)
    if similarities_MK.shape != best_MK.shape or rows_MK.shape != best_MK.shape:
        return False
    claimed_MK = np.einsum("md,mkd->mk", queries_MD.astype(np.float64), vectors_ND.astype(np.float64)[rows_MK])
    distinct = all(len(set(rows)) == len(rows) for rows in rows_MK.tolist())
    return distinct and bool(
        np.allclose(similarities_MK, best_MK, rtol=0, atol=tolerance)
        and np.allclose(similarities_MK, claimed_MK, rtol=0, atol=tolerance)
    )
