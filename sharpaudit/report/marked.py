"""A generated picture with what of it agrees with the training picture left as it is, and the rest faded."""

from __future__ import annotations

import numpy as np

from sharpaudit.images import Pixels

FADED = 0.25
"""How much of a pixel is left where the pictures differ; the rest is white."""
EDGE = (220, 30, 30)


def marked(picture_HWC: Pixels, cells: str, cells_wide: int) -> Pixels:
    """The picture, (H, W, 3). cells: of matches/region.py, row after row, a digit each: 0 differs, 1 same, 2 plain.

    A red line runs along the edge of what agrees.
    """
    cells_hw = np.array([int(cell) for cell in cells], dtype=np.int8).reshape(-1, cells_wide)
    height, width = picture_HWC.shape[:2]
    rows = np.arange(height) * cells_hw.shape[0] // height
    columns = np.arange(width) * cells_hw.shape[1] // width
    agrees_HW = cells_hw[rows[:, None], columns[None, :]] > 0
    faded = (picture_HWC * FADED + 255 * (1 - FADED)).astype(np.uint8)
    made: Pixels = np.where(agrees_HW[..., None], picture_HWC, faded)
    edge_HW = np.zeros_like(agrees_HW)
    edge_HW[1:] |= agrees_HW[1:] != agrees_HW[:-1]
    edge_HW[:, 1:] |= agrees_HW[:, 1:] != agrees_HW[:, :-1]
    made[edge_HW] = EDGE
    return made
