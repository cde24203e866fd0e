"""Normalised pixels: the cosine between two shrunken pictures, indifferent to brightness and contrast.

A picture is area-averaged to side x side cells (each cell the mean of the pixels under it, parts of pixels
counted by their area; the aspect ratio is not kept), each channel loses its mean, and the whole is scaled to
length 1. The inner product of two such vectors is the correlation of the two small pictures. It finds exact
and re-encoded copies and shrugs at scale, brightness and contrast; crops, flips and shifts escape it.

A picture whose cells differ from their channel's mean by less than MIN_CONTRAST grey levels (root mean
square, of 255) has no descriptor: scaled up to length 1, its rounding noise would pass for content.

All sums are sums of whole numbers below 2^53, which float64 holds exactly in any order, and the length is a
correctly rounded sum. So a vector is the same bit for bit whatever the batch, the threads or the machine.

Shapes: N pictures, D = 3 side^2, H W C a picture, S side.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from sharpaudit.embedders.base import Describer, Embedder
from sharpaudit.images import Pixels, sha256_hex

MIN_CONTRAST = 1.0


class PixelEmbedder(Embedder):
    """The embedder `pixels-<side>`."""

    version = 1

    def __init__(self, side_px: int) -> None:
        self.side_px = side_px
        self.name = f"pixels-{side_px}"
        self.dimension = 3 * side_px**2
        parameters = {
            "kind": "pixels",
            "version": self.version,
            "side_px": side_px,
            "resize": "area",
            "centre": "channel mean",
            "min_contrast": MIN_CONTRAST,
        }
        self.digest = sha256_hex(json.dumps(parameters, sort_keys=True).encode())

    def open(self, device: torch.device, batch_size: int) -> Describer:
        """On the CPU, a picture at a time, whatever is asked for: the bits of a vector depend on neither."""
        return PixelDescriber(self.side_px)


class PixelDescriber(Describer):
    """Cells of side x side pixels, centred and scaled."""

    def __init__(self, side_px: int) -> None:
        self.side_px, self.dimension = side_px, 3 * side_px**2

    def describe(self, images: Sequence[Pixels]) -> npt.NDArray[np.float32]:
        """Unit rows, float32, shape (N, D); NaN rows for pictures without contrast."""
        rows_ND = np.empty((len(images), self.dimension), dtype=np.float32)
        for row_D, image_HWC in zip(rows_ND, images, strict=True):
            row_D[:] = self._descriptor(image_HWC)
        return rows_ND

    def _descriptor(self, image_HWC: Pixels) -> npt.NDArray[np.float64]:
        if image_HWC.dtype != np.uint8 or image_HWC.ndim != 3 or image_HWC.shape[2] != 3 or image_HWC.size == 0:
            raise ValueError(f"a picture is uint8 of shape (H, W, 3), not {image_HWC.dtype} {image_HWC.shape}")
        height, width = image_HWC.shape[:2]
        rows_SH, columns_SW = overlap(height, self.side_px), overlap(width, self.side_px)
        # One channel at a time keeps the float64 copy of a large picture small.
        channels = [rows_SH @ image_HWC[:, :, c].astype(np.float64) @ columns_SW.T for c in range(3)]
        sums_CSS = np.stack(channels)
        n_cells = self.side_px**2
        centred_CSS = n_cells * sums_CSS - sums_CSS.sum(axis=(1, 2), keepdims=True)
        length = math.sqrt(math.fsum((centred_CSS**2).ravel().tolist()))
        grey_level = n_cells * height * width  # what one level of one cell amounts to in centred_CSS
        if length < MIN_CONTRAST * grey_level * math.sqrt(self.dimension):
            return np.full(self.dimension, np.nan)
        descriptor: npt.NDArray[np.float64] = (centred_CSS / length).ravel()
        return descriptor


def overlap(n: int, side: int) -> npt.NDArray[np.float64]:
    """How much of each of n pixels lies in each of `side` equal cells, in 1/side of a pixel; shape (side, n).

    Whole numbers: pixel i covers [i side, (i + 1) side) and cell s covers [s n, (s + 1) n) of n side units.
    """
    cells, pixels = np.arange(side)[:, None], np.arange(n)[None, :]
    upper = np.minimum((cells + 1) * n, (pixels + 1) * side)
    lower = np.maximum(cells * n, pixels * side)
    return np.asarray(np.maximum(upper - lower, 0), dtype=np.float64)


PIXELS_16 = PixelEmbedder(16)
