"""The result of a bench for machines: a list of named values, each with an interval and, where it has one, a goal."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sharpaudit.tables.records import export_file


@dataclass(frozen=True)
class Line:
    """A value. low, high: its 95% interval, where there is one. n: observations.

    goal: the least it should be, or the most where `at_most`.
    """

    name: str
    value: float
    unit: str
    n: int
    low: float | None = None
    high: float | None = None
    goal: float | None = None
    at_most: bool = False

    @property
    def met(self) -> bool | None:
        """Whether the goal is reached; None without one."""
        if self.goal is None:
            return None
        return self.value <= self.goal if self.at_most else self.value >= self.goal

    def as_json(self) -> dict[str, Any]:
        """What stands in the file."""
        return {name: value for name, value in asdict(self).items() if name != "at_most"} | {"met": self.met}


def table(head: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """A table in Markdown, for people."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n"


def write_json(path: Path, lines: Sequence[Line]) -> None:
    """Write the lines as JSON, in one step."""
    text = json.dumps([line.as_json() for line in lines], indent=1) + "\n"
    export_file(path.absolute(), text.encode())


def unmet(lines: Sequence[Line], needed: Sequence[str]) -> list[str]:
    """A sentence for each goal that is not reached, and for each line that is needed and was not measured."""
    missed = [f"{x.name} is {x.value:.4g} {x.unit}, the goal {x.goal:.4g}" for x in lines if x.met is False]
    measured = {line.name for line in lines}
    return missed + [f"{name} was not measured" for name in needed if name not in measured]
