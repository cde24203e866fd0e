"""Score norm: ||s_c||_2 at the first step, s_c = (a x0_hat - x) / sigma^2.

The baseline without the unconditional branch: a sharp distribution has large scores, E||s||^2 = -E tr H (Hyvarinen,
JMLR 2005), but at the first step nearly all of it is the noise that was put in. Larger means more memorised. Ross et
al. (ICLR 2025) lower the norm of the guided score to mitigate; here it is that of the conditional one.

Shapes: B prompts, C H W latent.
"""

from __future__ import annotations

import torch

from sharpaudit.denoisers.base import NoiseLevel
from sharpaudit.scores.base import FIRST, Evidence, Metric, at


def score_norm(x_BCHW: torch.Tensor, x0_BCHW: torch.Tensor, level: NoiseLevel) -> torch.Tensor:
    """||s||_2, with shape (B,)."""
    norm: torch.Tensor = torch.linalg.vector_norm((level.a * x0_BCHW - x_BCHW).flatten(1), dim=1)
    return norm / level.sigma**2


def _values(evidence: Evidence) -> torch.Tensor:
    return score_norm(evidence.x(), evidence.x0(), evidence.level())


SCORE_NORM = Metric("score_norm", (at(FIRST),), _values)
