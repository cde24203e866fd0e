"""What a calibration set of a given size allows: said by `validate`, and asked by `run` before it scores anything."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise

from sharpaudit.config import AuditConfig
from sharpaudit.errors import UserError
from sharpaudit.scores.cascade import tiers
from sharpaudit.scores.subspace import ENOUGH_FIT
from sharpaudit.statistics.conformal import TOLERANCE, fpr_interval, rank_at, smallest_p
from sharpaudit.statistics.fdr import PREVALENCES, calibration_needed, penalty
from sharpaudit.statistics.missed import Drawn, missed
from sharpaudit.statistics.sampling import allocate
from sharpaudit.triage.calibrators import ranked_among
from sharpaudit.triage.select import EDGES

BOUNDS = (0.1, 0.01, 0.001)
"""Shares of the audited prompts below which controls may bring the bound on the unflagged memorised ones."""


def allowed(config: AuditConfig, calibrating: Mapping[str | None, int], audited: Iterable[str | None]) -> str:
    """A line on the calibration prompts. Raises UserError where no prompt could ever be flagged.

    calibrating: how many there are of each style. audited: the styles of audited prompts, which rank by style.
    """
    alpha, n = config.triage.alpha, sum(calibrating.values())
    if config.triage.flag_by == "p" and rank_at(alpha, n) == 0:
        raise UserError(
            f"triage.alpha = {alpha}: {n} calibration prompts give no p below {smallest_p(n):.3g}, so nothing could be "
            f"flagged; give at least {math.ceil(1 / alpha) - 1} calibration prompts or raise triage.alpha"
        )
    styles = list(Counter(calibrating).elements())
    sizes = ranked_among(audited, styles, math.ceil(1 / alpha - TOLERANCE) - 1) or [n]
    intervals = [fpr_interval(alpha, size) for size in sizes]
    among = "" if sizes == [n] else f", of which a style ranks among {sizes[0]:,} to {sizes[-1]:,}"
    return (
        f"calibration: {n:,} prompts{among}; at alpha {alpha:g} the false-positive rate lies between "
        f"{min(i.low for i in intervals):.2%} and {max(i.high for i in intervals):.2%} (95%); the smallest p is "
        f"{min(map(smallest_p, sizes)):.2g}"
    )


def fitted(config: AuditConfig, n_fit: int) -> Iterator[str]:
    """A line where few fit prompts weaken a screen that learns from them."""
    learning = [metric.name for tier in tiers(config.scores) for metric in tier.metrics if metric.learns]
    if learning and n_fit < ENOUGH_FIT:
        yield (
            f"fit: {n_fit:,} prompts are few for {learning[0]}; from about {ENOUGH_FIT} on more bring little, below it "
            "finds fewer memorised prompts at the same false-positive rate"
        )


def wanted(config: AuditConfig, n: int, m: int) -> Iterator[str]:
    """Lines on what n calibration prompts and the controls can show, of m audited prompts."""
    triage = config.triage
    sizes = [(share, calibration_needed(triage.q, share, penalty(m, triage.procedure))) for share in PREVALENCES]
    told = ", ".join(f"{size:,} where {share:g} of the prompts are memorised" for share, size in sizes)
    enough = [share for share, size in sizes if n >= size]
    can = f"these {n:,} suffice from a share of {min(enough):g}" if enough else f"these {n:,} suffice for none of them"
    yield f"a false-discovery rate of {triage.q:g} needs calibration prompts: {told}; {can}"
    yield controls(triage.controls, triage.alpha if triage.flag_by == "p" else 0.0, m)


def controls(n: int, alpha: float, m: int) -> str:
    """A line on what n controls without a copy would bound, and how many would bound less, of m audited prompts.

    Strata of p are as large as harmless prompts make them; those of p <= alpha are flagged. Everything is computed as
    the report will (`statistics.missed`), so a run without copies among its controls says the same.
    """
    sizes = [round(m * max(0.0, high - max(low, alpha))) for low, high in pairwise((0.0, *EDGES))]
    sizes = [size for size in sizes if size]

    def bound(total: int) -> float:
        drawn = zip(sizes, allocate(total, sizes), strict=True)
        return missed([Drawn(size, n_drawn, 0) for size, n_drawn in drawn]).total_high

    needed = {b: bisect_left(range(sum(sizes) + 1), -b * m, key=lambda total: -bound(total)) for b in BOUNDS}
    told = [f"below {share:.1%} takes {n_needed:,}" for share, n_needed in needed.items() if n_needed <= sum(sizes)]
    out_of_reach = [share for share, n_needed in needed.items() if n_needed > sum(sizes)]
    told += [f"no number of controls brings it below {out_of_reach[0]:.1%}"] if out_of_reach else []
    now = f"with no copy among {n:,}, up to {bound(n):,.0f}" if n else "with none, any number"
    return f"controls: {now} of {m:,} prompts could be memorised and unflagged (95%); {'; '.join(told)}"
