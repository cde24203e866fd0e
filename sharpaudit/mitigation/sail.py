"""SAIL: noise at which a prompt adds little sharpness (Jeon, Kim and No, ICML 2025, section 5 and algorithm 2).

The noise that a picture begins with is moved by Adam until the density there is not sharp. Three objectives, with
Ds = s_c - s_0 where the screen looks, d = Ds / |Ds| and h a length:

    ours        (|Ds(x + h d) - Ds(x)| |Ds| / h)^2, the squared sharpness, and x is put back on the sphere that it came
                from after each step: the norm of normal noise is what the network knows
    paper       |Ds(x + h d) - Ds(x)|^2 + alpha |x|^2, which draws x towards 0
    release     |De(x + u)| + alpha |x|, u = De / |De|, as the released code has it: no difference is taken, so it is
                the noise gap one step aside

The paper does not say h, and its thresholds belong to the release's objective. Of the release only the objective is
here: its code takes u once, at the noise begun with, follows +Ds for Stable Diffusion 2, and restarts without a bound.

What is told, and held against `aim`, is what the prompt adds: the sharpness of ours, of the others the objective
without alpha, which is of the noise alone. No target is a number of a paper: those of one model mean nothing for
another. Whoever has harmless prompts takes the median of theirs. A row that does not come there in `most_steps` keeps
the best noise that it had, and says so; no target is ever raised.

Shapes: B pictures, C H W latent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch

from sharpaudit.mitigation.base import Aimed, Case, Difference, Mitigation, Steered, along, norms, plain
from sharpaudit.mitigation.descent import Descent, descend
from sharpaudit.seeds import latents

Objective = Literal["ours", "paper", "release"]
OBJECTIVES: dict[str, Objective] = {"sail": "ours", "sail-paper": "paper", "sail-release": "release"}
MOST_STEPS, SHARES = 40, (1.0, 0.5, 0.25, 0.125)
"""Of the methods that are offered: what bounds them, and the shares of the target that their strengths are. At what
harmless prompts have a memorised picture is hardly another one; a strength that were a number of steps would stop there
as the weaker ones do."""
EVALUATIONS = 4
"""Of each objective: two differences, with the prompt and without."""


@dataclass(frozen=True)
class Sail(Aimed):
    """target: of what the prompt adds; None for none: all steps are taken. h: in units of the latent. alpha: of the
    paper and the release, .05 for Stable Diffusion 1 there and .01 for 2. tries: noises begun with, the first being the
    picture's own, until one comes to the target."""

    objective: Objective = "ours"
    lr: float = 0.05
    most_steps: int = 20
    h: float = 1.0
    alpha: float = 0.05
    tries: int = 1

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
            for i, row in enumerate(left):
                first[row] = run.first[i] if attempt == 0 else first[row]
                evaluations[row] += run.evaluations[i]
                if run.values[i] < values[row]:
                    found[row], values[row] = run.best[i], run.values[i]
                reached[row] = self.aim is not None and values[row] <= self.aim
            left = [row for row in left if not reached[row]]
            if not left or self.aim is None:
                break
        told = {"before": first, "after": values}
        stopped = None if self.aim is None else reached
        return replace(steered, x_T=found, evaluations=evaluations, reached=stopped, told=told)

    def values(self, case: Case) -> list[float]:
        """What the prompt adds at the noise that each row begins with."""
        steered = plain(case)
        difference = Difference(case, steered.conditioning, steered.unconditional)
        with torch.no_grad():
            added_B: list[float] = self._added(difference)(case.x_T.to(case.denoiser.device)).tolist()
        return added_B

    def _added(self, difference: Difference) -> Callable[[torch.Tensor], torch.Tensor]:
        """What the prompt adds, (B,), as a function of noise."""
        score = difference.level.a / difference.level.sigma**2

        def ours(x: torch.Tensor) -> torch.Tensor:
            noisy = difference.noisy(x)
            delta = difference(noisy)
            slope = norms(difference(noisy + self.h * along(delta)) - delta) / self.h
            return score**2 * norms(delta) * slope

        def paper(x: torch.Tensor) -> torch.Tensor:
            noisy = difference.noisy(x)
            delta = difference(noisy)
            return (score * norms(difference(noisy + self.h * along(delta)) - delta)).square()

        def release(x: torch.Tensor) -> torch.Tensor:
            noisy = difference.noisy(x)
            return norms(difference.eps(noisy + along(difference.eps(noisy))))

        return {"ours": ours, "paper": paper, "release": release}[self.objective]

    def _objective(self, x: torch.Tensor, added_B: torch.Tensor) -> torch.Tensor:
        """What is brought down, (B,)."""
        if self.objective == "ours":
            return added_B.square()
        return added_B + self.alpha * (norms(x).square() if self.objective == "paper" else norms(x))

    def _descend(self, case: Case, x_T: torch.Tensor) -> Descent:
        """Adam from x_T."""
        steered = plain(case)
        difference = Difference(case, steered.conditioning, steered.unconditional)
        shell = norms(x_T)
        x = x_T.clone().requires_grad_(True)

        def back_to_the_sphere() -> None:
            if self.objective == "ours":
                with torch.no_grad():
                    x.mul_((shell / norms(x))[:, None, None, None])

        return descend(
            x,
            torch.optim.Adam([x], lr=self.lr),
            lambda rows: self._added(difference.part(rows))(x[rows]),
            EVALUATIONS,
            target=self.aim,
            most_steps=self.most_steps,
            objective=lambda added_R, rows: self._objective(x[rows], added_R),
            after=back_to_the_sphere,
        )


def _fresh(case: Case, attempt: int) -> torch.Tensor:
    """Noise by prompt, name and attempt, whatever else is tried."""
    keys = [(case.seed, "sail", prompt, name, attempt) for prompt, name in zip(case.prompts, case.names, strict=True)]
    return latents(keys, case.denoiser.latent_shape)


SAIL, SAIL_PAPER, SAIL_RELEASE = (
    Mitigation(name, Sail(objective=objective, most_steps=MOST_STEPS, of_target=0.25), "of_target", SHARES)
    for name, objective in OBJECTIVES.items()
)
