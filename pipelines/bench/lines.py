"""The result of a bench for machines: a list of named values, each with an interval and, where it has one, a goal."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Line:
    """A value. low, high: its 95% interval, where there is one. n: observations. goal: the least it should be."""

    name: str
    value: float
    unit: str
    n: int
    low: float | None = None
    high: float | None = None
    goal: float | None = None

    @property
    def met(self) -> bool | None:
        """Whether the goal is reached; None without one."""
        return None if self.goal is None else self.value >= self.goal


def write_json(path: Path, lines: Sequence[Line]) -> None:
    """Write the lines as JSON, in one step."""
    attempt = path.with_name(f".{path.name}.inprogress")
    attempt.write_text(json.dumps([asdict(line) | {"met": line.met} for line in lines], indent=1) + "\n")
    attempt.replace(path)


def unmet(lines: Sequence[Line], needed: Sequence[str]) -> list[str]:
    """A sentence for each goal that is not reached, and for each line that is needed and was not measured."""
    missed = [f"{x.name} is {x.value:.4g} {x.unit}, the goal {x.goal:.4g}" for x in lines if x.met is False]
    measured = {line.name for line in lines}
    return missed + [f"{name} was not measured" for name in needed if name not in measured]
