"""Sample: pictures of the selected prompts.

Its work is the pictures of the current selection that no manifest of its fingerprint lists, so a
changed alpha generates what is newly selected and nothing else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import pyarrow as pa

from pipelines.stages.base import Inputs, Stage, Work, Worker
from pipelines.stages.inputs import run_model
from pipelines.stages.selection import Key, expected_pictures, groups, selected
from sharpaudit.config import AuditConfig
from sharpaudit.errors import Status
from sharpaudit.images import Pixels, encode_png
from sharpaudit.plugs import SOLVERS
from sharpaudit.samples.generate import Generator
from sharpaudit.tables.image_store import ImageStore
from sharpaudit.tables.records import digest_of
from sharpaudit.tables.runs import RunFolder
from sharpaudit.tables.schemas import PICTURE, SAMPLES


def sample_id(prompt_id: str, seed_index: int, fingerprint: str) -> str:
    """The name of one generation: prompt, seed, and everything that determines the picture."""
    return hashlib.sha256(f"{prompt_id} {seed_index} {fingerprint}".encode()).hexdigest()[:32]


class SampleStage(Stage):
    """Row scope over (prompt, seed) pairs."""

    name = "sample"
    table = SAMPLES
    scope = "row"
    reads = ("seed", "model.dtype", "model.device", "samples.solver", "samples.steps", "samples.guidance")
    uses = ("solver", "model family")
    tells = ("samples",)
    key = "sample_id"
    keyed = True
    retried = True

    def cost(self, config: AuditConfig, counts: Mapping[str, int]) -> int:
        """Those of the solver."""
        solver = SOLVERS[config.samples.solver]
        return expected_pictures(config, counts) * solver.evaluations(config.samples.steps)

    def outside(self, config: AuditConfig, inputs: Inputs) -> dict[str, Any]:
        """The model's weights."""
        return {"model digest": inputs.model_digest}

    def work(self, run: RunFolder, config: AuditConfig) -> list[Work]:
        """Shards that cover the current selection: those there are, and new ones for what is missing."""
        folder = run.table(SAMPLES)
        print_ = folder.fingerprint
        owner = {key[0]: manifest for manifest in folder.manifests() for key in manifest.keys}
        found: dict[str, Work] = {}
        for keys in _chunks(groups(selected(run)), config.run.samples_per_shard):
            ids = [sample_id(*key, print_) for key in keys]
            for manifest in (owner[i] for i in ids if i in owner):
                found[manifest.shard] = Work(self.name, manifest.shard, manifest.rows, manifest.input_digest)
            missing = [key for key, i in zip(keys, ids, strict=True) if i not in owner]
            if missing:
                digest = digest_of(missing)
                found[digest[:16]] = Work(self.name, digest[:16], len(missing), digest, {"keys": missing})
        return list(found.values())

    def read(self, run: RunFolder, config: AuditConfig, work: Work) -> pa.Table:
        """One row a sample to be made, with its prompt."""
        rows = selected(run)
        texts = dict(zip(rows["prompt_id"].to_pylist(), rows["prompt"].to_pylist(), strict=True))
        keys = [(str(prompt_id), int(index)) for prompt_id, index in work.payload["keys"]]
        print_ = run.table(SAMPLES).fingerprint
        return pa.table(
            {
                "sample_id": [sample_id(*key, print_) for key in keys],
                "prompt_id": [prompt_id for prompt_id, _ in keys],
                "seed_index": pa.array([index for _, index in keys], pa.int32()),
                "prompt": [texts[prompt_id] for prompt_id, _ in keys],
            }
        )

    def open(self, run: RunFolder, config: AuditConfig) -> Worker:
        """A worker that holds the model."""
        generator = Generator.of(config, run_model(run, config))
        return SampleWorker(generator, partial(ImageStore, run.root, run.files))


class SampleWorker:
    """storing: opens a place for the pictures of a shard."""

    def __init__(self, generator: Generator, storing: Callable[[], ImageStore]) -> None:
        self._generator, self._storing = generator, storing

    def process(self, rows: pa.Table) -> pa.Table:
        """One row a sample; its picture is stored by digest."""
        columns = rows.to_pydict()
        keys = list(zip(columns["prompt_id"], columns["seed_index"], strict=True))
        pictures = self._generator.pictures(columns["prompt"], keys)
        with self._storing() as store:
            made = [self._row(picture, store) for picture in pictures]
        outcomes = pa.Table.from_pylist(made, pa.schema([SAMPLES.schema.field(name) for name in made[0]]))
        table = rows.drop_columns("prompt")
        for name in outcomes.column_names:
            table = table.append_column(name, outcomes[name])
        return table

    def _row(self, picture: Any, store: ImageStore) -> dict[str, Any]:
        evaluations = self._generator.evaluations
        if isinstance(picture, Status):
            return dict.fromkeys(PICTURE) | {
                "evaluations": evaluations,
                "status": picture,
                "reason": picture.describe(),
            }
        return stored(picture, store) | {"evaluations": evaluations, "status": Status.OK, "reason": None}


def stored(picture: Pixels, store: ImageStore) -> dict[str, Any]:
    """The columns PICTURE of a picture that is put into the store."""
    data = encode_png(picture)
    return {
        "image_sha256": hashlib.sha256(data).hexdigest(),
        "image_path": store.put(data),
        "image_bytes": len(data),
        "width_px": picture.shape[1],
        "height_px": picture.shape[0],
    }


def _chunks(groups: dict[str, list[Key]], size: int) -> Iterator[list[Key]]:
    """Each group cut by itself, so that another number of flagged prompts moves no other group's cut."""
    for keys in groups.values():
        for start in range(0, len(keys), size):
            yield keys[start : start + size]


STAGE = SampleStage()
