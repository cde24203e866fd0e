"""Do recombined captions calibrate? The prompts of a lab audited with candidates made from these prompts themselves.

What a stranger would do: a corpus, memorised prompts and all, is recombined, and the candidates serve as fit and
calibration prompts. The corpus is a split of a lab with the harmless prompts that the lab keeps for fitting and
calibrating, of which this audit has no other use: thousands of prompts known to be harmless, so that a rate of twice
alpha is seen. Each seed is an audit with other noise and other candidates, that fits anew. Beside it stands the split
alone, calibrated on the lab's own harmless prompts, for which the rate is a theorem.

The rule: at a rate of alpha, the number of n harmless prompts flagged by one set of m calibration prompts is
beta-binomial, for the rate of that set is Beta(k, m + 1 - k), k = floor(alpha (m + 1)). The mean count over seeds must
not exceed the 95% quantile of that law. So a rate of alpha passes with at least 95% at any one seed, and
`chance_to_fail` says how surely a larger rate fails; the mean over seeds scatters less than one of them and does better
in both.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.stats import beta, betabinom, binom

from pipelines.audit import run_audit
from pipelines.bench.detection import audit_of
from pipelines.bench.lines import Line, table
from pipelines.flow.progress import Reporter
from sharpaudit.config import AuditConfig, CalibrationConfig
from sharpaudit.corpus.recombine import recombine
from sharpaudit.errors import UserError
from sharpaudit.lab.detectors import Truth, read_truth
from sharpaudit.statistics.conformal import fpr_interval, rank_at
from sharpaudit.statistics.intervals import Interval, clopper_pearson
from sharpaudit.tables.runs import RunFolder
from sharpaudit.tables.schemas import CORPUS, TRIAGE

SEEDS = 4
FIT, CALIBRATION = 1_000, 4_999
"""Candidates for each use."""
ALPHA = 0.01
LEVEL, SEEN, LEAST_POWER = 0.95, 0.02, 0.8
"""A rate of ALPHA passes with LEVEL, one of SEEN fails with LEAST_POWER."""
QUANTILES = 20_000


@dataclass(frozen=True)
class Realised:
    """Flags of one calibration set: harmless prompts flagged by seed, and exact plants; how many there are of each.

    promised: where the rate lies for one calibration set of this size. judged: whether the rule applies.
    """

    calibrated_on: str
    harmless_flagged: list[int]
    memorised_flagged: list[int]
    n_harmless: int
    n_memorised: int
    n_calibration: int
    judged: bool

    @property
    def flagged(self) -> float:
        """Mean number of harmless prompts flagged, over seeds."""
        return float(np.mean(self.harmless_flagged))

    @property
    def rate(self) -> float:
        """Mean false-positive rate over seeds."""
        return self.flagged / self.n_harmless

    @property
    def interval(self) -> Interval:
        """Of the rate; the seeds share their prompts, so they count as one sample of them."""
        return clopper_pearson(round(self.flagged), self.n_harmless)

    @property
    def power(self) -> float:
        """Mean share of exact memorised plants that are flagged."""
        return float(np.mean(self.memorised_flagged)) / self.n_memorised

    @property
    def promised(self) -> Interval:
        """Where the rate of one calibration set of this size lies, were its prompts of the audited ones' kind."""
        return fpr_interval(ALPHA, self.n_calibration)

    @property
    def most(self) -> int:
        """The most harmless prompts that may be flagged."""
        return most_flagged(self.n_harmless, self.n_calibration)


def most_flagged(n_harmless: int, n_calibration: int) -> int:
    """The 95% quantile of the number flagged at a rate of ALPHA, by one set of calibration prompts."""
    k = _rank(n_calibration)
    return int(betabinom.ppf(LEVEL, n_harmless, k, n_calibration + 1 - k))


def chance_to_fail(rate: float, n_harmless: int, n_calibration: int) -> float:
    """How surely one seed fails where harmless prompts are flagged at `rate` on average over calibration sets.

    Every set's own rate scatters about it as it does about ALPHA, in proportion.
    """
    k = _rank(n_calibration)
    levels = (np.arange(QUANTILES) + 0.5) / QUANTILES
    mean = k / (n_calibration + 1)
    rates = np.minimum(beta.ppf(levels, k, n_calibration + 1 - k) * rate / mean, 1.0)
    return float(binom.sf(most_flagged(n_harmless, n_calibration), n_harmless, rates).mean())


def _rank(n_calibration: int) -> int:
    k = rank_at(ALPHA, n_calibration)
    if not k:
        raise UserError(f"{n_calibration} calibration prompts flag nothing at {ALPHA:g}; the bench needs 99 at least")
    return k


