"""The run folder: what a run is made of, and which of its parts are current.

A stage's fingerprint is the SHA-256 of its identity: the configuration fields that change its rows, digests
of outside inputs, its tables' versions, and the fingerprints of the upstream stages that change a row given
its key. Its tables stand in `<table>/<fingerprint8>/`. `run.json` records every stage's identity, so that a
change is named field by field before anything is redone. Since version 5 it also records the tables that the run has
(declared.py): a run is read by its own record, so that it opens in every later version.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from sharpaudit.config import AuditConfig, parse, under_todays_names
from sharpaudit.config.earlier import with_defaults_of_then
from sharpaudit.errors import DISK_ERRORS, IntegrityError, UserError
from sharpaudit.plugs import require
from sharpaudit.tables.declared import all_rebuilt, of_version_4
from sharpaudit.tables.files import IN_PROGRESS, Files
from sharpaudit.tables.records import checksummed, digest_of, read_checksummed, replace_file
from sharpaudit.tables.schemas import Table
from sharpaudit.tables.shards import TableFolder

RUN_VERSION, OLDEST = 7, 4
"""The version of runs that this program makes, and the first that it reads."""
RECORD, SETTINGS = "run.json", "config.toml"
PLUG = ("kind", "name", "distribution", "version", "digest")
"""What is recorded of a foreign plug, each a text."""


@dataclass(frozen=True)
class Identity:
    """What determines a stage's rows. fields: dotted config names and digests. upstream: stage -> fingerprint."""

    stage: str
    fields: dict[str, Any]
    versions: dict[str, int]
    upstream: dict[str, str]

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all of it, hex."""
        return digest_of([self.stage, self.fields, self.versions, self.upstream])


@dataclass(frozen=True)
class Change:
    """A stage whose rows are no longer current, and the fields that say so."""

    stage: str
    fields: dict[str, tuple[Any, Any]]
    because_of: list[str]


class RunFolder:
    """A run on disk. `files` and `guard` go to every commit; see shards.py."""

    def __init__(self, root: Path, *, files: Files | None = None, guard: Callable[[], None] = lambda: None) -> None:
        self.root, self.files, self.guard = root, files or Files(), guard

    @staticmethod
    def create(root: Path) -> RunFolder:
        """The folder, made with mode 0700 if it is not there. Raises UserError where it cannot hold a run."""
        try:
            Files().make_folder(root, 0o700)
        except OSError as error:
            if error.errno in DISK_ERRORS:
                raise
            raise UserError(f"{root}: cannot make the run folder: {error.strerror}") from error
        # A driver killed before it wrote run.json leaves names of ours, some of them half-written.
        foreign = (p for p in root.iterdir() if p.name not in OWN_NAMES and not p.name.endswith(IN_PROGRESS))
        if not (root / RECORD).exists() and any(foreign):
            raise UserError(f"{root}: the folder is not empty and holds no run; name a new folder with --out")
        return RunFolder(root)

    @staticmethod
    def open(root: Path) -> RunFolder:
        """An existing run. Raises UserError where there is none."""
        if not (root / RECORD).is_file():
            raise UserError(
                f"{root}: no run here (run.json is missing); give the folder that `sharpaudit run --out` wrote"
            )
        return RunFolder(root)

    def record(self) -> dict[str, Any] | None:
        """run.json, or None before the run began.

        Raises UserError for a version that is not from OLDEST to RUN_VERSION, IntegrityError for damage.
        """
        path = self.root / RECORD
        if not path.exists():
            return None
        tree = read_checksummed(path)
        version = tree.get("run_version")
        if version not in range(OLDEST, RUN_VERSION + 1):
            reads = f"this sharpaudit reads versions {OLDEST} to {RUN_VERSION}"
            raise UserError(f"{path}: run version {version}; {reads}")
        return tree

    def is_older(self) -> bool:
        """Whether the run is of an earlier version: it can be read, and this program does not go on with it."""
        return bool((self.record() or {}).get("run_version", RUN_VERSION) < RUN_VERSION)

    def tables(self) -> tuple[Table, ...]:
        """The tables that this run has, as it records them, in the order of the flow; none before the run began."""
        return self._tables(self.record())

    def _tables(self, record: Mapping[str, Any] | None) -> tuple[Table, ...]:
        if record is None:
            return ()
        try:
            return all_rebuilt(of_version_4() if record["run_version"] == OLDEST else record["tables"])
        except (KeyError, ValueError, TypeError) as error:
            raise IntegrityError(f"{self.root / RECORD}: does not say what tables the run has: {error}") from error

    def has_begun(self) -> bool:
        """Whether anything was committed; until then the run is bound to nothing."""
        return any(self.root.glob("*/*/manifests/*.json"))

    def write_record(self, tree: Mapping[str, Any]) -> None:
        """Replace run.json, if it changed."""
        new = {"run_version": RUN_VERSION, **tree}
        if self.record() != new:
            replace_file(self.root / RECORD, checksummed(new), self.files)

    def write_json(self, name: str, tree: Any) -> None:
        """Replace a JSON file of the run, if it changed."""
        data = json.dumps(tree, indent=1, sort_keys=True, allow_nan=False).encode() + b"\n"
        path = self.root / name
        if not path.exists() or path.read_bytes() != data:
            replace_file(path, data, self.files)

    def write_config(self, config: AuditConfig) -> None:
        """config.toml: the resolved configuration, absolute paths and all."""
        data = tomli_w.dumps(without_null(config.model_dump(mode="json"))).encode()
        path = self.root / SETTINGS
        if not path.exists() or path.read_bytes() != data:
            replace_file(path, data, self.files)

    def foreign_plugs(self) -> list[dict[str, str]]:
        """The plugs of other distributions that the run was made with, as `plugs.foreign` tells them.

        Raises IntegrityError where the record does not say so.
        """
        facts = (self.record() or {}).get("facts", {})
        told = facts.get("plugs", []) if isinstance(facts, dict) else None
        if not isinstance(told, list) or not all(map(_is_plug, told)):
            raise IntegrityError(f"{self.root / RECORD}: does not say what plugs the run was made with")
        return told

    def settings(self) -> dict[str, Any]:
        """The resolved configuration of the last call as it was written, under the names of then."""
        return tomllib.loads((self.root / SETTINGS).read_text(encoding="utf-8"))

    def config(self) -> AuditConfig:
        """The same as this program has it.

        Raises UserError for a run with settings that it no longer has, and, naming the distribution, where a foreign
        plug that they name is not here.
        """
        require(self.foreign_plugs())
        settings = under_todays_names(self.settings())[0]
        version = (self.record() or {}).get("run_version", RUN_VERSION)
        return parse(with_defaults_of_then(settings, version), str(self.root / SETTINGS))

    def earlier(self) -> dict[str, Any]:
        """Settings of the last call whose names have changed since, by their dotted names of then; none, for most."""
        return under_todays_names(self.settings())[1]

    def fingerprint(self, stage: str) -> str:
        """The current fingerprint of a stage."""
        return self._fingerprint(self.record(), stage)

    def _fingerprint(self, record: Mapping[str, Any] | None, stage: str) -> str:
        try:
            return str(record["stages"][stage]["fingerprint"]) if record else ""
        except KeyError as error:
            raise IntegrityError(f"{self.root}/run.json: knows no stage {stage}") from error

    def table(self, table: Table) -> TableFolder:
        """The run's own table of that name at its stage's current fingerprint. Raises IntegrityError for one that it
        does not have."""
        record = self.record()
        found = {own.name: own for own in self._tables(record)}
        if record is not None and table.name not in found:
            raise IntegrityError(f"{self.root / RECORD}: knows no table {table.name}")
        own = found.get(table.name, table)
        return TableFolder(self.root, own, self._fingerprint(record, own.stage), files=self.files, guard=self.guard)

    def every_folder(self) -> list[TableFolder]:
        """Each table at each fingerprint that it was ever written at, current or not."""
        found = []
        for table in self.tables():
            for manifests in sorted((self.root / table.name).glob("*/manifests")):
                first = next(iter(sorted(manifests.glob("*.json"))), None)
                fingerprint = read_checksummed(first)["fingerprint"] if first else manifests.parent.name
                found.append(TableFolder(self.root, table, fingerprint, files=self.files, guard=self.guard))
        return found


def _is_plug(told: Any) -> bool:
    return isinstance(told, dict) and all(isinstance(told.get(name), str) for name in PLUG)


UNSEALED = ".unsealed"
"""The mark of a call that is at work, or was cut off; see evidence/sealing.py."""
OWN_NAMES = frozenset(
    {
        "run.lock",
        "run.lock.heartbeat",
        ".takeover",
        UNSEALED,
        "workers",
        "progress.json",
        "logs",
        SETTINGS,
        "inputs.json",
    }
)


def changes(old: Mapping[str, Any], new: Mapping[str, Identity]) -> list[Change]:
    """Stages whose fingerprint differs from the one recorded in run.json, upstream first."""
    found: list[Change] = []
    for stage, identity in new.items():
        before = old["stages"].get(stage)
        if before is None or before["fingerprint"] == identity.fingerprint:
            continue
        versions = {f"version of table {k}": v for k, v in identity.versions.items()}
        now = identity.fields | versions
        then = before["fields"] | {f"version of table {k}": v for k, v in before["versions"].items()}
        differing = {k: (then.get(k), now.get(k)) for k in sorted(then | now) if then.get(k) != now.get(k)}
        redone = {change.stage for change in found}
        found.append(Change(stage, differing, [name for name in identity.upstream if name in redone]))
    return found


def without_null(tree: Any) -> Any:
    """The tree as TOML can hold it, which has no null."""
    if isinstance(tree, dict):
        return {key: without_null(value) for key, value in tree.items() if value is not None}
    return [without_null(value) for value in tree] if isinstance(tree, list) else tree
