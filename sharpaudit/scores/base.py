"""What a metric is, and the evidence it is computed from.

A metric is a function of the evaluations of one batch of prompts at one seed; larger means more memorised. It names
what it needs, and `Evidence` makes each evaluation when a metric first asks for it, once for all metrics. Evaluations
happen at *places*, (x, t) that depend on the seed alone, never on the prompt: so the prediction for the empty prompt
there is made once per run and handed in. A metric that looks elsewhere declares a place of its own.

Shapes: B prompts, K seeds, N fit prompts, C H W latent, D = C*H*W, L tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from sharpaudit.denoisers.base import SCREEN_STEPS, AttentionRequest, Conditioning, Denoiser, NoiseLevel
from sharpaudit.scores.subspace import Subspace
from sharpaudit.seeds import screen_latent, screen_signs

Known = dict[str, torch.Tensor]
"""x0_hat(x, empty) by the name of its place, float32, each with shape (K, C, H, W)."""
Strangers = Callable[[npt.NDArray[np.float32], int, Sequence[str] | None], npt.NDArray[np.float64]]
"""Values (N,) of fit prompts as if they had not been fit prompts, from their differences (N, D), the number of
directions that are removed and their families."""


@dataclass(frozen=True)
class Place:
    """Where prompts are evaluated.

    at: gives x (C, H, W) and the time, of a model, the run's seed, the number of the draw and the length of finite
    displacements in units of the latent. by_step: whether that length moves it.
    """

    name: str
    at: Callable[[Denoiser, int, int, float], tuple[torch.Tensor, float]]
    by_step: bool = False


@dataclass(frozen=True)
class Need:
    """Evaluations that metrics share: made once for all that name it.

    evaluations: of each prompt and seed. places: where the empty prompt must be known. attention: whether the model
    must record its maps. wide: whether it takes several times the memory of a forward.
    """

    name: str
    evaluations: int
    places: tuple[Place, ...] = ()
    attention: bool = False
    wide: bool = False


@dataclass(frozen=True)
class Metric:
    """needs: what it asks of the evidence. values: its value for each prompt of a batch, with shape (B,).

    learns: whether it reads the subspace that fit prompts teach, at the seed where it is asked for. strangers: of a
    metric by which a tier of a cascade may decide who goes on: its threshold comes from what fit evaluates.
    float32_only: not shown to be as good in bfloat16 by the rule of `sharpaudit bench exactness`. digest: see plugs.py.
    """

    name: str
    needs: tuple[Need, ...]
    values: Callable[[Evidence], torch.Tensor]
    learns: bool = False
    strangers: Strangers | None = None
    float32_only: bool = False
    digest: str = ""


def _first(denoiser: Denoiser, seed: int, k: int, _step: float) -> tuple[torch.Tensor, float]:
    return _noise(denoiser, seed, k, denoiser.first_timestep())


def _late(denoiser: Denoiser, seed: int, k: int, _step: float) -> tuple[torch.Tensor, float]:
    return _noise(denoiser, seed, k, denoiser.timesteps(SCREEN_STEPS)[-3])


def _noisiest(denoiser: Denoiser, seed: int, k: int, _step: float) -> tuple[torch.Tensor, float]:
    t = denoiser.noisiest_timestep()
    return denoiser.level(t).sigma * screen_latent(seed, k, denoiser.latent_shape).to(denoiser.device), t


def _probe(denoiser: Denoiser, seed: int, k: int, step: float) -> tuple[torch.Tensor, float]:
    x_CHW, t = _first(denoiser, seed, k, step)
    signs_CHW = screen_signs(seed, k, denoiser.latent_shape).to(denoiser.device)
    return x_CHW + signs_CHW * (step / signs_CHW.numel() ** 0.5), t


def _noise(denoiser: Denoiser, seed: int, k: int, t: float) -> tuple[torch.Tensor, float]:
    """Noise of the size of x at time t. Of a variance-preserving model that is x_T itself, to the last bit."""
    return denoiser.level(t).scale * screen_latent(seed, k, denoiser.latent_shape).to(denoiser.device), t


FIRST = Place("first", _first)
"""x_T at the first sampling timestep: where the screen looks."""
LATE = Place("late", _late)
"""x_T at the third-last of 50 sampling timesteps (Asthana and Belagiannis)."""
NOISIEST = Place("noisiest", _noisiest)
"""sigma x_T at the last training timestep (Webster)."""
PROBE = Place("probe", _probe, by_step=True)
"""x_T and random signs of total length h at the first sampling timestep (Hutchinson)."""


STEP_SHARE = 0.01
"""A step of "auto" in lengths of noise, chosen on the lab: longer ones rank less as forward mode does, shorter ones
drown in the rounding of bfloat16 (`sharpaudit bench exactness`)."""


def step_length(step: float | str, latent_shape: Sequence[int]) -> float:
    """h of finite differences: `step`, or for "auto" STEP_SHARE of the length of noise, the root of its elements.

    The share was measured on latents of 1,024 elements alone. On others it is scaled by that root, as the rounding of a
    network's output grows, which longer steps outweigh.
    """
    return STEP_SHARE * math.prod(latent_shape) ** 0.5 if isinstance(step, str) else step


def at(place: Place) -> Need:
    """The evaluation of every prompt at a place."""
    return Need(place.name, 1, (place,))


ATTENTION = Need("attention", 0, attention=True)
"""Maps of the first evaluation."""
DISPLACED = Need("displaced", 2)
"""Both branches at x + h u, where u is the prompt's own direction."""
TANGENT = Need("tangent", 6, wide=True)
"""Both branches by forward-mode differentiation, each worth about three forwards."""


