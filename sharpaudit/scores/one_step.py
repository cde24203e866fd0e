"""One-step score (Webster, arXiv 2305.08694): how far one Euler step of guided denoising moves pure noise.

From z = S n at the largest noise level S = sigma / a, one step ends at D(z) = z - S eps, eps = eps_0 + w delta_eps
with guidance w = 7.5, and

    one_step = mean over elements of (z - D(z))^2 = S^2 mean(eps^2).

Larger means more memorised. As published, at the last training timestep and not at the first sampling one; the
release reads one seed, here every seed has its value. In the coordinates of a variance-preserving model x = sigma n.

Shapes: B prompts, C H W latent.
"""

from __future__ import annotations

import torch

from sharpaudit.denoisers.base import NoiseLevel
from sharpaudit.scores.base import NOISIEST, Evidence, Metric, at

GUIDANCE = 7.5


def one_step(
    x_BCHW: torch.Tensor, x0_empty_CHW: torch.Tensor, delta_x0_BCHW: torch.Tensor, level: NoiseLevel
) -> torch.Tensor:
    """S^2 mean(eps^2), with shape (B,)."""
    guided_BCHW = x0_empty_CHW + GUIDANCE * delta_x0_BCHW
    eps_BCHW = (x_BCHW - level.a * guided_BCHW) / level.sigma
    return (level.sigma / level.a) ** 2 * eps_BCHW.flatten(1).square().mean(dim=1)


def _values(evidence: Evidence) -> torch.Tensor:
    place = NOISIEST
    return one_step(evidence.x(place), evidence.x0_empty(place), evidence.delta_x0(place), evidence.level(place))


ONE_STEP = Metric("one_step", (at(NOISIEST),), _values)
