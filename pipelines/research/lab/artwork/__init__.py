"""The pictures that the lab's training set is composed of: 160 objects of the Noto emoji artwork.

objects.png holds them as 64 x 64 RGBA tiles, 16 a row, in the order of objects.txt. See NOTICE for source and licence.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from PIL import Image

TILE = 64
PER_ROW = 16


@cache
def names() -> tuple[str, ...]:
    """The objects' names, sorted."""
    return tuple((Path(__file__).parent / "objects.txt").read_text(encoding="utf-8").splitlines())


@cache
def _sheet() -> Image.Image:
    with Image.open(Path(__file__).parent / "objects.png") as sheet:
        return sheet.convert("RGBA")


@cache
def tile(name: str) -> Image.Image:
    """One object on a transparent ground, RGBA, 64 x 64; its longer side fills the tile."""
    row, column = divmod(names().index(name), PER_ROW)
    left, top = column * TILE, row * TILE
    return _sheet().crop((left, top, left + TILE, top + TILE))
