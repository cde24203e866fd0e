"""Norm plus cosine (Asthana and Belagiannis, ICLR 2026): the noise gap and an angle late in the schedule.

    norm_cosine = G1 sqrt(16,384 / D) ||delta_eps||_2 at the first timestep + G2 cos at the third-last of 50,

both on the same pure noise x_T; cos is the cosine between eps_0 and delta_eps over the channels of a pixel, averaged
over pixels. Larger means more memorised. G1 = 1 and G2 = 2 are the published weights for Stable Diffusion 1, fitted
there on 20 memorised prompts of 4 x 64 x 64 latents. A norm grows with the root of the number of elements and a
mean cosine does not, so the norm is taken to the size of that latent: there the metric is the published one, and
elsewhere the two terms keep their proportion for the same change of an element. Nothing was fitted for other models.
Deviation: the release takes the cosine of raw v outputs on v models, here it is that of noise predictions on every
model.

Shapes: B prompts, C H W latent, D = C H W.
"""

from __future__ import annotations

import math

import torch

from sharpaudit.denoisers.base import NoiseLevel
from sharpaudit.scores.base import FIRST, LATE, Evidence, Metric, at
from sharpaudit.scores.noise_gap import noise_gap

G1, G2 = 1.0, 2.0
ELEMENTS = 4 * 64 * 64
"""Of the latents that the weights were fitted on."""


def pixel_cosine(
    x_BCHW: torch.Tensor, x0_empty_CHW: torch.Tensor, delta_x0_BCHW: torch.Tensor, level: NoiseLevel
) -> torch.Tensor:
    """Mean over pixels of cos(eps_0, delta_eps), with shape (B,); 0 where either vanishes."""
    eps_BCHW = (x_BCHW - level.a * x0_empty_CHW) / level.sigma
    cosine: torch.Tensor = torch.cosine_similarity(eps_BCHW, -delta_x0_BCHW, dim=1, eps=1e-12)
    return cosine.mean(dim=(1, 2))


def scaled_norm(delta_x0_BCHW: torch.Tensor, level: NoiseLevel) -> torch.Tensor:
    """The noise gap as a latent of ELEMENTS would have it, with shape (B,)."""
    return math.sqrt(ELEMENTS / delta_x0_BCHW[0].numel()) * noise_gap(delta_x0_BCHW, level)


def _values(evidence: Evidence) -> torch.Tensor:
    late = evidence.x(LATE), evidence.x0_empty(LATE), evidence.delta_x0(LATE), evidence.level(LATE)
    return G1 * scaled_norm(evidence.delta_x0(), evidence.level()) + G2 * pixel_cosine(*late)


NORM_COSINE = Metric("norm_cosine", (at(FIRST), at(LATE)), _values)
