"""How like pictures of a model are to each other, which needs no training picture.

The pictures of a memorised prompt are alike whatever noise they began with (Carlini et al., USENIX Security 2023). And
a picture that is like many, as one of a plain ground is, comes near to training pictures by that alone: so SSCD takes
from a similarity what the picture reaches among pictures of other things (Pizzi et al., CVPR 2022).

Shapes: N pictures, D dimensions of a descriptor.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

NEAREST = 3
"""Pictures of the background whose mean counts, as in the paper."""


def alike(vectors_ND: npt.NDArray[np.float32]) -> float | None:
    """The median over pictures of each one's median similarity to the others, a cosine in [-1, 1]; None of fewer than
    two.

    vectors: of length 1. Of four pictures neither two that are alike by chance nor one that is not tells of all.
    """
    n = len(vectors_ND)
    if n < 2:
        return None
    cosines_NN = vectors_ND.astype(np.float64) @ vectors_ND.T.astype(np.float64)
    others_NM = cosines_NN[~np.eye(n, dtype=bool)].reshape(n, n - 1)
    return float(np.median(np.median(others_NM, axis=1)))


class Background:
    """Pictures of other prompts that a picture is held against. prompts: of each. vectors: NaN rows are left out."""

    def __init__(self, prompts: Sequence[str], vectors_ND: npt.NDArray[np.float32]) -> None:
        usable_N = np.isfinite(vectors_ND).all(axis=1)
        self._prompts_N = np.array(prompts, dtype=object)[usable_N]
        self._vectors_ND = vectors_ND[usable_N].astype(np.float64)

    def like(self, vector_D: npt.NDArray[np.float32], prompt: str) -> float | None:
        """The mean similarity of a picture to the three nearest that are not of its own prompt; None of fewer."""
        cosines_N = (self._vectors_ND @ vector_D.astype(np.float64))[self._prompts_N != prompt]
        if len(cosines_N) < NEAREST:
            return None
        return float(np.sort(cosines_N)[-NEAREST:].mean())
