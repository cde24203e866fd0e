"""What suppresses a finding at inference, and what it costs: methods behind one contract (base.py).

from sharpaudit.mitigation import safe_latents
latents = safe_latents("models/sd", "a prompt", n=4)
pictures = StableDiffusionPipeline.from_pretrained("models/sd")(["a prompt"] * 4, latents=latents).images
"""

from __future__ import annotations

from pathlib import Path

import torch

from sharpaudit.config import ModelConfig
from sharpaudit.denoisers.load import load_denoiser
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
) -> torch.Tensor:
    """Noise at which the prompt adds little sharpness, float32 on the CPU, with shape (n, C, H, W).

    model: a diffusers folder. What is returned is what a pipeline of that folder takes as `latents`. method: SAIL with
    its defaults where none is given, which takes all of its steps. Raises UserError for what is no model.
    """
    config = ModelConfig.model_validate({"path": str(model), "device": device, "dtype": "float32"})
    denoiser = load_denoiser(config)
    x_T = sample_latents(seed, [(prompt, i) for i in range(n)], denoiser.latent_shape)
    case = Case(denoiser, [prompt] * n, x_T, list(range(n)), seed=seed)
    return (method or Sail()).steer(case).x_T.cpu()


__all__ = ["safe_latents"]
