"""Selection: which pictures are made, of whom and what for; the one table that generation and all after it read.

One row a picture. Groups follow one another in the order of PURPOSES, prompts within a group by their ids, so that a
group is cut into shards alike whatever the others hold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.stages.base import Stage, Work, Worker
from pipelines.stages.triage import generated
from sharpaudit.config import AuditConfig
from sharpaudit.errors import Status
from sharpaudit.tables.records import digest_of
from sharpaudit.tables.runs import RunFolder
from sharpaudit.tables.schemas import CORPUS, SELECTION, TRIAGE

PURPOSES = ("flagged", "uncalibrated", "positive_control", "control", "calibration_check", "band")
Key = tuple[str, int]
"""prompt_id and seed_index of a picture."""


class SelectionStage(Stage):
    """Corpus scope over the prompts that triage selected."""

    name = "selection"
    table = SELECTION
    scope = "corpus"
    upstream = ("triage",)
    key = "prompt_id"

    def work(self, run: RunFolder, config: AuditConfig) -> list[Work]:
        """One shard, named by the decisions."""
        found = run.table(TRIAGE).current()
        digest = digest_of([m.sha256 for m in found])
        return [Work(self.name, f"all-{digest[:8]}", sum(m.rows for m in found), digest)]

    def read(self, run: RunFolder, config: AuditConfig, work: Work) -> pa.Table:
        """Each selected prompt with its text, purpose and number of pictures."""
        triage, corpus = run.table(TRIAGE), run.table(CORPUS)
        rows = triage.read_all(triage.current(), ["prompt_id", "selected_for", "n_samples"])
        rows = rows.filter(pc.field("n_samples") > 0).rename_columns({"selected_for": "purpose"})
        # Shard by shard: the prompts of a large corpus are never held all at once.
        found = (corpus.read(manifest, ["prompt_id", "prompt"]) for manifest in corpus.current())
        texts = pa.concat_tables(part.filter(pc.is_in(part["prompt_id"], rows["prompt_id"])) for part in found)
        return rows.append_column("prompt", texts["prompt"].take(pc.index_in(rows["prompt_id"], texts["prompt_id"])))

    def open(self, run: RunFolder, config: AuditConfig) -> Worker:
        """A worker; it needs nothing."""
        return SelectionWorker()


class SelectionWorker:
    """Holds nothing."""

    def process(self, rows: pa.Table) -> pa.Table:
        """One row a picture, in the order of the selection."""
        made = [
            {"prompt_id": row["prompt_id"], "seed_index": seed, "purpose": row["purpose"], "prompt": row["prompt"]}
            for row in sorted(rows.to_pylist(), key=lambda row: (_place(row["purpose"]), row["prompt_id"]))
            for seed in range(row["n_samples"])
        ]
        return pa.Table.from_pylist([row | {"status": Status.OK, "reason": None} for row in made], SELECTION.schema)


def _place(purpose: str) -> tuple[int, str]:
    """Where a group stands: those that are not ours come last."""
    return (PURPOSES.index(purpose) if purpose in PURPOSES else len(PURPOSES), purpose)


def selected(run: RunFolder, purposes: Sequence[str] | None = None) -> pa.Table:
    """prompt_id, seed_index, purpose and prompt of every picture, or of those for these purposes, in their order."""
    folder = run.table(SELECTION)
    rows = folder.read_all(folder.current(), ["prompt_id", "seed_index", "purpose", "prompt"])
    return rows if purposes is None else rows.filter(pc.field("purpose").isin(list(purposes)))


def groups(rows: pa.Table) -> dict[str, list[Key]]:
    """The pictures of each purpose, in the order of `selected`."""
    found: dict[str, list[Key]] = {}
    for row in rows.to_pylist():
        found.setdefault(row["purpose"], []).append((row["prompt_id"], row["seed_index"]))
    return found


def expected_pictures(config: AuditConfig, counts: Mapping[str, int]) -> int:
    """Pictures that will be made if no audited prompt is memorised. counts: prompts by role."""
    return sum(generated(config, counts).values()) * config.samples.per_prompt


STAGE = SelectionStage()
