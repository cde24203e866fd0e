"""Sample: pictures of the selected prompts.

Its work is the (prompt, seed) pairs of the current selection that no manifest of its fingerprint lists, so a
changed alpha generates what is newly selected and nothing else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import cache
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.stage import Facts, Stage, Work, Worker
from pipelines.stages.admitted import admitted_model
from sharpaudit.config import AuditConfig
from sharpaudit.errors import Status
from sharpaudit.images import encode_png
from sharpaudit.samples.generate import generate
from sharpaudit.tables.pictures import store_image
from sharpaudit.tables.records import digest_of
from sharpaudit.tables.runs import RunFolder
from sharpaudit.tables.schemas import CORPUS, SAMPLES, TRIAGE

SELECTIONS = ("flagged", "uncalibrated", "positive_control", "control", "calibration_check", "band")

Key = tuple[str, int]


def sample_id(prompt_id: str, seed_index: int, fingerprint: str) -> str:
    """The name of one generation: prompt, seed, and everything that determines the picture."""
    return hashlib.sha256(f"{prompt_id} {seed_index} {fingerprint}".encode()).hexdigest()[:32]


def selection(run: RunFolder, chosen: tuple[str, ...] = SELECTIONS) -> dict[str, list[Key]]:
    """The current selection: the (prompt_id, seed_index) pairs of each group, in a fixed order."""
    folder = run.table(TRIAGE)
    rows = folder.read_all(folder.current(), ["prompt_id", "selected_for", "n_samples"])
    found: dict[str, list[Key]] = {}
    for group in chosen:
        part = rows.filter(pc.field("selected_for") == group).sort_by("prompt_id").to_pydict()
        found[group] = [(p, k) for p, n in zip(part["prompt_id"], part["n_samples"], strict=True) for k in range(n)]
    return found


class SampleStage(Stage):
    """Row scope over (prompt, seed) pairs."""

    name = "sample"
    table = SAMPLES
    scope = "row"
    key = "sample_id"
    keyed = True

    def outside(self, config: AuditConfig, facts: Facts) -> dict[str, Any]:
        """The model's weights."""
        return {"model digest": facts.model_digest}

    def work(self, run: RunFolder, config: AuditConfig) -> list[Work]:
        """Shards that cover the current selection: those there are, and new ones for what is missing."""
        folder = run.table(SAMPLES)
        print_ = folder.fingerprint
        owner = {key[0]: manifest for manifest in folder.manifests() for key in manifest.keys}
        found: dict[str, Work] = {}
        where = cache(lambda: _shard_of_prompt(run))
        for keys in _chunks(selection(run), config.run.samples_per_shard):
            ids = [sample_id(*key, print_) for key in keys]
            for manifest in (owner[i] for i in ids if i in owner):
                found[manifest.shard] = Work(self.name, manifest.shard, manifest.rows, manifest.input_digest)
            missing = [key for key, i in zip(keys, ids, strict=True) if i not in owner]
            if missing:
                new = self._shard(missing, where())
                found[new.shard] = new
        return list(found.values())

    def _shard(self, keys: list[Key], where: dict[str, str]) -> Work:
        digest = digest_of(keys)
        parts = sorted({where[prompt_id] for prompt_id, _ in keys})
        return Work(self.name, digest[:16], len(keys), digest, {"keys": keys, "corpus": parts})

    def read(self, run: RunFolder, config: AuditConfig, work: Work) -> pa.Table:
        """One row a sample to be made, with its prompt."""
        folder = run.table(CORPUS)
        shards = set(work.payload["corpus"])
        rows = folder.read_all([m for m in folder.current() if m.shard in shards], ["prompt_id", "prompt"]).to_pydict()
        prompts = dict(zip(rows["prompt_id"], rows["prompt"], strict=True))
        keys = [(str(prompt_id), int(index)) for prompt_id, index in work.payload["keys"]]
        print_ = run.table(SAMPLES).fingerprint
        return pa.table(
            {
                "sample_id": [sample_id(*key, print_) for key in keys],
                "prompt_id": [prompt_id for prompt_id, _ in keys],
                "seed_index": pa.array([index for _, index in keys], pa.int32()),
                "prompt": [prompts[prompt_id] for prompt_id, _ in keys],
            }
        )

    def open(self, run: RunFolder, config: AuditConfig) -> Worker:
        """A worker that holds the model."""
        return SampleWorker(run, config)


class SampleWorker:
    def __init__(self, run: RunFolder, config: AuditConfig) -> None:
        self._run, self._config, self._denoiser = run, config, admitted_model(run, config)

    def process(self, rows: pa.Table) -> pa.Table:
        """One row a sample; its picture is stored by digest."""
        columns = rows.to_pydict()
        settings = self._config.samples
        pictures = generate(
            self._denoiser,
            columns["prompt"],
            list(zip(columns["prompt_id"], columns["seed_index"], strict=True)),
            seed=self._config.seed,
            steps=settings.steps,
            guidance=settings.guidance,
            batch_size=self._config.model.batch_size,
        )
        made = [self._row(picture) for picture in pictures]
        outcomes = pa.Table.from_pylist(made, pa.schema([SAMPLES.schema.field(name) for name in made[0]]))
        table = rows.drop_columns("prompt")
        for name in outcomes.column_names:
            table = table.append_column(name, outcomes[name])
        return table

    def _row(self, picture: Any) -> dict[str, Any]:
        evaluations = 2 * self._config.samples.steps
        if isinstance(picture, Status):
            absent = dict.fromkeys(("image_sha256", "image_path", "image_bytes", "width_px", "height_px"))
            return absent | {"evaluations": evaluations, "status": picture, "reason": picture.describe()}
        data = encode_png(picture)
        path = store_image(self._run.root, data, self._run.files)
        return {
            "image_sha256": hashlib.sha256(data).hexdigest(),
            "image_path": path,
            "image_bytes": len(data),
            "width_px": picture.shape[1],
            "height_px": picture.shape[0],
            "evaluations": evaluations,
            "status": Status.OK,
            "reason": None,
        }


def _chunks(groups: dict[str, list[Key]], size: int) -> Iterator[list[Key]]:
    """Each group cut by itself, so that another number of flagged prompts moves no other group's cut."""
    for keys in groups.values():
        for start in range(0, len(keys), size):
            yield keys[start : start + size]


def _shard_of_prompt(run: RunFolder) -> dict[str, str]:
    """Corpus shard of each prompt that is selected for anything."""
    folder = run.table(CORPUS)
    chosen = {prompt_id for keys in selection(run).values() for prompt_id, _ in keys}
    found = {}
    for manifest in folder.current():
        ids = folder.read(manifest, ["prompt_id"])["prompt_id"].to_pylist()
        found.update({prompt_id: manifest.shard for prompt_id in ids if prompt_id in chosen})
    return found
