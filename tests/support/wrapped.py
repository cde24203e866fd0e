"""A denoiser around another: counts what it is asked, and fails where a test wants it to."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import torch

from sharpaudit.denoisers.base import Conditioning, NoiseLevel, Prediction
from sharpaudit.denoisers.families.gaussian.model import GaussianDenoiser, GaussianSpec, Planted


def analytic(shares: Sequence[float] = (), shape=(3, 8, 8)) -> GaussianDenoiser:
    """A model with a prompt "planted i" for each share."""
    planted = tuple(Planted(prompt=f"planted {i}", share=share) for i, share in enumerate(shares))
    return GaussianDenoiser(GaussianSpec(kind="gaussian", latent_shape=shape, planted=planted))


def exact_sharpness(model: GaussianDenoiser, prompts: Sequence[str], x: torch.Tensor, level: NoiseLevel):
    """||(H_c - H_0)(s_c - s_0)|| of each prompt, from the closed forms."""
    rows, mixture, empty = x.double().flatten(1), model.mixture(prompts), model.mixture([""] * len(prompts))
    delta_h = mixture.hessian(rows, level) - empty.hessian(rows, level)
    delta_s = mixture.score(rows, level) - empty.score(rows, level)
    return (delta_h @ delta_s[:, :, None]).norm(dim=(1, 2))


@dataclass
class Wrapped:
    """poisoned: prompts whose prediction is `poison`. most_rows: a larger batch is out of memory.

    batched_error: added to the last prediction of a batch of more than one row, as other kernels would.
    """

    inner: GaussianDenoiser
    poisoned: Collection[str] = ()
    poison: float = float("nan")
    most_rows: int = 10**9
    batched_error: float = 0.0
    rows: list[int] = field(default_factory=list)
    encoded: list[int] = field(default_factory=list)

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def encode(self, prompts):
        self.encoded.append(len(prompts))
        marks = torch.tensor([prompt in self.poisoned for prompt in prompts])
        return Conditioning(self.inner.encode(prompts).tensors | {"poisoned": marks})

    def unconditional(self, n=1):
        return self.encode([""] * n)

    def predict(self, x, t, conditioning, **options):
        if len(x) > self.most_rows:
            raise torch.OutOfMemoryError
        self.rows.append(len(x))
        tensors = dict(conditioning.tensors)
        marks = tensors.pop("poisoned")
        x0_hat = self.inner.predict(x, t, Conditioning(tensors)).x0_hat
        if self.batched_error and len(x) > 1:
            x0_hat[-1] += self.batched_error
        return Prediction(torch.where(marks[:, None, None, None], self.poison, x0_hat))
