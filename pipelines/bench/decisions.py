"""What the decisions promise, simulated through the code that an audit runs: rates, power, and the bound on misses.

An audit's scores are drawn from known laws: harmless ones standard normal, memorised ones SHIFT higher. So what an
audit never sees, which flags are false and how many prompts it missed, is known here. A mean over draws
carries its Monte-Carlo interval, two standard errors to each side.

Shapes: N draws, M audited prompts, C calibration prompts, D latent elements, K directions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from pipelines.bench.lines import Line, table
from sharpaudit.config import AuditConfig
from sharpaudit.scores.residual_gap import residual_gap
from sharpaudit.scores.subspace import fit_subspace
from sharpaudit.seeds import generator
from sharpaudit.statistics.conformal import at_most, fpr_interval, p_values
from sharpaudit.statistics.fdr import Procedure, q_values
from sharpaudit.statistics.missed import Drawn, least_recall, missed
from sharpaudit.statistics.power import SHIFT
from sharpaudit.statistics.sampling import allocate
from sharpaudit.triage.decide import decide

AUDITED, CALIBRATION = 1000, 999
SHARES = (0.0, 0.001, 0.01, 0.1)
"""Memorised prompts among the audited ones."""
ALPHA, Q = 0.01, 0.1
DRAWS, CONTROL_DRAWS = 200, 2000
PROCEDURES: tuple[Procedure, ...] = ("benjamini-hochberg", "benjamini-yekutieli")
LARGE = 10_000
SIZES = (99, 600, 999, 2000, 9999)
"""Calibration prompts of the table of power."""
STRATA = ((20, 10), (80, 8), (300, 3), (600, 1), (1000, 0))
"""Unflagged prompts of each stratum of p, and those among them that would copy in their pictures."""
ONE_STRATUM = ((0, 0), (0, 0), (0, 0), (0, 0), (2000, 148))
"""The same where one stratum holds everything, with as many that would copy as 60 controls bound most rarely."""
FOUND = 70
CONTROLS = (0, 60, 300, 1000)
LEVELS = {"five strata": 0.95, "one stratum": 0.99}
"""How often the bound must hold: each of five strata is bounded at 1 - .05 / 5, so that the sum holds at 95%."""
LATENT, SHARED_FIT, SHARED_K = 256, 300, 20
Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Mean:
    """A mean over draws. low, high: two standard errors to each side."""

    value: float
    low: float
    high: float
    n: int


def mean(values: Sequence[float] | Values) -> Mean:
    """Of what is defined among the values, at least two of them; else NaN."""
    known = np.asarray(values, dtype=np.float64)
    known = known[~np.isnan(known)]
    if len(known) < 2:
        return Mean(math.nan, math.nan, math.nan, 0)
    centre, error = float(known.mean()), 2 * float(known.std(ddof=1)) / math.sqrt(len(known))
    return Mean(centre, centre - error, centre + error, len(known))


@dataclass(frozen=True)
class Rates:
    """Of one rule on corpora of one kind: harmless prompts flagged, flags that are false, memorised prompts flagged."""

    rule: str
    share: float
    false_positive: Mean
    false_discovery: Mean
    power: Mean


def rates(draws: int = DRAWS) -> Iterator[Rates]:
    """Flags by p and by q, whatever the share of memorised prompts."""
    by_p = ("p <= .01", _config({"alpha": ALPHA}))
    rules = [by_p, *((p, _config({"flag_by": "q", "q": Q, "procedure": p})) for p in PROCEDURES)]
    for (rule, config), share in product(rules, SHARES):
        n_memorised = round(share * AUDITED)
        rng = generator(0, "decisions", rule, str(share))
        found = [_one(rng, config, n_memorised) for _ in range(draws)]
        yield Rates(rule, share, *(mean([one[i] for one in found]) for i in range(3)))


def _one(rng: np.random.Generator, config: AuditConfig, n_memorised: int) -> tuple[float, float, float]:
    scores = rng.standard_normal(AUDITED + CALIBRATION)
    memorised = np.arange(len(scores)) < n_memorised
    flagged = _flags(scores + SHIFT * memorised, config)
    audited = np.arange(len(scores)) < AUDITED
    false = flagged[audited & ~memorised]
    power = float(flagged[memorised].mean()) if n_memorised else np.nan
    return float(false.mean()), float(false.sum() / max(1, flagged.sum())), power


def _flags(scores: Values, config: AuditConfig) -> npt.NDArray[np.bool_]:
    """Of the first AUDITED prompts; the rest calibrate."""
    n = len(scores)
    ids, role = (
        pa.array([f"{i:08d}" for i in range(n)]),
        pa.array(["audit"] * AUDITED + ["calibration"] * (n - AUDITED)),
    )
    corpus = {"prompt_id": ids, "role": role, "family_id": ids, "style": pa.nulls(n, pa.string())}
    told = {"tier": pa.array([1] * n, pa.int32()), "metric": ["simulated"] * n, "value": scores}
    outcome = {"status": ["ok"] * n, "reason": pa.nulls(n, pa.string())}
    made = decide(pa.table(corpus), pa.table({"prompt_id": ids, **told, **outcome}), config)
    flagged: npt.NDArray[np.bool_] = made["flagged"].to_numpy()
    return flagged


def _config(triage: dict[str, object]) -> AuditConfig:
    inputs = {"model": {"path": "-"}, "corpus": {"audit": "-"}, "calibration": {"file": "-"}, "matches": {"index": "-"}}
    return AuditConfig.model_validate({**inputs, "triage": triage})


def power_by_size(draws: int = DRAWS) -> Iterator[tuple[int, Mean, Mean]]:
    """Power and false-discovery rate at q, of LARGE prompts of which 1% are memorised, by calibration prompts."""
    memorised = np.arange(LARGE) < 0.01 * LARGE
    for size in SIZES:
        rng, power, wrong = generator(0, "power", str(size)), [], []
        for _ in range(draws):
            p = p_values(rng.standard_normal(LARGE) + SHIFT * memorised, rng.standard_normal(size))
            flagged = at_most(q_values(p), Q)
            power.append(float(flagged[memorised].mean()))
            wrong.append(float((flagged & ~memorised).sum() / max(1, flagged.sum())))
        yield size, mean(power), mean(wrong)


def shared_sets(draws: int = DRAWS) -> dict[str, Mean]:
    """Realised rate of p <= ALPHA for residual_gap, calibrated on prompts of its own and on the fit prompts themselves.

    Why fit and calibration prompts may share no family: the subspace has learned what the fit prompts do.
    """
    found: dict[str, list[float]] = {"on other prompts": [], "on the fit prompts": []}
    rng = generator(0, "shared")
    for _ in range(draws):
        fit_ND, calibration_CD, audited_MD = (
            rng.standard_normal((n, LATENT)) for n in (SHARED_FIT, CALIBRATION, AUDITED)
        )
        subspace = fit_subspace(fit_ND.astype(np.float32), SHARED_K)
        audited_M = residual_gap(torch.from_numpy(audited_MD), subspace).numpy()
        for name, rows in zip(found, (calibration_CD, fit_ND), strict=True):
            p_M = p_values(audited_M, residual_gap(torch.from_numpy(rows), subspace).numpy())
            found[name].append(float(at_most(p_M, ALPHA).mean()))
    return {name: mean(values) for name, values in found.items()}


@dataclass(frozen=True)
class Coverage:
    """Of a control sample: how often its bounds hold, and what they are on average. estimate: of the misses."""

    strata: str
    controls: int
    missed: Mean
    recall: Mean
    bound: Mean
    estimate: Mean
    least_recall: Mean


def coverage(draws: int = CONTROL_DRAWS) -> Iterator[Coverage]:
    """Controls drawn as `select` shares them out, against what is known of the strata."""
    for total in CONTROLS:
        yield _covered("five strata", STRATA, total, draws)
    yield _covered("one stratum", ONE_STRATUM, 60, draws)


def _covered(name: str, strata: Sequence[tuple[int, int]], total: int, draws: int) -> Coverage:
    truth = sum(bad for _, bad in strata)
    rng, told = generator(0, "controls", str(total)), []
    shares = allocate(total, [size for size, _ in strata])
    for _ in range(draws):
        drawn = [
            Drawn(size, n, int(rng.hypergeometric(bad, size - bad, n)) if n else 0)
            for (size, bad), n in zip(strata, shares, strict=True)
        ]
        told.append(missed(drawn))
    bounds = [one.total_high for one in told]
    recalls = [least_recall(FOUND, bound) for bound in bounds]
    return Coverage(
        name,
        total,
        mean([float(bound >= truth) for bound in bounds]),
        mean([float(recall is not None and recall <= FOUND / (FOUND + truth)) for recall in recalls]),
        mean(bounds),
        mean([np.nan if one.estimate is None else one.estimate for one in told]),
        mean([np.nan if recall is None else recall for recall in recalls]),
    )


@dataclass(frozen=True)
class Simulated:
    """All four tables."""

    rates: list[Rates]
    power: list[tuple[int, Mean, Mean]]
    shared: dict[str, Mean]
    coverage: list[Coverage]


def simulate(draws: int = DRAWS, control_draws: int = CONTROL_DRAWS) -> Simulated:
    """Run everything."""
    return Simulated(list(rates(draws)), list(power_by_size(draws)), shared_sets(draws), list(coverage(control_draws)))


def bench_lines(found: Simulated) -> Iterator[Line]:
    """A promised rate must not be exceeded by more than chance explains: its interval's lower end is what counts."""
    for one in found.rates:
        rate, nominal = (one.false_positive, ALPHA) if one.rule.startswith("p") else (one.false_discovery, Q)
        kind = "fpr" if one.rule.startswith("p") else f"fdr.{one.rule}"
        name = f"decisions.{kind}.memorised_{100 * one.share:g}"
        yield Line(name, rate.value, "share", rate.n, rate.low, rate.high)
        yield Line(f"{name}.low", rate.low, "share", rate.n, goal=nominal, at_most=True)
    for size, power, wrong in found.power:
        yield Line(f"decisions.power.calibration_{size}", power.value, "share", power.n, power.low, power.high)
        yield Line(f"decisions.power.calibration_{size}.fdr_low", wrong.low, "share", wrong.n, goal=Q, at_most=True)
    for one_of in found.coverage:
        for what, covered in (("missed", one_of.missed), ("recall", one_of.recall)):
            place = "" if one_of.strata == "five strata" else "one_stratum."
            name = f"decisions.coverage.{place}{what}.controls_{one_of.controls}"
            yield Line(name, covered.value, "share", covered.n, covered.low, covered.high)
            yield Line(f"{name}.high", covered.high, "share", covered.n, goal=LEVELS[one_of.strata])


