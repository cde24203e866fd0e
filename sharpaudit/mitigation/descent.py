"""A value brought down by gradient steps, row by row, to a target or for as many steps as are allowed.

Shapes: B pictures, R of them that are not done.
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
    value: Callable[[list[int]], torch.Tensor],
    evaluations: int,
    *,
    target: float | None,
    most_steps: int,
    objective: Callable[[torch.Tensor, list[int]], torch.Tensor] = lambda value_R, _: value_R,
    after: Callable[[], object] = lambda: None,
) -> Descent:
    """moved: the leaf that the optimizer moves, whose rows are independent. value: of the rows of these numbers, (R,),
    at `evaluations` a row.

    objective: what is brought down, of that value. after: is called after each step. A row that came to the target is
    done: it is evaluated no more, and what happens to it afterwards does not count.
    """
    best, first = moved.detach().clone(), list[float]()
    values = torch.full((len(moved),), torch.inf, device=moved.device)
    spent, left = [0.0] * len(moved), list(range(len(moved)))
    for step in range(most_steps + 1):
        with torch.enable_grad():
            now_R = value(left)
        first = first or now_R.tolist()
        better = [row for row, lower in zip(left, (now_R.detach() < values[left]).tolist(), strict=True) if lower]
        best[better] = moved.detach()[better]
        values[left] = torch.fmin(values[left], now_R.detach().to(values))
        going = [row for row in left if target is None or not values[row] <= target] if step < most_steps else []
        for row in left:
            spent[row] += evaluations * (1 + BACKWARD * (row in going))
        if not going:
            break
        kept = [i for i, row in enumerate(left) if row in going]
        optimizer.zero_grad()
        with torch.enable_grad():
            torch.autograd.backward(objective(now_R[kept], going).sum())
        optimizer.step()
        after()
        left = going
    reached = [target is not None and value <= target for value in values.tolist()]
    return Descent(best, values.tolist(), first, spent, reached)
