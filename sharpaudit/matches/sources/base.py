"""Training pictures as they come in, whatever they are kept in: every thing that is there comes out as one item.

A layout lists its units without reading pictures, and reads one unit alone: so that many processes share the work, and
one that was ended goes on where it was.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

SUFFIXES = frozenset(
    (
        *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".pjpeg", ".pjp", ".webp"),
        *(".gif", ".bmp", ".dib", ".tif", ".tiff", ".avif", ".heic", ".heif", ".hif"),
        *(".jp2", ".j2k", ".jpf", ".jpx", ".jpc", ".jxl", ".tga", ".ppm", ".pgm", ".pbm", ".pnm", ".qoi"),
    )
)
"""What is taken for a picture; formats that images.py refuses become rejected rows, so that none is passed over."""

APPLE_DOUBLE = b"\0\x05\x16\x07"
"""How the ._ files of macOS begin."""
STATUS, SUCCESS = "status", "success"
"""Column of img2dataset's tables, and what it says of a picture that was downloaded."""


@dataclass(frozen=True)
class ReferencePicture:
    """A training picture as it comes in. reference_id: by default the first half of its SHA-256.

    source: name of the data set; path: where in it the picture lies, for people to find it again. data: its bytes, or
    None where they could not be had: problem says why.
    """

    reference_id: str | None
    source: str
    caption: str | None
    path: str
    data: bytes | None
    problem: str | None = None


@dataclass(frozen=True)
class GivenVector:
    """A training picture of which only a vector is there, made by somebody else. reference_id, path: as of a picture.

    vector_D: (D,) float32 of any length; None where there is none.
    """

    reference_id: str
    source: str
    caption: str | None
    path: str
    vector_D: npt.NDArray[np.float32] | None


@dataclass(frozen=True)
class NotLookedAt:
    """A file that is taken for no picture, by its kind."""

    path: str
    kind: str


@dataclass(frozen=True)
class Repeated:
    """A folder that was read at another place already."""

    path: str


Item = ReferencePicture | GivenVector | NotLookedAt | Repeated


def kind_of(suffix: str) -> str:
    """What a file that is no picture is counted as: its suffix, in lower case, or that it has none or an odd one."""
    if not suffix:
        return "no suffix"
    return suffix if re.fullmatch(r"\.[a-z0-9]{1,12}", suffix) else "other suffix"


def state_of(path: Path) -> list[int] | None:
    """What changes when a file does, or who may read it; None for one that is gone."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]


@dataclass(frozen=True)
class Unit:
    """A part of a training set that is read by itself.

    payload: for `Layout.items`, JSON only. state: what changes when its files do, JSON only. pictures: how many it
    holds, about.
    """

    payload: dict[str, Any]
    state: Any
    pictures: int


class Layout(ABC):
    """What a training set is kept in, where it is and how it is to be read. Its fields are JSON, but for paths.

    gives_vectors: whether its items are vectors, of one embedder, in place of pictures.
    """

    gives_vectors: ClassVar[bool] = False

    @abstractmethod
    def units(self) -> Iterator[Unit]:
        """Its units, in the order of their paths. Raises UserError at once for a place that holds nothing like it."""

    @abstractmethod
    def items(self, payload: dict[str, Any]) -> Iterator[Item]:
        """What a unit holds. Raises UserError for a file that is damaged as a whole."""

    def everything(self) -> Iterator[Item]:
        """What all units hold. Raises UserError as `units` does, at once."""
        units = self.units()
        return (item for unit in units for item in self.items(unit.payload))
