"""Fit: what the screen learns from harmless prompts, in four steps.

(a) `fit_unconditional`: x0_hat(x, empty) for every seed and place, and the noise floor; (b) `fit_differences`: row
shards over the fit prompts, for every seed at which something is learned; (c) `fit_subspace`: the directions of
harmless change at each of these seeds; (d) `fit_thresholds`, in a file of its own: where the tiers of a cascade let
prompts pass. Fit prompts serve nothing else but the match bands.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from pipelines.stages.base import Inputs, Stage, Work, Worker
from pipelines.stages.inputs import run_model
from sharpaudit.config import AuditConfig
from sharpaudit.denoisers.base import Denoiser
from sharpaudit.errors import Status, UserError
from sharpaudit.scores.base import Known, Metric, Place
from sharpaudit.scores.cascade import fit_seeds, tiers, total_seeds
from sharpaudit.scores.plan import places
from sharpaudit.scores.screen import ScreenConfig, differences, noise_floor, require, unconditional_predictions
from sharpaudit.scores.subspace import Subspace, Subspaces, fit_subspace
from sharpaudit.tables.records import digest_of
from sharpaudit.tables.runs import RunFolder
from sharpaudit.tables.schemas import CORPUS, DIFFERENCES, SUBSPACE, UNCONDITIONAL, Table
from sharpaudit.tables.shards import Manifest

FLOOR_QUANTILE = 0.1


class UnconditionalStage(Stage):
    """One row a seed and place: the unconditional prediction, made once for the whole run."""

    name = "fit_unconditional"
    demands = "all"
    table = UNCONDITIONAL
    scope = "corpus"
    reads = ("seed", "model.dtype", "model.device", "scores.n_seeds", "scores.then")
    uses = ("metric", "model family")
    tells = ("seed", "scores")
    key = "seed_index"

    def cost(self, config: AuditConfig, counts: Mapping[str, int]) -> int:
        """The empty prompt at every seed and place."""
        return total_seeds(tiers(config.scores)) * len(_places(config))

    def outside(self, config: AuditConfig, inputs: Inputs) -> dict[str, Any]:
        """The model's weights, and where the metrics want the empty prompt evaluated."""
        wanted = _places(config)
        probe = {"step of the probe": config.scores.step} if any(place.by_step for place in wanted) else {}
        names = [place.name for place in wanted]
        return {"model digest": inputs.model_digest, "places": names} | probe

    def work(self, run: RunFolder, config: AuditConfig) -> list[Work]:
        """One shard with all seeds."""
        n_seeds = total_seeds(tiers(config.scores))
        return [Work(self.name, "seeds", n_seeds, digest_of([n_seeds, *(place.name for place in _places(config))]))]

    def read(self, run: RunFolder, config: AuditConfig, work: Work) -> pa.Table:
        """The seeds."""
        return pa.table({"seed_index": pa.array(range(total_seeds(tiers(config.scores))), pa.int32())})

    def open(self, run: RunFolder, config: AuditConfig) -> Worker:
        """A worker that holds the model."""
        return UnconditionalWorker(run_model(run, config), config)


class UnconditionalWorker:
    def __init__(self, denoiser: Denoiser, config: AuditConfig) -> None:
        self._config, self._denoiser = config, denoiser
        require(self._denoiser, _metrics(config))

    def process(self, rows: pa.Table) -> pa.Table:
        """Predictions, and the noise floor beside each."""
        settings = screen_config(self._config)
        every_seed = replace(settings, n_seeds=rows.num_rows)
        known = unconditional_predictions(self._denoiser, every_seed, _places(self._config))
        if not all(torch.isfinite(predictions_KCHW).all() for predictions_KCHW in known.values()):
            raise UserError(
                f"{self._config.model.path or self._config.model.repo}: the model's output for the empty prompt is not "
                'finite; check its weights, or set model.dtype = "float32"'
            )
        common = {
            "noise_floor": noise_floor(self._denoiser, settings, known),
            # Without those of the noise floor, whose number depends on the batch size.
            "evaluations": 1,
            "status": Status.OK,
            "reason": None,
        }
        made = [
            {"seed_index": k, "place": place, "x0_hat": predictions_KCHW[k].flatten().tolist()} | common
            for k in rows["seed_index"].to_pylist()
            for place, predictions_KCHW in known.items()
        ]
        return pa.Table.from_pylist(made, UNCONDITIONAL.schema)


