"""One contract for every model: a denoiser predicts the clean latent.

At level (a, sigma) a noisy latent is x = a x0 + sigma eps. Everything the audit measures derives from
x0_hat(x, c), the model's estimate of E[x0 | x, c], and its unconditional twin x0_hat(x, empty):

    delta_x0 = x0_hat(x, c) - x0_hat(x, empty)
    delta_eps = -(a / sigma) delta_x0            difference of the noise predictions
    delta_s = (a / sigma^2) delta_x0             difference of the scores grad log p(x)

so that epsilon, v and flow models share every metric.

The first step. A flow model starts from noise alone, a = 0: there delta_eps and delta_s are zero whatever the prompt,
x0_hat is E[x0 | c] whatever x, so that it has no curvature, and a network of epsilon would say nothing of x0. So the
screen looks where the model tells it to (`first_timestep`, `noisiest_timestep`), which must be times of a > 0. Where
Stable Diffusion has a / sigma = .0762 and .0683, a flow model is at t = .929 and .936 (schedule.flow_time). Towards
a = 0 delta_x0 stays what it is and only the factors a / sigma vanish: values of different first times are not
comparable. Samples start at the first of `timesteps`, from standard normal noise, and end at time 0.

Shapes: B prompts in a batch, R of its rows, C H W latent, L tokens, E embedding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch

from sharpaudit.errors import UserError, nearest, printable

SCREENED_LAYER = 3
"""The fourth cross-attention layer, as Ren et al. (ECCV 2024) read it."""
SCREEN_STEPS = 50
"""Sampling steps of which the screen looks at the first."""


Output = Literal["epsilon", "v_prediction", "velocity"]
"""What a network estimates: eps; v = a eps - sigma x0 (Salimans and Ho, ICLR 2022); u = eps - x0 (flow models)."""


@dataclass(frozen=True)
class NoiseLevel:
    """x = a x0 + sigma eps, with a^2 + sigma^2 = 1 for variance-preserving models and a + sigma = 1 for flow models.

    a = 0 is noise alone, sigma = 0 the clean latent.
    """

    a: float
    sigma: float

    @property
    def scale(self) -> float:
        """Root mean square of x where x0 has variance 1: what standard normal noise is multiplied by to stand for x."""
        return math.hypot(self.a, self.sigma)

    @property
    def log_ratio(self) -> float:
        """log(a / sigma), half of the logarithmic signal-to-noise ratio; infinite at either end."""
        if self.a == 0 or self.sigma == 0:
            return -math.inf if self.a == 0 else math.inf
        return math.log(self.a / self.sigma)

    def noised(self, x0: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
        """x of a clean latent and its noise."""
        return self.a * x0 + self.sigma * eps

    def eps(self, x: torch.Tensor, x0: torch.Tensor) -> torch.Tensor:
        """The noise in x if x0 is the clean latent; sigma > 0."""
        return (x - self.a * x0) / self.sigma

    def x0_hat(self, x: torch.Tensor, output: torch.Tensor, kind: Output) -> torch.Tensor:
        """The clean latent that a network's output at x means. Raises ValueError for epsilon of noise alone."""
        if kind == "epsilon":
            if self.a == 0:
                raise ValueError("at a = 0 the noise is x itself and says nothing of the clean latent")
            return (x - self.sigma * output) / self.a
        if kind == "v_prediction":
            return self.a * x - self.sigma * output
        return x - self.sigma * output


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
class AttentionRequest:
    """What a prediction records of cross-attention: how much each token got, the mean over heads.

    layers: numbers in the order in which the network runs through them, negative from the end, or names, as
    `Denoiser.attention_layers` lists them; by default the fourth, or the last of a network with fewer (Ren et al., ECCV
    2024). per_pixel: at each pixel of the layer instead of the mean over them. rows: of the batch, by default all.
    """

    layers: tuple[int | str, ...] | None = None
    per_pixel: bool = False
    rows: tuple[int, ...] | None = None

    def chosen(self, names: Sequence[str]) -> list[str]:
        """The layers asked for, of a model that has those named. Raises UserError."""
        if not names:
            raise UserError("cross-attention is to be recorded, and this model has none")
        return [_layer(names, layer) for layer in self.layers or (min(SCREENED_LAYER, len(names) - 1),)]


def _layer(names: Sequence[str], asked: int | str) -> str:
    if isinstance(asked, int) and -len(names) <= asked < len(names):
        return names[asked]
    if asked in names:
        return str(asked)
    hint = "" if isinstance(asked, int) else nearest(asked, list(names))
    raise UserError(f"no cross-attention layer {printable(str(asked))}: this model has {len(names)}, from 0 on{hint}")


@dataclass(frozen=True)
class Prediction:
    """x0_hat: estimate of the clean latent, float32, with shape (B, C, H, W).

    attention: what was asked for, by the layer's name, float32: with shape (R, L), whose rows sum to 1, or per pixel
    with shape (R, L, H_layer, W_layer), where the tokens of each pixel do.
    """

    x0_hat: torch.Tensor
    attention: Mapping[str, torch.Tensor] = field(default_factory=dict)


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
    and go out in float32, whatever the network computes in; the analytic model gives float64 for float64.
    """

    @property
    def latent_shape(self) -> tuple[int, ...]: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def digest(self) -> str: ...
    @property
    def attention_layers(self) -> Sequence[str]:
        """Names of the cross-attention layers that `predict` can record, in the order of the forward pass."""

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """The conditioning of the prompts, one row each."""

    def unconditional(self, n: int = 1) -> Conditioning:
        """n rows of the conditioning for "no prompt", as the model was trained with it: an empty prompt, zeros, ..."""

    def predict(
        self, x_BCHW: torch.Tensor, t: float, conditioning: Conditioning, *, record: AttentionRequest | None = None
    ) -> Prediction:
        """x0_hat at time t of the model's own (training steps or [0, 1], 0 = clean); B rows of x and of conditioning.

        record: of cross-attention; it changes no bit of x0_hat.
        """

    def decode(self, latents_BCHW: torch.Tensor) -> torch.Tensor:
        """Pictures in [0, 1], float32 on the CPU, with shape (B, 3, H_px, W_px)."""

    def latents_of(self, pictures_BCHW: torch.Tensor) -> torch.Tensor:
        """The clean latents of pictures in [0, 1], (B, 3, H_px, W_px) of any size; `decode` gives the pictures back in
        its own size, but for what the autoencoder loses. Float32, with shape (B, C, H, W)."""

    def level(self, t: float) -> NoiseLevel:
        """The noise level of time t."""

    def timesteps(self, n_steps: int) -> Sequence[float]:
        """The n_steps times at which samples are evaluated, falling; for Stable Diffusion leading, with offset 1."""

    def first_timestep(self) -> float:
        """Where the screen looks, a > 0: the first of 50 sampling steps, 981, for Stable Diffusion."""

    def noisiest_timestep(self) -> float:
        """The noisiest time that has a > 0: the last training timestep, 999, for Stable Diffusion."""
