"""Mean-free gap: the noise gap without what a prompt shifts everywhere alike.

||delta_eps - its spatial mean per channel||_2 at the first step. Larger means more memorised. A caption that fixes a
background colour moves mostly the mean; unlike residual_gap it needs no harmless prompts to learn that from. Ours, and
unpublished. Unit: of the latent.

Shapes: B prompts, C H W latent.
"""

from __future__ import annotations

import torch

from sharpaudit.denoisers.base import NoiseLevel
from sharpaudit.scores.base import FIRST, Evidence, Metric, at


def mean_free_gap(delta_x0_BCHW: torch.Tensor, level: NoiseLevel) -> torch.Tensor:
    """Norm of what is left of delta_eps, with shape (B,)."""
    rest_BCHW = delta_x0_BCHW - delta_x0_BCHW.mean(dim=(2, 3), keepdim=True)
    norm: torch.Tensor = torch.linalg.vector_norm(rest_BCHW.flatten(1), dim=1)
    return (level.a / level.sigma) * norm


def _values(evidence: Evidence) -> torch.Tensor:
    return mean_free_gap(evidence.delta_x0(), evidence.level())


MEAN_FREE_GAP = Metric("mean_free_gap", (at(FIRST),), _values)
