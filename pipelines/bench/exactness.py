"""How exact the cheap forms are on a split of a lab: finite difference and forward mode, bfloat16 and float32.

Ranks decide an audit, so agreement is Spearman's correlation over prompts; errors stand beside it. A metric is offered
in bfloat16 if it is shown to be no worse than in float32 by more than a margin (`statistics.noninferiority`), with 95%
confidence, one-sided: its rank correlation over all prompts lies above 1 - RANK_MARGIN, and of at least LEAST_POSITIVES
memorised families it loses less than RATE_MARGIN of the true-positive rate at 1% false positives. Of fewer, and of a
metric that has no more than RATE_MARGIN to lose, the rate is "not shown", and ranks decide alone. The step of a finite
difference is held to the rule of ranks.

Shapes: N prompts, P memorised ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from pipelines.bench.common_jacobian import sharpness
from pipelines.bench.detection import audit_of
from pipelines.bench.fitted import fitted_on
from pipelines.bench.lines import Line, table
from pipelines.stages.fit import screen_config
from sharpaudit.config import AuditConfig, ScoresConfig, override
from sharpaudit.denoisers.base import Denoiser
from sharpaudit.denoisers.load import load_anew, load_denoiser
from sharpaudit.devices import cpu_has_bf16
from sharpaudit.errors import Status, UserError
from sharpaudit.lab.detectors import Truth, balanced, read_truth
from sharpaudit.plugs import METRICS
from sharpaudit.scores.base import Metric, step_length
from sharpaudit.scores.plan import places
from sharpaudit.scores.residual_gap import RESIDUAL_GAP
from sharpaudit.scores.screen import ScreenConfig, screen, unconditional_predictions
from sharpaudit.scores.subspace import Subspaces, fit_subspace
from sharpaudit.statistics.detection import Group, threshold_at_fpr, tpr_at_fpr
from sharpaudit.statistics.noninferiority import (
    REPLICATES,
    rank_correlation,
    rank_correlation_low,
    rate_difference_low,
)

DEFAULT = ScoresConfig().step
STEPS: tuple[float | str, ...] = (0.01, 0.03, 0.1, DEFAULT, 1.0, 3.0, 10.0)
FORMS = {
    "fd": "finite difference, 3 evaluations",
    "fd_bf16": "the same, the network in bfloat16",
    "common": "common Jacobian, 2 evaluations",
}
FEW = 200
"""Prompts of the comparison with forward mode."""
RANK_MARGIN, RATE_MARGIN = 0.01, 0.05
LEVEL = 0.95
LEAST_POSITIVES = 60
"""The fewest of which, with none lost, a loss of RATE_MARGIN is ruled out at LEVEL: 1 - .05^(1/60) is .0487."""
FPR = 0.01
TPR = tpr_at_fpr(FPR)
Values = npt.NDArray[np.float64]
Names = npt.NDArray[np.str_]


@dataclass(frozen=True)
class Step:
    """A finite difference of length h against forward mode: rank correlation and relative errors over n prompts.

    form: of FORMS. low: end of the correlation's one-sided interval. default: whether an audit takes this h.
    """

    n: int
    form: str
    h: float
    correlation: float
    low: float
    median_error: float
    largest_error: float
    default: bool = False


@dataclass(frozen=True)
class Precision:
    """A metric in bfloat16 against float32: rank correlation over n prompts and TPR at 1% FPR of each.

    correlation_low, difference_low: ends of the one-sided intervals. positives: memorised families.
    """

    metric: str
    correlation: float
    correlation_low: float
    tpr: float
    tpr_float32: float
    difference_low: float
    n: int
    positives: int

    @property
    def ranks_agree(self) -> bool:
        """Whether the correlation is shown to lie above 1 - RANK_MARGIN."""
        return self.correlation_low > 1 - RANK_MARGIN

    @property
    def keeps_rate(self) -> bool | None:
        """Whether a loss of RATE_MARGIN is ruled out; None where these prompts can show none."""
        if self.positives < LEAST_POSITIVES or self.tpr_float32 <= RATE_MARGIN:
            return None
        return self.difference_low > -RATE_MARGIN

    @property
    def offered(self) -> bool:
        """Whether an audit may compute it in bfloat16."""
        return self.ranks_agree and self.keeps_rate is not False


def steps(folder: Path, split: str, *, emulated: bool = False) -> list[Step]:
    """One entry for each form and h; bfloat16 where the CPU has it, or emulated. folder: the lab's."""
    rows = balanced(_rows(folder, split), FEW)
    few, families = [row.prompt for row in rows], np.array([row.family for row in rows])
    config = audit_of(folder, split, 0, every=False)
    exact = _values(folder, config, few, METRICS.of(["sharpness_jvp"]))["sharpness_jvp"]
    half = _in_bf16(config) if emulated or cpu_has_bf16() else None
    shape, found = load_denoiser(config.model).latent_shape, {}
    lengths = {step_length(step, shape): step == DEFAULT for step in STEPS}
    for h in lengths:
        scores = override(config, [f"scores.step={h}"])
        found["fd", h] = _values(folder, scores, few, METRICS.of(["sharpness"]))["sharpness"]
        if half:
            found["fd_bf16", h] = _values(folder, scores, few, METRICS.of(["sharpness"]), half)["sharpness"]
        found["common", h] = sharpness(load_denoiser(config.model), few, config.seed, h)
    return [
        replace(_step(form, h, found[form, h], exact, families), default=default)
        for form in FORMS
        for h, default in lengths.items()
        if (form, h) in found
    ]


