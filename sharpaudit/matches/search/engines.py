"""Who looks through a slice of vectors: faiss on the CPU, or PyTorch on the device that holds the model.

Both rank in float32, by kernels of their own, and nothing more is asked of them: search/flat.py proves that what they
left out is farther away, and computes anew what they give.

Shapes: N vectors of a slice, M queries, D dimension, C candidates.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from sharpaudit.devices import forbid_tf32
from sharpaudit.errors import UserError
from sharpaudit.matches.search.vectors import Floats

Rows = npt.NDArray[np.int64]
Engine = Callable[[Floats, Floats, int], tuple[Floats, Rows]]
"""Vectors (N, D), queries (M, D) and C, at most N: similarities and rows of C candidates of each query, (M, C)."""


def by_faiss(threads: int) -> Engine:
    """On the CPU; called, it raises UserError where faiss is not installed."""

    def engine(vectors_ND: Floats, queries_MD: Floats, n: int) -> tuple[Floats, Rows]:
        faiss = _faiss()
        faiss.omp_set_num_threads(threads)
        queries_MD = np.ascontiguousarray(queries_MD)
        rough_MC, rows_MC = faiss.knn(queries_MD, vectors_ND, n, faiss.METRIC_INNER_PRODUCT)
        if rows_MC.min() < 0:
            raise RuntimeError("faiss returned fewer neighbours than there are vectors")
        return rough_MC, rows_MC

    return engine


def by_torch(device: torch.device) -> Engine:
    """By one matrix product on a device; a slice has to fit beside what lies there."""
    forbid_tf32()  # else similarities would be off by more than float32 allows

    def engine(vectors_ND: Floats, queries_MD: Floats, n: int) -> tuple[Floats, Rows]:
        vectors, queries = (torch.from_numpy(np.array(rows)).to(device) for rows in (vectors_ND, queries_MD))
        rough_MC, rows_MC = (queries @ vectors.T).topk(n, dim=1)
        return rough_MC.cpu().numpy(), rows_MC.cpu().numpy()

    return engine


def engine_for(device: torch.device) -> Engine:
    """PyTorch where the model is on a GPU, which holds the pictures' vectors already; else faiss."""
    return by_torch(device) if device.type == "cuda" else by_faiss(torch.get_num_threads())


def _faiss() -> Any:
    try:
        return importlib.import_module("faiss")
    except ImportError as error:
        raise UserError(
            'search needs faiss: install it with `pip install "sharpaudit[cpu]"`, or `pip install "sharpaudit[gpu]"` '
            "on a machine with CUDA; never both, since they fill the same package"
        ) from error
