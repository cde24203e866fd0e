"""Every first-step metric by its name."""

from __future__ import annotations

from collections.abc import Sequence

from sharpaudit.errors import UserError, nearest, printable
from sharpaudit.scores.attention_entropy import ATTENTION_ENTROPY
from sharpaudit.scores.base import Metric
from sharpaudit.scores.hessian_trace import HESSIAN_TRACE
from sharpaudit.scores.mean_free_gap import MEAN_FREE_GAP
from sharpaudit.scores.noise_gap import NOISE_GAP
from sharpaudit.scores.norm_cosine import NORM_COSINE
from sharpaudit.scores.one_step import ONE_STEP
from sharpaudit.scores.residual_gap import RESIDUAL_GAP
from sharpaudit.scores.score_norm import SCORE_NORM
from sharpaudit.scores.sharpness import SHARPNESS, SHARPNESS_JVP

METRICS = {
    metric.name: metric
    for metric in (
        RESIDUAL_GAP,
        NOISE_GAP,
        SHARPNESS,
        SHARPNESS_JVP,
        MEAN_FREE_GAP,
        ATTENTION_ENTROPY,
        NORM_COSINE,
        ONE_STEP,
        SCORE_NORM,
        HESSIAN_TRACE,
    )
}


def named(names: Sequence[str]) -> tuple[Metric, ...]:
    """The metrics of these names, in their order. Raises UserError for an unknown one."""
    for name in names:
        if name not in METRICS:
            hint = nearest(name, list(METRICS)) or f"; known are {', '.join(METRICS)}"
            raise UserError(f'no metric is called "{printable(name)}"{hint}')
    return tuple(METRICS[name] for name in names)