def _in_bf16(config: AuditConfig) -> Denoiser:
    """Past the choice of precision, which refuses what is emulated, or not offered for one of the metrics."""
    return load_anew(config.model, torch.device("cpu"), torch.bfloat16)


def _step(form: str, h: float, near: Values, exact: Values, families: Names) -> Step:
    error = np.abs(near / exact - 1)
    low = rank_correlation_low(near, exact, families, LEVEL)
    return Step(len(exact), form, h, rank_correlation(near, exact), low, float(np.median(error)), float(error.max()))


def precisions(folder: Path, split: str, *, emulated: bool = False) -> list[Precision]:
    """One entry for each metric that needs no forward mode; none where the CPU has no bfloat16, unless emulated."""
    if not (emulated or cpu_has_bf16()):
        return []
    rows = _rows(folder, split)
    prompts = [row.prompt for row in rows]
    config = audit_of(folder, split, 0, every=True)
    metrics = METRICS.of(name for name in METRICS.ours() if name in config.scores.metrics)
    exact = _values(folder, config, prompts, metrics)
    rough = _values(folder, config, prompts, metrics, _in_bf16(config))
    memorised = np.array([row.label == "memorised" for row in rows])
    families = np.array([row.family for row in rows])
    return [compared(metric, rough[metric], exact[metric], memorised, families) for metric in exact]


def compared(
    metric: str,
    rough: Values,
    exact: Values,
    memorised: npt.NDArray[np.bool_],
    families: Names,
    replicates: int = REPLICATES,
) -> Precision:
    """What the rule needs to know of a metric's values in both precisions, (N,) each."""
    sides = [
        tuple(Group(values_N[None, part], families[part]) for part in (memorised, ~memorised))
        for values_N in (rough, exact)
    ]
    found = [values_N[memorised] > threshold_at_fpr(values_N[~memorised], FPR) for values_N in (rough, exact)]
    low = rate_difference_low(TPR, *sides, found=(found[0], found[1]), level=LEVEL, replicates=replicates)  # type: ignore[arg-type]
    return Precision(
        metric,
        rank_correlation(rough, exact),
        rank_correlation_low(rough, exact, families, LEVEL, replicates),
        float(found[0].mean()),
        float(found[1].mean()),
        low,
        len(exact),
        len(set(families[memorised])),
    )


def _rows(folder: Path, split: str) -> list[Truth]:
    """Memorised exact plants and harmless prompts that were never planted."""
    return [
        row
        for row in read_truth(folder)
        if row.split == split
        and ((row.kind, row.label) == ("exact", "memorised") or (row.label == "harmless" and row.never_planted))
    ]


