"""Guidance that begins late (Jain et al., CVPR 2025): a copy is decided while guidance pulls at the first steps.

Static: a share of the steps is drawn by the prompt alone. Dynamic: every picture is, until the noise gap |De| along its
own trajectory has passed its first local minimum, where it has left the basin that all noise is drawn into. No
evaluation more than those of the picture. The paper's fixed switch lies at t = 500, which is half of the steps.

Shapes: B pictures.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from sharpaudit.denoisers.sampling import Step
from sharpaudit.mitigation.base import Case, Method, Mitigation, Steered, norms, plain

ALONE = 1.0
"""Guidance of the prompt alone."""


@dataclass(frozen=True)
class Delay(Method):
    """share: of the steps that are drawn by the prompt alone before guidance begins; None for the dynamic form, which
    tells of each picture whether it had a minimum, and else is never guided. Both tell the step that guidance began
    at, from 0 on; as many as there are where it never did."""

    share: float | None = None

    source = "Jain et al., CVPR 2025"

    def steer(self, case: Case) -> Steered:
        """A hand on the steps."""
        n, steered = len(case.prompts), plain(case)
        if self.share is not None:
            first = part_of(case.steps, self.share)
            return replace(steered, watch=unguided_before(first), told={"guided_from": [float(first)] * n})
        began, reached = [float(case.steps)] * n, [False] * n
        return replace(steered, watch=_until_the_minimum(began, reached), reached=reached, told={"guided_from": began})


def part_of(steps: int, share: float) -> int:
    """A share of the steps, rounded half up."""
    return math.floor(steps * share + 0.5)


def unguided_before(first: int) -> Callable[[Step], None]:
    """Steps before that number are drawn by the prompt alone."""

    def watch(step: Step) -> None:
        if step.number < first:
            step.x0 = step.guided(ALONE)

    return watch


def _until_the_minimum(began: list[float], reached: list[bool]) -> Callable[[Step], None]:
    """began, reached: of each picture, written when its guidance begins."""
    before = [math.inf] * len(began)

    def watch(step: Step) -> None:
        level = step.level
        gaps = (norms(step.x0_conditional - step.x0_unconditional) * (level.a / level.sigma)).tolist()
        for i, gap in enumerate(gaps):
            if gap > before[i] and not reached[i]:
                began[i], reached[i] = float(step.number), True
            # Of noise alone (a = 0) there is no gap, whatever the prompt.
            before[i] = gap if level.a > 0 else math.inf
        on_B = torch.tensor(reached, device=step.x0.device)
        step.x0 = torch.where(on_B[:, None, None, None], step.x0, step.guided(ALONE))

    return watch


DELAY = Mitigation("delay", Delay(0.5), "share", (0.1, 0.25, 0.5, 0.75))
DELAY_DYNAMIC = Mitigation("delay-dynamic", Delay(None))
