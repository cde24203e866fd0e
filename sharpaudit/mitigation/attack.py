"""An attack on what is suppressed: another embedding in place of the prompt's, which draws the training picture again
(Finding Dori, arXiv 2507.16880).

Adam moves the whole embedding of the prompt, from where it is, towards the picture: at every step by the error of the
predicted noise, |eps - eps_hat(a x0 + sigma eps, t, c)|^2, of fresh noise at one of fifty times. It
asks for the weights, the picture and gradients, and not for the prompt's text: text that a method changes counts for
nothing then. What comes of it says whether the model still holds the picture; of a picture that it was never shown the
same attack says what an embedding alone can draw.

Shapes: B prompts with a picture each, C H W latent, L tokens, E embedding.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sharpaudit.denoisers.base import SCREEN_STEPS, Conditioning, Denoiser
from sharpaudit.mitigation.base import BACKWARD, Case
from sharpaudit.mitigation.embedding import TEXT, Embedding
from sharpaudit.seeds import generator, latents


@dataclass(frozen=True)
class Attack:
    """steps, lr: of Adam."""

    steps: int = 50
    lr: float = 0.1

    @property
    def evaluations(self) -> float:
        """Of the network, for one prompt."""
        return float(self.steps * (1 + BACKWARD))

    def refusal(self, denoiser: Denoiser) -> str | None:
        """Why this model cannot be attacked so; None where it can."""
        steerable = Embedding().refusal(denoiser) is None
        return None if steerable else "attack: this model's prompts are no embeddings of tokens"

    def embeddings(self, case: Case, pictures_BCHW: torch.Tensor) -> Conditioning:
        """What is to stand for the prompts of a case. Rows are independent of each other.

        pictures_BCHW: in [0, 1], one a prompt, of any size. Noise is drawn by seed, prompt and name. Raises
        torch.OutOfMemoryError.
        """
        denoiser = case.denoiser
        with torch.no_grad():
            prompted = denoiser.encode(case.prompts)
            x0_BCHW = denoiser.latents_of(pictures_BCHW).to(denoiser.device)
        free_BLE = prompted.tensors[TEXT].detach().clone().float().requires_grad_(True)
        optimizer = torch.optim.Adam([free_BLE], lr=self.lr)
        for step in range(self.steps):
            with torch.enable_grad():
                loss_B = self._error(case, x0_BCHW, Conditioning(prompted.tensors | {TEXT: free_BLE}), step)
            optimizer.zero_grad()
            torch.autograd.backward(loss_B.sum())
            optimizer.step()
        return Conditioning(prompted.tensors | {TEXT: free_BLE.detach().to(prompted.tensors[TEXT])})

    def _error(self, case: Case, x0_BCHW: torch.Tensor, conditioning: Conditioning, step: int) -> torch.Tensor:
        """The mean square of what the predicted noise misses, (B,)."""
        denoiser, times = case.denoiser, case.denoiser.timesteps(SCREEN_STEPS)
        t = times[int(generator(case.seed, "attack time", step).integers(len(times)))]
        keys = [
            (case.seed, "attack noise", prompt, name, step)
            for prompt, name in zip(case.prompts, case.names, strict=True)
        ]
        eps_BCHW, level = latents(keys, denoiser.latent_shape).to(x0_BCHW), denoiser.level(t)
        x_BCHW = level.noised(x0_BCHW, eps_BCHW)
        found_BCHW = level.eps(x_BCHW, denoiser.predict(x_BCHW, t, conditioning).x0_hat)
        return (found_BCHW - eps_BCHW).square().flatten(1).mean(dim=1)
