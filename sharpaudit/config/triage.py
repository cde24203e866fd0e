"""[triage]: who is flagged, and who else is looked at."""

from __future__ import annotations

from typing import Literal

from sharpaudit.config.base import Section, identity


class TriageConfig(Section):
    """Which prompts are flagged, and which others are looked at to learn what the flags miss."""

    flag_by: Literal["p", "q"] = identity(default="p")
    alpha: float = identity(default=0.01, gt=0, lt=1)
    """False-positive rate at which a prompt is flagged: of a random prompt of a random harmless family."""
    q: float = identity(default=0.1, gt=0, lt=1)
    """False-discovery rate, where flag_by = "q"."""
    procedure: Literal["benjamini-hochberg", "benjamini-yekutieli"] = identity(default="benjamini-hochberg")
    """How q comes from p. The second holds under any dependence among the prompts, and finds less."""
    exclude_calibration: tuple[str, ...] = identity(default=())
    """Ids of calibration prompts that shall not calibrate, since their pictures showed them to be memorised."""
    controls: int = identity(default=60, ge=0, le=1_000_000)
    """Unflagged prompts that are generated as well, drawn by strata of p."""
