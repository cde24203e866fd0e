"""Conformal p-values (Vovk, Gammerman and Shafer 2005; Bates et al., Annals of Statistics 2023).

Against n calibration scores s_1..s_n of harmless prompts, a score s (larger means more memorised) has

    p = (1 + #{i : s_i >= s}) / (n + 1).

If the audited prompt is harmless and exchangeable with the calibration prompts, P(p <= alpha) <= alpha, without any
assumption on the scores. Where each calibration prompt is a random member of a family, such a prompt is a random member
of a random family. For one given calibration set the realised false-positive rate of "p <= alpha" varies
as Beta(k, n + 1 - k) with k = floor(alpha (n + 1)); ties among the scores only make it smaller.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from scipy.special import betaincinv

from sharpaudit.statistics.intervals import Interval

TOLERANCE = 1e-12
"""Against the rounding of alpha (n + 1) and of p, so that a rank exactly at alpha is at alpha."""


def p_values(scores: npt.NDArray[np.float64], calibration: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """p of each score; NaN (a failed row) stays NaN. Raises ValueError for a NaN among the calibration scores."""
    if np.isnan(calibration).any():
        raise ValueError("a calibration score is NaN: a failed prompt calibrates nothing")
    ordered = np.sort(calibration)
    at_least = len(ordered) - np.searchsorted(ordered, scores, side="left")
    return np.where(np.isnan(scores), np.nan, (1 + at_least) / (len(ordered) + 1))


def lexicographic(tiers: npt.NDArray[np.float64], values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """One number a row in the order of (tier, value), equal where both are equal; NaN where there is no value.

    What a cascade ends with: whoever went on ranks above whoever was cleared before, whatever the scores.
    """
    ranks, scored = np.full(len(values), np.nan), np.flatnonzero(~np.isnan(values))
    order = scored[np.lexsort((values[scored], tiers[scored]))]
    rises = (np.diff(tiers[order]) > 0) | (np.diff(values[order]) > 0)
    ranks[order] = np.concatenate([np.zeros(min(1, len(order))), np.cumsum(rises)])
    return ranks


def rank_at(alpha: float, n: int) -> int:
    """k = floor(alpha (n + 1)): a prompt is flagged when fewer than k calibration scores reach its own."""
    return math.floor((alpha + TOLERANCE) * (n + 1))


def least_calibration(alpha: float) -> int:
    """The fewest calibration prompts among which a prompt can be flagged at alpha."""
    return math.ceil(1 / alpha - TOLERANCE) - 1


def at_most(values: npt.NDArray[np.float64], level: float) -> npt.NDArray[np.bool_]:
    """Whether a p- or q-value is at or below the level at which a prompt is flagged; False for NaN."""
    return values <= level + TOLERANCE


def fpr_interval(alpha: float, n: int, level: float = 0.95) -> Interval:
    """Where the false-positive rate of "p <= alpha" lies for one calibration set of n, with equal tails.

    (0, 0) where nothing can be flagged. The upper end at level 0.9 is the 95th percentile.
    """
    k = rank_at(alpha, n)
    if k == 0:
        return Interval(0.0, 0.0, level)
    if k > n:
        return Interval(1.0, 1.0, level)
    tail = (1 - level) / 2
    low, high = (float(betaincinv(k, n + 1 - k, share)) for share in (tail, 1 - tail))
    return Interval(low, high, level)


def smallest_p(n: int) -> float:
    """The smallest p that n calibration prompts can give."""
    return 1 / (n + 1)
