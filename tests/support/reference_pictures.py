"""Training pictures for tests of indexes, and what the files of a small index are called."""

from __future__ import annotations

import numpy as np

from sharpaudit.images import encode_png
from sharpaudit.matches.sources.base import ReferencePicture

TABLE, VECTORS = "references/00000.parquet", "vectors/pixels-16/00000.npy"
FILES = ("manifest.json", TABLE, VECTORS)


def pixels(seed: int, side: int = 24) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


def picture(seed: int, **changes) -> ReferencePicture:
    given = {"reference_id": None, "source": "set", "caption": f"number {seed}", "path": f"{seed}.png"}
    return ReferencePicture(**(given | {"data": encode_png(pixels(seed))} | changes))


def flat_picture() -> ReferencePicture:
    return picture(0, path="flat.png", data=encode_png(np.full((8, 8, 3), 9, np.uint8)))


def broken_picture() -> ReferencePicture:
    return picture(0, path="broken.png", data=b"not a picture")
