"""What a call of `run` came to: a few closing lines for the terminal, and the exit code."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.flow.deadline import EXIT_CODE
from sharpaudit.config import AuditConfig
from sharpaudit.report.html import held

REJECTED = 3


@dataclass(frozen=True)
class Outcome:
    """What a call of `run` came to. evaluations: network evaluations made by this call. facts: the report's.

    late: whether the deadline came before the work was done.
    """

    evaluations: int
    quarantined: list[dict[str, Any]]
    facts: dict[str, Any]
    late: bool = False


def exit_code(outcome: Outcome, config: AuditConfig) -> int:
    """0 complete; 143 the deadline came first; 1 a shard was set aside or a sum does not agree; 3 more rows rejected
    than `run.max_rejected`."""
    if outcome.late and outcome.facts["reconciles"]:
        return EXIT_CODE
    if outcome.quarantined or not outcome.facts["reconciles"]:
        return 1
    return REJECTED if rejected_share(outcome.facts) > config.run.max_rejected else 0


def rejected_share(facts: dict[str, Any]) -> float:
    """Audited rows that came to no score, of all audited rows."""
    steps = {step["step"]: step for step in facts["flow"]}
    read, accepted = steps["source rows"]["n"], steps["accepted"]["n"]
    unscored = steps["distinct prompts"]["n"] - steps["scored"]["n"]
    return (read - accepted + unscored) / read if read else 0.0


def closing(outcome: Outcome, root: Path) -> str:
    """What was found, and where it stands."""
    facts, flow = outcome.facts, {step["step"]: step for step in outcome.facts["flow"]}
    did = "nothing was left to do" if outcome.evaluations == 0 else f"{outcome.evaluations:,} network evaluations"
    told = facts["copies"]
    flagged, controls = told["flagged"], told["controls"]
    chance = ""
    if flagged["expected"] is not None:
        chance = f"; {flagged['expected']:,.1f} and {controls['expected']:,.1f} would by chance"
    lines = [
        f"{flow['scored']['n']:,} prompts scored, {flow['flagged']['n']:,} flagged, "
        f"{flow['generated']['samples']:,} pictures of flagged prompts and of controls ({did})",
        f"{flagged['copied']:,} of {flagged['compared']:,} flagged prompts and {controls['copied']:,} of "
        f"{controls['compared']:,} controls have a copy of a training picture among {told['per_prompt']} pictures"
        + chance,
        *_apart(told["uncalibrated"]),
        # A number of prompts: what lies below the bound, as the page has it.
        f"at most {math.floor(facts['controls']['missed_high']):,} unflagged prompts would copy in at least one of "
        f"{told['per_prompt']} pictures (95% confidence, from the control sample)",
    ]
    holding = facts["holding"]
    if holding and holding["share"] < 1:
        lines.append(held(holding))
    rejected = rejected_share(facts)
    if rejected:
        lines.append(f"{rejected:.1%} of the audited rows were rejected; the report says why")
    lines += [
        f"set aside: {entry['stage']} shard {entry['shard']}, {entry['rows']:,} rows: {entry['reason']}"
        for entry in outcome.quarantined
    ]
    lines += [f"the sums do not agree: {line}" for line in facts["differences"]]
    return "\n".join([*lines, f"report: {root / 'report' / 'index.html'}"])


def _apart(told: dict[str, Any]) -> list[str]:
    """A line on prompts without calibration prompts of their style, where any was generated."""
    if not told["compared"]:
        return []
    return [
        f"{told['copied']:,} of {told['compared']:,} uncalibrated prompts that rank as high as flagged ones have a "
        "copy; no error rate is claimed of these"
    ]
