"""Rows through a model in batches that fit the device's memory.

When a batch does not fit it is halved, down to single rows, and stays small from then on; a single row that
does not fit is given up, and the others go on. A row's result does not depend on which batch it was in, but
for the rounding of kernels that differ by batch size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from sharpaudit.errors import Status

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_batches(
    call: Callable[[list[Item]], Sequence[Result]], rows: Sequence[Item], batch_size: int
) -> list[Result | Status]:
    """`call` on successive batches of `rows`; one result per row in order, or Status.OUT_OF_MEMORY for a row.

    batch_size: at least 1. `call` gives one result for each row of its batch.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
    found: list[Result | Status] = []
    size = batch_size
    while len(found) < len(rows):
        batch = list(rows[len(found) : len(found) + size])
        results: Sequence[Result | Status] | None
        try:
            results = call(batch)
        except torch.OutOfMemoryError:
            results = None
        if results is None:
            # Here and not in the handler: the exception's frames still hold the tensors of the batch that failed.
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            if len(batch) > 1:
                size = (len(batch) + 1) // 2
                continue
            results = [Status.OUT_OF_MEMORY]
        if len(results) != len(batch):
            raise ValueError(f"a batch of {len(batch)} rows gave {len(results)} results")
        found.extend(results)
    return found
