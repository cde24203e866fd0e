"""Mitigate: what suppresses a finding at inference, tried with the methods that the configuration names.

Of every finding as many pictures as are asked for, from the noise that its own pictures begin with: as the model draws
them, and by each method at rising strengths until none is a copy (sharpaudit/mitigation/weakest.py). They are searched
like any others and held against the same lines.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.stages.bands import run_bands
from pipelines.stages.base import Inputs, Stage, Work, Worker
from pipelines.stages.inputs import run_alignment, run_model, run_search
from pipelines.stages.sample import sample_id, stored
from pipelines.stages.search import Neighbour, SampleSearch
from pipelines.stages.selection import groups, selected
from sharpaudit.config import AuditConfig
from sharpaudit.denoisers.base import Denoiser
from sharpaudit.embedders.base import Describer
from sharpaudit.errors import Status
from sharpaudit.images import Pixels
from sharpaudit.matches.decide import COPY, Bands, band_of
from sharpaudit.mitigation.base import NONE, Aimed, Case, Method, Mitigated, Mitigation, mitigate
from sharpaudit.mitigation.targets import middle, values_of
from sharpaudit.mitigation.weakest import Rung, weakest
from sharpaudit.plugs import EMBEDDERS, MITIGATIONS, SOLVERS
from sharpaudit.report.sections.mitigation import MITIGATION_SECTION
from sharpaudit.seeds import rank_hash, sample_latents
from sharpaudit.tables.image_store import ImageStore
from sharpaudit.tables.records import digest_of
from sharpaudit.tables.runs import RunFolder
from sharpaudit.tables.schemas import BANDS, MATCHES, MITIGATION, SAMPLES

AUDITED = ("flagged", "uncalibrated", "control")
"""Purposes of the pictures of audited prompts."""
MOST_HARMLESS = 100
"""Prompts that a target is taken from."""
Vector = npt.NDArray[np.float32]


class MitigateStage(Stage):
    """Row scope: a shard a finding."""

    name = "mitigate"
    table = MITIGATION
    scope = "row"
    upstream = ("match",)
    reads = ("mitigation.methods", "mitigation.pictures", "mitigation.alignment")
    uses = (MITIGATIONS.kind, EMBEDDERS.kind)
    tells = ("mitigation",)
    key = "prompt_id"
    retried = True
    asked_by = "mitigation.methods"
    report = MITIGATION_SECTION

    def outside(self, config: AuditConfig, inputs: Inputs) -> dict[str, Any]:
        """What holds pictures against texts."""
        return {} if inputs.alignment_digest is None else {"alignment digest": inputs.alignment_digest}

    def work(self, run: RunFolder, config: AuditConfig) -> list[Work]:
        """A shard for each audited prompt of which a picture is a copy."""
        # Bands and harmless prompts may change under the same fingerprints.
        held_against = [[m.sha256 for m in run.table(BANDS).current()], _harmless(run, config)]
        found = []
        for prompt_id in _findings(run):
            digest = digest_of([prompt_id, held_against])
            found.append(Work(self.name, digest[:16], 1, digest, {"prompt": prompt_id}))
        return found

    def read(self, run: RunFolder, config: AuditConfig, work: Work) -> pa.Table:
        """The finding's prompt."""
        rows = selected(run, AUDITED).filter(pc.field("prompt_id") == work.payload["prompt"])
        return rows.select(["prompt_id", "prompt"]).slice(0, 1)

    def open(self, run: RunFolder, config: AuditConfig) -> Worker:
        """A worker that holds the model, the index and the bands."""
        bands, harmless, storing = run_bands(run), _harmless(run, config), partial(ImageStore, run.root, run.files)
        model, search, aligning = run_model(run, config), run_search(run, config), run_alignment(run, config)
        return MitigateWorker(model, search, storing, bands, config, harmless, aligning)


