"""The screen: all metrics of a prompt from the fewest evaluations, at the first sampling step.

Seed k gives the same latents for every prompt, so x0_hat(x, empty) is made once per seed and run and handed in. All
differences and norms are float32 whatever the network computes in. A prompt whose prediction is not finite is
reported as such; its neighbours in the batch are unaffected.

Shapes: B prompts in a batch, N prompts, K seeds, C H W latent, D = C*H*W.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt
import torch

from sharpaudit.batching import in_batches
from sharpaudit.denoisers.base import Denoiser
from sharpaudit.errors import Status, UserError
from sharpaudit.scores.base import FIRST, Evidence, Known, KnownPlace, Metric, Place, step_length
from sharpaudit.scores.noise_gap import delta_eps, noise_gap
from sharpaudit.scores.plan import places as places_of
from sharpaudit.scores.subspace import NOTHING, Subspaces


@dataclass(frozen=True)
class ScreenConfig:
    """n_seeds: noise draws, from first_seed on. step: of finite displacements, see `step_length`."""

    n_seeds: int
    seed: int
    step: float | str
    batch_size: int
    first_seed: int = 0

    @property
    def seeds(self) -> range:
        """The numbers of the draws."""
        return range(self.first_seed, self.first_seed + self.n_seeds)

    def length(self, denoiser: Denoiser) -> float:
        """h of this model."""
        return step_length(self.step, denoiser.latent_shape)


@dataclass(frozen=True)
class PromptScores:
    """One prompt: per metric its value at each seed, NaN where the model's output was not finite."""

    seed_values: dict[str, list[float]]

    def mean(self, metric: str) -> float:
        """The metric's mean over seeds, NaN unless every seed has a finite value."""
        values = self.seed_values[metric]
        return sum(values) / len(values) if all(map(math.isfinite, values)) else math.nan


def unconditional_predictions(denoiser: Denoiser, config: ScreenConfig, places: Sequence[Place] = (FIRST,)) -> Known:
    """x0_hat(x, empty) at each place and seed, float32 on the CPU, each with shape (K, C, H, W)."""
    empty = denoiser.unconditional()
    known = {}
    with torch.no_grad():
        for place in places:
            at = [place.at(denoiser, config.seed, k, config.length(denoiser)) for k in config.seeds]
            known[place.name] = torch.cat([denoiser.predict(x[None], t, empty).x0_hat for x, t in at]).cpu()
    return known


def noise_floor(denoiser: Denoiser, config: ScreenConfig, known: Known) -> float:
    """The largest noise gap of the empty prompt, evaluated in a full batch like any prompt.

    In exact arithmetic it is zero; what it is here is the rounding of kernels that differ by batch size.
    """
    empty = denoiser.unconditional()

    def batch(rows: list[int], places: dict[str, KnownPlace]) -> list[float]:
        evidence = Evidence(denoiser, empty.select([0] * len(rows)), empty, places, NOTHING, config.length(denoiser))
        return noise_gap(evidence.delta_x0(), evidence.level()).tolist()

    gaps: list[float | Status] = []
    with torch.no_grad():
        for places in _places(denoiser, config, known, (FIRST,)):
            gaps += in_batches(partial(batch, places=places), range(config.batch_size), config.batch_size)
    return max(gap for gap in gaps if not isinstance(gap, Status))


def differences(
    denoiser: Denoiser, prompts: Sequence[str], known: Known, config: ScreenConfig, place: Place = FIRST
) -> list[npt.NDArray[np.float32] | Status]:
    """delta_eps of each prompt at the config's first seed, flattened (D,), or why there is none."""
    empty, places = denoiser.unconditional(), _places(denoiser, replace(config, n_seeds=1), known, (place,))[0]

    def batch(rows: list[str]) -> list[npt.NDArray[np.float32] | Status]:
        evidence = Evidence(denoiser, denoiser.encode(rows), empty, places, NOTHING, config.length(denoiser))
        found = delta_eps(evidence.delta_x0(place), evidence.level(place)).cpu().numpy()
        return [row if np.isfinite(row).all() else Status.NON_FINITE for row in found]

    with torch.no_grad():
        return in_batches(batch, prompts, config.batch_size)


def screen(
    denoiser: Denoiser,
    prompts: Sequence[str],
    known: Known,
    subspaces: Subspaces,
    config: ScreenConfig,
    metrics: Sequence[Metric],
) -> list[PromptScores | Status]:
    """The metrics of each prompt at each seed, or Status.OUT_OF_MEMORY. Raises UserError as `require` does.

    subspaces: of every seed of the screen where a metric learns; else none are read.
    """
    require(denoiser, metrics)
    attention = any(need.attention for metric in metrics for need in metric.needs)
    learns = any(metric.learns for metric in metrics)
    learnt = [subspaces[k] if learns else NOTHING for k in config.seeds]
    empty, places = denoiser.unconditional(), _places(denoiser, config, known, places_of(metrics))

    def batch(rows: list[str]) -> list[PromptScores]:
        conditioning = denoiser.encode(rows)
        by_seed, length = [], config.length(denoiser)
        for at, subspace in zip(places, learnt, strict=True):
            evidence = Evidence(denoiser, conditioning, empty, at, subspace, length, attention=attention)
            by_seed.append({m.name: m.values(evidence).double().cpu().tolist() for m in metrics})
        names = [metric.name for metric in metrics]
        return [PromptScores({m: [values[m][i] for values in by_seed] for m in names}) for i in range(len(rows))]

    with torch.no_grad():
        return in_batches(batch, prompts, config.batch_size)


def require(denoiser: Denoiser, metrics: Sequence[Metric]) -> None:
    """Refuse metrics that the model cannot give, and a model that shows nothing where it is screened: UserError."""
    for t in (denoiser.first_timestep(), denoiser.noisiest_timestep()):
        if denoiser.level(t).a == 0:
            raise UserError(
                f"this model is screened at its time {t:g}, where there is noise alone and every prompt scores zero; "
                "its family must name a time of more signal (first_timestep, noisiest_timestep)"
            )
    for metric in metrics:
        if any(need.attention for need in metric.needs) and not denoiser.attention_layers:
            raise UserError(
                f"scores.metrics: {metric.name} reads cross-attention maps, and this model has none; leave it out"
            )


def _places(
    denoiser: Denoiser, config: ScreenConfig, known: Known, places: Sequence[Place]
) -> list[dict[str, KnownPlace]]:
    """The places of each seed by name. known: of all seeds from 0 on."""
    found: list[dict[str, KnownPlace]] = []
    for k in config.seeds:
        here = {}
        for place in places:
            x_CHW, t = place.at(denoiser, config.seed, k, config.length(denoiser))
            x0_CHW = known[place.name][k].to(denoiser.device)
            here[place.name] = KnownPlace(x_CHW, t, denoiser.level(t), x0_CHW)
        found.append(here)
    return found
