"""One deterministic sampler for every model: DDIM with eta 0 (Song, Meng and Ermon, ICLR 2021, equation 12).

With the guided noise eps = eps_0 + g (eps_c - eps_0) and x0 = (x - sigma eps) / a, a step from level (a, sigma)
to (a', sigma') is x' = a' x0 + sigma' eps. The last step goes to the level of timestep 0, as Stable Diffusion's
scheduler does (set_alpha_to_one = False); nothing is clipped.

Shapes: B samples, C H W latent.
"""

from __future__ import annotations

import torch

from sharpaudit.denoisers.base import Conditioning, Denoiser


def ddim(
    denoiser: Denoiser,
    x_BCHW: torch.Tensor,
    conditioning: Conditioning,
    unconditional: Conditioning,
    *,
    steps: int,
    guidance: float,
) -> torch.Tensor:
    """Latents at the end of the trajectory that starts at x_T = `x_BCHW`, float32, with shape (B, C, H, W).

    conditioning and unconditional have B rows each. Costs 2 * steps evaluations per sample.
    """
    both = Conditioning.stack([conditioning, unconditional])
    timesteps = denoiser.timesteps(steps)
    for t, t_next in zip(timesteps, [*timesteps[1:], 0], strict=True):
        now, after = denoiser.level(t), denoiser.level(t_next)
        x0_c, x0_0 = denoiser.predict(torch.cat([x_BCHW, x_BCHW]), t, both).x0_hat.chunk(2)
        # eps = (x - a x0) / sigma is affine in x0, so guidance acts on x0 with the same weights.
        x0 = x0_0 + guidance * (x0_c - x0_0)
        eps = (x_BCHW - now.a * x0) / now.sigma
        x_BCHW = after.a * x0 + after.sigma * eps
    return x_BCHW
