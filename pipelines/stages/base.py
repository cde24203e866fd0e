"""What a stage is, and how one shard of it is done.

A stage is one declaration: its table, its upstream stages, the keys of the configuration that it reads, the outside
digests that change its rows, what it costs, what is tried again, and what it says in SQL and in the report. The driver
asks it for work (which shards there should be, from committed tables only); whoever does a shard asks it to read
the shard's input and to open a worker, whose `process` is pure: a table in, a table out, no file of its own
but pictures by digest. Executors know nothing of stages beyond `ShardWorker.do`.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Literal, Protocol

import pyarrow as pa
from pydantic import BaseModel

from sharpaudit import config as configuration
from sharpaudit.config import RENAMED, AuditConfig, Section
from sharpaudit.plugs import STAGES
from sharpaudit.report.sections.base import ReportSection
from sharpaudit.tables.files import crash_point
from sharpaudit.tables.runs import Identity, RunFolder
from sharpaudit.tables.schemas import Table
from sharpaudit.tables.shards import Manifest, TableCommit

TRANSIENT_TRIES = 3
"""How often a shard that fails for a passing reason is tried before it is quarantined."""


@dataclass(frozen=True)
class Work:
    """One shard of one stage. payload: what the stage needs to find its input, JSON only. about: what its manifest says
    of its rows, for whoever looks for them."""

    stage: str
    shard: str
    rows: int
    input_digest: str
    payload: dict[str, Any] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Receipt:
    """What became of a piece of work: a manifest, or None for a shard that was quarantined, and why."""

    work: Work
    manifest: Manifest | None
    reason: str = ""


@dataclass(frozen=True)
class Inputs:
    """Outside inputs by their digest, and the choices made for this machine.

    model_files: what the model's digest covers, relative to its folder; none in the record of an older run.
    index_holds: what part of the training set the index says it holds (matches.index.IndexManifest.holding); no
    identity names it, since the digest covers it. index_weights: of its embedders, by their
    names, as the index tells them.
    index_search: digest of the approximate structure that searches in it, None for exact search. alignment_digest: of
    the embedder that holds pictures against texts, None for none.
    index_files: what its files were when they were hashed. plugs: the foreign ones that the configuration names, as
    `plugs.foreign` tells them.
    """

    model_digest: str
    tokenizer_digest: str
    index_digest: str
    device: str
    dtype: str
    model_files: Sequence[str] = ()
    index_holds: dict[str, Any] | None = None
    index_weights: dict[str, dict[str, str]] | None = None
    index_search: str | None = None
    alignment_digest: str | None = None
    index_files: Mapping[str, Sequence[int]] | None = None
    plugs: Sequence[Mapping[str, str]] = ()


class Worker(Protocol):
    def process(self, rows: pa.Table) -> pa.Table:
        """The stage's rows for these input rows; every input key comes out."""


class Stage(ABC):
    """One step of the flow.

    reads: dotted keys of the configuration that change its rows, and through their fingerprints those of the stages
    after it: they are redone when one changes. uses: kinds of plugs that its rows depend on, likewise. settings: of a
    foreign stage, its own section [stages.NAME]; every key of it counts as read. tells: sections of the configuration
    that the report states for it. key: a column whose values must be the same set in the input and the output of
    `process`, or None. keyed: whether manifests list their keys, for a stage whose work is "what no manifest lists".
    whole: whether what it learns is worth nothing unless all of its input is there. demands: of which role the work
    must be done for anything to be told, or "all". retried: whether rows that failed may succeed another time. views:
    beside the tables in SQL, each a select by its name. report: its section of the page. asked_by: of ours, the
    key of the configuration without whose value an audit is without the stage; "" for one of every audit. digest: see
    plugs.py.
    """

    name: str
    table: Table
    scope: Literal["row", "corpus"]
    upstream: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    uses: tuple[str, ...] = ()
    settings: type[Section] = Section
    tells: tuple[str, ...] = ()
    key: str | None = None
    keyed: bool = False
    whole: bool = False
    demands: str | None = None
    retried: bool = False
    views: ClassVar[Mapping[str, str]] = MappingProxyType({})
    report: ReportSection | None = None
    asked_by: str = ""
    digest: str = ""

    def wanted(self, config: AuditConfig) -> bool:
        """Whether the stage is part of an audit of that configuration."""
        return not self.asked_by or bool(configuration.value(config, self.asked_by))

    def own(self, config: AuditConfig) -> Any:
        """The settings of its own section, an instance of `settings`."""
        return self.settings.model_validate(config.stages.get(self.name, {}))

    def cost(self, config: AuditConfig, counts: Mapping[str, int]) -> int:
        """Network evaluations that it will make if no audited prompt is memorised. counts: prompts by role."""
        return 0

    def outside(self, config: AuditConfig, inputs: Inputs) -> dict[str, Any]:
        """Identity values that are no field of the configuration and of no upstream stage; none, for most."""
        return {}

    @abstractmethod
    def work(self, run: RunFolder, config: AuditConfig) -> list[Work]:
        """The shards that there should be, given what is committed."""

    @abstractmethod
    def read(self, run: RunFolder, config: AuditConfig, work: Work) -> pa.Table:
        """The input rows of a shard."""

    @abstractmethod
    def open(self, run: RunFolder, config: AuditConfig) -> Worker:
        """A worker; it keeps its model from shard to shard."""


