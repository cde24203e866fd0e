"""Where a copy is: which part of a generated picture shows a training picture.

The training picture is laid over the generated one as it lies there (alignment.py), and the two are compared cell by
cell, by the window about each:

    same       both show the same texture
    differs    they do not, or one shows texture where the other shows none, or plain tones that are unlike
    plain      neither has texture, and their tones are alike: agrees, and proves nothing

The constants say what is the same in one window. How much must be the same for a copy to be localised is measured on
pictures of harmless prompts and the training pictures next to them, and never typed in.

Shapes: H W height and width in pixels, h w in cells, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from sharpaudit.images import Pixels
from sharpaudit.matches.alignment import TEXTURE, Alignment, alignments, laid, means, small, variance

CELL = 2
"""Side of a cell, in pixels as the pictures are compared."""
DIFFERS, SAME, PLAIN = range(3)
LIKE = 0.75
"""Correlation from which on two windows show the same."""
TONE = 24.0
"""Levels of 255 by which plain tones that are alike may differ."""
LEAST = 0.05
"""Share of the cells that count as having texture at the least: a single window that agrees is no copy."""


@dataclass(frozen=True)
class Region:
    """cells: DIFFERS, SAME or PLAIN, with shape (h, w). agreement: of the cells with texture in either picture, the
    share that is the same, from 0 to 1. alignment: None where no window voted for any."""

    cells_hw: npt.NDArray[np.int8]
    agreement: float
    alignment: Alignment | None

    @property
    def share(self) -> float:
        """Share of the generated picture that agrees, plain cells among it."""
        return float((self.cells_hw != DIFFERS).mean())


@torch.no_grad()
def locate(generated_HWC: Pixels, training_HWC: Pixels) -> Region:
    """Where `generated` shows `training`, both (H, W, 3) uint8 of any size."""
    generated_CHW = small(generated_HWC)
    found = dict.fromkeys(alignments(generated_CHW, training_HWC))
    return max((_compared(generated_CHW, training_HWC, one) for one in found), key=lambda region: region.agreement)


def _compared(generated_CHW: torch.Tensor, training_HWC: Pixels, alignment: Alignment | None) -> Region:
    laid_CHW = laid(training_HWC, alignment, generated_CHW)
    covered = means(laid_CHW.isnan().any(0, keepdim=True).float())[0] == 0
    laid_CHW = laid_CHW.nan_to_num()
    textured = variance(generated_CHW) > TEXTURE**2
    textured_too = (variance(laid_CHW) > TEXTURE**2) & covered
    same = covered & textured & textured_too & (_likeness(generated_CHW, laid_CHW) >= LIKE)
    tone = (means(generated_CHW) - means(laid_CHW)).abs().amax(0)
    plain = covered & ~textured & ~textured_too & (tone <= TONE)
    cells_hw = _of_cells(torch.where(same, SAME, torch.where(plain, PLAIN, DIFFERS)), generated_CHW)
    seen = int(_of_cells(textured | textured_too, generated_CHW).sum())
    agreement = float((cells_hw == SAME).sum() / max(seen, LEAST * cells_hw.size))
    return Region(cells_hw.astype(np.int8), agreement, alignment)


def _likeness(one_CHW: torch.Tensor, other_CHW: torch.Tensor) -> torch.Tensor:
    """The best correlation of the windows at each place when one is shifted by up to a pixel."""
    mean, spread = means(one_CHW), variance(one_CHW).sqrt()
    best = torch.full_like(spread, -1.0)
    padded = functional.pad(other_CHW[None], (1, 1, 1, 1), mode="replicate")[0]
    height, width = one_CHW.shape[1:]
    for down, right in product(range(3), range(3)):
        moved = padded[:, down : down + height, right : right + width]
        together = (means(one_CHW * moved) - mean * means(moved)).mean(0)
        best = torch.maximum(best, together / (spread * variance(moved).sqrt()).clamp(min=1.0))
    return best


def _of_cells(windows_HW: torch.Tensor, picture_CHW: torch.Tensor) -> npt.NDArray[Any]:
    """What the window about each cell says, (h, w); at the edges, that of the nearest window that is whole."""
    beside = (picture_CHW.shape[1] - windows_HW.shape[0] + 1) // 2
    rows, columns = (
        (torch.arange(length // CELL) * CELL + CELL // 2 - beside).clamp(0, whole - 1)
        for length, whole in zip(picture_CHW.shape[1:], windows_HW.shape, strict=True)
    )
    found: npt.NDArray[Any] = windows_HW[rows[:, None], columns[None, :]].numpy()
    return found
