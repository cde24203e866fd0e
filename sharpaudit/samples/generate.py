"""Generation: one picture per (prompt, seed), the same whatever else is generated.

x_T depends on (run seed, prompt_id, seed_index) alone, so samples of different prompts are independent draws.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from sharpaudit.denoisers.base import Denoiser
from sharpaudit.denoisers.batching import in_batches
from sharpaudit.denoisers.sampling import ddim
from sharpaudit.errors import Status
from sharpaudit.seeds import sample_latents

Picture = npt.NDArray[np.uint8]


def generate(
    denoiser: Denoiser,
    prompts: Sequence[str],
    keys: Sequence[tuple[str, int]],
    *,
    seed: int,
    steps: int,
    guidance: float,
    batch_size: int,
) -> list[Picture | Status]:
    """A picture (H, W, 3) per (prompt_id, seed_index) of `keys`, or why there is none.

    prompts: the prompt of each key. batch_size: latents in a forward pass; guidance makes two of each sample.
    """
    unconditional = denoiser.unconditional()

    def batch(rows: list[int]) -> list[Picture | Status]:
        x_T = sample_latents(seed, [keys[i] for i in rows], denoiser.latent_shape).to(denoiser.device)
        conditioning = denoiser.encode([prompts[i] for i in rows])
        empty = unconditional.select([0] * len(rows))
        latents_BCHW = ddim(denoiser, x_T, conditioning, empty, steps=steps, guidance=guidance)
        finite = torch.isfinite(latents_BCHW).flatten(1).all(dim=1)
        pictures_BCHW = denoiser.decode(torch.nan_to_num(latents_BCHW))
        finite &= torch.isfinite(pictures_BCHW).flatten(1).all(dim=1).to(finite.device)
        pixels = (torch.nan_to_num(pictures_BCHW) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        return [pixels[i] if ok else Status.NON_FINITE for i, ok in enumerate(finite.tolist())]

    with torch.no_grad():
        return in_batches(batch, range(len(keys)), max(1, batch_size // 2))
