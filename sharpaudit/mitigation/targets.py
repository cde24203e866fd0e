"""Where a method that brings a value down may stop: at what harmless prompts have by themselves."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import replace

from sharpaudit.batching import in_batches
from sharpaudit.errors import Status
from sharpaudit.mitigation.base import Aimed, Case
from sharpaudit.seeds import sample_latents


def values_of(method: Aimed, case: Case, harmless: Sequence[str], batch_size: int) -> list[float | Status]:
    """The value of each harmless prompt at noise of its own, or why there is none. case: model, solver and seed; its
    own prompts do not count."""
    x_T = sample_latents(case.seed, [(prompt, 0) for prompt in harmless], case.denoiser.latent_shape)
    of_harmless = replace(case, prompts=list(harmless), x_T=x_T, names=[0] * len(harmless), embedded=None)
    found = in_batches(lambda rows: method.values(of_harmless.part(rows)), range(len(harmless)), batch_size)
    return [one if isinstance(one, Status) or math.isfinite(one) else Status.NON_FINITE for one in found]


def middle(values: Sequence[float | Status]) -> float | None:
    """The median of those that there are; None where there are none."""
    there = [value for value in values if not isinstance(value, Status)]
    return statistics.median(there) if there else None
