"""`validate`: everything that a configuration names, loaded; one prompt end to end; the plan of the night.

Nothing is written but into a temporary folder. The rate is measured on this machine with the audit's own prompts, so
the hours are an estimate for such workers, as many as were asked for and can compute at once.
"""

from __future__ import annotations

import math
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from pipelines.flow.identity import inputs_of
from pipelines.stages import flow
from pipelines.stages.base import Inputs
from pipelines.stages.calibration import allowed, fitted, wanted
from pipelines.stages.fit import screen_config
from pipelines.stages.ingest import require_audited, sources
from pipelines.stages.inputs import alignment_of, hashed_for, index_of, second_of, shelf_of, structure_of
from pipelines.stages.search import SampleSearch
from pipelines.stages.selection import expected_pictures
from sharpaudit.config import AuditConfig, ModelConfig, RunConfig
from sharpaudit.corpus.assign import USES, assign
from sharpaudit.corpus.scratch import scratch
from sharpaudit.denoisers.base import Denoiser
from sharpaudit.denoisers.load import beside_model, load_denoiser, load_tokenizer
from sharpaudit.devices import places_on, share_threads, usable_cores, use_threads
from sharpaudit.embedders.base import embedder, notes, open_embedder
from sharpaudit.errors import Status, UserError, printable
from sharpaudit.plugs import MITIGATIONS
from sharpaudit.samples.generate import Generator
from sharpaudit.scores.cascade import fit_seeds, tiers
from sharpaudit.scores.plan import evaluations, places
from sharpaudit.scores.screen import PromptScores, require, screen, unconditional_predictions
from sharpaudit.scores.subspace import Subspace

MEASURE_S = 20.0
BYTES_PER_ROW = 400
"""Of all tables together, for a prompt that is only scored; measured on runs of the analytic testbed, rounded up."""


@dataclass(frozen=True)
class Plan:
    """What the night costs. evaluations: network evaluations of one latent."""

    evaluations: dict[str, int]
    samples: int
    seconds: float
    disk_bytes: int


def validate(config: AuditConfig, measure_s: float = MEASURE_S, *, out: Path | None = None) -> Iterator[str]:
    """Lines to print, one as each check is passed. Raises UserError at the first that fails.

    out: where the run is going to be; by default below the current folder. It need not exist.
    """
    inputs = inputs_of(config)
    denoiser = load_denoiser(_computed_here(config.model, inputs))
    here = denoiser.device.type
    place = f"{inputs.device} in {inputs.dtype}" if here == inputs.device else f"{here}, where no GPU is"
    yield f"model: loads on {place}, digest {inputs.model_digest[:16]}"
    if here != inputs.device:
        yield f"workers: will compute on {inputs.device} in {inputs.dtype}; the hours below are those of this machine"
    yield f"model: read and hashed: {', '.join(printable(name) for name in inputs.model_files)}"
    ignored, not_applied = beside_model(config.model)
    if ignored:
        yield f"model: not read: {', '.join(printable(name) for name in ignored)}"
    yield from (f"note: {line}" for line in not_applied)
    refused = [MITIGATIONS[name].method.refusal(denoiser) for name in config.mitigation.methods]
    yield from (f"note: {line}" for line in refused if line is not None)
    asked, shelf = config.matches.profiles, shelf_of(config.matches)
    agree = f"profile {asked[0]} agrees" if len(asked) == 1 else f"profiles {' and '.join(asked)} agree"
    yield f"index: {agree}, digest {inputs.index_digest[:16]}"
    yield from (f"note: {line}" for name in asked for line in notes(embedder(name, shelf)))
    aligning = alignment_of(config)
    if aligning is not None:
        open_embedder(aligning, config.matches.batch_size, here)
        yield from (f"note: {line}" for line in notes(aligning))
    search = _search(config, inputs, here)
    yield f"search: {search.told}"
    todo = [(source, 0, config.run.limit if source.use == "audit" else None) for source in sources(config)]
    with tempfile.TemporaryDirectory() as folder, scratch(Path(folder) / "ingest") as rows:
        made = assign(todo, (), load_tokenizer(config.model), 0, rows, config.corpus.near_duplicates)
        require_audited(made, config)
        rejected = made.n_rows - made.statuses(USES).get(Status.OK, 0)
        styles = made.styles("calibration"), made.styles("audit")
        counts, first = made.counts, next(made.corpus("audit", config.model.batch_size))
    yield f"corpus: {', '.join(f'{n:,} {role}' for role, n in counts.items())}; {rejected:,} rows rejected"
    yield from fitted(config, counts["fit"])
    yield allowed(config, *styles)
    yield from wanted(config, *styles)
    yield f"end to end: {_one_prompt(config, search, denoiser, first)}"
    threads, at_once = at_work(config.run, here)
    use_threads(threads)
    rate = _rate(config, denoiser, first, measure_s)
    yield f"rate: {rate:,.1f} evaluations a second in one worker of {_many(threads, 'thread')}"
    night = _plan(config, counts, rate * at_once, denoiser)
    yield from _lines(config, night, at_once, out or Path.cwd())
    yield "valid: this audit would run"


