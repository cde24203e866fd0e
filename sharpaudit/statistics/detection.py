"""How well scores tell memorised prompts from harmless ones: AUC, and the true-positive rate at a false-positive rate.

Larger scores mean more memorised. Prompts of one family are not independent and all prompts share the noise of a
seed, so an interval resamples families, memorised and harmless apart, and seeds; the threshold is chosen again in
every replicate. Where that cannot work, for a rate of 0 or 1 and for fewer than 50 memorised families, the rate's
interval is Clopper and Pearson's on families.

The threshold of a TPR at an FPR is an oracle: it is read off the very harmless prompts it is judged on, as in the
literature. What a threshold set beforehand does is another figure.

Shapes: S seeds, N prompts, P memorised, H harmless, R replicates.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from sharpaudit.seeds import generator
from sharpaudit.statistics.intervals import Interval, clopper_pearson, upper_bound

Values = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]
Statistic = Callable[[Values, Values], float]
"""Of the scores (P,) of memorised and (H,) of harmless prompts."""
FEW_FAMILIES = 50


@dataclass(frozen=True)
class Figure:
    """A statistic at single seeds: mean, standard deviation (nan for one seed), extremes, interval of the mean."""

    mean: float
    sd: float
    minimum: float
    maximum: float
    interval: Interval


@dataclass(frozen=True)
class Group:
    """Scores with shape (S, N), and the family of each prompt."""

    values_SN: Values
    families_N: npt.NDArray[np.str_]

    def __post_init__(self) -> None:
        """Refuse what no figure can be computed of."""
        if self.values_SN.ndim != 2 or self.values_SN.shape[1] != len(self.families_N):
            raise ValueError(f"scores of shape {self.values_SN.shape} for {len(self.families_N)} prompts")
        if not self.values_SN.size or not np.isfinite(self.values_SN).all():
            raise ValueError("at least one prompt and one seed are needed, and every score must be finite")

    @property
    def n_families(self) -> int:
        """How many families there are."""
        return len(self.members[2])

    @cached_property
    def members(self) -> tuple[Rows, Rows, Rows]:
        """Prompts sorted by family (N,), and where each family starts there and its size, (F,) each."""
        _, member_N, sizes_F = np.unique(self.families_N, return_inverse=True, return_counts=True)
        return np.argsort(member_N, kind="stable"), np.cumsum(sizes_F) - sizes_F, sizes_F


def auc(memorised_P: Values, harmless_H: Values) -> float:
    """Probability that a memorised prompt scores higher than a harmless one; ties count half (Mann and Whitney)."""
    ordered_H = np.sort(harmless_H)
    below, up_to = (np.searchsorted(ordered_H, memorised_P, side).sum() for side in ("left", "right"))
    return float((below + up_to) / (2 * len(memorised_P) * len(harmless_H)))


def tpr_at_fpr(fpr: float) -> Statistic:
    """The share of memorised prompts above the lowest threshold that at most `fpr` of the harmless exceed."""

    def statistic(memorised_P: Values, harmless_H: Values) -> float:
        return float((memorised_P > threshold_at_fpr(harmless_H, fpr)).mean())

    return statistic


def threshold_at_fpr(harmless_H: Values, fpr: float) -> float:
    """The lowest threshold that at most `fpr` of the harmless exceed."""
    # Tolerance: 0.01 * 300 is 3 in exact arithmetic and 2.9999... in floats.
    allowed = int(fpr * len(harmless_H) + 1e-9)
    return float(np.sort(harmless_H)[::-1][allowed]) if allowed < len(harmless_H) else -np.inf


def figure(
    statistic: Statistic, memorised: Group, harmless: Group, *, rate: bool, level: float = 0.95, replicates: int = 1000
) -> Figure:
    """The statistic at each seed, and the interval of its mean over seeds. rate: it is a share of the memorised."""
    if len(memorised.values_SN) != len(harmless.values_SN):
        raise ValueError("memorised and harmless prompts need the same seeds")
    by_seed = [statistic(p, h) for p, h in zip(memorised.values_SN, harmless.values_SN, strict=True)]
    mean = float(np.mean(by_seed))
    if rate and (mean in (0.0, 1.0) or memorised.n_families < FEW_FAMILIES):
        interval = clopper_pearson(round(mean * memorised.n_families), memorised.n_families, level)
    else:
        tail = (1 - level) / 2

        def of(s: int, rows: Rows, columns: Rows) -> float:
            return statistic(memorised.values_SN[s, rows], harmless.values_SN[s, columns])

        draws = _replicates(of, memorised, harmless, replicates)
        low, high = np.quantile(draws, [tail, 1 - tail])
        interval = Interval(float(low), float(high), level)
    sd = float(np.std(by_seed, ddof=1)) if len(by_seed) > 1 else float("nan")
    return Figure(mean, sd, min(by_seed), max(by_seed), interval)


def difference(
    statistic: Statistic,
    ours: tuple[Group, Group],
    other: tuple[Group, Group],
    *,
    rate: bool,
    level: float = 0.95,
    replicates: int = 1000,
) -> Interval:
    """Interval of the mean over seeds of ours less other, on the same resampled families and seeds (paired).

    ours, other: memorised and harmless, the same prompts and seeds in both. rate: it is a share of the memorised; where
    no replicate differs from another, as many families may still change as Clopper and Pearson allow for none seen.
    Both sides are shares, so the interval ends at -1 and 1.
    """
    for a, b in zip(ours, other, strict=True):
        if a.values_SN.shape != b.values_SN.shape or (a.families_N != b.families_N).any():
            raise ValueError("a paired difference needs the same prompts and seeds on both sides")

    def of(s: int, rows: Rows, columns: Rows) -> float:
        found = [statistic(p.values_SN[s, rows], h.values_SN[s, columns]) for p, h in (ours, other)]
        return found[0] - found[1]

    tail = (1 - level) / 2
    low, high = np.quantile(_replicates(of, *ours, replicates), [tail, 1 - tail])
    unseen = upper_bound(0, ours[0].n_families, 1 - tail) if rate and low == high else 0.0
    return Interval(max(float(low - unseen), -1.0), min(float(high + unseen), 1.0), level)


def _replicates(
    of: Callable[[int, Rows, Rows], float], memorised: Group, harmless: Group, replicates: int
) -> list[float]:
    """The mean over resampled seeds of a statistic on resampled families, R times. of: seed, memorised, harmless."""
    draws = []
    for r in range(replicates):
        random = generator("bootstrap", r)
        seeds = random.integers(len(memorised.values_SN), size=len(memorised.values_SN))
        rows, columns = (_resampled(group, random) for group in (memorised, harmless))
        # A seed drawn twice counts twice; its statistic is computed once.
        counts = np.bincount(seeds)
        draws.append(sum(counts[s] * of(int(s), rows, columns) for s in np.flatnonzero(counts)) / len(seeds))
    return draws


def _resampled(group: Group, random: np.random.Generator) -> Rows:
    """Prompts of as many families as there are, drawn with replacement."""
    order_N, starts_F, sizes_F = group.members
    drawn = random.integers(len(sizes_F), size=len(sizes_F))
    sizes = sizes_F[drawn]
    # The members of the drawn families one after another: each block counts on from its family's start.
    begins = np.cumsum(sizes) - sizes
    rows: Rows = order_N[np.arange(sizes.sum()) + np.repeat(starts_F[drawn] - begins, sizes)]
    return rows
