"""The vectors of an index: one array, or many files of it that are never in memory together.

Rows are numbered through all blocks. They are float32, or float16 where an index was built to be half as large; whoever
searches gets float32, a slice at a time.

Shapes: N vectors, D dimension.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import accumulate

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Stored = npt.NDArray[np.floating]

SLICE_BYTES = 2**27
UNIT_TOLERANCE = 1e-3
DTYPES = (np.dtype(np.float32), np.dtype(np.float16))


class Vectors:
    """blocks: unit rows, each (n, D), float32 or float16, often mapped from files."""

    def __init__(self, blocks: Sequence[Stored], dimension: int) -> None:
        odd = [b for b in blocks if b.dtype not in DTYPES or b.ndim != 2 or b.shape[1] != dimension]
        if odd or dimension < 1:
            found = f"{odd[0].dtype} {odd[0].shape}" if odd else "dimension 0"
            raise ValueError(f"vectors: expected float32 or float16 of shape (rows, {dimension}), got {found}")
        self._blocks, self.dimension = list(blocks), dimension
        self._starts = [0, *accumulate(len(block) for block in blocks)]
        self._checked: set[int] = set()

    def __len__(self) -> int:
        return self._starts[-1]

    def slices(self) -> Iterator[tuple[int, Floats]]:
        """(number of the first row, rows as float32), no more at a time than SLICE_BYTES.

        Each is checked when it is first read: a search engine would pass over a row that is no number. Raises
        ValueError for a row that is not of length 1.
        """
        most = max(1, SLICE_BYTES // (4 * self.dimension))
        for begin, block in zip(self._starts, self._blocks, strict=False):
            for first in range(0, len(block), most):
                rows = np.ascontiguousarray(block[first : first + most], dtype=np.float32)
                if begin + first not in self._checked:
                    check_unit_rows("vectors", rows, begin + first)
                    self._checked.add(begin + first)
                yield begin + first, rows

    def rows(self, numbers: Sequence[int] | npt.NDArray[np.int64]) -> Floats:
        """Some rows, (len(numbers), D)."""
        found = np.empty((len(numbers), self.dimension), dtype=np.float32)
        blocks = np.searchsorted(self._starts, numbers, side="right") - 1
        for i, (block, number) in enumerate(zip(blocks, numbers, strict=True)):
            found[i] = self._blocks[block][number - self._starts[block]]
        return found

    def whole(self) -> Floats:
        """All of them in memory, (N, D)."""
        parts = [rows for _, rows in self.slices()]
        return np.concatenate(parts) if parts else np.empty((0, self.dimension), np.float32)


def check_unit_rows(name: str, rows: Floats, first: int = 0) -> None:
    """Raise ValueError for a row that is not finite and of length 1. first: the number of the first row."""
    with np.errstate(over="ignore", invalid="ignore"):
        squares = np.einsum("nd,nd->n", rows, rows)
    bad = np.flatnonzero(~(np.abs(np.sqrt(squares) - 1) <= UNIT_TOLERANCE))  # also where it is NaN
    if len(bad):
        told = f"row {first + bad[0]} has length {math.sqrt(squares[bad[0]]):g}"
        raise ValueError(f"{name}: {told}; every row must be finite and of length 1")
