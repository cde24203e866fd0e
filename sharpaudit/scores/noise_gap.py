"""Noise gap (Wen, Liu, Chen and Lyu, ICLR 2024, equation 3): ||eps_c - eps_0||_2 at the first step.

Larger means more memorised. Computed in float32 as (a / sigma) ||delta_x0||, which is the same for epsilon and
v models. Unit: of the latent. It also grows when a prompt only fixes a global property such as a background
colour, which is why it does not decide unless it is asked to.

Shapes: B prompts, C H W latent.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from sharpaudit.denoisers.base import NoiseLevel
from sharpaudit.scores.base import FIRST, Evidence, Metric, at


def delta_eps(delta_x0_BCHW: torch.Tensor, level: NoiseLevel) -> torch.Tensor:
    """Difference of the noise predictions, flattened, with shape (B, D)."""
    return -(level.a / level.sigma) * delta_x0_BCHW.flatten(1)


def noise_gap(delta_x0_BCHW: torch.Tensor, level: NoiseLevel) -> torch.Tensor:
    """||delta_eps||_2, with shape (B,)."""
    norm: torch.Tensor = torch.linalg.vector_norm(delta_eps(delta_x0_BCHW, level), dim=1)
    return norm


def _values(evidence: Evidence) -> torch.Tensor:
    return noise_gap(evidence.delta_x0(), evidence.level())


def _as_strangers(
    differences_ND: npt.NDArray[np.float32], _components: int, _families: Sequence[str] | None
) -> npt.NDArray[np.float64]:
    """It learns nothing from fit prompts."""
    energy_N: npt.NDArray[np.float64] = np.array([np.square(row.astype(np.float64)).sum() for row in differences_ND])
    return np.sqrt(energy_N)


NOISE_GAP = Metric("noise_gap", (at(FIRST),), _values, strangers=_as_strangers)
