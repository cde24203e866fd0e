"""How exact the cheap forms are on a split of a lab: finite difference and forward mode, bfloat16 and float32.

Ranks decide an audit, so agreement is Spearman's correlation over prompts; errors stand beside it. For bfloat16 the
detection rates count as well: what rounding loses must lie inside what chance leaves open.

Shapes: N prompts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from scipy.stats import spearmanr

from pipelines.bench.common_jacobian import sharpness
from pipelines.bench.detection import audit_of
from pipelines.bench.gathering import fitted_on
from pipelines.bench.lines import Line, table
from pipelines.stages.fit import screen_config
from sharpaudit.config import FLOAT32_ONLY, AuditConfig, override
from sharpaudit.denoisers.base import Denoiser
from sharpaudit.denoisers.devices import cpu_has_bf16
from sharpaudit.denoisers.diffusion import DiffusionDenoiser
from sharpaudit.denoisers.load import load_denoiser
from sharpaudit.errors import Status, UserError
from sharpaudit.lab.detectors import Truth, balanced, read_truth
from sharpaudit.scores.base import Metric
from sharpaudit.scores.metrics import METRICS, named
from sharpaudit.scores.plan import places
from sharpaudit.scores.residual_gap import RESIDUAL_GAP
from sharpaudit.scores.screen import ScreenConfig, screen, unconditional_predictions
from sharpaudit.scores.subspace import Subspaces, fit_subspace
from sharpaudit.statistics.detection import Group, difference, tpr_at_fpr

STEPS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
FORMS = {
    "fd": "finite difference, 3 evaluations",
    "fd_bf16": "the same, the network in bfloat16",
    "common": "common Jacobian, 2 evaluations",
}
FEW = 100
"""Prompts of the comparison with forward mode."""
LEAST_AGREEMENT = 0.99
TPR = tpr_at_fpr(0.01)
Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Step:
    """A finite difference of length h against forward mode: rank correlation and relative errors over n prompts.

    form: of FORMS.
    """

    n: int
    form: str
    h: float
    correlation: float
    median_error: float
    largest_error: float


@dataclass(frozen=True)
class Precision:
    """A metric in bfloat16 against float32: rank correlation, TPR at 1% FPR of each, interval of the difference.

    n: memorised prompts.
    """

    metric: str
    correlation: float
    tpr: float
    tpr_float32: float
    low: float
    high: float
    n: int

    @property
    def offered(self) -> bool:
        """Whether an audit may compute it in bfloat16: ranks agree, and no loss of rate is shown."""
        return self.correlation >= LEAST_AGREEMENT and self.high >= 0


def steps(folder: Path, split: str, *, emulated: bool = False) -> list[Step]:
    """One entry for each form and h; bfloat16 where the CPU has it, or emulated. folder: the lab's."""
    few = [row.prompt for row in balanced(_rows(folder, split), FEW)]
    config = audit_of(folder, split, 0, every=False)
    exact = _values(folder, config, few, named(["sharpness_jvp"]))["sharpness_jvp"]
    half = _in_bf16(folder) if emulated or cpu_has_bf16() else None
    found = {}
    for h in STEPS:
        scores = override(config, [f"scores.step={h}"])
        found["fd", h] = _values(folder, scores, few, named(["sharpness"]))["sharpness"]
        if half:
            found["fd_bf16", h] = _values(folder, scores, few, named(["sharpness"]), half)["sharpness"]
        found["common", h] = sharpness(load_denoiser(config.model), few, config.seed, h)
    return [_step(form, h, found[form, h], exact) for form in FORMS for h in STEPS if (form, h) in found]


def _in_bf16(folder: Path) -> DiffusionDenoiser:
    """Past the choice of precision, which refuses what is emulated, or not offered for one of the metrics."""
    return DiffusionDenoiser(folder / "model", torch.device("cpu"), torch.bfloat16)


