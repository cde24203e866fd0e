"""When a night is over: no more work is handed out, what is at work is finished, the rest is set aside and counted."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime

from pipelines.flow.signals import InterruptedRunError
from pipelines.stages.base import Receipt, Stage, Work
from sharpaudit.config import moment
from sharpaudit.errors import UserError

EXIT_CODE = 143
Clock = Callable[[], float]


class Deadline:
    """told: `run.deadline`, or None for a run that takes its time. Measured on a clock that nobody sets."""

    def __init__(self, told: str | None, now: datetime | None = None, clock: Clock = time.monotonic) -> None:
        self._told, self._clock, self._end = told, clock, float("inf")
        self.left: list[Receipt] = []
        """What was not taken, in the order of the flow."""
        if told is None:
            return
        begun = now or datetime.now()
        seconds = (moment(told, begun) - begun).total_seconds()
        if seconds <= 0:
            raise UserError(f"run.deadline = {told}: has passed already; name a later time")
        self._end = clock() + seconds

    @property
    def passed(self) -> bool:
        """Whether no more work is taken."""
        return self._clock() >= self._end

    def taken(self, stage: Stage, work: Iterable[Work]) -> Iterator[Work]:
        """The work until the deadline; the rest is noted as left. Decisions over what is there are always made."""
        for item in work:
            incomplete = stage.whole and bool(self.left)
            if incomplete or (stage.scope == "row" and self.passed):
                self.left.append(Receipt(item, None, f"was not begun before the deadline {self._told}"))
            else:
                yield item

    def left_of(self, stage: Stage) -> list[Receipt]:
        """What was left of a stage."""
        return [receipt for receipt in self.left if receipt.work.stage == stage.name]

    def require(self, stage: Stage) -> None:
        """Raise InterruptedRunError where something was left without which nothing can be told."""
        needed = [r for r in self.left_of(stage) if stage.demands in ("all", r.work.about.get("role"))]
        if needed:
            rows = sum(receipt.work.rows for receipt in needed)
            raise InterruptedRunError(
                f"the deadline {self._told} came with {rows:,} harmless prompts of {stage.name} left, without which "
                "nothing can be told of any other; the same command goes on there",
                EXIT_CODE,
            )
