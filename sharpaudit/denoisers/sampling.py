"""Samplers: generators of steps that a caller can watch, stop and steer, for models of every sort.

A sample walks from standard normal noise at the first of `Denoiser.timesteps` to the level of time 0; nothing is
clipped. Each step evaluates both branches once, with x0 = x0_0 + g (x0_c - x0_0) and eps = (x - a x0) / sigma, and goes
to x' at the next level (a', sigma'):

    ddim           x' = a' x0 + sigma' eps          DDIM with eta 0 (Song, Meng and Ermon, ICLR 2021, equation 12);
                                                    of a flow model, Euler's step
    dpm-solver++   the same with X0 for x0          DPM-Solver++(2M) (Lu et al., arXiv 2211.01095, algorithm 2)
                   X0 = x0 + h / (2 h_last) (x0 - x0_last), h = log(a' / sigma') - log(a / sigma)

In diffusers' words ddim is DDIMScheduler with set_alpha_to_one = False, and dpm-solver++ is DPMSolverMultistepScheduler
with solver_order = 2, solver_type = "midpoint", lower_order_final = True (the last of fewer than 15 steps is one of
ddim, as the first always is) and final_sigmas_type = "sigma_min". Both are evaluated at the same times, for Stable
Diffusion "leading" with steps_offset = 1, which diffusers' DPM solver takes as `timesteps`: what it calls leading are
the times of one step more without the last.

A step is yielded before it is taken and read again afterwards. Whoever holds it may replace `x` or `x0` for this step,
and the conditioning or guidance of the `Guided` model for the steps that follow:

    model = Guided(denoiser, conditioning, denoiser.unconditional(len(conditioning)), guidance=5.0)
    for step in DDIM.steps(model, x_T, times(denoiser, 25)):
        norms.append((step.x0_conditional - step.x0_unconditional).flatten(1).norm(dim=1))
        if step.number < 5:
            step.x0 = step.guided(0.0)

What such a generator returns, and `follow` gives, are the latents at the end. Gradients are the caller's to switch off.

Shapes: B samples, C H W latent.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import torch

from sharpaudit.denoisers.base import AttentionRequest, Conditioning, Denoiser, NoiseLevel

LOWER_ORDER_BELOW = 15
"""Steps, of which the last is a first-order one where there are fewer."""


@dataclass
class Step:
    """One evaluation of a trajectory. Tensors are float32, with shape (B, C, H, W).

    number: from 0 on. t: the model's time. x: where both branches were evaluated. x0: the guided prediction. attention:
    of the conditional branch, where the model was asked to record it.
    """

    number: int
    t: float
    level: NoiseLevel
    x: torch.Tensor
    x0_conditional: torch.Tensor
    x0_unconditional: torch.Tensor
    guidance: float
    attention: Mapping[str, torch.Tensor] = field(default_factory=dict)
    x0: torch.Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.x0 = self.guided(self.guidance)

    def guided(self, guidance: float) -> torch.Tensor:
        """The prediction at another guidance."""
        # eps = (x - a x0) / sigma is affine in x0, so guidance acts on x0 with the same weights.
        return self.x0_unconditional + guidance * (self.x0_conditional - self.x0_unconditional)

    def onward(self, level: NoiseLevel, x0: torch.Tensor) -> torch.Tensor:
        """The latents at another level on the line from the noise in x to x0."""
        return level.noised(x0, self.level.eps(self.x, x0))


Steps = Generator[Step, None, torch.Tensor]
"""Of a trajectory; returns the latents at its end."""


@dataclass
class Guided:
    """A model with what it is asked for. conditioning and unconditional have B rows each.

    record: of cross-attention at every step; its rows are by default those of the conditional branch.
    """

    denoiser: Denoiser
    conditioning: Conditioning
    unconditional: Conditioning
    guidance: float
    record: AttentionRequest | None = None

    def evaluate(self, number: int, t: float, x_BCHW: torch.Tensor) -> Step:
        """Both branches in one batch of 2 B rows."""
        both, record = Conditioning.stack([self.conditioning, self.unconditional]), self.record
        if record is not None and record.rows is None:
            record = replace(record, rows=tuple(range(len(x_BCHW))))
        found = self.denoiser.predict(torch.cat([x_BCHW, x_BCHW]), t, both, record=record)
        x0_c, x0_0 = found.x0_hat.chunk(2)
        return Step(number, t, self.denoiser.level(t), x_BCHW, x0_c, x0_0, self.guidance, found.attention)

    def level(self, t: float) -> NoiseLevel:
        """The noise level of a time."""
        return self.denoiser.level(t)


@dataclass(frozen=True)
class Solver:
    """steps: of a model, from x_T (B, C, H, W) through times that fall, the last of which is not evaluated.

    per_step: evaluations of the network, for each sample. digest: see plugs.py.
    """

    name: str
    steps: Callable[[Guided, torch.Tensor, Sequence[float]], Steps]
    per_step: int = 2
    digest: str = ""

    def evaluations(self, steps: int) -> int:
        """Of the network, for a sample of so many steps."""
        return self.per_step * steps


def times(denoiser: Denoiser, steps: int) -> list[float]:
    """The times of a trajectory of so many steps, with its end."""
    return [*denoiser.timesteps(steps), 0]


def follow(steps: Steps, watch: Callable[[Step], object] | None = None) -> torch.Tensor:
    """The latents at the end. watch: sees each step before it is taken, and may change it."""
    while True:
        try:
            step = next(steps)
        except StopIteration as end:
            latents_BCHW: torch.Tensor = end.value
            return latents_BCHW
        if watch is not None:
            watch(step)


def _ddim(model: Guided, x_BCHW: torch.Tensor, times: Sequence[float]) -> Steps:
    for i, (t, after) in enumerate(pairwise(times)):
        step = model.evaluate(i, t, x_BCHW)
        yield step
        x_BCHW = step.onward(model.level(after), step.x0)
    return x_BCHW


def _dpm_solver(model: Guided, x_BCHW: torch.Tensor, times: Sequence[float]) -> Steps:
    n_steps, last = len(times) - 1, None
    for i, (t, after) in enumerate(pairwise(times)):
        step, level = model.evaluate(i, t, x_BCHW), model.level(after)
        yield step
        x0_BCHW = step.x0
        ends = i == n_steps - 1 and (n_steps < LOWER_ORDER_BELOW or level.sigma == 0)
        if last is not None and not ends:
            now = step.level.log_ratio
            ratio = (level.log_ratio - now) / (now - last.level.log_ratio)
            x0_BCHW = x0_BCHW + 0.5 * ratio * (x0_BCHW - last.x0)
        x_BCHW = step.onward(level, x0_BCHW)
        last = step
    return x_BCHW


DDIM = Solver("ddim", _ddim)
DPM_SOLVER = Solver("dpm-solver++", _dpm_solver)
