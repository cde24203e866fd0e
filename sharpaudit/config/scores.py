"""[scores]: what the screen measures."""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import Field, field_validator, model_validator

from sharpaudit.config.base import Section, identity, known
from sharpaudit.plugs import METRICS

MetricName = Annotated[str, known(METRICS)]


class TierConfig(Section):
    """A later tier of the cascade: what it measures, of whom. Its defaults are those of `sharpaudit bench cascade`."""

    above: float = Field(default=0.8, ge=0, lt=1)
    """Prompts come here whose deciding score at the tier before is at or above this quantile of the fit prompts'."""
    metrics: tuple[MetricName, ...] = Field(default=("residual_gap",), min_length=1)
    """The first decides, the others are recorded beside it."""
    n_seeds: int = Field(default=4, ge=1, le=64)
    """Noise draws of its own: those of no other tier."""


MAX_COMPONENTS, MAX_STEP = 1000, 1000
MIN_FIT = 10
"""Fit prompts without which nothing is learned of what harmless prompts change."""


class ScoresConfig(Section):
    """What the screen measures at the first step, of every prompt and then of what stands out."""

    n_seeds: int = identity(default=1, ge=1, le=64)
    """Noise draws per prompt; the score is the mean over them."""
    components: int | str = identity(default="auto")
    """Directions of harmless change that residual_gap removes: a number, never more than a fifth of the fit prompts, or
    "auto": the most of 1, 2, 5, 10, 20, 50, 100 and 200 that the fit prompts allow, fewer where more leave no less
    noise (cross-validation inside the fit set)."""
    metrics: tuple[MetricName, ...] = identity(default=("residual_gap", "noise_gap", "sharpness"), min_length=1)
    """First-step metrics. The first decides, the others are recorded beside it."""
    step: float | str = identity(default="auto")
    """h of finite differences, in units of the latent: a number, or "auto": a hundredth of the length of noise, the
    root of the number of latent elements."""
    then: tuple[TierConfig, ...] = identity(default=())
    """Later tiers. A prompt that does not reach one is cleared; p ranks by the last tier reached, then by the score."""

    @field_validator("components")
    @classmethod
    def _number_or_auto(cls, asked: int | str) -> int | str:
        if asked != "auto" and not (isinstance(asked, int) and 1 <= asked <= MAX_COMPONENTS):
            raise ValueError(f'1 to {MAX_COMPONENTS}, or "auto"')
        return asked

    @field_validator("step", mode="before")
    @classmethod
    def _length_or_auto(cls, asked: object) -> float | str:
        if asked == "auto":
            return "auto"
        try:
            length = math.nan if isinstance(asked, bool) else float(asked)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            length = math.nan
        if not 0 < length <= MAX_STEP:
            raise ValueError(f'above 0 and at most {MAX_STEP:,}, or "auto"')
        return length

    @model_validator(mode="after")
    def _tiers(self) -> ScoresConfig:
        for metrics in (self.metrics, *(tier.metrics for tier in self.then)):
            if len(set(metrics)) < len(metrics):
                raise ValueError("metrics names one twice; name each once")
        for metric in [self.metrics[0], *(tier.metrics[0] for tier in self.then)][:-1]:
            if METRICS[metric].strangers is None:
                gates = " or ".join(name for name in METRICS.ours() if METRICS[name].strangers)
                raise ValueError(
                    f"a tier before another decides by {gates}, this one by {metric}: its threshold comes from what "
                    "fit evaluates"
                )
        return self
