"""What the gates of a cascade lose and save, against its last tier on every prompt, on a split of a lab.

Every prompt is evaluated at both tiers once; the cascades of a list differ only in where they let prompts pass, so all
are read off the same values. Each seed is an audit that fits anew. Defaults are chosen on the development split; the
test split reports the default alone.

Shapes: S seeds, N prompts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipelines.bench.detection import audit_of
from pipelines.bench.fitted import fitted_on
from pipelines.bench.lines import Line, table
from pipelines.stages.fit import screen_config
from sharpaudit.config import AuditConfig, ScoresConfig, TierConfig
from sharpaudit.denoisers.load import load_denoiser
from sharpaudit.errors import Status, UserError
from sharpaudit.lab.detectors import Truth, read_truth
from sharpaudit.scores.cascade import Tier, fit_seeds, scores_as_strangers, tiers, total_seeds
from sharpaudit.scores.plan import evaluations, places
from sharpaudit.scores.residual_gap import RESIDUAL_GAP
from sharpaudit.scores.screen import ScreenConfig, screen, unconditional_predictions
from sharpaudit.scores.subspace import fit_subspace
from sharpaudit.statistics.conformal import lexicographic
from sharpaudit.statistics.detection import Group, difference, figure, tpr_at_fpr

SEEDS = 4
METRICS = (RESIDUAL_GAP.name,)
DEFAULT = TierConfig().above
ABOVE = {"development": (0.5, 0.8, 0.9, 0.95, 0.98), "test": (DEFAULT,)}
WORST_LOSS = -0.05
"""The goal of the lower end of the paired difference."""
FEWEST = 72
"""Memorised prompts that have the goal: of fewer, with none lost, the lower end lies beyond it all the same."""
TPR = tpr_at_fpr(0.01)
Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Evaluated:
    """Deciding scores at the first and the last tier, and the fit prompts' as strangers', (S, N) each."""

    first_SN: Values
    last_SN: Values
    fit_SN: Values


@dataclass(frozen=True)
class Result:
    """A cascade beside its last tier on everything. cost: evaluations a harmless prompt. lost: prompts by seed."""

    above: float
    tpr: float
    tpr_everything: float
    low: float
    high: float
    cost: float
    cost_everything: int
    lost: list[str]
    n_memorised: int
    n_harmless: int


def compare(folder: Path, split: str) -> Iterator[Result]:
    """One result for each quantile of ABOVE. folder: the lab's."""
    truth = [row for row in read_truth(folder) if row.split == split and _counts(row)]
    fit = [row for row in read_truth(folder) if row.split == "fit"]
    cascade = tiers(scores_of(0.5))
    made = [_evaluated(audit_of(folder, split, seed, every=False), cascade, truth, fit) for seed in range(SEEDS)]
    values = Evaluated(*(np.stack([getattr(one, name) for one in made]) for name in Evaluated.__dataclass_fields__))
    costs = [tier.n_seeds * sum(evaluations(tier.metrics).values()) for tier in cascade]
    for above in ABOVE[split]:
        yield result(truth, values, costs, above)


def _counts(row: Truth) -> bool:
    """Memorised exact plants and what was never planted and is harmless."""
    return (row.kind, row.label) == ("exact", "memorised") or (row.label == "harmless" and row.never_planted)


def scores_of(above: float) -> ScoresConfig:
    """Residual gap at one seed for all, the default later tier for whoever is at or above the quantile."""
    return ScoresConfig(metrics=METRICS, then=(TierConfig(above=above),))


