"""Score: every prompt that is not a fit prompt, by every metric, from the fewest evaluations.

At every tier the first metric decides, the others are recorded beside it. A prompt that an earlier tier cleared has one
row `cleared` for each metric of the later ones, so that every prompt has a row per tier and metric.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa

from pipelines.stages.base import Stage, Work, Worker
from pipelines.stages.fit import corpus_work, load_subspaces, load_unconditional, read_prompts, reason, screen_config
from pipelines.stages.inputs import run_model
from pipelines.stages.thresholds import load_thresholds
from sharpaudit.config import AuditConfig
from sharpaudit.denoisers.base import Denoiser
from sharpaudit.errors import Status
from sharpaudit.scores.base import Known
from sharpaudit.scores.cascade import Tier, screen_tiers, tiers
from sharpaudit.scores.plan import evaluations
from sharpaudit.scores.screen import PromptScores
from sharpaudit.scores.subspace import Subspaces
from sharpaudit.tables.runs import RunFolder
from sharpaudit.tables.schemas import SCORES, SUBSPACE, THRESHOLDS, UNCONDITIONAL

ROLES = ("calibration", "positive_control", "audit")


class ScoreStage(Stage):
    """Row scope over the corpus shards of audited, calibration and positive control prompts."""

    name = "score"
    demands = "calibration"
    table = SCORES
    scope = "row"
    upstream = ("fit_thresholds",)
    reads = ("scores.metrics", "scores.step")
    uses = ("metric",)
    tells = ("scores",)
    retried = True

    def cost(self, config: AuditConfig, counts: Mapping[str, int]) -> int:
        """Every prompt but the fit prompts by the first tier, and of each later one the share that it lets in."""
        per_prompt, share = 0.0, 1.0
        for tier in tiers(config.scores):
            # At most as many of the harmless go on as of the fit prompts; memorised ones are few.
            share = min(share, 1 - tier.above)
            per_prompt += share * tier.n_seeds * sum(evaluations(tier.metrics).values())
        return round(sum(counts.get(role, 0) for role in ROLES) * per_prompt)

    key = "prompt_id"

    def work(self, run: RunFolder, config: AuditConfig) -> list[Work]:
        """A shard for each corpus shard; calibration prompts first, without which no other prompt's score says much."""
        return corpus_work(self.name, run, ROLES, (UNCONDITIONAL, SUBSPACE, THRESHOLDS))

    def read(self, run: RunFolder, config: AuditConfig, work: Work) -> pa.Table:
        """The prompts of the shard."""
        return read_prompts(run, work)

    def open(self, run: RunFolder, config: AuditConfig) -> Worker:
        """A worker that holds the model and what fit learned."""
        known, subspaces = load_unconditional(run, config), load_subspaces(run)
        return ScoreWorker(run_model(run, config), config, known, subspaces, load_thresholds(run))


class ScoreWorker:
    """thresholds: by the number of the tier that they let into; none for a single tier."""

    def __init__(
        self,
        denoiser: Denoiser,
        config: AuditConfig,
        known: Known,
        subspaces: Subspaces,
        thresholds: dict[int, float] | None = None,
    ) -> None:
        self._denoiser = denoiser
        self._known, self._subspaces, self._thresholds = known, subspaces, thresholds or {}
        self._screen, self._tiers = screen_config(config), tiers(config.scores)

    def process(self, rows: pa.Table) -> pa.Table:
        """One row a prompt, tier and metric."""
        ids, prompts = rows["prompt_id"].to_pylist(), rows["prompt"].to_pylist()
        by_tier = screen_tiers(
            self._denoiser, prompts, self._known, self._subspaces, self._screen, self._tiers, self._thresholds
        )
        made = []
        for tier, found in zip(self._tiers, by_tier, strict=True):
            for prompt_id, scores in zip(ids, found, strict=True):
                made += [{"prompt_id": prompt_id} | row for row in self._rows(tier, scores)]
        return pa.Table.from_pylist(made, SCORES.schema)

    def _rows(self, tier: Tier, scores: PromptScores | Status) -> Iterator[dict[str, Any]]:
        """The numbers of a prompt at a tier, by metric; a value only where every seed has one."""
        t = self._denoiser.first_timestep()
        # The times of a flow model are no whole numbers.
        common = {"tier": tier.number, "n_seeds": tier.n_seeds, "timestep": int(t) if t == int(t) else None}
        reached = scores not in (Status.CLEARED, Status.NO_SCORE)
        for metric, n in evaluations(tier.metrics).items():
            row = common | {"metric": metric, "evaluations": n * tier.n_seeds if reached else 0}
            if isinstance(scores, Status):
                yield row | {"status": scores, "reason": reason(scores), "seed_values": None, "value": None}
                continue
            finite = [value if math.isfinite(value) else None for value in scores.seed_values[metric]]
            status = Status.NON_FINITE if None in finite else Status.OK
            value = None if None in finite else scores.mean(metric)
            yield row | {"value": value, "seed_values": finite, "status": status, "reason": reason(status)}


STAGE = ScoreStage()
