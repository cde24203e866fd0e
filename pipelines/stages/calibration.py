"""What a calibration set of a given size allows: said by `validate`, and asked by `run` before it scores anything."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping
from itertools import pairwise

from sharpaudit.config import AuditConfig, TriageConfig
from sharpaudit.errors import UserError, printable
from sharpaudit.scores.cascade import tiers
from sharpaudit.scores.subspace import ENOUGH_FIT
from sharpaudit.statistics.conformal import fpr_interval, least_calibration, rank_at, smallest_p
from sharpaudit.statistics.fdr import PREVALENCES, calibration_needed, penalty
from sharpaudit.statistics.missed import RATES, Drawn, missed, seen
from sharpaudit.statistics.power import SHIFT, power_by_p, power_by_q
from sharpaudit.statistics.sampling import allocate
from sharpaudit.triage.calibrators import ranked_among, uncalibrated
from sharpaudit.triage.select import EDGES

ONE_STYLE: Mapping[str | None, int] = {None: 1}
"""Audited prompts by style where none is named."""
BOUNDS = (0.1, 0.01, 0.001)
"""Shares of the audited prompts below which controls may bring the bound on the unflagged ones that would copy."""


def allowed(config: AuditConfig, calibrating: Mapping[str | None, int], audited: Mapping[str | None, int]) -> str:
    """A line on the calibration prompts. Raises UserError where no prompt could ever be flagged with a claim.

    calibrating, audited: how many prompts there are of each style; audited ones rank by style.
    """
    alpha, n = config.triage.alpha, sum(calibrating.values())
    if config.triage.flag_by == "p" and rank_at(alpha, n) == 0:
        raise UserError(
            f"triage.alpha = {alpha}: {n} calibration prompts give no p below {smallest_p(n):.3g}, so nothing could be "
            f"flagged; give at least {least_calibration(alpha)} calibration prompts or raise triage.alpha"
        )
    sizes, needed = _sizes(config, calibrating, audited), least_calibration(alpha)
    intervals = [fpr_interval(alpha, size) for size in sizes]
    among = "" if sizes == [n] else f", of which a style ranks among {sizes[0]:,} to {sizes[-1]:,}"
    left = uncalibrated(audited, calibrating, needed)
    apart = (
        f"; {sum(left.values()):,} audited prompts are uncalibrated and counted apart, their styles having fewer than "
        f"{needed} calibration prompts: {_styles(left)}"
        if left
        else ""
    )
    return (
        f"calibration: {n:,} prompts{among}; at alpha {alpha:g} the false-positive rate, of a random prompt of a "
        f"random harmless family, lies between {min(i.low for i in intervals):.2%} and "
        f"{max(i.high for i in intervals):.2%} (95%); the smallest p is {min(map(smallest_p, sizes)):.2g}{apart}"
    )


def _styles(counts: Mapping[str | None, int]) -> str:
    """The largest styles and their sizes, in words."""
    largest = sorted(counts.items(), key=lambda entry: (-entry[1], entry[0] or ""))
    told = [f"{n:,} {'without a style' if style is None else f'of {printable(style, 40)}'}" for style, n in largest[:4]]
    return ", ".join([*told, *(["…"] if len(largest) > 4 else [])])


def _sizes(config: AuditConfig, calibrating: Mapping[str | None, int], audited: Mapping[str | None, int]) -> list[int]:
    """How many calibration prompts audited prompts rank among, smallest first. Raises UserError where all are apart."""
    needed = least_calibration(config.triage.alpha)
    found = ranked_among(audited, calibrating, needed)
    if not found:
        raise UserError(
            f"no style of the audited prompts has the {needed} calibration prompts that triage.alpha = "
            f"{config.triage.alpha} needs ({_styles(calibrating)}), so no error rate could be claimed: give "
            "calibration prompts of these styles, or leave corpus.style_column out, which takes all for one style"
        )
    return found


def fitted(config: AuditConfig, n_fit: int) -> Iterator[str]:
    """A line where few fit prompts weaken a screen that learns from them."""
    learning = [metric.name for tier in tiers(config.scores) for metric in tier.metrics if metric.learns]
    if learning and n_fit < ENOUGH_FIT:
        yield (
            f"fit: {n_fit:,} prompts are few for {learning[0]}; from about {ENOUGH_FIT} on more bring little, below it "
            "finds fewer memorised prompts at the same false-positive rate"
        )


def wanted(
    config: AuditConfig, calibrating: Mapping[str | None, int], audited: Mapping[str | None, int]
) -> Iterator[str]:
    """Lines on what calibration prompts and controls can show. Of each style, how many there are."""
    triage, m = config.triage, sum(audited.values())
    excess = penalty(m, triage.procedure)
    sizes = [(share, calibration_needed(triage.q, share, excess)) for share in PREVALENCES]
    told = ", ".join(f"{size:,} where {share:g} of the prompts are memorised" for share, size in sizes)
    yield (
        f"a false-discovery rate of {triage.q:g} takes at least so many calibration prompts, and many more to find "
        f"most: {told}"
    )
    yield powers(triage, min(_sizes(config, calibrating, audited)), m)
    yield controls(triage.controls, triage.alpha if triage.flag_by == "p" else 0.0, m, config.samples.per_prompt)


def powers(triage: TriageConfig, n: int, m: int) -> str:
    """A line on how many memorised ones of m prompts, ranked among n, would be flagged, with what that assumes."""
    excess = penalty(m, triage.procedure)
    shares = [share for share in PREVALENCES if round(share * m)]
    by_q = [f"{power_by_q(triage.q, n, m, round(share * m), excess):.0%} where {share:g} are" for share in shares]
    of_q = f"; q <= {triage.q:g} {', '.join(by_q)} memorised" if by_q else ""
    return (
        f"power of {n:,} calibration prompts, if memorised prompts score {SHIFT:g} standard deviations above normally "
        f"distributed harmless ones: p <= {triage.alpha:g} flags {power_by_p(triage.alpha, n):.0%} of them{of_q}"
    )


def controls(n: int, alpha: float, m: int, pictures: int) -> str:
    """A line on what n controls without a copy would bound, and how many would bound less, of m audited prompts.

    pictures: of each control. What is bounded is how many unflagged prompts would copy in at least one of so many.

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
    return (
        f"controls: {now} of {m:,} prompts could be unflagged and copy in at least one of {pictures} pictures (95%), "
        f"as {_often(pictures)}; {'; '.join(told)}"
    )


def _often(pictures: int) -> str:
    shares = ", ".join(f"{seen(rate, pictures):.0%}" for rate in RATES)
    return f"{shares} of prompts do that copy in {', '.join(f'{10 * rate:.0f}' for rate in RATES)} of 10 pictures"
