"""Score: every prompt that is not a fit prompt, by every metric, from the fewest evaluations.

One tier: the first metric of `scores.metrics` decides, the others are recorded beside it.
"""

from __future__ import annotations

import math
from typing import Any

import pyarrow as pa

from pipelines.stage import Stage, Work, Worker
from pipelines.stages.fit import corpus_work, load_subspace, load_unconditional, read_prompts, reason, screen_config
from sharpaudit.config import AuditConfig
from sharpaudit.denoisers.load import load_denoiser
from sharpaudit.errors import Status
from sharpaudit.scores.base import Known
from sharpaudit.scores.metrics import named
from sharpaudit.scores.screen import evaluations, screen
from sharpaudit.scores.subspace import Subspace
from sharpaudit.tables.runs import RunFolder
from sharpaudit.tables.schemas import SCORES

TIER = 1


class ScoreStage(Stage):
    """Row scope over the corpus shards of audited, calibration and positive control prompts."""

    name = "score"
    table = SCORES
    scope = "row"
    upstream = ("fit_subspace",)
    key = "prompt_id"

    def work(self, run: RunFolder, config: AuditConfig) -> list[Work]:
        """A shard for each corpus shard."""
        return corpus_work(self.name, run, ("audit", "positive_control", "calibration"))

    def read(self, run: RunFolder, config: AuditConfig, work: Work) -> pa.Table:
        """The prompts of the shard."""
        return read_prompts(run, work)

    def open(self, run: RunFolder, config: AuditConfig) -> Worker:
        """A worker that holds the model and what fit learned."""
        return ScoreWorker(config, load_unconditional(run, config), load_subspace(run))


class ScoreWorker:
    def __init__(self, config: AuditConfig, known: Known, subspace: Subspace) -> None:
        self._denoiser = load_denoiser(config.model)
        self._known, self._subspace = known, subspace
        self._screen, self._metrics = screen_config(config), named(config.scores.metrics)
        self._evaluations = evaluations(self._screen, self._metrics)

    def process(self, rows: pa.Table) -> pa.Table:
        """One row a prompt and metric."""
        ids, prompts = rows["prompt_id"].to_pylist(), rows["prompt"].to_pylist()
        found = screen(self._denoiser, prompts, self._known, self._subspace, self._screen, self._metrics)
        made = []
        for prompt_id, scores in zip(ids, found, strict=True):
            for metric in self._evaluations:
                values = None if isinstance(scores, Status) else scores.seed_values[metric]
                made.append({"prompt_id": prompt_id, "metric": metric} | self._row(metric, values))
        return pa.Table.from_pylist(made, SCORES.schema)

    def _row(self, metric: str, values: list[float] | None) -> dict[str, Any]:
        """The numbers of a prompt and metric; a value only where every seed has one."""
        common = {
            "tier": TIER,
            "n_seeds": self._screen.n_seeds,
            "timestep": self._denoiser.first_timestep(),
            "evaluations": self._evaluations[metric],
        }
        if values is None:
            status = Status.OUT_OF_MEMORY
            return common | {"status": status, "reason": reason(status), "seed_values": None, "value": None}
        finite = [value if math.isfinite(value) else None for value in values]
        whole = [value for value in finite if value is not None]
        status = Status.OK if len(whole) == len(values) else Status.NON_FINITE
        value = sum(whole) / len(whole) if status is Status.OK else None
        return common | {"value": value, "seed_values": finite, "status": status, "reason": reason(status)}
