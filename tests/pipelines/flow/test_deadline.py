"""A deadline: decisions are made, row shards are not begun, and what a stage demands ends the run."""

from __future__ import annotations

from datetime import datetime

import pytest

from pipelines.flow.deadline import EXIT_CODE, Deadline
from pipelines.flow.signals import InterruptedRunError
from pipelines.stages.base import Work
from sharpaudit.errors import UserError
from sharpaudit.plugs import STAGES

NOON = datetime(2026, 1, 1, 12, 0)


def work(stage: str, role: str, n: int = 2) -> list[Work]:
    return [Work(stage, f"{role}-{i}", 10, "", about={"role": role}) for i in range(n)]


def at(clock: list[float], now: float = 0.0) -> Deadline:
    """A deadline in a minute, on a clock that a test turns; now: what it shows once the run has begun."""
    deadline = Deadline("12:01", NOON, clock=lambda: clock[0])
    clock[0] += now
    return deadline


def test_row_shards_are_taken_until_then_and_noted_after() -> None:
    clock = [0.0]
    deadline, score = at(clock), STAGES["score"]
    taken = deadline.taken(score, work("score", "audit", 3))
    assert next(taken).shard == "audit-0"
    clock[0] = 60.0
    assert deadline.passed
    assert list(taken) == []
    assert [receipt.work.shard for receipt in deadline.left_of(score)] == ["audit-1", "audit-2"]
    deadline.require(score)


def test_decisions_over_what_is_there_are_made_after_it_too() -> None:
    deadline = at([0.0], 61.0)
    assert len(list(deadline.taken(STAGES["triage"], work("triage", "all")))) == 2
    assert deadline.left == []


@pytest.mark.parametrize(("stage", "role"), [("score", "calibration"), ("fit_differences", "fit")])
def test_what_a_stage_demands_must_be_done(stage: str, role: str) -> None:
    deadline = at([0.0], 61.0)
    assert list(deadline.taken(STAGES[stage], work(stage, role))) == []
    with pytest.raises(InterruptedRunError, match=f"20 harmless prompts of {stage} left") as ended:
        deadline.require(STAGES[stage])
    assert ended.value.exit_code == EXIT_CODE


def test_what_is_worth_nothing_unless_whole_waits_for_what_was_left() -> None:
    clock = [0.0]
    deadline = at(clock, 61.0)
    list(deadline.taken(STAGES["sample"], work("sample", "band")))
    clock[0] = 0.0
    assert list(deadline.taken(STAGES["bands"], work("bands", "all"))) == []
    assert list(deadline.taken(STAGES["selection"], work("selection", "all"))) != []


def test_a_time_that_has_passed_is_refused() -> None:
    with pytest.raises(UserError, match=r"run\.deadline = 2025-12-31T07:00: has passed already"):
        Deadline("2025-12-31T07:00", NOON)
    assert not Deadline(None).passed
