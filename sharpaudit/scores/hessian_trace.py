"""Hessian trace: -tr(H_c - H_0) at the first step, the curvature that a prompt adds in total.

H = (a J - I) / sigma^2 with J the Jacobian of x0_hat, so -tr DH = -(a / sigma^2) tr of the Jacobian of delta_x0. Larger
means more memorised: a peaked distribution has x0_hat that hardly depends on x. Estimated as Hutchinson does (1989),
tr M = E[v^T M v] for v of random signs, with one probe a seed that all prompts share, so that its noise is alike for
all; M v by a finite difference. `exact_trace` is the oracle, for latents of some hundred elements.

Shapes: B prompts, C H W latent.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from sharpaudit.denoisers.base import NoiseLevel
from sharpaudit.scores.base import FIRST, PROBE, Evidence, Metric, at


def hutchinson(moved_CHW: torch.Tensor, change_BCHW: torch.Tensor, level: NoiseLevel) -> torch.Tensor:
    """-v^T DH v, with shape (B,). moved: h v, v of signs. change: of delta_x0 along it."""
    along_B = (change_BCHW * moved_CHW).flatten(1).sum(dim=1)
    return -(level.a / level.sigma**2) * along_B / moved_CHW.square().mean()


def exact_trace(
    difference: Callable[[torch.Tensor], torch.Tensor], x_BCHW: torch.Tensor, level: NoiseLevel
) -> torch.Tensor:
    """-tr DH by forward-mode differentiation along every element of the latent, with shape (B,)."""
    total_B = torch.zeros(len(x_BCHW), device=x_BCHW.device)
    for i in range(x_BCHW[0].numel()):
        unit_BCHW = torch.zeros_like(x_BCHW)
        unit_BCHW.flatten(1)[:, i] = 1
        total_B += torch.func.jvp(difference, (x_BCHW,), (unit_BCHW,))[1].flatten(1)[:, i]
    return -(level.a / level.sigma**2) * total_B


def _values(evidence: Evidence) -> torch.Tensor:
    return hutchinson(*evidence.probed(), evidence.level())


HESSIAN_TRACE = Metric("hessian_trace", (at(FIRST), at(PROBE)), _values, float32_only=True)
