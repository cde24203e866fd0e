"""The stages, one file each, and the flow that they make of an audit: what comes after ingest and before the report."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from pipelines.stages.base import ShardWorker, Stage
from sharpaudit.config import AuditConfig
from sharpaudit.errors import UserError, printable
from sharpaudit.plugs import STAGES, require
from sharpaudit.scores.cascade import tiers
from sharpaudit.tables.declared import refusal
from sharpaudit.tables.query import check_views
from sharpaudit.tables.runs import RunFolder
from sharpaudit.tables.schemas import CORPUS, ORIGINS, Table

INGESTED = (ORIGINS, CORPUS)
"""The tables that are there before the first stage."""


def flow(config: AuditConfig) -> dict[str, Stage]:
    """The stages of an audit in their order: ours that it wants, then those that [stages] names.

    Raises UserError for a stage whose upstream stage does not come before it, or whose table another has.
    """
    ours = [name for name in STAGES.ours() if STAGES[name].wanted(config)]
    found = {name: STAGES[name] for name in [*ours, *config.stages]}
    done, taken = list[str](), [table.name for table in INGESTED]
    for name, stage in found.items():
        for before in stage.upstream:
            if before not in done:
                raise UserError(f"stages.{printable(name)}: comes after {printable(before)}; name that one before it")
        reason = None if name in STAGES.ours() else refusal(stage.table.name, taken)
        if reason is not None:
            raise UserError(f"stages.{printable(name)}: its table {printable(stage.table.name)} {reason}")
        if stage.table.stage != name or (stage.report is not None and stage.report.name != name):
            raise UserError(
                f"stages.{printable(name)}: its table and its section of the report must be of its own name"
            )
        done.append(name)
        taken.append(stage.table.name)
    return found


def shard_worker(root: Path, guard: Callable[[], None]) -> ShardWorker:
    """Whoever does the shards of the run in a folder.

    Raises UserError where a foreign plug is another than the run began with.
    """
    run = RunFolder(root, guard=guard)
    require(run.foreign_plugs(), same=True)
    return ShardWorker(run, flow(run.config()))


def tables(stages: Mapping[str, Stage]) -> list[Table]:
    """Every table of a run with these stages, in the order in which they are written."""
    return [*INGESTED, *(stage.table for stage in stages.values())]


def require_views(config: AuditConfig, stages: Mapping[str, Stage]) -> None:
    """Raise UserError for a view of a foreign stage that SQL over the tables of this audit does not bear."""
    views = {view: sql for name in config.stages for view, sql in stages[name].views.items()}
    measured = [(tier.number, metric.name) for tier in tiers(config.scores) for metric in tier.metrics]
    check_views(tables(stages), views, measured)
