"""Triage: scores and roles to one decision a prompt: p- and q-value, flag, and what is generated."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.stage import Stage, Work, Worker
from pipelines.stages.score import TIER
from sharpaudit.config import AuditConfig
from sharpaudit.tables.records import digest_of
from sharpaudit.tables.runs import RunFolder
from sharpaudit.tables.schemas import CORPUS, SCORES, TRIAGE
from sharpaudit.triage.decide import decide
from sharpaudit.triage.select import select


class TriageStage(Stage):
    """Corpus scope: p-values need all calibration scores, controls all p-values."""

    name = "triage"
    table = TRIAGE
    scope = "corpus"
    upstream = ("score",)
    key = "prompt_id"

    def work(self, run: RunFolder, config: AuditConfig) -> list[Work]:
        """One shard, named by what it decides over."""
        corpus, scores = run.table(CORPUS).current(), run.table(SCORES).current()
        digest = digest_of([[m.shard for m in corpus], [[m.shard, m.sha256] for m in scores]])
        return [Work(self.name, f"all-{digest[:8]}", sum(m.rows for m in corpus), digest)]

    def read(self, run: RunFolder, config: AuditConfig, work: Work) -> pa.Table:
        """Every prompt's role and family, with its deciding score where there is one."""
        folder = run.table(CORPUS)
        corpus = folder.read_all(folder.current(), ["prompt_id", "role", "family_id"])
        folder = run.table(SCORES)
        scores = folder.read_all(folder.current(), ["prompt_id", "metric", "value", "status", "reason"])
        # A join keeps no order; a shard's rows must not depend on chance.
        deciding = scores.filter(pc.field("metric") == config.scores.metrics[0])
        return corpus.join(deciding, "prompt_id", join_type="left outer").sort_by("prompt_id")

    def open(self, run: RunFolder, config: AuditConfig) -> Worker:
        """A worker that decides and selects."""
        return TriageWorker(config)


class TriageWorker:
    def __init__(self, config: AuditConfig) -> None:
        self._config = config

    def process(self, rows: pa.Table) -> pa.Table:
        """One row a prompt, whatever its role."""
        corpus = rows.select(["prompt_id", "role", "family_id"])
        scores = rows.select(["prompt_id", "value", "status", "reason"]).filter(pc.is_valid(rows["status"]))
        decided = decide(corpus, scores, metric=self._config.scores.metrics[0], tier=TIER, config=self._config)
        return select(decided, self._config)
