"""What controls and the line of a copy promise, simulated for prompts that copy now and then.

The bound on misses: unflagged prompts copy in a share of their pictures, or never. A control shows that only in the
pictures that are made of it, so what must hold is the bound on prompts that would copy in at least one of them.

The line of a copy: a picture's similarity is normal, in part its prompt's own and in part the picture's. A line learned
from k pictures a prompt is held against harmless prompts with as many pictures, whose exact share above it is known,
and, to show why the numbers must be the same, against prompts with more.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr, roots_hermite

from pipelines.bench.decisions import FOUND, Mean, mean
from pipelines.bench.lines import Line, table
from sharpaudit.matches.decide import Pair, false_match_bound, false_match_rate, learn_bands
from sharpaudit.seeds import generator
from sharpaudit.statistics.missed import LEVEL, RATES, Drawn, least_recall, missed, seen

DRAWS = 2000
PICTURES, FEWER = 4, 2
UNFLAGGED, COPYING = 2000, 148
"""All in one stratum of p: nothing that strata leave to chance helps the bound."""
CONTROLS = (60, 1000)
BAND_PROMPTS = 100
LAWS = (
    (PICTURES, 0.0, 1),
    (PICTURES, 0.5, 0),
    (PICTURES, 0.5, 1),
    (PICTURES, 0.5, 2),
    (PICTURES, 0.9, 1),
    (FEWER, 0.0, 1),
    (FEWER, 0.5, 1),
)
"""Pictures of a band prompt, the share of the variance that is its prompt's, exceptions; PICTURES are of the others."""
NODES, WEIGHTS = roots_hermite(80)
Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Bounded:
    """Of controls that copy in a share `rate` of their pictures: how often the bounds hold.

    truth: unflagged prompts that would copy in at least one picture. missed, recall: of these. every: how often the
    bound would hold for all that copy at all, which is not claimed; fewer: and with FEWER pictures a control.
    """

    rate: float
    controls: int
    truth: Mean
    bound: Mean
    missed: Mean
    recall: Mean
    every: Mean
    fewer: Mean


def bounded(draws: int = DRAWS) -> Iterator[Bounded]:
    """For each rate and number of controls."""
    for rate in RATES:
        for controls in CONTROLS:
            rng = generator(0, "copying", str(rate), str(controls))
            told = np.array([_draw(rng, rate, controls) for _ in range(draws)])
            yield Bounded(rate, controls, *(mean(told[:, i]) for i in range(6)))


def _draw(rng: np.random.Generator, rate: float, controls: int) -> list[float]:
    copying = int(rng.binomial(COPYING, seen(rate, PICTURES)))
    found = int(rng.binomial(FOUND, seen(rate, PICTURES)))
    high = _high(controls, int(rng.hypergeometric(copying, UNFLAGGED - copying, controls)))
    drawn = int(rng.hypergeometric(COPYING, UNFLAGGED - COPYING, controls))
    with_fewer = _high(controls, int(rng.binomial(drawn, seen(rate, FEWER))))
    recall = least_recall(found, high)
    holds = recall is None or recall * (found + copying) <= found
    return [copying, high, high >= copying, holds, high >= COPYING, with_fewer >= COPYING]


def _high(controls: int, copied: int) -> float:
    return missed([Drawn(UNFLAGGED, controls, copied)]).total_high


@dataclass(frozen=True)
class Line95:
    """Of one law of similarities: how often fewer harmless prompts than `bound` exceed the line, and how many do.

    learned: pictures of a band prompt. own: share of the variance that is the prompt's. rate: claimed on average.
    """

    learned: int
    own: float
    exceptions: int
    bound: float
    rate: float
    holds: Mean
    above: Mean


