"""Do recombined captions calibrate? A split of a lab audited with candidates made from its own prompts.

What a stranger would do: the audited corpus, memorised prompts and all, is recombined, and the candidates are split by
family into fit and calibration prompts. The realised false-positive rate of p <= alpha on truly harmless prompts stands
beside that of the lab's own harmless prompts; each seed is an audit that fits anew.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipelines.audit import run_audit
from pipelines.bench.detection import audit_of
from pipelines.bench.lines import Line, table
from pipelines.progress import Reporter
from sharpaudit.config import AuditConfig, CalibrationConfig
from sharpaudit.corpus.recombine import recombine
from sharpaudit.lab.detectors import Truth, read_truth
from sharpaudit.statistics.conformal import fpr_interval
from sharpaudit.statistics.intervals import Interval, clopper_pearson
from sharpaudit.tables.runs import RunFolder
from sharpaudit.tables.schemas import CORPUS, TRIAGE

SEEDS = 4
CANDIDATES = 2_000
ALPHA = 0.01


@dataclass(frozen=True)
class Realised:
    """Flags of one calibration set: harmless prompts flagged by seed, and exact plants; how many there are of each.

    promised: where the rate lies for one calibration set of this size.
    """

    calibrated_on: str
    harmless_flagged: list[int]
    memorised_flagged: list[int]
    n_harmless: int
    n_memorised: int
    n_calibration: int

    @property
    def rate(self) -> float:
        """Mean false-positive rate over seeds."""
        return float(np.mean(self.harmless_flagged)) / self.n_harmless

    @property
    def interval(self) -> Interval:
        """Of the rate; the seeds share their prompts, so they count as one sample of them."""
        return clopper_pearson(round(float(np.mean(self.harmless_flagged))), self.n_harmless)

    @property
    def power(self) -> float:
        """Mean share of exact memorised plants that are flagged."""
        return float(np.mean(self.memorised_flagged)) / self.n_memorised

    @property
    def promised(self) -> Interval:
        """Where the rate of one calibration set of this size lies, were its prompts of the audited ones' kind."""
        return fpr_interval(ALPHA, self.n_calibration)


def measure(folder: Path, split: str, out: Path, reporter: Reporter | None = None) -> Iterator[Realised]:
    """Two results: calibrated on recombined captions, and on the lab's harmless prompts."""
    truth = {row.prompt: row for row in read_truth(folder)}
    captions = [row.prompt for row in truth.values() if row.split == split]
    out.mkdir(parents=True, exist_ok=True)
    made = out / "recombined.csv"
    with made.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["prompt", "family"])
        writer.writerows([candidate.text] * 2 for candidate in recombine(captions, CANDIDATES, 0))
    for name in ("recombined captions", "the lab's harmless prompts"):
        flags = []
        for seed in range(SEEDS):
            config = audit_of(folder, split, seed, every=False, overrides=['scores.metrics=["residual_gap"]'])
            if name == "recombined captions":
                config = config.model_copy(update={"calibration": CalibrationConfig(file=str(made), column="prompt")})
            flags.append(_flagged(config, out / f"{name.split()[0]}-{seed}", truth, reporter))
        yield Realised(name, [one[0] for one in flags], [one[1] for one in flags], *flags[0][2:])


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
    """The goal: a rate of alpha is not ruled out from below, so no more harmless prompts are flagged than promised."""
    for one in found:
        name = f"calibration.{one.calibrated_on.split()[0]}"
        yield Line(f"{name}.fpr", one.rate, "share", one.n_harmless, one.interval.low, one.interval.high)
        yield Line(f"{name}.fpr_low", one.interval.low, "share", one.n_harmless, goal=one.promised.high, at_most=True)
        yield Line(f"{name}.tpr", one.power, "share", one.n_memorised)


def markdown(found: Sequence[Realised]) -> str:
    """The table for people."""
    head = ["calibrated on", "prompts", "harmless prompts flagged at p ≤ .01", "by seed", "exact plants flagged"]
    rows: list[list[object]] = []
    for one in found:
        rate = f"{one.rate:.2%} ({one.interval.low:.2%} to {one.interval.high:.2%})"
        counts = ", ".join(map(str, one.harmless_flagged))
        rows.append([one.calibrated_on, one.n_calibration, rate, counts, f"{one.power:.1%}"])
    return table(head, rows)
