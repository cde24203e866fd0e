"""Match: every sample against the training pictures, with the band of each match.

The thumbnail of every reported reference is copied into the run, so that a run is read without the index.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import pyarrow as pa

from pipelines.stages.bands import run_bands
from pipelines.stages.base import Stage, Work, Worker
from pipelines.stages.inputs import run_search
from pipelines.stages.search import Neighbour, SampleSearch, stored_pictures
from sharpaudit.config import AuditConfig, MatchesConfig
from sharpaudit.errors import Status
from sharpaudit.images import Pixels
from sharpaudit.matches.decide import Bands, band_of
from sharpaudit.tables.image_store import ImageStore
from sharpaudit.tables.records import digest_of
from sharpaudit.tables.runs import RunFolder
from sharpaudit.tables.schemas import BANDS, MATCHES, SAMPLES


class MatchStage(Stage):
    """Row scope: one shard for each shard of samples that holds part of the selection."""

    name = "match"
    table = MATCHES
    scope = "row"
    upstream = ("bands",)
    reads = ("matches.neighbours",)
    tells = ("matches",)
    retried = True
    key = "sample_id"

    def work(self, run: RunFolder, config: AuditConfig) -> list[Work]:
        """A shard a shard of samples, named by these pictures and by the bands that they are held against."""
        bands = [m.sha256 for m in run.table(BANDS).current()]
        found = []
        for m in run.table(SAMPLES).current():
            digest = digest_of([m.sha256, bands])
            found.append(Work(self.name, f"{m.shard}-{digest[:8]}", m.rows, digest, {"samples": m.shard}))
        return found

    def read(self, run: RunFolder, config: AuditConfig, work: Work) -> pa.Table:
        """The samples of the shard."""
        folder = run.table(SAMPLES)
        return folder.read_all([m for m in folder.current() if m.shard == work.payload["samples"]])

    def open(self, run: RunFolder, config: AuditConfig) -> Worker:
        """A worker that holds the index and the bands."""
        return MatchWorker(
            run_search(run, config),
            partial(stored_pictures, run.root),
            partial(ImageStore, run.root, run.files),
            run_bands(run),
            config.matches,
        )


class MatchWorker:
    """load: pictures by their paths within the run, None for one that cannot be read. storing: opens a place for the
    thumbnails of a shard."""

    def __init__(
        self,
        search: SampleSearch,
        load: Callable[[list[str]], list[Pixels | None]],
        storing: Callable[[], ImageStore],
        bands: Bands,
        matches: MatchesConfig,
    ) -> None:
        self._search, self._load, self._storing, self._bands, self._matches = search, load, storing, bands, matches

    def process(self, rows: pa.Table) -> pa.Table:
        """One row a sample and rank; a sample without a picture or a descriptor has one row that says why."""
        samples = rows.to_pylist()
        made = [sample for sample in samples if sample["status"] == Status.OK]
        pictures = self._load([sample["image_path"] for sample in made])
        found = iter(self._search.nearest(pictures, self._matches.neighbours))
        matched: list[dict[str, Any]] = []
        with self._storing() as store:
            # Many samples have the same neighbours.
            thumbnail = cache(partial(self._thumbnail, store))
            for sample in samples:
                outcome = next(found) if sample["status"] == Status.OK else Status(sample["status"])
                matched += self._rows(sample, outcome, thumbnail)
            # Thumbnails were read since: of another index none is kept.
            self._search.index.require_unchanged()
        return pa.Table.from_pylist(matched, MATCHES.schema)

    def _rows(
        self, sample: dict[str, Any], outcome: list[Neighbour] | Status, thumbnail: Callable[[int], str | None]
    ) -> list[dict[str, Any]]:
        common = {
            "sample_id": sample["sample_id"],
            "prompt_id": sample["prompt_id"],
            "profile": self._matches.profile,
            "index_digest": self._search.index.digest,
        }
        if isinstance(outcome, Status):
            return [common | {"rank": 1, "status": outcome, "reason": outcome.describe()}]
        return [
            common
            | {
                "rank": rank,
                "reference_id": neighbour.reference_id,
                "similarity": neighbour.similarity,
                "verified_by": self._matches.verified_by,
                "verified_similarity": neighbour.verified,
                "band": band_of(neighbour.similarity, self._bands, neighbour.verified),
                "thumbnail_path": thumbnail(neighbour.row),
                "status": Status.OK,
            }
            for rank, neighbour in enumerate(outcome, 1)
        ]

    def _thumbnail(self, store: ImageStore, row: int) -> str | None:
        """Where the run keeps the picture; None where the index has none."""
        held = self._search.index.thumbnail(row)
        return None if held is None else store.put(held)


STAGE = MatchStage()
