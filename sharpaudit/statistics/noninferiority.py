"""Is a cheaper form of a metric no worse than the form it stands for, by more than a margin stated beforehand?

A difference that is not shown is not shown to be absent: few prompts show nothing, and a rule that refuses only what is
shown to be worse accepts everything that was hardly looked at. So these are the lower ends of one-sided intervals, to
be held against a margin: of the rank correlation of all prompts (bootstrap of families), and of the paired difference
of two true-positive rates. The latter is the lower of two: the score interval of a paired difference of shares
(Tango, Statistics in Medicine 1998), which few changes do not fool, and the bootstrap of families with the thresholds
chosen anew, which knows that they are estimated.

Shapes: N prompts, F families, R replicates.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.stats import norm, rankdata

from sharpaudit.seeds import generator
from sharpaudit.statistics.detection import Group, Statistic, difference

Values = npt.NDArray[np.float64]
REPLICATES = 1000


def rank_correlation_low(
    ours_N: Values, other_N: Values, families_N: npt.NDArray[np.str_], level: float, replicates: int = REPLICATES
) -> float:
    """Lower end of Spearman's correlation, one-sided at `level`, over resampled families."""
    _, member_N, sizes_F = np.unique(families_N, return_inverse=True, return_counts=True)
    order_N, starts_F = np.argsort(member_N, kind="stable"), np.cumsum(sizes_F) - sizes_F
    found = []
    for r in range(replicates):
        drawn = generator("rank correlation", r).integers(len(sizes_F), size=len(sizes_F))
        sizes = sizes_F[drawn]
        rows = order_N[np.arange(sizes.sum()) + np.repeat(starts_F[drawn] - (np.cumsum(sizes) - sizes), sizes)]
        found.append(rank_correlation(ours_N[rows], other_N[rows]))
    return float(np.quantile(found, 1 - level))


def rank_correlation(ours_N: Values, other_N: Values) -> float:
    """Spearman's; NaN where either does not vary."""
    ranks = [rankdata(values) - (len(values) + 1) / 2 for values in (ours_N, other_N)]
    size = float(np.sqrt(np.square(ranks[0]).sum() * np.square(ranks[1]).sum()))
    return float(ranks[0] @ ranks[1]) / size if size else float("nan")


def rate_difference_low(
    statistic: Statistic,
    ours: tuple[Group, Group],
    other: tuple[Group, Group],
    *,
    found: tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]],
    level: float,
    replicates: int = REPLICATES,
) -> float:
    """Lower end of a rate of ours less that of the other, one-sided at `level`, at one seed.

    statistic: the rate. ours, other: memorised and harmless prompts, the same in both. found: which memorised prompts
    each of the two finds, (P,), with P in the order of the groups; a family counts as lost or gained by its sum.
    """
    change_P = found[0].astype(int) - found[1].astype(int)
    _, member_P = np.unique(ours[0].families_N, return_inverse=True)
    change_F = np.sign(np.bincount(member_P, change_P))
    score = paired_low(int((change_F < 0).sum()), int((change_F > 0).sum()), len(change_F), level)
    resampled = difference(statistic, ours, other, rate=True, level=2 * level - 1, replicates=replicates)
    return min(score, resampled.low)


def paired_low(lost: int, gained: int, n: int, level: float) -> float:
    """Lower end of (gained - lost) / n among n pairs, one-sided at `level`: where the score test just rejects."""
    if not 0 <= lost + gained <= n or n < 1:
        raise ValueError(f"{lost} lost and {gained} gained of {n} pairs")
    seen = (gained - lost) / n
    line, edge = float(norm.ppf(level)), 1e-9

    def excess(delta: float) -> float:
        # The likelihood's share of lost pairs were the true difference delta: the root of a quadratic (Tango, eq. 3).
        b, c = (2 * n - gained + lost) * delta - gained - lost, -lost * delta * (1 - delta)
        p_lost = (np.sqrt(max(b * b - 8 * n * c, 0.0)) - b) / (4 * n)
        variance = n * (2 * p_lost + delta * (1 - delta))
        return float((gained - lost - n * delta) / np.sqrt(max(variance, 1e-300))) - line

    if seen <= -1 + edge or excess(-1 + edge) <= 0:
        return -1.0
    return float(brentq(excess, -1 + edge, seen - edge))