def _evaluated(config: AuditConfig, cascade: Sequence[Tier], truth: Sequence[Truth], fit: Sequence[Truth]) -> Evaluated:
    """One audit's values, every prompt at both tiers; of N prompts, without the axis of seeds."""
    denoiser, settings = load_denoiser(config.model), screen_config(config)
    wanted = places([metric for tier in cascade for metric in tier.metrics])
    known = unconditional_predictions(denoiser, replace(settings, n_seeds=total_seeds(cascade)), wanted)
    fitted = {k: fitted_on(denoiser, fit, known, replace(settings, first_seed=k)) for k in fit_seeds(cascade)}
    subspaces = {k: fit_subspace(moved_ND, config.scores.components, names) for k, (moved_ND, names) in fitted.items()}

    def at(tier: Tier) -> Values:
        own = ScreenConfig(tier.n_seeds, settings.seed, settings.step, settings.batch_size, tier.first_seed)
        rows = screen(denoiser, [row.prompt for row in truth], known, subspaces, own, tier.metrics)
        found = np.array([np.nan if isinstance(row, Status) else row.mean(tier.deciding) for row in rows])
        if np.isnan(found).any():
            raise UserError(f"{np.isnan(found).sum()} prompts have no score; a comparison needs all of them")
        return found

    moved_ND, families = fitted[0]
    strangers = scores_as_strangers(RESIDUAL_GAP, [moved_ND], [len(subspaces[0].directions_KD)], families)
    return Evaluated(at(cascade[0]), at(cascade[-1]), strangers)


def result(truth: Sequence[Truth], values: Evaluated, costs: Sequence[int], above: float) -> Result:
    """Both on the same values. costs: evaluations of a prompt at the first and at the last tier."""
    thresholds_S = np.quantile(values.fit_SN, above, axis=1)
    on_SN = values.first_SN >= thresholds_S[:, None]
    ranked = [
        lexicographic(1.0 + on, np.where(on, last, first))
        for on, last, first in zip(on_SN, values.last_SN, values.first_SN, strict=True)
    ]
    memorised = np.array([row.label == "memorised" for row in truth])
    families = np.array([row.family for row in truth])

    def groups(scores_SN: Values) -> tuple[Group, Group]:
        return tuple(Group(scores_SN[:, part], families[part]) for part in (memorised, ~memorised))  # type: ignore[return-value]

    ours, everything = groups(np.stack(ranked)), groups(values.last_SN)
    interval = difference(TPR, ours, everything, rate=True)
    lost = [
        truth[i].prompt
        for i in np.flatnonzero(memorised).tolist()
        if any(not on[i] and last[i] > _line(last[~memorised]) for on, last in zip(on_SN, values.last_SN, strict=True))
    ]
    return Result(
        above,
        figure(TPR, *ours).mean,
        figure(TPR, *everything).mean,
        interval.low,
        interval.high,
        float(costs[0] + on_SN[:, ~memorised].mean() * costs[1]),
        costs[1],
        lost,
        int(memorised.sum()),
        int((~memorised).sum()),
    )


def _line(harmless_H: Values) -> float:
    """The lowest threshold that at most 1% of the harmless exceed."""
    return float(np.sort(harmless_H)[::-1][int(0.01 * len(harmless_H) + 1e-9)])


def bench_lines(results: Sequence[Result]) -> Iterator[Line]:
    """The difference of the default, whose lower end has a goal where there are FEWEST memorised prompts."""
    for found in results:
        name = f"cascade.above_{100 * found.above:g}"
        delta = found.tpr - found.tpr_everything
        goal = WORST_LOSS if found.above == DEFAULT and found.n_memorised >= FEWEST else None
        yield Line(f"{name}.tpr1_difference", delta, "share", found.n_memorised, found.low, found.high)
        yield Line(f"{name}.tpr1_difference_low", found.low, "share", found.n_memorised, goal=goal)
        yield Line(f"{name}.evaluations", found.cost, "evaluations", found.n_harmless)


def markdown(results: Sequence[Result]) -> str:
    """The table for people, and the lost prompts."""
    head = [
        "above",
        "evaluations a harmless prompt",
        "TPR at 1% FPR",
        "last tier on everything",
        "difference (95%)",
        "lost",
    ]
    rows = []
    for r in results:
        delta = f"{r.tpr - r.tpr_everything:+.3f} ({r.low:+.3f} to {r.high:+.3f})"
        everything = f"{r.tpr_everything:.3f} for {r.cost_everything}"
        rows.append([f"{r.above:g}", f"{r.cost:.2f}", f"{r.tpr:.3f}", everything, delta, str(len(r.lost))])
    lost = [f"lost at {r.above:g}: {prompt}" for r in results for prompt in r.lost]
    return "\n".join([table(head, rows), *lost]) + "\n"
