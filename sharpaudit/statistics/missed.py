"""How many prompts that copy the flags missed, from a control sample of unflagged prompts drawn by strata.

A prompt is counted where at least one of the k pictures copies that the run makes of each prompt it generates. That is
fixed for every prompt, generated or not, so a sample of prompts bounds how many there are. It is not how many copy at
all: one that copies in a share r of its pictures is among them with probability 1 - (1 - r)^k (`seen`), and of the
others nothing is claimed.

In a stratum of N prompts, of which n were drawn and k copied, N k / n is the unbiased estimate (Horvitz and Thompson,
JASA 1952) and N U(k, n) a bound, U the upper Clopper-Pearson bound at level 1 - 0.05 / strata, so that the sum of
the bounds holds with 95% confidence for all strata together. A simple random sample could not bound what lies near
the line: 0 of 300 controls among a million allows 9,900 misses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sharpaudit.statistics.intervals import upper_bound

LEVEL = 0.95
RATES = (0.1, 0.3, 0.6)
"""Shares of copies among a prompt's pictures for which people are told how often so many pictures show one."""


@dataclass(frozen=True)
class Drawn:
    """A stratum: its size, and of those drawn the ones with a copy.

    unknown: drawn and not examined in full. They count as copied in the bound: a failure may depend on the prompt.
    """

    size: int
    drawn: int
    copied: int
    unknown: int = 0


@dataclass(frozen=True)
class Missed:
    """high: of each stratum. estimate: None where a stratum has prompts and none of them was examined."""

    high: tuple[float, ...]
    estimate: float | None

    @property
    def total_high(self) -> float:
        """At most so many unflagged prompts would copy in at least one of their pictures, with 95% confidence."""
        return sum(self.high)


def missed(strata: Sequence[Drawn], level: float = LEVEL) -> Missed:
    """The estimate and the bound over all strata."""
    tail = (1 - level) / max(1, len(strata))
    high = tuple(s.size * upper_bound(s.copied + s.unknown, s.drawn, 1 - tail) for s in strata)
    known = [(s.size, s.copied, s.drawn - s.unknown) for s in strata if s.size]
    if any(examined == 0 for _, _, examined in known):
        return Missed(high, None)
    return Missed(high, sum(size * copied / examined for size, copied, examined in known))


def least_recall(found: int, missed_high: float) -> float | None:
    """Share found of all prompts that would copy in their pictures, at least; None where there may be none at all."""
    return found / (found + missed_high) if found + missed_high > 0 else None


def seen(rate: float, pictures: int) -> float:
    """The chance of a copy among so many pictures of a prompt that copies in a share `rate` of them."""
    return 1.0 - (1.0 - rate) ** pictures
