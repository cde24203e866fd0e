"""What a calibration set of a given size allows: said by `validate`, and asked by `run` before it scores anything."""

from __future__ import annotations

import math

from sharpaudit.config import AuditConfig
from sharpaudit.errors import UserError
from sharpaudit.statistics.conformal import fpr_interval, rank_at, smallest_p


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
