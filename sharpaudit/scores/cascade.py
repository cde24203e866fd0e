"""The cascade: a cheap tier for every prompt, dearer ones for what it cannot clear.

A prompt goes on while its deciding score is at or above the tier's threshold, which comes from the fit prompts alone,
so that what becomes of a prompt depends on no other audited prompt. Every tier draws noise of its own: a score that
let a prompt through by luck is not counted again. The whole cascade is one score, compared by the last tier reached
and then by the deciding score there; calibration prompts pass the same tiers, so p-values of that score hold.

Shapes: S seeds, N prompts, D latent elements.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from sharpaudit.config import MIN_FIT, ScoresConfig
from sharpaudit.denoisers.base import Denoiser
from sharpaudit.errors import Status, UserError
from sharpaudit.plugs import METRICS
from sharpaudit.scores.base import Known, Metric
from sharpaudit.scores.screen import PromptScores, ScreenConfig, screen
from sharpaudit.scores.subspace import Subspaces


@dataclass(frozen=True)
class Tier:
    """number: from 1 on. above: quantile of the fit prompts' scores at the tier before; 0 for the first tier."""

    number: int
    metrics: tuple[Metric, ...]
    first_seed: int
    n_seeds: int
    above: float

    @property
    def deciding(self) -> str:
        """The name of the metric that decides."""
        return self.metrics[0].name

    @property
    def seeds(self) -> range:
        """The numbers of its draws."""
        return range(self.first_seed, self.first_seed + self.n_seeds)


def tiers(config: ScoresConfig) -> tuple[Tier, ...]:
    """The tiers of a configuration; seeds are numbered through them."""
    found = [Tier(1, METRICS.of(config.metrics), 0, config.n_seeds, 0.0)]
    for later in config.then:
        last = found[-1]
        first = last.first_seed + last.n_seeds
        found.append(Tier(last.number + 1, METRICS.of(later.metrics), first, later.n_seeds, later.above))
    return tuple(found)


def total_seeds(cascade: Sequence[Tier]) -> int:
    """Noise draws of all tiers together."""
    return sum(tier.n_seeds for tier in cascade)


def fit_seeds(cascade: Sequence[Tier]) -> tuple[int, ...]:
    """Draws at which the fit prompts are evaluated: of tiers that learn from them or whose threshold they place.

    The first in any case: the noise floor is compared with them there.
    """
    wanted = [tier for tier in cascade if tier is not cascade[-1] or any(metric.learns for metric in tier.metrics)]
    return tuple(sorted({0}.union(*(tier.seeds for tier in wanted))))


def screen_tiers(
    denoiser: Denoiser,
    prompts: Sequence[str],
    known: Known,
    subspaces: Subspaces,
    config: ScreenConfig,
    cascade: Sequence[Tier],
    thresholds: dict[int, float],
) -> list[list[PromptScores | Status]]:
    """Per tier one entry a prompt: its scores, Status.CLEARED or Status.NO_SCORE where it did not come so far.

    thresholds: by the number of the tier that they let into.
    """
    found: list[list[PromptScores | Status]] = []
    outcome: list[PromptScores | Status] = []
    for tier in cascade:
        if tier.number == 1:
            entered = list(range(len(prompts)))
            outcome = [Status.NO_SCORE] * len(prompts)
        else:
            before = cascade[tier.number - 2]
            outcome = [_passes(entry, before.deciding, thresholds[tier.number]) for entry in outcome]
            entered = [i for i, entry in enumerate(outcome) if entry is Status.OK]
        settings = replace(config, n_seeds=tier.n_seeds, first_seed=tier.first_seed)
        made = screen(denoiser, [prompts[i] for i in entered], known, subspaces, settings, tier.metrics)
        for i, entry in zip(entered, made, strict=True):
            outcome[i] = entry
        found.append(list(outcome))
    return found


def _passes(entry: PromptScores | Status, metric: str, threshold: float) -> Status:
    """OK for a prompt that goes on, else what becomes of it."""
    if entry is Status.CLEARED:
        return Status.CLEARED
    value = float("nan") if isinstance(entry, Status) else entry.mean(metric)
    if np.isnan(value):
        return Status.NO_SCORE
    return Status.OK if value >= threshold else Status.CLEARED


def scores_as_strangers(
    metric: Metric,
    differences_SND: Sequence[npt.NDArray[np.float32]],
    components_S: Sequence[int],
    families: Sequence[str] | None = None,
) -> npt.NDArray[np.float64]:
    """The metric of each fit prompt, mean over seeds, as if it had not been a fit prompt, with shape (N,).

    differences, components: of each seed. Raises UserError for fewer than 20 fit prompts, ValueError for a metric that
    no tier before another decides by.
    """
    if metric.strangers is None:
        raise ValueError(f"{metric.name} gives no threshold from what fit evaluates")
    n = len(differences_SND[0])
    if n < 2 * MIN_FIT:
        raise UserError(f"{n} fit prompts could be evaluated; a cascade needs at least {2 * MIN_FIT} for its threshold")
    by_seed = [metric.strangers(rows_ND, k, families) for rows_ND, k in zip(differences_SND, components_S, strict=True)]
    mean_N: npt.NDArray[np.float64] = np.stack(by_seed).mean(axis=0)
    return mean_N
