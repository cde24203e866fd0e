"""Whether the intervals of detector tables hold, at the sizes of the tables: simulated through statistics/detection.py.

Harmless scores are standard normal, memorised ones normal with a mean and a deviation; a small deviation makes the rate
depend steeply on the threshold. Beside the interval that tables show stand two that others use: Clopper and Pearson's,
with the threshold taken for known, and the bootstrap of prompts with the threshold chosen again. A mean over draws
carries its Monte-Carlo interval, two standard errors to each side.

Shapes: S seeds, P memorised, H harmless, R replicates.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr, ndtri

from pipelines.bench.decisions import Mean, mean
from pipelines.bench.lines import Line, table
from sharpaudit.seeds import generator
from sharpaudit.statistics.detection import Group, auc, figure, tpr_at_fpr
from sharpaudit.statistics.intervals import Interval, clopper_pearson

LEVEL, FPR = 0.95, 0.01
MEMORISED, HARMLESS = (17, 49, 106), (500, 1000)
"""About the sizes of the lab's tables: templates, exact plants of half of the captions and of all; harmless prompts."""
LAWS = ((2.33, 0.3), (2.33, 1.0), (4.0, 1.0), (1.0, 1.0), (3.2, 0.5))
"""Mean and deviation of memorised scores."""
SEEDS = (4, 16)
"""Single seeds in a row of a table. A score is SHARED by the seeds of a prompt; a seed moves memorised ones."""
SHARED, MOVES = 0.7, 0.3
DRAWS, REPLICATES = 200, 100
Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Covered:
    """How often intervals hold, and how wide ours are.

    truth: of the law. known, bootstrap: how often the other two hold, of a TPR at one seed.
    """

    statistic: str
    memorised: int
    harmless: int
    seeds: int
    law: tuple[float, float]
    truth: float
    known: Mean | None
    bootstrap: Mean | None
    held: Mean
    width: Mean


def covered(draws: int = DRAWS) -> Iterator[Covered]:
    """Every case of one seed, then the TPR as a mean over seeds."""
    for statistic, p, h, law in product(("tpr", "auc"), MEMORISED, HARMLESS, LAWS):
        yield case(statistic, p, h, 1, law, draws)
    for seeds, law in product(SEEDS, LAWS[:3]):
        yield case("tpr", MEMORISED[-1], HARMLESS[-1], seeds, law, max(2, draws // 4))


def case(
    statistic: str, n_memorised: int, n_harmless: int, seeds: int, law: tuple[float, float], draws: int
) -> Covered:
    """The coverage of one statistic at one size."""
    truth, told = _truth(statistic, law, seeds), tpr_at_fpr(FPR) if statistic == "tpr" else auc
    rng = generator(0, "intervals", statistic, str((n_memorised, n_harmless, seeds, law)))
    known, bootstrap, held, width = [], [], [], []
    names = [np.array([f"{kind} {i}" for i in range(n)]) for kind, n in (("m", n_memorised), ("h", n_harmless))]
    for _ in range(draws):
        memorised_SP, harmless_SH = (_scores(rng, seeds, n) for n in (n_memorised, n_harmless))
        moved = MOVES * rng.standard_normal((seeds, 1)) if seeds > 1 else 0.0
        memorised_SP = law[0] + law[1] * memorised_SP + moved
        found = figure(told, Group(memorised_SP, names[0]), Group(harmless_SH, names[1]), level=LEVEL)
        held.append(_holds(found.interval, truth))
        width.append(found.interval.high - found.interval.low)
        if seeds == 1 and statistic == "tpr":
            known.append(_holds(clopper_pearson(round(found.mean * n_memorised), n_memorised, LEVEL), truth))
            bootstrap.append(_holds(_resampled(rng, memorised_SP[0], harmless_SH[0]), truth))
    return Covered(
        statistic,
        n_memorised,
        n_harmless,
        seeds,
        law,
        truth,
        mean(known) if known else None,
        mean(bootstrap) if bootstrap else None,
        mean(held),
        mean(width),
    )


def _scores(rng: np.random.Generator, seeds: int, n: int) -> Values:
    if seeds == 1:
        return rng.standard_normal((1, n))
    found_SN: Values = math.sqrt(SHARED) * rng.standard_normal(n) + math.sqrt(1 - SHARED) * rng.standard_normal(
        (seeds, n)
    )
    return found_SN


def _truth(statistic: str, law: tuple[float, float], seeds: int) -> float:
    centre, spread = law[0], math.hypot(law[1], MOVES if seeds > 1 else 0.0)
    return float(ndtr((centre - ndtri(1 - FPR)) / spread if statistic == "tpr" else centre / math.hypot(1, spread)))


def _holds(interval: Interval, truth: float) -> float:
    return float(interval.low <= truth <= interval.high)


def _resampled(rng: np.random.Generator, memorised_P: Values, harmless_H: Values) -> Interval:
    """The bootstrap's percentiles of the TPR."""
    p, h = len(memorised_P), len(harmless_H)
    at = h - 1 - int(FPR * h + 1e-9)
    lines_R = np.partition(harmless_H[rng.integers(h, size=(REPLICATES, h))], at, axis=1)[:, at]
    rates_R = (memorised_P[rng.integers(p, size=(REPLICATES, p))] > lines_R[:, None]).mean(axis=1)
    low, high = np.quantile(rates_R, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(low), float(high), LEVEL)


def bench_lines(found: list[Covered]) -> Iterator[Line]:
    """An interval holds unless chance does not explain that it holds more rarely than it says."""
    for one in found:
        law = f"{one.law[0]:g}_{one.law[1]:g}"
        name = (
            f"intervals.{one.statistic}.memorised_{one.memorised}.harmless_{one.harmless}.seeds_{one.seeds}.law_{law}"
        )
        yield Line(name, one.held.value, "share", one.held.n, one.held.low, one.held.high)
        yield Line(f"{name}.high", one.held.high, "share", one.held.n, goal=LEVEL)
        yield Line(f"{name}.width", one.width.value, "share", one.width.n)


def markdown(found: list[Covered]) -> str:
    """The table for people."""
    head = [
        "statistic",
        "memorised",
        "harmless",
        "seeds",
        "memorised scores",
        "truth",
        "threshold taken for known",
        "bootstrap",
        "ours",
        "width",
    ]
    names = {"tpr": "TPR at 1% FPR", "auc": "AUC"}
    rows = []
    for c in found:
        others = ["" if other is None else f"{other.value:.1%}" for other in (c.known, c.bootstrap)]
        law = f"N({c.law[0]:g}, {c.law[1]:g}²)"
        sizes = [names[c.statistic], c.memorised, c.harmless, c.seeds, law, f"{c.truth:.3f}"]
        rows.append([*sizes, *others, f"{c.held.value:.1%}", f"{c.width.value:.3f}"])
    return table(head, rows)