def identity(
    stage: Stage, config: AuditConfig, inputs: Inputs, upstream: Mapping[str, str], earlier: Mapping[str, Any]
) -> Identity:
    """The stage's identity: the fields it reads, outside digests, foreign plugs, table version, upstream fingerprints.

    Where the configuration says "auto", the choice made on this machine counts. earlier: `RunFolder.earlier` of a run
    that is held against what it was made with, {} of one that is to be made.
    """
    resolved = {"model.dtype": inputs.dtype, "model.device": inputs.device}
    chosen = {name: resolved.get(name, _plain(configuration.value(config, name))) for name in stage.reads}
    chosen |= {f"stages.{stage.name}.{key}": value for key, value in stage.own(config).model_dump(mode="json").items()}
    chosen |= of_plugs(inputs, stage.uses) | of_plugs(inputs, (STAGES.kind,), stage.name)
    told_then = {old: value for old, value in earlier.items() if RENAMED[old] in chosen}
    chosen = {name: chosen[name] for name in chosen.keys() - {RENAMED[old] for old in told_then}} | told_then
    return Identity(
        stage.name,
        chosen | stage.outside(config, inputs),
        {stage.table.name: stage.table.version},
        {name: upstream[name] for name in stage.upstream},
    )


def of_plugs(inputs: Inputs, kinds: Sequence[str], name: str | None = None) -> dict[str, Any]:
    """Identity values of the foreign plugs of these kinds, or of the one of that name."""
    found = [plug for plug in inputs.plugs if plug["kind"] in kinds and name in (None, plug["name"])]
    keys = ("distribution", "version", "digest")
    return {f"{plug['kind']} {plug['name']}": {key: plug[key] for key in keys} for plug in found}


def _plain(value: Any) -> Any:
    """As JSON gives it back, so that a run's record equals itself."""
    if isinstance(value, tuple):
        return [_plain(entry) for entry in value]
    return value.model_dump(mode="json") if isinstance(value, BaseModel) else value


def table_commit(stage: Stage, work: list[Work], quarantined: list[str]) -> TableCommit:
    """The driver's list of current shards after a stage is done."""
    lost = set(quarantined)
    digest = work[0].input_digest if stage.scope == "corpus" and work else ""
    return TableCommit([item.shard for item in work if item.shard not in lost], digest, sorted(lost))


class Doer(Protocol):
    def do(self, work: Work) -> Manifest:
        """Process and commit one shard; a shard that is committed already is returned as it stands."""


Opener = Callable[[Path, Callable[[], None]], Doer]
"""Whoever does the shards of a folder, given the folder and its guard; importable by name, so that Ray can call it."""


class ShardWorker:
    """Does shards of any stage in this process, keeping each stage's worker open between shards."""

    def __init__(self, run: RunFolder, stages: Mapping[str, Stage]) -> None:
        self._run, self._stages, self._config = run, stages, run.config()
        self._open: dict[str, Worker] = {}

    def do(self, work: Work) -> Manifest:
        """Process and commit one shard; a shard that is committed already is returned as it stands."""
        stage = self._stages[work.stage]
        folder = self._run.table(stage.table)
        done = folder.manifest(work.shard)
        if done is not None:
            return done
        crash_point("work.taken", f"{work.stage}/{work.shard}")
        begun = time.monotonic()
        rows = stage.read(self._run, self._config, work)
        if stage.name not in self._open:
            self._open[stage.name] = stage.open(self._run, self._config)
        made = self._open[stage.name].process(rows)
        if stage.key is not None and set(rows[stage.key].to_pylist()) != set(made[stage.key].to_pylist()):
            raise AssertionError(f"{stage.name}/{work.shard}: the outcomes are not those of the rows that came in")
        crash_point("work.processed", f"{work.stage}/{work.shard}")
        return folder.commit(
            work.shard,
            made,
            input_digest=work.input_digest,
            duration_s=time.monotonic() - begun,
            keyed=stage.keyed,
            about=work.about,
        )
