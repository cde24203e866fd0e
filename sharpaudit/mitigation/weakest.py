"""The smallest strength of a method at which no picture is a copy, found at little cost.

Strengths are tried from weak to strong. A strength at which one of the first pictures copies has failed, and only one
at which none does is drawn whole. Where none suppresses, the one with the smallest share of copies is drawn whole as
well, so that there is a figure to tell. So a method of r strengths that fails costs 4 (r - 1) pictures more than one
with a single strength.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Generic, TypeVar

PROBED = 4
"""Pictures that decide whether a strength is drawn whole."""

M = TypeVar("M")
R = TypeVar("R")


@dataclass
class Rung(Generic[R]):
    """What was drawn at a strength. strength: its number, from 1 for the weakest."""

    strength: int
    setting: str
    drawn: list[R]


def weakest(
    rungs: Sequence[tuple[str, M]],
    draw: Callable[[M, Sequence[int]], Sequence[R]],
    fails: Callable[[R], bool],
    pictures: int,
) -> list[Rung[R]]:
    """Every strength that was tried. The last one suppresses, if it was drawn whole and no picture of it fails.

    draw: the pictures of these numbers by a method. fails: whether one is a copy, or could not be looked at.
    """
    made: list[Rung[R]] = []
    for i, (setting, method) in enumerate(rungs):
        rung = Rung(i + 1, setting, list(draw(method, range(min(PROBED, pictures)))))
        made.append(rung)
        if any(map(fails, rung.drawn)):
            continue
        rung.drawn += draw(method, range(len(rung.drawn), pictures))
        if not any(map(fails, rung.drawn)):
            return made
    best = min(made, key=lambda rung: Fraction(sum(map(fails, rung.drawn)), len(rung.drawn)))
    best.drawn += draw(rungs[best.strength - 1][1], range(len(best.drawn), pictures))
    return made
