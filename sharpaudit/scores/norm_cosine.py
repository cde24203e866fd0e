"""Norm plus cosine (Asthana and Belagiannis, ICLR 2026): the noise gap and an angle late in the schedule.

    norm_cosine = G1 ||delta_eps||_2 at the first timestep + G2 cos at the third-last of 50,

both on the same pure noise x_T; cos is the cosine between eps_0 and delta_eps over the channels of a pixel, averaged
over pixels. Larger means more memorised. G1 = 1 and G2 = 2 are the published weights for Stable Diffusion 1, fitted
there on 20 memorised prompts; for another model they are as good as any. Deviation: the release takes the cosine of
raw v outputs on v models, here it is that of noise predictions on every model.

Shapes: B prompts, C H W latent.
"""

from __future__ import annotations

import torch

from sharpaudit.denoisers.base import NoiseLevel
from sharpaudit.scores.base import LATE, Evidence, Metric
from sharpaudit.scores.noise_gap import noise_gap

G1, G2 = 1.0, 2.0


def pixel_cosine(
    x_BCHW: torch.Tensor, x0_empty_CHW: torch.Tensor, delta_x0_BCHW: torch.Tensor, level: NoiseLevel
) -> torch.Tensor:
    """Mean over pixels of cos(eps_0, delta_eps), with shape (B,); 0 where either vanishes."""
    eps_BCHW = (x_BCHW - level.a * x0_empty_CHW) / level.sigma
    cosine: torch.Tensor = torch.cosine_similarity(eps_BCHW, -delta_x0_BCHW, dim=1, eps=1e-12)
    return cosine.mean(dim=(1, 2))


def _values(evidence: Evidence) -> torch.Tensor:
    late = evidence.x(LATE), evidence.x0_empty(LATE), evidence.delta_x0(LATE), evidence.level(LATE)
    return G1 * noise_gap(evidence.delta_x0(), evidence.level()) + G2 * pixel_cosine(*late)


NORM_COSINE = Metric("norm_cosine", ("first", "late"), _values)
