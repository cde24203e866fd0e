"""How often the rule of `bench exactness` passes a metric that is equal, one at its margin, and one that is worse.

Scores are drawn from known laws: harmless prompts standard normal, memorised ones shifted so that TPR of them lie above
the threshold that 1% of harmless ones exceed. The rough form adds noise, as rounding does, and loses a known share of
the memorised. So what a bench never sees, whether the form is worse than its margin, is known here. Every draw goes
through `exactness.compared`.

Shapes: N prompts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.stats import norm

from pipelines.bench.exactness import FPR, LEAST_POSITIVES, LEVEL, RANK_MARGIN, RATE_MARGIN, compared
from pipelines.bench.lines import Line, table
from sharpaudit.seeds import generator
from sharpaudit.statistics.intervals import clopper_pearson
from sharpaudit.statistics.noninferiority import rank_correlation

TPR = 0.93
SIZES = ((17, 500), (LEAST_POSITIVES, 1000), (106, 1000))
"""Memorised and harmless prompts: few, the fewest whose rate is judged, and about as many as a test split has."""
EQUAL = 0.9975
"""Rank correlation of an equal form: about that of residual_gap in bfloat16."""
CASES = {
    "equal": (EQUAL, 0.0),
    "loses the margin of TPR": (EQUAL, RATE_MARGIN),
    "loses twice that": (EQUAL, 2 * RATE_MARGIN),
    "ranks at the margin": (1 - RANK_MARGIN, 0.0),
}
"""True rank correlation and true loss of TPR."""
DRAWS, REPLICATES = 200, 100
LEAST_POWER = 0.8
"""Of an equal form; not asked of LEAST_POSITIVES, where one prompt that rounding moves decides."""
LARGE = 100_000
Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Passed:
    """How many of the draws the rule passes, with an exact interval of the share."""

    case: str
    positives: int
    harmless: int
    passed: int
    draws: int

    @property
    def share(self) -> tuple[float, float, float]:
        """With low and high."""
        interval = clopper_pearson(self.passed, self.draws)
        return self.passed / self.draws, interval.low, interval.high

    @property
    def worse(self) -> bool:
        """Whether the form lies at a margin that these sizes judge, or beyond it."""
        correlation, loss = CASES[self.case]
        return correlation <= 1 - RANK_MARGIN or (loss >= RATE_MARGIN and self.positives >= LEAST_POSITIVES)


def simulate(draws: int = DRAWS, replicates: int = REPLICATES) -> Iterator[Passed]:
    """Every case at every size. replicates: of each bootstrap."""
    for positives, harmless in SIZES:
        for case, (correlation, loss) in CASES.items():
            rng = generator("non-inferiority", case, positives)
            noise = _noise_of(correlation, positives, harmless)
            passed = sum(_passes(rng, positives, harmless, noise, loss, replicates) for _ in range(draws))
            yield Passed(case, positives, harmless, passed, draws)


def _passes(
    rng: np.random.Generator, positives: int, harmless: int, noise: float, loss: float, replicates: int
) -> bool:
    rough, exact = _scores(rng, positives, harmless, noise, loss)
    families = np.array([str(i) for i in range(len(exact))])
    memorised = np.arange(len(exact)) < positives
    return compared("simulated", rough, exact, memorised, families, replicates).offered


def _scores(
    rng: np.random.Generator, positives: int, harmless: int, noise: float, loss: float
) -> tuple[Values, Values]:
    """Scores of the rough and of the exact form, (N,) each, memorised prompts first."""
    line, scale = float(norm.isf(FPR)), float(np.hypot(1, noise))
    memorised = np.arange(positives + harmless) < positives
    drawn, rounding = rng.standard_normal((2, positives + harmless))
    exact = drawn + memorised * (line - norm.isf(TPR))
    rough = drawn + noise * rounding + memorised * scale * (line - norm.isf(TPR - loss))
    return rough, exact


@lru_cache
def _noise_of(correlation: float, positives: int, harmless: int) -> float:
    """The noise whose true rank correlation this is, among so many memorised and harmless prompts."""
    share = positives / (positives + harmless)

    def excess(noise: float) -> float:
        rng = generator("non-inferiority", "large")
        n = round(share * LARGE)
        return rank_correlation(*_scores(rng, n, LARGE - n, noise, 0.0)) - correlation

    return float(brentq(excess, 1e-3, 1.0, xtol=1e-4))


def bench_lines(found: Sequence[Passed]) -> Iterator[Line]:
    """A form at its margin passes in at most 5%, up to what chance leaves open; an equal one mostly."""
    for one in found:
        share, low, high = one.share
        name = f"noninferiority.{one.case.replace(' ', '_')}.positives_{one.positives}"
        yield Line(name, share, "share", one.draws, low, high)
        if one.worse:
            yield Line(f"{name}.low", low, "share", one.draws, goal=1 - LEVEL, at_most=True)
        elif one.case == "equal" and one.positives != LEAST_POSITIVES:
            yield Line(f"{name}.high", high, "share", one.draws, goal=LEAST_POWER)


def markdown(found: Sequence[Passed]) -> str:
    """The table for people."""
    rows = []
    for one in found:
        share, low, high = one.share
        correlation, loss = CASES[one.case]
        rows.append(
            [
                one.case,
                one.positives,
                f"{one.harmless:,}",
                f"{correlation:g}",
                f"{loss:g}",
                f"{share:.1%} ({low:.1%} to {high:.1%})",
            ]
        )
    head = ["form", "memorised", "harmless", "true rank correlation", "true loss of TPR", "passes"]
    return f"How often the rule passes a form whose truth is known\n\n{table(head, rows)}"
