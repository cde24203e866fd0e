"""Which network evaluations a set of metrics needs, each made once.

The unit of cost is one network evaluation of one latent. Where all prompts are evaluated at the same (x, t) the
unconditional prediction is made once for the whole run and costs a prompt nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from sharpaudit.errors import UserError
from sharpaudit.scores.base import FIRST, Metric, Need, Place


def evaluations(metrics: Sequence[Metric]) -> dict[str, int]:
    """Evaluations per prompt and seed, each borne by the first metric that needs it."""
    found, met = {}, set[Need]()
    for metric in metrics:
        new = [need for need in metric.needs if need not in met]
        met.update(new)
        found[metric.name] = sum(need.evaluations for need in new)
    return found


def places(metrics: Sequence[Metric]) -> tuple[Place, ...]:
    """Where the empty prompt is evaluated; always at the first step, which every screen begins with.

    Raises UserError where two metrics call two places by one name.
    """
    found = dict.fromkeys([FIRST, *(place for metric in metrics for need in metric.needs for place in need.places)])
    for name, n in Counter(place.name for place in found).items():
        if n > 1:
            raise UserError(f'scores.metrics: {n} different places are called "{name}"; leave out one of the metrics')
    return tuple(found)
