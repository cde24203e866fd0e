"""Where a copy is: which part of a generated picture shows a training picture.

The training picture is laid over the generated one as it lies there (alignment.py), and the two are compared cell by
cell, by the window about each:

    same       both show the same texture, in all four quarters of the window
    plain      they agree where one of the quarters is plain in both: ground, or the outline of an object before it,
               which any object of that shape has; agrees, and proves nothing
    differs    they do not agree

The constants say what is the same in one window. How much must be the same for a copy to be localised is measured on
pictures of harmless prompts and the training pictures next to them.

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
from sharpaudit.matches.alignment import TEXTURE, WINDOW, Alignment, alignments, laid, means, small, variance

CELL = 2
"""Side of a cell, in pixels as the pictures are compared."""
DIFFERS, SAME, PLAIN = range(3)
LIKE = 0.75
"""Correlation from which on two windows show the same."""
QUARTER = 6.0
"""Standard deviation within a quarter of a window, in levels of 255, above which it varies."""
TONE = 24.0
"""Levels of 255 by which plain tones that are alike may differ."""
LEAST = 0.05
"""Share of the cells that count as having texture at the least: a single window that agrees is no copy."""


@dataclass(frozen=True)
class Region:
    """cells: DIFFERS, SAME or PLAIN, with shape (h, w). agreement: of the cells with texture in either picture, in all
    quarters of the window, the share that is the same, from 0 to 1. alignment: None where no window voted for any."""

    cells_hw: npt.NDArray[np.int8]
    agreement: float
    alignment: Alignment | None

    def share(self, kind: int) -> float:
        """Share of the generated picture that is of a kind."""
        return float((self.cells_hw == kind).mean())


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
    agrees = covered & _agrees(generated_CHW, laid_CHW)
    textured = _textured(generated_CHW) | (_textured(laid_CHW) & covered)
    cells_hw = _of_cells(torch.where(agrees, torch.where(textured, SAME, PLAIN), DIFFERS), generated_CHW)
    seen = int(_of_cells(textured, generated_CHW).sum())
    agreement = float((cells_hw == SAME).sum() / max(seen, LEAST * cells_hw.size))
    return Region(cells_hw.astype(np.int8), agreement, alignment)


def _agrees(one_CHW: torch.Tensor, other_CHW: torch.Tensor) -> torch.Tensor:
    """Whether the windows at each place show the same: alike where either varies, of one tone where neither does."""
    varies, varies_too = (variance(picture) > TEXTURE**2 for picture in (one_CHW, other_CHW))
    tone = (means(one_CHW) - means(other_CHW)).abs().amax(0)
    return torch.where(varies | varies_too, varies & varies_too & (_likeness(one_CHW, other_CHW) >= LIKE), tone <= TONE)


def _textured(picture_CHW: torch.Tensor) -> torch.Tensor:
    """Whether each quarter of the window at a place varies, of a picture (3, H, W)."""
    half = WINDOW // 2
    varies = variance(picture_CHW, half) > QUARTER**2
    height, width = (length - half for length in varies.shape)
    corners = ((0, 0), (0, half), (half, 0), (half, half))
    return torch.stack([varies[top : top + height, left : left + width] for top, left in corners]).all(0)


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
