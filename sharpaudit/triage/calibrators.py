"""Which calibration prompts rank which prompts: those of the same style, where there are enough of them.

A rank among harmless prompts of another style bounds no rate, so each style is a stratum of its own (Mondrian conformal
prediction; Vovk, Gammerman and Shafer 2005, 4.5). Prompts of a style with too few calibration prompts to flag
anything rank among all of them and are UNCALIBRATED: an order, of which no rate is claimed. Merged small styles would
bound the rate of their mixture only, not of any of them. Prompts without a style are one style more where an audited
prompt has one; where none has, all prompts are of one style, ALL. Only counts decide, never scores, so ranks inside a
stratum stay exact.

Shapes: N prompts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from sharpaudit.statistics.conformal import p_values

ALL, NO_STYLE, UNCALIBRATED = "all", "no style", "uncalibrated"


def strata(
    styles: Sequence[str | None], audited: npt.NDArray[np.bool_], calibrates: npt.NDArray[np.bool_], needed: int
) -> npt.NDArray[np.object_]:
    """The stratum of each prompt, with shape (N,): ALL, "style: NAME", NO_STYLE or UNCALIBRATED.

    audited, calibrates: which of the prompts are. needed: calibration prompts of a stratum of its own.
    """
    counts = Counter(style for style, counted in zip(styles, calibrates, strict=True) if counted)
    named = any(style is not None for style, asked in zip(styles, audited, strict=True) if asked)
    return np.array([_stratum(style, counts[style], needed) if named else ALL for style in styles], dtype=object)


def _stratum(style: str | None, n: int, needed: int) -> str:
    if n < needed:
        return UNCALIBRATED
    return NO_STYLE if style is None else f"style: {style}"


def ranked_among(audited: Mapping[str | None, int], calibrating: Mapping[str | None, int], needed: int) -> list[int]:
    """How many calibration prompts the calibrated audited prompts rank among: the sizes that occur, smallest first.

    audited, calibrating: prompts of each style. needed: as in `strata`.
    """
    if not any(n for style, n in audited.items() if style is not None):
        return [sum(calibrating.values())]
    return sorted({calibrating.get(style, 0) for style in audited} - set(range(needed)))


def uncalibrated(
    audited: Mapping[str | None, int], calibrating: Mapping[str | None, int], needed: int
) -> dict[str | None, int]:
    """Audited prompts of each style that has too few calibration prompts. Arguments as in `ranked_among`."""
    if not any(n for style, n in audited.items() if style is not None):
        return {}
    return {style: n for style, n in audited.items() if n and calibrating.get(style, 0) < needed}


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
    return calibrates if stratum in (ALL, UNCALIBRATED) else calibrates & (strata_N == stratum)
