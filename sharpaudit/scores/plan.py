"""Which network evaluations a set of metrics needs, each made once.

The unit of cost is one network evaluation of one latent. x_T is common to all prompts, so the unconditional
prediction there is made once for the whole run and costs a prompt nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Metric = Literal["residual_gap", "noise_gap", "sharpness"]
METRICS: tuple[Metric, ...] = ("residual_gap", "noise_gap", "sharpness")

SHARED = 1
"""x0_hat(x_T, c): serves every metric here."""
EXTRA = {"finite_difference": 2, "jvp": 6}
"""Of sharpness: both branches at x + h u; or both by forward-mode differentiation, each worth about three forwards."""


@dataclass(frozen=True)
class Plan:
    """Evaluations per prompt and seed, by the metric that first asks for them."""

    evaluations: dict[Metric, int]

    @property
    def total(self) -> int:
        """Evaluations per prompt and seed."""
        return sum(self.evaluations.values())


def plan(metrics: tuple[Metric, ...], sharpness: Literal["finite_difference", "jvp"]) -> Plan:
    """The fewest evaluations for these metrics; the first metric bears the shared one."""
    found: dict[Metric, int] = {}
    for i, metric in enumerate(metrics):
        found[metric] = (SHARED if i == 0 else 0) + (EXTRA[sharpness] if metric == "sharpness" else 0)
    return Plan(found)
