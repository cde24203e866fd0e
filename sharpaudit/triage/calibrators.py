"""Which calibration prompts rank which prompts: those of the same style, where there are enough of them.

A rank among harmless prompts of another style says little, so each style is a stratum of its own (Mondrian conformal
prediction; Vovk, Gammerman and Shafer 2005, 4.5). A style with too few calibration prompts to flag anything merges with
the others that have too few; where they are too few together, or there are none, their prompts rank among all
calibration prompts. Only counts decide, never scores, so ranks inside a stratum stay exact.

Shapes: N prompts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from sharpaudit.statistics.conformal import p_values

ALL, MERGED = "all", "other styles"


def strata(styles: Sequence[str | None], calibrates: npt.NDArray[np.bool_], needed: int) -> npt.NDArray[np.object_]:
    """The stratum of each prompt, with shape (N,): ALL, MERGED, or "style: NAME".

    calibrates: which of the prompts calibrate. needed: calibration prompts of a stratum of its own.
    """
    counts = Counter(style for style, counted in zip(styles, calibrates, strict=True) if counted)
    own = {style for style, n in counts.items() if n >= needed and style is not None}
    left = sum(n for style, n in counts.items() if style not in own)
    other = MERGED if own and left >= needed else ALL
    return np.array([f"style: {style}" if style in own else other for style in styles], dtype=object)


def ranked_among(audited: Iterable[str | None], calibrating: Sequence[str | None], needed: int) -> list[int]:
    """How many calibration prompts audited prompts of these styles rank among: the sizes that occur, smallest first.

    calibrating: the style of each calibration prompt. needed: as in `strata`.
    """
    styles = [*calibrating, *audited]
    calibrates = np.arange(len(styles)) < len(calibrating)
    strata_N = strata(styles, calibrates, needed)
    return sorted({int(_members(strata_N, calibrates, stratum).sum()) for stratum in set(strata_N[~calibrates])})


def ranked(
    scores: npt.NDArray[np.float64], strata_N: npt.NDArray[np.object_], calibrates: npt.NDArray[np.bool_]
) -> npt.NDArray[np.float64]:
    """p of each prompt among the calibration prompts of its stratum, with shape (N,); NaN where it has no score.

    A calibration prompt counts itself once too often for a p-value; see `among_themselves`.
    """
    found = np.full(len(scores), np.nan)
    for stratum in np.unique(strata_N.astype(str)):
        inside = strata_N == stratum
        found[inside] = p_values(scores[inside], scores[_members(strata_N, calibrates, stratum)])
    return found


def among_themselves(
    p: npt.NDArray[np.float64], strata_N: npt.NDArray[np.object_], calibrates: npt.NDArray[np.bool_]
) -> npt.NDArray[np.float64]:
    """The share rank / (n + 1) of each calibration prompt in its stratum, itself counted, from `ranked`; else NaN."""
    found = np.full(len(p), np.nan)
    for stratum in np.unique(strata_N.astype(str)):
        n = int(_members(strata_N, calibrates, stratum).sum())
        inside = calibrates & (strata_N == stratum)
        found[inside] = p[inside] - 1 / (n + 1)
    return found


def _members(
    strata_N: npt.NDArray[np.object_], calibrates: npt.NDArray[np.bool_], stratum: str
) -> npt.NDArray[np.bool_]:
    return calibrates if stratum == ALL else calibrates & (strata_N == stratum)
