"""A network of Stable Diffusion 1's shape with random weights: the cost of the real one, none of its content.

860 million weights, built from its configuration, so that speed can be measured where no weights can be had. Latents
are 4 x 32 x 32, for which math attention fits into a small machine's memory.

Shapes: B prompts, C H W latent, L tokens, E embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import UNet2DConditionModel

from sharpaudit.denoisers.base import AttentionRequest, Conditioning, NoiseLevel, Prediction
from sharpaudit.denoisers.families.stable_diffusion.model import Schedule
from sharpaudit.denoisers.schedule import scaled_linear_alphas_cumprod
from sharpaudit.errors import UserError
from sharpaudit.seeds import latents
from sharpaudit.tables.liveness import answered

SIDE, TOKENS, WIDTH = 32, 77, 768


class RandomUNet:
    """Stable Diffusion 1's UNet in float32 on `device`; every prompt has an embedding drawn by its text.

    changes: of the UNet's configuration, for a smaller one.
    """

    latent_shape = (4, SIDE, SIDE)
    digest = "random"
    attention_layers: tuple[str, ...] = ()

    def __init__(self, device: torch.device, **changes: Any) -> None:
        self.device = device
        self._schedule = Schedule(scaled_linear_alphas_cumprod(), "epsilon")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # noqa: TID251 - initial weights come from the global generator
            shape = {"sample_size": SIDE, "cross_attention_dim": WIDTH, "attention_head_dim": 8}
            unet = UNet2DConditionModel(**(shape | changes))
        self._unet = unet.requires_grad_(False).eval().to(device=device, memory_format=torch.channels_last)

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Standard normal embeddings, with shape (B, L, E)."""
        drawn = latents([("random embedding", prompt) for prompt in prompts], (TOKENS, WIDTH))
        return Conditioning({"prompt": drawn.to(self.device)})

    def unconditional(self, n: int = 1) -> Conditioning:
        """The embedding of the empty prompt."""
        return self.encode([""] * n)

    def network(self, x_BCHW: torch.Tensor, t: float, conditioning: Conditioning) -> torch.Tensor:
        """The UNet's output, with shape (B, C, H, W)."""
        found: torch.Tensor = self._unet(
            x_BCHW.contiguous(memory_format=torch.channels_last),
            torch.tensor(t, device=self.device),
            encoder_hidden_states=conditioning.tensors["prompt"],
            return_dict=False,
        )[0]
        return found

    def predict(
        self, x_BCHW: torch.Tensor, t: float, conditioning: Conditioning, *, record: AttentionRequest | None = None
    ) -> Prediction:
        """One evaluation per row. Raises UserError where attention is to be recorded: it is not, here."""
        if record is not None:
            record.chosen(self.attention_layers)
        output_BCHW = self.network(x_BCHW, t, conditioning)
        answered()
        return Prediction(self._schedule.x0_hat(x_BCHW, output_BCHW, t).contiguous())

    def decode(self, latents_BCHW: torch.Tensor) -> torch.Tensor:
        """There is no autoencoder. Raises UserError."""
        raise UserError("a network of random weights draws no pictures")

    def latents_of(self, pictures_BCHW: torch.Tensor) -> torch.Tensor:
        """There is no autoencoder. Raises UserError."""
        raise UserError("a network of random weights has no latents of pictures")

    def level(self, t: float) -> NoiseLevel:
        """Stable Diffusion's."""
        return self._schedule.level(t)

    def timesteps(self, n_steps: int) -> list[int]:
        """Leading spacing, offset 1."""
        return self._schedule.timesteps(n_steps)

    def first_timestep(self) -> int:
        """981."""
        return self.timesteps(50)[0]

    def noisiest_timestep(self) -> int:
        """999."""
        return len(self._schedule.alphas_cumprod) - 1
