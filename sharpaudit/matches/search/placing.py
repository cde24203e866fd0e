"""Where the vectors of an index are while they are searched: it changes how long that takes, and nothing of the answer.

"auto" is decided by size and room. On a GPU they stay on it if they take no more than half of what is free there. On
the CPU they stay in memory if they take no more than half of what is free: vectors of float32 are mapped from their
files once for all processes of a machine, of float16 each worker makes itself a copy as float32. Otherwise they are
read from the disk for every search, a block at a time.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from sharpaudit.devices import free_memory
from sharpaudit.matches.search.vectors import Vectors

_GIB = 2**30


@dataclass(frozen=True)
class Placing:
    """held: whether vectors stay where they are searched. told: where that is, and why, for people."""

    held: bool
    told: str


def place(asked: str, vectors: Vectors, device: torch.device, workers: int = 1) -> Placing:
    """Where vectors are to be. asked: by `matches.vectors`. workers: processes that share the machine's memory."""
    size = 4 * len(vectors) * vectors.dimension
    on_gpu = device.type == "cuda"
    copies = 1 if on_gpu or vectors.dtype == np.float32 else workers
    kind = "GPU memory" if on_gpu else "memory"
    held, why = asked == "memory", f'matches.vectors = "{asked}"'
    if asked == "auto":
        free = int(torch.cuda.mem_get_info(device)[0]) if on_gpu else free_memory()
        held, why = 2 * copies * size <= free, f"{_size(free)} of {kind} are free"
    where = f"in {kind}" if held else "read from the disk for every search"
    many = f"{copies} x " if copies > 1 else ""
    return Placing(held, f"{len(vectors):,} x {vectors.dimension} vectors, {many}{_size(size)}, {where} ({why})")


def _size(n_bytes: int) -> str:
    return f"{n_bytes / _GIB:.1f} GiB" if n_bytes >= _GIB / 10 else f"{n_bytes / 2**20:.1f} MiB"
