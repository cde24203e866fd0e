"""A describer of pictures by a network: in batches of one size that fit the device's memory, to unit rows.

Shapes: N pictures, B of a batch, D dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from sharpaudit.batching import in_batches
from sharpaudit.embedders.base import Describer
from sharpaudit.embedders.preparation import MAX_ASPECT
from sharpaudit.errors import Status, UserError, printable
from sharpaudit.images import Pixels

Row = npt.NDArray[np.float32]
Network = Callable[[Sequence[Pixels]], torch.Tensor]
"""Pictures that are of one size when prepared to rows (B, D), of any length."""


@dataclass(frozen=True)
class NetworkDescriber(Describer):
    """name: the embedder's. one_size: whether all pictures are of one size when prepared; else those of one size are.

    Rows of length 0 or not finite become NaN: the network sees nothing there. So do pictures that are strips.
    """

    name: str
    dimension: int
    network: Network
    batch_size: int
    one_size: bool

    def describe(self, images: Sequence[Pixels]) -> npt.NDArray[np.float32]:
        """Unit rows, float32, shape (N, D). Raises UserError where a single picture does not fit the memory."""
        rows_ND = np.full((len(images), self.dimension), np.nan, dtype=np.float32)
        groups: dict[tuple[int, ...], list[int]] = {}
        for i, image in enumerate(images):
            if max(image.shape[:2]) > MAX_ASPECT * min(image.shape[:2]):
                continue
            groups.setdefault(() if self.one_size else image.shape, []).append(i)
        for members in groups.values():

            def rows(some: list[int]) -> list[Row]:
                return self._rows([images[i] for i in some])

            found = in_batches(rows, members, self.batch_size)
            for i, row in zip(members, found, strict=True):
                if isinstance(row, Status):
                    raise UserError(
                        f'embedder "{printable(self.name)}": a picture of {images[i].shape[1]} x {images[i].shape[0]} '
                        "pixels does not fit the memory of the device: free some, or compute on the CPU "
                        "(model.device, --device)"
                    )
                rows_ND[i] = row
        return rows_ND

    @torch.no_grad()
    def _rows(self, images: Sequence[Pixels]) -> list[Row]:
        try:
            found_BD = self.network(images)
        except RuntimeError as error:
            # TorchScript has no class of its own for it.
            if isinstance(error, torch.OutOfMemoryError) or "out of memory" not in str(error).lower():
                raise
            raise torch.OutOfMemoryError(str(error)) from error
        if found_BD.shape != (len(images), self.dimension):
            told = f"{tuple(found_BD.shape)}, where {(len(images), self.dimension)} is expected"
            raise UserError(f'embedder "{printable(self.name)}": its weights give {told}; they are those of another')
        return list(unit(found_BD))


def unit(rows_BD: torch.Tensor) -> npt.NDArray[np.float32]:
    """Rows of length 1, float32; NaN where there is nothing to scale."""
    exact_BD = rows_BD.double().cpu()
    lengths_B1 = exact_BD.norm(dim=1, keepdim=True)
    scaled: npt.NDArray[np.float32] = (exact_BD / torch.where(lengths_B1 > 0, lengths_B1, torch.nan)).float().numpy()
    return scaled
