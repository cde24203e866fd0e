"""Sharpness (Jeon, Kim and No, ICML 2025): ||DH Ds||_2 at the first step.

Ds = s_c - s_0 is the difference of the scores, DH = H_c - H_0 that of their Jacobians. Larger means more memorised.
In terms of x0_hat, Ds = (a / sigma^2) delta_x0 and DH = (a / sigma^2) J with J the Jacobian of delta_x0, hence

    ||DH Ds|| = (a / sigma^2)^2 ||J delta_x0||.

The paper squares the norm and averages over seeds; here the norm itself is averaged, as in the released code, so
that one seed with a large value does not decide. Finite difference, the default: with u = delta_x0 / ||delta_x0||,
J delta_x0 is about ||delta_x0|| (delta_x0(x + h u) - delta_x0(x)) / h, two more evaluations. Exact: forward-mode
differentiation, which needs the math attention kernel. Where delta_x0 is zero the sharpness is zero.

Shapes: B prompts, C H W latent.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from sharpaudit.denoisers.base import NoiseLevel
from sharpaudit.denoisers.jacobian import product
from sharpaudit.scores.base import DISPLACED, FIRST, TANGENT, Evidence, Metric, at

Difference = Callable[[torch.Tensor], torch.Tensor]
"""delta_x0 as a function of x, for fixed prompts."""


def finite_difference(
    difference: Difference, x_BCHW: torch.Tensor, delta_x0_BCHW: torch.Tensor, level: NoiseLevel, step: float
) -> torch.Tensor:
    """||DH Ds||, with shape (B,). step: h, in units of the latent."""
    size_B = _norms(delta_x0_BCHW)
    along = _per_row(1 / size_B.clamp_min(torch.finfo(torch.float32).tiny)) * delta_x0_BCHW
    slope_BCHW = (difference(x_BCHW + step * along) - delta_x0_BCHW) / step
    return (level.a / level.sigma**2) ** 2 * size_B * _norms(slope_BCHW)


def exact(difference: Difference, x_BCHW: torch.Tensor, delta_x0_BCHW: torch.Tensor, level: NoiseLevel) -> torch.Tensor:
    """||DH Ds|| by forward-mode differentiation, with shape (B,)."""
    return (level.a / level.sigma**2) ** 2 * _norms(product(difference, x_BCHW, delta_x0_BCHW))


def _norms(values_BCHW: torch.Tensor) -> torch.Tensor:
    norm: torch.Tensor = torch.linalg.vector_norm(values_BCHW.flatten(1), dim=1)
    return norm


def _per_row(values_B: torch.Tensor) -> torch.Tensor:
    return values_B[:, None, None, None]


def _finite(evidence: Evidence) -> torch.Tensor:
    return finite_difference(evidence.difference, evidence.x(), evidence.delta_x0(), evidence.level(), evidence.step)


def _exact(evidence: Evidence) -> torch.Tensor:
    return exact(evidence.difference, evidence.x(), evidence.delta_x0(), evidence.level())


SHARPNESS = Metric("sharpness", (at(FIRST), DISPLACED), _finite)
SHARPNESS_JVP = Metric("sharpness_jvp", (at(FIRST), TANGENT), _exact, float32_only=True)
