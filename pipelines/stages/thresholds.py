"""Thresholds: the score above which a tier of the cascade lets prompts into the next, from fit prompts alone."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pyarrow as pa

from pipelines.stage import Stage, Work, Worker
from pipelines.stages.fit import differences_work, read_differences, stacked
from sharpaudit.config import AuditConfig
from sharpaudit.errors import Status
from sharpaudit.scores.cascade import scores_as_strangers, tiers
from sharpaudit.tables.runs import RunFolder
from sharpaudit.tables.schemas import SUBSPACE, THRESHOLDS


class ThresholdsStage(Stage):
    """One row for each tier but the first; no work without later tiers."""

    name = "fit_thresholds"
    table = THRESHOLDS
    scope = "corpus"
    upstream = ("fit_subspace",)
    whole = True

    def work(self, run: RunFolder, config: AuditConfig) -> list[Work]:
        """One shard, named by the differences that it learns from."""
        return [differences_work(self.name, run)] if config.scores.then else []

    def read(self, run: RunFolder, config: AuditConfig, work: Work) -> pa.Table:
        """The differences of all fit prompts that have one."""
        return read_differences(run)

    def open(self, run: RunFolder, config: AuditConfig) -> Worker:
        """A worker for the quantiles; it needs no model."""
        # Row 0 of the committed subspace is the mean.
        return ThresholdsWorker(config, sum(m.rows for m in run.table(SUBSPACE).current()) - 1)


class ThresholdsWorker:
    """components: directions of the committed subspace."""

    def __init__(self, config: AuditConfig, components: int) -> None:
        self._config, self._components = config, components

    def process(self, rows: pa.Table) -> pa.Table:
        """The quantile of each tier's deciding metric, of fit prompts that are scored as strangers."""
        differences_ND, families = stacked(rows["difference"]), rows["family_id"].to_pylist()
        made = []
        for before, tier in pairwise(tiers(self._config.scores)):
            values_N = scores_as_strangers(before.deciding, differences_ND, self._components, families)
            row = {"tier": tier.number, "metric": before.deciding, "quantile": tier.above, "n": len(values_N)}
            threshold = float(np.quantile(values_N, tier.above))
            made.append(row | {"threshold": threshold, "status": Status.OK, "reason": None})
        return pa.Table.from_pylist(made, THRESHOLDS.schema)


def load_thresholds(run: RunFolder) -> dict[int, float]:
    """The committed thresholds, by the number of the tier that they let into."""
    folder = run.table(THRESHOLDS)
    rows = folder.read_all(folder.current())
    return dict(zip(rows["tier"].to_pylist(), rows["threshold"].to_pylist(), strict=True))
