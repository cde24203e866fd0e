"""Timing of alternatives in one run: they take turns, so that a busy machine slows all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from pipelines.bench.lines import Line

ROUNDS = 6
"""The range of six rounds holds the median with 97% confidence."""


@dataclass(frozen=True)
class Contender:
    """Something to time. run: does it once for `prompts` prompts. nfe: evaluations a prompt."""

    name: str
    what: str
    prompts: int
    nfe: float
    run: Callable[[], object]


@dataclass(frozen=True)
class Timed:
    """rates: prompts per second in each round."""

    row: Contender
    rates: list[float]


def timed(
    rows: Sequence[Contender], rounds: int = ROUNDS, *, warm: bool = True, tell: Callable[[str], None] = lambda _: None
) -> dict[str, Timed]:
    """The rate of each row in each round, after one call that is not counted unless `warm` is off.

    tell: is given a line of progress before each round.
    """
    rates: dict[str, list[float]] = {row.name: [] for row in rows}
    turns, begun = rounds + warm, time.perf_counter()
    for turn in range(turns):
        left = (time.perf_counter() - begun) * (turns - turn) / turn if turn else None
        tell(f"round {turn + 1} of {turns}{'' if left is None else f', about {left:.0f} s left'}")
        for row in rows:
            rate = row.prompts / _spent(row)
            if turn >= warm:
                rates[row.name].append(rate)
    return {row.name: Timed(row, rates[row.name]) for row in rows}


def _spent(row: Contender) -> float:
    """Seconds of one call."""
    begun = now()
    row.run()
    return now() - begun


def now() -> float:
    """Seconds of a clock, read once the device has done its work: who only launches some is billed for it."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def ratio(name: str, ours: Timed, other: Timed, goal: float | None) -> Line:
    """The median over rounds of the rates' ratio, with its range."""
    values = [a / b for a, b in zip(ours.rates, other.rates, strict=True)]
    return Line(name, statistics.median(values), "ratio", len(values), min(values), max(values), goal)
