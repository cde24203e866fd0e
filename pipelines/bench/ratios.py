"""What `bench throughput` says of the rows that it timed: which is held against which, with which goal.

A figure is the median over rounds of the ratio of two rates of the same round, its interval the range over the rounds.
Rows of one metric stand together, at the same seeds: Wen's practice and our noise gap, Jeon's and our exact product and
finite difference. Our own screen, residual_gap, is another metric; its rows stand apart and say so. In bfloat16 ours is
held against the practice in bfloat16.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from pipelines.bench.lines import Line, table
from pipelines.bench.timing import Timed, ratio

MINUTES = 10.0
"""The most that the whole bench may take."""
RATIOS: dict[str, tuple[str, str, float | None]] = {
    "speed.gap_vs_wen1": ("gap1", "wen1", None),
    "speed.gap_vs_wen4": ("gap4", "wen4", 2.5),
    "speed.exact_vs_jeon": ("exact", "jeon", None),
    "speed.fd_vs_jeon": ("fd", "jeon", 5.0),
    "speed.screen_vs_wen4": ("screen", "wen4", 8.0),
    "speed.screen_vs_jeon": ("screen", "jeon", 50.0),
    "speed.cascade_vs_wen4": ("cascade", "wen4", None),
    "speed.cascade_vs_jeon": ("cascade", "jeon", 30.0),
    "speed.floor_share": ("loop", "floor", 0.9),
    "speed.screen_floor_share": ("screen", "floor_one", None),
    "speed.baseline_vs_bare": ("jeon", "jeon_bare", 0.9),
    "speed.wen4_vs_bare": ("wen4", "wen4_bare", None),
}
"""By the name of the line: a row, the row that it is held against, and the least that the ratio of rates should be."""
BF16_RATIOS = ("gap_vs_wen4", "fd_vs_jeon", "screen_vs_wen4", "screen_vs_jeon", "cascade_vs_jeon")
"""Those that are measured in bfloat16 as well, both rows in it; without a goal."""
PARTS: dict[str, dict[str, dict[str, str]]] = {
    "The noise gap, Wen's metric": {
        "times Wen's practice at as many seeds": {"wen1": "wen1", "gap1": "wen1", "wen4": "wen4", "gap4": "wen4"}
    },
    "The sharpness, Jeon's metric": {
        "times Jeon's practice": dict.fromkeys(("jeon", "exact", "fd_single", "fd"), "jeon")
    },
    "Our own screen, residual_gap, which is another metric": {
        "times Wen's practice, n = 4": dict.fromkeys(("screen_single", "screen", "cascade"), "wen4"),
        "times Jeon's practice, n = 4": dict.fromkeys(("screen_single", "screen", "cascade"), "jeon"),
    },
    "In bfloat16, the practice as well": {
        "times Wen's practice": dict.fromkeys(("wen4.bf16", "gap4.bf16", "screen.bf16", "cascade.bf16"), "wen4.bf16"),
        "times Jeon's practice": dict.fromkeys(("jeon.bf16", "fd.bf16", "screen.bf16", "cascade.bf16"), "jeon.bf16"),
    },
    "Against the network calls alone": {
        "times its calls alone": {
            "wen4_bare": "wen4_bare",
            "wen4": "wen4_bare",
            "jeon_bare": "jeon_bare",
            "jeon": "jeon_bare",
            "floor_one": "floor_one",
            "screen": "floor_one",
            "floor": "floor",
            "loop": "floor",
        }
    },
}
"""The tables of the lab's model: by column of ratios, the rows that have one there and what each is held against."""


@dataclass(frozen=True)
class Throughput:
    """rows: of the lab's model. forms: of its network alone. sd1: of a larger network, empty if it was left out."""

    rows: dict[str, Timed]
    forms: dict[str, Timed]
    sd1: dict[str, Timed]

    def lines(self) -> Iterator[Line]:
        """For machines: every ratio that was measured, then the rate of every row."""
        for name, (ours, other, goal) in RATIOS.items():
            yield ratio(name, self.rows[ours], self.rows[other], goal)
            if name.removeprefix("speed.") in BF16_RATIOS and f"{ours}.bf16" in self.rows:
                yield ratio(f"{name}.bf16", self.rows[f"{ours}.bf16"], self.rows[f"{other}.bf16"], None)
        for name, timing in self.forms.items():
            if name != "forward":
                yield ratio(f"speed.{name}", timing, self.forms["forward"], None)
        if self.sd1:
            yield ratio("speed.sd1_fd", self.sd1["fd"], self.sd1["jeon"], None)
        for prefix, rows in (("", self.rows), ("", self.forms), ("sd1_", self.sd1)):
            for name, timing in rows.items():
                rates = timing.rates
                rate = statistics.median(rates)
                yield Line(f"speed.rate.{prefix}{name}", rate, "prompts/s", len(rates), min(rates), max(rates))


def needed() -> list[str]:
    """Names of the lines that have a goal, all of which a whole measurement has."""
    return [name for name, (_, _, goal) in RATIOS.items() if goal is not None]


def markdown(found: Throughput) -> str:
    """The tables for people."""
    parts = [(title, found.rows, columns) for title, columns in PARTS.items()]
    parts.append(("The network alone", found.forms, {"times the first row": dict.fromkeys(found.forms, "forward")}))
    sd1 = "A UNet of Stable Diffusion 1's size, random weights, 4 x 32 x 32 latents"
    parts.append((sd1, found.sd1, {"times Jeon's practice": {"jeon": "jeon", "fd": "jeon"}}))
    measured = [part for part in parts if all(set(held) <= set(part[1]) for held in part[2].values())]
    return "\n".join(_part(*part) for part in measured)


def _part(title: str, rows: Mapping[str, Timed], columns: Mapping[str, Mapping[str, str]]) -> str:
    lines = []
    for name in dict.fromkeys(name for held in columns.values() for name in held):
        timing = rows[name]
        cells = [timing.row.what, f"{timing.row.nfe:g}", f"{statistics.median(timing.rates):.3g}"]
        for held in columns.values():
            line = ratio("", timing, rows[held[name]], None) if name in held else None
            cells.append(f"{line.value:.2f} ({line.low:.2f} to {line.high:.2f})" if line else "")
        lines.append(cells)
    return f"{title}\n\n{table(['', 'NFE a prompt', 'prompts a second', *columns], lines)}"
