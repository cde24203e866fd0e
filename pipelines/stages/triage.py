"""Triage: scores and roles to one decision a prompt: p- and q-value, flag, and what is generated."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import reduce
from operator import or_

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.stages.base import Stage, Work, Worker
from sharpaudit.config import AuditConfig, TriageConfig
from sharpaudit.errors import Status
from sharpaudit.scores.cascade import tiers
from sharpaudit.statistics.conformal import rank_at
from sharpaudit.tables.records import digest_of
from sharpaudit.tables.runs import RunFolder
from sharpaudit.tables.schemas import CORPUS, SCORES, TRIAGE
from sharpaudit.triage.decide import decide
from sharpaudit.triage.select import select

SCORE = ("tier", "metric", "value", "status", "reason")


class TriageStage(Stage):
    """Corpus scope: p-values need all calibration scores, controls all p-values."""

    name = "triage"
    table = TRIAGE
    scope = "corpus"
    upstream = ("score",)
    reads = (
        "seed",
        *(f"triage.{name}" for name in TriageConfig.model_fields),
        "samples.per_prompt",
        "samples.band_prompts",
    )
    tells = ("seed", "triage")
    key = "prompt_id"

    def work(self, run: RunFolder, config: AuditConfig) -> list[Work]:
        """One shard, named by what it decides over."""
        corpus, scores = run.table(CORPUS).current(), run.table(SCORES).current()
        digest = digest_of([[m.shard for m in corpus], [[m.shard, m.sha256] for m in scores]])
        return [Work(self.name, f"all-{digest[:8]}", sum(m.rows for m in corpus), digest)]

    def read(self, run: RunFolder, config: AuditConfig, work: Work) -> pa.Table:
        """Every prompt's role and family, with the score of the last tier that it reached where there is one."""
        folder = run.table(CORPUS)
        corpus = folder.read_all(folder.current(), ["prompt_id", "role", "family_id", "style"])
        # A join keeps no order; a shard's rows must not depend on chance.
        return corpus.join(_deciding(run, config), "prompt_id", join_type="left outer").sort_by("prompt_id")

    def open(self, run: RunFolder, config: AuditConfig) -> Worker:
        """A worker that decides and selects."""
        return TriageWorker(config)


def generated(config: AuditConfig, counts: Mapping[str, int]) -> dict[str, int]:
    """Prompts that will be generated, by what for, if no audited prompt is memorised. counts: prompts by role."""
    return {
        "flagged": math.ceil(config.triage.alpha * counts["audit"]),
        "positive_control": counts.get("positive_control", 0),
        "control": min(config.triage.controls, counts["audit"]),
        "calibration_check": rank_at(config.triage.alpha, counts["calibration"]),
        "band": min(config.samples.band_prompts, counts["fit"]),
    }


class TriageWorker:
    def __init__(self, config: AuditConfig) -> None:
        self._config = config

    def process(self, rows: pa.Table) -> pa.Table:
        """One row a prompt, whatever its role."""
        corpus = rows.select(["prompt_id", "role", "family_id", "style"])
        scores = rows.select(["prompt_id", *SCORE]).filter(pc.is_valid(rows["status"]))
        return select(decide(corpus, scores, self._config), self._config)


def _deciding(run: RunFolder, config: AuditConfig) -> pa.Table:
    """One row a prompt: the deciding metric at the last tier that it reached."""
    folder, cascade = run.table(SCORES), tiers(config.scores)
    decides = reduce(or_, [(pc.field("tier") == t.number) & (pc.field("metric") == t.deciding) for t in cascade])
    reached = ~pc.field("status").isin([Status.CLEARED, Status.NO_SCORE])
    # Shard by shard: what is recorded beside the deciding metric is never held all at once.
    parts = [folder.read(m, ["prompt_id", *SCORE]).filter(decides & reached) for m in folder.current()]
    found = pa.concat_tables(parts or [SCORES.schema.empty_table().select(["prompt_id", *SCORE])])
    last = found.group_by("prompt_id").aggregate([("tier", "max")]).rename_columns({"tier_max": "tier"})
    return last.join(found, ["prompt_id", "tier"])


STAGE = TriageStage()
