"""Which network evaluations a set of metrics needs, each made once.

The unit of cost is one network evaluation of one latent. Where all prompts are evaluated at the same (x, t) the
unconditional prediction is made once for the whole run and costs a prompt nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from sharpaudit.scores.base import FIRST, LATE, NOISIEST, PROBE, Metric, Need

COST: dict[Need, int] = {
    "first": 1,
    "attention": 0,  # maps of the first evaluation
    "displaced": 2,  # both branches at x + h u, where u is the prompt's own direction
    "tangent": 6,  # both branches by forward-mode differentiation, each worth about three forwards
    "late": 1,
    "noisiest": 1,
    "probe": 1,
}
"""Evaluations per prompt and seed."""
PLACES: dict[Need, tuple[str, ...]] = {"late": (LATE,), "noisiest": (NOISIEST,), "probe": (PROBE,)}


def evaluations(metrics: Sequence[Metric]) -> dict[str, int]:
    """Evaluations per prompt and seed, each borne by the first metric that needs it."""
    found, met = {}, set[Need]()
    for metric in metrics:
        new = [need for need in metric.needs if need not in met]
        met.update(new)
        found[metric.name] = sum(COST[need] for need in new)
    return found


def places(metrics: Sequence[Metric]) -> tuple[str, ...]:
    """Where the empty prompt is evaluated; always at the first step, which every screen begins with."""
    needs = [need for metric in metrics for need in metric.needs]
    return (FIRST, *dict.fromkeys(place for need in needs for place in PLACES.get(need, ())))