def band_lines(draws: int = DRAWS) -> Iterator[Line95]:
    """For each law, the line learned as a run learns it."""
    prompts = [f"{i:04d}" for i in range(BAND_PROMPTS)]
    for learned, own, exceptions in LAWS:
        rng, lines = generator(0, "band", str(learned), str(own), str(exceptions)), []
        for _ in range(draws):
            effect_P1 = rng.standard_normal((BAND_PROMPTS, 1)) * math.sqrt(own)
            reached_PK = effect_P1 + rng.standard_normal((BAND_PROMPTS, learned)) * math.sqrt(1 - own)
            of_each = zip(prompts, reached_PK.tolist(), strict=True)
            pairs = [Pair(name, f"{name}-{k}", value) for name, values in of_each for k, value in enumerate(values)]
            lines.append(learn_bands(pairs, 0.95, exceptions).copy_above)
        above = share_above(np.array(lines), own, PICTURES)
        bound, rate = false_match_bound(BAND_PROMPTS, exceptions), false_match_rate(BAND_PROMPTS, exceptions)
        yield Line95(learned, own, exceptions, bound, rate, mean((above <= bound).astype(float)), mean(above))


def share_above(lines_N: Values, own: float, pictures: int) -> Values:
    """The share of harmless prompts with at least one of so many pictures above each line, with shape (N,)."""
    effect_J = math.sqrt(2 * own) * NODES
    below_NJ = ndtr((lines_N[:, None] - effect_J) / math.sqrt(1 - own)) ** pictures
    return np.asarray(1 - below_NJ @ WEIGHTS / math.sqrt(math.pi), dtype=np.float64)


@dataclass(frozen=True)
class Copying:
    """Both tables."""

    bounded: list[Bounded]
    lines: list[Line95]


def simulate(draws: int = DRAWS) -> Copying:
    """Run both."""
    return Copying(list(bounded(draws)), list(band_lines(draws)))


def bench_lines(found: Copying) -> Iterator[Line]:
    """What is claimed must hold at its level, up to what chance explains: the interval's better end is what counts."""
    for b in found.bounded:
        for what, held in (("missed", b.missed), ("recall", b.recall)):
            name = f"decisions.copying_{10 * b.rate:g}_of_10.{what}.controls_{b.controls}"
            yield Line(name, held.value, "share", held.n, held.low, held.high)
            yield Line(f"{name}.high", held.high, "share", held.n, goal=LEVEL)
    for one in found.lines:
        name = f"decisions.band.learned_{one.learned}_of_{PICTURES}.own_{one.own:g}.exceptions_{one.exceptions}"
        yield Line(name, one.holds.value, "share", one.holds.n, one.holds.low, one.holds.high)
        if one.learned == PICTURES:
            yield Line(f"{name}.high", one.holds.high, "share", one.holds.n, goal=LEVEL)
            yield Line(f"{name}.rate_low", one.above.low, "share", one.above.n, goal=one.rate, at_most=True)


def markdown(found: Copying) -> str:
    """The tables for people."""
    parts = [
        f"Controls of {PICTURES} pictures: {UNFLAGGED:,} unflagged prompts, {COPYING} of which copy in a share of "
        f"their pictures, and {FOUND} flagged ones that do",
        table(
            [
                "copy in",
                "controls",
                f"unflagged that would in one of {PICTURES}",
                "bound",
                "bound on these holds",
                "bound on recall holds",
                "not claimed: for all that copy",
                f"and with {FEWER} pictures",
            ],
            [
                [
                    f"{10 * b.rate:g} of 10",
                    f"{b.controls:,}",
                    f"{b.truth.value:.0f}",
                    f"{b.bound.value:.0f}",
                    *map(_shown, (b.missed, b.recall, b.every, b.fewer)),
                ]
                for b in found.bounded
            ],
        ),
        f"The line of a copy, from {BAND_PROMPTS} harmless prompts, for harmless prompts with {PICTURES} pictures",
        table(
            [
                "learned from",
                "variance of the prompt's own",
                "exceptions",
                "fewer than this exceed it (95%)",
                "holds",
                "exceed it on average",
                "claimed",
            ],
            [
                [
                    f"{one.learned} pictures",
                    f"{one.own:.0%}",
                    one.exceptions,
                    f"{one.bound:.2%}",
                    _shown(one.holds),
                    _shown(one.above),
                    f"{one.rate:.2%}",
                ]
                for one in found.lines
            ],
        ),
    ]
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


def _shown(rate: Mean) -> str:
    return f"{rate.value:.2%} ({rate.low:.2%} to {rate.high:.2%})"
