"""A descriptor profile: everything that turns a picture into a vector, under one name and digest.

Two vectors may be compared only if their profiles agree in name, version and digest; an index records all
three. The similarity of two pictures is the inner product of their vectors, a cosine in [-1, 1], and larger
means more alike.

Shapes: N pictures, D dimension, H W C a picture.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from sharpaudit.embedders.pixels import PixelProfile
from sharpaudit.errors import UserError, nearest, printable
from sharpaudit.images import Pixels


class Profile(Protocol):
    """A descriptor. `digest` covers every parameter that changes a vector."""

    @property
    def name(self) -> str: ...
    @property
    def version(self) -> int: ...
    @property
    def dimension(self) -> int: ...
    @property
    def digest(self) -> str: ...

    def describe(self, images: Sequence[Pixels]) -> npt.NDArray[np.float32]:
        """Unit rows, float32, shape (N, D); a NaN row where a picture has no usable descriptor.

        A row depends on its own picture only, never on the batch or on the number of threads.
        """


_PROFILES: dict[str, Callable[[], Profile]] = {"pixels-16": lambda: PixelProfile(side_px=16)}


def profile(name: str) -> Profile:
    """The profile of that name. Raises UserError for an unknown one."""
    if name not in _PROFILES:
        hint = nearest(name, _PROFILES)
        raise UserError(f'unknown descriptor profile "{printable(name)}"{hint}; known: {", ".join(sorted(_PROFILES))}')
    return _PROFILES[name]()
