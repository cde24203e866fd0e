"""A value brought down by gradient steps, row by row, to a target or for as many steps as are allowed.

Shapes: B pictures.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from sharpaudit.mitigation.base import BACKWARD


@dataclass(frozen=True)
class Descent:
    """best: of each row what had the lowest value. values, first: that value, and the one begun with. evaluations: of
    each row. reached: whether a row came to the target."""

    best: torch.Tensor
    values: list[float]
    first: list[float]
    evaluations: list[float]
    reached: list[bool]


def descend(
    moved: torch.Tensor,
    optimizer: torch.optim.Optimizer,
    value: Callable[[], torch.Tensor],
    evaluations: int,
    *,
    target: float | None,
    most_steps: int,
    objective: Callable[[torch.Tensor], torch.Tensor] = lambda value_B: value_B,
    after: Callable[[], object] = lambda: None,
) -> Descent:
    """moved: the leaf that the optimizer moves, whose rows are independent. value: (B,), at `evaluations` a row.

    objective: what is brought down, of that value. after: is called after each step. A row that came to the target is
    done: what happens to it afterwards does not count.
    """
    best, first = moved.detach().clone(), list[float]()
    values = torch.full((len(moved),), torch.inf, device=moved.device)
    spent, done = torch.zeros_like(values), torch.zeros_like(values, dtype=torch.bool)
    for step in range(most_steps + 1):
        with torch.enable_grad():
            now_B = value()
        spent += evaluations * ~done
        first = first or now_B.tolist()
        better = (now_B.detach() < values) & ~done
        best[better], values[better] = moved.detach()[better], now_B.detach()[better]
        done |= values <= (-torch.inf if target is None else target)
        if bool(done.all()) or step == most_steps:
            break
        optimizer.zero_grad()
        with torch.enable_grad():
            torch.autograd.backward(objective(now_B).sum())
        spent += BACKWARD * evaluations * ~done
        optimizer.step()
        after()
    return Descent(best, values.tolist(), first, spent.tolist(), done.tolist())
