"""Thresholds: the score above which a tier of the cascade lets prompts into the next, from fit prompts alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.stages.base import Stage, Work, Worker
from pipelines.stages.fit import differences_work, read_differences, stacked
from sharpaudit.config import AuditConfig
from sharpaudit.errors import Status
from sharpaudit.scores.cascade import scores_as_strangers, tiers
from sharpaudit.tables.runs import RunFolder
from sharpaudit.tables.schemas import SUBSPACE, THRESHOLDS


class ThresholdsStage(Stage):
    """One row for each tier but the first; no work without later tiers."""

    name = "fit_thresholds"
    demands = "all"
    table = THRESHOLDS
    scope = "corpus"
    upstream = ("fit_subspace",)
    reads = ("scores.metrics",)
    uses = ("metric",)
    tells = ("scores",)
    whole = True

    def work(self, run: RunFolder, config: AuditConfig) -> list[Work]:
        """One shard, named by the differences that it learns from: at the seeds of all tiers but the last."""
        gates = tiers(config.scores)[:-1]
        return [differences_work(self.name, run, [k for tier in gates for k in tier.seeds])] if gates else []

    def read(self, run: RunFolder, config: AuditConfig, work: Work) -> pa.Table:
        """The differences of all fit prompts that have one."""
        return read_differences(run, work.payload["seeds"])

    def open(self, run: RunFolder, config: AuditConfig) -> Worker:
        """A worker for the quantiles; it needs no model."""
        folder = run.table(SUBSPACE)
        counts = folder.read_all(folder.current(), ["seed_index"])["seed_index"].value_counts().to_pylist()
        # Of every seed's rows the first is the mean.
        return ThresholdsWorker(config, {count["values"]: count["counts"] - 1 for count in counts})


class ThresholdsWorker:
    """components: number of directions of the committed subspaces, by seed."""

    def __init__(self, config: AuditConfig, components: Mapping[int, int]) -> None:
        self._config, self._components = config, components

    def process(self, rows: pa.Table) -> pa.Table:
        """The quantile of each tier's deciding metric, of fit prompts that are scored as strangers."""
        made = []
        for before, tier in pairwise(tiers(self._config.scores)):
            by_seed = _at_every(rows, before.seeds)
            components = [self._components[k] for k in before.seeds]
            differences_SND = [stacked(found["difference"]) for found in by_seed]
            families = by_seed[0]["family_id"].to_pylist()
            values_N = scores_as_strangers(before.metrics[0], differences_SND, components, families)
            row = {"tier": tier.number, "metric": before.deciding, "quantile": tier.above, "n": len(values_N)}
            threshold = float(np.quantile(values_N, tier.above))
            made.append(row | {"threshold": threshold, "status": Status.OK, "reason": None})
        return pa.Table.from_pylist(made, THRESHOLDS.schema)


def _at_every(rows: pa.Table, seeds: Sequence[int]) -> list[pa.Table]:
    """The rows of each seed, of the prompts that have one at all of them."""
    found = [rows.filter(pc.field("seed_index") == k) for k in seeds]
    everywhere = reduce(lambda ids, other: ids.filter(pc.is_in(ids, other)), [part["prompt_id"] for part in found])
    return [part.filter(pc.is_in(part["prompt_id"], everywhere)) for part in found]


def load_thresholds(run: RunFolder) -> dict[int, float]:
    """The committed thresholds, by the number of the tier that they let into."""
    folder = run.table(THRESHOLDS)
    rows = folder.read_all(folder.current())
    return dict(zip(rows["tier"].to_pylist(), rows["threshold"].to_pylist(), strict=True))


STAGE = ThresholdsStage()