def measure(
    folder: Path, split: str, out: Path, reporter: Reporter | None = None, candidates: int = FIT + CALIBRATION
) -> Iterator[Realised]:
    """Two results: calibrated on recombined captions, and on the lab's harmless prompts.

    candidates: of both uses together, in the proportion of FIT and CALIBRATION.
    """
    truth = {row.prompt: row for row in read_truth(folder)}
    whole = [row.prompt for row in truth.values() if row.split in (split, "fit", "calibration")]
    out.mkdir(parents=True, exist_ok=True)
    audited = _written(out / "audited.csv", whole)
    for judged, name in ((True, "recombined captions"), (False, "the lab's harmless prompts")):
        flags = []
        for seed in range(SEEDS):
            config = audit_of(folder, split, seed, every=False, overrides=['scores.metrics=["residual_gap"]'])
            if judged:
                made = [candidate.text for candidate in recombine(whole, candidates, seed)]
                n_fit = len(made) * FIT // (FIT + CALIBRATION)
                update = {
                    "corpus": config.corpus.model_copy(update={"audit": (str(audited),), "family_column": None}),
                    "calibration": CalibrationConfig(
                        fit=str(_written(out / f"fit-{seed}.csv", made[:n_fit])),
                        calibrate=str(_written(out / f"calibrate-{seed}.csv", made[n_fit:])),
                    ),
                }
                config = config.model_copy(update=update)
            flags.append(_flagged(config, out / f"{name.split()[0]}-{seed}", truth, reporter))
        yield Realised(name, [one[0] for one in flags], [one[1] for one in flags], *flags[0][2:], judged)


def _written(path: Path, prompts: Sequence[str]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream, lineterminator="\n").writerows([["prompt"], *([prompt] for prompt in prompts)])
    return path


def _flagged(
    config: AuditConfig, root: Path, truth: dict[str, Truth], reporter: Reporter | None
) -> tuple[int, int, int, int, int]:
    """Harmless and memorised prompts flagged, how many there are of each, and calibration prompts."""
    run_audit(config, root, update=True, reporter=reporter, until="triage")
    run = RunFolder.open(root)
    corpus, triage = run.table(CORPUS), run.table(TRIAGE)
    prompts = corpus.read_all(corpus.current(), ["prompt_id", "prompt"])
    decided = triage.read_all(triage.current(), ["prompt_id", "role", "flagged", "status"])
    rows = decided.join(prompts, "prompt_id").to_pylist()
    audited = [(truth[row["prompt"]], row["flagged"]) for row in rows if row["role"] == "audit"]
    harmless = [flagged for t, flagged in audited if t.label == "harmless" and t.never_planted]
    memorised = [flagged for t, flagged in audited if (t.kind, t.label) == ("exact", "memorised")]
    calibrating = sum(row["role"] == "calibration" and row["status"] == "ok" for row in rows)
    return sum(harmless), sum(memorised), len(harmless), len(memorised), calibrating


def bench_lines(found: Sequence[Realised]) -> Iterator[Line]:
    """The goals: no more harmless prompts flagged than the rule allows, and sizes at which it sees a rate of SEEN."""
    for one in found:
        name = f"calibration.{one.calibrated_on.split()[0]}"
        yield Line(f"{name}.fpr", one.rate, "share", one.n_harmless, one.interval.low, one.interval.high)
        if one.judged:
            yield Line(f"{name}.flagged", one.flagged, "prompts", one.n_harmless, goal=one.most, at_most=True)
            fails = chance_to_fail(SEEN, one.n_harmless, one.n_calibration)
            yield Line(f"{name}.power", fails, "share", one.n_calibration, goal=LEAST_POWER)
        yield Line(f"{name}.tpr", one.power, "share", one.n_memorised)


def markdown(found: Sequence[Realised]) -> str:
    """The table for people, and the rule with its power."""
    head = ["calibrated on", "prompts", "harmless prompts flagged at p ≤ .01", "by seed", "exact plants flagged"]
    rows: list[list[object]] = []
    rules = []
    for one in found:
        rate = f"{one.rate:.2%} ({one.interval.low:.2%} to {one.interval.high:.2%})"
        counts = f"{', '.join(map(str, one.harmless_flagged))} of {one.n_harmless:,}"
        rows.append([one.calibrated_on, f"{one.n_calibration:,}", rate, counts, f"{one.power:.1%}"])
    for one in found:
        if one.judged:
            fails = [f"{chance_to_fail(rate, one.n_harmless, one.n_calibration):.1%}" for rate in (ALPHA, SEEN)]
            rules.append(
                f"{one.calibrated_on}: no more than {one.most} of {one.n_harmless:,} flagged on average. One seed "
                f"fails with {fails[0]} at a true rate of {ALPHA:.0%}, with {fails[1]} at {SEEN:.0%}."
            )
    return "\n".join([table(head, rows), *rules]) + "\n"
