"""False-discovery rates (Benjamini and Hochberg, JRSS B 1995), over prompts or over families of prompts.

q_(i) = min over j >= i of m p_(j) / j. Rejecting q <= Q keeps the expected share of false discoveries below Q,
also for conformal p-values, which share one calibration set and are positively dependent. With families there is
one hypothesis a family, p_F = min(1, |F| min p), and its members inherit q_F. m counts the hypotheses that have a p
and |F| the members that have one: NaN is a failed row, which was never tested, and stays NaN.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float64]


def q_values(p: Values) -> Values:
    """Benjamini-Hochberg q-value of each p."""
    found = np.full(len(p), np.nan)
    known = np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(p[known], kind="stable")]
    m = len(order)
    scaled = p[order] * m / np.arange(1, m + 1)
    found[order] = np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1.0)
    return found


def family_q_values(p: Values, families: npt.NDArray[Any]) -> Values:
    """q-value of each prompt's family, where `families` names it; NaN where the prompt has no p."""
    found = np.full(len(p), np.nan)
    known = np.flatnonzero(~np.isnan(p))
    # Names are compared as they are: a fixed-width string array would drop trailing NULs and merge families.
    _, member, sizes = np.unique(families[known], return_inverse=True, return_counts=True)
    smallest = np.full(len(sizes), np.inf)
    np.minimum.at(smallest, member, p[known])
    found[known] = q_values(np.minimum(1.0, sizes * smallest))[member]
    return found
