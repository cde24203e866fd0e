"""Guidance that begins late (Jain et al., CVPR 2025): a copy is decided while guidance pulls at the first steps.

Static: the first steps are drawn by the prompt alone. Dynamic: every picture is, until the noise gap |De| along its own
trajectory has passed its first local minimum, where it has left the basin that all noise is drawn into. No evaluation
more than those of the picture.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from sharpaudit.denoisers.sampling import Step
from sharpaudit.mitigation.base import Case, Method, Steered, norms, plain

ALONE = 1.0
"""Guidance of the prompt alone."""


@dataclass(frozen=True)
class Delay(Method):
    """steps: drawn by the prompt alone before guidance begins; None for the dynamic form."""

    steps: int | None = None

    name = "delay"
    source = "Jain et al., CVPR 2025"

    def steer(self, case: Case) -> Steered:
        """A hand on the steps."""
        watch = _until_the_minimum() if self.steps is None else unguided_before(self.steps)
        return replace(plain(case), watch=watch)


def unguided_before(first: int) -> Callable[[Step], None]:
    """Steps before that number are drawn by the prompt alone."""

    def watch(step: Step) -> None:
        if step.number < first:
            step.x0 = step.guided(ALONE)

    return watch


def _until_the_minimum() -> Callable[[Step], None]:
    before: list[torch.Tensor] = []
    guided: list[torch.Tensor] = []

    def watch(step: Step) -> None:
        level = step.level
        gap_B = norms(step.x0_conditional - step.x0_unconditional) * (level.a / level.sigma)
        on_B = gap_B > before[-1] if before else torch.zeros_like(gap_B, dtype=torch.bool)
        on_B = on_B | guided[-1] if guided else on_B
        before.append(gap_B)
        guided.append(on_B)
        step.x0 = torch.where(on_B[:, None, None, None], step.x0, step.guided(ALONE))

    return watch