class DifferencesStage(Stage):
    """One row a fit prompt and seed: its difference of noise predictions."""

    name = "fit_differences"
    demands = "all"
    table = DIFFERENCES
    scope = "row"
    upstream = ("fit_unconditional",)
    key = "prompt_id"
    retried = True

    def cost(self, config: AuditConfig, counts: Mapping[str, int]) -> int:
        """Every fit prompt at every seed where something is learned."""
        return counts["fit"] * len(_seeds(config))

    def outside(self, config: AuditConfig, inputs: Inputs) -> dict[str, Any]:
        """The seeds at which something is learned."""
        return {"seeds": list(_seeds(config))}

    def work(self, run: RunFolder, config: AuditConfig) -> list[Work]:
        """For every seed a shard for each corpus shard of fit prompts."""
        shards = corpus_work(self.name, run, ("fit",))
        return [
            replace(
                work, shard=f"{work.shard}-seed{k}", payload=work.payload | {"seed": k}, about=work.about | {"seed": k}
            )
            for k in _seeds(config)
            for work in shards
        ]

    def read(self, run: RunFolder, config: AuditConfig, work: Work) -> pa.Table:
        """The prompts of the shard, with its seed."""
        rows = read_prompts(run, work)
        return rows.append_column("seed_index", pa.repeat(pa.scalar(work.payload["seed"], pa.int32()), rows.num_rows))

    def open(self, run: RunFolder, config: AuditConfig) -> Worker:
        """A worker that holds the model and the unconditional predictions."""
        return DifferencesWorker(run_model(run, config), config, load_unconditional(run, config))


class DifferencesWorker:
    def __init__(self, denoiser: Denoiser, config: AuditConfig, known: Known) -> None:
        self._settings, self._known, self._denoiser = screen_config(config), known, denoiser

    def process(self, rows: pa.Table) -> pa.Table:
        """The differences; a prompt without one has a status instead."""
        settings = replace(self._settings, first_seed=rows["seed_index"][0].as_py())
        found = differences(self._denoiser, rows["prompt"].to_pylist(), self._known, settings)
        statuses = [entry if isinstance(entry, Status) else Status.OK for entry in found]
        vectors = [None if isinstance(entry, Status) else entry for entry in found]
        columns = {
            "difference": pa.array(vectors, pa.list_(pa.float32())),
            "noise_gap": [None if v is None else float(np.linalg.norm(v.astype(np.float64))) for v in vectors],
            "evaluations": [1] * len(found),
            "status": statuses,
            "reason": [reason(status) for status in statuses],
        }
        return pa.table({name: rows[name] for name in ("prompt_id", "seed_index")} | columns)


class SubspaceStage(Stage):
    """Of every seed row 0 is the mean, rows 1 to k the directions of harmless change."""

    name = "fit_subspace"
    demands = "all"
    table = SUBSPACE
    scope = "corpus"
    upstream = ("fit_differences",)
    reads = ("scores.components",)
    whole = True

    def work(self, run: RunFolder, config: AuditConfig) -> list[Work]:
        """A shard for each seed, named by the differences that it learns from."""
        return [differences_work(self.name, run, (k,)) for k in _seeds(config)]

    def read(self, run: RunFolder, config: AuditConfig, work: Work) -> pa.Table:
        """The seed's difference of each fit prompt that has one. Raises UserError when the noise floor drowns them."""
        rows = read_differences(run, work.payload["seeds"])
        floor = run.table(UNCONDITIONAL)
        _refuse_noise(floor.read_all(floor.current())["noise_floor"][0].as_py(), rows["noise_gap"].to_numpy())
        return rows

    def open(self, run: RunFolder, config: AuditConfig) -> Worker:
        """A worker for the decomposition; it needs no model."""
        return SubspaceWorker(config)


class SubspaceWorker:
    def __init__(self, config: AuditConfig) -> None:
        self._components = config.scores.components

    def process(self, rows: pa.Table) -> pa.Table:
        """The mean and the directions."""
        families = rows["family_id"].to_pylist()
        subspace = fit_subspace(stacked(rows["difference"]), self._components, families)
        vectors = [subspace.mean_D, *subspace.directions_KD]
        columns = {
            "seed_index": pa.repeat(rows["seed_index"][0], len(vectors)),
            "component": pa.array(range(len(vectors)), pa.int32()),
            "direction": pa.array([vector.numpy() for vector in vectors], pa.list_(pa.float32())),
            "variance_share": pa.array([None, *subspace.variance_shares_K], pa.float64()),
            "n_fit": pa.repeat(pa.scalar(subspace.n_fit, pa.int32()), len(vectors)),
            "status": [Status.OK] * len(vectors),
            "reason": pa.nulls(len(vectors), pa.string()),
        }
        return pa.table(columns)


def differences_work(stage: str, run: RunFolder, seeds: Collection[int]) -> Work:
    """The one shard of a stage that learns from all differences at these seeds, named by them."""
    manifests = _differences_at(run, seeds)
    digest = digest_of([[m.shard, m.sha256] for m in manifests])
    name = f"seeds-{min(seeds)}-{max(seeds)}-{digest[:8]}"
    return Work(stage, name, sum(m.rows for m in manifests), digest, {"seeds": list(seeds)})


def _differences_at(run: RunFolder, seeds: Collection[int]) -> list[Manifest]:
    return [m for m in run.table(DIFFERENCES).current() if m.about["seed"] in seeds]


