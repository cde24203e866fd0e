"""False-discovery rates (Benjamini and Hochberg, JRSS B 1995), over prompts or over families of prompts.

q_(i) = min over j >= i of m p_(j) / j. Rejecting q <= Q keeps the expected share of false discoveries below Q,
also for conformal p-values, which share one calibration set and are positively dependent where the harmless prompts are
independent (Bates et al., Annals of Statistics 2023). Under any dependence m sum_{i <= m} 1/i takes the place of m
(Benjamini and Yekutieli, Annals of Statistics 2001). With families there is one hypothesis a family, whose members
inherit its q: "no prompt of the family is memorised". With p_(1) <= ... <= p_(f) of its f members

    p_F = min over k of f p_(k) / k   (Simes, Biometrika 1986),

which holds for independent and for positively dependent members (Sarkar, Annals of Statistics 1998), such as
near-duplicates; under any dependence it costs a factor sum_{i <= f} 1/i (Hommel, Biometrical Journal 1983). So
f members of one p have that p, where f times the smallest would put a family of twenty out of the reach of 999
calibration prompts. m counts the hypotheses that have a p and f the members that have one: NaN is a failed row, which
was never tested, and stays NaN.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from sharpaudit.statistics.conformal import TOLERANCE

Values = npt.NDArray[np.float64]
HALF = 0.5
"""Above it p of true null hypotheses stand nearly alone."""
PREVALENCES = (0.01, 0.001, 0.0001)
"""Shares of memorised prompts for which people are told the size of the calibration set that finds them."""
Procedure = Literal["benjamini-hochberg", "benjamini-yekutieli"]


def q_values(p: Values, procedure: Procedure = "benjamini-hochberg") -> Values:
    """q-value of each p."""
    found = np.full(len(p), np.nan)
    known = np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(p[known], kind="stable")]
    m = len(order)
    scaled = p[order] * m * penalty(m, procedure) / np.arange(1, m + 1)
    found[order] = np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1.0)
    return found


def penalty(m: int, procedure: Procedure) -> float:
    """The factor that m hypotheses cost more than by Benjamini and Hochberg: 1, or the m-th harmonic number."""
    return 1.0 if procedure == "benjamini-hochberg" else float((1 / np.arange(1, m + 1)).sum())


def family_p_values(
    p: Values, families: npt.NDArray[Any], procedure: Procedure = "benjamini-hochberg"
) -> tuple[Values, npt.NDArray[np.intp]]:
    """p of each family of those with a p, with shape (F,), and the family of each of their prompts."""
    known = p[~np.isnan(p)]
    # Names are compared as they are: a fixed-width string array would drop trailing NULs and merge families.
    _, member, sizes = np.unique(families[~np.isnan(p)], return_inverse=True, return_counts=True)
    order = np.lexsort((known, member))
    place = np.arange(len(known)) - np.repeat(np.cumsum(sizes) - sizes, sizes) + 1
    smallest = np.full(len(sizes), np.inf)
    np.minimum.at(smallest, member[order], known[order] / place)
    kinds, kind = np.unique(sizes, return_inverse=True)
    factors = np.array([size * penalty(size, procedure) for size in kinds.tolist()])[kind]
    return np.minimum(1.0, factors * smallest), member


def family_q_values(p: Values, families: npt.NDArray[Any], procedure: Procedure = "benjamini-hochberg") -> Values:
    """q-value of each prompt's family, where `families` names it; NaN where the prompt has no p."""
    found = np.full(len(p), np.nan)
    of_families, member = family_p_values(p, families, procedure)
    found[~np.isnan(p)] = q_values(of_families, procedure)[member]
    return found


def harmless_share(p: Values) -> float:
    """Storey's estimate of the share of true null hypotheses, from the p above HALF; 1 where there is no p.

    min(1, (1 + #{p > .5}) / (.5 m)) (Storey, Taylor and Siegmund, JRSS B 2004). Reported; no flag uses it.
    """
    known = p[~np.isnan(p)]
    return share_of_harmless(int((known > HALF).sum()), len(known))


def share_of_harmless(above: int, m: int) -> float:
    """The same, of m hypotheses of which so many have a p above HALF."""
    return min(1.0, (1 + above) / (m * (1 - HALF))) if m else 1.0


def calibration_needed(q: float, prevalence: float, excess: float = 1.0) -> int:
    """Calibration prompts without which a share `prevalence` of all hypotheses cannot be found at rate q.

    The smallest p is 1 / (n + 1), so finding R of m needs n + 1 >= m / (q R). excess: `penalty`.
    """
    return math.ceil(excess / (q * prevalence) - TOLERANCE) - 1
