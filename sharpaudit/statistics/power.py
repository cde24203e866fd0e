"""What share of memorised prompts would be flagged, under a stated assumption on their scores.

Assumed: harmless prompts score normally, memorised ones SHIFT standard deviations higher on average with the same
spread, all independent of each other and of as many families as prompts. What a real screen finds depends on its real
scores; the assumption tells sizes of calibration sets apart.

With n calibration prompts a prompt has p = j / (n + 1) where its score lies between the (j - 1)-th and the j-th largest
of theirs. u_j, the probability that a harmless score exceeds the j-th largest, is the j-th smallest of n uniform
numbers; a memorised score exceeds it with probability Phi(SHIFT + Phi^-1(u_j)). So how many prompts have which p is
drawn without drawing a score.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.special import betaincinv, ndtr, ndtri

from sharpaudit.seeds import generator
from sharpaudit.statistics.conformal import TOLERANCE, rank_at

SHIFT = 4.0
DRAWS, RANKS_DRAWN = 100, 2_000_000
"""Simulated audits, and the most ranks drawn for them: of a large calibration set fewer audits tell as much."""
NODES = 1000


def exceeding(harmless: npt.NDArray[np.float64], shift: float = SHIFT) -> npt.NDArray[np.float64]:
    """The share of memorised scores above the score that a share `harmless` of harmless ones exceed."""
    return np.asarray(ndtr(shift + ndtri(harmless)), dtype=np.float64)


def power_by_p(alpha: float, n: int, shift: float = SHIFT) -> float:
    """The share of memorised prompts with p <= alpha, on average over calibration sets of n."""
    k = rank_at(alpha, n)
    if k == 0 or k > n:
        return float(k > n)
    quantiles = betaincinv(k, n + 1 - k, (np.arange(NODES) + 0.5) / NODES)
    return float(exceeding(quantiles, shift).mean())


def power_by_q(q: float, n: int, m: int, memorised: int, excess: float = 1.0, shift: float = SHIFT) -> float:
    """The share of the `memorised` of m prompts with a q-value of at most q, on average over audits.

    n: calibration prompts. excess: `fdr.penalty`.
    """
    draws = max(5, min(DRAWS, RANKS_DRAWN // (n + 1)))
    rng, found = generator(0, "power", str(n), str(m), str(memorised)), 0.0
    p = np.arange(1, n + 2) / (n + 1)
    for _ in range(draws):
        u = np.sort(rng.random(n))
        counts = [
            np.cumsum(rng.multinomial(size, np.diff(np.concatenate([[0.0], share, [1.0]]))))
            for size, share in ((m - memorised, u), (memorised, exceeding(u, shift)))
        ]
        claimed = np.flatnonzero(m * excess * p <= (q + TOLERANCE) * (counts[0] + counts[1]))
        found += counts[1][claimed[-1]] / memorised if len(claimed) else 0.0
    return found / draws