def markdown(found: Simulated) -> str:
    """The tables for people."""
    interval = fpr_interval(ALPHA, CALIBRATION)
    head = ["flagged by", "memorised", "harmless prompts flagged", "false among the flagged", "memorised flagged"]
    rows = [
        [r.rule, f"{r.share:.1%}", *map(_shown, (r.false_positive, r.false_discovery, r.power))] for r in found.rates
    ]
    parts = [
        f"Rates: {AUDITED:,} audited and {CALIBRATION} calibration prompts, alpha {ALPHA:g} (of one calibration set "
        f"{interval.low:.2%} to {interval.high:.2%}), q {Q:g}",
        table(head, rows),
        f"Power at q {Q:g}: {LARGE:,} audited prompts, 1% memorised",
        table(
            ["calibration prompts", "memorised flagged", "false among the flagged"],
            [[f"{size:,}", _shown(power), _shown(wrong)] for size, power, wrong in found.power],
        ),
        f"residual_gap, {SHARED_FIT} fit prompts, {SHARED_K} directions, p <= {ALPHA:g}",
        table(["calibrated", "harmless prompts flagged"], [[k, _shown(v)] for k, v in found.shared.items()]),
        f"Control samples: {FOUND} prompts found to copy, {sum(bad for _, bad in STRATA)} that would copy missed among "
        f"{sum(size for size, _ in STRATA):,} unflagged ones; in one stratum {ONE_STRATUM[-1][1]} of "
        f"{ONE_STRATUM[-1][0]:,}",
        table(
            [
                "unflagged prompts in",
                "controls",
                "bound on misses holds",
                "bound on recall holds",
                "bound",
                "estimate",
                "recall at least",
            ],
            [
                [
                    c.strata,
                    c.controls,
                    *map(_shown, (c.missed, c.recall)),
                    *map(_plain, (c.bound, c.estimate, c.least_recall)),
                ]
                for c in found.coverage
            ],
        ),
    ]
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


def _shown(rate: Mean) -> str:
    return "none" if not rate.n else f"{rate.value:.2%} ({rate.low:.2%} to {rate.high:.2%})"


def _plain(number: Mean) -> str:
    return "undefined" if not number.n else f"{number.value:.3g}"
