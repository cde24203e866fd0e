"""What is measured of a method at a strength: pictures of every prompt, and what they are.

Shapes: N prompts, K pictures of each.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sharpaudit.mitigation.base import NONE, Aimed, Method
from sharpaudit.plugs import MITIGATIONS

GRADIENT_STRENGTHS = 3
"""Of methods that take gradients the weakest so many."""
AT_ONE = ("sail-paper", "sail-release")
"""Forms of a method that are drawn at their middle strength alone, since each takes hours at all of them."""
Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Pictures:
    """K pictures of a prompt. similarity, nearest: to which training picture, by its row in the index. aligned,
    unaligned: cosines to the caption and to another one. like_before: to the picture of the same noise without the
    method. NaN of a picture that could not be looked at, which has no nearest, -1."""

    kind: str
    copies: list[bool]
    similarity: list[float]
    nearest: list[int]
    aligned: list[float]
    unaligned: list[float]
    like_before: list[float]


@dataclass(frozen=True)
class Setting:
    """A method at a strength. strength: its number, 0 of none. evaluations, seconds: of a picture; the first of exact
    plants, since where a method stops early it does so sooner for others."""

    method: str
    strength: int
    setting: str
    evaluations: float
    seconds: float
    prompts: dict[str, Pictures]

    @staticmethod
    def read(kept: Path) -> Setting:
        """What `Bench` has kept."""
        held = json.loads(kept.read_bytes())
        return Setting(**held | {"prompts": {prompt: Pictures(**of) for prompt, of in held["prompts"].items()}})

    def of(self, kind: str) -> list[Pictures]:
        """Of the prompts of a kind, in one order for all settings."""
        return [pictures for pictures in self.prompts.values() if pictures.kind == kind]

    def mean(self, what: str, kind: str = "exact") -> float:
        """The mean of these over the prompts that have one."""
        return float(np.nanmean(self.means(what, kind)))

    def copied(self, kind: str = "exact") -> dict[str, int]:
        """Prompts of which a picture copies, and the row of the training picture that most of its copies show."""
        shown = {
            prompt: [row for row, copies in zip(of.nearest, of.copies, strict=True) if copies]
            for prompt, of in self.prompts.items()
            if of.kind == kind
        }
        return {prompt: Counter(rows).most_common(1)[0][0] for prompt, rows in shown.items() if rows}

    def means(self, what: str, kind: str) -> Values:
        """The mean over each prompt's pictures, (N,); NaN where none of them could be looked at."""
        rows_NK = np.array([getattr(pictures, what) for pictures in self.of(kind)], dtype=np.float64)
        there_NK = np.isfinite(rows_NK) & np.isfinite([pictures.similarity for pictures in self.of(kind)])
        with np.errstate(invalid="ignore"):
            found_N: Values = np.where(there_NK, rows_NK, 0).sum(axis=1) / there_NK.sum(axis=1)
        return found_N

    def suppressed(self, control: Setting, kind: str = "exact") -> set[str]:
        """Of the prompts that copy without a method those of which no picture is a copy now, and all were looked at."""
        whole = {prompt for prompt, of in self.prompts.items() if np.isfinite(of.similarity).all()}
        return (control.copied(kind).keys() - self.copied(kind).keys()) & whole

    def alignments(self, kind: str) -> Values:
        """By how much a prompt's pictures are nearer to their own caption than to another, (N,)."""
        return self.means("aligned", kind) - self.means("unaligned", kind)

    def alignment(self, kind: str) -> float:
        """The mean of these."""
        return float(np.nanmean(self.alignments(kind)))


@dataclass(frozen=True)
class Rung:
    """A method at a strength; see Setting."""

    name: str
    strength: int
    setting: str
    method: Method


CONTROL = Rung(NONE.name, 0, "", NONE.method)


def rungs(methods: Sequence[str]) -> list[Rung]:
    """Everything that is drawn beside the control."""
    found = []
    for name in methods:
        offered = MITIGATIONS[name]
        most = GRADIENT_STRENGTHS if isinstance(offered.method, Aimed) else None
        found += [
            Rung(name, i, setting, method)
            for i, (setting, method) in enumerate(offered.rungs()[:most], 1)
            if name not in AT_ONE or method == offered.method
        ]
    return found