def _harmless(run: RunFolder, config: AuditConfig) -> list[str]:
    """The band prompts that a target is taken from, drawn where there are many."""
    prompts = set(selected(run, ("band",))["prompt"].to_pylist())
    return sorted(prompts, key=lambda prompt: rank_hash(config.seed, "mitigation target", prompt))[:MOST_HARMLESS]


def _findings(run: RunFolder) -> list[str]:
    """Audited prompts of which a picture is a copy, as the view `findings` has them."""
    fingerprint = run.table(SAMPLES).fingerprint
    wanted = [sample_id(*key, fingerprint) for keys in groups(selected(run, AUDITED)).values() for key in keys]
    folder = run.table(MATCHES)
    matches = folder.read_all(folder.current(), ["sample_id", "prompt_id", "band"])
    copies = matches.filter(pc.field("band") == COPY).filter(pc.field("sample_id").isin(wanted))
    return sorted(set(copies["prompt_id"].to_pylist()))


@dataclass(frozen=True)
class Drawn:
    """A picture and what it is. vector: its descriptor, None where it has none. alignment: its cosine to the finding's
    prompt."""

    number: int
    outcome: Mitigated | Status
    near: list[Neighbour] | Status
    vector: Vector | None = None
    alignment: float | None = None


class MitigateWorker:
    """storing: opens a place for the pictures of a shard. harmless: prompts whose median is the target of methods that
    have one. aligning: describes pictures and texts; None where nobody asks for it."""

    def __init__(
        self,
        denoiser: Denoiser,
        search: SampleSearch,
        storing: Callable[[], ImageStore],
        bands: Bands,
        config: AuditConfig,
        harmless: Sequence[str],
        aligning: Describer | None = None,
    ) -> None:
        self._denoiser, self._search, self._storing = denoiser, search, storing
        self._bands, self._config, self._harmless, self._aligning = bands, config, harmless, aligning
        self._offered = cache(self._aimed)

    def process(self, rows: pa.Table) -> pa.Table:
        """A row for each picture that was drawn of these findings, by method and strength."""
        made: list[dict[str, Any]] = []
        with self._storing() as store:
            for row in rows.to_pylist():
                made += self._finding(row["prompt_id"], row["prompt"], store)
            # Thumbnails were read since: of another index none is kept.
            self._search.index.require_unchanged()
        return pa.Table.from_pylist(made, MITIGATION.schema)

    def _finding(self, prompt_id: str, prompt: str, store: ImageStore) -> list[dict[str, Any]]:
        case, n = self._case(prompt_id, prompt), self._config.mitigation.pictures
        draw, thumbnail = partial(self._drawn, case), cache(partial(self._thumbnail, store))
        before = draw(NONE.method, range(n))
        rows = self._rows(Rung(0, "", list(before)), {}, store, thumbnail)
        told = [row | {"method": NONE.name} for row in rows]
        for name in self._config.mitigation.methods:
            if MITIGATIONS[name].method.refusal(self._denoiser) is not None:
                why = {"status": Status.NOT_STEERABLE, "reason": Status.NOT_STEERABLE.describe()}
                told.append({"method": name, "strength": 1, "seed_index": 0} | why)
                continue
            for rung in weakest(self._offered(name).rungs(), draw, self._fails, n):
                own = self._rows(rung, {one.number: one.vector for one in before}, store, thumbnail)
                told += [row | {"method": name} for row in own]
        return [row | {"prompt_id": prompt_id} for row in told]

    def _case(self, prompt_id: str, prompt: str) -> Case:
        """What is drawn, from the noise that `sample` gives to these pictures."""
        asked, n = self._config.samples, self._config.mitigation.pictures
        x_T = sample_latents(self._config.seed, [(prompt_id, i) for i in range(n)], self._denoiser.latent_shape)
        solver = SOLVERS[asked.solver]
        return Case(self._denoiser, [prompt] * n, x_T, range(n), asked.guidance, asked.steps, solver, self._config.seed)

    def _aimed(self, name: str) -> Mitigation:
        """A method as it is offered, with a target where it has one."""
        offered = MITIGATIONS[name]
        if not isinstance(offered.method, Aimed):
            return offered
        case = replace(self._case("", ""), prompts=[])
        return offered.aimed(middle(values_of(offered.method, case, self._harmless, self._batch)))

    @property
    def _batch(self) -> int:
        """Pictures at a time; guidance evaluates two of each."""
        return max(1, self._config.model.batch_size // 2)

    def _drawn(self, case: Case, method: Method, numbers: Sequence[int]) -> list[Drawn]:
        outcomes = mitigate(method, case.part(numbers), self._batch) if len(numbers) else []
        pictures = [one.picture for one in outcomes if not isinstance(one, Status)]
        seen = zip(
            self._search.nearest(pictures, self._config.matches.neighbours),
            self._search.described(pictures),
            self._alignments(case.prompts[0], pictures),
            strict=True,
        )
        return [
            Drawn(i, one, one) if isinstance(one, Status) else Drawn(i, one, *next(seen))
            for i, one in zip(numbers, outcomes, strict=True)
        ]

    def _alignments(self, prompt: str, pictures: Sequence[Pixels]) -> list[float | None]:
        """Of each picture the cosine to the prompt; None without an embedder, or of what it cannot describe."""
        if self._aligning is None or not pictures:
            return [None] * len(pictures)
        text_D = self._aligning.describe_texts([prompt])[0].astype(np.float64)
        cosines_N = self._aligning.describe(pictures).astype(np.float64) @ text_D
        return [float(cosine) if np.isfinite(cosine) else None for cosine in cosines_N]

    def _decides(self, near: list[Neighbour]) -> tuple[Neighbour, str]:
        """The match that decides and its band: the first that is a copy, else the nearest."""
        banded = [(one, band_of(one.similarity, self._bands, one.verified)) for one in near]
        return next((one for one in banded if one[1] == COPY), banded[0])

    def _fails(self, drawn: Drawn) -> bool:
        """Whether a picture is a copy, or none can be said not to be one."""
        return isinstance(drawn.near, Status) or self._decides(drawn.near)[1] == COPY

    def _rows(
        self,
        rung: Rung[Drawn],
        before: Mapping[int, Vector | None],
        store: ImageStore,
        thumbnail: Callable[[int], str | None],
    ) -> list[dict[str, Any]]:
        """before: descriptors of the pictures without the method, by their numbers."""
        found = []
        for drawn in rung.drawn:
            row: dict[str, Any] = {"strength": rung.strength, "setting": rung.setting, "seed_index": drawn.number}
            if not isinstance(drawn.outcome, Status):
                row |= stored(drawn.outcome.picture, store)
                row |= {"evaluations": round(drawn.outcome.evaluations), "reached": drawn.outcome.reached}
            if isinstance(drawn.near, Status):
                found.append(row | {"status": drawn.near, "reason": drawn.near.describe()})
                continue
            near, band = self._decides(drawn.near)
            others = [one.vector for one in rung.drawn if one is not drawn]
            row |= {name: getattr(near, name) for name in ("reference_id", "similarity")} | {"band": band}
            row |= {"verified_similarity": near.verified, "thumbnail_path": thumbnail(near.row), "status": Status.OK}
            row |= {"like_before": _like(drawn.vector, [before.get(drawn.number)]), "alignment": drawn.alignment}
            found.append(row | {"like_others": _like(drawn.vector, others)})
        return found

    def _thumbnail(self, store: ImageStore, row: int) -> str | None:
        """Where the run keeps the training picture; None where the index has none."""
        held = self._search.index.thumbnail(row)
        return None if held is None else store.put(held)


def _like(vector: Vector | None, others: Sequence[Vector | None]) -> float | None:
    """The median cosine to those others that have a descriptor; None of none."""
    there = [other for other in others if other is not None]
    if vector is None or not there:
        return None
    return float(np.median(np.stack(there).astype(np.float64) @ vector.astype(np.float64)))


STAGE = MitigateStage()
