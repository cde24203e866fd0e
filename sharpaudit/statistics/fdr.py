"""False-discovery rates (Benjamini and Hochberg, JRSS B 1995), over prompts or over families of prompts.

q_(i) = min over j >= i of m p_(j) / j. Rejecting q <= Q keeps the expected share of false discoveries below Q. With
families there is one hypothesis a family, p_F = min(1, |F| min p), and its members inherit q_F. m counts the
hypotheses that have a p; NaN is a failed row and stays NaN.
"""

from __future__ import annotations

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


def family_q_values(p: Values, families: npt.NDArray[np.object_]) -> Values:
    """q-value of each prompt's family; NaN where the prompt has no p."""
    found = np.full(len(p), np.nan)
    known = np.flatnonzero(~np.isnan(p))
    _, member = np.unique(families[known].astype(str), return_inverse=True)
    sizes = np.bincount(member) if len(known) else np.zeros(0)
    smallest = np.full(len(sizes), np.inf)
    np.minimum.at(smallest, member, p[known])
    found[known] = q_values(np.minimum(1.0, sizes * smallest))[member]
    return found
