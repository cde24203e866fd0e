"""Small audits of the analytic testbed, and how two runs are compared."""

from __future__ import annotations

import csv
import json
import os
import random
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from pipelines.audit import run_audit
from pipelines.flow.outcome import Outcome
from pipelines.flow.progress import Reporter
from pipelines.stages import STAGES
from sharpaudit import config as configuration
from sharpaudit.config import AuditConfig
from sharpaudit.lab.analytic import Sizes
from sharpaudit.tables.runs import RunFolder
from tests.support.shells import bare

SIZES = Sizes(strong=6, weak=3, audited_harmless=40, harmless=240, other_references=12)
CONFIG = """
name = "small"
[model]
path = "testbed/model.json"
[corpus]
audit = "testbed/prompts/audit.csv"
id_column = "id"
[calibration]
file = "testbed/prompts/harmless.csv"
[scores]
components = 10
[triage]
alpha = 0.02
controls = 6
[samples]
steps = 10
per_prompt = 2
band_prompts = 10
[matches]
index = "testbed/index"
[run]
rows_per_shard = 40
samples_per_shard = 12
"""

ALWAYS = [name for name in STAGES if not STAGES[name].asked_by]
"""Stages of every audit."""
WORKING = [name for name in ALWAYS if name != "fit_thresholds"]
"""Stages that have work in this audit of one tier; tests of cascades kill the other."""


def load(path: Path, *overrides: str) -> AuditConfig:
    return configuration.load(path, overrides)


def audit(path: Path, root: Path, *overrides: str, said: TextIO | None = None, **options: Any) -> Outcome:
    """Run in this process. said: where it says what it does, by default nowhere. options: those of `run_audit`."""
    with Path(os.devnull).open("w") as quiet:
        return run_audit(load(path, *overrides), root, reporter=Reporter(root, said or quiet), **options)


def command(
    *args: str | Path, crash: str = "", shell: Mapping[str, str] | None = None, **kwargs: Any
) -> subprocess.Popen[str]:
    """The command line in a process of its own, with a bare shell's variables or those of `shell`."""
    environment = (shell or bare()) | ({"SHARPAUDIT_CRASH": crash} if crash else {})
    call = [sys.executable, "-P", "-m", "sharpaudit", *map(str, args)]
    return subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, **kwargs)


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Exit code, stdout and stderr. The test's own timeout ends a command that never does."""
    try:
        out, err = process.communicate()
    except BaseException:
        process.kill()
        raise
    return process.returncode, out, err


def tables(root: Path) -> dict[str, list[dict[str, Any]]]:
    """The current rows of every table in the order of their keys: what two runs must agree on."""
    run = RunFolder.open(root)
    found = {}
    for table in run.tables():
        folder = run.table(table)
        rows = folder.read_all(folder.current()).to_pylist()
        found[table.name] = sorted(rows, key=lambda row: json.dumps([row[k] for k in table.key]))
    # Samples of an earlier selection stay on disk; readers see those of the current one.
    wanted = {row["prompt_id"]: row["n_samples"] for row in found["triage"]}
    found["samples"] = [row for row in found["samples"] if row["seed_index"] < wanted[row["prompt_id"]]]
    current = {row["sample_id"] for row in found["samples"]}
    found["matches"] = [row for row in found["matches"] if row["sample_id"] in current]
    return found


def moment(clean: Path, stage: str, seed: int) -> str:
    """A crash point in the work of a stage, at a shard drawn from those of an uninterrupted run."""
    draw = random.Random(f"{stage} {seed}")
    shards = [manifest.shard for manifest in RunFolder.open(clean).table(STAGES[stage].table).current()]
    return f"{draw.choice(['work.taken', 'work.processed'])}/{stage}/{draw.choice(shards)}"


def stray(root: Path) -> list[str]:
    """Files that no manifest lists and no reader knows."""
    return [str(path.relative_to(root)) for path in root.rglob("*.inprogress*")]


def flip(path: Path) -> Path:
    """Change one bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    return path


def edited_report(root: Path) -> Path:
    """A report that says another number than its run."""
    path = root / "report/index.html"
    path.write_text(path.read_text().replace("prompts with at least one copy", "prompts with no copy at all", 1))
    return path


def truth(config_path: Path, kind: str) -> set[str]:
    with (config_path.parent / "testbed/truth.csv").open() as stream:
        return {row["prompt"] for row in csv.DictReader(stream) if row["kind"] == kind}


def found_prompts(root: Path) -> dict[str, float]:
    """Similarity of each finding."""
    with (root / "findings.csv").open() as stream:
        return {row["prompt"]: float(row["best_similarity"]) for row in csv.DictReader(stream)}
