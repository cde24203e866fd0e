"""The screen: all metrics of a prompt from the fewest evaluations, at the first sampling step.

Seed k gives the same x_T for every prompt, so x0_hat(x_T, empty) is made once per seed and run and handed in. All
differences and norms are float32 whatever the network computes in. A prompt whose prediction is not finite is
reported as such; its neighbours in the batch are unaffected.

Shapes: B prompts in a batch, N prompts, K seeds, C H W latent, D = C*H*W.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from sharpaudit.denoisers.base import Conditioning, Denoiser
from sharpaudit.denoisers.batching import in_batches
from sharpaudit.errors import Status
from sharpaudit.scores.noise_gap import delta_eps, noise_gap
from sharpaudit.scores.plan import METRICS, Metric, plan
from sharpaudit.scores.residual_gap import Subspace, residual_gap
from sharpaudit.scores.sharpness import exact, finite_difference
from sharpaudit.seeds import screen_latents


@dataclass(frozen=True)
class ScreenConfig:
    """n_seeds: noise draws. sharpness, step: how sharpness is computed, see scores/sharpness.py."""

    n_seeds: int
    seed: int
    sharpness: Literal["finite_difference", "jvp"]
    step: float
    batch_size: int


@dataclass(frozen=True)
class PromptScores:
    """One prompt: per metric its value at each seed, NaN where the model's output was not finite."""

    seed_values: dict[Metric, list[float]]


def unconditional_predictions(denoiser: Denoiser, seed: int, n_seeds: int) -> torch.Tensor:
    """x0_hat(x_T, empty) of each seed, float32 on the CPU, with shape (K, C, H, W)."""
    x_KCHW = screen_latents(seed, n_seeds, denoiser.latent_shape).to(denoiser.device)
    empty = denoiser.encode([""])
    with torch.no_grad():
        rows = [denoiser.predict(x[None], denoiser.first_timestep(), empty).x0_hat for x in x_KCHW]
    return torch.cat(rows).cpu()


def noise_floor(denoiser: Denoiser, seed: int, unconditional_KCHW: torch.Tensor, batch_size: int) -> float:
    """The largest noise gap of the empty prompt, evaluated in a full batch like any prompt.

    In exact arithmetic it is zero; what it is here is the rounding of kernels that differ by batch size.
    """
    t = denoiser.first_timestep()
    x_KCHW = screen_latents(seed, len(unconditional_KCHW), denoiser.latent_shape).to(denoiser.device)
    empty = denoiser.encode([""])

    def batch(rows: list[int], x_CHW: torch.Tensor, known_CHW: torch.Tensor) -> list[float]:
        x_BCHW = x_CHW.expand(len(rows), *x_CHW.shape).contiguous()
        delta = denoiser.predict(x_BCHW, t, empty.select([0] * len(rows))).x0_hat - known_CHW
        return noise_gap(delta, denoiser.level(t)).tolist()

    gaps: list[float | Status] = []
    with torch.no_grad():
        for x, known in zip(x_KCHW, unconditional_KCHW.to(denoiser.device), strict=True):
            gaps += in_batches(partial(batch, x_CHW=x, known_CHW=known), range(batch_size), batch_size)
    return max(gap for gap in gaps if not isinstance(gap, Status))


def differences(
    denoiser: Denoiser, prompts: Sequence[str], seed: int, unconditional_KCHW: torch.Tensor, batch_size: int
) -> list[npt.NDArray[np.float32] | Status]:
    """delta_eps of each prompt at seed 0, flattened (D,), or why there is none."""
    t = denoiser.first_timestep()
    x_CHW = screen_latents(seed, 1, denoiser.latent_shape)[0].to(denoiser.device)
    known = unconditional_KCHW[0].to(denoiser.device)

    def batch(rows: list[str]) -> list[npt.NDArray[np.float32] | Status]:
        x_BCHW = x_CHW.expand(len(rows), *x_CHW.shape).contiguous()
        delta = denoiser.predict(x_BCHW, t, denoiser.encode(rows)).x0_hat - known
        found = delta_eps(delta, denoiser.level(t)).cpu().numpy()
        return [row if np.isfinite(row).all() else Status.NON_FINITE for row in found]

    with torch.no_grad():
        return in_batches(batch, prompts, batch_size)


def screen(
    denoiser: Denoiser,
    prompts: Sequence[str],
    unconditional_KCHW: torch.Tensor,
    subspace: Subspace,
    config: ScreenConfig,
    metrics: tuple[Metric, ...] = METRICS,
) -> list[PromptScores | Status]:
    """The metrics of each prompt at each seed, or Status.OUT_OF_MEMORY."""
    x_KCHW = screen_latents(config.seed, config.n_seeds, denoiser.latent_shape).to(denoiser.device)
    known_KCHW = unconditional_KCHW.to(denoiser.device)
    empty = denoiser.encode([""])

    def batch(rows: list[str]) -> list[PromptScores]:
        conditioning = denoiser.encode(rows)
        by_seed = [
            _measure(denoiser, x, known, conditioning, empty, subspace, config, metrics)
            for x, known in zip(x_KCHW, known_KCHW, strict=True)
        ]
        return [PromptScores({m: [values[m][i] for values in by_seed] for m in metrics}) for i in range(len(rows))]

    with torch.no_grad():
        return in_batches(batch, prompts, config.batch_size)


def evaluations(config: ScreenConfig, metrics: tuple[Metric, ...] = METRICS) -> dict[Metric, int]:
    """Network evaluations per prompt over all seeds, by the metric that they are made for."""
    return {m: n * config.n_seeds for m, n in plan(metrics, config.sharpness).evaluations.items()}


def _measure(
    denoiser: Denoiser,
    x_CHW: torch.Tensor,
    known_CHW: torch.Tensor,
    conditioning: Conditioning,
    empty: Conditioning,
    subspace: Subspace,
    config: ScreenConfig,
    metrics: tuple[Metric, ...],
) -> dict[Metric, list[float]]:
    """Each metric of a batch of prompts at one seed."""
    t, n = denoiser.first_timestep(), len(conditioning)
    level = denoiser.level(t)
    x_BCHW = x_CHW.expand(n, *x_CHW.shape).contiguous()
    delta_BCHW = denoiser.predict(x_BCHW, t, conditioning).x0_hat - known_CHW
    found: dict[Metric, torch.Tensor] = {}
    if "residual_gap" in metrics:
        found["residual_gap"] = residual_gap(delta_eps(delta_BCHW, level), subspace)
    if "noise_gap" in metrics:
        found["noise_gap"] = noise_gap(delta_BCHW, level)
    if "sharpness" in metrics:
        both = Conditioning.stack([conditioning, empty.select([0] * n)])

        def difference(x: torch.Tensor) -> torch.Tensor:
            x0_c, x0_0 = denoiser.predict(torch.cat([x, x]), t, both).x0_hat.chunk(2)
            return x0_c - x0_0

        if config.sharpness == "jvp":
            found["sharpness"] = exact(difference, x_BCHW, delta_BCHW, level)
        else:
            found["sharpness"] = finite_difference(difference, x_BCHW, delta_BCHW, level, config.step)
    return {metric: values.double().cpu().tolist() for metric, values in found.items()}
