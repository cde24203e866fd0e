"""Latents to pictures, or to the reason why there is none; pictures to the size that a model has.

Shapes: B samples, C H W latent, pictures of H_px W_px pixels.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from sharpaudit.denoisers.base import Denoiser
from sharpaudit.errors import Status
from sharpaudit.images import Pixels


def resized(pictures_BCHW: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Pictures in [0, 1] in another size, within that range; those of this size as they are."""
    if pictures_BCHW.shape[2:] == (height, width):
        return pictures_BCHW
    size = (height, width)
    return functional.interpolate(pictures_BCHW, size=size, mode="bicubic", antialias=True).clamp(0, 1)


@torch.no_grad()
def decoded(denoiser: Denoiser, latents_BCHW: torch.Tensor) -> list[Pixels | Status]:
    """A picture (H_px, W_px, 3) of each latent at the end of its trajectory; NON_FINITE where it or its picture is."""
    finite_B = torch.isfinite(latents_BCHW).flatten(1).all(dim=1)
    pictures_BCHW = denoiser.decode(torch.nan_to_num(latents_BCHW))
    finite_B &= torch.isfinite(pictures_BCHW).flatten(1).all(dim=1).to(finite_B.device)
    pixels = (torch.nan_to_num(pictures_BCHW) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return [pixels[i] if ok else Status.NON_FINITE for i, ok in enumerate(finite_B.tolist())]
