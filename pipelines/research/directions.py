"""How many directions harmless prompts move in, and what the number that `components = "auto"` takes costs.

For each k: the share of harmless variance on the first k directions, of fit prompts that taught them and of fit
prompts measured as strangers; the criterion of `choose_components`; and how well the residual gap of k directions tells
memorised prompts from harmless ones. Each seed fits anew; figures are means over seeds. Choices are made on the
development split.

Shapes: N fit prompts, M audited ones, D latent elements, K directions, C candidates.
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
from sharpaudit.denoisers.load import load_denoiser
from sharpaudit.errors import UserError
from sharpaudit.lab.detectors import Truth, read_truth
from sharpaudit.scores.screen import unconditional_predictions
from sharpaudit.scores.subspace import choose_components, energy_as_strangers, noise_left, principal_directions, typical
from sharpaudit.statistics.detection import auc, tpr_at_fpr

SEEDS = 4
KS = (1, 5, 10, 20, 50, 100, 200, 400, 600, 750)
SHARES = (0.9, 0.95, 0.99)
LARGEST_LOSS = 0.005
"""Of AUC, to the best of KS: what the rule's number may cost."""
TPR = tpr_at_fpr(0.01)
Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Directions:
    """Of one seed, for each of `ks`, the last of which is the rule's own: (C,) each. holding: directions with SHARES.

    taught, strangers: share of the variance on k directions, of fit prompts that taught them and that did not.
    """

    ks: list[int]
    n_fit: int
    n_elements: int
    holding: list[int]
    taught: Values
    strangers: Values
    criterion: Values
    auc: Values
    tpr: Values
    n_memorised: int


def measure(folder: Path, split: str, seeds: int = SEEDS) -> Iterator[Directions]:
    """One result for each seed. folder: the lab's."""
    every = read_truth(folder)
    fit, audited = ([row for row in every if row.split == name] for name in ("fit", split))
    judged = [row for row in audited if _memorised(row) or (row.label == "harmless" and row.never_planted)]
    config = audit_of(folder, split, 0, every=False)
    denoiser = load_denoiser(config.model)
    for seed in range(seeds):
        settings = replace(screen_config(config), seed=seed, n_seeds=1)
        known = unconditional_predictions(denoiser, settings)
        fit_ND, families = fitted_on(denoiser, fit, known, settings)
        rows_MD, _ = fitted_on(denoiser, judged, known, settings)
        if len(rows_MD) < len(judged):
            raise UserError(f"{len(judged) - len(rows_MD)} prompts could not be evaluated; a comparison needs them all")
        yield of_differences(fit_ND, families, rows_MD, np.array([_memorised(row) for row in judged]))


def _memorised(row: Truth) -> bool:
    return (row.kind, row.label) == ("exact", "memorised")


def of_differences(
    fit_ND: npt.NDArray[np.float32],
    families: Sequence[str],
    rows_MD: npt.NDArray[np.float32],
    memorised_M: npt.NDArray[np.bool_],
) -> Directions:
    """From delta_eps of fit prompts, of which those count that the rule keeps, and of audited ones."""
    kept_N = typical(fit_ND, families)
    d = fit_ND.shape[1]
    ks = [*(k for k in KS if k < d), choose_components(fit_ND, families, kept_N)]
    mean_D, directions_KD, shares_K = principal_directions(fit_ND, min(int(kept_N.sum()) - 1, d), kept_N)
    cumulated_K = np.cumsum(shares_K)
    left_CN = energy_as_strangers(fit_ND, ks, families, kept_N)
    whole = float(np.square(fit_ND[kept_N] - mean_D).sum(axis=1).mean())
    centred_MD = rows_MD - mean_D
    on_MK = centred_MD @ directions_KD.T
    taken_MK = np.cumsum(np.square(on_MK), axis=1)
    whole_M = np.square(centred_MD).sum(axis=1)
    gaps = [whole_M - taken_MK[:, min(k, taken_MK.shape[1]) - 1] for k in ks]
    return Directions(
        ks,
        int(kept_N.sum()),
        d,
        [int(np.searchsorted(cumulated_K, share)) + 1 for share in SHARES],
        np.array([cumulated_K[min(k, len(cumulated_K)) - 1] for k in ks]),
        1 - left_CN.mean(axis=1) / whole,
        noise_left(left_CN, ks, d),
        np.array([auc(gap[memorised_M], gap[~memorised_M]) for gap in gaps]),
        np.array([TPR(gap[memorised_M], gap[~memorised_M]) for gap in gaps]),
        int(memorised_M.sum()),
    )


def bench_lines(found: Sequence[Directions]) -> Iterator[Line]:
    """The goal: what the rule's number loses to the best number."""
    auc_C = np.mean([one.auc for one in found], axis=0)
    n = found[0].n_memorised
    for k, value in zip(found[0].ks[:-1], auc_C, strict=False):
        yield Line(f"directions.k_{k}.auc", float(value), "share", n)
    loss = float(auc_C.max() - auc_C[-1])
    yield Line("directions.auto.auc_loss", loss, "share", n, goal=LARGEST_LOSS, at_most=True)
    chosen = [one.ks[-1] for one in found]
    yield Line("directions.auto.k", float(np.mean(chosen)), "directions", len(found), min(chosen), max(chosen))
    for i, share in enumerate(SHARES):
        held = [one.holding[i] for one in found]
        yield Line(
            f"directions.holding_{100 * share:g}", float(np.mean(held)), "directions", len(found), min(held), max(held)
        )


def markdown(found: Sequence[Directions]) -> str:
    """The table for people."""
    head = ["directions", "variance of those that taught them", "of strangers", "criterion", "AUC", "TPR at 1% FPR"]
    names = [*map(str, found[0].ks[:-1]), f"auto: {_range([one.ks[-1] for one in found])}"]
    columns = [np.mean([getattr(one, name) for one in found], axis=0) for name in ("taught", "strangers", "criterion")]
    told = [np.mean([getattr(one, name) for one in found], axis=0) for name in ("auc", "tpr")]
    rows = [
        [name, f"{taught:.2%}", f"{strangers:.2%}", f"{criterion:.4f}", f"{area:.4f}", f"{rate:.3f}"]
        for name, taught, strangers, criterion, area, rate in zip(names, *columns, *told, strict=True)
    ]
    held = ", ".join(
        f"{share:.0%} of the variance in {_range([one.holding[i] for one in found])}" for i, share in enumerate(SHARES)
    )
    of = f"of {found[0].n_elements:,} directions; {_range([one.n_fit for one in found])} fit prompts"
    return f"{table(head, rows)}\n{held} {of}, {len(found)} seeds, {found[0].n_memorised} memorised prompts\n"


def _range(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low} to {high}"
