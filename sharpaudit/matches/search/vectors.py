"""The vectors of an index: one array, or many files of it that are never in memory together.

Rows are numbered through all blocks. They are float32, or float16 where an index was built to be half as large; whoever
searches gets float32, a slice at a time. A file is mapped while it is read and let go afterwards, so that a set of any
size is passed through in the memory of one block; `held` ones stay: those of float32 mapped, which all processes of a
machine share, those of float16 as float32 of this process.

Shapes: N vectors, D dimension.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Stored = npt.NDArray[np.floating]

SLICE_BYTES = 2**27
UNIT_TOLERANCE = 2e-3
"""Twice what an embedder may be off (embedders.base): float16 rounds what it gave once more."""
DTYPES = (np.dtype(np.float32), np.dtype(np.float16))


class Vectors:
    """blocks: unit rows each, (n, D), float32 or float16, in memory or as npy files. held: whether files stay open.

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
        self._held: dict[int, Floats] = {}

    def __len__(self) -> int:
        return self._starts[-1]

    def slices(self) -> Iterator[tuple[int, Floats]]:
        """(number of the first row, rows as float32), no more at a time than SLICE_BYTES.

        Each is checked when it is first read: a search engine would pass over a row that is no number. Raises
        ValueError for a row that is not of length 1.
        """
        most = max(1, SLICE_BYTES // (4 * self.dimension))
        for number, begin in enumerate(self._starts[:-1]):
            length = self._starts[number + 1] - begin
            firsts = range(0, length, most)
            block = None if all(begin + first in self._held for first in firsts) else _mapped(self._blocks[number])
            for first in firsts:
                yield begin + first, self._slice(block, begin, first, most)

    def _slice(self, block: Stored | None, begin: int, first: int, most: int) -> Floats:
        if block is None:
            return self._held[begin + first]
        rows = np.ascontiguousarray(block[first : first + most], dtype=np.float32)
        if begin + first not in self._checked:
            check_unit_rows("vectors", rows, begin + first)
            self._checked.add(begin + first)
        if self.held:
            self._held[begin + first] = rows
        return rows

    def rows(self, numbers: Sequence[int] | npt.NDArray[np.int64]) -> Floats:
        """Some rows, (len(numbers), D), in this order; of each block those that are wanted are read together."""
        numbers = np.asarray(numbers, dtype=np.int64)
        found = np.empty((len(numbers), self.dimension), dtype=np.float32)
        blocks = np.searchsorted(self._starts, numbers, side="right") - 1
        for number in np.unique(blocks):
            here = np.flatnonzero(blocks == number)
            found[here] = _mapped(self._blocks[number])[numbers[here] - self._starts[number]]
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
