"""The last words of a run: a few lines for the terminal, and the exit code."""

from __future__ import annotations

from pathlib import Path

from pipelines.audit import Outcome
from sharpaudit.config import AuditConfig

REJECTED = 3


def exit_code(outcome: Outcome, config: AuditConfig) -> int:
    """0 complete; 1 a shard was set aside; 3 more audited rows were rejected than `run.max_rejected` allows."""
    if outcome.quarantined:
        return 1
    return REJECTED if outcome.rejected_share > config.run.max_rejected else 0