def at_work(run: RunConfig, device: str) -> tuple[int, int]:
    """Threads of each worker, and how many workers compute at once: on this machine or, by an address, on others.

    More of them would wait for one another: for cores, or for a GPU, which workers with a share of it take in turn.
    """
    cores = usable_cores()
    if run.executor == "local":
        return share_threads([cores], 1, run.threads), 1
    if run.address:
        return share_threads([cores], 1, run.threads), run.workers
    threads = share_threads([cores], run.workers, run.threads)
    room = places_on(torch.cuda.device_count(), max(1.0, run.num_gpus)) if device == "cuda" else cores // threads
    return threads, max(1, min(run.workers, room))


def _computed_here(model: ModelConfig, inputs: Inputs) -> ModelConfig:
    """The model as this machine can try it, where other machines with GPUs are going to compute."""
    if inputs.device != "cuda" or torch.cuda.is_available():
        return model
    return model.model_copy(update={"device": "cpu", "dtype": "float32" if model.dtype == "float32" else "auto"})


def _search(config: AuditConfig, inputs: Inputs, device: str) -> SampleSearch:
    index = index_of(config, hashed_for(inputs))
    here = config.model_copy(update={"model": config.model.model_copy(update={"device": device})})
    return SampleSearch.of(index, second_of(index, config), structure_of(index, config, hashed_for(inputs)), here)


def _one_prompt(config: AuditConfig, search: SampleSearch, denoiser: Denoiser, audited: pa.Table) -> str:
    """One audited prompt scored, generated and matched."""
    first = audited.slice(0, 1).to_pylist()[0]
    scores = _Screen(config, denoiser)([first["prompt"]])[0]
    picture = Generator.of(config, denoiser).pictures([first["prompt"]], [(first["prompt_id"], 0)])[0]
    if isinstance(scores, Status) or isinstance(picture, Status):
        raise UserError(
            f"prompt {first['prompt_id']} could not be evaluated: {scores if isinstance(scores, Status) else picture}"
        )
    found = search.nearest([picture], 1)[0]
    nearest = (
        found.describe() if isinstance(found, Status) else f"nearest training picture at {found[0].similarity:.3f}"
    )
    pixels = f"{picture.shape[1]}x{picture.shape[0]}"
    return f"one prompt scored by {len(scores.seed_values)} metrics and generated at {pixels} pixels; {nearest}"


