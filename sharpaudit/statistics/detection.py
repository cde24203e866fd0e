"""How well scores tell memorised prompts from harmless ones: AUC, and the true-positive rate at a false-positive rate.

Larger scores mean more memorised. Prompts of one family are not independent, and all prompts share the noise of a seed.
What is estimated is the value for the laws of both kinds of prompts and the mean over seeds.

TPR at an FPR x. The threshold t is where a harmless prompt lies above with probability x, and it is not known: of n
harmless prompts J ~ Binomial(n, x) lie above it, so that it is between their J-th and (J + 1)-th largest scores.
Each of these two stands for it with half the weight of J; with k of the P memorised prompts above it, Clopper and
Pearson's bounds have the laws Beta(k, P - k + 1) and Beta(k + 1, P - k), and the interval ends at the quantiles of
their mixtures over J and over seeds drawn again with replacement. `sharpaudit bench intervals` simulates it at the
sizes of the lab's tables: it holds in 95% of draws or more at every law tried. Clopper and Pearson's interval alone,
which takes the threshold for known, falls to 34% and the bootstrap of prompts and thresholds to 68% there. A rate
whose threshold was set beforehand has one J.

n and P are the numbers of families; where families differ in size, (sum of sizes)^2 / sum of squared sizes (Kish 1965).

AUC. The hull of two intervals, since the first is short near 1 and the second where scores of memorised prompts vary
more than those of harmless ones: DeLong's (Biometrics 1988) variance with families summed, on the logit scale with
Satterthwaite's degrees of freedom, and Newcombe's method 5 (Statistics in Medicine 2006).

A paired difference resamples families and seeds, memorised and harmless apart; the threshold is chosen again in every
replicate.

The threshold of a TPR at an FPR is an oracle: it is read off the very harmless prompts it is judged on, as in the
literature. What a threshold set beforehand does is another figure.

Shapes: S seeds, N prompts, P memorised, H harmless, J numbers above, T thresholds, F families, R replicates.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.special import betainc, betaincc, expit, logit
from scipy.stats import binom
from scipy.stats import norm as normal
from scipy.stats import t as student

from sharpaudit.seeds import generator
from sharpaudit.statistics.intervals import Interval, upper_bound

Values = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]
Statistic = Callable[[Values, Values], float]
"""Of the scores (P,) of memorised and (H,) of harmless prompts."""
SEED_DRAWS = 100
UNLIKELY = 1e-6
"""Numbers of harmless prompts above a threshold that are less likely than this are left out on either side."""


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

    @property
    def effective(self) -> int:
        """Independent prompts that are worth as much: the number of families where these are of one size."""
        sizes_F = self.members[2]
        return int(sizes_F.sum() ** 2 // np.square(sizes_F).sum())

    @cached_property
    def members(self) -> tuple[Rows, Rows, Rows]:
        """Prompts sorted by family (N,), and where each family starts there and its size, (F,) each."""
        _, member_N, sizes_F = np.unique(self.families_N, return_inverse=True, return_counts=True)
        return np.argsort(member_N, kind="stable"), np.cumsum(sizes_F) - sizes_F, sizes_F


def auc(memorised_P: Values, harmless_H: Values) -> float:
    """Probability that a memorised prompt scores higher than a harmless one; ties count half (Mann and Whitney)."""
    return float(_places(memorised_P, harmless_H).mean())


@dataclass(frozen=True)
class TprAtFpr:
    """The share of memorised prompts above the lowest threshold that at most `fpr` of the harmless exceed."""

    fpr: float

    def __call__(self, memorised_P: Values, harmless_H: Values) -> float:
        """The statistic."""
        return float((memorised_P > threshold_at_fpr(harmless_H, self.fpr)).mean())


def tpr_at_fpr(fpr: float) -> TprAtFpr:
    """The true-positive rate at a false-positive rate, as a statistic."""
    return TprAtFpr(fpr)


def threshold_at_fpr(harmless_H: Values, fpr: float) -> float:
    """The lowest threshold that at most `fpr` of the harmless exceed."""
    # Tolerance: 0.01 * 300 is 3 in exact arithmetic and 2.9999... in floats.
    allowed = int(fpr * len(harmless_H) + 1e-9)
    return float(np.sort(harmless_H)[::-1][allowed]) if allowed < len(harmless_H) else -np.inf


def figure(statistic: Statistic, memorised: Group, harmless: Group, *, level: float = 0.95) -> Figure:
    """The statistic at each seed, and the interval of its mean over seeds.

    statistic: `auc`, a TprAtFpr, or a share of the memorised that looks at no harmless prompt.
    """
    if len(memorised.values_SN) != len(harmless.values_SN):
        raise ValueError("memorised and harmless prompts need the same seeds")
    by_seed = np.array([statistic(p, h) for p, h in zip(memorised.values_SN, harmless.values_SN, strict=True)])
    if statistic is auc:
        interval = _auc_interval(memorised, harmless, by_seed, level)
    elif isinstance(statistic, TprAtFpr):
        interval = _rate_interval(*_above(memorised, harmless, statistic.fpr), memorised.effective, level)
    else:
        interval = _rate_interval(by_seed[:, None], np.ones(1), memorised.effective, level)
    sd = float(np.std(by_seed, ddof=1)) if len(by_seed) > 1 else float("nan")
    return Figure(float(by_seed.mean()), sd, float(by_seed.min()), float(by_seed.max()), interval)


def _above(memorised: Group, harmless: Group, fpr: float) -> tuple[Values, Values]:
    """Shares of the memorised above what the threshold may be, with shape (S, T), and the weight of each, (T,)."""
    n, n_prompts = harmless.effective, harmless.values_SN.shape[1]
    law = binom(n, fpr)
    j_J = np.arange(law.ppf(UNLIKELY), law.isf(UNLIKELY) + 1)
    ordered_SH = -np.sort(-harmless.values_SN, axis=1)
    ends_S1 = np.full((len(ordered_SH), 1), np.inf)
    # Of 0 above, the threshold is above all; of all above, below all.
    ordered_SH = np.concatenate([ends_S1, ordered_SH, -ends_S1], axis=1)
    at_T = np.concatenate([np.floor(j_J * n_prompts / n), np.ceil((j_J + 1) * n_prompts / n)])
    lines_ST = ordered_SH[:, np.minimum(at_T, n_prompts + 1).astype(int)]
    weights_T = np.tile(law.pmf(j_J), 2)
    return (memorised.values_SN[:, None] > lines_ST[:, :, None]).mean(axis=2), weights_T / weights_T.sum()


def _rate_interval(shares_ST: Values, weights_T: Values, n: int, level: float) -> Interval:
    """Quantiles of the mixtures of Clopper and Pearson's laws over thresholds and over seeds drawn with replacement.

    shares: of n prompts, beyond each threshold that may be.
    """
    seeds = len(shares_ST)
    draws_RS = np.ones((1, 1))
    if seeds > 1:
        draws_RS = generator("seeds", seeds).multinomial(seeds, np.full(seeds, 1 / seeds), size=SEED_DRAWS) / seeds
    weights = np.tile(weights_T, len(draws_RS)) / len(draws_RS)
    # Rounding: a share of all is all.
    k, tail = np.round((draws_RS @ shares_ST).ravel() * n, 9), (1 - level) / 2

    def below_low(t: float) -> float:
        return float(weights @ np.where(k > 0, betainc(np.maximum(k, UNLIKELY), n - k + 1, t), 1.0)) - tail

    def above_high(t: float) -> float:
        return float(weights @ np.where(k < n, betaincc(k + 1, np.maximum(n - k, UNLIKELY), t), 1.0)) - tail

    low = brentq(below_low, 0.0, 1.0, xtol=1e-9) if below_low(0.0) < 0 else 0.0
    high = brentq(above_high, 0.0, 1.0, xtol=1e-9) if above_high(1.0) < 0 else 1.0
    return Interval(float(low), float(high), level)


def _auc_interval(memorised: Group, harmless: Group, by_seed: Values, level: float) -> Interval:
    """The hull of both intervals of the mean over seeds."""
    area, parts = float(by_seed.mean()), _auc_variances(memorised, harmless, by_seed)
    low, high = _newcombe(area, memorised.effective, harmless.effective, level)
    variance = sum(part for part, _ in parts)
    if 0 < area < 1 and variance > 0:
        freedom = variance**2 / sum(part**2 / n for part, n in parts)
        reach = student.ppf((1 + level) / 2, freedom) * variance**0.5 / (area * (1 - area))
        low, high = min(low, float(expit(logit(area) - reach))), max(high, float(expit(logit(area) + reach)))
    return Interval(low, high, level)


def _auc_variances(memorised: Group, harmless: Group, by_seed: Values) -> list[tuple[float, int]]:
    """DeLong's variance of either kind of prompts, and that of seeds, each with its degrees of freedom."""
    parts = []
    for one, other, sign in ((memorised, harmless, 1), (harmless, memorised, -1)):
        places_N = np.mean(
            [_places(sign * a, sign * b) for a, b in zip(one.values_SN, other.values_SN, strict=True)], 0
        )
        order_N, starts_F, sizes_F = one.members
        sums_F = np.add.reduceat((places_N - places_N.mean())[order_N], starts_F)
        f = len(sizes_F)
        # One family says nothing of how families vary.
        parts.append(
            (f / (f - 1) * float(np.square(sums_F).sum()) / len(places_N) ** 2 if f > 1 else 0.25, max(1, f - 1))
        )
    if len(by_seed) > 1:
        parts.append((float(np.var(by_seed, ddof=1)) / len(by_seed), len(by_seed) - 1))
    return parts


def _places(scores_P: Values, others_H: Values) -> Values:
    """The share of the others below each score, ties half."""
    ordered_H = np.sort(others_H)
    below_P, up_to_P = (np.searchsorted(ordered_H, scores_P, side) for side in ("left", "right"))
    places_P: Values = (below_P + up_to_P) / (2 * len(others_H))
    return places_P


def _newcombe(area: float, m: int, n: int, level: float) -> tuple[float, float]:
    """Newcombe's method 5: where an area is z standard errors from what was found, its variance Hanley and McNeil's."""
    z, excess = float(normal.ppf((1 + level) / 2)), (m + n) / 2 - 1

    def apart(t: float) -> float:
        spread = t * (1 - t) * (1 + excess * ((1 - t) / (2 - t) + t / (1 + t))) / (m * n)
        return float(abs(t - area) - z * spread**0.5)

    # At 0 and 1 no error is estimated, so that they would be roots.
    low = float(brentq(apart, 0.0, min(area, 1 - UNLIKELY**2))) if area > UNLIKELY**2 else 0.0
    high = float(brentq(apart, max(area, UNLIKELY**2), 1.0)) if area < 1 - UNLIKELY**2 else 1.0
    return low, high


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
