"""What suppresses a finding at inference, and what it costs: methods behind one contract (base.py).

from sharpaudit.mitigation import safe_latents
latents = safe_latents("models/sd", "a prompt", n=4)
pipeline = StableDiffusionPipeline.from_pretrained("models/sd", dtype=torch.float32)
pictures = pipeline(["a prompt"] * 4, latents=latents).images
"""

from __future__ import annotations

from pathlib import Path

import torch

from sharpaudit.batching import in_batches
from sharpaudit.config import ModelConfig
from sharpaudit.denoisers.load import load_denoiser
from sharpaudit.errors import Status, UserError
from sharpaudit.mitigation.base import Case
from sharpaudit.mitigation.sail import Sail
from sharpaudit.seeds import sample_latents


def safe_latents(
    model: str | Path,
    prompt: str,
    *,
    n: int = 1,
    seed: int = 0,
    method: Sail | None = None,
    device: str = "auto",
    batch_size: int = 4,
) -> torch.Tensor:
    """Noise at which the prompt adds little sharpness, float32 on the CPU, with shape (n, C, H, W).

    model: a diffusers folder of the Stable Diffusion 1 or 2 family. What is returned is what a pipeline of that folder
    takes as `latents`, in the pipeline's own dtype. method: SAIL with its defaults where none is given, which takes all
    of its steps and has no target. The model is held for the next call, beside the pipeline's own.

    Raises UserError for what is no model, for noise that does not fit the memory, and where a method with a target does
    not come to it: then nothing is safe.
    """
    if n < 1:
        raise UserError(f"n = {n}: ask for at least one")
    config = ModelConfig.model_validate({"path": str(model), "device": device, "dtype": "float32"})
    denoiser = load_denoiser(config)
    x_T = sample_latents(seed, [(prompt, i) for i in range(n)], denoiser.latent_shape)
    case, chosen = Case(denoiser, [prompt] * n, x_T, list(range(n)), seed=seed), method or Sail()

    def some(rows: list[int]) -> list[torch.Tensor]:
        steered = chosen.steer(case.part(rows))
        for i, row in enumerate(rows):
            if steered.reached is not None and not steered.reached[i]:
                raise UserError(
                    f"picture {row}: the noise did not come to the target, {steered.told['after'][i]:.4g} for "
                    f"{chosen.aim:.4g}, in {chosen.most_steps} steps: allow more steps or tries, or a larger target"
                )
        return list(steered.x_T.cpu())

    found = in_batches(some, range(n), batch_size)
    if any(isinstance(one, Status) for one in found):
        raise UserError(f"{Status.OUT_OF_MEMORY.describe()} Give a device with more memory.")
    return torch.stack([one for one in found if not isinstance(one, Status)])


__all__ = ["safe_latents"]
