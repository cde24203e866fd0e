"""Bands: where a match becomes a copy, measured on pictures of harmless prompts.

The band samples are generated like any others, as many of each prompt, and searched like any others; what they reach by
chance is the line that a copy must pass.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.stages.base import Inputs, Stage, Work, Worker
from pipelines.stages.inputs import run_search
from pipelines.stages.sample import sample_id
from pipelines.stages.search import SampleSearch, stored_pictures
from pipelines.stages.selection import selected
from sharpaudit.config import AuditConfig, MatchesConfig
from sharpaudit.errors import Status, UserError
from sharpaudit.images import Pixels
from sharpaudit.matches.decide import Bands, Pair, learn_bands
from sharpaudit.tables.records import digest_of
from sharpaudit.tables.runs import RunFolder
from sharpaudit.tables.schemas import BANDS, SAMPLES


class BandsStage(Stage):
    """Corpus scope over the band samples; one row."""

    name = "bands"
    table = BANDS
    scope = "corpus"
    upstream = ("sample",)
    reads = ("matches.profiles", "matches.neighbours", "matches.near_quantile", "matches.band_exceptions")
    uses = ("embedder",)
    tells = ("matches",)
    whole = True

    def outside(self, config: AuditConfig, inputs: Inputs) -> dict[str, Any]:
        """The reference index and, where search is not exact, what searches in it."""
        found = {"index digest": inputs.index_digest}
        return found | ({} if inputs.index_search is None else {"approximate search": inputs.index_search})

    def work(self, run: RunFolder, config: AuditConfig) -> list[Work]:
        """One shard, named by the band samples that it learns from and the shards that hold them."""
        folder = run.table(SAMPLES)
        ids = set(_wanted(run))
        holding = [(m.sha256, sorted(ids & {key[0] for key in m.keys})) for m in folder.current()]
        digest = digest_of(sorted([sha256, held] for sha256, held in holding if held))
        return [Work(self.name, f"all-{digest[:8]}", 1, digest)]

    def read(self, run: RunFolder, config: AuditConfig, work: Work) -> pa.Table:
        """The band samples that were made."""
        folder = run.table(SAMPLES)
        wanted = pa.array(_wanted(run), pa.string())
        rows = folder.read_all(folder.current())
        return rows.filter(pc.is_in(rows["sample_id"], wanted)).filter(pc.field("status") == Status.OK)

    def open(self, run: RunFolder, config: AuditConfig) -> Worker:
        """A worker that holds the index."""
        return BandsWorker(run_search(run, config), partial(stored_pictures, run.root), config.matches)


def run_bands(run: RunFolder) -> Bands:
    """The bands that the run has learned."""
    folder = run.table(BANDS)
    row = folder.read_all(folder.current()).to_pylist()[0]
    return Bands(**{field.name: row[field.name] for field in fields(Bands)})


def _wanted(run: RunFolder) -> list[str]:
    """The samples that set the bands."""
    rows, fingerprint = selected(run, ("band",)), run.table(SAMPLES).fingerprint
    keys = zip(rows["prompt_id"].to_pylist(), rows["seed_index"].to_pylist(), strict=True)
    return [sample_id(*key, fingerprint) for key in keys]


class BandsWorker:
    """load: pictures by their paths within the run, None for one that cannot be read."""

    def __init__(
        self, search: SampleSearch, load: Callable[[list[str]], list[Pixels | None]], matches: MatchesConfig
    ) -> None:
        self._search, self._load, self._matches = search, load, matches

    def process(self, rows: pa.Table) -> pa.Table:
        """The bands, as a table of one row."""
        matches = self._matches
        # As many neighbours as match looks at: with two instruments any of them may be the copy.
        k = matches.neighbours if matches.verified_by else 1
        found, recall = self._search.measured(self._load(rows["image_path"].to_pylist()), k)
        pairs = [
            Pair(prompt, f"{i}", neighbour.similarity, neighbour.verified)
            for i, (prompt, near) in enumerate(zip(rows["prompt_id"].to_pylist(), found, strict=True))
            for neighbour in ([] if isinstance(near, Status) else near)
        ]
        if not pairs:
            raise UserError(
                "no band sample could be matched, so no similarity can be called a copy: "
                f"{rows.num_rows} band samples were made (samples.band_prompts, samples.per_prompt)"
            )
        verifying = matches.verified_by is not None
        if verifying and all(pair.verified is None for pair in pairs):
            raise UserError(
                f"{matches.verified_by} can describe no band sample, so that nothing could be verified: name another "
                "second embedder in matches.profiles, or one alone"
            )
        bands = learn_bands(pairs, matches.near_quantile, matches.band_exceptions, verifying=verifying)
        row = {
            "profile": matches.profile,
            "index_digest": self._search.index.digest,
            "n_samples": bands.n_samples,
            "n_prompts": bands.n_prompts,
            "n_exceptions": bands.n_exceptions,
            "copy_above": bands.copy_above,
            "near_above": bands.near_above,
            "verified_by": matches.verified_by,
            "verified_above": bands.verified_above,
            "search": matches.search,
            "recall_found": None if recall is None else recall.found,
            "recall_n": None if recall is None else recall.n,
            "status": Status.OK,
            "reason": None,
        }
        return pa.Table.from_pylist([row], BANDS.schema)


STAGE = BandsStage()
