"""What a calibration set of a given size allows: said by `validate`, and asked by `run` before it scores anything."""

from __future__ import annotations

import math
from collections.abc import Iterator

from sharpaudit.config import AuditConfig
from sharpaudit.errors import UserError
from sharpaudit.statistics.conformal import fpr_interval, rank_at, smallest_p
from sharpaudit.statistics.fdr import PREVALENCES, calibration_needed, penalty


def allowed(config: AuditConfig, n: int) -> str:
    """A line on n calibration prompts. Raises UserError where no prompt could ever be flagged."""
    alpha = config.triage.alpha
    if config.triage.flag_by == "p" and rank_at(alpha, n) == 0:
        raise UserError(
            f"triage.alpha = {alpha}: {n} calibration prompts give no p below {smallest_p(n):.3g}, so nothing could be "
            f"flagged; give at least {math.ceil(1 / alpha) - 1} calibration prompts or raise triage.alpha"
        )
    interval = fpr_interval(alpha, n)
    return (
        f"calibration: {n:,} prompts; at alpha {alpha:g} the false-positive rate lies between {interval.low:.2%} and "
        f"{interval.high:.2%} (95%); the smallest p is {smallest_p(n):.2g}"
    )


def wanted(config: AuditConfig, n: int, m: int) -> Iterator[str]:
    """Lines on what n calibration prompts and the controls cannot show, of m audited prompts."""
    triage = config.triage
    sizes = [(share, calibration_needed(triage.q, share, penalty(m, triage.procedure))) for share in PREVALENCES]
    told = ", ".join(f"{size:,} where {share:g} of the prompts are memorised" for share, size in sizes)
    enough = [share for share, size in sizes if n >= size]
    can = f"these {n:,} suffice from a share of {min(enough):g}" if enough else f"these {n:,} suffice for none of them"
    yield f"a false-discovery rate of {triage.q:g} needs calibration prompts: {told}; {can}"
    if triage.controls:
        # None of n controls with a copy bounds their share by about 3 / n (the rule of three).
        yield (
            f"controls: {triage.controls:,} of {m:,} audited prompts; with no copy among them about "
            f"{min(m, 3 * m / triage.controls):,.0f} memorised prompts could be unflagged (95%, all strata alike); "
            "more controls bound it tighter in proportion"
        )
