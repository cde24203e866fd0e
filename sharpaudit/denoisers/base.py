"""One contract for every model: a denoiser predicts the clean latent.

At level (a, sigma) a noisy latent is x = a x0 + sigma eps. Everything the audit measures derives from
x0_hat(x, c), the model's estimate of E[x0 | x, c], and its unconditional twin x0_hat(x, empty):

    delta_x0 = x0_hat(x, c) - x0_hat(x, empty)
    delta_eps = -(a / sigma) delta_x0            difference of the noise predictions
    delta_s = (a / sigma^2) delta_x0             difference of the scores grad log p(x)

so that epsilon, v and flow models share every metric.

Shapes: B prompts in a batch, C H W latent, L tokens, E embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

SCREEN_STEPS = 50
"""Sampling steps of which the screen looks at the first."""


@dataclass(frozen=True)
class NoiseLevel:
    """x = a x0 + sigma eps, with a^2 + sigma^2 = 1 for variance-preserving models."""

    a: float
    sigma: float


@dataclass(frozen=True)
class Conditioning:
    """A batch of encoded prompts: tensors whose first axis is the prompt, on the model's device."""

    tensors: dict[str, torch.Tensor]

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def select(self, rows: Sequence[int] | torch.Tensor) -> Conditioning:
        """The conditioning of the given rows, repeated where an index repeats."""
        return Conditioning({name: t[torch.as_tensor(rows, device=t.device)] for name, t in self.tensors.items()})

    @staticmethod
    def stack(parts: Sequence[Conditioning]) -> Conditioning:
        """The conditionings one after another."""
        return Conditioning({name: torch.cat([p.tensors[name] for p in parts]) for name in parts[0].tensors})


@dataclass(frozen=True)
class Prediction:
    """x0_hat: estimate of the clean latent, float32, with shape (B, C, H, W).

    attention: where it was asked for, how much cross-attention each token got, float32, with shape (B, L): the mean
    over heads and pixels of the network's fourth cross-attention layer, or its last if it has fewer. Rows sum to 1.
    """

    x0_hat: torch.Tensor
    attention: torch.Tensor | None = None


@dataclass(frozen=True)
class Tokens:
    """What the text encoder sees of a prompt.

    n_tokens: length before truncation, special tokens included. truncated: whether it was cut.
    model_input_id: hash of what is left, equal for two prompts that the model cannot tell apart.
    """

    n_tokens: int
    truncated: bool
    model_input_id: str


class Tokenizer(Protocol):
    """The part of a model that ingest needs: cheap to load, no weights."""

    digest: str

    def tokens(self, prompts: Sequence[str]) -> list[Tokens]: ...


class Denoiser(Protocol):
    """A model behind the contract; see the module's docstring.

    `predict` is differentiable in x and in the conditioning: the caller owns `no_grad`. Latents come in
    and go out in float32, whatever the network computes in.
    """

    @property
    def latent_shape(self) -> tuple[int, ...]: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def digest(self) -> str: ...
    @property
    def records_attention(self) -> bool:
        """Whether `predict` can give attention."""

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """The conditioning of the prompts, one row each."""

    def unconditional(self, n: int = 1) -> Conditioning:
        """n rows of the conditioning for "no prompt", as the model was trained with it: an empty prompt, zeros, ..."""

    def predict(
        self, x_BCHW: torch.Tensor, t: int, conditioning: Conditioning, *, record_attention: bool = False
    ) -> Prediction:
        """x0_hat at timestep t (in training steps, 0 = clean); B rows of latents and of conditioning.

        record_attention changes no bit of x0_hat.
        """

    def decode(self, latents_BCHW: torch.Tensor) -> torch.Tensor:
        """Pictures in [0, 1], float32 on the CPU, with shape (B, 3, H_px, W_px)."""

    def level(self, t: int) -> NoiseLevel:
        """The noise level of timestep t."""

    def timesteps(self, n_steps: int) -> list[int]:
        """The n_steps sampling timesteps in falling order (leading spacing, offset 1, as Stable Diffusion)."""

    def first_timestep(self) -> int:
        """Where the screen looks: the first of 50 sampling steps, 981 for Stable Diffusion."""

    def noisiest_timestep(self) -> int:
        """The last training timestep, 999 for Stable Diffusion."""
