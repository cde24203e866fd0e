"""Noise schedules: cumulative alphas and sampling timesteps as Stable Diffusion writes them down, and those of flows.

x_t = a x0 + sigma eps with a^2 = alphas_cumprod[t] and sigma^2 = 1 - a^2, or a = 1 - t and sigma = t, t in [0, 1]
(rectified flow; Liu, Gong and Liu, ICLR 2023).
"""

from __future__ import annotations

import torch

from sharpaudit.denoisers.base import NoiseLevel

TRAIN_STEPS = 1000


def scaled_linear_alphas_cumprod(
    beta_start: float = 0.00085, beta_end: float = 0.012, n: int = TRAIN_STEPS
) -> torch.Tensor:
    """Betas linear in their square root; float64, with shape (n,)."""
    betas = torch.linspace(beta_start**0.5, beta_end**0.5, n, dtype=torch.float64) ** 2
    return torch.cumprod(1 - betas, dim=0)


def linear_alphas_cumprod(beta_start: float, beta_end: float, n: int = TRAIN_STEPS) -> torch.Tensor:
    """Betas linear; float64, with shape (n,)."""
    return torch.cumprod(1 - torch.linspace(beta_start, beta_end, n, dtype=torch.float64), dim=0)


def leading_timesteps(n_train: int, n_steps: int, offset: int) -> list[int]:
    """ "Leading" spacing in falling order: 50 of 1000 with offset 1 gives 981, 961, ..., 1."""
    stride = n_train // n_steps
    return [i * stride + offset for i in reversed(range(n_steps))]


def flow_level(t: float) -> NoiseLevel:
    """The noise level of a flow model at time t, 0 (clean) to 1 (noise alone)."""
    if not 0 <= t <= 1:
        raise ValueError(f"time {t} is not in [0, 1]")
    return NoiseLevel(1 - t, t)


def flow_time(level: NoiseLevel) -> float:
    """When a flow model has the signal-to-noise ratio of `level`: .929 for timestep 981 of Stable Diffusion."""
    return level.sigma / (level.a + level.sigma)
