"""A second way to tell copies, which no audit uses: region by region, where a plant shows something.

A picture is cut into windows of SIZE pixels, STRIDE apart. Of a plant those count in which it has texture and no varied
region; in each the correlation of generation and plant is taken, every channel without its mean there. So neither the
colour nor the shade of a ground, which normalised pixels of a whole picture follow, makes a copy: objects must be the
same, at the same place and angle. *Likeness* is the mean correlation of a plant's windows, from -1 to 1.

Shapes: G generations, P plants, W windows, H W C picture.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

SIZE, STRIDE = 16, 8
TEXTURE = 8.0
"""Standard deviation, in levels of 255, above which a window shows something."""
LIKE = 0.7
"""Likeness of a copy: below that of the autoencoder's own reconstructions of the plants, above that of fresh pictures
of the same captions."""


def likeness(
    generations_GHWC: npt.NDArray[np.uint8],
    plants_PHWC: npt.NDArray[np.uint8],
    masks_PHW: npt.NDArray[np.bool_],
) -> npt.NDArray[np.float64]:
    """Mean correlation over the windows that count, with shape (G, P).

    masks: where a plant is compared; a window with a pixel outside does not count. A plant without any window that
    counts is like nothing: -1.
    """
    summed_GP = np.zeros((len(generations_GHWC), len(plants_PHWC)))
    windows_P = np.zeros(len(plants_PHWC))
    side = plants_PHWC.shape[1]
    for top in range(0, side - SIZE + 1, STRIDE):
        for left in range(0, side - SIZE + 1, STRIDE):
            window = np.s_[:, top : top + SIZE, left : left + SIZE]
            plants_PD, spread_P = _standardised(plants_PHWC[window])
            counts_P = masks_PHW[window].all(axis=(1, 2)) & (spread_P > TEXTURE)
            if not counts_P.any():
                continue
            generations_GD, _ = _standardised(generations_GHWC[window])
            summed_GP[:, counts_P] += generations_GD @ plants_PD[counts_P].T
            windows_P += counts_P
    return np.where(windows_P, summed_GP / np.maximum(windows_P, 1), -1.0)


def _standardised(cut: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Windows (N, h, w, C) as rows of length 1 without the mean of each channel, and their standard deviations (N,)."""
    flat_NPC = cut.reshape(len(cut), -1, cut.shape[-1]).astype(np.float32)
    flat_NPC -= flat_NPC.mean(axis=1, keepdims=True)
    rows_ND = flat_NPC.reshape(len(cut), -1)
    norms_N = np.linalg.norm(rows_ND, axis=1)
    return rows_ND / np.maximum(norms_N, 1e-6)[:, None], norms_N / np.sqrt(rows_ND.shape[1])
