"""Report: the page, its facts, findings.csv, audit.duckdb and inputs.json, from committed tables.

It has no identity: it is written again whenever what it is made of has changed, and left alone otherwise.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.stages import flow
from pipelines.stages.base import Stage
from pipelines.stages.ingest import rows_read
from pipelines.stages.inputs import run_index
from sharpaudit.config import AuditConfig
from sharpaudit.plugs import STAGES
from sharpaudit.report.facts import collect
from sharpaudit.report.html import findings_csv, render
from sharpaudit.report.sections.base import ReportSection
from sharpaudit.tables.files import crash_point
from sharpaudit.tables.query import open_file
from sharpaudit.tables.reading import write_database
from sharpaudit.tables.records import checksummed, digest_of, read_checksummed, replace_file
from sharpaudit.tables.runs import RunFolder

OUTPUTS = ("inputs.json", "findings.csv", "audit.duckdb")
"""Beside the page and its facts."""


def write_report(run: RunFolder, config: AuditConfig, quarantined: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Write what is missing or out of date, and return the facts."""
    told, sections = _told(run, config, quarantined), sections_of(flow(config))
    digest = made_of(run, told)
    stamp, facts_path = run.root / "report" / "made_of.json", run.root / "report" / "facts.json"
    outputs = [facts_path, facts_path.with_name("index.html"), *map(run.root.joinpath, OUTPUTS)]
    if stamp.exists() and read_checksummed(stamp) == {"digest": digest} and all(path.exists() for path in outputs):
        return dict(json.loads(facts_path.read_bytes()))
    database = run.root / "audit.duckdb"
    write_database(run, database)
    with open_file(database, lean=True) as connection:
        facts = collect(connection, told, sections, run.tables())
    run.files.make_folder(facts_path.parent)
    run.write_json("inputs.json", told["inputs"])
    run.write_json("report/facts.json", facts)
    page = render(facts, lambda path: (run.root / path).read_bytes(), sections)
    replace_file(facts_path.with_name("index.html"), page.encode(), run.files)
    replace_file(run.root / "findings.csv", findings_csv(facts).encode(), run.files)
    crash_point("report.written")
    replace_file(stamp, checksummed({"digest": digest}), run.files)
    return dict(json.loads(facts_path.read_bytes()))


def sections_of(stages: Mapping[str, Stage]) -> list[ReportSection]:
    """What the stages add to the page."""
    return [stage.report for stage in stages.values() if stage.report is not None]


def told_sections(stages: Mapping[str, Stage]) -> list[str]:
    """The sections of the configuration that the page states: those that its stages tell, and its own."""
    foreign = ["stages"] if any(name not in STAGES.ours() for name in stages) else []
    return [*dict.fromkeys(name for stage in stages.values() for name in stage.tells), *foreign, "report"]


def made_of(run: RunFolder, told: dict[str, Any]) -> str:
    """Digest of everything that a report is made of: the current shards, and what the tables do not hold."""
    return digest_of([told, [[t.name, m.shard, m.sha256] for t in run.tables() for m in run.table(t).current()]])


def _told(run: RunFolder, config: AuditConfig, quarantined: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What the report says and the tables do not hold."""
    record = run.record() or {}
    index = run_index(run, config)
    facts, read = record["facts"], rows_read(run)
    settings = config.model_dump(mode="json")
    return {
        "name": config.name,
        "created": record["created"],
        "sharpaudit_version": record["sharpaudit_version"],
        "model": {
            "source": Path(config.model.path).name
            if config.model.path
            else f"{config.model.repo}@{config.model.revision}",
            "digest": facts["model_digest"],
            "dtype": facts["dtype"],
            "device": facts["device"],
        },
        "settings": {name: settings[name] for name in told_sections(flow(config))},
        "inputs": [entry | {"rows": read.get(entry["source"], 0)} for entry in record["inputs"]],
        "index": {
            "digest": facts["index_digest"],
            "profile": config.matches.profile,
            "verified_by": config.matches.verified_by,
            "pictures": len(index),
            "given": index.manifest.profiles[config.matches.profile].given,
            "holds": facts.get("index_holds"),
            "weights": facts.get("index_weights"),
        },
        "hardware": record["hardware"],
        "quarantined": list(quarantined),
        "command": f"sharpaudit run {run.root.name}/config.toml --out NEW_FOLDER",
        "folder": run.root.name,
        "replay": f"sharpaudit replay {run.root.name}",
    }
