"""What a metric is, and the evidence it is computed from.

A metric is a function of the evaluations of one batch of prompts at one seed; larger means more memorised. It names
what it needs, and `Evidence` makes each evaluation when a metric first asks for it, once for all metrics. Evaluations
happen at *places*, (x, t) that depend on the seed alone, never on the prompt: so the prediction for the empty prompt
there is made once per run and handed in.

    first       x_T at the first sampling timestep: where the screen looks
    late        x_T at the third-last of 50 sampling timesteps (Asthana and Belagiannis)
    noisiest    sigma x_T at the last training timestep (Webster)
    probe       x_T and random signs of total length h at the first sampling timestep (Hutchinson)

Shapes: B prompts, K seeds, C H W latent, L tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch

from sharpaudit.denoisers.base import SCREEN_STEPS, Conditioning, Denoiser, NoiseLevel
from sharpaudit.scores.subspace import Subspace
from sharpaudit.seeds import screen_latent, screen_signs

FIRST, LATE, NOISIEST, PROBE = "first", "late", "noisiest", "probe"
Need = Literal["first", "attention", "displaced", "tangent", "late", "noisiest", "probe"]
Known = dict[str, torch.Tensor]
"""x0_hat(x, empty) by place, float32, each with shape (K, C, H, W)."""


@dataclass(frozen=True)
class Place:
    """Where all prompts are evaluated at one seed, and the prediction for the empty prompt there."""

    x_CHW: torch.Tensor
    t: int
    level: NoiseLevel
    x0_empty_CHW: torch.Tensor


@dataclass(frozen=True)
class Metric:
    """needs: what it asks of the evidence. values: its value for each prompt of a batch, with shape (B,).

    learns: whether it reads the subspace that fit prompts teach, at the seed where it is asked for.
    digest: see plugs.py.
    """

    name: str
    needs: tuple[Need, ...]
    values: Callable[[Evidence], torch.Tensor]
    learns: bool = False
    digest: str = ""


def point(denoiser: Denoiser, place: str, seed: int, k: int, step: float) -> tuple[torch.Tensor, int]:
    """x (C, H, W) and timestep of a place at seed k. step: length of the probe, in units of the latent."""
    x_CHW = screen_latent(seed, k, denoiser.latent_shape).to(denoiser.device)
    if place == LATE:
        return x_CHW, denoiser.timesteps(SCREEN_STEPS)[-3]
    if place == NOISIEST:
        t = denoiser.noisiest_timestep()
        return denoiser.level(t).sigma * x_CHW, t
    if place == PROBE:
        signs_CHW = screen_signs(seed, k, denoiser.latent_shape).to(denoiser.device)
        x_CHW = x_CHW + signs_CHW * (step / signs_CHW.numel() ** 0.5)
    return x_CHW, denoiser.first_timestep()


class Evidence:
    """The evaluations of a batch of prompts at one seed. Everything is float32 on the model's device.

    places: by name, the first among them. step: length of finite displacements. attention: whether maps are recorded.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        conditioning: Conditioning,
        empty: Conditioning,
        places: Mapping[str, Place],
        subspace: Subspace,
        step: float,
        *,
        attention: bool = False,
    ) -> None:
        self.subspace, self.step = subspace, step
        self._denoiser, self._conditioning, self._empty = denoiser, conditioning, empty
        self._places, self._record = places, attention
        self._made: dict[str, torch.Tensor] = {}

    def level(self, place: str = FIRST) -> NoiseLevel:
        """The noise level of a place."""
        return self._places[place].level

    def x(self, place: str = FIRST) -> torch.Tensor:
        """The latents that are evaluated, the same for all prompts, with shape (B, C, H, W)."""
        x_CHW = self._places[place].x_CHW
        return x_CHW.expand(len(self._conditioning), *x_CHW.shape).contiguous()

    def x0_empty(self, place: str = FIRST) -> torch.Tensor:
        """x0_hat(x, empty), with shape (C, H, W)."""
        return self._places[place].x0_empty_CHW

    def x0(self, place: str = FIRST) -> torch.Tensor:
        """x0_hat(x, c), one evaluation, with shape (B, C, H, W)."""
        if place not in self._made:
            record, t = self._record and place == FIRST, self._places[place].t
            found = self._denoiser.predict(self.x(place), t, self._conditioning, record_attention=record)
            self._made[place] = found.x0_hat
            if found.attention is not None:
                self._made["attention"] = found.attention
        return self._made[place]

    def delta_x0(self, place: str = FIRST) -> torch.Tensor:
        """x0_hat(x, c) - x0_hat(x, empty), with shape (B, C, H, W)."""
        return self.x0(place) - self.x0_empty(place)

    def attention(self) -> torch.Tensor:
        """Cross-attention of the first evaluation, as `Prediction.attention`, with shape (B, L)."""
        self.x0()
        return self._made["attention"]

    def difference(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        """delta_x0 at any x and the first timestep: two evaluations."""
        both = Conditioning.stack([self._conditioning, self._empty.select([0] * len(self._conditioning))])
        x_2BCHW, t = torch.cat([x_BCHW, x_BCHW]), self._places[FIRST].t
        x0_c, x0_0 = self._denoiser.predict(x_2BCHW, t, both).x0_hat.chunk(2)
        return x0_c - x0_0

    def probed(self) -> tuple[torch.Tensor, torch.Tensor]:
        """A displacement (C, H, W) and the change of delta_x0 along it (B, C, H, W): one evaluation."""
        moved_CHW = self._places[PROBE].x_CHW - self._places[FIRST].x_CHW
        return moved_CHW, self.delta_x0(PROBE) - self.delta_x0()
