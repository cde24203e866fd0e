"""Who looks through a slice of vectors: faiss on the CPU, or PyTorch on the device that holds the model.

Both rank in float32, by kernels of their own, and nothing more is asked of them: search/flat.py proves that what they
left out is farther away, and computes anew what they give.

Shapes: N vectors of a slice, M queries, D dimension, C candidates.
"""

from __future__ import annotations

import importlib
from typing import Any, Protocol

import numpy as np
import torch

from sharpaudit.devices import forbid_tf32
from sharpaudit.errors import UserError
from sharpaudit.matches.search.order import Rows
from sharpaudit.matches.search.vectors import Floats


class Engine(Protocol):
    def place(self, vectors_ND: Floats) -> Any:
        """A slice where it is looked through; held vectors stay there."""

    def best(self, placed: Any, queries_MD: Floats, n: int) -> tuple[Floats, Rows]:
        """Similarities and rows within the slice of n candidates of each query, (M, n); n is at most N."""


class ByFaiss:
    """On the CPU. Raises UserError where faiss is not installed, once it is used."""

    def __init__(self, threads: int = 1) -> None:
        self._threads = threads

    def place(self, vectors_ND: Floats) -> Floats:
        return vectors_ND

    def best(self, placed: Floats, queries_MD: Floats, n: int) -> tuple[Floats, Rows]:
        faiss = load_faiss()
        faiss.omp_set_num_threads(self._threads)
        rough_MC, rows_MC = faiss.knn(np.ascontiguousarray(queries_MD), placed, n, faiss.METRIC_INNER_PRODUCT)
        if rows_MC.min() < 0:
            raise RuntimeError("faiss returned fewer neighbours than there are vectors")
        return rough_MC, rows_MC


class ByTorch:
    """By one matrix product on a device; a slice has to fit beside what lies there."""

    def __init__(self, device: torch.device) -> None:
        forbid_tf32()  # else similarities would be off by more than float32 allows
        self._device = device

    def place(self, vectors_ND: Floats) -> torch.Tensor:
        return torch.from_numpy(np.array(vectors_ND)).to(self._device)

    def best(self, placed: torch.Tensor, queries_MD: Floats, n: int) -> tuple[Floats, Rows]:
        queries = torch.from_numpy(np.array(queries_MD)).to(self._device)
        rough_MC, rows_MC = (queries @ placed.T).topk(n, dim=1)
        return rough_MC.cpu().numpy(), rows_MC.cpu().numpy()


def engine_for(device: torch.device) -> Engine:
    """PyTorch where the model is on a GPU, which holds the pictures' vectors already; else faiss."""
    return ByTorch(device) if device.type == "cuda" else ByFaiss(torch.get_num_threads())


def load_faiss() -> Any:
    """The module. Raises UserError where it is not installed."""
    try:
        return importlib.import_module("faiss")
    except ImportError as error:
        raise UserError(
            'search needs faiss: install it with `pip install "sharpaudit[cpu]"`, or `pip install "sharpaudit[gpu]"` '
            "on a machine with CUDA; never both, since they fill the same package"
        ) from error
