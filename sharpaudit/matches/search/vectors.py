"""The vectors of an index: one array, or many files of it that are never in memory together.

Rows are numbered through all blocks. They are float32, or float16 where an index was built to be half as large; whoever
searches gets float32, a slice at a time. A file is mapped while it is read and let go afterwards, so that a set of any
size is passed through in the memory of one block. Held ones stay where an engine has placed them: on the CPU those of
float32 are mapped from their files, which all processes of a machine share, those of float16 are copies as float32.

Shapes: N vectors, D dimension.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Stored = npt.NDArray[np.floating]

SLICE_BYTES = 2**27
UNIT_TOLERANCE = 2e-3
"""Twice what an embedder may be off (embedders.base): float16 rounds what it gave once more."""
DTYPES = (np.dtype(np.float32), np.dtype(np.float16))


class Vectors:
    """blocks: unit rows each, (n, D), float32 or float16, in memory or as npy files. held: whether slices stay placed.

    Raises ValueError for a block of another kind, OSError for a file that cannot be read.
    """

    def __init__(self, blocks: Sequence[Stored | Path], dimension: int, *, held: bool = False) -> None:
        self._blocks: list[Stored | Path] = list(blocks)
        self.dimension, self.held = dimension, held
        lengths, self.dtype = [], np.dtype(np.float16 if blocks else np.float32)
        for block in map(_mapped, blocks):
            if block.dtype not in DTYPES or block.ndim != 2 or block.shape[1] != dimension or dimension < 1:
                wanted = f"float32 or float16 of shape (rows, {dimension})"
                raise ValueError(f"vectors: expected {wanted}, got {block.dtype} {block.shape}")
            lengths.append(len(block))
            self.dtype = np.promote_types(self.dtype, block.dtype)
        self._starts = [0, *accumulate(lengths)]
        self._checked: set[int] = set()
        self._held: dict[int, Any] = {}

    def __len__(self) -> int:
        return self._starts[-1]

    def slices(self, place: Callable[[Floats], Any] = lambda rows: rows) -> Iterator[tuple[int, Any]]:
        """(number of the first row, what `place` makes of rows as float32), no more at a time than SLICE_BYTES.

        Each is checked when it is first read: a search engine would pass over a row that is no number. Held ones are
        placed once. Raises ValueError for a row that is not of length 1.
        """
        most = max(1, SLICE_BYTES // (4 * self.dimension))
        for number, begin in enumerate(self._starts[:-1]):
            block = None
            for first in range(begin, self._starts[number + 1], most):
                if first not in self._held:
                    block = self._block(number) if block is None else block
                    placed = place(self._read(block, begin, first, most))
                    if not self.held:
                        yield first, placed
                        continue
                    self._held[first] = placed
                yield first, self._held[first]

    def _block(self, number: int) -> Stored:
        if self.held:
            self._blocks[number] = _mapped(self._blocks[number])
        return _mapped(self._blocks[number])

    def _read(self, block: Stored, begin: int, first: int, most: int) -> Floats:
        rows = np.ascontiguousarray(block[first - begin : first - begin + most], dtype=np.float32)
        if first not in self._checked:
            check_unit_rows("vectors", rows, first)
            self._checked.add(first)
        return rows

    def rows(self, numbers: Sequence[int] | npt.NDArray[np.int64]) -> Floats:
        """Some rows, (len(numbers), D), in this order; of each block those that are wanted are read together."""
        numbers = np.asarray(numbers, dtype=np.int64)
        found = np.empty((len(numbers), self.dimension), dtype=np.float32)
        blocks = np.searchsorted(self._starts, numbers, side="right") - 1
        for number in np.unique(blocks):
            here = np.flatnonzero(blocks == number)
            found[here] = self._block(number)[numbers[here] - self._starts[number]]
        return found

    def whole(self) -> Floats:
        """All of them in memory, (N, D)."""
        parts = [rows for _, rows in self.slices()]
        return np.concatenate(parts) if parts else np.empty((0, self.dimension), np.float32)


def _mapped(block: Stored | Path) -> Stored:
    if not isinstance(block, Path):
        return block
    rows: Stored = np.load(block, mmap_mode="r", allow_pickle=False)
    return rows


def check_unit_rows(name: str, rows: Floats, first: int = 0) -> None:
    """Raise ValueError for a row that is not finite and of length 1. first: the number of the first row."""
    with np.errstate(over="ignore", invalid="ignore"):
        squares = np.einsum("nd,nd->n", rows, rows)
    bad = np.flatnonzero(~(np.abs(np.sqrt(squares) - 1) <= UNIT_TOLERANCE))  # also where it is NaN
    if len(bad):
        told = f"row {first + bad[0]} has length {math.sqrt(squares[bad[0]]):g}"
        raise ValueError(f"{name}: {told}; every row must be finite and of length 1")
