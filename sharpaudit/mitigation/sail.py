"""SAIL: noise at which a prompt adds little sharpness (Jeon, Kim and No, ICML 2025, section 5 and algorithm 2).

The noise that a picture begins with is moved by Adam until the density there is not sharp. Three objectives, with
Ds = s_c - s_0 at the first step, d = Ds / |Ds| and h a length:

    ours        (|Ds(x + h d) - Ds(x)| |Ds| / h)^2, the squared sharpness, and x is put back on the sphere that it came
                from after each step: the norm of normal noise is what the network knows
    paper       |Ds(x + h d) - Ds(x)|^2 + alpha |x|^2, which draws x towards 0
    release     |De(x + u)| + alpha |x|, u = De / |De|, as the released code has it: no difference is taken, so it is
                the noise gap one step aside

The paper does not say h, and its thresholds belong to the release's objective. A row stops where its value is below
`target`, which is no number of a paper: targets of one model mean nothing for another. Whoever has harmless prompts
takes the median of theirs. A row that does not come there in `most_steps` keeps the best noise that
it had, and says so; no target is ever raised.

Shapes: B pictures, C H W latent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

from sharpaudit.mitigation.base import BACKWARD, Case, Difference, Method, Steered, along, norms, plain
from sharpaudit.seeds import latents

Objective = Literal["ours", "paper", "release"]


@dataclass(frozen=True)
class Sail(Method):
    """target: of the objective, ours by its root, the sharpness; None for none: all steps are taken. h: in units of the
    latent. alpha: of the paper and the release, .05 for Stable Diffusion 1 there. tries: noises begun with, the first
    being the picture's own, until one comes to the target. detached: whether d is held fixed in the gradient, which
    saves a part of the backward pass."""

    target: float | None = None
    objective: Objective = "ours"
    lr: float = 0.05
    most_steps: int = 20
    h: float = 1.0
    alpha: float = 0.05
    tries: int = 1
    detached: bool = False

    name = "sail"
    source = "Jeon, Kim and No, ICML 2025"

    def steer(self, case: Case) -> Steered:
        """Other noise."""
        steered = plain(case)
        left = list(range(len(case.prompts)))
        found = steered.x_T.to(case.denoiser.device)
        reached, values, first = ([False] * len(left), [float("inf")] * len(left), [0.0] * len(left))
        evaluations = [0.0] * len(left)
        for attempt in range(self.tries):
            x_T = found[left] if attempt == 0 else _fresh(case.part(left), attempt).to(found)
            run = self._descend(case.part(left), x_T)
            for row, best, value, begun in zip(left, run.x, run.values, run.first, strict=True):
                first[row] = begun if attempt == 0 else first[row]
                if value < values[row]:
                    found[row], values[row] = best, value
            for i, row in enumerate(left):
                evaluations[row] += run.evaluations[i]
                reached[row] = self.target is not None and values[row] <= self.target
            left = [row for row in left if not reached[row]]
            if not left or self.target is None:
                break
        told = {"before": first, "after": values}
        return replace(
            steered,
            x_T=found,
            evaluations=evaluations,
            reached=None if self.target is None else reached,
            told=told,
        )

    def values(self, case: Case) -> list[float]:
        """The objective of each row where it begins."""
        steered = plain(case)
        difference = Difference(case, steered.conditioning, steered.unconditional)
        with torch.no_grad():
            return [float(v) for v in self._value(difference)(case.x_T.to(case.denoiser.device))]

    def _value(self, difference: Difference) -> Callable[[torch.Tensor], torch.Tensor]:
        """The objective (B,) as a function of x; of ours the sharpness itself."""
        score = difference.level.a / difference.level.sigma**2

        def ours(x: torch.Tensor) -> torch.Tensor:
            delta = difference(x)
            held = delta.detach() if self.detached else delta
            slope = norms(difference(x + self.h * along(held)) - delta) / self.h
            return score**2 * norms(delta) * slope

        def paper(x: torch.Tensor) -> torch.Tensor:
            delta = difference(x)
            held = delta.detach() if self.detached else delta
            moved = difference(x + self.h * along(held)) - delta
            return (score * norms(moved)).square() + self.alpha * norms(x).square()

        def release(x: torch.Tensor) -> torch.Tensor:
            eps = difference.eps(x)
            held = eps.detach() if self.detached else eps
            return norms(difference.eps(x + along(held))) + self.alpha * norms(x)

        return {"ours": ours, "paper": paper, "release": release}[self.objective]

    def _descend(self, case: Case, x_T: torch.Tensor) -> _Run:
        """Adam from x_T; rows that are below the target stay where they are."""
        steered = plain(case)
        difference = Difference(case, steered.conditioning, steered.unconditional)
        value, shell = self._value(difference), norms(x_T)
        x = x_T.clone().requires_grad_(True)
        optimizer = torch.optim.Adam([x], lr=self.lr)
        best, values = x_T.clone(), torch.full_like(shell, torch.inf)
        first: torch.Tensor | None = None
        spent, done = torch.zeros_like(shell), torch.zeros_like(shell, dtype=torch.bool)
        for step in range(self.most_steps + 1):
            asked = difference.evaluations
            with torch.enable_grad():
                now = value(x)
            spent += (difference.evaluations - asked) * ~done
            first = now.detach() if first is None else first
            better = (now.detach() < values) & ~done
            best[better], values[better] = x.detach()[better], now.detach()[better]
            done |= values <= (-torch.inf if self.target is None else self.target)
            if bool(done.all()) or step == self.most_steps:
                break
            optimizer.zero_grad()
            with torch.enable_grad():
                torch.autograd.backward((now.square() if self.objective == "ours" else now).sum())
            spent += BACKWARD * (difference.evaluations - asked) * ~done
            optimizer.step()
            with torch.no_grad():
                if self.objective == "ours":
                    x.mul_((shell / norms(x))[:, None, None, None])
        return _Run(best, values.tolist(), (values if first is None else first).tolist(), spent.tolist())


@dataclass(frozen=True)
class _Run:
    """Of each row the best noise, its value, that of the noise begun with, and evaluations."""

    x: torch.Tensor
    values: Sequence[float]
    first: Sequence[float]
    evaluations: Sequence[float]


def _fresh(case: Case, attempt: int) -> torch.Tensor:
    """Noise by prompt, name and attempt, whatever else is tried."""
    keys = [(case.seed, "sail", prompt, name, attempt) for prompt, name in zip(case.prompts, case.names, strict=True)]
    return latents(keys, case.denoiser.latent_shape)
