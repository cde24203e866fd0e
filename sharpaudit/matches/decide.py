"""The bands of a match, learned from samples that should match nothing.

Band samples are generated from harmless prompts and compared with the same index. A match in band `copy` is
more similar than every one of them; `near` begins at a quantile of theirs; the rest is `none`. No threshold
is typed in or copied from a paper.

How often a harmless sample lands in `copy` is bounded by `false_match_bound`: the chance of exceeding the
largest of n independent draws is Beta(1, n) distributed, so with confidence `level` it is at most
1 - (1 - level)^(1/n) (Wilks, Annals of Mathematical Statistics 12, 1941). Samples of one prompt are not
independent; counting prompts instead of samples gives the cautious bound.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from sharpaudit.errors import UserError

Band = Literal["copy", "near", "none"]


@dataclass(frozen=True)
class Bands:
    """copy: similarity > copy_above. near: similarity >= near_above. n_samples: band samples behind both."""

    copy_above: float
    near_above: float
    n_samples: int


def learn_bands(best_similarities: Sequence[float], near_quantile: float) -> Bands:
    """The bands from the best similarity of each band sample; the quantile is one of the values, rounded up."""
    values = np.asarray(best_similarities, dtype=np.float64)
    if values.size == 0:
        raise UserError(
            "no band sample has a descriptor, so no match can be told from chance; "
            "give more fit prompts, or a larger samples.band_prompts"
        )
    if not np.isfinite(values).all():
        raise ValueError("a band sample's similarity is NaN or infinite")
    near_above = float(np.quantile(values, near_quantile, method="higher"))
    return Bands(float(values.max()), near_above, int(values.size))


def band_of(similarity: float, bands: Bands) -> Band:
    """The band of a match."""
    if not math.isfinite(similarity):
        raise ValueError(f"similarity is {similarity}")
    if similarity > bands.copy_above:
        return "copy"
    return "near" if similarity >= bands.near_above else "none"


def false_match_bound(n: int, level: float = 0.95) -> float:
    """The largest rate at which a harmless sample lands in `copy`, at confidence `level`; 1 when n is 0."""
    if n < 0 or not 0 < level < 1:
        raise ValueError(f"n = {n}, level = {level}: n is at least 0 and level lies between 0 and 1")
    return -math.expm1(math.log1p(-level) / n) if n else 1.0
