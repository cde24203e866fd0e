"""Generation: one picture per prompt and initial latent, the same whatever else is generated.

An audit's x_T depends on (run seed, prompt_id, seed_index) alone, so samples of different prompts are independent
draws. Others can be handed in: those of the screen, to show that a copy arises from just that noise, or changed ones.

Shapes: N samples, C H W latent, pictures of H_px W_px pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from sharpaudit.batching import in_batches
from sharpaudit.config import AuditConfig
from sharpaudit.denoisers.base import Denoiser
from sharpaudit.denoisers.decoding import decoded
from sharpaudit.denoisers.sampling import DDIM, Guided, Solver, Step, follow, times
from sharpaudit.errors import Status
from sharpaudit.images import Pixels
from sharpaudit.plugs import SOLVERS
from sharpaudit.seeds import sample_latents


@dataclass(frozen=True)
class Generator:
    """A model as samples are drawn from it.

    batch_size: latents in a forward pass; guidance makes two of each sample. watch: sees every step of every batch
    before it is taken, and may change it (denoisers/sampling.py).
    """

    denoiser: Denoiser
    seed: int
    steps: int
    guidance: float
    batch_size: int
    solver: Solver = DDIM
    watch: Callable[[Step], object] | None = None

    @staticmethod
    def of(config: AuditConfig, denoiser: Denoiser) -> Generator:
        """As a configuration asks for it."""
        asked = config.samples
        return Generator(
            denoiser, config.seed, asked.steps, asked.guidance, config.model.batch_size, SOLVERS[asked.solver]
        )

    @property
    def evaluations(self) -> int:
        """Of the network, for each sample."""
        return self.solver.evaluations(self.steps)

    def pictures(
        self, prompts: Sequence[str], initial: Sequence[tuple[str, int]] | torch.Tensor
    ) -> list[Pixels | Status]:
        """A picture (H_px, W_px, 3) for each prompt, or why there is none.

        initial: prompt_id and seed_index of each, which name its x_T; or x_T itself, float32, with shape (N, C, H, W).
        """

        def batch(rows: list[int]) -> list[Pixels | Status]:
            if isinstance(initial, torch.Tensor):
                x_T = initial[rows]
            else:
                x_T = sample_latents(self.seed, [initial[i] for i in rows], self.denoiser.latent_shape)
            return self._drawn([prompts[i] for i in rows], x_T.to(self.denoiser.device))

        with torch.no_grad():
            return in_batches(batch, range(len(prompts)), max(1, self.batch_size // 2))

    def _drawn(self, prompts: list[str], x_T: torch.Tensor) -> list[Pixels | Status]:
        conditioning, empty = self.denoiser.encode(prompts), self.denoiser.unconditional(len(prompts))
        model = Guided(self.denoiser, conditioning, empty, self.guidance)
        latents_BCHW = follow(self.solver.steps(model, x_T, times(self.denoiser, self.steps)), self.watch)
        return decoded(self.denoiser, latents_BCHW)