def _values(
    folder: Path,
    config: AuditConfig,
    prompts: Sequence[str],
    metrics: Sequence[Metric],
    denoiser: Denoiser | None = None,
) -> dict[str, Values]:
    """Each metric of each prompt at seed 0, fitted as an audit of this model would. denoiser: if not the config's."""
    fit = [row for row in read_truth(folder) if row.split == "fit"]
    denoiser, settings = denoiser or load_denoiser(config.model), replace(screen_config(config), n_seeds=1)
    known = unconditional_predictions(denoiser, settings, places(metrics))
    subspaces: Subspaces = {}
    if RESIDUAL_GAP in metrics:
        moved_ND, families = fitted_on(denoiser, fit, known, settings)
        subspaces = {0: fit_subspace(moved_ND, config.scores.components, families)}
    rows = screen(denoiser, prompts, known, subspaces, _batched(settings, metrics), metrics)
    if any(isinstance(row, Status) for row in rows):
        raise UserError("a prompt could not be evaluated; a comparison needs all of them: lower model.batch_size")
    return {m.name: np.array([row.mean(m.name) for row in rows if not isinstance(row, Status)]) for m in metrics}


def _batched(settings: ScreenConfig, metrics: Sequence[Metric]) -> ScreenConfig:
    """Forward mode holds several times the memory of a forward."""
    return replace(settings, batch_size=8) if any(need.wide for m in metrics for need in m.needs) else settings


def bench_lines(found: Sequence[Step], precise: Sequence[Precision]) -> Iterator[Line]:
    """The default step and every metric that an audit computes in bfloat16 must pass their rule, and no other."""
    least = 1 - RANK_MARGIN
    for step in found:
        goal = least if step.default and step.form == "fd" else None
        name = f"exactness.{step.form}_h{step.h:g}"
        yield Line(f"{name}.correlation", step.correlation, "Spearman", step.n, step.low)
        yield Line(f"{name}.correlation_low", step.low, "Spearman", step.n, goal=goal)
        yield Line(f"{name}.median_error", step.median_error, "relative", step.n)
    for p in precise:
        offered = not METRICS[p.metric].float32_only
        name = f"exactness.bf16.{p.metric}"
        yield Line(f"{name}.correlation", p.correlation, "Spearman", p.n, p.correlation_low)
        yield Line(f"{name}.correlation_low", p.correlation_low, "Spearman", p.n, goal=least if offered else None)
        yield Line(f"{name}.tpr1_difference", p.tpr - p.tpr_float32, "share", p.positives, p.difference_low)
        if p.keeps_rate is not None:
            goal = -RATE_MARGIN if offered else None
            yield Line(f"{name}.tpr1_difference_low", p.difference_low, "share", p.positives, goal=goal)
        if not offered:
            yield Line(f"{name}.passes", float(p.offered), "rules", p.n, goal=0.0, at_most=True)


def markdown(found: Sequence[Step], precise: Sequence[Precision]) -> str:
    """Both tables for people."""
    head = ["sharpness by", "h", "rank correlation with forward mode", "median relative error", "largest"]
    rows = [
        [
            FORMS[s.form],
            f"{s.h:g}{', the default' if s.default else ''}",
            f"{_bounded(s.correlation, s.low)}",
            f"{s.median_error:.1e}",
            f"{s.largest_error:.1e}",
        ]
        for s in found
    ]
    text = f"Sharpness by a difference of length h, against forward mode\n\n{table(head, rows)}"
    if not precise:
        return f"{text}\nbfloat16 was not measured: this CPU has none; --emulated measures it all the same, slowly\n"
    head = ["metric in bfloat16", "rank correlation", "TPR at 1% FPR", "in float32", "difference", "passes"]
    told = [
        [
            p.metric,
            _bounded(p.correlation, p.correlation_low),
            f"{p.tpr:.3f}",
            f"{p.tpr_float32:.3f}",
            f"{p.tpr - p.tpr_float32:+.3f} ({_rate_told(p)})",
            "yes" if p.offered else "no",
        ]
        for p in precise
    ]
    rule = (
        f"Passes: with {LEVEL:.0%} confidence a rank correlation above {1 - RANK_MARGIN:g} over all {precise[0].n:,} "
        f"prompts and, of at least {LEAST_POSITIVES} memorised families, a loss of TPR below {RATE_MARGIN:g}; here "
        f"there are {precise[0].positives}."
    )
    return f"{text}\nEvery metric in bfloat16, against float32\n\n{table(head, told)}\n{rule}\n"


def _bounded(value: float, low: float) -> str:
    return f"{value:.4f} (at least {low:.4f})"


def _rate_told(p: Precision) -> str:
    if p.keeps_rate is not None:
        return f"at least {p.difference_low:+.3f}"
    few = p.positives < LEAST_POSITIVES
    return f"not shown: {p.positives} positives" if few else f"not shown: no more than {RATE_MARGIN:g} to lose"
