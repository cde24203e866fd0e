"""What flags claim of families and of styles, simulated through the code that an audit runs.

Harmless scores are normal with deviation 1. Those of a family have a correlation, and families of MEMBERS prompts may
score higher than single prompts by a shift. Calibration prompts come from the same families, one member each. A mean
over draws carries its Monte-Carlo interval, two standard errors to each side.

Shapes: N prompts, F families, M members of each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines.bench.decisions import ALPHA, CALIBRATION, Mean, Q, mean
from pipelines.bench.lines import Line, table
from sharpaudit.config import AuditConfig
from sharpaudit.seeds import generator
from sharpaudit.statistics.conformal import at_most, p_values
from sharpaudit.statistics.fdr import Procedure, family_p_values, q_values
from sharpaudit.statistics.power import SHIFT
from sharpaudit.triage.decide import decide

SINGLES, FAMILIES, MEMBERS = 900, 100, 20
"""Audited families of one prompt, and of MEMBERS."""
SHIFTS, CORRELATIONS = (0.0, 1.0, 2.0), (1.0, 0.5, 0.0)
PLANTED = 10
"""Memorised: single prompts, families with one memorised member, and families of memorised members; so many of each."""
STYLE_SHIFTS = (0.0, 0.5, 1.5)
OF_STYLE = 500
"""Audited prompts of each style."""
DRAWS = 200
NAMES = [*(f"single {i}" for i in range(SINGLES)), *(f"family {i // MEMBERS}" for i in range(FAMILIES * MEMBERS))]
Values = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]
Rates = tuple[float, float, float, float]


@dataclass(frozen=True)
class Moving:
    """Harmless families whose members score `shift` higher than single prompts and have a correlation.

    prompts: harmless prompts flagged, of all. members: the mean over families of the share of their prompts that is
    flagged, which is the chance of a random prompt of a random family. families: those with any prompt flagged.
    """

    shift: float
    correlation: float
    prompts: Mean
    members: Mean
    families: Mean


def moving(draws: int = DRAWS) -> Iterator[Moving]:
    """The rates of p <= ALPHA, however families move."""
    for shift, correlation in product(SHIFTS, CORRELATIONS):
        rng, found = generator(0, "moving", str(shift), str(correlation)), []
        for _ in range(draws):
            grouped_FM = _families(rng, FAMILIES, correlation) + shift
            audited_N = np.concatenate([rng.standard_normal(SINGLES), grouped_FM.ravel()])
            # A calibration prompt is of a large family as often as a family is.
            large_N = rng.random(CALIBRATION) < FAMILIES / (SINGLES + FAMILIES)
            calibration_N = rng.standard_normal(CALIBRATION) + shift * large_N
            flagged = _decided(audited_N, calibration_N, families=NAMES)["flagged"].to_numpy()
            shares_F = np.concatenate([flagged[:SINGLES], flagged[SINGLES:].reshape(-1, MEMBERS).mean(axis=1)])
            found.append((flagged.mean(), shares_F.mean(), (shares_F > 0).mean()))
        yield Moving(shift, correlation, *(mean([one[i] for one in found]) for i in range(3)))


def _simes(p_FM: Values, procedure: Procedure = "benjamini-hochberg") -> Values:
    return family_p_values(p_FM.ravel(), np.repeat(np.arange(len(p_FM)), p_FM.shape[1]), procedure)[0]


MERGED: dict[str, Callable[[Values], Values]] = {
    "one member drawn at random": lambda p_FM: p_FM[:, 0],
    "members x smallest p": lambda p_FM: np.minimum(1.0, p_FM.shape[1] * p_FM.min(axis=1)),
    "twice the mean p": lambda p_FM: np.minimum(1.0, 2 * p_FM.mean(axis=1)),
    "Simes": _simes,
    "Hommel": lambda p_FM: _simes(p_FM, "benjamini-yekutieli"),
}
"""p of a family, by which all of its prompts are flagged, (F, M) to (F,); each holds in its own way."""
EACH = "each prompt by its p"


@dataclass(frozen=True)
class Ruled:
    """A rule of flags where families move together.

    false: of p, the harmless families flagged, each counted by the share of its prompts; of q, the share of flagged
    families that are harmless.

    single, one, every: memorised prompts flagged, of single ones, of those alone in a harmless family, and of families
    memorised as a whole.
    """

    level: str
    rule: str
    false: Mean
    single: Mean
    one: Mean
    every: Mean


def rules(draws: int = DRAWS, correlation: float = 0.5) -> Iterator[Ruled]:
    """What each rule flags at ALPHA, and at Q by Benjamini and Hochberg, among PLANTED memorised ones of each kind."""
    asked = [
        ("p", EACH),
        *product("p", MERGED),
        *(("q", name) for name in MERGED if name in ("members x smallest p", "Simes")),
    ]
    rng, found = generator(0, "rules", str(correlation)), {one: list[Rates]() for one in asked}
    at = np.arange(PLANTED), rng.integers(MEMBERS, size=PLANTED)
    for _ in range(draws):
        grouped_FM = _families(rng, FAMILIES + 2 * PLANTED, correlation)
        grouped_FM[FAMILIES : FAMILIES + PLANTED][at] += SHIFT
        grouped_FM[-PLANTED:] += SHIFT
        singles_N = rng.standard_normal(SINGLES + PLANTED)
        singles_N[SINGLES:] += SHIFT
        p_N = p_values(np.concatenate([singles_N, grouped_FM.ravel()]), rng.standard_normal(CALIBRATION))
        for level, rule in asked:
            found[level, rule].append(_ruled(level, rule, p_N[: len(singles_N)], p_N[len(singles_N) :], at))
    for (level, rule), rows in found.items():
        yield Ruled(level, rule, *(mean([row[i] for row in rows]) for i in range(4)))


def _ruled(level: str, rule: str, singles_N: Values, grouped_N: Values, at: tuple[Rows, Rows]) -> Rates:
    """The four figures of a draw. at: family and place of the memorised prompts that are alone in theirs."""
    p_FM = grouped_N.reshape(-1, MEMBERS)
    of_family_FM = p_FM if rule == EACH else np.broadcast_to(MERGED[rule](p_FM)[:, None], p_FM.shape)
    if level == "p":
        single_N, grouped_FM = at_most(singles_N, ALPHA), at_most(of_family_FM, ALPHA)
    else:
        q_N = at_most(q_values(np.concatenate([singles_N, of_family_FM[:, 0]])), Q)
        single_N, grouped_FM = q_N[: len(singles_N)], np.repeat(q_N[len(singles_N) :, None], MEMBERS, axis=1)
    shares = np.concatenate([single_N.astype(float), grouped_FM.mean(axis=1)])
    harmless = np.concatenate([single_N[:SINGLES].astype(float), grouped_FM[:FAMILIES].mean(axis=1)])
    false = harmless.mean() if level == "p" else harmless.sum() / max(1.0, shares.sum())
    one = grouped_FM[FAMILIES : FAMILIES + PLANTED][at]
    return float(false), float(single_N[SINGLES:].mean()), float(one.mean()), float(grouped_FM[-PLANTED:].mean())


@dataclass(frozen=True)
class Styled:
    """Harmless prompts of a style that scores `shift` deviations above another with CALIBRATION calibration prompts.

    own: flagged where the style has as many of its own. merged: at p <= ALPHA where two small styles make one stratum.
    ranked: at p <= ALPHA where it has none. flagged: those of them that an audit flags.
    """

    shift: float
    own: Mean
    merged: Mean
    ranked: Mean
    flagged: Mean


def styled(draws: int = DRAWS) -> Iterator[Styled]:
    """What becomes of a style with and without calibration prompts of its own."""
    for shift in STYLE_SHIFTS:
        rng, found = generator(0, "styled", str(shift)), []
        for _ in range(draws):
            other, own = rng.standard_normal(CALIBRATION), rng.standard_normal(CALIBRATION) + shift
            audited = rng.standard_normal(OF_STYLE) + shift
            half = CALIBRATION // 2
            merged = at_most(p_values(audited, np.concatenate([other[:half], own[:half]])), ALPHA)
            alike = _decided(audited, own, ["own"] * OF_STYLE, ["own"] * CALIBRATION)
            strange = _decided(audited, other, ["own"] * OF_STYLE, ["other"] * CALIBRATION)
            ranked = at_most(strange["p_value"].to_numpy(), ALPHA)
            rates = (alike["flagged"].to_numpy(), merged, ranked, strange["flagged"].to_numpy())
            found.append([float(rate.mean()) for rate in rates])
        yield Styled(shift, *(mean([one[i] for one in found]) for i in range(4)))


def _families(rng: np.random.Generator, n: int, correlation: float) -> Values:
    """Scores of n harmless families with shape (n, MEMBERS)."""
    shared_F1, own_FM = rng.standard_normal((n, 1)), rng.standard_normal((n, MEMBERS))
    scores_FM: Values = np.sqrt(correlation) * shared_F1 + np.sqrt(1 - correlation) * own_FM
    return scores_FM


def _decided(
    audited_N: Values,
    calibration_N: Values,
    styles: Sequence[str] | None = None,
    calibrating: Sequence[str] | None = None,
    families: Sequence[str] | None = None,
) -> pa.Table:
    """The audited rows of what `decide` gives. styles, calibrating: of audited and of calibration prompts."""
    n, m = len(audited_N), len(calibration_N)
    ids = [f"{i:08d}" for i in range(n + m)]
    named: list[str | None] = [None] * (n + m)
    if styles is not None and calibrating is not None:
        named = [*styles, *calibrating]
    corpus = {
        "prompt_id": ids,
        "role": ["audit"] * n + ["calibration"] * m,
        "family_id": [*(families or ids[:n]), *ids[n:]],
        "style": pa.array(named, pa.string()),
    }
    told = {
        "prompt_id": ids,
        "tier": pa.array([1] * (n + m), pa.int32()),
        "metric": ["simulated"] * (n + m),
        "value": np.concatenate([audited_N, calibration_N]),
        "status": ["ok"] * (n + m),
        "reason": pa.nulls(n + m, pa.string()),
    }
    return decide(pa.table(corpus), pa.table(told), _config()).slice(0, n)


def _config() -> AuditConfig:
    inputs = {"model": {"path": "-"}, "corpus": {"audit": "-"}, "calibration": {"file": "-"}, "matches": {"index": "-"}}
    return AuditConfig.model_validate({**inputs, "triage": {"alpha": ALPHA}})


@dataclass(frozen=True)
class Simulated:
    """All three tables."""

    moving: list[Moving]
    rules: list[Ruled]
    styled: list[Styled]


def simulate(draws: int = DRAWS) -> Simulated:
    """Run everything."""
    return Simulated(list(moving(draws)), list(rules(draws)), list(styled(draws)))


def bench_lines(found: Simulated) -> Iterator[Line]:
    """Rates that are claimed must not be exceeded by more than chance explains: their interval's lower end counts."""
    for one in found.moving:
        name = f"families.shift_{one.shift:g}.correlation_{one.correlation:g}"
        for what, rate in (("prompts", one.prompts), ("members", one.members), ("with_flag", one.families)):
            yield Line(f"{name}.{what}", rate.value, "share", rate.n, rate.low, rate.high)
        yield Line(f"{name}.members_low", one.members.low, "share", one.members.n, goal=ALPHA, at_most=True)
    for rule in found.rules:
        name = f"families.rules.{rule.level}.{rule.rule.replace(' ', '_')}"
        for what, rate in (("false", rule.false), ("single", rule.single), ("one", rule.one), ("every", rule.every)):
            yield Line(f"{name}.{what}", rate.value, "share", rate.n, rate.low, rate.high)
    for style in found.styled:
        name = f"styles.shift_{style.shift:g}"
        yield Line(f"{name}.ranked", style.ranked.value, "share", style.ranked.n, style.ranked.low, style.ranked.high)
        yield Line(f"{name}.flagged", style.flagged.value, "share", style.flagged.n, goal=ALPHA, at_most=True)
        yield Line(f"{name}.own_low", style.own.low, "share", style.own.n, goal=ALPHA, at_most=True)


