"""Corroborate: what else speaks for a prompt, beside its score and a similarity.

Of every prompt that has pictures, how alike they are to each other; of its best picture, how like it is to pictures of
harmless prompts, of which none shows what it shows; and where the training picture is in it, if it is a copy. The same
of the harmless prompts that set the bands says how much of it chance explains.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.stages.base import Stage, Work, Worker
from pipelines.stages.inputs import run_index
from pipelines.stages.sample import sample_id
from pipelines.stages.search import stored_pictures
from pipelines.stages.selection import groups, selected
from sharpaudit.config import AuditConfig
from sharpaudit.embedders.base import Describer, open_embedder
from sharpaudit.errors import Status
from sharpaudit.images import Pixels
from sharpaudit.matches.alike import Background, alike
from sharpaudit.matches.region import PLAIN, SAME, Region, locate
from sharpaudit.tables.records import digest_of
from sharpaudit.tables.runs import RunFolder
from sharpaudit.tables.schemas import BANDS, CORROBORATION, MATCHES, SAMPLES

PICTURES_PER_SHARD = 256
MOST_BACKGROUND = 1000
"""Pictures of harmless prompts that another is held against."""
Load = Callable[[list[str]], list[Pixels | None]]
Vectors = dict[str, npt.NDArray[np.float32]]


class CorroborateStage(Stage):
    """Row scope: the prompts with pictures, some of one purpose at a time."""

    name = "corroborate"
    table = CORROBORATION
    scope = "row"
    upstream = ("match",)
    retried = True
    key = "prompt_id"

    def work(self, run: RunFolder, config: AuditConfig) -> list[Work]:
        """A shard for some prompts, named by their pictures and by the shards that match them."""
        fingerprint = run.table(SAMPLES).fingerprint
        holding = {key[0]: m.shard for m in run.table(SAMPLES).current() for key in m.keys}
        # A shard of matches bears the name of the samples that it matches, and what else it rests on.
        matched = {m.shard.rpartition("-")[0]: m for m in run.table(MATCHES).current()}
        # The name of the bands tells the samples that they were learned from.
        bands = [m.shard for m in run.table(BANDS).current()]
        found = []
        prompts = max(1, PICTURES_PER_SHARD // config.samples.per_prompt)
        # Those that set the lines first: without them a night that ends here would tell of nothing.
        chosen = sorted(groups(selected(run)).items(), key=lambda group: group[0] != "band")
        for purpose, keys in chosen:
            for some in _chunks([(prompt, sample_id(prompt, seed, fingerprint)) for prompt, seed in keys], prompts):
                shards = sorted({holding[sample] for _, sample in some if sample in holding})
                digest = digest_of(
                    [some, purpose, bands, [matched[shard].sha256 for shard in shards if shard in matched]]
                )
                payload = {"samples": shards, "ids": [sample for _, sample in some], "purpose": purpose}
                found.append(Work(self.name, digest[:16], len({prompt for prompt, _ in some}), digest, payload))
        return found

    def read(self, run: RunFolder, config: AuditConfig, work: Work) -> pa.Table:
        """One row a sample with the match that decides of it, and what it was made for."""
        wanted, shards = pa.array(work.payload["ids"], pa.string()), set(work.payload["samples"])
        samples, matches = run.table(SAMPLES), run.table(MATCHES)
        rows = samples.read_all([m for m in samples.current() if m.shard in shards])
        rows = rows.filter(pc.is_in(rows["sample_id"], wanted))
        found = matches.read_all([m for m in matches.current() if m.shard.rpartition("-")[0] in shards])
        decides: dict[str, dict[str, Any]] = {}
        for match in found.filter(pc.is_in(found["sample_id"], wanted)).to_pylist():
            held = decides.setdefault(match["sample_id"], match)
            if _decides(match) < _decides(held):
                decides[match["sample_id"]] = match
        columns = ("reference_id", "similarity", "band", "thumbnail_path")
        joined = [
            {name: row[name] for name in ("sample_id", "prompt_id", "seed_index", "image_path", "status")}
            | {name: decides.get(row["sample_id"], {}).get(name) for name in columns}
            | {"purpose": work.payload["purpose"]}
            for row in rows.to_pylist()
        ]
        return pa.Table.from_pylist(sorted(joined, key=lambda row: (row["prompt_id"], row["seed_index"])), INPUT)

    def open(self, run: RunFolder, config: AuditConfig) -> Worker:
        """A worker that holds the embedder of the index."""
        embedder = run_index(run, config).embedder
        describer = open_embedder(embedder, config.matches.batch_size, config.model.device)
        load = partial(stored_pictures, run.root)
        return CorroborateWorker(describer, load, partial(_background, run, describer, load))


def _background(run: RunFolder, describer: Describer, load: Load) -> Background:
    """The first picture of each of the harmless prompts that set the bands."""
    rows, fingerprint = selected(run, ("band",)), run.table(SAMPLES).fingerprint
    keys = [key for key in groups(rows).get("band", []) if key[1] == 0][:MOST_BACKGROUND]
    of_prompt = {sample_id(*key, fingerprint): key[0] for key in keys}
    samples = run.table(SAMPLES)
    held = samples.read_all(samples.current(), ["sample_id", "image_path", "status"])
    held = held.filter(pc.is_in(held["sample_id"], pa.array(of_prompt, pa.string())))
    made = held.filter(pc.field("status") == Status.OK).sort_by("sample_id").to_pylist()
    pictures = load([row["image_path"] for row in made])
    prompts = [of_prompt[row["sample_id"]] for row, picture in zip(made, pictures, strict=True) if picture is not None]
    vectors = describer.describe([picture for picture in pictures if picture is not None])
    return Background(prompts, vectors)


INPUT = pa.schema(
    [
        *((name, pa.string()) for name in ("sample_id", "prompt_id", "image_path", "status", "reference_id", "band")),
        *((name, pa.string()) for name in ("thumbnail_path", "purpose")),
        ("seed_index", pa.int32()),
        ("similarity", pa.float64()),
    ]
)
"""Columns of what a worker takes."""


def _decides(match: dict[str, Any]) -> tuple[bool, int]:
    """As the view `judged`: the first that is a copy, else the nearest."""
    return match["band"] != "copy", match["rank"]


def _chunks(keys: list[tuple[str, str]], most: int) -> list[list[tuple[str, str]]]:
    """Pictures, given prompt by prompt, in runs of whole prompts: by how their ids begin, so that another prompt moves
    no other out of its run. most: prompts of a run, about."""
    n_prompts, digits = len({prompt for prompt, _ in keys}), 0
    while n_prompts > most * 16**digits:
        digits += 1
    found: dict[str, list[tuple[str, str]]] = {}
    for key in keys:
        found.setdefault(key[0][:digits], []).append(key)
    return list(found.values())


class CorroborateWorker:
    """load: pictures by their paths within the run, None for one that cannot be read. background: asked for once."""

    def __init__(self, describer: Describer, load: Load, background: Callable[[], Background]) -> None:
        self._describer, self._load, self._background = describer, load, cache(background)

    def process(self, rows: pa.Table) -> pa.Table:
        """One row a prompt, in the order of the prompts."""
        samples = rows.to_pylist()
        vectors = self._described(samples)
        prompts = groupby(samples, key=lambda row: row["prompt_id"])
        made = [self._row(name, list(some), vectors) for name, some in prompts]
        return pa.Table.from_pylist(made, CORROBORATION.schema)

    def _described(self, samples: list[dict[str, Any]]) -> Vectors:
        """The descriptor of every picture that has one, by its sample."""
        made = [sample for sample in samples if sample["status"] == Status.OK]
        pictures = self._load([sample["image_path"] for sample in made])
        read = [
            (sample["sample_id"], picture)
            for sample, picture in zip(made, pictures, strict=True)
            if picture is not None
        ]
        described = self._describer.describe([picture for _, picture in read]) if read else ()
        return {name: vector for (name, _), vector in zip(read, described, strict=True) if np.isfinite(vector).all()}

    def _row(self, prompt_id: str, samples: list[dict[str, Any]], vectors: Vectors) -> dict[str, Any]:
        made = [sample for sample in samples if sample["status"] == Status.OK]
        if not made:
            status = Status(samples[0]["status"])
            return {"prompt_id": prompt_id, "n_pictures": 0, "status": status, "reason": status.describe()}
        own = [vectors[sample["sample_id"]] for sample in made if sample["sample_id"] in vectors]
        best = max(made, key=_evidence)
        shown = vectors.get(best["sample_id"])
        told = {"prompt_id": prompt_id, "n_pictures": len(own), "status": Status.OK}
        told |= {"alike": alike(np.stack(own)) if own else None}
        told |= {"background": None if shown is None else self._background().like(shown, prompt_id)}
        return told | self._located(best)

    def _located(self, best: dict[str, Any]) -> dict[str, Any]:
        """Where the training picture is; nothing of a picture that is no copy, or where the index has no pictures."""
        if best["thumbnail_path"] is None or (best["band"] != "copy" and best["purpose"] != "band"):
            return {}
        generated, training = self._load([best["image_path"], best["thumbnail_path"]])
        if generated is None or training is None:
            return {}
        return {name: best[name] for name in ("sample_id", "reference_id")} | _columns(locate(generated, training))


def _evidence(sample: dict[str, Any]) -> tuple[bool, float, int]:
    """As the view `generated`: a copy before what is none, then the most similar, then the smallest seed."""
    similarity = sample["similarity"]
    return sample["band"] == "copy", -2.0 if similarity is None else similarity, -sample["seed_index"]


def _columns(region: Region) -> dict[str, Any]:
    placed: dict[str, Any] = {}
    if region.alignment is not None:
        mirrored, scale, left, top = region.alignment
        placed = {"mirrored": mirrored, "scale": scale, "left_at": left, "top_at": top}
    return placed | {
        "agreement": region.agreement,
        "same_share": region.share(SAME),
        "plain_share": region.share(PLAIN),
        "cells": region.cells_hw.ravel().tolist(),
        "cells_wide": region.cells_hw.shape[1],
    }


STAGE = CorroborateStage()