class _Screen:
    """The audit's screen at one seed, before anything was fitted."""

    def __init__(self, config: AuditConfig, denoiser: Denoiser) -> None:
        # Every metric of every tier, so that none is met for the first time in the night.
        metrics = [metric for tier in tiers(config.scores) for metric in tier.metrics]
        self._metrics, self._denoiser = tuple(dict.fromkeys(metrics)), denoiser
        require(denoiser, self._metrics)
        self._config = replace(screen_config(config), n_seeds=1)
        self._known = unconditional_predictions(denoiser, self._config, places(self._metrics))
        size = math.prod(denoiser.latent_shape)
        self._nothing = {0: Subspace(torch.zeros(size), torch.zeros(0, size), np.zeros(0))}
        self.evaluations = sum(evaluations(self._metrics).values())

    def __call__(self, prompts: list[str]) -> list[PromptScores | Status]:
        """The metrics of the prompts."""
        return screen(self._denoiser, prompts, self._known, self._nothing, self._config, self._metrics)


def _rate(config: AuditConfig, denoiser: Denoiser, audited: pa.Table, measure_s: float) -> float:
    """Evaluations a second of the screen on this machine, over at most `measure_s` seconds after a warm-up batch."""
    size_of_batch = config.model.batch_size
    prompts = audited["prompt"].to_pylist()
    screened = _Screen(config, denoiser)
    batch = (prompts * math.ceil(size_of_batch / len(prompts)))[:size_of_batch]
    screened(batch)
    begun, done = time.monotonic(), 0
    while done == 0 or time.monotonic() - begun < measure_s:
        screened(batch)
        done += len(batch)
    return done * screened.evaluations / (time.monotonic() - begun)


def _plan(config: AuditConfig, counts: dict[str, int], rate: float, denoiser: Denoiser) -> Plan:
    """rate: evaluations a second of all workers together. counts: prompts by role."""
    cost = {stage.name: n for stage in flow(config).values() if (n := stage.cost(config, counts))}
    samples, n_fitted = expected_pictures(config, counts), counts["fit"] * len(fit_seeds(tiers(config.scores)))
    pixels = denoiser.decode(torch.zeros(1, *denoiser.latent_shape))[0].numel()
    disk = sum(counts.values()) * BYTES_PER_ROW + n_fitted * math.prod(denoiser.latent_shape) * 4 + samples * pixels
    return Plan(cost, samples, sum(cost.values()) / rate, disk)


def _lines(config: AuditConfig, night: Plan, at_once: int, out: Path) -> Iterator[str]:
    """The plan in words. Raises UserError where the resources do not suffice."""
    total = sum(night.evaluations.values())
    parts = ", ".join(f"{name} {n:,}" for name, n in night.evaluations.items())
    yield f"plan: {total:,} evaluations ({parts}), {night.samples:,} samples if none is memorised"
    yield f"time: about {_duration(night.seconds)} with {_many(at_once, 'worker')} of this machine's kind"
    if config.run.workers > at_once:
        local = config.run.executor == "local"
        why = 'run.executor = "local" works in one process' if local else "more would wait for one another here"
        yield f"workers: {config.run.workers} are asked for and {at_once} counted: {why}"
    there = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.exists())
    free = shutil.disk_usage(there).free
    if free < night.disk_bytes:
        raise UserError(
            f"{there}: the run needs about {night.disk_bytes:,} bytes and {free:,} are free; make room or run elsewhere"
        )
    yield f"disk: about {night.disk_bytes / 2**20:,.0f} MiB of {free / 2**20:,.0f} MiB free on the disk of {there}"
    _require_gpus(config.run)


def _require_gpus(run: RunConfig) -> None:
    """Refuse shares that this machine's GPUs do not hold; `run` asks a cluster that stands elsewhere."""
    if run.executor != "ray" or run.address:
        return
    room = places_on(torch.cuda.device_count(), run.num_gpus)
    if room < run.workers:
        raise UserError(
            f"run.workers = {run.workers}, each with run.num_gpus = {run.num_gpus:g}: there is room for {room} on "
            f"{torch.cuda.device_count()} GPUs of this machine; ask for fewer workers or smaller shares"
        )


def _many(n: int, what: str) -> str:
    return f"{n} {what}{'s' if n > 1 else ''}"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"