@dataclass(frozen=True)
class KnownPlace:
    """A place at one seed, and the prediction for the empty prompt there."""

    x_CHW: torch.Tensor
    t: float
    level: NoiseLevel
    x0_empty_CHW: torch.Tensor


class Evidence:
    """The evaluations of a batch of prompts at one seed. Everything is float32 on the model's device.

    places: by name, the first among them. step: length of finite displacements. attention: whether maps are recorded.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        conditioning: Conditioning,
        empty: Conditioning,
        places: Mapping[str, KnownPlace],
        subspace: Subspace,
        step: float,
        *,
        attention: bool = False,
    ) -> None:
        self.subspace, self.step = subspace, step
        self._denoiser, self._conditioning, self._empty = denoiser, conditioning, empty
        self._places, self._record = places, attention
        self._made: dict[str, torch.Tensor] = {}

    def level(self, place: Place = FIRST) -> NoiseLevel:
        """The noise level of a place."""
        return self._places[place.name].level

    def x(self, place: Place = FIRST) -> torch.Tensor:
        """The latents that are evaluated, the same for all prompts, with shape (B, C, H, W)."""
        x_CHW = self._places[place.name].x_CHW
        return x_CHW.expand(len(self._conditioning), *x_CHW.shape).contiguous()

    def x0_empty(self, place: Place = FIRST) -> torch.Tensor:
        """x0_hat(x, empty), with shape (C, H, W)."""
        return self._places[place.name].x0_empty_CHW

    def x0(self, place: Place = FIRST) -> torch.Tensor:
        """x0_hat(x, c), one evaluation, with shape (B, C, H, W)."""
        if place.name not in self._made:
            record, t = AttentionRequest() if self._record and place == FIRST else None, self._places[place.name].t
            found = self._denoiser.predict(self.x(place), t, self._conditioning, record=record)
            self._made[place.name] = found.x0_hat
            if record is not None:
                (self._attention,) = found.attention.values()
        return self._made[place.name]

    def delta_x0(self, place: Place = FIRST) -> torch.Tensor:
        """x0_hat(x, c) - x0_hat(x, empty), with shape (B, C, H, W)."""
        return self.x0(place) - self.x0_empty(place)

    def attention(self) -> torch.Tensor:
        """Cross-attention of the first evaluation by the default request, with shape (B, L)."""
        self.x0()
        return self._attention

    def difference(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        """delta_x0 at any x and the first timestep: two evaluations."""
        both = Conditioning.stack([self._conditioning, self._empty.select([0] * len(self._conditioning))])
        x_2BCHW, t = torch.cat([x_BCHW, x_BCHW]), self._places[FIRST.name].t
        x0_c, x0_0 = self._denoiser.predict(x_2BCHW, t, both).x0_hat.chunk(2)
        return x0_c - x0_0

    def probed(self) -> tuple[torch.Tensor, torch.Tensor]:
        """A displacement (C, H, W) and the change of delta_x0 along it (B, C, H, W): one evaluation."""
        moved_CHW = self._places[PROBE.name].x_CHW - self._places[FIRST.name].x_CHW
        return moved_CHW, self.delta_x0(PROBE) - self.delta_x0()
