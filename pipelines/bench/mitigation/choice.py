"""Which strength of a method is chosen, and how methods compare where pictures are equally alike to training pictures.

A strength is chosen on the development split: of those that lose at most a quarter of the alignment the one that
suppresses most prompts, then the one of whose pictures fewest copy. Methods are compared at one similarity, that
half-way between pictures without a method and those of harmless prompts: there a straight line between two strengths
tells a method's alignment, and prompts are drawn anew together for all methods, which makes the intervals of
differences paired. The level itself is taken for known.

Shapes: N prompts, P points of a curve from no method to the strongest, R replicates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipelines.bench.mitigation.settings import Setting, Values
from sharpaudit.seeds import generator
from sharpaudit.statistics.intervals import Interval

MOST_LOST, GOAL = 0.25, 0.8
"""Of the alignment; of the exactly memorised test prompts that one method suppresses at one strength."""
REPLICATES = 2000
SAIL = "sail"


def lost(setting: Setting, control: Setting, kind: str = "exact") -> float:
    """The share of the alignment that a setting loses, over the prompts that have one in both."""
    own_N, plain_N = setting.alignments(kind), control.alignments(kind)
    there_N = np.isfinite(own_N) & np.isfinite(plain_N)
    return float(1 - own_N[there_N].mean() / plain_N[there_N].mean())


def chosen(found: Sequence[Setting]) -> dict[str, Setting]:
    """One strength of each method, the best method first. found: of the development split, the control first."""
    control, best = found[0], dict[str, Setting]()

    def rank(setting: Setting) -> tuple[bool, int, float, float]:
        spent = lost(setting, control)
        if spent > MOST_LOST:
            return False, 0, 0.0, -spent
        return True, len(setting.suppressed(control)), -setting.mean("copies"), -spent

    for setting in found[1:]:
        if setting.method not in best or rank(setting) > rank(best[setting.method]):
            best[setting.method] = setting
    return dict(sorted(best.items(), key=lambda entry: rank(entry[1]), reverse=True))


def tried_further(best: Mapping[str, Setting]) -> list[Setting]:
    """SAIL and the three best of the other methods, the best first."""
    others = [setting for name, setting in best.items() if name != SAIL][:3]
    return [setting for name, setting in best.items() if name == SAIL or setting in others]


def curves(found: Sequence[Setting]) -> dict[str, list[Setting]]:
    """The settings of each method, from none to the strongest."""
    made: dict[str, list[Setting]] = {}
    for setting in found[1:]:
        made.setdefault(setting.method, [found[0]]).append(setting)
    return made


def at_similarity(similarity_P: Values, alignment_P: Values, level: float) -> float:
    """The alignment where a curve first falls to a similarity; NaN where it does not.

    The points are taken from none to the strongest; similarity need not fall from each to the next.
    """
    for i in range(1, len(similarity_P)):
        above, below = similarity_P[i - 1], similarity_P[i]
        if below <= level <= above:
            share = 0.0 if above == below else (above - level) / (above - below)
            return float(alignment_P[i - 1] + share * (alignment_P[i] - alignment_P[i - 1]))
    return float("nan")


@dataclass(frozen=True)
class Compared:
    """alignment: where the curve falls to the level, as a share of that without a method. more: how much more of it
    than SAIL keeps. reaches: the share of replicates in which the curve falls to the level; intervals are of these."""

    alignment: float
    interval: Interval
    more: float
    more_interval: Interval
    reaches: float


def level_of(found: Sequence[Setting]) -> float:
    """Half-way between the similarity of memorised and of harmless prompts without a method."""
    control = found[0]
    return float((control.mean("similarity") + control.mean("similarity", "harmless")) / 2)


def compared(found: Sequence[Setting]) -> dict[str, Compared]:
    """Each method at the level, of the exactly memorised prompts."""
    level = level_of(found)
    # Prompts that lost all of their pictures in some setting are left out of all of them: else pairs were none.
    whole = np.flatnonzero(np.isfinite([setting.alignments("exact") for setting in found]).all(axis=0))
    drawn_RN = whole[generator(0, "suppression").integers(len(whole), size=(REPLICATES, len(whole)))]
    told = {name: _along(curve, level, whole, drawn_RN) for name, curve in curves(found).items()}
    sail, result = told.get(SAIL), dict[str, Compared]()
    for name, (value, values_R) in told.items():
        if np.isnan(value):
            continue
        of_sail, of_sail_R = sail if sail is not None else (np.nan, np.full(REPLICATES, np.nan))
        reaches = float(np.isfinite(values_R).mean())
        result[name] = Compared(value, _middle(values_R), value - of_sail, _middle(values_R - of_sail_R), reaches)
    return result


def _along(
    curve: Sequence[Setting], level: float, whole_N: npt.NDArray[np.int64], drawn_RN: npt.NDArray[np.int64]
) -> tuple[float, Values]:
    """A curve's alignment at the level, as a share of that without a method: of all prompts, and of each replicate."""
    similarity_PN = np.array([setting.means("similarity", "exact") for setting in curve])
    alignment_PN = np.array([setting.alignments("exact") for setting in curve])

    def of(rows: npt.NDArray[np.int64]) -> float:
        similarity_P, alignment_P = similarity_PN[:, rows].mean(axis=1), alignment_PN[:, rows].mean(axis=1)
        return at_similarity(similarity_P, alignment_P / alignment_P[0], level)

    return of(whole_N), np.array([of(rows_N) for rows_N in drawn_RN])


def _middle(values_R: Values) -> Interval:
    there = values_R[np.isfinite(values_R)]
    low, high = np.quantile(there, [0.025, 0.975]) if len(there) else (np.nan, np.nan)
    return Interval(float(low), float(high), 0.95)


def lost_interval(setting: Setting, control: Setting) -> Interval:
    """Of the share of the alignment that is lost, over prompts."""
    both_PN = np.array([one.alignments("exact") for one in (setting, control)])
    both_PN = both_PN[:, np.isfinite(both_PN).all(axis=0)]
    n = both_PN.shape[1]
    drawn_RN = generator(0, "alignment lost").integers(n, size=(REPLICATES, n))
    return _middle(1 - both_PN[0][drawn_RN].mean(axis=1) / both_PN[1][drawn_RN].mean(axis=1))