def markdown(found: Simulated) -> str:
    """The tables for people."""
    moved = [
        "members score higher by",
        "correlation",
        "of all prompts",
        "of a random prompt of a family",
        "families with a flag",
    ]
    ruled = ["by", "rule", "false", "single prompts", "alone in a harmless family", "families memorised as a whole"]
    kinds = [
        "style scores higher by",
        "own calibration prompts",
        "merged with another style",
        "none: p <= .01",
        "none: flagged",
    ]
    parts = [
        f"Harmless prompts flagged at p <= {ALPHA:g}: {SINGLES} single ones and {FAMILIES} families of {MEMBERS}, "
        f"{CALIBRATION} calibration prompts",
        table(
            moved,
            [
                [f"{r.shift:g}", f"{r.correlation:g}", *map(_shown, (r.prompts, r.members, r.families))]
                for r in found.moving
            ],
        ),
        f"Memorised prompts flagged by each rule, correlation .5; false: at p <= {ALPHA:g} the rate by family, at "
        f"q <= {Q:g} the false-discovery rate",
        table(
            ruled,
            [[r.level, r.rule, *map(_shown, (r.false, r.single, r.one, r.every))] for r in found.rules],
        ),
        f"Harmless prompts of a style, {CALIBRATION} calibration prompts",
        table(
            kinds,
            [[f"{s.shift:g}", *map(_shown, (s.own, s.merged, s.ranked, s.flagged))] for s in found.styled],
        ),
    ]
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


def _shown(rate: Mean) -> str:
    return f"{rate.value:.2%} ({max(0.0, rate.low):.2%} to {rate.high:.2%})"