def read_differences(run: RunFolder, seeds: Collection[int]) -> pa.Table:
    """The fit prompts that have a difference at these seeds, in the order of their ids, each with its family."""
    folder, corpus = run.table(DIFFERENCES), run.table(CORPUS)
    rows = folder.read_all(_differences_at(run, seeds)).filter(pc.field("status") == Status.OK).sort_by("prompt_id")
    known = corpus.read_all([m for m in corpus.current() if role_of(m) == "fit"], ["prompt_id", "family_id"])
    families = known["family_id"].take(pc.index_in(rows["prompt_id"], value_set=known["prompt_id"]))
    return rows.append_column("family_id", families)


def stacked(vectors: pa.ChunkedArray) -> np.ndarray:
    """A column of equally long lists as float32 rows, (N, D), without a Python number for each element."""
    flat = vectors.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    rows_ND: np.ndarray = flat.astype(np.float32, copy=False).reshape(len(vectors), -1)
    return rows_ND


def _refuse_noise(floor: float, gaps: np.ndarray) -> None:
    line = float(np.quantile(gaps, FLOOR_QUANTILE)) if len(gaps) else 0.0
    if floor > line or not len(gaps):
        raise UserError(
            f"the noise floor {floor:.3g} (noise gap of the empty prompt) exceeds the 10% quantile {line:.3g} of "
            f'{len(gaps)} fit prompts: rounding would decide the scores; set model.dtype = "float32"'
        )


def corpus_work(stage: str, run: RunFolder, roles: tuple[str, ...], made_with: tuple[Table, ...] = ()) -> list[Work]:
    """A shard for each corpus shard whose prompts have one of the roles, in their order.

    made_with: tables that the rows are made with. A shard's name holds the digest of their content, so that shards made
    with what was fitted before a shard of fit prompts came back are never taken for those that should be there.
    """
    found = [m for role in roles for m in run.table(CORPUS).current() if role_of(m) == role]
    if not made_with:
        return [Work(stage, m.shard, m.rows, m.keys_digest, {"corpus": m.shard}, m.about) for m in found]
    fitted = digest_of([[m.table, m.shard, m.sha256] for table in made_with for m in run.table(table).current()])
    return [
        Work(stage, f"{m.shard}-{fitted[:8]}", m.rows, digest_of([m.keys_digest, fitted]), {"corpus": m.shard}, m.about)
        for m in found
    ]


def role_of(manifest: Manifest) -> str:
    """The role of a corpus shard's prompts."""
    return str(manifest.about["role"])


def read_prompts(run: RunFolder, work: Work) -> pa.Table:
    """prompt_id and prompt of a corpus shard."""
    folder = run.table(CORPUS)
    return folder.read_all([m for m in folder.current() if m.shard == work.payload["corpus"]], ["prompt_id", "prompt"])


def screen_config(config: AuditConfig) -> ScreenConfig:
    """What the screen reads of the configuration; seeds are those of the first tier."""
    return ScreenConfig(config.scores.n_seeds, config.seed, config.scores.step, config.model.batch_size)


def _seeds(config: AuditConfig) -> tuple[int, ...]:
    return fit_seeds(tiers(config.scores))


def _places(config: AuditConfig) -> tuple[Place, ...]:
    return places(_metrics(config))


def _metrics(config: AuditConfig) -> list[Metric]:
    """Those of all tiers."""
    return [metric for tier in tiers(config.scores) for metric in tier.metrics]


def load_unconditional(run: RunFolder, config: AuditConfig) -> Known:
    """The committed unconditional predictions."""
    folder = run.table(UNCONDITIONAL)
    rows = folder.read_all(folder.current()).sort_by("seed_index")
    shape, known = run_model(run, config).latent_shape, {}
    for place in rows["place"].unique().to_pylist():
        flat = rows.filter(pc.field("place") == place)["x0_hat"].to_pylist()
        known[place] = torch.tensor(flat, dtype=torch.float32).reshape(len(flat), *shape)
    return known


def load_subspaces(run: RunFolder) -> Subspaces:
    """The committed subspaces."""
    folder, found = run.table(SUBSPACE), {}
    for manifest in folder.current():
        rows = folder.read(manifest).sort_by("component")
        vectors = torch.from_numpy(stacked(rows["direction"]).copy())
        seed = rows["seed_index"][0].as_py()
        shares_K, n_fit = rows["variance_share"].to_numpy()[1:], rows["n_fit"][0].as_py()
        found[seed] = Subspace(vectors[0], vectors[1:], shares_K, n_fit)
    return found


def reason(status: Status) -> str | None:
    """The sentence of a rejection, null for a result."""
    return status.describe() if status.is_rejection else None


UNCONDITIONAL_STAGE, DIFFERENCES_STAGE, SUBSPACE_STAGE = UnconditionalStage(), DifferencesStage(), SubspaceStage()
