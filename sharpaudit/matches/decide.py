"""The bands of a match, learned from samples that should match nothing.

Band samples are generated from harmless prompts and compared with the same index. A match in band `copy` is more
similar than all of them, but for a few prompts that are set aside and named: that a fit prompt is harmless is believed,
not known, and a single memorised one would lift the line above most copies. `near` begins at a quantile of theirs; the
rest is `none`. No threshold is typed in or copied from a paper.

How often a harmless prompt has a sample in `copy` is bounded by `false_match_bound`: the chance of exceeding the
(e + 1)-th largest of n independent draws is Beta(e + 1, n - e) distributed (Wilks, Annals of Mathematical Statistics
12, 1941), so with confidence `level` it is at most the upper Clopper-Pearson bound of e in n; its mean is
`false_match_rate`. A draw is the best of all samples of a prompt, whose samples are not independent. So both are rates
of prompts with as many samples as the band prompts had, and of no others: of prompts with more samples more exceed. n
counts the band prompts that have all of theirs; another one can only raise the line.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from sharpaudit.errors import UserError
from sharpaudit.statistics.intervals import upper_bound

Band = Literal["copy", "near", "none"]


PROMPTS_PER_EXCEPTION = 50
"""Fewer band prompts than this are all believed."""


@dataclass(frozen=True)
class Bands:
    """copy: similarity > copy_above. near: similarity >= near_above. n_samples, n_prompts: behind both.

    n_exceptions: band prompts that copy_above leaves out.
    """

    copy_above: float
    near_above: float
    n_samples: int
    n_prompts: int
    n_exceptions: int


def learn_bands(
    best_similarities: Sequence[float], prompts: Sequence[str], near_quantile: float, exceptions: int = 0
) -> Bands:
    """The bands from the best similarity of each band sample; the quantile is one of the values, rounded up.

    prompts: of each sample. exceptions: how many prompts may lie above the copy line, the most similar ones; at most
    one for every 50 band prompts.
    """
    values = np.asarray(best_similarities, dtype=np.float64)
    if values.size == 0:
        raise UserError(
            "no band sample has a descriptor, so no match can be told from chance; "
            "give more fit prompts, or a larger samples.band_prompts"
        )
    if not np.isfinite(values).all():
        raise ValueError("a band sample's similarity is NaN or infinite")
    best: dict[str, float] = {}
    for prompt, value in zip(prompts, values.tolist(), strict=True):
        best[prompt] = max(value, best.get(prompt, value))
    allowed = min(exceptions, granted(len(best)))
    copy_above = copy_lines(list(best.values()))[allowed]
    near_above = min(copy_above, float(np.quantile(values, near_quantile, method="higher")))
    return Bands(copy_above, near_above, int(values.size), len(best), allowed)


def granted(n_prompts: int) -> int:
    """How many of so many band prompts may lie above the copy line."""
    return n_prompts // PROMPTS_PER_EXCEPTION


def copy_lines(best: Sequence[float]) -> list[float]:
    """Where `copy` begins at 0, 1, ... exceptions. best: of each band prompt, its highest similarity."""
    return sorted(best, reverse=True)


def band_of(similarity: float, bands: Bands) -> Band:
    """The band of a match."""
    if not math.isfinite(similarity):
        raise ValueError(f"similarity is {similarity}")
    if similarity > bands.copy_above:
        return "copy"
    return "near" if similarity >= bands.near_above else "none"


def false_match_bound(n: int, exceptions: int = 0, level: float = 0.95) -> float:
    """The largest rate at which a harmless prompt has a sample in `copy`, at confidence `level`; 1 when n is 0."""
    if n < 0 or not 0 < level < 1:
        raise ValueError(f"n = {n}, level = {level}: n is at least 0 and level lies between 0 and 1")
    return upper_bound(min(exceptions, n), n, level) if n else 1.0


def false_match_rate(n: int, exceptions: int = 0) -> float:
    """The mean of that rate over draws of n band prompts: the chance that the next one is above the line."""
    return min(1.0, (exceptions + 1) / (n + 1))
