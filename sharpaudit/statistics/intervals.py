"""Confidence intervals of proportions (Clopper and Pearson, Biometrika 1934): exact, never too short.

k successes of n trials, at a level such as 0.95: low is the (1 - level)/2 quantile of Beta(k, n - k + 1), high the
(1 + level)/2 quantile of Beta(k + 1, n - k). With k = 0 or k = n one end is 0 or 1 and the other keeps its tail.
"""

from __future__ import annotations

from dataclasses import dataclass

from scipy.special import betaincinv


@dataclass(frozen=True)
class Interval:
    """low and high at a confidence level such as 0.95."""

    low: float
    high: float
    level: float


def clopper_pearson(k: int, n: int, level: float = 0.95) -> Interval:
    """Two-sided interval of the rate behind k of n; (0, 1) where nothing was tried."""
    _check(k, n)
    tail = (1 - level) / 2
    low = float(betaincinv(k, n - k + 1, tail)) if k else 0.0
    return Interval(low, upper_bound(k, n, 1 - tail), level)


def upper_bound(k: int, n: int, level: float) -> float:
    """One-sided upper Clopper-Pearson bound of the rate behind k of n; 1 where nothing was tried."""
    _check(k, n)
    return float(betaincinv(k + 1, n - k, level)) if k < n else 1.0


def _check(k: int, n: int) -> None:
    if not 0 <= k <= n:
        raise ValueError(f"{k} of {n} is no proportion")