def _step(form: str, h: float, near: Values, exact: Values) -> Step:
    error = np.abs(near / exact - 1)
    agreement = float(spearmanr(near, exact)[0])
    return Step(len(exact), form, h, agreement, float(np.median(error)), float(error.max()))


def precisions(folder: Path, split: str, *, emulated: bool = False) -> list[Precision]:
    """One entry for each metric that needs no forward mode; none where the CPU has no bfloat16, unless emulated."""
    if not (emulated or cpu_has_bf16()):
        return []
    rows = _rows(folder, split)
    prompts = [row.prompt for row in rows]
    config = audit_of(folder, split, 0, every=True)
    metrics = named([name for name in METRICS if name in config.scores.metrics])
    exact = _values(folder, config, prompts, metrics)
    rough = _values(folder, config, prompts, metrics, _in_bf16(folder))
    memorised = np.array([row.label == "memorised" for row in rows])
    families = np.array([row.family for row in rows])

    def groups(values_N: Values) -> tuple[Group, Group]:
        parts = [Group(values_N[None, part], families[part]) for part in (memorised, ~memorised)]
        return parts[0], parts[1]

    found = []
    for metric in exact:
        interval = difference(TPR, groups(rough[metric]), groups(exact[metric]), rate=True)
        rates = [TPR(values[memorised], values[~memorised]) for values in (rough[metric], exact[metric])]
        agreement = float(spearmanr(rough[metric], exact[metric])[0])
        found.append(
            Precision(metric, agreement, rates[0], rates[1], interval.low, interval.high, int(memorised.sum()))
        )
    return found


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
    return replace(settings, batch_size=8) if any("tangent" in m.needs for m in metrics) else settings


def bench_lines(found: Sequence[Step], precise: Sequence[Precision]) -> Iterator[Line]:
    """The default step's agreement has a goal, and so has every metric that an audit computes in bfloat16."""
    for step in found:
        goal = LEAST_AGREEMENT if (step.form, step.h) == ("fd", 1.0) else None
        name = f"exactness.{step.form}_h{step.h:g}"
        yield Line(f"{name}.correlation", step.correlation, "Spearman", step.n, goal=goal)
        yield Line(f"{name}.median_error", step.median_error, "relative", step.n)
    for p in precise:
        offered = p.metric not in FLOAT32_ONLY
        name, goal = f"exactness.bf16.{p.metric}", LEAST_AGREEMENT if offered else None
        yield Line(f"{name}.correlation", p.correlation, "Spearman", p.n, goal=goal)
        yield Line(f"{name}.tpr1_difference", p.tpr - p.tpr_float32, "share", p.n, p.low, p.high)
        # No loss is shown while the interval reaches 0.
        yield Line(f"{name}.tpr1_difference_high", p.high, "share", p.n, goal=0.0 if offered else None)


def markdown(found: Sequence[Step], precise: Sequence[Precision]) -> str:
    """Both tables for people."""
    head = ["sharpness by", "h", "rank correlation with forward mode", "median relative error", "largest"]
    rows = [
        [FORMS[s.form], f"{s.h:g}", f"{s.correlation:.4f}", f"{s.median_error:.1e}", f"{s.largest_error:.1e}"]
        for s in found
    ]
    text = table(head, rows)
    if not precise:
        return f"{text}\nbfloat16 was not measured: this CPU has none; --emulated measures it all the same, slowly\n"
    head = ["metric in bfloat16", "rank correlation", "TPR at 1% FPR", "in float32", "difference (95%)", "offered"]
    told = [
        [
            p.metric,
            f"{p.correlation:.4f}",
            f"{p.tpr:.3f}",
            f"{p.tpr_float32:.3f}",
            f"{p.tpr - p.tpr_float32:+.3f} ({p.low:+.3f} to {p.high:+.3f})",
            "yes" if p.offered else "no",
        ]
        for p in precise
    ]
    return f"{text}\n{table(head, told)}"
